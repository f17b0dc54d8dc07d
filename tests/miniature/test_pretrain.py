import dataclasses

import pandas as pd
import pytest
import torch
from PIL import Image

from zodi import diffusion
from zodi.domains import DOMAINS, PROMPT_SUFFIX
from zodi.miniature import pretrain as pretrain_module
from zodi.miniature.__main__ import main
from zodi.miniature.pretrain import PRETRAIN_DOMAINS, PretrainConfig, build_tokenizer, check_settings, pretrain
from zodi.support.files import read_json

TOY = PretrainConfig(
    scene_count=4, held_out=2, height=64, width=96, vae_steps=3, vae_batch_size=2, steps=4, batch_size=4,
    segmenter_steps=2, segmenter_batch_size=2, bf16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain")
    pretrain(TOY, out / "run", out / "weights")
    return out


def test_checkpoint_from_nothing_loads_like_any_other(trained):
    model = diffusion.load(trained / "weights" / "mini")
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert model.scheduler.alphas_cumprod[-1] < 1e-4
    images = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
    latents = diffusion.encode(model, images)
    assert latents.shape == (1, 8, 16, 24)
    assert diffusion.decode(model, latents).shape == images.shape
    assert (trained / "weights" / "segmenter_mini.safetensors").exists()


def test_training_goes_on_from_a_checkpoint_and_counts_its_steps_on(trained, tmp_path):
    start = trained / "weights" / "mini"
    config = dataclasses.replace(TOY, start_from=str(start), seed=1)
    pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    before, after = diffusion.load(start), diffusion.load(tmp_path / "weights" / "mini")
    weights, changed = before.vae.state_dict(), after.vae.state_dict()
    assert all(torch.equal(weights[name], changed[name]) for name in weights)
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    assert not torch.equal(before.unet.conv_in.weight, after.unet.conv_in.weight)
    log = pd.read_csv(tmp_path / "weights" / "mini" / "diffusion_log.csv")
    assert log["step"].tolist() == [TOY.steps, 2 * TOY.steps] and log["seconds"].is_monotonic_increasing
    settings = read_json(tmp_path / "weights" / "mini" / "pretrain_settings.json")
    assert (settings["seed"], settings["started_from"]["seed"]) == (1, 0)
    assert not (tmp_path / "weights" / "segmenter_mini.safetensors").exists()


def test_more_latent_channels_take_over_what_fits_and_train_the_vae_on(trained, tmp_path):
    start = trained / "weights" / "mini"
    config = dataclasses.replace(TOY, start_from=str(start), latent_channels=10, vae_learning_rate=1e-9, seed=1)
    pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    before, after = diffusion.load(start), diffusion.load(tmp_path / "weights" / "mini")
    old, new = before.vae.encoder.layers[-1].weight, after.vae.encoder.layers[-1].weight
    assert new.shape[0] == 10 and torch.allclose(new[:8], old, atol=1e-3)
    assert after.unet.config.in_channels == after.unet.config.out_channels == 10
    log = pd.read_csv(tmp_path / "weights" / "mini" / "vae_log.csv")
    assert log["step"].tolist() == [TOY.vae_steps, 2 * TOY.vae_steps]


def test_sample_sheet_shows_every_domain_and_method(trained):
    with Image.open(trained / "weights" / "mini" / "samples.png") as sheet:
        assert sheet.width > 1000 and len(sheet.convert("RGB").getcolors(2**16)) > 50


def test_logs_hold_every_domain(trained):
    folder = trained / "weights" / "mini"
    vae, log = pd.read_csv(folder / "vae_log.csv"), pd.read_csv(folder / "diffusion_log.csv")
    assert {f"psnr_{domain}" for domain in PRETRAIN_DOMAINS} <= set(vae)
    assert {f"val_{domain}" for domain in PRETRAIN_DOMAINS} <= set(log)
    assert log["step"].iloc[-1] == TOY.steps and (log["val_mean"] > 0).all()


def test_interrupted_training_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("zodi.miniature.pretrain.SAVE_EVERY", 1)
    calls, original = [], pretrain_module._prompt

    def stop_in_the_third_batch(*args):
        calls.append(args)
        if len(calls) == TOY.batch_size + 2 + TOY.batch_size // 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(pretrain_module, "_prompt", stop_in_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TOY, tmp_path / "run", tmp_path / "weights")
    assert not (tmp_path / "weights" / "mini").exists()
    pretrain(TOY, tmp_path / "run", tmp_path / "weights")
    whole, resumed = (diffusion.load(folder / "weights" / "mini") for folder in (trained, tmp_path))
    for part in ("vae", "unet", "controlnet", "text_encoder"):
        ours, theirs = getattr(resumed, part).state_dict(), getattr(whole, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part


def test_other_settings_are_refused_more_steps_are_not(trained):
    check_settings(dataclasses.replace(TOY, steps=5), trained / "run")
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        check_settings(dataclasses.replace(TOY, seed=1), trained / "run")


def test_every_prompt_is_spelled_in_words():
    tokenizer = build_tokenizer()
    for domain in DOMAINS.values():
        ids = tokenizer(domain.prompt + PROMPT_SUFFIX).input_ids
        words = (domain.prompt + PROMPT_SUFFIX).replace(",", " ,").split()
        assert len(ids) == len(words) + 2
    assert len(set(tokenizer("xyz").input_ids)) == 5


def test_unfinished_training_can_be_exported_and_missing_one_is_named(trained, tmp_path, capsys):
    options = ["--export-only", "--scene-count", "4", "--held-out", "2", "--height", "64", "--width", "96"]
    assert main(["pretrain", *options, "--out", str(trained / "run"), "--weights", str(tmp_path / "weights")]) == 0
    assert diffusion.load(tmp_path / "weights" / "mini").name == "mini"
    assert main(["pretrain", *options, "--out", str(tmp_path / "nowhere"), "--weights", str(tmp_path / "weights")]) == 2
    assert "vae_state.pt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"held_out": 4}, "held_out=4"), ({"height": 50}, "50x96"), ({"batch_size": 3}, "batch_size=3")],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOY, **wrong)
