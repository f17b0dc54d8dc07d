"""How latents are drawn: the schedule, one loop, and one short function per method, which has the method's name.

Notation as in the equations: z are latents, eps is noise, z_t = alpha_t z_0 + sigma_t eps. The functions are the same
for every generator; alpha and sigma, the meaning of a prediction and the step belong to its schedule
(`zodi.generators`). For the paper's diffusion models alpha_t^2 = ac_t (alphas_cumprod), sigma_t^2 = 1 - ac_t and t is a
training timestep 0 .. 999: a transfer with strength s goes to timestep t_enc = int(s * 1000) and comes back over the
last n = int(s * steps) steps of the DDIM grid 1, 51, ..., 951. The numbers follow the authors' published program
(azuma164/ZoDi); there s = 0.65 encodes at t = 650 but denoises as if from t = 601. That is kept; `align` encodes at
601.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from zodi.generators.interface import Predict
from zodi.generators.schedules import Schedule, Time, encoding_timestep, paper_scheduler
from zodi.generators.stable_diffusion import instruction_predictor, predictor

__all__ = [
    "DETERMINISTIC",
    "FROM_PURE_NOISE",
    "SAMPLERS",
    "Predict",
    "Sampler",
    "add_noise",
    "denoise",
    "encoding_timestep",
    "instruction_predictor",
    "invert",
    "paper_scheduler",
    "predicted_noise",
    "predictor",
    "visited_timesteps",
]

# ---------------------------------------------------------------- schedule


def visited_timesteps(strength: float, num_inference_steps: int, scheduler: Schedule) -> list[Time]:
    """The last n = int(strength * steps) times of the scheduler's grid, highest first.

    Raises:
        ValueError: if the grid leaves the schedule, or starts where an epsilon prediction does not determine the image.
    """
    n = int(strength * num_inference_steps)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps[num_inference_steps - n :].tolist()
    scheduler.check(timesteps)
    return timesteps


def add_noise(z0: Tensor, eps: Tensor, t: Time, scheduler: Schedule) -> Tensor:
    """z_t = alpha_t z_0 + sigma_t eps."""
    return scheduler.alpha(t) * z0 + scheduler.sigma(t) * eps


def predicted_noise(prediction: Tensor, z_t: Tensor, t: Time, scheduler: Schedule) -> Tensor:
    """eps_hat from what the networks predict."""
    eps_hat, _ = scheduler.split(prediction, z_t, t)
    return eps_hat


# ---------------------------------------------------------------- one loop, and the methods


@dataclass(frozen=True)
class Sampler:
    """All that a method draws with.

    Attributes:
        predict: the networks with guidance.
        predict_cond: the conditional branch alone, used for inversion.
        scheduler: the generator's; for Stable Diffusion from `paper_scheduler`.
        timesteps: from `visited_timesteps`, highest first.
        t_enc: the timestep that an image is noised to.
        noise: the encoding noise eps, then one tensor per step; not used by deterministic methods.
        eta: 0 = deterministic DDIM, 1 = as much noise as DDPM.
        callback: called after every step with (step index, timestep, latents).
    """

    predict: Predict
    predict_cond: Predict
    scheduler: Schedule
    timesteps: list[Time]
    t_enc: Time
    noise: Sequence[Tensor]
    eta: float = 1.0
    callback: Callable[[int, Time, Tensor], None] | None = None


def denoise(
    predict: Predict,
    z: Tensor,
    timesteps: Sequence[Time],
    noise: Sequence[Tensor],
    scheduler: Schedule,
    eta: float,
    callback: Callable[[int, Time, Tensor], None] | None = None,
) -> Tensor:
    """Latents after a step of the schedule at each of `timesteps`; `noise` has one tensor per step where eta > 0."""
    for step, t in enumerate(timesteps):
        z = scheduler.denoising_step(predict(z, t), z, t, eta, noise[step] if eta > 0 else None)
        if callback is not None:
            callback(step, t, z)
    return z


def invert(predict_cond: Predict, z0: Tensor, eps: Tensor, t: Time, scheduler: Schedule) -> Tensor:
    """Noised latents whose noise is what the model itself sees in them (the paper's Section 3.1).

    z_t = alpha_t z_0 + sigma_t eps; eps_hat from model(z_t, prompt, layout), without guidance;
    the result is alpha_t z_0 + sigma_t eps_hat.
    """
    z_t = add_noise(z0, eps, t, scheduler)
    eps_hat = predicted_noise(predict_cond(z_t, t), z_t, t, scheduler)
    return add_noise(z0, eps_hat, t, scheduler)


def stochastic_inversion(s: Sampler, z0: Tensor) -> Tensor:
    """ZoDi: noise the latent, rebuild it from the predicted noise, denoise with prompt and layout."""
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
    z = z0
    for t in reversed(s.timesteps):
        z = s.scheduler.inversion_step(s.predict_cond(z, t), z, t)
    return denoise(s.predict, z, s.timesteps, (), s.scheduler, 0.0, s.callback)


def controlnet_only(s: Sampler, z0: Tensor) -> Tensor:
    """Denoise pure noise with prompt and layout; the image itself is not used."""
    z, *step_noise = s.noise
    return denoise(s.predict, z, s.timesteps, step_noise, s.scheduler, s.eta, s.callback)


# Methods with diffusion and a layout, by name.
SAMPLERS = {method.__name__: method for method in (stochastic_inversion, sdedit, ddim_inversion, controlnet_only)}
DETERMINISTIC, FROM_PURE_NOISE = ("ddim_inversion",), ("controlnet_only",)
