"""InstructPix2Pix behind the same interface: equal to diffusers' own pipeline, and clear about what it needs."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

from zodi import diffusion
from zodi.diffusion import TransferDefaults
from zodi.transfer import domain_config, instruct_pix2pix, paper_scheduler, transfer_images

DEFAULTS = TransferDefaults(num_inference_steps=3, short_side=64)


@pytest.fixture(scope="module")
def model():
    return replace(tiny.instruct_pix2pix(), defaults=DEFAULTS)


def test_equal_to_the_pipeline_of_diffusers(model):
    generator = torch.Generator().manual_seed(0)
    image_latents, noise = torch.randn(2, 2, 4, 8, 16, generator=generator)
    prompt, empty = diffusion.embed(model, ["make it night", ""])[:, None]
    scheduler = paper_scheduler(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
    pipeline = StableDiffusionInstructPix2PixPipeline(
        model.vae, model.text_encoder, model.tokenizer, model.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
    expected = pipeline(
        image=image_latents, latents=noise, prompt_embeds=prompt.expand(2, -1, -1),
        negative_prompt_embeds=empty.expand(2, -1, -1), output_type="latent", **settings,
    ).images  # fmt: skip
    step_noise = [torch.zeros_like(noise)] * 4
    ours = instruct_pix2pix(
        model.unet, image_latents, prompt, empty, eta=0.0, noise=[noise, *step_noise], scheduler=scheduler, **settings
    )
    assert (ours - expected).abs().max() < 2e-4 * expected.abs().max()


def test_images_need_no_layout_and_do_not_depend_on_the_batch(model, tmp_path):
    diffusion.save(model, tmp_path / "ip2p")
    loaded = diffusion.load(tmp_path / "ip2p")
    assert loaded.controlnet is None and diffusion.fingerprint(loaded) == diffusion.fingerprint(model)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), dtype=np.uint8))
    config = domain_config("night", "instruct_pix2pix", loaded.defaults)
    together = transfer_images(loaded, images, None, ["a", "b"], config)
    alone = transfer_images(loaded, images[1:], None, ["b"], config)
    assert together[0].shape == (64, 128, 3)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1


def test_wrong_checkpoints_are_named(model):
    image, layout = np.zeros((2, 64, 128, 3), np.uint8)
    with pytest.raises(ValueError, match="takes 4 channels, expected 8"):
        config = domain_config("night", "instruct_pix2pix", DEFAULTS)
        transfer_images(tiny.stable_diffusion(), [image], None, ["a"], config)
    with pytest.raises(ValueError, match="needs a ControlNet; model 'tiny-ip2p' has none"):
        transfer_images(model, [image], [layout], ["a"], domain_config("night", defaults=DEFAULTS))
