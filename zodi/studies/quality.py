"""How good a checkpoint's transfer is, measured on the miniature, where the true target images are known.

Three questions, one table each: do the images look like the domain (luminance, colour histograms, a classifier), is the
layout still there (a judge's mIoU against the labels), and is the transfer useful (adaptation, share of the gap
closed)? The scenes are those that the adaptation trains on; neither the checkpoint nor the graders have seen them, and
the test scenes are used only for the adaptation's mIoU. The workflow's profile "quality" runs the transfers and the
training.
"""

import itertools
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from zodi import diffusion, transfer
from zodi.datasets import dataset_info, open_split
from zodi.domains import SOURCE, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.miniature.graders import GraderConfig, Graders, classify, judge_miou, load_or_train
from zodi.miniature.weather import grey
from zodi.studies import findings, tables
from zodi.studies.bench import BenchConfig, cpu_images_per_second
from zodi.support.files import atomic_path
from zodi.support.runs import device_text, native_bfloat16, save_metrics

METHODS = ("photometric", "vae_round_trip", "clear_prompt", "sdedit", "controlnet_only", "stochastic_inversion")
PLAIN_BASELINES = ("photometric", "clear_prompt", "vae_round_trip", *findings.PLAIN)
RESULT_TABLES = ("images", "mIoU", "gap_closed", "similarity", "verdicts")


@dataclass(frozen=True)
class QualityConfig:
    """Settings of a measurement.

    Attributes:
        model: "mini" or a folder in diffusers' format.
        scenes: how many training scenes are graded, from the first on.
        speed_images: images per process and domain when speed is measured.
        graders: settings of the graders' training.
    """

    model: str = "mini"
    scenes: int = 100
    speed_images: int = 8
    graders: GraderConfig = field(default_factory=GraderConfig)

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.speed_images < 1:
            raise ValueError(f"scenes={self.scenes}, speed_images={self.speed_images}: expected at least 1")


# ---------------------------------------------------------------- measures of images


def luminance(images: Sequence[np.ndarray]) -> float:
    """Mean luminance of images uint8 (H, W, 3), grey levels 0 .. 255."""
    return float(np.mean([grey(image).mean() for image in images]))


def sharpness(images: Sequence[np.ndarray]) -> float:
    """Mean absolute difference of horizontal neighbours in luminance, images uint8 (H, W, 3), grey levels."""
    return float(np.mean([np.abs(np.diff(grey(image), axis=1)).mean() for image in images]))


def histogram_distance(images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Earth mover's distance of two sets of images uint8 (H, W, 3), mean of the channels, in grey levels.

    In one dimension it is the area between the two cumulative histograms.
    """
    cumulative = [np.cumsum(_histograms(group), axis=1) for group in (images, others)]
    return float(np.abs(cumulative[0] - cumulative[1]).sum(1).mean())


def _histograms(images: Sequence[np.ndarray]) -> np.ndarray:
    """Shares of the 256 values in each channel over all images, (3, 256)."""
    counts = sum(np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]) for image in images)
    return counts / counts.sum(1, keepdims=True)


def grade(
    graders: Graders,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    domain: str,
) -> dict[str, float]:
    """Measures of images that should look like `domain`.

    Args:
        graders: judge and classifier.
        images: uint8 (H, W, 3), all of the same size.
        labels: their label maps, uint8 (H, W).
        truth: the true target images of the same scenes.
        domain: what the classifier should say.

    Returns:
        `luminance` (grey levels), `luminance_error` (from the truth's, grey levels), `sharpness` (share of the truth's,
        percent), `histogram_distance` (grey levels), `classified` (share of the images, percent), `judge` (mIoU,
        percent).
    """
    images, truth = list(images), list(truth)
    mean = luminance(images)
    return {
        "luminance": mean,
        "luminance_error": mean - luminance(truth),
        "sharpness": 100 * sharpness(images) / sharpness(truth),
        "histogram_distance": histogram_distance(images, truth),
        "classified": 100 * float(np.mean([name == domain for name in classify(graders, images)])),
        "judge": judge_miou(graders, images, list(labels)),
    }


def with_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `judge_share`: the judge's mIoU as a share of what it reaches on the truth of the domain, percent."""
    truth = frame.loc[frame["row"] == "truth"].set_index("domain")["judge"]
    return frame.assign(judge_share=100 * frame["judge"] / frame["domain"].map(truth))


def image_table(
    config: QualityConfig, results: Path, graders: Graders, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> pd.DataFrame:
    """`grade` for every domain and row: source, the transfers below `results`, the truth's VAE round trip, the truth.

    Raises:
        ValueError: if there are fewer training scenes than should be graded.
    """
    model = diffusion.load(config.model, device=device, dtype=dtype)
    data = results / "data"
    train = open_split(data, "train")
    if len(train) < config.scenes:
        raise ValueError(f"{data}: found {len(train)} training scenes, expected at least scenes={config.scenes}")
    source = [train[i] for i in range(config.scenes)]
    labels, keys = [sample.label for sample in source], [sample.key for sample in source]
    rows = []
    for domain in tqdm(target_domains(results), "grade", unit="domain"):
        true_images = open_split(data, f"train_{domain}")
        truth = [true_images[i].image for i in range(config.scenes)]
        round_trip = transfer.domain_config(domain, "vae_round_trip", model.defaults)
        groups = {"source": [sample.image for sample in source]}
        for method in METHODS:
            images = open_split(data, "train", images=results / "transfer" / domain / method / "images")
            groups[method] = [images[i].image for i in range(config.scenes)]
        groups["truth_round_trip"] = transfer.transfer_images(model, truth, None, keys, round_trip)
        groups["truth"] = truth
        for row, images in groups.items():
            rows.append({"domain": domain, "row": row} | grade(graders, images, labels, truth, domain))
    return with_share(pd.DataFrame(rows))


def target_domains(results: Path) -> list[str]:
    """The target domains of the data set below `results`."""
    return [domain for domain in dataset_info(results / "data")["domains"] if domain != SOURCE]


# ---------------------------------------------------------------- speed and size


def images_per_second(config: QualityConfig, domains: Sequence[str]) -> float:
    """ZoDi's images per second here, one process per core, in the fastest type, equally many of every domain."""
    fastest = "bfloat16" if native_bfloat16() else "float32"
    images = {"images": config.speed_images, "batch_size": config.speed_images}
    bench_of = partial(BenchConfig, config.model, dtype=fastest, **images)
    return len(domains) / sum(1 / cpu_images_per_second(bench_of(domain=domain)) for domain in domains)


def checkpoint_megabytes(model: str) -> float:
    """Size of the checkpoint's weights on disk."""
    folder = diffusion.MINI_FOLDER if model == "mini" else Path(model)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6


def strengths_of(model: str) -> dict[str, float]:
    """The strength with which a checkpoint is used in every target domain, 0 .. 1."""
    defaults = diffusion.load(model).defaults
    return {domain: transfer.domain_config(domain, defaults=defaults).strength for domain in TARGETS}


# ---------------------------------------------------------------- the choice of settings


def tuning_scenes(count: int) -> list[int]:
    """The last pretraining scenes: no checkpoint of the shipped size and no grader has seen them."""
    return list(scenes.PRETRAIN_SEEDS[-count:])


def try_one(
    config: QualityConfig,
    folder: Path,
    count: int,
    domain: str,
    changes: dict[str, Any],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """`grade` of ZoDi with changed settings on `tuning_scenes(count)`, and seconds per image."""
    model = diffusion.load(config.model, device=device, dtype=dtype)
    graders = load_or_train(config.graders, folder, device)
    size = (config.graders.height, config.graders.width)
    seeds = tuning_scenes(count)
    source = [scenes.render(seed, SOURCE, *size) for seed in seeds]
    truth = [scenes.render(seed, domain, *size).image for seed in seeds]
    labels = [scene.label for scene in source]
    settings = transfer.domain_config(domain, defaults=model.defaults, **changes)
    start = time.perf_counter()
    images = transfer.transfer_images(
        model,
        [scene.image for scene in source],
        [CITYSCAPES.colorize(label) for label in labels],
        [str(seed) for seed in seeds],
        settings,
    )
    seconds = (time.perf_counter() - start) / len(images)
    graded = grade(graders, images, labels, truth, domain)
    graded["judge_share"] = 100 * graded["judge"] / judge_miou(graders, truth, labels)
    tried = {name: getattr(settings, name) for name in ("strength", *changes)}
    return {"domain": domain} | tried | graded | {"seconds": seconds}


def try_settings(
    config: QualityConfig,
    out: Path,
    grid: dict[str, list[Any]],
    domains: Sequence[str] = TARGETS,
    count: int = 24,
    processes: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """Every combination of transfer settings in every domain, on pretraining scenes; for the choice of defaults.

    Args:
        config: the settings.
        out: folder of the graders; the table goes to `out/tried.csv`.
        grid: field of `TransferConfig` -> values to try.
        domains: target domains.
        count: scenes.
        processes: processes side by side, with one thread each; None = one per core, or one with any other device.
        device: where transfers and graders compute.
        dtype: of the diffusion model.

    Returns:
        One line per domain and combination: what was tried, the measures of `grade`, `judge_share` and `seconds`.
    """
    load_or_train(config.graders, out / "graders", device)
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    graders = out / "graders"
    jobs = [(config, graders, count, domain, changes, device, dtype) for changes in combinations for domain in domains]
    if processes is None and torch.device(device).type != "cpu":
        processes = 1
    # Side by side they achieve more than one process with many threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = list(tqdm(pool.map(try_one, *zip(*jobs, strict=True)), "try", len(jobs), unit="job"))
    frame = pd.DataFrame(rows)
    with atomic_path(out / "tried.csv") as temporary:
        frame.to_csv(temporary, index=False, float_format="%.4g")
    return frame


# ---------------------------------------------------------------- the verdict


def _beats(runs: pd.DataFrame, reference: str, domains: Sequence[str]) -> list[str]:
    """Domains in which ZoDi is better than `reference` by more than two standard errors of the paired difference."""
    gains = tables.gains(tables.paired(runs, reference))
    zodi = gains[gains["variant"] == "zodi"].set_index("domain")
    error = zodi["std"] / np.sqrt(zodi["seeds"])
    return [domain for domain in domains if zodi["mean"][domain] > 2 * error[domain]]


def _difference(runs: pd.DataFrame, reference: str) -> tuple[float, float]:
    """ZoDi's mIoU minus the reference's, paired by domain and seed: mean and its standard error, points."""
    pairs = tables.paired(runs, reference)
    gains = pairs.loc[pairs["variant"] == "zodi", "gain"]
    return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean mIoU on the target: rows are variants, columns domains."""
    return tables.summary(tables.on_target(runs)).pivot_table("mean", "variant", "domain", sort=False)


def similarity_effect(runs: pd.DataFrame) -> pd.DataFrame:
    """What the similarity term changes: mean and standard error of the paired difference, and seeds, by domain."""
    pairs = tables.paired(runs, "zodi_no_similarity")
    effect = tables.gains(pairs[pairs["variant"] == "zodi"]).set_index("domain")
    return effect.assign(error=effect["std"] / np.sqrt(effect["seeds"]))[["mean", "error", "seeds"]]


def verdicts(
    images: pd.DataFrame, runs: pd.DataFrame, speed: float, megabytes: float, strengths: Mapping[str, float]
) -> pd.DataFrame:
    """The table of goals.

    Args:
        images: from `image_table`.
        runs: tidy frame of `zodi.studies.tables.collect` with the rows of the profile "quality".
        speed: images per second.
        megabytes: size of the checkpoint.
        strengths: of the transfer, by domain, 0 .. 1.

    Returns:
        Columns measure, goal, measured, verdict ("met", "missed" or "-" where the goal is only to know).
    """
    zodi = images[images["row"] == "stochastic_inversion"].set_index("domain")
    truth = images[images["row"] == "truth"].set_index("domain")
    domains = list(zodi.index)
    means, closed = _means(runs), tables.gap_closed(runs)
    source_beaten = _beats(runs, "source_only", domains)
    plain = [name for name in PLAIN_BASELINES if name in means.index]
    best_plain = means.loc[plain].max()
    plain_beaten = [domain for domain in domains if means.loc["zodi", domain] > best_plain[domain]]
    weak = [domain for domain in domains if strengths[domain] <= 0.75]
    mean_closed = closed.loc[tables.label("zodi")].mean()
    ablations = {name: _difference(runs, name) for name in ("sdedit", "controlnet_only")}
    similar = similarity_effect(runs)

    def listed(values: pd.Series, form: str = "{:.0f}") -> str:
        return ", ".join(f"{domain} {form.format(values[domain])}" for domain in domains)

    lines = []
    if "night" in domains:
        error = 100 * zodi["luminance_error"]["night"] / truth["luminance"]["night"]
        lines.append(("night: luminance against the truth's", "within 15 %", f"{error:+.0f} %", abs(error) <= 15))
    lines += [
        (
            "luminance against the truth's, grey levels",
            "within 6 in every domain",
            listed(zodi["luminance_error"], "{:+.1f}"),
            bool((zodi["luminance_error"].abs() <= 6).all()),
        ),
        (
            "sharpness, % of the truth's",
            "80 .. 115 in every domain",
            listed(zodi["sharpness"]),
            bool(zodi["sharpness"].between(80, 115).all()),
        ),
        (
            "domain classifier agrees, % of the images",
            ">= 98 in every domain",
            listed(zodi["classified"]),
            bool((zodi["classified"] >= 98).all()),
        ),
        (
            "layout: judge's mIoU, % of the truth's",
            ">= 85 in every domain",
            listed(zodi["judge_share"]),
            bool((zodi["judge_share"] >= 85).all()),
        ),
        (
            "ZoDi better than source only by two standard errors",
            f"{len(domains)} of {len(domains)} domains",
            f"{len(source_beaten)} ({', '.join(source_beaten) or 'none'})",
            len(source_beaten) == len(domains),
        ),
        (
            f"ZoDi better than each of {', '.join(map(tables.label, plain))}",
            f"{len(domains)} of {len(domains)} domains",
            f"{len(plain_beaten)} ({', '.join(plain_beaten) or 'none'})",
            len(plain_beaten) == len(domains),
        ),
        (
            "gap from source only to oracle closed, mean of the domains",
            ">= 85 %",
            f"{mean_closed:.0f} % ({listed(closed.loc[tables.label('zodi')])})",
            mean_closed >= 85,
        ),
        (
            "ZoDi against SDEdit and ControlNet only, points of mIoU ± standard error",
            "a difference over two standard errors",
            ", ".join(f"{tables.label(name)} {mean:+.1f} ± {error:.1f}" for name, (mean, error) in ablations.items()),
            all(abs(mean) > 2 * error for mean, error in ablations.values()),
        ),
        (
            "effect of the similarity term, points of mIoU ± standard error",
            "known",
            ", ".join(f"{d} {similar['mean'][d]:+.1f} ± {similar['error'][d]:.1f}" for d in domains),
            None,
        ),
        (
            "strength: how much of the source is left",
            f"<= 0.75 in {min(4, len(domains))} of {len(domains)} domains",
            listed(pd.Series(strengths), "{:.2f}"),
            len(weak) >= min(4, len(domains)),
        ),
        ("size of the checkpoint, MB", "<= 45", f"{megabytes:.1f}", megabytes <= 45),
        ("transfer, images/s on this machine's cores", ">= 4", f"{speed:.2f}", speed >= 4),
    ]
    frame = pd.DataFrame(lines, columns=["measure", "goal", "measured", "verdict"])
    return frame.assign(verdict=[{True: "met", False: "missed", None: "-"}[v] for v in frame["verdict"]])


# ---------------------------------------------------------------- all of it


def read_results(folder: Path | str) -> dict[str, pd.DataFrame]:
    """Those of the tables that `measure` wrote to `folder` that are there.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = {name: Path(folder) / f"{name}.csv" for name in RESULT_TABLES}
    results = {name: pd.read_csv(file, index_col=0) for name, file in files.items() if file.exists()}
    if not results:
        raise FileNotFoundError(f"{folder}: found none of the tables {list(RESULT_TABLES)}; run `make quality` first")
    return results


def measure_images(
    config: QualityConfig, results: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> pd.DataFrame:
    """Grade the transfers that the profile "quality" made; the table goes to `results/images/images.csv`.

    Args:
        config: the settings.
        results: folder of the profile.
        device: where the graders and the diffusion model compute.
        dtype: of the diffusion model, which makes the truth's round trips.
    """
    start = time.monotonic()
    graders = load_or_train(config.graders, results / "graders", device)
    table = image_table(config, results, graders, device, dtype).round(2)
    tables.write_table(table, results / "images" / "images")
    rows, where = table.to_dict("records"), device_text(device, dtype)
    save_metrics(results / "images", "images", config, rows, time.monotonic() - start, where)
    return table


def measure(config: QualityConfig, results: Path) -> dict[str, pd.DataFrame]:
    """The tables and verdicts on what the profile "quality" made; run `measure_images` first.

    Returns:
        `RESULT_TABLES`, also written to `results/quality` as CSV and Markdown.
    """
    start = time.monotonic()
    images = pd.read_csv(results / "images" / "images.csv", index_col=0)
    runs = tables.collect(results)
    speed = images_per_second(config, target_domains(results))
    found = {
        "images": images,
        "mIoU": tables.main_table(runs),
        "gap_closed": tables.gap_closed(runs).round(1),
        "similarity": similarity_effect(runs).round(2),
        "verdicts": verdicts(images, runs, speed, checkpoint_megabytes(config.model), strengths_of(config.model)),
    }
    for name, table in found.items():
        tables.write_table(table.reset_index(drop=isinstance(table.index, pd.RangeIndex)), results / "quality" / name)
    plain = {name: table.reset_index().to_dict("records") for name, table in found.items()}
    save_metrics(results / "quality", "quality", config, plain, time.monotonic() - start)
    return found
