"""Stable Diffusion 3.x (Esser et al., ICML 2024): flow matching with a transformer and three text encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from zodi.generators.interface import (
    Control,
    Generator,
    Predict,
    Prompts,
    TransferDefaults,
    added_up,
    embed_by_clip,
    embed_by_t5,
    expand,
)
from zodi.generators.schedules import StraightPath

# Tokens of the third text encoder, as in diffusers' pipeline.
_LENGTH = 256


@dataclass(frozen=True)
class StableDiffusion3(Generator):
    """The parts of Stable Diffusion 3 or 3.5 with a layout ControlNet, ready for inference.

    Attributes:
        name, vae, controlnet, scheduler, defaults, compiled, control_kind, second, lora: see `Generator`.
        transformer: denoiser; predicts the velocity eps - z_0.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2: CLIP; embeddings of tokens and of the whole prompt.
        text_encoder_3, tokenizer_3: T5, by far the largest; None = absent; its embeddings are then zeros.
    """

    family: ClassVar[str] = "Stable Diffusion 3.x"
    PARTS: ClassVar[dict[str, tuple[type, ...]]] = {
        "vae": (AutoencoderKL,),
        "transformer": (SD3Transformer2DModel,),
        "controlnet": (SD3ControlNetModel,),
        "text_encoder": (CLIPTextModelWithProjection,),
        "text_encoder_2": (CLIPTextModelWithProjection,),
        "text_encoder_3": (T5EncoderModel,),
    }
    TOKENIZERS: ClassVar[dict[str, type]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5TokenizerFast,
    }
    OPTIONAL: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    DENOISER: ClassVar[str] = "transformer"
    SCHEDULER: ClassVar[type] = FlowMatchEulerDiscreteScheduler
    PIPELINE: ClassVar[str] = "StableDiffusion3ControlNetPipeline"
    # Steps and guidance as in diffusers' pipeline; about a million pixels at 1:2, the size that it was trained at.
    DEFAULTS: ClassVar[TransferDefaults] = TransferDefaults(
        guidance_scale=7.0, num_inference_steps=28, short_side=704, multiple=64
    )

    name: str
    vae: AutoencoderKL
    transformer: SD3Transformer2DModel
    controlnet: SD3ControlNetModel | None
    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    text_encoder_3: T5EncoderModel | None
    tokenizer_3: T5TokenizerFast | None
    scheduler: FlowMatchEulerDiscreteScheduler
    defaults: TransferDefaults = DEFAULTS

    @property
    def multiple(self) -> int:
        """VAE downsampling times the side of the transformer's patches."""
        return self.pixels_per_latent * self.transformer.config.patch_size

    @torch.inference_mode()
    def embed(self, prompts: list[str]) -> Prompts:
        """CLIP's embeddings side by side, filled up with zeros to T5's width, and T5's after them (Section 5.2)."""
        one, pooled = embed_by_clip(self.text_encoder, self.tokenizer, prompts)
        two, pooled_2 = embed_by_clip(self.text_encoder_2, self.tokenizer_2, prompts)
        clip = torch.cat([one, two], dim=-1)
        width = self.transformer.config.joint_attention_dim
        if self.text_encoder_3 is None or self.tokenizer_3 is None:
            t5 = clip.new_zeros(len(prompts), _LENGTH, width)
        else:
            t5 = embed_by_t5(self.text_encoder_3, self.tokenizer_3, prompts, _LENGTH)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return Prompts(torch.cat([clip, t5.to(clip.dtype)], dim=1), torch.cat([pooled, pooled_2], dim=-1))

    def schedule(self, z: Tensor) -> StraightPath:
        """The straight path, with the checkpoint's shift."""
        height, width = z.shape[-2:]
        return StraightPath(self.scheduler, height * width // self.transformer.config.patch_size**2)

    def predictor(
        self,
        z: Tensor,
        prompt: Prompts,
        maps: Sequence[Tensor],
        negative: Prompts | None = None,
        guidance_scale: float = 1.0,
    ) -> Predict:
        """The velocity, with classifier-free guidance: uncond + w (cond - uncond); see `Generator.predictor`."""
        guided = guidance_scale != 1
        prompt = prompt.expanded(z, self.dtype)
        controls = [
            (control, self._control_latents(control, expand(pixels, z, self.vae.dtype)))
            for control, pixels in self.controls(maps)
        ]
        if guided:
            prompt = negative.expanded(z, self.dtype).followed_by(prompt)
            controls = [(control, torch.cat([latents, latents])) for control, latents in controls]

        def predict(z_t: Tensor, t: float) -> Tensor:
            x = (torch.cat([z_t, z_t]) if guided else z_t).to(self.dtype)
            timestep = torch.full((len(x),), 1000 * t, device=x.device)
            residuals = [_residuals(control, latents, x, timestep, prompt) for control, latents in controls]
            velocity = self.transformer(
                x,
                encoder_hidden_states=prompt.tokens,
                pooled_projections=prompt.pooled,
                timestep=timestep,
                block_controlnet_hidden_states=added_up(residuals),
                return_dict=False,
            )[0].to(z_t.dtype)
            if not guided:
                return velocity
            uncond, cond = velocity.chunk(2)
            return uncond + guidance_scale * (cond - uncond)

        return predict

    @torch.inference_mode()
    def _control_latents(self, control: Control, pixels: Tensor) -> Tensor:
        """A map as the ControlNet reads it: latents; without the shift where the ControlNet's settings say so."""
        shift = 0.0 if control.network.config.force_zeros_for_pooled_projection else self.shift
        return self.latents_of(2 * pixels - 1, shift).to(self.dtype)


def _residuals(control: Control, latents: Tensor, x: Tensor, timestep: Tensor, prompt: Prompts) -> list[Tensor]:
    """What a ControlNet adds to the transformer's blocks, times its weight."""
    config = control.network.config
    pooled = torch.zeros_like(prompt.pooled) if config.force_zeros_for_pooled_projection else prompt.pooled
    return control.network(
        x,
        controlnet_cond=latents,
        conditioning_scale=control.weight,
        encoder_hidden_states=None if config.joint_attention_dim is None else prompt.tokens,
        pooled_projections=pooled,
        timestep=timestep,
        return_dict=False,
    )[0]
