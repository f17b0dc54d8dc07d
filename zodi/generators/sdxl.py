"""Stable Diffusion XL (Podell et al., ICLR 2024): two text encoders, and a UNet that is told the size of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, ControlNetUnionModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from zodi.generators.interface import Predict, Prompts, TransferDefaults, embed_by_clip
from zodi.generators.stable_diffusion import UNetGenerator, unet_predictor


@dataclass(frozen=True)
class StableDiffusionXL(UNetGenerator):
    """The parts of Stable Diffusion XL with a layout ControlNet, ready for inference.

    Attributes:
        name, vae, controlnet, scheduler, defaults, compiled, control_kind, second, lora: see `Generator`.
        unet: denoiser; what it predicts is determined by `scheduler.config.prediction_type`.
        text_encoder, tokenizer: prompt -> (L, D1) embeddings.
        text_encoder_2, tokenizer_2: prompt -> (L, D2) embeddings, and one vector for the whole prompt.
    """

    family: ClassVar[str] = "Stable Diffusion XL"
    PARTS: ClassVar[dict[str, tuple[type, ...]]] = {
        "vae": (AutoencoderKL,),
        "unet": (UNet2DConditionModel,),
        "controlnet": (ControlNetModel, ControlNetUnionModel),
        "text_encoder": (CLIPTextModel,),
        "text_encoder_2": (CLIPTextModelWithProjection,),
    }
    TOKENIZERS: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    PIPELINE: ClassVar[str] = "StableDiffusionXLControlNetPipeline"
    CONTROLNETS: ClassVar[tuple[str, ...]] = (
        "abovzv/sdxl_segmentation_controlnet_ade20k",
        "xinsir/controlnet-union-sdxl-1.0",
    )
    # Guidance as in diffusers' pipeline; about a million pixels at 1:2, the size that it was trained at.
    DEFAULTS: ClassVar[TransferDefaults] = TransferDefaults(
        guidance_scale=5.0, num_inference_steps=20, short_side=704, multiple=64, palette="ade20k"
    )
    # Segmentation among the kinds of map of xinsir/controlnet-union-sdxl-1.0.
    SEGMENTATION_KIND: ClassVar[int | None] = 5

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | ControlNetUnionModel | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    scheduler: DDIMScheduler
    defaults: TransferDefaults = DEFAULTS

    @torch.inference_mode()
    def embed(self, prompts: list[str]) -> Prompts:
        """Both encoders' last layer but one, side by side, and the second's vector for the whole prompt."""
        one, _ = embed_by_clip(self.text_encoder, self.tokenizer, prompts)
        two, pooled = embed_by_clip(self.text_encoder_2, self.tokenizer_2, prompts)
        return Prompts(torch.cat([one, two], dim=-1), pooled)

    def predictor(
        self,
        z: Tensor,
        prompt: Prompts,
        maps: Sequence[Tensor],
        negative: Prompts | None = None,
        guidance_scale: float = 1.0,
    ) -> Predict:
        """See `unet_predictor`; the UNet is told that images are neither resized nor cropped (its Section 2.2)."""
        size = [side * self.pixels_per_latent for side in z.shape[-2:]]
        time_ids = torch.tensor([*size, 0, 0, *size], device=z.device, dtype=self.dtype).expand(len(z), -1)
        added = {"time_ids": time_ids}
        return unet_predictor(self.unet, self.controls(maps), z, prompt, negative, guidance_scale, added)
