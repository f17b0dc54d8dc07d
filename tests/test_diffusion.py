"""Checkpoints of both formats: saved, loaded, encoded, described, and clear errors for what is missing."""

import json

import numpy as np
import pytest
import tiny
import torch
from diffusers import ControlNetModel, PNDMScheduler
from safetensors.torch import save_file

from zodi import diffusion
from zodi.diffusion import TransferDefaults


@pytest.fixture(scope="module", params=["mini", "stable_diffusion"])
def model(request):
    """A tiny checkpoint of either format."""
    return getattr(tiny, request.param)()


def photographs(count: int = 2, height: int = 16, width: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


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


def test_missing_models_are_explained(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Expected 'mini'"):
        diffusion.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"is not on this machine.*4.3 GB.*--download.*HF_HOME"):
        diffusion.load("nobody/no-such-model")
    monkeypatch.setattr(diffusion, "MINI_FOLDER", tmp_path / "mini")
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
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not fit the UNet"):
        diffusion.load(tmp_path / "sd", controlnet=str(tmp_path / "x.safetensors"))


def test_a_compiled_model_says_so():
    model = tiny.stable_diffusion()
    compiled = diffusion.compiled(model)
    assert compiled.compiled and not model.compiled
    parts = (compiled.unet, compiled.controlnet, compiled.vae.encoder, compiled.vae.decoder)
    assert all(part._compiled_call_impl is not None for part in parts)
