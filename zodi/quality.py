"""How good a checkpoint's transfer is, measured on the miniature, where the true target images are known.

Three questions, a table each: do the images look like the domain (luminance, colour histograms, a classifier), is the
layout still there (a judge's mIoU against the labels), and is it of use (adaptation, share of the gap closed)? The
scenes are those that the adaptation trains on; neither the checkpoint nor the graders have seen them, and the test
scenes serve the adaptation's mIoU only.
"""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from zodi import adaptation, diffusion, evaluation, scenes, tables, transfer
from zodi.adaptation import VARIANTS, recipe
from zodi.datasets import FolderDataset, open_split, write_miniature
from zodi.domains import SOURCE, TARGETS
from zodi.graders import GraderConfig, Graders, classify, judge_miou, load_or_train
from zodi.labels import CITYSCAPES
from zodi.runs import METRICS_FILE, atomic_path, read_json, save_metrics, settings_hash
from zodi.transfer_folder import run_settings, transfer_folder
from zodi.weather import grey

METHODS = ("photometric", "vae_round_trip", "clear_prompt", "sdedit", "controlnet_only", "stochastic_inversion")
PLAIN_BASELINES = ("photometric", "clear_prompt", "vae_round_trip")
SEED_ROWS = ("source_only", "oracle", *PLAIN_BASELINES, "sdedit", "controlnet_only", "zodi")
SIMILARITY_ROWS = ("zodi", "zodi_no_similarity")
# One set of images serves all domains.
SHARED_METHODS = ("vae_round_trip",)
RESULT_TABLES = ("images", "mIoU", "gap_closed", "similarity", "verdicts")


@dataclass(frozen=True)
class QualityConfig:
    """Settings of a measurement.

    Attributes:
        model: "mini" or a folder in diffusers' format.
        train, test: scenes of the data set; the first `scenes` training scenes are graded.
        scenes: number of graded scenes, at most `train`.
        domains: target domains.
        seeds: seeds of every row.
        similarity_seeds: seeds of the rows with and without similarity term.
        steps: optimisation steps of a training.
        speed_images: images a worker in the measurement of speed.
        tuning_scenes: pretraining scenes on which settings are tried.
        graders: settings of the graders' training.
    """

    model: str = "mini"
    train: int = 150
    test: int = 100
    scenes: int = 100
    domains: tuple[str, ...] = TARGETS
    seeds: int = 3
    similarity_seeds: int = 5
    steps: int = 200
    speed_images: int = 8
    tuning_scenes: int = 24
    graders: GraderConfig = field(default_factory=GraderConfig)

    def __post_init__(self) -> None:
        unknown = [domain for domain in self.domains if domain not in TARGETS]
        if unknown or not self.domains:
            raise ValueError(f"domains: found {list(self.domains)}, expected some of {list(TARGETS)}")
        if not 1 <= self.scenes <= self.train:
            raise ValueError(f"scenes={self.scenes}: expected 1 .. train = {self.train}")
        if self.seeds < 2 or self.similarity_seeds < 2:
            raise ValueError("seeds, similarity_seeds: expected at least 2, one seed has no standard error")


# ---------------------------------------------------------------- measures of images


def luminance(images: Sequence[np.ndarray]) -> float:
    """Mean luminance of images uint8 (H, W, 3), grey levels 0 .. 255."""
    return float(np.mean([grey(image).mean() for image in images]))


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
    """Measures of images that shall look like `domain`.

    Args:
        graders: judge and classifier.
        images: uint8 (H, W, 3), all of one size.
        labels: their label maps, uint8 (H, W).
        truth: the true target images of the same scenes.
        domain: what the classifier should say.

    Returns:
        `luminance` (grey levels), `luminance_error` (to the truth's, grey levels), `histogram_distance` (grey
        levels), `classified` (share of the images, percent), `judge` (mIoU, percent).
    """
    images, truth = list(images), list(truth)
    mean = luminance(images)
    return {
        "luminance": mean,
        "luminance_error": mean - luminance(truth),
        "histogram_distance": histogram_distance(images, truth),
        "classified": 100 * float(np.mean([name == domain for name in classify(graders, images)])),
        "judge": judge_miou(graders, images, list(labels)),
    }


def with_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `judge_share`: the judge's mIoU as a share of what it reaches on the truth of the domain, percent."""
    truth = frame.loc[frame["row"] == "truth"].set_index("domain")["judge"]
    return frame.assign(judge_share=100 * frame["judge"] / frame["domain"].map(truth))


def image_table(config: QualityConfig, out: Path, graders: Graders) -> pd.DataFrame:
    """`grade` for every domain and row: source, the methods, the truth's VAE round trip, the truth."""
    model = diffusion.load(config.model)
    train = open_split(out / "data", "train")
    source = [train[i] for i in range(config.scenes)]
    labels, keys = [sample.label for sample in source], [sample.key for sample in source]
    rows = []
    for domain in tqdm(config.domains, "grade", unit="domain"):
        true_images = open_split(out / "data", f"train_{domain}")
        truth = [true_images[i].image for i in range(config.scenes)]
        round_trip = transfer.domain_config(domain, "vae_round_trip", model.defaults)
        groups = {"source": [sample.image for sample in source]}
        for method in METHODS:
            images = _synth(out, domain, method)
            groups[method] = [images[i].image for i in range(config.scenes)]
        groups["truth_round_trip"] = transfer.transfer_images(model, truth, None, keys, round_trip)
        groups["truth"] = truth
        for row, images in groups.items():
            rows.append({"domain": domain, "row": row} | grade(graders, images, labels, truth, domain))
    return with_share(pd.DataFrame(rows))


# ---------------------------------------------------------------- jobs, one process each


def _workers() -> ProcessPoolExecutor:
    """Processes of one thread each: side by side they do more than one process with many threads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,))


def _run_all(title: str, function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Any]:
    """Results of `function(*job)` in the order of the jobs, with a bar."""
    with _workers() as pool:
        futures = [pool.submit(_quiet, function, *job) for job in jobs]
        for future in tqdm(as_completed(futures), title, len(futures), unit="job"):
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
                raise future.exception()
        return [future.result() for future in futures]


def _quiet(function: Callable[..., Any], *arguments: Any) -> Any:
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        return function(*arguments)


def _synth_folder(out: Path, domain: str, method: str) -> Path:
    return out / "transfer" / ("all" if method in SHARED_METHODS else domain) / method


def _synth(out: Path, domain: str, method: str) -> FolderDataset:
    return open_split(out / "data", "train", images=_synth_folder(out, domain, method) / "images")


def transfer_job(config: QualityConfig, out: Path, domain: str, method: str) -> None:
    """Transfer the training scenes; images of other settings or another checkpoint are replaced."""
    model = None if method in transfer.WITHOUT_MODEL else diffusion.load(config.model)
    defaults = model.defaults if model is not None else None
    settings = transfer.domain_config(domain, method, defaults)
    folder = _synth_folder(out, domain, method)
    found = folder / "settings.json"
    if found.exists() and read_json(found)["settings_hash"] != settings_hash(run_settings(model, settings, CITYSCAPES)):
        shutil.rmtree(folder)
    train = out / "data" / "train"
    report = transfer_folder(
        model, train / "images", train / "labels", folder, settings, CITYSCAPES, progress=False
    )  # fmt: skip
    if not report.ok:
        raise ValueError(f"{folder}: {len(report.errors)} images failed, see report.json there")


def adapt_job(config: QualityConfig, out: Path, variant: str, domain: str, seed: int) -> None:
    """Train and test one network; domain "" tests on all domains. A finished run of the same settings stays."""
    start = time.monotonic()
    row = VARIANTS[variant]
    settings = recipe("mini", variant, steps=config.steps, seed=seed)
    source = open_split(out / "data", "train")
    record: dict[str, Any] = {"data": read_json(out / "data" / "dataset.json"), "variant": variant, "config": settings}
    second = None
    if variant == "oracle":
        second = open_split(out / "data", f"train_{domain}")
    elif row.method is not None:
        second = _synth(out, domain, row.method)
        folder = _synth_folder(out, domain, row.method)
        record["transfer"] = read_json(folder / "settings.json")["settings_hash"]
    run = out / "runs" / variant / (domain or "all") / f"seed{seed}"
    if (run / METRICS_FILE).exists() and read_json(run / METRICS_FILE)["settings_hash"] == settings_hash(record):
        return
    network, history = adaptation.train(settings, source, second, None)
    tests = {name: open_split(out / "data", f"test/{name}") for name in _tested(config, domain)}
    scores = {name: evaluation.evaluate(network, test, CITYSCAPES, batch_size=10) for name, test in tests.items()}
    metrics = {
        "variant": variant,
        "domain": domain,
        "network": settings.network,
        "seed": seed,
        "images_seen": settings.steps * settings.batch_size * (1 if second is None else 2),
        "loss": history["loss"].tail(10).mean(),
        **evaluation.by_domain(scores),
    }
    save_metrics(run, "adapt", record, metrics, time.monotonic() - start)


def _tested(config: QualityConfig, domain: str) -> list[str]:
    return [domain] if domain else [SOURCE, *config.domains]


def speed_job(config: QualityConfig, out: Path) -> tuple[int, float]:
    """Transfer some images of every domain; returns how many, and the seconds without loading."""
    model = diffusion.load(config.model)
    split = open_split(out / "data", "train")
    samples = [split[i] for i in range(min(config.speed_images, len(split)))]
    arguments = [
        [sample.image for sample in samples],
        [CITYSCAPES.colorize(sample.label) for sample in samples],
        [sample.key for sample in samples],
    ]
    transfer.transfer_images(model, *arguments, transfer.domain_config("fog", defaults=model.defaults))
    start = time.perf_counter()
    for domain in config.domains:
        transfer.transfer_images(model, *arguments, transfer.domain_config(domain, defaults=model.defaults))
    return len(samples) * len(config.domains), time.perf_counter() - start


def images_per_second(config: QualityConfig, out: Path) -> float:
    """ZoDi's throughput over all domains with one process a core."""
    results = _run_all("measure speed", speed_job, [(config, out)] * os.cpu_count())
    return sum(images / seconds for images, seconds in results)


def checkpoint_megabytes(model: str) -> float:
    """Size of the checkpoint's weights on disk."""
    folder = diffusion.MINI_FOLDER if model == "mini" else Path(model)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6


# ---------------------------------------------------------------- the choice of settings


def tuning_scenes(config: QualityConfig) -> list[int]:
    """The last pretraining scenes: no checkpoint of the shipped size and no grader has seen them."""
    return list(scenes.PRETRAIN_SEEDS[-config.tuning_scenes :])


def try_job(config: QualityConfig, out: Path, domain: str, changes: dict[str, Any]) -> dict[str, Any]:
    """`grade` of ZoDi with changed settings on the tuning scenes, and seconds an image."""
    model, graders = diffusion.load(config.model), load_or_train(config.graders, out / "graders")
    size = (config.graders.height, config.graders.width)
    seeds = tuning_scenes(config)
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


def try_settings(config: QualityConfig, out: Path, grid: dict[str, list[Any]]) -> pd.DataFrame:
    """Every combination of transfer settings in every domain, on pretraining scenes; for the choice of defaults.

    Args:
        config: the settings; `tuning_scenes` says how many scenes.
        out: folder of the graders; the table goes to `out/tried.csv`.
        grid: field of `TransferConfig` -> values to try.

    Returns:
        One line a domain and combination: what was tried, the measures of `grade`, `judge_share` and `seconds`.
    """
    load_or_train(config.graders, out / "graders")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    jobs = [(config, out, domain, changes) for changes in combinations for domain in config.domains]
    frame = pd.DataFrame(_run_all("try", try_job, jobs))
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


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean mIoU on the target: rows are variants, columns domains."""
    return tables.summary(tables.on_target(runs)).pivot_table("mean", "variant", "domain", sort=False)


def similarity_effect(runs: pd.DataFrame) -> pd.DataFrame:
    """What the similarity term changes: mean and standard error of the paired difference, and seeds, by domain."""
    pairs = tables.paired(runs, "zodi_no_similarity")
    effect = tables.gains(pairs[pairs["variant"] == "zodi"]).set_index("domain")
    return effect.assign(error=effect["std"] / np.sqrt(effect["seeds"]))[["mean", "error", "seeds"]]


def verdicts(images: pd.DataFrame, runs: pd.DataFrame, speed: float, megabytes: float) -> pd.DataFrame:
    """The table of goals.

    Args:
        images: from `image_table`.
        runs: tidy frame of `zodi.tables.collect` with the rows `SEED_ROWS` and `SIMILARITY_ROWS`.
        speed: images a second.
        megabytes: size of the checkpoint.

    Returns:
        Columns measure, goal, measured, verdict ("met", "missed" or "-" where the goal is to know).
    """
    zodi = images[images["row"] == "stochastic_inversion"].set_index("domain")
    truth = images[images["row"] == "truth"].set_index("domain")
    domains = list(zodi.index)
    means, closed = _means(runs), tables.gap_closed(runs)
    source_beaten = _beats(runs, "source_only", domains)
    best_plain = means.loc[list(PLAIN_BASELINES)].max()
    plain_beaten = [domain for domain in domains if means.loc["zodi", domain] > best_plain[domain]]
    needed = min(4, len(domains))
    mean_closed = closed.loc[tables.label("zodi")].mean()
    ablations = means.loc[["sdedit", "controlnet_only"]].mean(axis=1)
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
            "within 10 in every domain",
            listed(zodi["luminance_error"], "{:+.1f}"),
            bool((zodi["luminance_error"].abs() <= 10).all()),
        ),
        (
            "domain classifier agrees, % of the images",
            ">= 95 in every domain",
            listed(zodi["classified"]),
            bool((zodi["classified"] >= 95).all()),
        ),
        (
            "layout: judge's mIoU, % of the truth's",
            ">= 80 in every domain",
            listed(zodi["judge_share"]),
            bool((zodi["judge_share"] >= 80).all()),
        ),
        (
            "ZoDi better than source only by two standard errors",
            f"{len(domains)} of {len(domains)} domains",
            f"{len(source_beaten)} ({', '.join(source_beaten) or 'none'})",
            len(source_beaten) == len(domains),
        ),
        (
            "ZoDi better than photometric, clear prompt and VAE round trip",
            f">= {needed} of {len(domains)} domains",
            f"{len(plain_beaten)} ({', '.join(plain_beaten) or 'none'})",
            len(plain_beaten) >= needed,
        ),
        (
            "gap from source only to oracle closed, mean of the domains",
            ">= 60 %",
            f"{mean_closed:.0f} % ({listed(closed.loc[tables.label('zodi')])})",
            mean_closed >= 60,
        ),
        (
            "ZoDi against SDEdit and ControlNet only, mean mIoU",
            "better than both",
            f"{means.loc['zodi'].mean():.1f} against {ablations['sdedit']:.1f} and {ablations['controlnet_only']:.1f}",
            means.loc["zodi"].mean() > ablations.max(),
        ),
        (
            "effect of the similarity term, points of mIoU ± standard error",
            "known",
            ", ".join(f"{d} {similar['mean'][d]:+.1f} ± {similar['error'][d]:.1f}" for d in domains),
            None,
        ),
        ("size of the checkpoint, MB", "<= 40", f"{megabytes:.1f}", megabytes <= 40),
        ("transfer, images/s on this machine's cores", ">= 2", f"{speed:.2f}", speed >= 2),
    ]
    frame = pd.DataFrame(lines, columns=["measure", "goal", "measured", "verdict"])
    return frame.assign(verdict=[{True: "met", False: "missed", None: "-"}[v] for v in frame["verdict"]])


# ---------------------------------------------------------------- all of it


def read_results(folder: Path | str) -> dict[str, pd.DataFrame]:
    """The tables that `measure` wrote to `folder`, those that are there.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = {name: Path(folder) / f"{name}.csv" for name in RESULT_TABLES}
    results = {name: pd.read_csv(file, index_col=0) for name, file in files.items() if file.exists()}
    if not results:
        raise FileNotFoundError(f"{folder}: found none of the tables {list(RESULT_TABLES)}; run `make quality` first")
    return results


def jobs_of_rows(config: QualityConfig) -> list[tuple[str, str, int]]:
    """(variant, domain, seed) of every training."""
    jobs = []
    for variant in dict.fromkeys((*SEED_ROWS, *SIMILARITY_ROWS)):
        shared = VARIANTS[variant].method in SHARED_METHODS or variant == "source_only"
        seeds = max(config.seeds, config.similarity_seeds) if variant in SIMILARITY_ROWS else config.seeds
        jobs += [(variant, domain, seed) for seed in range(seeds) for domain in ([""] if shared else config.domains)]
    return jobs


def measure(config: QualityConfig, out: Path, images_only: bool = False) -> dict[str, pd.DataFrame]:
    """Measure a checkpoint; goes on where it was stopped. What another checkpoint left in `out` is replaced.

    Args:
        config: the settings.
        out: folder of data, graders, transfers, runs and tables.
        images_only: leave out the trainings, which take most of the time, and the verdicts.

    Returns:
        `RESULT_TABLES`, also written to `out` as CSV and Markdown.
    """
    start = time.monotonic()
    write_miniature(out / "data", config.train, config.test, config.domains)
    graders = load_or_train(config.graders, out / "graders")
    # The slow methods first, so that no process is idle at the end.
    pairs = [
        (config, out, domain, method)
        for method in reversed(METHODS)
        for domain in (config.domains[:1] if method in SHARED_METHODS else config.domains)
    ]
    _run_all("transfer", transfer_job, pairs)
    results = {"images": image_table(config, out, graders).round(2)}
    if not images_only:
        _run_all("adapt", adapt_job, [(config, out, *job) for job in jobs_of_rows(config)])
        runs = tables.collect(out)
        speed, megabytes = images_per_second(config, out), checkpoint_megabytes(config.model)
        results["mIoU"] = tables.main_table(runs)
        results["gap_closed"] = tables.gap_closed(runs).round(1)
        results["similarity"] = similarity_effect(runs).round(2)
        results["verdicts"] = verdicts(results["images"], runs, speed, megabytes)
    for name, table in results.items():
        tables.write_table(table.reset_index(drop=isinstance(table.index, pd.RangeIndex)), out / name)
    plain = {name: table.reset_index().to_dict("records") for name, table in results.items()}
    save_metrics(out, "quality", dataclasses.asdict(config), plain, time.monotonic() - start)
    return results
