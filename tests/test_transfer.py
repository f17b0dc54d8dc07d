"""Transfer against a float64 reference written from the formulas, and what must not change a result."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from zodi import transfer
from zodi.labels import CITYSCAPES
from zodi.rows import ABLATIONS, ROWS
from zodi.transfer import (
    TransferConfig,
    check_steps,
    domain_config,
    prompt_config,
    stochastic_inversion,
    strength_warning,
    transfer_images,
    transfer_latents,
)

BATCH, STEPS = 2, 20
TOLERANCE = 2e-4


# ---------------------------------------------------------------- reference


def reference_alphas(zero_snr: bool = False) -> np.ndarray:
    """alphas_cumprod in float64; with zero terminal SNR as in Lin et al. (WACV 2024)."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.0120), 1000) ** 2
    ac = np.cumprod(1 - betas)
    if zero_snr:
        root = np.sqrt(ac)
        ac = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return ac


class Reference:
    """The transfer in float64, one branch of the guidance at a time, without diffusers' scheduler."""

    def __init__(self, unet, controlnet, prediction_type: str = "epsilon", zero_snr: bool = False):
        self.unet, self.controlnet = copy.deepcopy(unet).double(), copy.deepcopy(controlnet).double()
        self.prediction_type, self.ac = prediction_type, reference_alphas(zero_snr)

    def predict(self, z: Tensor, t: int, embeds: Tensor, layout: Tensor) -> Tensor:
        down, mid = self.controlnet(z, t, embeds, layout, return_dict=False)
        return self.unet(
            z, t, embeds, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False
        )[0]

    def noise_and_image(self, prediction: Tensor, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        signal, spread = math.sqrt(self.ac[t]), math.sqrt(1 - self.ac[t])
        if self.prediction_type == "epsilon":
            return prediction, (z - spread * prediction) / signal
        if self.prediction_type == "sample":
            return (z - signal * prediction) / spread, prediction
        return signal * prediction + spread * z, signal * z - spread * prediction

    def invert(self, z0: Tensor, eps: Tensor, t: int, embeds: Tensor, layout: Tensor) -> Tensor:
        signal, spread = math.sqrt(self.ac[t]), math.sqrt(1 - self.ac[t])
        z = signal * z0 + spread * eps
        eps_hat, _ = self.noise_and_image(self.predict(z, t, embeds, layout), z, t)
        return signal * z0 + spread * eps_hat

    def denoise(self, z, timesteps, spacing, embeds, negative, layout, guidance, eta, noise) -> Tensor:
        for t, eps in zip(timesteps, noise, strict=True):
            prediction = self.predict(z, t, embeds, layout)
            if guidance != 1:
                uncond = self.predict(z, t, negative, layout)
                prediction = uncond + guidance * (prediction - uncond)
            eps_hat, image = self.noise_and_image(prediction, z, t)
            a, previous = self.ac[t], self.ac[max(t - spacing, 0)]
            sigma = eta * math.sqrt((1 - previous) / (1 - a) * (1 - a / previous))
            z = math.sqrt(previous) * image + math.sqrt(1 - previous - sigma**2) * eps_hat + sigma * eps
        return z

    def transfer(self, z0, embeds, negative, layout, *, strength, noise, guidance, steps=STEPS, eta=1.0, align=False):
        n = int(strength * steps)
        if n == 0:
            return z0
        timesteps = [1 + k * (1000 // steps) for k in range(n)][::-1]
        t_enc = timesteps[0] if align else min(int(strength * 1000), 999)
        z0, embeds, negative, layout = (tensor.double() for tensor in (z0, embeds, negative, layout))
        eps = [tensor.double() for tensor in noise]
        start = self.invert(z0, eps[0], t_enc, embeds, layout)
        return self.denoise(start, timesteps, 1000 // steps, embeds, negative, layout, guidance, eta, eps[1:])


@dataclasses.dataclass
class Inputs:
    """What `transfer_latents` takes."""

    z0: Tensor
    embeds: Tensor
    negative: Tensor
    layout: Tensor
    noise: list[Tensor]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.z0, self.embeds, self.negative, self.layout


@pytest.fixture(scope="module")
def nets():
    """UNet and ControlNet with downsampling 4 between layout and latents."""
    torch.manual_seed(3)
    return tiny.networks((4, 8, 8))


@pytest.fixture
def make_inputs() -> Callable[..., Inputs]:
    """Random inputs with noise for n steps."""

    def make(n: int, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        noise = [randn(BATCH, 4, 4, 8) for _ in range(n + 1)]
        layout = torch.rand(BATCH, 3, 16, 32, generator=generator)
        return Inputs(randn(BATCH, 4, 4, 8), randn(BATCH, 12, 16), randn(BATCH, 12, 16), layout, noise)

    return make


def assert_close(result: Tensor, expected: Tensor) -> None:
    error = (result.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"relative error {error:.1e}"


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 9.0])
@pytest.mark.parametrize("strength", [0.0, 0.6, 0.65, 0.9, 1.0])
def test_transfer_matches_the_formulas(nets, make_inputs, strength, guidance, align):
    inputs = make_inputs(int(strength * STEPS))
    settings = {"strength": strength, "noise": inputs.noise, "align": align}
    result = transfer_latents(*nets, *inputs.tensors, guidance_scale=guidance, **settings)
    assert result.shape == inputs.z0.shape and result.dtype == torch.float32
    assert_close(result, Reference(*nets).transfer(*inputs.tensors, guidance=guidance, **settings))


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type(nets, make_inputs, prediction_type, zero_snr):
    inputs = make_inputs(STEPS)
    result = transfer_latents(
        *nets,
        *inputs.tensors,
        strength=1.0,
        guidance_scale=2.0,
        noise=inputs.noise,
        scheduler=tiny.scheduler(prediction_type, zero_snr),
    )
    reference = Reference(*nets, prediction_type, zero_snr)
    assert_close(result, reference.transfer(*inputs.tensors, strength=1.0, guidance=2.0, noise=inputs.noise))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("steps", [7, 30])
def test_other_steps_and_eta(nets, make_inputs, steps, eta):
    inputs = make_inputs(int(0.65 * steps))
    result = transfer_latents(
        *nets, *inputs.tensors, strength=0.65, num_inference_steps=steps, eta=eta, noise=inputs.noise
    )
    expected = Reference(*nets).transfer(
        *inputs.tensors, strength=0.65, noise=inputs.noise, guidance=9.0, steps=steps, eta=eta
    )
    assert_close(result, expected)


@pytest.mark.parametrize(("strength", "t"), [(0.65, 650), (0.9, 900), (1.0, 999)])
def test_stochastic_inversion_matches_the_formula(nets, make_inputs, strength, t):
    inputs = make_inputs(0)
    arguments = (inputs.z0, inputs.embeds, inputs.layout)
    result = stochastic_inversion(*nets, *arguments, strength=strength, noise=inputs.noise[0])
    z0, eps, embeds, layout = (x.double() for x in (inputs.z0, inputs.noise[0], inputs.embeds, inputs.layout))
    assert_close(result, Reference(*nets).invert(z0, eps, t, embeds, layout))


def test_sdedit_is_the_transfer_without_inversion(nets, make_inputs):
    inputs = make_inputs(13)
    result = transfer_latents(*nets, *inputs.tensors, strength=0.65, noise=inputs.noise, method="sdedit")
    reference = Reference(*nets)
    z0, embeds, negative, layout = (x.double() for x in inputs.tensors)
    eps = [x.double() for x in inputs.noise]
    start = math.sqrt(reference.ac[650]) * z0 + math.sqrt(1 - reference.ac[650]) * eps[0]
    timesteps = [1 + 50 * k for k in range(13)][::-1]
    assert_close(result, reference.denoise(start, timesteps, 50, embeds, negative, layout, 9.0, 1.0, eps[1:]))


def test_controlnet_only_starts_from_noise_and_takes_all_steps(nets, make_inputs):
    inputs = make_inputs(STEPS)
    result = transfer_latents(*nets, *inputs.tensors, strength=0.65, noise=inputs.noise, method="controlnet_only")
    _, embeds, negative, layout = (x.double() for x in inputs.tensors)
    eps = [x.double() for x in inputs.noise]
    timesteps = [1 + 50 * k for k in range(STEPS)][::-1]
    assert_close(result, Reference(*nets).denoise(eps[0], timesteps, 50, embeds, negative, layout, 9.0, 1.0, eps[1:]))


def test_ddim_inversion_matches_the_formula_and_ignores_noise(nets, make_inputs):
    inputs = make_inputs(12)
    result = transfer_latents(*nets, *inputs.tensors, strength=0.6, guidance_scale=3.0, method="ddim_inversion")
    reference = Reference(*nets)
    z0, embeds, negative, layout = (x.double() for x in inputs.tensors)
    timesteps, z = [1 + 50 * k for k in range(12)], z0
    for t in timesteps:
        before = reference.ac[max(t - 50, 0)]
        eps_hat = reference.predict(z, t, embeds, layout)
        image = (z - math.sqrt(1 - before) * eps_hat) / math.sqrt(before)
        z = math.sqrt(reference.ac[t]) * image + math.sqrt(1 - reference.ac[t]) * eps_hat
    zeros = [torch.zeros_like(z)] * 12
    assert_close(result, reference.denoise(z, timesteps[::-1], 50, embeds, negative, layout, 3.0, 0.0, zeros))


def test_ddim_inversion_of_a_perfect_model_returns_the_image(make_inputs):
    inputs = make_inputs(0)

    class Constant(torch.nn.Module):
        """Predicts the same noise everywhere, so that the inversion is exact."""

        dtype = torch.float32

        def forward(self, z: Tensor, t: int, **_: object) -> tuple[Tensor, None]:
            return torch.full_like(z, 0.3), None

    tensors = (*inputs.tensors[:2], None, inputs.layout)
    settings = {"strength": 0.9, "guidance_scale": 1.0, "method": "ddim_inversion"}
    result = transfer_latents(Constant(), Constant(), *tensors, **settings)
    assert_close(result, inputs.z0)


# ---------------------------------------------------------------- what must not change a result


def test_batch_and_order_do_not_matter(nets, make_inputs):
    inputs = make_inputs(13)
    together = transfer_latents(*nets, *inputs.tensors, strength=0.65, noise=inputs.noise)
    for i in range(BATCH):
        alone = transfer_latents(
            *nets, *(x[i : i + 1] for x in inputs.tensors), strength=0.65, noise=[x[i : i + 1] for x in inputs.noise]
        )
        assert_close(alone, together[i : i + 1])


def test_generators_give_the_noise_of_each_image(nets, make_inputs):
    inputs = make_inputs(13)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    drawn = transfer_latents(*nets, *inputs.tensors, strength=0.65, generator=generators)
    by_image = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    noise = [torch.cat([torch.randn(1, 4, 4, 8, generator=g) for g in by_image]) for _ in range(14)]
    assert torch.equal(drawn, transfer_latents(*nets, *inputs.tensors, strength=0.65, noise=noise))


def test_one_prompt_and_layout_for_all_and_the_scheduler_is_left_alone(nets, make_inputs):
    inputs = make_inputs(13)
    scheduler = tiny.scheduler()
    before = dict(scheduler.config), scheduler.timesteps.clone(), scheduler.num_inference_steps
    shared = (inputs.embeds[:1], inputs.negative[:1], inputs.layout[:1])
    repeated = [x.repeat_interleave(BATCH, 0) for x in shared]
    settings = {"strength": 0.65, "noise": inputs.noise, "scheduler": scheduler}
    result = transfer_latents(*nets, inputs.z0, *shared, **settings)
    assert_close(result, transfer_latents(*nets, inputs.z0, *repeated, **settings))
    assert before[0] == dict(scheduler.config) and before[2] == scheduler.num_inference_steps
    assert torch.equal(before[1], scheduler.timesteps)


def test_strength_0_returns_the_latents(nets, make_inputs):
    inputs = make_inputs(0)
    result = transfer_latents(*nets, *inputs.tensors, strength=0.0, noise=inputs.noise)
    assert torch.equal(result, inputs.z0) and result is not inputs.z0


def test_guidance_1_skips_the_unconditional_branch_and_the_callback_sees_every_step(nets, make_inputs):
    inputs = make_inputs(12)
    batches, seen = [], []
    handle = nets[0].register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    transfer_latents(
        *nets,
        inputs.z0,
        inputs.embeds,
        None,
        inputs.layout,
        strength=0.6,
        guidance_scale=1.0,
        noise=inputs.noise,
        callback=lambda step, t, z: seen.append((step, t, tuple(z.shape))),
    )
    handle.remove()
    assert batches == [BATCH] * 13
    assert seen == [(k, 551 - 50 * k, (BATCH, 4, 4, 8)) for k in range(12)]


def test_zero_terminal_snr_reaches_t_999(nets, make_inputs):
    inputs = make_inputs(999)
    scheduler = tiny.scheduler("v_prediction", zero_snr=True)
    settings = {"strength": 1.0, "num_inference_steps": 999, "scheduler": scheduler}
    assert scheduler.alphas_cumprod[999] == 0
    first: list[Tensor] = []

    def stop_after_two(step: int, t: int, z: Tensor) -> None:
        first.append(z)
        if step == 1:
            raise StopIteration

    with pytest.raises(StopIteration):
        transfer_latents(*nets, *inputs.tensors, noise=inputs.noise, callback=stop_after_two, **settings)
    assert all(z.isfinite().all() for z in first)
    epsilon = tiny.scheduler("epsilon", zero_snr=True)
    with pytest.raises(ValueError, match="pure noise"):
        transfer_latents(*nets, *inputs.tensors, noise=inputs.noise, **settings | {"scheduler": epsilon})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 1.2}, "strength=1.2: expected 0 .. 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1000, "strength": 1.0}, "the grid starts at t = 1000"),
        ({"method": "photometric"}, "method 'photometric'"),
        ({"strength": 0.6}, "found 14 tensors, expected 13"),
    ],
)
def test_wrong_arguments(nets, make_inputs, changes, message):
    inputs = make_inputs(13)
    with pytest.raises(ValueError, match=message):
        transfer_latents(*nets, *inputs.tensors, **{"strength": 0.65, "noise": inputs.noise} | changes)


def test_guidance_needs_a_negative_prompt_and_noise_the_right_shape(nets, make_inputs):
    inputs = make_inputs(13)
    with pytest.raises(ValueError, match="needs negative_prompt_embeds"):
        transfer_latents(*nets, inputs.z0, inputs.embeds, None, inputs.layout, strength=0.65)
    with pytest.raises(ValueError, match=r"noise\[0\]: found shape"):
        noise = [x[:, :2] for x in inputs.noise]
        transfer_latents(*nets, *inputs.tensors, strength=0.65, noise=noise)


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module", params=["mini", "stable_diffusion"])
def model(request):
    """A tiny checkpoint of either format."""
    return getattr(tiny, request.param)()


def config_for(model, **changes) -> TransferConfig:
    size = {"short_side": 16, "multiple": 16, "num_inference_steps": 5}
    return domain_config("night", defaults=model.defaults, **size | changes)


def random_images(*sizes: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return images, [CITYSCAPES.colorize(rng.integers(0, 19, size, dtype=np.uint8)) for size in sizes]


# InstructPix2Pix needs a checkpoint of its own and has tests of its own.
@pytest.mark.parametrize("method", [method for method in transfer.METHODS if method != "instruct_pix2pix"])
def test_every_method_keeps_sizes_and_repeats_whatever_the_batch(model, method):
    images, layouts = random_images((16, 32), (21, 40), (16, 32))
    config = config_for(model, method=method)
    keys = ["a", "b", "c"]
    results = transfer_images(model, images, layouts, keys, config)
    assert [r.shape for r in results] == [i.shape for i in images] and all(r.dtype == np.uint8 for r in results)
    order = [2, 0, 1]
    for i in order:
        alone = transfer_images(model, [images[i]], [layouts[i]], [keys[i]], config)[0]
        assert np.abs(alone.astype(int) - results[i]).max() <= 1


def test_seeds(model):
    images, layouts = random_images((16, 32))
    run = {
        (key, seed, noise): transfer_images(model, images, layouts, [key], config_for(model, seed=seed, noise=noise))[0]
        for key in "ab"
        for seed in (0, 1)
        for noise in ("per_image", "paper")
    }
    per_image = [run[key, seed, "per_image"] for key in "ab" for seed in (0, 1)]
    assert len({image.tobytes() for image in per_image}) == 4
    assert np.array_equal(run["a", 0, "paper"], run["b", 0, "paper"])
    assert not np.array_equal(run["a", 0, "paper"], run["a", 1, "paper"])


def test_prompt_layout_and_strength_have_an_effect(model):
    images, layouts = random_images((16, 32))
    base = transfer_images(model, images, layouts, ["a"], config_for(model))[0]
    other_layout = transfer_images(model, images, [layouts[0][::-1].copy()], ["a"], config_for(model))[0]
    other_prompt = transfer_images(model, images, layouts, ["a"], config_for(model, prompt="driving in snow"))[0]
    round_trip = transfer_images(model, images, None, ["a"], config_for(model, method="vae_round_trip"))[0]
    assert not np.array_equal(base, other_layout)
    assert not np.array_equal(base, other_prompt)
    assert np.array_equal(
        transfer_images(model, images, layouts, ["a"], config_for(model, strength=0.0))[0], round_trip
    )


def test_photometric_needs_no_model():
    images, _ = random_images((16, 32))
    result = transfer_images(None, images, None, ["a"], domain_config("night", "photometric"))[0]
    assert result.shape == images[0].shape and result.mean() < images[0].mean()


def test_what_is_missing_is_said(model):
    images, layouts = random_images((16, 32))
    with pytest.raises(ValueError, match="needs a diffusion model"):
        transfer_images(None, images, layouts, ["a"], config_for(model))
    with pytest.raises(ValueError, match="needs a layout"):
        transfer_images(model, images, None, ["a"], config_for(model))
    with pytest.raises(ValueError, match="a: found float64"):
        transfer_images(model, [images[0] / 255], layouts, ["a"], config_for(model))
    with pytest.raises(ValueError, match="needs a multiple of"):
        transfer_images(model, images, layouts, ["a"], config_for(model, multiple=4))


# ---------------------------------------------------------------- settings, sizes and layouts


def test_domain_config_takes_the_paper_and_the_checkpoint():
    config = domain_config("night", defaults=tiny.MINI_DEFAULTS, seed=3)
    assert (config.prompt, config.strength, config.guidance_scale, config.seed) == ("driving at night", 0.9, 2.0, 3)
    own = dataclasses.replace(tiny.MINI_DEFAULTS, strengths={"night": 0.7})
    assert domain_config("night", defaults=own).strength == domain_config("night", "sdedit", own).strength == 0.7
    assert domain_config("snow", defaults=own).strength == 0.65
    assert domain_config("night", defaults=own, strength=0.3).strength == 0.3
    clear = domain_config("night", "clear_prompt")
    assert (clear.prompt, clear.strength, clear.method) == ("driving in clear weather", 0.9, "stochastic_inversion")
    assert (clear.guidance_scale, clear.num_inference_steps, clear.short_side, clear.multiple) == (9.0, 20, 512, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method 'magic'"),
        ({"strength": -1}, "strength=-1"),
        ({"num_inference_steps": 1000}, "num_inference_steps=1000"),
        ({"noise": "none"}, "noise 'none'"),
        ({"palette": "gray"}, "palette 'gray'"),
        ({"short_side": 8, "multiple": 16}, "short_side=8"),
        ({"eta": -0.1}, "eta=-0.1"),
        ({"method": "photometric", "domain": "desert"}, "unknown domain 'desert'"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        TransferConfig(**{"prompt": "driving at night", "strength": 0.9} | changes)


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 2048), (512, 1024)), ((360, 480), (512, 704)), ((480, 360), (704, 512))]
)
def test_working_size_of_the_paper(size, expected):
    assert transfer.working_size(*size, 512, 64) == expected


def test_layout_palettes():
    label = np.array([[0, 10], [255, 18]], dtype=np.uint8)
    layout = CITYSCAPES.colorize(label)
    paper = transfer.prepare_layout(layout, (2, 2), "cityscapes")
    assert torch.equal((paper.permute(1, 2, 0) * 255).round().to(torch.uint8), torch.from_numpy(layout))
    ade = (transfer.prepare_layout(layout, (4, 4), "ade20k") * 255).round().int()
    road, sky, void, bicycle = ade[:, 0, 0], ade[:, 1, 3], ade[:, 3, 0], ade[:, 3, 3]
    assert [x.tolist() for x in (road, sky, void, bicycle)] == [[140] * 3, [6, 230, 230], [0] * 3, [255, 245, 0]]


def test_every_row_of_the_tables_has_a_method():
    methods = {row.method for row in ROWS.values() if row.method is not None}
    assert methods <= {*transfer.METHODS, *ABLATIONS}
    assert ABLATIONS.keys() <= methods


@pytest.mark.parametrize(
    ("method", "strength", "steps", "refused"),
    [
        ("stochastic_inversion", 0.04, 20, True),
        ("sdedit", 0.0, 20, True),
        ("ddim_inversion", 0.08, 12, True),
        ("stochastic_inversion", 0.05, 20, False),
        ("stochastic_inversion", 0.084, 12, False),
        ("controlnet_only", 0.0, 20, False),
        ("instruct_pix2pix", 0.0, 20, False),
        ("vae_round_trip", 0.0, 20, False),
    ],
)
def test_a_strength_that_takes_no_step_is_refused(method, strength, steps, refused):
    config = TransferConfig("x", strength, method, num_inference_steps=steps)
    if not refused:
        return check_steps(config)
    with pytest.raises(ValueError, match=r"takes no step.*vae_round_trip") as caught:
        check_steps(config)
    (least,) = re.findall(r"at least ([\d.]+),", str(caught.value))
    check_steps(dataclasses.replace(config, strength=float(least)))


@pytest.mark.parametrize(
    ("strengths", "free"),
    [({}, 0.65), ({"night": 0.9}, 0.9), ({"night": 0.92, "snow": 0.92, "rain": 0.88, "fog": 0.92, "game": 0.8}, 0.92)],
)
def test_a_free_prompt_has_a_strength_that_works_for_the_checkpoint(strengths, free):
    defaults = dataclasses.replace(tiny.MINI_DEFAULTS, strengths=strengths)
    config = prompt_config("in a storm", defaults)
    assert config.strength == free and strength_warning(config, defaults) == ""
    assert prompt_config("in a storm", defaults, strength=0.3).strength == 0.3


@pytest.mark.parametrize(
    ("method", "strength", "warned"),
    [
        ("stochastic_inversion", 0.7, True),
        ("stochastic_inversion", 0.76, False),
        ("stochastic_inversion", 1.0, False),
        ("sdedit", 0.1, True),
        ("controlnet_only", 0.1, False),
        ("vae_round_trip", 0.0, False),
    ],
)
def test_a_strength_below_those_of_the_checkpoint_is_warned_of(method, strength, warned):
    defaults = dataclasses.replace(tiny.MINI_DEFAULTS, strengths={"night": 0.9, "game": 0.8})
    text = strength_warning(prompt_config("x", defaults, method=method, strength=strength), defaults)
    assert (f"strength {strength:g}" in text and "0.8" in text) if warned else text == ""
    assert strength_warning(prompt_config("x", None, strength=0.1), tiny.MINI_DEFAULTS) == ""
