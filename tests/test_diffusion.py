"""Checkpoints of both formats: saved, loaded, encoded, described, and clear errors for what is missing."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from diffusers import ControlNetModel, PNDMScheduler
from safetensors.torch import save_file

from zodi import diffusion
from zodi.diffusion import TransferDefaults
from zodi.networks import hub
from zodi.support import runs


@pytest.fixture(scope="module", params=["mini", "stable_diffusion"])
def model(request):
    """A tiny checkpoint of either format."""
    return getattr(tiny, request.param)()


def photographs(count: int = 2, height: int = 16, width: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_a_saved_checkpoint_does_not_say_where_its_parts_lay(model, tmp_path):
    diffusion.save(model, tmp_path / "first")
    diffusion.save(diffusion.load(tmp_path / "first"), tmp_path / "second")
    texts = [file.read_text(encoding="utf-8") for file in (tmp_path / "second").rglob("*.json")]
    assert len(texts) > 4 and not [text for text in texts if str(tmp_path) in text]
    assert diffusion.fingerprint(diffusion.load(tmp_path / "second")) == diffusion.fingerprint(model)


def test_save_and_load_give_the_same_model(model, tmp_path):
    diffusion.save(model, tmp_path / "checkpoint")
    loaded = diffusion.load(tmp_path / "checkpoint")
    assert loaded.name == "checkpoint" and loaded.defaults == model.defaults
    assert diffusion.fingerprint(loaded) == diffusion.fingerprint(model)
    latents = diffusion.encode(model, photographs())
    assert torch.allclose(diffusion.encode(loaded, photographs()), latents, atol=1e-5)
    prompts = ["at night", "by day"]
    assert torch.allclose(diffusion.embed(loaded, prompts), diffusion.embed(model, prompts), atol=1e-5)
    assert loaded.scheduler.config.prediction_type == model.scheduler.config.prediction_type
    assert not any(p.requires_grad for p in loaded.unet.parameters())


def test_half_precision_on_disk_and_float32_in_memory(model, tmp_path):
    diffusion.save(model, tmp_path / "full")
    diffusion.save(model, tmp_path / "half", torch.float16)
    sizes = [
        (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for name in ("full", "half")
    ]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = diffusion.load(tmp_path / "half")
    assert loaded.dtype == torch.float32
    weight = model.unet.conv_in.weight
    assert torch.equal(loaded.unet.conv_in.weight, weight.half().float())


def test_load_without_defaults_means_the_paper_and_other_schedulers_are_read(tmp_path):
    model = tiny.stable_diffusion()
    diffusion.save(model, tmp_path / "sd")
    (tmp_path / "sd" / "transfer_defaults.json").unlink()
    PNDMScheduler.from_config(model.scheduler.config, skip_prk_steps=True).save_pretrained(
        tmp_path / "sd" / "scheduler"
    )
    loaded = diffusion.load(tmp_path / "sd")
    assert loaded.defaults == TransferDefaults(9.0, 20, 512, 64, "cityscapes")
    assert type(loaded.scheduler).__name__ == "DDIMScheduler"
    assert torch.equal(loaded.scheduler.alphas_cumprod, model.scheduler.alphas_cumprod)


def test_the_controlnet_may_lie_elsewhere(model, tmp_path):
    diffusion.save(model, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "controlnet").rename(tmp_path / "control")
    with pytest.raises(FileNotFoundError, match=r"control_v11p_sd15_seg.*about 1.4 GB.*--download"):
        diffusion.load(tmp_path / "checkpoint")
    loaded = diffusion.load(tmp_path / "checkpoint", controlnet=tmp_path / "control")
    assert diffusion.fingerprint(loaded) == diffusion.fingerprint(model)


def test_encode_decode_shapes_and_types(model):
    factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
    latents = diffusion.encode(model, photographs())
    assert latents.shape == (2, 4, 16 // factor, 32 // factor) and latents.dtype == torch.float32
    assert torch.allclose(diffusion.encode(model, photographs() / 255), latents, atol=1e-5)
    images = diffusion.decode(model, latents)
    assert images.shape == (2, 16, 32, 3) and images.dtype == torch.uint8
    x = photographs().permute(0, 3, 1, 2) / 127.5 - 1
    encoded = model.vae.encode(x)
    raw = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    assert torch.allclose(latents, raw * model.vae.config.scaling_factor, atol=1e-5)
    with pytest.raises(ValueError, match="expected \\(B, H, W, 3\\)"):
        diffusion.encode(model, x)


def test_embed_pads_and_warns_about_long_prompts(model):
    embeddings = diffusion.embed(model, ["at night", ""])
    assert embeddings.shape == (2, 32, 16) and not torch.equal(embeddings[0], embeddings[1])
    with pytest.warns(UserWarning, match="has 42 tokens; only the first 32 are used"):
        diffusion.embed(model, ["a" * 40])


def test_describe_counts_parameters(model):
    table = diffusion.describe(model).set_index("part")
    assert list(table.index) == ["vae", "unet", "controlnet", "text_encoder"]
    assert table.loc["unet", "parameters"] == sum(p.numel() for p in model.unet.parameters())


def test_fingerprint_tells_weights_and_schedules_apart(model):
    other = tiny.mini(seed=1) if model.name == "tiny-mini" else tiny.stable_diffusion(seed=1)
    assert diffusion.fingerprint(other) != diffusion.fingerprint(model)


def test_fingerprint_tells_every_weight_setting_and_token_apart(model, tmp_path):
    def changed(part, **settings):
        network = copy.deepcopy(getattr(model, part))
        network.register_to_config(**settings)
        return replace(model, **{part: network})

    before = diffusion.fingerprint(model)
    diffusion.embed(model, ["a use of the model does not change it"])
    assert diffusion.fingerprint(replace(model, name="other")) == before == diffusion.fingerprint(copy.deepcopy(model))
    others = [changed("vae", scaling_factor=0.5), changed("unet", freq_shift=1), changed("scheduler", beta_end=0.013)]
    others.append(replace(model, tokenizer=tiny.tokenizer(31)))
    for part in diffusion.MODULES:
        others.append(copy.deepcopy(model))
        weights = max(getattr(others[-1], part).parameters(), key=lambda value: value.numel())
        weights.view(-1)[-1] += 1e-3
    assert len({before, *map(diffusion.fingerprint, others)}) == 9


def test_what_is_not_a_number_is_said_and_not_painted(model):
    latents = diffusion.encode(model, photographs())
    for part, use in (
        ("encoder", lambda m: diffusion.encode(m, photographs())),
        ("decoder", lambda m: diffusion.decode(m, latents)),
    ):
        broken = copy.deepcopy(model)
        torch.nn.init.constant_(next(getattr(broken.vae, part).parameters()), torch.nan)
        with pytest.raises(
            ValueError, match=rf"found \d+ of \d+ values from the VAE's {part}.*float32.*another checkpoint"
        ):
            use(broken)
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="from the UNet"):
            diffusion.decode(model, latents.clone().fill_(value))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"device '{device}': cannot be used, expected cpu") as caught:
        diffusion.load(device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_cuda_without_a_card_is_one_line():
    with pytest.raises(ValueError, match="device 'cuda': cannot be used, expected cpu: torch finds no graphics card"):
        diffusion.load(device="cuda")


def test_auto_is_only_what_one_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    monkeypatch.setattr(runs, "native_bfloat16", lambda: True)
    diffusion.save(tiny.mini(), tmp_path / "m")
    plain, auto = diffusion.load(tmp_path / "m"), diffusion.load(tmp_path / "m", device="auto", dtype="auto")
    assert (plain.device.type, plain.dtype, auto.dtype) == ("cpu", torch.float32, torch.bfloat16)
    assert diffusion.load(tmp_path / "m", dtype="float16").dtype == torch.float16
    with pytest.raises(ValueError, match="dtype 'half': expected auto or one of float32, bfloat16, float16"):
        diffusion.load(tmp_path / "m", dtype="half")


def test_a_folder_of_half_precision_files_only(tmp_path):
    model = tiny.stable_diffusion()
    diffusion.save(model, tmp_path / "sd", torch.float16)
    for file in (tmp_path / "sd").rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"give variant='fp16', which is there \(--variant\)"):
        diffusion.load(tmp_path / "sd")
    loaded = diffusion.load(tmp_path / "sd", variant="fp16")
    for part in diffusion.MODULES:
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(getattr(loaded, part).state_dict()[name], value.half().float())
    with pytest.raises(FileNotFoundError, match=r"is incomplete.*give variant='fp16'"):
        diffusion.load(tmp_path / "sd", variant="bf16")


@pytest.mark.parametrize("part", ["vae", "unet", "controlnet", "text_encoder", "tokenizer", "scheduler"])
def test_a_damaged_part_is_named_in_one_line(tmp_path, part):
    diffusion.save(tiny.mini(), tmp_path / "checkpoint")
    for file in (tmp_path / "checkpoint" / part).iterdir():
        whole = file.read_bytes()
        for content in (whole[:-40], b"", b"[1, 2]"):
            file.write_bytes(content)
            with pytest.raises((ValueError, FileNotFoundError), match=f"checkpoint/{part}") as caught:
                diffusion.load(tmp_path / "checkpoint")
            assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    assert diffusion.load(tmp_path / "checkpoint").name == "checkpoint"


@pytest.mark.parametrize(
    "found",
    [
        {"short_side": "x"},
        {"short_side": 96.5},
        {"num_inference_steps": None},
        {"guidance_scale": True},
        {"palette": 3},
        {"strengths": [0.5]},
        {"strengths": {"night": "0.5"}},
        {"strengths": {"night": 2}},
        {"strength": 0.5},
        [],
        "text",
    ],
)
def test_wrong_defaults_of_a_checkpoint_are_refused(tmp_path, found):
    diffusion.save(tiny.mini(), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "transfer_defaults.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"checkpoint/transfer_defaults\.json: found .*expected .*copy it again"):
        diffusion.load(tmp_path / "checkpoint")


def test_missing_models_are_explained(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Expected 'mini'"):
        diffusion.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"is not on this machine.*4.3 GB.*--download.*HF_HOME"):
        diffusion.load("nobody/no-such-model")
    monkeypatch.setattr(hub, "MINI_FOLDER", tmp_path / "mini")
    with pytest.raises(FileNotFoundError, match="the miniature's weights are not there"):
        diffusion.load("mini")


def test_incomplete_and_foreign_checkpoints_are_refused(tmp_path):
    diffusion.save(tiny.mini(), tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        diffusion.load(tmp_path / "checkpoint")
    config_file = tmp_path / "checkpoint" / "vae" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="found a VQModel"):
        diffusion.load(tmp_path / "checkpoint")


def test_the_unets_weights_of_another_variant_are_read(tmp_path):
    averaged, plain = tiny.stable_diffusion(0), tiny.stable_diffusion(1)
    diffusion.save(averaged, tmp_path / "sd")
    plain.unet.save_pretrained(tmp_path / "sd" / "unet", variant="non_ema")
    assert torch.equal(diffusion.load(tmp_path / "sd").unet.conv_in.weight, averaged.unet.conv_in.weight)
    loaded = diffusion.load(tmp_path / "sd", variant="non_ema")
    assert torch.equal(loaded.unet.conv_in.weight, plain.unet.conv_in.weight)
    assert torch.equal(loaded.vae.decoder.conv_in.weight, averaged.vae.decoder.conv_in.weight)


def test_a_controlnet_in_a_single_file(tmp_path):
    model = tiny.stable_diffusion()
    diffusion.save(model, tmp_path / "sd")
    # Other than the tiny model's own: a single file has the shape of Stable Diffusion's.
    control = ControlNetModel.from_unet(model.unet)
    torch.nn.init.normal_(control.controlnet_mid_block.weight)
    save_file({name: value.contiguous() for name, value in control.state_dict().items()}, tmp_path / "c.safetensors")
    loaded = diffusion.load(tmp_path / "sd", controlnet=tmp_path / "c.safetensors").controlnet
    assert loaded.state_dict().keys() == control.state_dict().keys()
    assert torch.equal(loaded.controlnet_mid_block.weight, control.controlnet_mid_block.weight)
    with pytest.raises(FileNotFoundError, match="no such file"):
        diffusion.load(tmp_path / "sd", controlnet=tmp_path / "d.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut\.safetensors: found files that cannot be loaded"):
        diffusion.load(tmp_path / "sd", controlnet=tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not fit the UNet"):
        diffusion.load(tmp_path / "sd", controlnet=str(tmp_path / "x.safetensors"))


def test_a_compiled_model_says_so():
    model = tiny.stable_diffusion()
    compiled = diffusion.compiled(model)
    assert compiled.compiled and not model.compiled
    parts = (compiled.unet, compiled.controlnet, compiled.vae.encoder, compiled.vae.decoder)
    assert all(part._compiled_call_impl is not None for part in parts)
