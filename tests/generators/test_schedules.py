"""Schedules: one step for all of them, checked on data whose exact posterior is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from zodi.generators.schedules import (
    FewStepSchedule,
    Schedule,
    StraightPath,
    few_step_scheduler,
    paper_scheduler,
)
from zodi.sampling import SAMPLERS, Sampler, add_noise, invert, predicted_noise, visited_timesteps
from zodi.transfer import draw_latents

# Toy data: z_0 is one number, of a mixture of Gaussians with these weights, means and standard deviations.
WEIGHTS, MEANS, SPREADS = (0.3, 0.7), (-1.5, 1.0), (0.2, 0.4)
COUNT = 100_000


def straight_path(steps: int = 0, **config: object) -> StraightPath:
    """A flow's schedule, with its grid made where steps are given."""
    schedule = StraightPath(FlowMatchEulerDiscreteScheduler(**config))
    if steps:
        schedule.set_timesteps(steps)
    return schedule


def samples(seed: int = 0) -> Tensor:
    """z_0 drawn from the mixture, float64 (N, 1, 1, 1)."""
    rng = np.random.default_rng(seed)
    which = rng.choice(len(WEIGHTS), COUNT, p=WEIGHTS)
    z0 = rng.normal(np.array(MEANS)[which], np.array(SPREADS)[which])
    return torch.from_numpy(z0).reshape(-1, 1, 1, 1)


def noise(count: int, seed: int = 1, like: int = COUNT) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(like, 1, 1, 1, generator=generator, dtype=torch.float64) for _ in range(count)]


def posterior_mean(z_t: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[z_0 | z_t] of the mixture: responsibilities times the means of Gaussian conditioning."""
    totals, weighted = torch.zeros_like(z_t), torch.zeros_like(z_t)
    for weight, mean, spread in zip(WEIGHTS, MEANS, SPREADS, strict=True):
        variance = alpha**2 * spread**2 + sigma**2
        density = weight * torch.exp(-((z_t - alpha * mean) ** 2) / (2 * variance)) / math.sqrt(variance)
        totals += density
        weighted += density * (mean + alpha * spread**2 / variance * (z_t - alpha * mean))
    return weighted / totals


def exact(schedule: Schedule, kind: str):
    """What a perfectly trained network predicts for the toy data."""

    def predict(z_t: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        z0 = posterior_mean(z_t, alpha, sigma)
        # At t = 0 of the straight path eps is unknown, and has the mean 0.
        eps = (z_t - alpha * z0) / sigma if sigma else torch.zeros_like(z_t)
        return {"velocity": eps - z0, "v_prediction": alpha * eps - sigma * z0, "epsilon": eps}[kind]

    return predict


def moments(z: Tensor) -> Tensor:
    """Mean, standard deviation, skewness and share below 0: enough to tell mixtures apart."""
    spread = z.std()
    return torch.stack([z.mean(), spread, ((z - z.mean()) / spread).pow(3).mean(), (z < 0).double().mean()])


# ---------------------------------------------------------------- the straight path


def test_the_straight_path_splits_a_velocity_into_noise_and_image():
    schedule = straight_path(4)
    z0, eps = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    for t in (1.0, 0.7, 0.01):
        z_t = add_noise(z0, eps, t, schedule)
        assert torch.allclose(z_t, (1 - t) * z0 + t * eps)
        eps_hat, z_0_hat = schedule.split(eps - z0, z_t, t)
        assert torch.allclose(eps_hat, eps) and torch.allclose(z_0_hat, z0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_at_every_time_samples_of_the_flow_have_the_marginals_of_the_path(eta):
    steps = 60
    schedule = straight_path(shift=1.5)
    z0, times = samples(), visited_timesteps(1.0, steps, schedule)
    (start, *fresh), (other,) = noise(steps + 1), noise(1, seed=2)
    z, predict = start, exact(schedule, "velocity")
    for index, (t, eps) in enumerate(zip(times, fresh, strict=True)):
        z = schedule.denoising_step(predict(z, t), z, t, eta, eps)
        s = schedule.after(t)
        expected = moments(add_noise(z0, other, s, schedule))
        assert torch.allclose(moments(z), expected, atol=0.05), f"step {index} to {s}"
    assert s == 0 and z.std() > 1


def test_one_step_with_the_true_velocity_has_the_next_marginal_whatever_eta():
    """With eps - z_0 itself in place of its mean there is no discretisation: only sampling error is left."""
    schedule, z0, (eps, fresh, other) = straight_path(5), samples(), noise(3)
    for eta in (0.0, 0.5, 1.0):
        for t in schedule.timesteps.tolist():
            z_t = add_noise(z0, eps, t, schedule)
            z_s = schedule.denoising_step(eps - z0, z_t, t, eta, fresh)
            s = schedule.after(t)
            # Three standard errors of the difference of two skewnesses, the least sure of the moments.
            error = 3 * math.sqrt(2 * 6 / COUNT)
            assert torch.allclose(moments(z_s), moments(add_noise(z0, other, s, schedule)), atol=error)


def test_eta_1_has_the_variance_of_the_posterior_of_two_gaussians():
    """q(z_s | z_t, z_0) from Bayes' rule: precisions add up."""
    schedule = straight_path(5)
    for t, s in pairwise(schedule.timesteps.tolist()):
        ratio = schedule.alpha(t) / schedule.alpha(s)
        extra = schedule.sigma(t) ** 2 - ratio**2 * schedule.sigma(s) ** 2
        precision = ratio**2 / extra + 1 / schedule.sigma(s) ** 2
        assert schedule.posterior_spread(s, t) == pytest.approx(precision**-0.5)
    assert schedule.posterior_spread(0.8, 1.0) == pytest.approx(0.8), "all of it is new after pure noise"


def test_eta_0_is_the_euler_step_of_the_flow():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = StraightPath(scheduler)
    schedule.set_timesteps(6)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6))
    z = torch.randn(2, 4, 8, 8)
    for t, theirs in zip(schedule.timesteps.tolist(), scheduler.timesteps, strict=True):
        v = torch.randn_like(z)
        expected = scheduler.step(v, theirs, z).prev_sample
        z = schedule.denoising_step(v, z, t, 0.0, None)
        assert torch.allclose(z, expected, atol=1e-5)


def test_inversion_rebuilds_the_marginal_from_the_noise_predicted():
    schedule, z0, (eps,) = straight_path(5), samples(), noise(1)
    predict, t = exact(schedule, "velocity"), 0.6
    z = invert(predict, z0, eps, t, schedule)
    z_t = add_noise(z0, eps, t, schedule)
    eps_hat = z_t + (1 - t) * predict(z_t, t)
    assert torch.allclose(z, (1 - t) * z0 + t * eps_hat)
    assert torch.allclose(eps_hat, predicted_noise(predict(z_t, t), z_t, t, schedule))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("method", ["stochastic_inversion", "sdedit"])
def test_strength_0_returns_the_input_and_strength_1_ignores_it(method, eta):
    schedule = straight_path(shift=3.0)
    predict, fresh = exact(schedule, "velocity"), noise(9, like=50)
    images = samples()[:50].float(), samples(5)[:50].float() + 2

    def transfer(z0: Tensor, strength: float) -> Tensor:
        settings = {"num_inference_steps": 8, "eta": eta, "method": method}
        steps = int(8 * strength) + 1
        return draw_latents(predict, predict, z0, schedule, strength=strength, noise=fresh[:steps], **settings)

    assert all(torch.equal(transfer(z0, 0.0), z0) for z0 in images)
    one, other = (transfer(z0, 1.0) for z0 in images)
    assert torch.equal(one, other), "at t = 1 there is no image in the noise"
    one, other = (transfer(z0, 0.5) for z0 in images)
    assert not torch.allclose(one, other)


def test_a_transfer_between_keeps_the_distribution_and_moves_less_with_less_strength():
    schedule, z0 = straight_path(), samples()
    predict = exact(schedule, "velocity")
    moved = []
    for strength in (0.2, 0.5, 0.9):
        count = int(strength * 150) + 1
        settings = {"strength": strength, "num_inference_steps": 150, "method": "sdedit"}
        z = draw_latents(predict, predict, z0, schedule, noise=noise(count), **settings)
        assert torch.allclose(moments(z), moments(z0), atol=0.05)
        moved.append((z - z0).abs().mean().item())
    assert moved == sorted(moved) and moved[2] > 2 * moved[0]


def test_ddim_inversion_on_the_straight_path_comes_back():
    schedule, z0 = straight_path(), samples()[:2000]
    predict = exact(schedule, "velocity")
    z = draw_latents(
        predict, predict, z0, schedule, strength=0.6, num_inference_steps=400, method="ddim_inversion", eta=1.0
    )
    assert (z - z0).abs().mean() < 0.01


def test_a_shift_that_grows_with_the_image_is_the_schedulers():
    few, many = (
        StraightPath(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), tokens) for tokens in (256, 4096)
    )
    for schedule, mu in ((few, 0.5), (many, 1.15)):
        schedule.set_timesteps(4)
        u = np.array([1, 0.75, 0.5, 0.25])
        assert schedule.timesteps.numpy() == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / u - 1), abs=1e-6)


# ---------------------------------------------------------------- diffusion


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_step_of_every_schedule_is_that_of_diffusers_for_the_papers(prediction_type, eta):
    schedule = paper_scheduler(tiny.scheduler(prediction_type))
    schedule.set_timesteps(20)
    z, prediction, fresh = torch.randn(3, 2, 4, 8, 8)
    for t in (951, 501, 1):
        theirs = schedule.denoising_step(prediction, z, t, eta, fresh)
        ours = Schedule.denoising_step(schedule, prediction, z, t, eta, fresh)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        back, own = schedule.inversion_step(prediction, z, t), Schedule.inversion_step(schedule, prediction, z, t)
        assert (back - own).abs().max() < 1e-4 * back.abs().max()


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_the_grid_of_few_steps_is_trailing_and_ends_with_the_image(steps):
    schedule = few_step_scheduler(tiny.scheduler())
    theirs = DDIMScheduler.from_config(tiny.scheduler().config, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    times = visited_timesteps(1.0, steps, schedule)
    assert isinstance(schedule, FewStepSchedule) and times == theirs.timesteps.tolist() and times[0] == 999
    assert [schedule.after(t) for t in times] == [*times[1:], -1]
    assert (schedule.alpha(-1), schedule.sigma(-1)) == (1.0, 0.0)
    half = visited_timesteps(0.5, steps, schedule)
    assert half == times[steps // 2 :] and schedule.encoding_time(0.5, half) == half[0]


@pytest.mark.parametrize("method", [*SAMPLERS])
def test_with_many_steps_the_trailing_grid_draws_the_toy_distribution(method):
    schedule, z0 = few_step_scheduler(tiny.scheduler("v_prediction", zero_snr=True)), samples()
    predict = exact(schedule, "v_prediction")
    times = visited_timesteps(1.0, 200, schedule)
    sampler = Sampler(predict, predict, schedule, times, times[0], noise(201), eta=1.0)
    z = SAMPLERS[method](sampler, z0)
    assert torch.allclose(moments(z), moments(z0), atol=0.06)
