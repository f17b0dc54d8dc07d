"""Image transfer (the paper's Section 3.1): settings, latents to latents, images to images.

How each method draws is in `zodi.sampling`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from zodi.diffusion import DiffusionModel, Generator, TransferDefaults, decode, encode
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, get_domain
from zodi.generators.interface import Predict, expand
from zodi.generators.schedules import Schedule, Time
from zodi.labels import CITYSCAPES
from zodi.rows import ABLATIONS
from zodi.sampling import (
    DETERMINISTIC,
    FROM_PURE_NOISE,
    SAMPLERS,
    Sampler,
    denoise,
    encoding_timestep,
    instruction_predictor,
    invert,
    paper_scheduler,
    predictor,
    visited_timesteps,
)
from zodi.support.runs import generator_for, image_format

METHODS = {
    **{name: method.__doc__.partition("\n")[0] for name, method in SAMPLERS.items()},
    "instruct_pix2pix": "edit by an instruction, without layout; needs such a checkpoint (Brooks et al., CVPR 2023)",
    "vae_round_trip": "encode and decode, no diffusion: what the VAE alone changes",
    "photometric": "hand-made colour and weather operations, no diffusion model",
}
WITHOUT_DIFFUSION = ("vae_round_trip", "photometric")
WITHOUT_MODEL = ("photometric",)
WITHOUT_LAYOUT = (*WITHOUT_DIFFUSION, "instruct_pix2pix")
FREE_PROMPT_STRENGTH = 0.65
NOISE_CHOICES = ("per_image", "paper")

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
    """`zodi.sampling.invert` at the encoding time of a strength: the first half of the paper's method.

    Args:
        unet, controlnet, latents, prompt_embeds, layout, scheduler: see `transfer_latents`.
        strength: 0 .. 1; the encoding time is int(strength * 1000).
        noise: eps, shaped like `latents`.
        timestep: encoding time instead of the one that `strength` gives.

    Returns:
        Latents at the encoding time, shape and type of `latents`.
    """
    t = encoding_timestep(strength) if timestep is None else timestep
    z0 = latents.to(torch.promote_types(latents.dtype, torch.float32))
    embeds, layout = expand(prompt_embeds, z0, unet.dtype), expand(layout, z0, unet.dtype)
    predict_cond = predictor(unet, controlnet, embeds, layout)
    return invert(predict_cond, z0, noise.to(z0), t, paper_scheduler(scheduler)).to(latents.dtype)


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
        strength: 0 .. 1, share of the schedule to go back; if no step remains, the latents are returned as they are.
            "controlnet_only" has nothing to go back from and always takes all steps.
        num_inference_steps: steps of the whole grid, of which the last int(strength * steps) are taken.
        guidance_scale: weight w of uncond + w (cond - uncond); exactly 1 skips the unconditional branch.
        eta: 0 = deterministic DDIM, 1 = as much noise as DDPM. "ddim_inversion" is deterministic, whatever eta.
        noise: n + 1 tensors like `latents`: the encoding noise, then one per step.
        generator: draws the noise when `noise` is None; a list with one per image makes results independent of the
            batch. None = torch's global generator.
        scheduler: its betas and prediction type are used, with the paper's timestep grid; None = Stable Diffusion 1.5.
        align: encode at the first visited timestep instead of int(strength * 1000).
        callback: called after every step with (step index, timestep, latents).
        method: a key of `zodi.sampling.SAMPLERS`.

    Returns:
        Final latents, shape and type of `latents`.

    Raises:
        ValueError: for arguments out of range or noise of the wrong length or shape.
    """
    if guidance_scale != 1 and negative_prompt_embeds is None:
        raise ValueError(f"guidance_scale={guidance_scale} needs negative_prompt_embeds")
    embeds, layout = expand(prompt_embeds, latents, unet.dtype), expand(layout, latents, unet.dtype)
    negative = None if guidance_scale == 1 else expand(negative_prompt_embeds, latents, unet.dtype)
    return draw_latents(
        predictor(unet, controlnet, embeds, layout, negative, guidance_scale),
        predictor(unet, controlnet, embeds, layout),
        latents,
        paper_scheduler(scheduler),
        strength=strength,
        num_inference_steps=num_inference_steps,
        eta=eta,
        noise=noise,
        generator=generator,
        align=align,
        callback=callback,
        method=method,
    )


@torch.inference_mode()
def draw_latents(
    predict: Predict,
    predict_cond: Predict,
    latents: Tensor,
    schedule: Schedule,
    *,
    strength: float,
    num_inference_steps: int = 20,
    eta: float = 1.0,
    noise: Sequence[Tensor] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    align: bool = False,
    callback: Callable[[int, Time, Tensor], None] | None = None,
    method: str = "stochastic_inversion",
) -> Tensor:
    """`transfer_latents` for the networks and the schedule of any generator.

    Args:
        predict: the networks with guidance.
        predict_cond: the conditional branch alone, used for inversion.
        latents: z_0, scaled latents of the source images, (B, C, h, w).
        schedule: the generator's; its grid is set here.
        strength, num_inference_steps, eta, noise, generator, align, callback, method: see `transfer_latents`.

    Returns:
        Final latents, shape and type of `latents`.

    Raises:
        ValueError: for arguments out of range or noise of the wrong length or shape.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: expected 0 .. 1")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}: expected at least 1")
    if method not in SAMPLERS:
        raise ValueError(f"method {method!r}: expected one of {list(SAMPLERS)}")
    share = 1.0 if method in FROM_PURE_NOISE else strength
    timesteps = visited_timesteps(share, num_inference_steps, schedule)
    if not timesteps:
        return latents.clone()

    z0 = latents.to(torch.promote_types(latents.dtype, torch.float32))
    sampler = Sampler(
        predict=predict,
        predict_cond=predict_cond,
        scheduler=schedule,
        timesteps=timesteps,
        t_enc=timesteps[0] if align else schedule.encoding_time(strength, timesteps),
        noise=() if method in DETERMINISTIC else _noise(len(timesteps) + 1, z0, noise, generator),
        eta=eta,
        callback=callback,
    )
    return SAMPLERS[method](sampler, z0).to(latents.dtype)


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
        ValueError: if the UNet does not read an image.
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
    text, empty = (expand(e, image, unet.dtype) for e in (prompt_embeds, negative_prompt_embeds))
    predict = instruction_predictor(unet, image, text, empty, guidance_scale, image_guidance_scale)
    z, *step_noise = _noise(len(timesteps) + 1, image, noise, generator)
    return denoise(predict, z, timesteps, step_noise, scheduler, eta).to(image_latents.dtype)


def _noise(
    count: int,
    like: Tensor,
    noise: Sequence[Tensor] | None,
    generator: torch.Generator | list[torch.Generator] | None,
) -> list[Tensor]:
    if noise is None:
        return [randn_tensor(like.shape, generator, like.device, like.dtype) for _ in range(count)]
    if len(noise) != count:
        raise ValueError(f"noise: found {len(noise)} tensors, expected {count} (the encoding noise and one per step)")
    for index, eps in enumerate(noise):
        if eps.shape != like.shape:
            raise ValueError(f"noise[{index}]: found shape {tuple(eps.shape)}, expected {tuple(like.shape)}")
    return [eps.to(like) for eps in noise]


# ---------------------------------------------------------------- transfer of images


@dataclass(frozen=True)
class TransferConfig:
    """Settings of a transfer: everything that determines the result besides the model and the inputs.

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
        noise: "per_image" seeds each image by (seed, its key); "paper" restarts at `seed` for every image, so that all
            images of the same size get the same noise, as in the authors' program (they use seed 42).
        palette: layout colours, "cityscapes" (as in the paper, resized with interpolation) or "ade20k" (the colours
            that the public ControlNet was trained on, resized by nearest neighbour).
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
    """The settings for a domain of the paper: its prompt and strength, overridden by the checkpoint's defaults.

    Args:
        domain: a key of `zodi.domains.DOMAINS`.
        method: a key of `METHODS`, or of `zodi.rows.ABLATIONS`: ZoDi with one thing changed, for example
            "clear_prompt", the prompt of the source domain, which separates plain augmentation from domain transfer.
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


def prompt_config(target: str, defaults: TransferDefaults | None = None, **changes: object) -> TransferConfig:
    """The settings for a target domain by its name or, if there is none with this name, for a free prompt.

    Args:
        target: a key of `zodi.domains.DOMAINS`, or the description of a domain; see `free_strength`.
        defaults: `model.defaults`; None = the paper's for Stable Diffusion.
        changes: other fields of `TransferConfig`; for a domain `method` may be a key of `zodi.rows.ABLATIONS`.
    """
    if target in DOMAINS:
        return domain_config(target, defaults=defaults, **changes)
    defaults = defaults or TransferDefaults()
    settings = defaults.settings() | {"prompt": target, "strength": free_strength(defaults)}
    return TransferConfig(**settings | changes)


def free_strength(defaults: TransferDefaults) -> float:
    """The strength for a prompt of one's own: the median of those that a checkpoint was made for, else 0.65."""
    return float(np.median([*defaults.strengths.values()] or [FREE_PROMPT_STRENGTH]))


def check_steps(config: TransferConfig) -> None:
    """Raises ValueError if a transfer would take no step at all: the result would be the VAE's round trip."""
    if _goes_back(config) and int(config.strength * config.num_inference_steps) == 0:
        raise ValueError(
            f"strength={config.strength} of num_inference_steps={config.num_inference_steps} takes no step, so nothing "
            f"would be transferred; expected at least {math.ceil(1000 / config.num_inference_steps) / 1000}, or "
            "--method vae_round_trip"
        )


def strength_warning(config: TransferConfig, defaults: TransferDefaults) -> str:
    """A sentence if the strength is more than a step below all those that the checkpoint was made for, else ""."""
    least = min(defaults.strengths.values(), default=0)
    if not _goes_back(config) or config.strength >= least - 1 / config.num_inference_steps:
        return ""
    return f"strength {config.strength:g} is below all those that the model was made for ({least:g} and more)"


def _goes_back(config: TransferConfig) -> bool:
    return config.method in SAMPLERS and config.method not in FROM_PURE_NOISE


def transfer_images(
    model: Generator | None,
    images: list[np.ndarray],
    layouts: list[np.ndarray] | None,
    keys: list[str],
    config: TransferConfig,
    second_maps: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Transfer images to the domain of `config`; images of the same size go through the networks as one batch.

    Args:
        model: from `zodi.diffusion.load`; None only for "photometric".
        images: uint8 (H, W, 3) each, any sizes.
        layouts: uint8 (H, W, 3) each, label images in Cityscapes colours (`LabelSet.colorize`); None only for
            `WITHOUT_LAYOUT`.
        keys: one name per image (its relative path without suffix), from which its noise is seeded.
        config: the settings.
        second_maps: uint8 (H, W, 3) each, for a model with a second ControlNet: depth, edges or whatever it was made
            for.

    Returns:
        uint8 (H, W, 3) each, the sizes of the inputs.

    Raises:
        ValueError: if a model or layouts are missing, or inputs do not fit together.
    """
    if config.method == "photometric":
        # Loads the library of photometric operations, which no other method needs.
        from zodi.photometric import photometric

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
            if not isinstance(model, DiffusionModel):
                raise ValueError(
                    f"method 'instruct_pix2pix': model {model.name!r} is of the family {model.family}; expected an "
                    "InstructPix2Pix checkpoint, for example timbrooks/instruct-pix2pix"
                )
            empty, prompt = model.embed(["", f"turn it into {config.prompt}"]).tokens[:, None]
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
            maps = [torch.stack([prepare_layout(layouts[i], size, config.palette) for i in indices])]
            if second_maps is not None:
                maps.append(torch.stack([prepare_layout(second_maps[i], size, "cityscapes") for i in indices]))
            maps = [controls.contiguous(memory_format=image_format(z.device)) for controls in maps]
            prompts = model.embed([config.negative_prompt, config.prompt + config.prompt_suffix])
            negative, prompt = prompts.row(0), prompts.row(1)
            z = draw_latents(
                model.predictor(z, prompt, maps, negative, config.guidance_scale),
                model.predictor(z, prompt, maps),
                z,
                model.schedule(z),
                strength=config.strength,
                num_inference_steps=config.num_inference_steps,
                eta=config.eta,
                generator=_generators([keys[i] for i in indices], config),
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


def _check_multiple(model: Generator, config: TransferConfig) -> None:
    """The working size must survive every downsampling of VAE and denoiser."""
    if config.multiple % model.multiple:
        raise ValueError(f"multiple={config.multiple}: model {model.name!r} needs a multiple of {model.multiple}")


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
        palette: "cityscapes" keeps the colours and interpolates, as the paper does; "ade20k" replaces them with those
            of the nearest ADE20K class and resizes by nearest neighbour. Other colours (void) become black.

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
