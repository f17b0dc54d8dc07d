"""Image transfer: the paper's stochastic inversion (Section 3.1), and the methods that it is compared with.

Notation as in the equations: z are latents, eps is noise, ac = alphas_cumprod, t a training timestep 0 .. 999.
A transfer with strength s goes to timestep t_enc = int(s * 1000) and comes back over the last n = int(s * steps)
steps of the DDIM grid 1, 51, ..., 951. The numbers follow the authors' published program (azuma164/ZoDi); there
s = 0.65 encodes at t = 650 but denoises as if from t = 601. That is kept; `align=True` encodes at 601.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from zodi.diffusion import DiffusionModel, TransferDefaults, decode, embed, encode
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, SOURCE, get_domain
from zodi.labels import CITYSCAPES
from zodi.photometric import photometric
from zodi.runs import generator_for

METHODS = {
    "stochastic_inversion": "ZoDi: noise the latent, rebuild it from the noise predicted, denoise with prompt, layout",
    "sdedit": "noise the latent, denoise with prompt and layout (Meng et al., ICLR 2022)",
    "ddim_inversion": "deterministic DDIM inversion, then deterministic denoising (Song et al., ICLR 2021)",
    "controlnet_only": "denoise pure noise with prompt and layout; the image itself is not used",
    "instruct_pix2pix": "edit by an instruction, without layout; needs such a checkpoint (Brooks et al., CVPR 2023)",
    "vae_round_trip": "encode and decode, no diffusion: what the VAE alone changes",
    "photometric": "hand-made colour and weather operations, no diffusion model",
}
WITHOUT_DIFFUSION = ("vae_round_trip", "photometric")
WITHOUT_MODEL = ("photometric",)
WITHOUT_LAYOUT = (*WITHOUT_DIFFUSION, "instruct_pix2pix")
INSTRUCTION = "turn it into {prompt}"
FREE_PROMPT_STRENGTH = 0.65
NOISE_CHOICES = ("per_image", "paper")
# ZoDi with one thing changed: rows of the ablations, used like methods.
ABLATIONS: dict[str, dict[str, Any]] = {
    "clear_prompt": {"prompt": DOMAINS[SOURCE].prompt},
    "paper_noise": {"noise": "paper", "seed": 42},
    "aligned": {"align": True},
    "ade20k": {"palette": "ade20k"},
    **{f"strength_{percent}": {"strength": percent / 100} for percent in (30, 50, 70, 90)},
}

# What the paper's sampler does on top of a checkpoint's betas and prediction type.
_GRID = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "thresholding": False,
}


_SMALLEST_ALPHA = 1e-12

# ---------------------------------------------------------------- schedule


def paper_scheduler(scheduler: DDIMScheduler | None = None) -> DDIMScheduler:
    """A DDIM scheduler with the paper's timestep grid.

    Args:
        scheduler: its betas and prediction type are taken over, it is not changed. None = Stable Diffusion 1.5's,
            with alphas_cumprod multiplied in float64 and rounded once to float32 as in the authors' program
            (diffusers multiplies in float32, which differs by up to 1e-6).
    """
    if scheduler is not None:
        own = DDIMScheduler.from_config(scheduler.config, **_GRID)
        ac = scheduler.alphas_cumprod.cpu()
    else:
        own = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **_GRID)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        ac = torch.cumprod(1 - betas, dim=0).float()
    # The scheduler's 1 - ac_prev - sigma^2 is 0 where ac = 0; in float32 it would round to below 0, whose root is nan.
    own.alphas_cumprod = ac.double().clamp(min=_SMALLEST_ALPHA)
    own.final_alpha_cumprod = own.alphas_cumprod[0]
    return own


def encoding_timestep(strength: float, num_train_timesteps: int = 1000) -> int:
    """t_enc = int(strength * 1000); strength 1, which points past the schedule in the authors' program, means 999."""
    return min(int(strength * num_train_timesteps), num_train_timesteps - 1)


def visited_timesteps(strength: float, num_inference_steps: int, scheduler: DDIMScheduler) -> list[int]:
    """The last n = int(strength * steps) timesteps of the scheduler's grid, highest first.

    Raises:
        ValueError: if the grid leaves the schedule, or starts where an epsilon prediction does not tell the image.
    """
    n = int(strength * num_inference_steps)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps[num_inference_steps - n :].tolist()
    if timesteps and timesteps[0] >= scheduler.config.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps={num_inference_steps}: the grid starts at t = {timesteps[0]}, expected at most "
            f"{scheduler.config.num_train_timesteps - 1}; use fewer steps"
        )
    is_epsilon = scheduler.config.prediction_type == "epsilon"
    if timesteps and is_epsilon and scheduler.alphas_cumprod[timesteps[0]] <= _SMALLEST_ALPHA:
        raise ValueError(
            f"t = {timesteps[0]} is pure noise (zero terminal SNR), from which an epsilon prediction cannot give an "
            "image; use a v_prediction checkpoint, a lower strength or fewer steps"
        )
    return timesteps


def _add_noise(z0: Tensor, eps: Tensor, t: int, scheduler: DDIMScheduler) -> Tensor:
    """z_t = sqrt(ac_t) z_0 + sqrt(1 - ac_t) eps."""
    ac = scheduler.alphas_cumprod[t].item()
    return math.sqrt(ac) * z0 + math.sqrt(1 - ac) * eps


def _predicted_noise(prediction: Tensor, z_t: Tensor, t: int, scheduler: DDIMScheduler) -> Tensor:
    """eps_hat from what the UNet predicts, for every prediction type of diffusers."""
    ac = scheduler.alphas_cumprod[t].item()
    match scheduler.config.prediction_type:
        case "epsilon":
            return prediction
        case "v_prediction":
            return math.sqrt(ac) * prediction + math.sqrt(1 - ac) * z_t
        case "sample":
            return (z_t - math.sqrt(ac) * prediction) / math.sqrt(1 - ac)
        case other:
            raise ValueError(f"prediction_type: found {other!r}, expected 'epsilon', 'v_prediction' or 'sample'")


# ---------------------------------------------------------------- one network evaluation


def _predict(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, z_t: Tensor, t: int, embeds: Tensor, layout: Tensor
) -> Tensor:
    x = z_t.to(unet.dtype).contiguous(memory_format=torch.channels_last)
    # A tensor, because torch.compile takes every other number for another program.
    timestep = torch.tensor(t, device=x.device)
    down, mid = controlnet(x, timestep, encoder_hidden_states=embeds, controlnet_cond=layout, return_dict=False)
    prediction = unet(
        x,
        timestep,
        encoder_hidden_states=embeds,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        return_dict=False,
    )[0]
    return prediction.to(z_t.dtype)


def _expand(tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """One row for all, or one row each, on the device of `like`."""
    return tensor.expand(len(like), *tensor.shape[1:]).to(like.device, dtype)


# ---------------------------------------------------------------- transfer of latents


@torch.inference_mode()
def stochastic_inversion(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    latents: Tensor,
    prompt_embeds: Tensor,
    layout: Tensor,
    *,
    strength: float,
    noise: Tensor,
    scheduler: DDIMScheduler | None = None,
    timestep: int | None = None,
) -> Tensor:
    """Noised latents whose noise is the one that the model itself sees in them (the paper's Section 3.1).

    z_t = sqrt(ac) z_0 + sqrt(1 - ac) eps; eps_hat = model(z_t, prompt, layout), without guidance;
    the result is sqrt(ac) z_0 + sqrt(1 - ac) eps_hat.

    Args:
        unet, controlnet: the networks.
        latents: z_0, (B, C, h, w).
        prompt_embeds: (B or 1, L, D).
        layout: (B or 1, 3, H, W), RGB 0 .. 1 at image resolution.
        strength: 0 .. 1; the encoding time is int(strength * 1000).
        noise: eps, shaped like `latents`.
        scheduler: see `transfer_latents`.
        timestep: encoding time in place of the one that `strength` gives.

    Returns:
        Latents at the encoding time, shape and type of `latents`.
    """
    scheduler = paper_scheduler(scheduler)
    t = encoding_timestep(strength) if timestep is None else timestep
    z0 = latents.to(torch.promote_types(latents.dtype, torch.float32))
    embeds, layout = _expand(prompt_embeds, z0, unet.dtype), _expand(layout, z0, unet.dtype)
    z_t = _add_noise(z0, noise.to(z0), t, scheduler)
    prediction = _predict(unet, controlnet, z_t, t, embeds, layout)
    eps_hat = _predicted_noise(prediction, z_t, t, scheduler)
    return _add_noise(z0, eps_hat, t, scheduler).to(latents.dtype)


@torch.inference_mode()
def transfer_latents(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    latents: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor | None,
    layout: Tensor,
    *,
    strength: float,
    num_inference_steps: int = 20,
    guidance_scale: float = 9.0,
    eta: float = 1.0,
    noise: Sequence[Tensor] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    scheduler: DDIMScheduler | None = None,
    align: bool = False,
    callback: Callable[[int, int, Tensor], None] | None = None,
    method: str = "stochastic_inversion",
) -> Tensor:
    """Latents of the transferred images (the paper's Section 3.1; steps as in the authors' program).

    Args:
        unet, controlnet: the networks; the ControlNet is active in both branches of the guidance.
        latents: z_0, scaled latents of the source images, (B, C, h, w).
        prompt_embeds: (B or 1, L, D).
        negative_prompt_embeds: (B or 1, L, D); may be None when `guidance_scale` is 1.
        layout: (B or 1, 3, H, W), RGB 0 .. 1 at image resolution.
        strength: 0 .. 1, share of the schedule to go back; with no step left the latents are returned as they are.
            "controlnet_only" has nothing to go back from and always takes all steps.
        num_inference_steps: steps of the whole grid, of which the last int(strength * steps) are taken.
        guidance_scale: weight w of uncond + w (cond - uncond); exactly 1 skips the unconditional branch.
        eta: 0 = deterministic DDIM, 1 = as much noise as DDPM. "ddim_inversion" is deterministic, whatever eta.
        noise: n + 1 tensors like `latents`: the encoding noise, then one a step.
        generator: draws the noise when `noise` is None; a list with one an image makes results independent of the
            batch. None = torch's global generator.
        scheduler: its betas and prediction type rule, the timestep grid is the paper's; None = Stable Diffusion 1.5.
        align: encode at the first visited timestep in place of int(strength * 1000).
        callback: called after every step with (step index, timestep, latents).
        method: a key of `METHODS` that uses diffusion and a layout.

    Returns:
        Final latents, shape and type of `latents`.

    Raises:
        ValueError: for arguments out of range or noise of the wrong length or shape.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: expected 0 .. 1")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}: expected at least 1")
    if method not in METHODS or method in WITHOUT_LAYOUT:
        raise ValueError(f"method {method!r}: expected one of {[m for m in METHODS if m not in WITHOUT_LAYOUT]}")
    guided = guidance_scale != 1
    if guided and negative_prompt_embeds is None:
        raise ValueError(f"guidance_scale={guidance_scale} needs negative_prompt_embeds")

    scheduler = paper_scheduler(scheduler)
    share = 1.0 if method == "controlnet_only" else strength
    timesteps = visited_timesteps(share, num_inference_steps, scheduler)
    if not timesteps:
        return latents.clone()

    z0 = latents.to(torch.promote_types(latents.dtype, torch.float32))
    embeds, layout = _expand(prompt_embeds, z0, unet.dtype), _expand(layout, z0, unet.dtype)
    if method == "ddim_inversion":
        z, step_noise, eta = _ddim_inversion(unet, controlnet, z0, embeds, layout, timesteps, scheduler), [], 0.0
    else:
        eps, *step_noise = _noise(len(timesteps) + 1, z0, noise, generator)
        t_enc = timesteps[0] if align else encoding_timestep(strength)
        if method == "stochastic_inversion":
            z = stochastic_inversion(
                unet,
                controlnet,
                z0,
                embeds,
                layout,
                strength=strength,
                noise=eps,
                scheduler=scheduler,
                timestep=t_enc,
            )
        else:
            z = eps if method == "controlnet_only" else _add_noise(z0, eps, t_enc, scheduler)

    if guided:
        embeds = torch.cat([_expand(negative_prompt_embeds, z0, unet.dtype), embeds])
        layout = torch.cat([layout, layout])
    for step, t in enumerate(timesteps):
        prediction = _predict(unet, controlnet, torch.cat([z, z]) if guided else z, t, embeds, layout)
        if guided:
            uncond, cond = prediction.chunk(2)
            prediction = uncond + guidance_scale * (cond - uncond)
        variance_noise = step_noise[step] if eta > 0 else None
        z = scheduler.step(prediction, t, z, eta=eta, variance_noise=variance_noise).prev_sample
        if callback is not None:
            callback(step, t, z)
    return z.to(latents.dtype)


# The methods that the paper compares with, with the signature of `transfer_latents`.
sdedit = functools.partial(transfer_latents, method="sdedit")
ddim_inversion = functools.partial(transfer_latents, method="ddim_inversion")
controlnet_only = functools.partial(transfer_latents, method="controlnet_only")


@torch.inference_mode()
def instruct_pix2pix(
    unet: UNet2DConditionModel,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    num_inference_steps: int = 20,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    eta: float = 1.0,
    noise: Sequence[Tensor] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    scheduler: DDIMScheduler | None = None,
) -> Tensor:
    """Latents of images edited by an instruction: InstructPix2Pix (Brooks et al., CVPR 2023, Equation 3).

    The UNet sees the image beside the noise. With e(c_I, c_T) its prediction given image and text,
    e = e(0, 0) + s_I (e(c_I, 0) - e(0, 0)) + s_T (e(c_I, c_T) - e(c_I, 0)).

    Args:
        unet: of an InstructPix2Pix checkpoint, with twice the latents' channels as input.
        image_latents: the VAE's latents without its scaling factor, (B, C, h, w).
        prompt_embeds: of the instruction, (B or 1, L, D).
        negative_prompt_embeds: of the empty prompt, (B or 1, L, D).
        num_inference_steps: steps of the whole grid, all taken: the start is pure noise.
        guidance_scale, image_guidance_scale: s_T and s_I.
        eta, noise, generator, scheduler: see `transfer_latents`.

    Returns:
        Final latents with the scaling factor, shape and type of `image_latents`.

    Raises:
        ValueError: if the UNet is not one that sees an image.
    """
    channels = image_latents.shape[1]
    if unet.config.in_channels != 2 * channels:
        raise ValueError(
            f"method 'instruct_pix2pix': the UNet takes {unet.config.in_channels} channels, expected {2 * channels}; "
            "use an InstructPix2Pix checkpoint, for example timbrooks/instruct-pix2pix"
        )
    scheduler = paper_scheduler(scheduler)
    timesteps = visited_timesteps(1.0, num_inference_steps, scheduler)
    image = image_latents.to(torch.promote_types(image_latents.dtype, torch.float32))
    text, empty = (_expand(e, image, unet.dtype) for e in (prompt_embeds, negative_prompt_embeds))
    embeds = torch.cat([text, empty, empty])
    images = torch.cat([image, image, torch.zeros_like(image)])
    z, *step_noise = _noise(len(timesteps) + 1, image, noise, generator)
    for step, t in enumerate(timesteps):
        x = torch.cat([torch.cat([z, z, z]), images], dim=1).to(unet.dtype)
        full, image_only, none = unet(x, t, encoder_hidden_states=embeds).sample.to(z.dtype).chunk(3)
        prediction = none + image_guidance_scale * (image_only - none) + guidance_scale * (full - image_only)
        variance_noise = step_noise[step] if eta > 0 else None
        z = scheduler.step(prediction, t, z, eta=eta, variance_noise=variance_noise).prev_sample
    return z.to(image_latents.dtype)


def _ddim_inversion(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    z0: Tensor,
    embeds: Tensor,
    layout: Tensor,
    timesteps: list[int],
    scheduler: DDIMScheduler,
) -> Tensor:
    """DDIM run backwards, conditional branch only: latents at the first of `timesteps` that lead back to `z0`."""
    inverse = DDIMInverseScheduler.from_config(scheduler.config)
    inverse.alphas_cumprod, inverse.initial_alpha_cumprod = scheduler.alphas_cumprod, scheduler.alphas_cumprod[0]
    inverse.set_timesteps(scheduler.num_inference_steps)
    z = z0
    for t in reversed(timesteps):
        z = inverse.step(_predict(unet, controlnet, z, t, embeds, layout), t, z).prev_sample
    return z


def _noise(
    count: int,
    like: Tensor,
    noise: Sequence[Tensor] | None,
    generator: torch.Generator | list[torch.Generator] | None,
) -> list[Tensor]:
    if noise is None:
        return [randn_tensor(like.shape, generator, like.device, like.dtype) for _ in range(count)]
    if len(noise) != count:
        raise ValueError(f"noise: found {len(noise)} tensors, expected {count} (the encoding noise and one a step)")
    for index, eps in enumerate(noise):
        if eps.shape != like.shape:
            raise ValueError(f"noise[{index}]: found shape {tuple(eps.shape)}, expected {tuple(like.shape)}")
    return [eps.to(like) for eps in noise]


# ---------------------------------------------------------------- transfer of images


@dataclass(frozen=True)
class TransferConfig:
    """Settings of a transfer; everything that decides the result besides the model and the inputs.

    Attributes:
        prompt: description of the target domain.
        strength: 0 .. 1, see `transfer_latents`.
        method: a key of `METHODS`.
        domain: name of the domain; only "photometric" reads it.
        prompt_suffix: appended to the prompt, as in the paper.
        negative_prompt: prompt of the unconditional branch.
        num_inference_steps, guidance_scale, eta, align: see `transfer_latents`.
        image_guidance_scale: see `instruct_pix2pix`.
        seed: of all noise.
        noise: "per_image" seeds each image by (seed, its key); "paper" restarts at `seed` for every image, so that
            all images of a size get the same noise, as in the authors' program (they use seed 42).
        palette: layout colours, "cityscapes" (as the paper, resized with interpolation) or "ade20k" (the colours that
            the public ControlNet was trained on, resized by nearest neighbour).
        short_side, multiple: working size in pixels, see `working_size`.
    """

    prompt: str
    strength: float
    method: str = "stochastic_inversion"
    domain: str = ""
    prompt_suffix: str = PROMPT_SUFFIX
    negative_prompt: str = NEGATIVE_PROMPT
    num_inference_steps: int = 20
    guidance_scale: float = 9.0
    image_guidance_scale: float = 1.5
    eta: float = 1.0
    seed: int = 0
    noise: str = "per_image"
    align: bool = False
    palette: str = "cityscapes"
    short_side: int = 512
    multiple: int = 64

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}: expected one of {list(METHODS)}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength}: expected 0 .. 1")
        if not 1 <= self.num_inference_steps < 1000:
            raise ValueError(f"num_inference_steps={self.num_inference_steps}: expected 1 .. 999")
        if min(self.guidance_scale, self.image_guidance_scale, self.eta) < 0:
            raise ValueError(
                f"guidance_scale={self.guidance_scale}, image_guidance_scale={self.image_guidance_scale}, "
                f"eta={self.eta}: expected at least 0"
            )
        if self.noise not in NOISE_CHOICES:
            raise ValueError(f"noise {self.noise!r}: expected one of {NOISE_CHOICES}")
        if self.palette not in PALETTES:
            raise ValueError(f"palette {self.palette!r}: expected one of {PALETTES}")
        if self.multiple < 1 or self.short_side < self.multiple:
            raise ValueError(
                f"short_side={self.short_side}, multiple={self.multiple}: expected 1 <= multiple <= short_side"
            )
        if self.method == "photometric":
            get_domain(self.domain)


def domain_config(
    domain: str,
    method: str = "stochastic_inversion",
    defaults: TransferDefaults | None = None,
    **changes: object,
) -> TransferConfig:
    """The settings for a domain of the paper: its prompt and strength, and the checkpoint's defaults, which come first.

    Args:
        domain: a key of `zodi.domains.DOMAINS`.
        method: a key of `METHODS`, or of `ABLATIONS`: stochastic inversion with one thing changed, for example
            "clear_prompt", the prompt of the source domain, which tells plain augmentation from domain transfer.
        defaults: `model.defaults`; None = the paper's for Stable Diffusion.
        changes: other fields of `TransferConfig`.
    """
    target = get_domain(domain)
    defaults = defaults or TransferDefaults()
    settings = defaults.settings() | {
        "prompt": target.prompt,
        "strength": defaults.strengths.get(domain, target.strength),
        "method": "stochastic_inversion" if method in ABLATIONS else method,
        "domain": domain,
    }
    settings |= ABLATIONS.get(method, {})
    return TransferConfig(**settings | changes)


def prompt_config(prompt: str, defaults: TransferDefaults | None = None, **changes: object) -> TransferConfig:
    """The settings for a target domain by its name or, if there is none of this name, for a free prompt.

    Args:
        prompt: a key of `zodi.domains.DOMAINS`, or the description of a domain; it is drawn at `FREE_PROMPT_STRENGTH`.
        defaults: `model.defaults`; None = the paper's for Stable Diffusion.
        changes: other fields of `TransferConfig`.
    """
    if prompt in DOMAINS:
        return domain_config(prompt, defaults=defaults, **changes)
    settings = (defaults or TransferDefaults()).settings() | {"prompt": prompt, "strength": FREE_PROMPT_STRENGTH}
    return TransferConfig(**settings | changes)


def transfer_images(
    model: DiffusionModel | None,
    images: list[np.ndarray],
    layouts: list[np.ndarray] | None,
    keys: list[str],
    config: TransferConfig,
) -> list[np.ndarray]:
    """Transfer images to the domain of `config`; images of one size go through the networks as one batch.

    Args:
        model: from `zodi.diffusion.load`; None only for "photometric".
        images: uint8 (H, W, 3) each, any sizes.
        layouts: uint8 (H, W, 3) each, label images in Cityscapes colours (`LabelSet.colorize`); None only for
            `WITHOUT_LAYOUT`.
        keys: one name an image (its relative path without suffix), from which its noise is seeded.
        config: the settings.

    Returns:
        uint8 (H, W, 3) each, the sizes of the inputs.

    Raises:
        ValueError: if a model or layouts are missing, or inputs do not fit together.
    """
    if config.method == "photometric":
        return [
            photometric(image, config.domain, generator)
            for image, generator in zip(images, _generators(keys, config), strict=True)
        ]
    if model is None:
        raise ValueError(f"method {config.method!r} needs a diffusion model")
    if layouts is None and config.method not in WITHOUT_LAYOUT:
        raise ValueError(f"method {config.method!r} needs a layout for every image")
    _check_multiple(model, config)

    groups = defaultdict(list)
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{keys[index]}: found {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        groups[working_size(*image.shape[:2], config.short_side, config.multiple)].append(index)

    results: list[np.ndarray | None] = [None] * len(images)
    for size, indices in groups.items():
        batch = torch.from_numpy(np.stack([_resize(images[i], size, Image.Resampling.LANCZOS) for i in indices]))
        z = encode(model, batch)
        if config.method == "instruct_pix2pix":
            empty, prompt = embed(model, ["", INSTRUCTION.format(prompt=config.prompt)])[:, None]
            z = instruct_pix2pix(
                model.unet,
                z / model.vae.config.scaling_factor,
                prompt,
                empty,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                image_guidance_scale=config.image_guidance_scale,
                eta=config.eta,
                generator=_generators([keys[i] for i in indices], config),
                scheduler=model.scheduler,
            )
        elif config.method not in WITHOUT_DIFFUSION:
            if model.controlnet is None:
                raise ValueError(f"method {config.method!r} needs a ControlNet; model {model.name!r} has none")
            layout = torch.stack([prepare_layout(layouts[i], size, config.palette) for i in indices])
            negative, prompt = embed(model, [config.negative_prompt, config.prompt + config.prompt_suffix])[:, None]
            z = transfer_latents(
                model.unet,
                model.controlnet,
                z,
                prompt,
                negative,
                layout.contiguous(memory_format=torch.channels_last),
                strength=config.strength,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                eta=config.eta,
                generator=_generators([keys[i] for i in indices], config),
                scheduler=model.scheduler,
                align=config.align,
                method=config.method,
            )
        for i, result in zip(indices, decode(model, z).numpy(), strict=True):
            results[i] = _resize(result, images[i].shape[:2], Image.Resampling.LANCZOS)
    return results


def working_size(height: int, width: int, short_side: int, multiple: int) -> tuple[int, int]:
    """(height, width) at which an image is processed: short side scaled to `short_side`, both rounded to `multiple`."""
    scale = short_side / min(height, width)
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))


def _check_multiple(model: DiffusionModel, config: TransferConfig) -> None:
    """The working size must survive every downsampling of VAE and UNet."""
    downsamplings = len(model.vae.config.block_out_channels) + len(model.unet.config.block_out_channels) - 2
    if config.multiple % 2**downsamplings:
        raise ValueError(f"multiple={config.multiple}: model {model.name!r} needs a multiple of {2**downsamplings}")


def _generators(keys: list[str], config: TransferConfig) -> list[torch.Generator]:
    if config.noise == "paper":
        return [torch.Generator().manual_seed(config.seed) for _ in keys]
    return [generator_for(key, config.seed) for key in keys]


def _resize(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), resampling))


# ---------------------------------------------------------------- layouts

# The colours that ADE20K's 150 classes have in MMSegmentation, which drew the training layouts of the public
# ControlNet. Cityscapes' rider, terrain and train have no class of their own there.
_ADE20K_COLORS = {
    "road": (140, 140, 140),  # road
    "sidewalk": (235, 255, 7),  # sidewalk
    "building": (180, 120, 120),  # building
    "wall": (120, 120, 120),  # wall
    "fence": (255, 184, 6),  # fence
    "pole": (51, 0, 255),  # pole
    "traffic light": (41, 0, 255),  # traffic light
    "traffic sign": (255, 5, 153),  # signboard
    "vegetation": (4, 200, 3),  # tree
    "terrain": (4, 250, 7),  # grass
    "sky": (6, 230, 230),  # sky
    "person": (150, 5, 61),  # person
    "rider": (150, 5, 61),  # person
    "car": (0, 102, 200),  # car
    "truck": (255, 0, 20),  # truck
    "bus": (255, 0, 245),  # bus
    "train": (255, 0, 245),  # bus
    "motorcycle": (163, 0, 255),  # minibike
    "bicycle": (255, 245, 0),  # bicycle
}
PALETTES = ("cityscapes", "ade20k")


def prepare_layout(layout: np.ndarray, size: tuple[int, int], palette: str) -> Tensor:
    """The ControlNet's input from a layout image.

    Args:
        layout: uint8 (H, W, 3), classes in Cityscapes colours, void black.
        size: (height, width) wanted.
        palette: "cityscapes" keeps the colours and interpolates, as the paper does; "ade20k" exchanges them for
            those of the nearest ADE20K class and resizes by nearest neighbour. Other colours (void) become black.

    Returns:
        float32 (3, height, width), 0 .. 1.
    """
    if palette == "ade20k":
        recolored = np.zeros_like(layout)
        for name, color in zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True):
            recolored[(layout == color).all(axis=-1)] = _ADE20K_COLORS[name]
        resized = _resize(recolored, size, Image.Resampling.NEAREST)
    else:
        resized = _resize(layout, size, Image.Resampling.BILINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1).float().div(255)
