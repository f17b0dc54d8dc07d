"""How latents are drawn: the schedule, one loop, and one short function per method, which has the method's name.

Notation as in the equations: z are latents, eps is noise, ac = alphas_cumprod, t a training timestep 0 .. 999.
A transfer with strength s goes to timestep t_enc = int(s * 1000) and comes back over the last n = int(s * steps)
steps of the DDIM grid 1, 51, ..., 951. The numbers follow the authors' published program (azuma164/ZoDi); there
s = 0.65 encodes at t = 650 but denoises as if from t = 601. That is kept; `align` encodes at 601.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from zodi.support.runs import image_format

# (latents z, timestep t) -> what the networks predict, float (B, C, h, w) like z.
Predict = Callable[[Tensor, int], Tensor]

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


def add_noise(z0: Tensor, eps: Tensor, t: int, scheduler: DDIMScheduler) -> Tensor:
    """z_t = sqrt(ac_t) z_0 + sqrt(1 - ac_t) eps."""
    ac = scheduler.alphas_cumprod[t].item()
    return math.sqrt(ac) * z0 + math.sqrt(1 - ac) * eps


def predicted_noise(prediction: Tensor, z_t: Tensor, t: int, scheduler: DDIMScheduler) -> Tensor:
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


# ---------------------------------------------------------------- networks


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
    guided = guidance_scale != 1
    if guided:
        embeds, layout = torch.cat([negative_embeds, embeds]), torch.cat([layout, layout])

    def predict(z: Tensor, t: int) -> Tensor:
        prediction = _evaluate(unet, controlnet, torch.cat([z, z]) if guided else z, t, embeds, layout)
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
    unet: UNet2DConditionModel, controlnet: ControlNetModel, z_t: Tensor, t: int, embeds: Tensor, layout: Tensor
) -> Tensor:
    x = z_t.to(unet.dtype).contiguous(memory_format=image_format(z_t.device))
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


# ---------------------------------------------------------------- one loop, and the methods


@dataclass(frozen=True)
class Sampler:
    """All that a method draws with.

    Attributes:
        predict: the networks with guidance.
        predict_cond: the conditional branch alone, which inverts.
        scheduler: from `paper_scheduler`.
        timesteps: from `visited_timesteps`, highest first.
        t_enc: the timestep that an image is noised to.
        noise: the encoding noise eps, then one tensor a step; not used by deterministic methods.
        eta: 0 = deterministic DDIM, 1 = as much noise as DDPM.
        callback: called after every step with (step index, timestep, latents).
    """

    predict: Predict
    predict_cond: Predict
    scheduler: DDIMScheduler
    timesteps: list[int]
    t_enc: int
    noise: Sequence[Tensor]
    eta: float = 1.0
    callback: Callable[[int, int, Tensor], None] | None = None


def denoise(
    predict: Predict,
    z: Tensor,
    timesteps: Sequence[int],
    noise: Sequence[Tensor],
    scheduler: DDIMScheduler,
    eta: float,
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Latents after a DDIM step at each of `timesteps`; `noise` has one tensor a step where eta > 0."""
    for step, t in enumerate(timesteps):
        variance_noise = noise[step] if eta > 0 else None
        z = scheduler.step(predict(z, t), t, z, eta=eta, variance_noise=variance_noise).prev_sample
        if callback is not None:
            callback(step, t, z)
    return z


def invert(predict_cond: Predict, z0: Tensor, eps: Tensor, t: int, scheduler: DDIMScheduler) -> Tensor:
    """Noised latents whose noise is the one that the model itself sees in them (the paper's Section 3.1).

    z_t = sqrt(ac) z_0 + sqrt(1 - ac) eps; eps_hat = model(z_t, prompt, layout), without guidance;
    the result is sqrt(ac) z_0 + sqrt(1 - ac) eps_hat.
    """
    z_t = add_noise(z0, eps, t, scheduler)
    eps_hat = predicted_noise(predict_cond(z_t, t), z_t, t, scheduler)
    return add_noise(z0, eps_hat, t, scheduler)


def stochastic_inversion(s: Sampler, z0: Tensor) -> Tensor:
    """ZoDi: noise the latent, rebuild it from the noise predicted, denoise with prompt, layout."""
    eps, *step_noise = s.noise
    z = invert(s.predict_cond, z0, eps, s.t_enc, s.scheduler)
    return denoise(s.predict, z, s.timesteps, step_noise, s.scheduler, s.eta, s.callback)


def sdedit(s: Sampler, z0: Tensor) -> Tensor:
    """SDEdit (Meng et al., ICLR 2022): noise the latent, denoise with prompt and layout."""
    eps, *step_noise = s.noise
    z = add_noise(z0, eps, s.t_enc, s.scheduler)
    return denoise(s.predict, z, s.timesteps, step_noise, s.scheduler, s.eta, s.callback)


def ddim_inversion(s: Sampler, z0: Tensor) -> Tensor:
    """DDIM inversion (Song et al., ICLR 2021): run DDIM backwards without guidance, then forwards, without noise."""
    inverse = DDIMInverseScheduler.from_config(s.scheduler.config)
    inverse.alphas_cumprod, inverse.initial_alpha_cumprod = s.scheduler.alphas_cumprod, s.scheduler.alphas_cumprod[0]
    inverse.set_timesteps(s.scheduler.num_inference_steps)
    z = z0
    for t in reversed(s.timesteps):
        z = inverse.step(s.predict_cond(z, t), t, z).prev_sample
    return denoise(s.predict, z, s.timesteps, (), s.scheduler, 0.0, s.callback)


def controlnet_only(s: Sampler, z0: Tensor) -> Tensor:
    """Denoise pure noise with prompt and layout; the image itself is not used."""
    z, *step_noise = s.noise
    return denoise(s.predict, z, s.timesteps, step_noise, s.scheduler, s.eta, s.callback)


# Methods with diffusion and a layout, by name.
SAMPLERS = {method.__name__: method for method in (stochastic_inversion, sdedit, ddim_inversion, controlnet_only)}
DETERMINISTIC, FROM_PURE_NOISE = ("ddim_inversion",), ("controlnet_only",)
