import dataclasses
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from zodi import diffusion
from zodi.domains import DOMAINS, PROMPT_SUFFIX
from zodi.labels import CITYSCAPES
from zodi.miniature import pretrain as pretrain_module
from zodi.miniature import scenes
from zodi.miniature.__main__ import main
from zodi.miniature.optimise import Optimizer, learning_rate_factor
from zodi.miniature.pretrain import (
    PRETRAIN_DOMAINS,
    PretrainConfig,
    _edge_loss,
    _perceptual_loss,
    build_tokenizer,
    check_settings,
    draw_batch,
    pretrain,
    put_on_device,
)
from zodi.segmentation import DEFAULT_NETWORK, build_network
from zodi.support.files import read_json
from zodi.support.tensors import read_state, read_tensors

TOY = PretrainConfig(
    scene_count=4, held_out=2, height=64, width=96, vae_steps=3, vae_batch_size=2, vae_crop=32, steps=4,
    batch_size=4, decoder_steps=2, drawn=8, segmenter_steps=2, segmenter_batch_size=2, bf16=False,
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
    config = dataclasses.replace(TOY, start_from=str(start), vae_steps=0, decoder_steps=0, seed=1)
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


def test_a_vae_that_is_trained_on_keeps_the_scale_that_the_diffusion_model_knows(trained, tmp_path):
    start = trained / "weights" / "mini"
    config = dataclasses.replace(TOY, start_from=str(start), seed=1)
    pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    before, after = diffusion.load(start).vae, diffusion.load(tmp_path / "weights" / "mini").vae
    assert after.config.scaling_factor == before.config.scaling_factor
    assert not torch.equal(before.decoder.layers[-1].weight, after.decoder.layers[-1].weight)


def test_the_decoder_learns_from_what_the_model_draws_and_the_encoder_stays(trained, tmp_path):
    start = trained / "weights" / "mini"
    config = dataclasses.replace(TOY, start_from=str(start), vae_steps=0, seed=1)
    pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    before, after = diffusion.load(start).vae, diffusion.load(tmp_path / "weights" / "mini").vae
    assert torch.equal(before.encoder.layers[0].weight, after.encoder.layers[0].weight)
    assert not torch.equal(before.decoder.layers[-1].weight, after.decoder.layers[-1].weight)
    drawn = read_tensors(tmp_path / "run" / "drawn.safetensors", "")["latents"]
    assert drawn.shape == (8, 8, 16, 24) and drawn.float().isfinite().all()
    log = pd.read_csv(tmp_path / "weights" / "mini" / "decoder_log.csv")
    assert log["step"].tolist() == [2] and {"edges", "perceptual", "psnr_night"} <= set(log)

    longer = dataclasses.replace(config, steps=TOY.steps + 1)
    pretrain(longer, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    again = read_tensors(tmp_path / "run" / "drawn.safetensors", "")["latents"]
    assert not torch.equal(drawn, again), "another model draws other latents"


def test_a_decoder_that_nothing_is_drawn_for_is_refused():
    with pytest.raises(ValueError, match="drawn=4: expected at least 8"):
        dataclasses.replace(TOY, drawn=4)


def test_a_vae_of_other_channels_cannot_be_kept(trained, tmp_path):
    config = dataclasses.replace(
        TOY, start_from=str(trained / "weights" / "mini"), latent_channels=10, vae_steps=0, seed=1
    )
    with pytest.raises(ValueError, match=r"8 latent channels, expected latent_channels=10; train .*--vae-steps"):
        pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])


def test_edges_may_be_beside_their_place_but_not_left_out():
    street = torch.zeros(1, 3, 32, 64)
    street[..., 20] = 1
    beside, without = street.roll(1, 3), torch.zeros_like(street)
    assert _edge_loss(street, street) == 0
    assert 0 < _edge_loss(street, beside) <= 0.51 * _edge_loss(street, without)


def test_perceptual_loss_is_nothing_for_the_same_image_and_grows_with_blur():
    encoder = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini").model.encoder.eval()
    x = torch.from_numpy(scenes.render(scenes.PRETRAIN_SEEDS[0], "clear", 64, 128).image)[None]
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    little, much = (gaussian_blur(x, [7, 7], [sigma]) for sigma in (0.5, 2.0))
    assert _perceptual_loss(encoder, x, x) == 0
    assert 0 < 2 * _perceptual_loss(encoder, x, little) < _perceptual_loss(encoder, x, much)


@pytest.mark.parametrize("crop", [96, 40, 56])
def test_crops_of_the_vae_must_fit(crop):
    with pytest.raises(ValueError, match=f"vae_crop={crop}: expected a multiple of 16"):
        dataclasses.replace(TOY, vae_crop=crop)


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
    monkeypatch.setattr("zodi.miniature.optimise.SAVE_SECONDS", 0)
    original = pretrain_module.draw_batch

    def stop_in_the_third_batch(step, *args):
        if step == 2:
            raise KeyboardInterrupt
        return original(step, *args)

    monkeypatch.setattr(pretrain_module, "draw_batch", stop_in_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TOY, tmp_path / "run", tmp_path / "weights")
    assert not (tmp_path / "weights" / "mini").exists()
    monkeypatch.setattr(pretrain_module, "draw_batch", original)
    pretrain(TOY, tmp_path / "run", tmp_path / "weights")
    whole, resumed = (diffusion.load(folder / "weights" / "mini") for folder in (trained, tmp_path))
    for part in ("vae", "unet", "controlnet", "text_encoder"):
        ours, theirs = getattr(resumed, part).state_dict(), getattr(whole, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part


def test_other_settings_are_refused_more_steps_are_not(trained):
    check_settings(dataclasses.replace(TOY, steps=5), trained / "run")
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        check_settings(dataclasses.replace(TOY, seed=1), trained / "run")


def test_a_training_by_the_clock_ends_with_its_time_and_goes_on_from_it(trained, tmp_path):
    config = dataclasses.replace(
        TOY, vae_steps=0, steps=1, minutes=0.1, start_from=str(trained / "weights" / "mini"), seed=1
    )
    begin = time.monotonic()
    pretrain(config, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    state = read_state(tmp_path / "run" / "diffusion_state.pt", "")
    assert 6 <= state["seconds"] < time.monotonic() - begin and state["step"] > 1
    longer = dataclasses.replace(config, minutes=state["seconds"] / 60 + 0.01)
    pretrain(longer, tmp_path / "run", tmp_path / "weights", ["diffusion"])
    later = read_state(tmp_path / "run" / "diffusion_state.pt", "")
    assert later["step"] > state["step"] and later["seconds"] >= 60 * longer.minutes


def test_learning_rate_warms_up_stays_and_falls_at_the_end():
    rates = [learning_rate_factor(step, step / 10_000) for step in (0, 100, 199, 5000, 7500, 8750, 10_000)]
    assert rates == pytest.approx([0.005, 0.505, 1, 1, 1, 0.51, 0.02], rel=1e-3)


def test_a_batch_depends_on_seed_and_step_only_and_shows_what_it_says():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 19, (4, 64, 96)).astype(np.uint8)
    latents = torch.from_numpy(rng.standard_normal((4, 6, 8, 16, 24))).bfloat16()
    tokenizer = build_tokenizer()
    frames = put_on_device(latents, labels, tokenizer, torch.device("cpu"))
    config = dataclasses.replace(TOY, batch_size=512, prompt_dropout=0.2, layout_dropout=0.25, coarse_noise=0.3)
    batch, again, other = (draw_batch(step, frames, config) for step in (3, 3, 4))
    assert all(torch.equal(getattr(batch, x), getattr(again, x)) for x in vars(batch))
    assert not torch.equal(batch.noise, other.noise)
    # Every sample is a latent of a training scene, beside the layout of that scene and a prompt of its domain.
    which = (batch.z[:, None, None] == latents[None, :2].float()).flatten(3).all(3).nonzero()
    assert which[:, 0].tolist() == list(range(512)) and set(which[:, 1].tolist()) == {0, 1}
    colours = torch.from_numpy(CITYSCAPES.colorize(labels[which[:, 1]])).permute(0, 3, 1, 2) / 255
    shown = (batch.layout == colours).flatten(1).all(1)
    assert (batch.layout[~shown] == 0).all() and 0.15 < 1 - shown.float().mean() < 0.35
    own = batch.prompts // 2 == which[:, 2]
    assert (batch.prompts[~own] >= 12).all() and 0.1 < 1 - own.float().mean() < 0.3
    text = tokenizer.decode(frames.prompts[1], skip_special_tokens=True)
    assert text.split() == (DOMAINS["clear"].prompt + PROMPT_SUFFIX).replace(",", " ,").split()
    assert batch.t.min() >= 0 and batch.t.max() < 1000 and (batch.t.diff() >= 0).all()


def test_coarse_noise_hides_the_mean_and_leaves_the_details():
    draw = partial(pretrain_module._noise, (200, 4, 24, 48))
    fine, coarse = (draw(share, torch.Generator().manual_seed(0)) for share in (0.0, 0.3))
    assert fine.mean((2, 3)).std() < 0.04 and 0.2 < coarse.mean((2, 3)).std() < 0.3
    assert torch.allclose(fine.diff(dim=3).std(), coarse.diff(dim=3).std(), rtol=0.01)


def test_muon_takes_the_kernels_inside_and_steps_against_the_gradient():
    modules = pretrain_module.build_diffusion(0, build_tokenizer(), 8)
    optimizer = Optimizer(modules, "muon")
    inner = {id(p) for p in optimizer.inner}
    names = {name for name, p in modules.named_parameters() if id(p) in inner}
    assert "unet.mid_block.resnets.0.conv1.weight" in names
    assert not any(part in name for name in names for part in ("conv_in", "text_encoder", "bias", "norm"))
    weight = modules["unet"].mid_block.resnets[0].conv1.weight
    before = weight.detach().clone()
    for parameter in modules.parameters():
        parameter.grad = torch.ones_like(parameter)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )
    gradient = weight.grad.clone()
    optimizer.step(1e-3)
    change = weight.detach() - before
    assert (change * gradient).sum() < 0 and weight.grad is None
    # Orthogonal: all singular values of the step are about the same, whatever the gradient's are.
    values = torch.linalg.svdvals(change.flatten(1))
    assert values.max() / values.min() < 3


def test_muon_takes_the_same_step_in_any_order_of_memory():
    steps = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        modules = nn.ModuleDict({"unet": nn.Conv2d(6, 4, 3)}).to(memory_format=memory_format)
        optimizer, before = Optimizer(modules, "muon"), modules["unet"].weight.detach().clone()
        assert len(optimizer.inner) == 1
        modules["unet"](torch.randn(2, 6, 8, 8)).square().mean().backward()
        optimizer.step(1e-2)
        steps.append((modules["unet"].weight.detach() - before).flatten())
    assert steps[0].abs().max() > 1e-4
    assert F.cosine_similarity(*steps, dim=0) > 0.999


def test_every_prompt_is_spelled_in_words():
    tokenizer = build_tokenizer()
    for domain in DOMAINS.values():
        ids = tokenizer(domain.prompt + PROMPT_SUFFIX).input_ids
        words = (domain.prompt + PROMPT_SUFFIX).replace(",", " ,").split()
        assert len(ids) == len(words) + 2
    assert len(set(tokenizer("xyz").input_ids)) == 5


def test_unfinished_training_can_be_exported_and_missing_one_is_named(trained, tmp_path, capsys):
    options = ["--export-only", "--scene-count", "4", "--held-out", "2", "--height", "64", "--width", "96"]
    options += ["--vae-crop", "32"]
    assert main(["pretrain", *options, "--out", str(trained / "run"), "--weights", str(tmp_path / "weights")]) == 0
    assert diffusion.load(tmp_path / "weights" / "mini").name == "mini"
    assert main(["pretrain", *options, "--out", str(tmp_path / "nowhere"), "--weights", str(tmp_path / "weights")]) == 2
    assert "vae_state.pt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"held_out": 4}, "held_out=4"),
        ({"height": 50}, "50x96"),
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"coarse_noise": 1.0}, "coarse_noise=1.0"),
        ({"minutes": -1}, "minutes=-1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOY, **wrong)
