"""Stable Diffusion 1.x and 2.x, the miniature, and InstructPix2Pix: a UNet that a ControlNet adds its residuals to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from zodi.generators.interface import (
    PAPER_DEFAULTS,
    Control,
    Generator,
    Predict,
    Prompts,
    TransferDefaults,
    expand,
    tokens_of,
)
from zodi.generators.schedules import PaperSchedule, few_step_scheduler, paper_scheduler
from zodi.networks.hub import CONTROLNET_SEG
from zodi.support.runs import image_format


class UNetGenerator(Generator):
    """What the families with a UNet and the paper's schedule share."""

    DENOISER: ClassVar[str] = "unet"
    SCHEDULER: ClassVar[type] = DDIMScheduler

    unet: UNet2DConditionModel

    @property
    def multiple(self) -> int:
        """VAE times UNet downsampling."""
        return self.pixels_per_latent * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def schedule(self, z: Tensor) -> PaperSchedule:
        """The paper's schedule, or with few-step weights their own."""
        return few_step_scheduler(self.scheduler) if self.lora else paper_scheduler(self.scheduler)


@dataclass(frozen=True)
class DiffusionModel(UNetGenerator):
    """The parts of a latent diffusion model with a layout ControlNet, ready for inference.

    Attributes:
        name: "mini", the hub id or the name of the folder; goes into manifests and tables.
        vae: images in -1 .. 1 <-> latents.
        unet: denoiser; what it predicts is determined by `scheduler.config.prediction_type`.
        controlnet: reads the layout image, 0 .. 1 RGB at image resolution; None for an InstructPix2Pix checkpoint.
        text_encoder, tokenizer: prompt -> (L, D) embeddings.
        scheduler: noise schedule (its betas and prediction type).
        defaults: settings that the checkpoint was made for.
        compiled: whether the networks go through torch.compile, which takes a minute for every new batch size.
        control_kind, second, lora: see `Generator`.
    """

    family: ClassVar[str] = "Stable Diffusion 1.x / 2.x"
    PARTS: ClassVar[dict[str, tuple[type, ...]]] = {
        "vae": (AutoencoderKL, AutoencoderTiny),
        "unet": (UNet2DConditionModel,),
        "controlnet": (ControlNetModel,),
        "text_encoder": (CLIPTextModel,),
    }
    TOKENIZERS: ClassVar[dict[str, type]] = {"tokenizer": CLIPTokenizer}
    PIPELINE: ClassVar[str] = "StableDiffusionControlNetPipeline"
    CONTROLNETS: ClassVar[tuple[str, ...]] = (CONTROLNET_SEG,)
    DEFAULTS: ClassVar[TransferDefaults] = PAPER_DEFAULTS

    name: str
    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    defaults: TransferDefaults = PAPER_DEFAULTS

    @torch.inference_mode()
    def embed(self, prompts: list[str]) -> Prompts:
        """The text encoder's last layer, (B, L, D)."""
        tokens = tokens_of(self.tokenizer, prompts, self.tokenizer.model_max_length, 2)
        return Prompts(self.text_encoder(tokens.to(self.device)).last_hidden_state)

    def predictor(
        self,
        z: Tensor,
        prompt: Prompts,
        maps: Sequence[Tensor],
        negative: Prompts | None = None,
        guidance_scale: float = 1.0,
    ) -> Predict:
        """See `unet_predictor`."""
        added: dict[str, Tensor] = {}
        return unet_predictor(self.unet, self.controls(maps), z, prompt, negative, guidance_scale, added)


# ---------------------------------------------------------------- UNet and ControlNets


def predictor(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    embeds: Tensor,
    layout: Tensor,
    negative_embeds: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Predict:
    """The networks as a function of latents and timestep, with classifier-free guidance: uncond + w (cond - uncond).

    Args:
        unet, controlnet: the networks; the ControlNet is active in both branches of the guidance.
        embeds, negative_embeds: of the prompts, (B, L, D); the second is not needed when w is 1.
        layout: (B, 3, H, W), RGB 0 .. 1.
        guidance_scale: w; exactly 1 skips the unconditional branch.
    """
    negative = None if negative_embeds is None else Prompts(negative_embeds)
    controls = [(Control(controlnet), layout)]
    return unet_predictor(unet, controls, embeds, Prompts(embeds), negative, guidance_scale)


def unet_predictor(
    unet: UNet2DConditionModel,
    controls: Sequence[tuple[Control, Tensor]],
    like: Tensor,
    prompt: Prompts,
    negative: Prompts | None = None,
    guidance_scale: float = 1.0,
    added: dict[str, Tensor] | None = None,
) -> Predict:
    """`predictor` for any number of ControlNets, whose weighted residuals add up, and for SDXL's added conditions.

    Args:
        unet: the denoiser.
        controls: ControlNets with their maps, (B or 1, 3, H, W), RGB 0 .. 1; active in both branches of the guidance.
        like: of B rows, on the networks' device.
        prompt, negative: of one row or of B rows; the second is not needed when w is 1.
        guidance_scale: w; exactly 1 skips the unconditional branch.
        added: conditions beside the prompt, by name, (B, ...); those of both branches are the same.
    """
    guided = guidance_scale != 1
    prompt = prompt.expanded(like, unet.dtype)
    controls = [(control, expand(layout, like, unet.dtype)) for control, layout in controls]
    if guided:
        prompt = negative.expanded(like, unet.dtype).followed_by(prompt)
        controls = [(control, torch.cat([layout, layout])) for control, layout in controls]
        added = {name: torch.cat([value, value]) for name, value in (added or {}).items()}
    conditions = {"encoder_hidden_states": prompt.tokens}
    if prompt.pooled is not None:
        conditions["added_cond_kwargs"] = {"text_embeds": prompt.pooled, **(added or {})}

    def predict(z: Tensor, t: int) -> Tensor:
        prediction = _evaluate(unet, controls, torch.cat([z, z]) if guided else z, t, conditions)
        if not guided:
            return prediction
        uncond, cond = prediction.chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    return predict


def instruction_predictor(
    unet: UNet2DConditionModel,
    image: Tensor,
    text: Tensor,
    empty: Tensor,
    guidance_scale: float,
    image_guidance_scale: float,
) -> Predict:
    """The UNet of InstructPix2Pix, which sees an image beside the noise (Brooks et al., CVPR 2023, Equation 3).

    With e(c_I, c_T) its prediction given image and text, and guidance scales s_T and s_I,
    e = e(0, 0) + s_I (e(c_I, 0) - e(0, 0)) + s_T (e(c_I, c_T) - e(c_I, 0)).
    """
    embeds = torch.cat([text, empty, empty])
    images = torch.cat([image, image, torch.zeros_like(image)])

    def predict(z: Tensor, t: int) -> Tensor:
        x = torch.cat([torch.cat([z, z, z]), images], dim=1).to(unet.dtype)
        full, image_only, none = unet(x, t, encoder_hidden_states=embeds).sample.to(z.dtype).chunk(3)
        return none + image_guidance_scale * (image_only - none) + guidance_scale * (full - image_only)

    return predict


def _evaluate(
    unet: UNet2DConditionModel,
    controls: Sequence[tuple[Control, Tensor]],
    z_t: Tensor,
    t: int,
    conditions: dict[str, object],
) -> Tensor:
    x = z_t.to(unet.dtype).contiguous(memory_format=image_format(z_t.device))
    # A tensor, because torch.compile would compile every other number into a new program.
    timestep = torch.tensor(t, device=x.device)
    (down, mid), *others = (_residuals(control, layout, x, timestep, conditions) for control, layout in controls)
    for more_down, more_mid in others:
        down, mid = [a + b for a, b in zip(down, more_down, strict=True)], mid + more_mid
    prediction = unet(
        x,
        timestep,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        return_dict=False,
        **conditions,
    )[0]
    return prediction.to(z_t.dtype)


def _residuals(
    control: Control, layout: Tensor, x: Tensor, timestep: Tensor, conditions: dict[str, object]
) -> tuple[Sequence[Tensor], Tensor]:
    """What a ControlNet adds to the UNet, times its weight."""
    network, maps = control.network, layout
    if isinstance(network, ControlNetUnionModel):
        # One of several kinds of map: its number, and the same as ones and zeros.
        kinds = torch.zeros(len(x), network.config.num_control_type, device=x.device, dtype=x.dtype)
        kinds[:, control.kind] = 1
        conditions = conditions | {"control_type": kinds, "control_type_idx": [control.kind]}
        maps = [layout]
    down, mid = network(x, timestep, controlnet_cond=maps, return_dict=False, **conditions)
    if control.weight != 1:
        down, mid = [control.weight * residual for residual in down], control.weight * mid
    return down, mid
