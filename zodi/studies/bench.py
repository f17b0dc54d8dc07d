"""How fast are transfer and training? For the transfer, the loop of the authors' program against ours.

Their loop, re-created from its description: one image at a time, float32, and two network calls per step, one for each
branch of the guidance. Ours: batches, both branches in one call, and half precision where the hardware has it; on a CPU
one process per core, each with one thread. Both do the same arithmetic on the same inputs. On a GPU the paper's
trainings are timed too, once without the work of reading and augmenting images and once with it.
"""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from zodi import adaptation, datasets
from zodi.diffusion import DiffusionModel, TransferDefaults, compiled, decode, embed, encode, load
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.segmentation import build_network
from zodi.support.files import write_json
from zodi.support.runs import DTYPES, best_device, best_dtype, dtype_name, environment, native_bfloat16, worker_count
from zodi.transfer import (
    TransferConfig,
    domain_config,
    encoding_timestep,
    paper_scheduler,
    prepare_layout,
    stochastic_inversion,
    transfer_images,
    visited_timesteps,
    working_size,
)

MODELS = ("mini", "stable_diffusion")


@dataclass(frozen=True)
class BenchConfig:
    """Settings of a benchmark.

    Attributes:
        model: "mini", a folder in diffusers' format, or "stable_diffusion" = networks of Stable Diffusion 1.5's size
            with random weights, which need a GPU and no download.
        domain: whose prompt and strength are used.
        images: images for our way, a multiple of `batch_size`; the authors' loop does `authors_images`.
        authors_images: images for the authors' loop, which is slower.
        batch_size: images per network call in our way.
        dtype: of the networks in our way.
        compile: run the networks through torch.compile.
    """

    model: str = "mini"
    domain: str = "night"
    images: int = 16
    authors_images: int = 4
    batch_size: int = 8
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.model not in MODELS and not Path(self.model).is_dir():
            raise ValueError(f"model {self.model!r}: expected one of {MODELS} or a folder in diffusers' format")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {list(DTYPES)}")
        if self.batch_size < 1 or self.images % self.batch_size or self.images < 1 or self.authors_images < 1:
            raise ValueError(
                f"images={self.images}, authors_images={self.authors_images}: expected at least 1, and images to be a "
                f"multiple of batch_size={self.batch_size}"
            )


@dataclass(frozen=True)
class TrainingBenchConfig:
    """Settings of the training benchmark.

    Attributes:
        networks: the networks whose training is timed.
        steps: timed steps, after `warm_up` others.
        images: pairs that are on the disk when reading is timed, at least the batch size.
        changes: other values for fields of the paper's recipe.
    """

    networks: tuple[str, ...] = (
        "PaperDeepLabV3Plus/resnet50",
        "PaperDeepLabV3Plus/resnet101",
        "PaperRefineNet/resnet50",
    )
    steps: int = 40
    warm_up: int = 10
    images: int = 64
    changes: dict[str, Any] = field(default_factory=dict)

    def recipe(self, network: str, bf16: bool) -> adaptation.AdaptationConfig:
        """The paper's recipe for a network without its pretrained weights, which would have to be downloaded."""
        steps = self.warm_up + self.steps
        return adaptation.recipe("paper", network=network, weights=None, bf16=bf16, steps=steps, **self.changes)


def gpu_settings() -> dict[str, BenchConfig]:
    """What `make bench` runs where there is a GPU."""
    dtype = dtype_name(best_dtype("cuda"))
    plain = BenchConfig("stable_diffusion", images=32, authors_images=2, dtype=dtype)
    return {"stable_diffusion_gpu": plain, "stable_diffusion_gpu_compiled": replace(plain, compile=True)}


# ---------------------------------------------------------------- model and inputs


class _NoTokenizer:
    """Stands in for CLIP's vocabulary, which would be a download: random weights do not care which tokens they get."""

    model_max_length = 77

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def __call__(self, texts: list[str], **_: Any) -> Any:
        ids = torch.zeros(len(texts), self.model_max_length, dtype=torch.long)
        return type("Tokens", (), {"input_ids": ids})()


def random_stable_diffusion(device: str, dtype: torch.dtype) -> DiffusionModel:
    """Stable Diffusion 1.5's networks with random weights, made on the device."""
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
        )
        controlnet = ControlNetModel.from_unet(unet)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    parts = [vae, unet, controlnet, text_encoder]
    for part in parts:
        part.requires_grad_(False).eval().to(device, dtype, memory_format=torch.channels_last)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return DiffusionModel("random-stable-diffusion-1.5", *parts, _NoTokenizer(), scheduler, TransferDefaults())


def _model(config: BenchConfig, device: str, dtype: torch.dtype) -> DiffusionModel:
    if config.model == "stable_diffusion":
        return random_stable_diffusion(device, dtype)
    return load(config.model, device=device, dtype=dtype)


def _inputs(settings: TransferConfig, count: int) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Scenes at the working size, so that neither way has to resize."""
    height, width = working_size(1, 2, settings.short_side, settings.multiple)
    drawn = [scenes.render(seed, "clear", height, width) for seed in scenes.PRETRAIN_SEEDS[-count:]]
    return [s.image for s in drawn], [CITYSCAPES.colorize(s.label) for s in drawn], [str(i) for i in range(count)]


# ---------------------------------------------------------------- the two ways


@torch.inference_mode()
def authors_loop(model: DiffusionModel, image: np.ndarray, layout: np.ndarray, settings: TransferConfig) -> np.ndarray:
    """One image as the authors' program does it: batch 1, two calls of both networks per step.

    Args:
        model: in float32.
        image, layout: uint8 (H, W, 3) at the working size.
        settings: of the transfer; its noise is drawn from `settings.seed`.

    Returns:
        uint8 (H, W, 3).
    """
    scheduler = paper_scheduler(model.scheduler)
    z0 = encode(model, torch.from_numpy(image)[None])
    control = prepare_layout(layout, image.shape[:2], settings.palette)[None].to(z0)
    uncond, cond = embed(model, [settings.negative_prompt, settings.prompt + settings.prompt_suffix])[:, None]
    generator = torch.Generator().manual_seed(settings.seed)

    def noise() -> torch.Tensor:
        return torch.randn(z0.shape, generator=generator).to(z0)

    def predict(z: torch.Tensor, t: int, embeds: torch.Tensor) -> torch.Tensor:
        down, mid = model.controlnet(z, t, embeds, controlnet_cond=control, return_dict=False)
        return model.unet(z, t, embeds, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample

    z = stochastic_inversion(
        model.unet, model.controlnet, z0, cond, control, strength=settings.strength, noise=noise(),
        scheduler=model.scheduler, timestep=encoding_timestep(settings.strength),
    )  # fmt: skip
    for t in visited_timesteps(settings.strength, settings.num_inference_steps, scheduler):
        prediction_cond, prediction_uncond = predict(z, t, cond), predict(z, t, uncond)
        prediction = prediction_uncond + settings.guidance_scale * (prediction_cond - prediction_uncond)
        z = scheduler.step(prediction, t, z, eta=settings.eta, variance_noise=noise()).prev_sample
    return decode(model, z)[0].numpy()


def _time_authors(config: BenchConfig, device: str) -> float:
    """Images per second of the authors' loop."""
    model = _model(config, device, torch.float32)
    settings = domain_config(config.domain, defaults=model.defaults)
    images, layouts, _ = _inputs(settings, config.authors_images + 1)
    authors_loop(model, images[0], layouts[0], settings)
    start = time.perf_counter()
    for image, layout in zip(images[1:], layouts[1:], strict=True):
        authors_loop(model, image, layout, settings)
    return config.authors_images / (time.perf_counter() - start)


def _time_ours(config: BenchConfig, device: str, threads: int | None = None) -> float:
    """Images per second of `transfer_images`, in this process."""
    if threads is not None:
        torch.set_num_threads(threads)
    model = _model(config, device, DTYPES[config.dtype])
    if config.compile:
        model = compiled(model)
    settings = domain_config(config.domain, defaults=model.defaults)
    images, layouts, keys = _inputs(settings, config.images)
    first = slice(0, config.batch_size)
    transfer_images(model, images[first], layouts[first], keys[first], settings)
    start = time.perf_counter()
    for begin in range(0, config.images, config.batch_size):
        part = slice(begin, begin + config.batch_size)
        transfer_images(model, images[part], layouts[part], keys[part], settings)
    return config.images / (time.perf_counter() - start)


def cpu_images_per_second(config: BenchConfig) -> float:
    """Images per second with one process per core."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_time_ours, [config] * cores, ["cpu"] * cores, [1] * cores))


# ---------------------------------------------------------------- the machine


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the yardstick of what the machine can do."""
    size, repeats = (1536, 8) if device == "cpu" else (8192, 20)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    a @ b
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    _synchronise(device)
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def flops_per_image(config: BenchConfig, device: str) -> float:
    """FLOP of one transfer: convolutions, products and attention, counted while it runs."""
    model = _model(config, device, DTYPES[config.dtype])
    settings = domain_config(config.domain, defaults=model.defaults)
    with FlopCounterMode(display=False) as counter:
        transfer_images(model, *_inputs(settings, 1), settings)
    return float(counter.get_total_flops())


def machine() -> dict[str, Any]:
    """Processor, cores and graphics card, with the versions of the packages."""
    names = [line for line in _cpu_lines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.processor()
    for mark in ("(R)", "(TM)"):
        processor = processor.replace(mark, "")
    return {"processor": processor or "an unknown processor"} | environment()


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


# ---------------------------------------------------------------- training


def _seconds_per_step(step: Callable[[], object], config: TrainingBenchConfig, device: str) -> float:
    for _ in range(config.warm_up):
        step()
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(config.steps):
        step()
    _synchronise(device)
    return (time.perf_counter() - start) / config.steps


def _write_pairs(folder: Path, count: int, size: tuple[int, int]) -> list[datasets.PackedDataset]:
    """Two packed data sets of noise with the same labels; reading and augmenting do not depend on the content."""
    rng = np.random.default_rng(0)
    height, width = size
    for index in range(count):
        label = rng.integers(0, CITYSCAPES.num_classes, (height, width), dtype=np.uint8)
        for name in ("source", "synth"):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for kind, array in (("images", image), ("labels", label)):
                (folder / name / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / name / kind / f"{index:04d}.png", compress_level=0)
    parts = [folder / name for name in ("source", "synth")]
    return [
        datasets.pack(datasets.FolderDataset(part / "images", part / "labels", CITYSCAPES), progress=False)
        for part in parts
    ]


def time_training(
    network_name: str, bf16: bool, pairs: list[datasets.PackedDataset], config: TrainingBenchConfig, device: str
) -> dict[str, Any]:
    """Steps per second of a ZoDi training by the paper's recipe, from batches on the device and from `pairs`."""
    recipe = config.recipe(network_name, bf16)
    network = build_network(network_name, CITYSCAPES.num_classes, weights=None, void_output=recipe.void_output)
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = adaptation.build_optimizer(network, recipe)
    read = adaptation.cut_batches(0, *pairs, adaptation.find_pairs(*pairs, recipe), recipe)
    batches = [adaptation.augment(batch.to(device), recipe) for batch in read]

    def step() -> None:
        terms = adaptation.optimisation_step(network, optimizer, *batches, recipe)
        terms["loss"].item()

    with FlopCounterMode(display=False) as counter:
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    alone = _seconds_per_step(step, config, device)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None

    times: list[float] = []
    workers = worker_count(device)
    adaptation.train(recipe, *pairs, None, lambda *_: times.append(time.perf_counter()), device=device, workers=workers)
    reading = (times[-1] - times[config.warm_up]) / config.steps
    paper_steps = adaptation.recipe("paper").steps
    return {
        "network": network_name,
        "precision": "bfloat16" if bf16 else "float32",
        "tflop_per_step": round(counter.get_total_flops() / 1e12, 4),
        "steps_per_second": round(1 / alone, 2),
        "tflops": round(counter.get_total_flops() / alone / 1e12, 2),
        "peak_memory_gb": peak and round(peak, 2),
        "workers": workers,
        "steps_per_second_with_reading": round(1 / reading, 2),
        "hours_of_the_papers_training": round(paper_steps * reading / 3600, 2),
    }


def run_training(config: TrainingBenchConfig, device: str) -> dict[str, Any]:
    """`time_training` for every network in float32, as in the paper, and in bfloat16, with settings and machine."""
    size = adaptation.recipe("paper", **config.changes).crop
    with tempfile.TemporaryDirectory() as folder:
        # A third more than the crop on either side, as in the paper: 384 x 768 of 512 x 1024.
        pairs = _write_pairs(Path(folder), config.images, (size[0] * 4 // 3, size[1] * 4 // 3))
        rows = [time_training(name, bf16, pairs, config, device) for name in config.networks for bf16 in (False, True)]
    return {"trainings": rows, "settings": config, "device": device, "machine": machine()}


# ---------------------------------------------------------------- all of it


def run(config: BenchConfig, device: str) -> dict[str, Any]:
    """Measure both ways on one machine.

    Args:
        config: the settings.
        device: "cpu", "cuda" or "mps".

    Returns:
        Images per second of both and their ratio, FLOP per image, the share of the machine's matrix product rate, peak
        memory in GB, settings and machine.

    Raises:
        ValueError: if a model of Stable Diffusion's size is requested on a CPU.
    """
    if config.model == "stable_diffusion" and device == "cpu":
        raise ValueError("networks of Stable Diffusion's size take minutes per image on a CPU; run this on a GPU")
    authors = _time_authors(config, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ours = _time_ours(config, device)
        peak = torch.cuda.max_memory_allocated()
    elif device == "mps":
        ours = _time_ours(config, device)
        # There is no record of the peak; memory that was set aside is never released on its own.
        peak = torch.mps.driver_allocated_memory()
    else:
        ours = cpu_images_per_second(config)
        import resource  # not on Windows, where the rest of this module is useful

        # Kilobytes on Linux, bytes on macOS; of the largest process.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    flops, rate = flops_per_image(config, device), matmul_rate(device, DTYPES[config.dtype])
    return {
        "authors_images_per_second": round(authors, 4),
        "images_per_second": round(ours, 4),
        "speedup": round(ours / authors, 2),
        "tflop_per_image": round(flops / 1e12, 4),
        "matmul_tflops": round(rate / 1e12, 4),
        "share_of_matmul": round(ours * flops / rate, 3),
        "peak_memory_gb": round(peak / 1e9, 2),
        "settings": config,
        "device": device,
        "machine": machine(),
    }


def whole_main_job(checkout: Path) -> dict[str, Any]:
    """How long `make reproduce` takes on a fresh clone, including the environment: minutes, and the machine.

    Args:
        checkout: a git checkout; its last commit is cloned into a temporary folder, and made there.

    Raises:
        ValueError: if there is no git checkout, or the job fails; with its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        commands = (["git", "clone", "--quiet", str(checkout), folder], ["make", "-C", folder, "reproduce"])
        start = time.perf_counter()
        for command in commands:
            result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
            if result.returncode:
                last = " ".join((result.stdout + result.stderr).splitlines()[-3:])
                raise ValueError(f"{checkout}: `{' '.join(command[:2])}` failed on a fresh clone: {last}")
        minutes = (time.perf_counter() - start) / 60
    # Transfers are made in bfloat16 where the processor computes in it.
    return {
        "minutes": round(minutes, 2),
        "cores": os.cpu_count(),
        "bfloat16": native_bfloat16(),
        "machine": machine(),
    }


def main(out: Path, only: Collection[str] = ()) -> int:
    """Run the benchmarks that this machine can run, or those named; one JSON file each; returns the exit code.

    Raises:
        ValueError: for a name that is not a benchmark that this machine can run.
    """
    runs: dict[str, Callable[[], dict[str, Any]]] = {"mini_cpu": partial(run, BenchConfig(), "cpu")}
    if native_bfloat16():
        runs["mini_cpu_bfloat16"] = partial(run, BenchConfig(dtype="bfloat16"), "cpu")
    else:
        print("mini_cpu_bfloat16: skipped, this processor does not compute in bfloat16")
    runs["main_job"] = partial(whole_main_job, Path(__file__).parents[2])
    if torch.cuda.is_available():
        runs |= {name: partial(run, config, "cuda") for name, config in gpu_settings().items()}
        runs["training_gpu"] = partial(run_training, TrainingBenchConfig(), "cuda")
    else:
        print("stable_diffusion_gpu, training_gpu: skipped, this machine has no CUDA device")
    if best_device() == "mps":
        runs["mini_mps"] = partial(run, BenchConfig(), "mps")
    unknown = sorted(set(only) - set(runs))
    if unknown:
        raise ValueError(f"no benchmark {unknown} on this machine; expected some of {list(runs)}")
    for name in only or runs:
        result = runs[name]()
        write_json(out / f"{name}.json", result)
        shown = {key: value for key, value in result.items() if key not in ("settings", "machine")}
        print(f"{name}: {json.dumps(shown)}\n  written to {out / f'{name}.json'}")
    return 0
