"""FLUX.1 (Black Forest Labs, 2024): flow matching with a transformer that reads patches of 2 x 2 latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from zodi.generators.interface import (
    Control,
    Generator,
    Predict,
    Prompts,
    TransferDefaults,
    added_up,
    embed_by_t5,
    expand,
    tokens_of,
)
from zodi.generators.schedules import StraightPath

# Tokens of the second text encoder, as in diffusers' pipeline.
_LENGTH = 512
_PATCH = 2


@dataclass(frozen=True)
class Flux(Generator):
    """The parts of FLUX.1 with a layout ControlNet, ready for inference.

    Attributes:
        name, vae, controlnet, scheduler, defaults, compiled, control_kind, second, lora: see `Generator`.
        transformer: denoiser; predicts the velocity eps - z_0. Some ("dev") were distilled so that the guidance weight
            is an input: they have no unconditional branch, and no use for a negative prompt.
        text_encoder, tokenizer: CLIP; one vector for the whole prompt.
        text_encoder_2, tokenizer_2: T5; embeddings of tokens.
    """

    family: ClassVar[str] = "FLUX.1"
    PARTS: ClassVar[dict[str, tuple[type, ...]]] = {
        "vae": (AutoencoderKL,),
        "transformer": (FluxTransformer2DModel,),
        "controlnet": (FluxControlNetModel,),
        "text_encoder": (CLIPTextModel,),
        "text_encoder_2": (T5EncoderModel,),
    }
    TOKENIZERS: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5TokenizerFast}
    DENOISER: ClassVar[str] = "transformer"
    SCHEDULER: ClassVar[type] = FlowMatchEulerDiscreteScheduler
    PIPELINE: ClassVar[str] = "FluxControlNetPipeline"
    # Steps and guidance as in diffusers' pipelines; about a million pixels at 1:2.
    DEFAULTS: ClassVar[TransferDefaults] = TransferDefaults(
        guidance_scale=3.5, num_inference_steps=28, short_side=704, multiple=64
    )

    name: str
    vae: AutoencoderKL
    transformer: FluxTransformer2DModel
    controlnet: FluxControlNetModel | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    text_encoder_2: T5EncoderModel
    tokenizer_2: T5TokenizerFast
    scheduler: FlowMatchEulerDiscreteScheduler
    defaults: TransferDefaults = DEFAULTS

    @property
    def multiple(self) -> int:
        """VAE downsampling times the side of the transformer's patches."""
        return self.pixels_per_latent * _PATCH

    @torch.inference_mode()
    def embed(self, prompts: list[str]) -> Prompts:
        """T5's embeddings of tokens and CLIP's vector for the whole prompt."""
        length = min(_LENGTH, self.tokenizer_2.model_max_length)
        ids = tokens_of(self.tokenizer, prompts, self.tokenizer.model_max_length, 2)
        pooled = self.text_encoder(ids.to(self.device)).pooler_output
        return Prompts(embed_by_t5(self.text_encoder_2, self.tokenizer_2, prompts, length), pooled)

    def schedule(self, z: Tensor) -> StraightPath:
        """The straight path, with the checkpoint's shift, which may grow with the image."""
        height, width = z.shape[-2:]
        return StraightPath(self.scheduler, height * width // _PATCH**2)

    def predictor(
        self,
        z: Tensor,
        prompt: Prompts,
        maps: Sequence[Tensor],
        negative: Prompts | None = None,
        guidance_scale: float = 1.0,
    ) -> Predict:
        """The velocity, see `Generator.predictor`.

        The weight w is an input where the transformer was distilled for that, with w = 1 for the conditional branch
        alone; elsewhere it is classifier-free guidance, uncond + w (cond - uncond).
        """
        guided = guidance_scale != 1 and not self.transformer.config.guidance_embeds
        prompt = prompt.expanded(z, self.dtype)
        controls = [
            (control, self._read(control, expand(pixels, z, self.vae.dtype))) for control, pixels in self.controls(maps)
        ]
        if guided:
            prompt = negative.expanded(z, self.dtype).followed_by(prompt)
            controls = [(control, torch.cat([read, read])) for control, read in controls]
        height, width = z.shape[-2] // _PATCH, z.shape[-1] // _PATCH
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        # In float32: bfloat16 has no odd numbers above 256.
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(z.device).float()
        shared = {
            "encoder_hidden_states": prompt.tokens,
            "pooled_projections": prompt.pooled,
            "img_ids": positions,
            "txt_ids": positions.new_zeros(prompt.tokens.shape[1], 3),
            "return_dict": False,
        }
        hinted = any(control.network.input_hint_block is not None for control, _ in controls)

        def inputs(network: torch.nn.Module, x: Tensor, t: float) -> dict[str, Any]:
            weight = torch.full((len(x),), guidance_scale, device=x.device)
            timestep = torch.full((len(x),), t, device=x.device)
            return shared | {"timestep": timestep, "guidance": weight if network.config.guidance_embeds else None}

        def predict(z_t: Tensor, t: float) -> Tensor:
            x = pack((torch.cat([z_t, z_t]) if guided else z_t).to(self.dtype))
            residuals = [
                control.network(
                    x,
                    controlnet_cond=read,
                    conditioning_scale=control.weight,
                    controlnet_mode=self._mode(control, x),
                    **inputs(control.network, x, t),
                )
                for control, read in controls
            ]
            blocks, single_blocks = (added_up(parts) for parts in zip(*residuals, strict=True))
            velocity = self.transformer(
                x,
                controlnet_block_samples=blocks,
                controlnet_single_block_samples=single_blocks,
                controlnet_blocks_repeat=hinted,
                **inputs(self.transformer, x, t),
            )[0]
            velocity = unpack(velocity, height, width).to(z_t.dtype)
            if not guided:
                return velocity
            uncond, cond = velocity.chunk(2)
            return uncond + guidance_scale * (cond - uncond)

        return predict

    @torch.inference_mode()
    def _read(self, control: Control, pixels: Tensor) -> Tensor:
        """A map as the ControlNet reads it: patches of latents, or pixels if it has layers for them."""
        if control.network.input_hint_block is not None:
            return (2 * pixels - 1).to(self.dtype)
        return pack(self.latents_of(2 * pixels - 1, self.shift).to(self.dtype))

    def _mode(self, control: Control, x: Tensor) -> Tensor | None:
        if not control.network.union:
            return None
        return torch.full((len(x), 1), control.kind, device=x.device, dtype=torch.long)


def pack(z: Tensor) -> Tensor:
    """Patches of 2 x 2 latents as vectors: (B, C, h, w) -> (B, h w / 4, 4 C)."""
    return F.pixel_unshuffle(z, _PATCH).flatten(2).transpose(1, 2)


def unpack(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for h = 2 height, w = 2 width."""
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height, width)), _PATCH)
