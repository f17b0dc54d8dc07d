"""Noise schedules: z_t = alpha_t z_0 + sigma_t eps, what a prediction says about z_0 and eps, and a step from t to s.

One step serves every schedule. With s < t, and fresh noise eps',

    z_s = alpha_s z_0_hat + sqrt(sigma_s^2 - spread^2) eps_hat + spread eps',
    spread = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

Why: with the true z_0 and eps in place of the hats, sqrt(sigma_s^2 - spread^2) eps + spread eps' is Gaussian with
variance sigma_s^2 for every spread <= sigma_s, so z_s has the distribution that the schedule prescribes: the marginals
stay, whatever eta (Song et al., ICLR 2021, Equation 7 and Appendix B, where alpha_t^2 + sigma_t^2 = 1; nothing in the
argument requires that). eta = 0 adds no noise: a deterministic map. eta = 1 is the spread of the posterior
q(z_s | z_t, z_0), ancestral sampling: z_t = (alpha_t / alpha_s) z_s + noise of variance
sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, and Bayes' rule for Gaussians gives the variance sigma_s^2 times that over
sigma_t^2 (Kingma et al., NeurIPS 2021, Appendix A.2), which is spread^2. For alpha_t^2 = ac_t it is DDIM's sigma.

On the straight path of flow matching (Lipman et al.; Liu et al.; both ICLR 2023), alpha_t = 1 - t and sigma_t = t:

    z_s = (1 - s) z_0_hat + sqrt(s^2 - spread^2) eps_hat + spread eps',
    spread = eta s sqrt(1 - ((1 - t) s / ((1 - s) t))^2).

At eta = 0 that is z_s = z_t + (s - t) v, the Euler step of the flow. From t = 1 with eta = 1 the spread is s: pure
noise says nothing about z_s's noise, so all of it is drawn afresh.
"""

import inspect
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

# A training timestep 0 .. 999, or for flow matching a time 0 .. 1.
Time = int | float

# What the paper's sampler does on top of a checkpoint's betas and prediction type.
_GRID = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "thresholding": False,
}
_SMALLEST_ALPHA = 1e-12
# The time after the last step of a few-step schedule: the image itself.
_CLEAN = -1


class Schedule(ABC):
    """What the method asks of a schedule; `set_timesteps(n)` and `timesteps`, highest first, are as in diffusers."""

    timesteps: Tensor
    num_inference_steps: int | None

    @abstractmethod
    def alpha(self, t: Time) -> float:
        """How much of z_0 is in z_t."""

    @abstractmethod
    def sigma(self, t: Time) -> float:
        """How much noise is in z_t."""

    @abstractmethod
    def split(self, prediction: Tensor, z_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """eps_hat and z_0_hat from what the network predicts at z_t."""

    @abstractmethod
    def after(self, t: Time) -> Time:
        """The time that the step from t leads to."""

    def check(self, timesteps: list[Time]) -> None:  # noqa: B027 - most schedules have nothing to refuse
        """Raises ValueError if a sampler cannot start at the first of these times."""

    def encoding_time(self, strength: float, timesteps: list[Time]) -> Time:
        """The time that an image is noised to: where the denoising starts."""
        return timesteps[0]

    def denoising_step(self, prediction: Tensor, z_t: Tensor, t: Time, eta: float, noise: Tensor | None) -> Tensor:
        """z_s of the step from t to s = `after(t)`; see the formulas above. `noise` may be None where eta is 0."""
        s = self.after(t)
        eps_hat, z_0_hat = self.split(prediction, z_t, t)
        spread = eta * self.posterior_spread(s, t)
        z_s = self.alpha(s) * z_0_hat + math.sqrt(max(self.sigma(s) ** 2 - spread**2, 0.0)) * eps_hat
        return z_s if spread == 0 else z_s + spread * noise

    def inversion_step(self, prediction: Tensor, z_s: Tensor, t: Time) -> Tensor:
        """z_t of the step back from s = `after(t)`, without noise; the prediction is made at z_s, for time t."""
        eps_hat, z_0_hat = self.split(prediction, z_s, self.after(t))
        return self.alpha(t) * z_0_hat + self.sigma(t) * eps_hat

    def posterior_spread(self, s: Time, t: Time) -> float:
        """Standard deviation of q(z_s | z_t, z_0), the noise of a step with eta = 1."""
        ratio = self.alpha(t) * self.sigma(s) / (self.alpha(s) * self.sigma(t))
        return self.sigma(s) * math.sqrt(max(1 - ratio**2, 0.0))


# ---------------------------------------------------------------- diffusion


class PaperSchedule(DDIMScheduler, Schedule):
    """The paper's: DDIM, whose steps diffusers makes; from `paper_scheduler`. ac = alphas_cumprod."""

    def alpha(self, t: int) -> float:
        """sqrt(ac_t)."""
        return math.sqrt(self.alphas_cumprod[t].item())

    def sigma(self, t: int) -> float:
        """sqrt(1 - ac_t)."""
        return math.sqrt(1 - self.alphas_cumprod[t].item())

    def split(self, prediction: Tensor, z_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """For every prediction type of diffusers; see `Schedule.split`."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        match self.config.prediction_type:
            case "epsilon":
                return prediction, (z_t - sigma * prediction) / alpha
            case "v_prediction":
                return alpha * prediction + sigma * z_t, alpha * z_t - sigma * prediction
            case "sample":
                return (z_t - alpha * prediction) / sigma, prediction
            case other:
                raise ValueError(f"prediction_type: found {other!r}, expected 'epsilon', 'v_prediction' or 'sample'")

    def after(self, t: int) -> int:
        """One step of the grid down; below 0 diffusers takes ac_0."""
        return max(t - self.config.num_train_timesteps // self.num_inference_steps, 0)

    def check(self, timesteps: list[int]) -> None:
        """Raises ValueError if the grid leaves the schedule, or starts where epsilon does not determine the image."""
        last = self.config.num_train_timesteps - 1
        if timesteps and timesteps[0] > last:
            raise ValueError(
                f"num_inference_steps={self.num_inference_steps}: the grid starts at t = {timesteps[0]}, expected at "
                f"most {last}; use fewer steps"
            )
        is_epsilon = self.config.prediction_type == "epsilon"
        if timesteps and is_epsilon and self.alphas_cumprod[timesteps[0]] <= _SMALLEST_ALPHA:
            raise ValueError(
                f"t = {timesteps[0]} is pure noise (zero terminal SNR), from which an epsilon prediction cannot give "
                "an image; use a v_prediction checkpoint, a lower strength or fewer steps"
            )

    def encoding_time(self, strength: float, timesteps: list[int]) -> int:
        """As in the authors' program, whatever the grid: see `encoding_timestep`."""
        return encoding_timestep(strength, self.config.num_train_timesteps)

    def denoising_step(self, prediction: Tensor, z_t: Tensor, t: int, eta: float, noise: Tensor | None) -> Tensor:
        """The step of diffusers, which is that of `Schedule` but for rounding."""
        return self.step(prediction, t, z_t, eta=eta, variance_noise=noise).prev_sample

    def inversion_step(self, prediction: Tensor, z_s: Tensor, t: int) -> Tensor:
        """The inverse step of diffusers."""
        known = inspect.signature(DDIMInverseScheduler).parameters
        inverse = DDIMInverseScheduler(**{name: value for name, value in self.config.items() if name in known})
        inverse.alphas_cumprod, inverse.initial_alpha_cumprod = self.alphas_cumprod, self.alphas_cumprod[0]
        inverse.set_timesteps(self.num_inference_steps)
        return inverse.step(prediction, t, z_s).prev_sample


class FewStepSchedule(PaperSchedule):
    """For networks distilled to a few steps (LCM, Hyper-SD): the grid is anchored at its noisy end.

    Such networks were trained at t = 999 and equal steps below it ("trailing"), and a step may be longer than DDIM's
    grid allows, so the step is that of `Schedule`, from each visited time to the next and from the last one to the
    image. With eta = 0 it is DDIM, which Hyper-SD (Ren et al., 2024) is made for; with eta = 1 nearly all noise is
    drawn afresh in a long step, as in multistep consistency sampling (Luo et al., LCM, 2023, Algorithm 3).
    """

    def alpha(self, t: int) -> float:
        """sqrt(ac_t); 1 after the last step."""
        return 1.0 if t == _CLEAN else super().alpha(t)

    def sigma(self, t: int) -> float:
        """sqrt(1 - ac_t); 0 after the last step."""
        return 0.0 if t == _CLEAN else super().sigma(t)

    def after(self, t: int) -> int:
        """The next time of the grid."""
        return _next(self.timesteps, t, _CLEAN)

    encoding_time = Schedule.encoding_time
    denoising_step = Schedule.denoising_step
    inversion_step = Schedule.inversion_step


def paper_scheduler(scheduler: DDIMScheduler | None = None) -> PaperSchedule:
    """A DDIM scheduler with the paper's timestep grid.

    Args:
        scheduler: its betas and prediction type are used; it is not changed. None = Stable Diffusion 1.5's, with
            alphas_cumprod multiplied in float64 and rounded once to float32 as in the authors' program (diffusers
            multiplies in float32, which differs by up to 1e-6).
    """
    if scheduler is not None:
        return _with_grid(PaperSchedule, scheduler, _GRID)
    own = PaperSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **_GRID)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return _with_alphas(own, torch.cumprod(1 - betas, dim=0).float())


def few_step_scheduler(scheduler: DDIMScheduler) -> FewStepSchedule:
    """The schedule of a network distilled to a few steps, with the checkpoint's betas and prediction type."""
    return _with_grid(FewStepSchedule, scheduler, _GRID | {"timestep_spacing": "trailing"})


def _with_grid(kind: type, scheduler: DDIMScheduler, grid: dict[str, object]) -> PaperSchedule:
    return _with_alphas(kind.from_config(dict(scheduler.config), **grid), scheduler.alphas_cumprod.cpu())


def _with_alphas(own: PaperSchedule, ac: Tensor) -> PaperSchedule:
    # The scheduler's 1 - ac_prev - sigma^2 is 0 where ac = 0; in float32 it would round to below 0, whose root is nan.
    own.alphas_cumprod = ac.double().clamp(min=_SMALLEST_ALPHA)
    own.final_alpha_cumprod = own.alphas_cumprod[0]
    return own


def encoding_timestep(strength: float, num_train_timesteps: int = 1000) -> int:
    """t_enc = int(strength * 1000); strength 1, which points past the schedule in the authors' program, means 999."""
    return min(int(strength * num_train_timesteps), num_train_timesteps - 1)


# ---------------------------------------------------------------- flow matching


class StraightPath(Schedule):
    """Flow matching: z_t = (1 - t) z_0 + t eps, and the network predicts the velocity dz/dt = v = eps - z_0.

    Then eps_hat = z_t + (1 - t) v and z_0_hat = z_t - t v: insert z_t and v, and everything but eps, or z_0, cancels.

    The grid of n steps is u = 1, 1 - 1/n, .., 1/n, moved towards noise as the checkpoint's scheduler says: by
    t = shift u / (1 + (shift - 1) u), or with a shift that grows with the image (Esser et al., ICML 2024, Section
    5.3.2). A strength takes the last int(strength * n) steps, and noises the image to the first of their times.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, tokens: int = 4096) -> None:
        """Args: a checkpoint's scheduler, which is not changed; image tokens, for a shift that depends on the size."""
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        self.tokens = tokens
        self.num_inference_steps = None

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Make the grid of n steps."""
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (self.tokens - config.base_image_seq_len)
        u = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=u, mu=mu if config.use_dynamic_shifting else None)
        # The scheduler ends with the image itself, time 0.
        self.timesteps, self.num_inference_steps = self.scheduler.sigmas[:-1].double(), num_inference_steps

    def alpha(self, t: float) -> float:
        """1 - t."""
        return 1 - t

    def sigma(self, t: float) -> float:
        """t."""
        return t

    def split(self, prediction: Tensor, z_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """eps_hat = z_t + (1 - t) v, z_0_hat = z_t - t v."""
        return z_t + (1 - t) * prediction, z_t - t * prediction

    def after(self, t: float) -> float:
        """The next time of the grid, after the last one 0."""
        return _next(self.timesteps, t, 0.0)


def _next(timesteps: Tensor, t: Time, end: Time) -> Time:
    times = timesteps.tolist()
    return [*times[1:], end][times.index(t)]
