"""Are the estimates of `zodi.estimation` right? Measured on the miniature, where every domain's truth is known.

A candidate is one training; at four steps of it the network is scored on held-out source images, on what the transfer
makes of them, and on the true images of every domain. `table` turns the scores of all candidates into one frame,
`by_domain` and `choices` into the statements that a reader wants to check.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from zodi import estimation
from zodi.adaptation import recipe
from zodi.datasets import AnyDataset, Sample, dataset_info, label_set_of, open_split
from zodi.domains import SOURCE
from zodi.evaluation import image_confusions, image_logits, iou
from zodi.experiment import TrainingSets, train_row, training_sets
from zodi.labels import LabelSet
from zodi.rows import get_row
from zodi.segmentation import DEFAULT_NETWORK, load_network, save_network
from zodi.studies import agreement
from zodi.support.files import atomic_path, folder_name, read_json
from zodi.support.runs import METRICS_FILE, device_text, save_metrics

SCORES_FILE = "scores.npz"
TABLE_FILE = "models.csv"
LAYOUT_FILE = "layout.csv"
CLEANING_FILE = "cleaning.csv"
# A data set without this part lends its source test images, on which no candidate is trained either.
HELD_OUT = "val"
# Transfers of every held-out image, one folder each.
TRANSFERS = ("held_out", "held_out_1")
BATCH = 10
# Confidences are counted in so many bins between 0 and 1.
BINS = 1000
# Scores that do without target images: column -> what readers see. The first is ours, the others are what it must beat.
SCORES = {
    "estimate": "estimate",
    "one_transfer": "estimate, one transfer",
    "source": "source mIoU",
    "photometric": "photometric mIoU",
    "confidence": "mean confidence",
    "atc": "ATC",
}


@dataclass(frozen=True)
class Candidate:
    """One training: row of the tables, domain it is adapted to ("" for source-only), network and seed."""

    variant: str
    domain: str
    network: str
    seed: int

    def folder(self, results: Path) -> Path:
        """Where its scores are."""
        where = results / "candidates" / self.variant / (self.domain or "all")
        return where / folder_name(self.network) / f"seed{self.seed}"


# ---------------------------------------------------------------- one candidate


def run_candidate(
    candidate: Candidate, results: str | Path, method: str = "stochastic_inversion", device: str = "cpu", **changes: Any
) -> Path:
    """Train a candidate and score it after every quarter of the training.

    Args:
        candidate: which one; "zodi_faithful" needs the oracle of its domain, which says what is faithful.
        results: folder with `data/`, `transfer/` and `held_out*/`, made by a profile with `candidates`.
        method: of the transfers that the estimates are made on.
        device: where it is trained and scored.
        changes: other values for settings of the recipe, see `zodi.adaptation.recipe`.

    Returns:
        The file of its metrics, beside its scores.
    """
    start, results = time.monotonic(), Path(results)
    out = candidate.folder(results)
    config = recipe("mini", candidate.variant, network=candidate.network, seed=candidate.seed, **changes)
    sets = candidate_sets(candidate, results)
    quarters = sorted({max(1, round(config.steps * part / 4)) for part in (1, 2, 3, 4)})
    scored = scored_sets(results, candidate, method)
    scores: dict[str, list[np.ndarray]] = {}

    def score(step: int, network: nn.Module) -> None:
        if step in quarters:
            for name, values in score_network(network, scored, sets.first.label_set).items():
                scores.setdefault(name, []).append(values)

    trained = train_row(sets, config, None, callback=score, device=device)
    save_network(trained.network, out / "network")
    with atomic_path(out / SCORES_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, steps=quarters, **{name: np.stack(values) for name, values in scores.items()})
    return save_metrics(out, "candidate", config, trained.record, time.monotonic() - start, device_text(device))


def candidate_sets(candidate: Candidate, results: Path) -> TrainingSets:
    """What a candidate trains on, from what the profile made."""
    row = get_row(candidate.variant)
    synth = results / "transfer" / candidate.domain / row.method if row.method else None
    reference = None
    if row.faithful_only:
        reference = load_network(reference_of(candidate.domain).folder(results) / "network")
    return training_sets(row, results / "data", candidate.domain, synth, reference)


def reference_of(domain: str) -> Candidate:
    """The network that says whether images of a domain kept their layout: the domain's oracle."""
    return Candidate("oracle", domain, DEFAULT_NETWORK, 0)


def scored_sets(results: Path, candidate: Candidate, method: str) -> dict[str, AnyDataset]:
    """Data sets to score on, by `KIND/DOMAIN`: the held-out source images, what is made of them, and the truth."""
    data = results / "data"
    held_out = HELD_OUT if (data / HELD_OUT).is_dir() else f"test/{SOURCE}"
    sets: dict[str, AnyDataset] = {f"source/{SOURCE}": open_split(data, held_out)}
    for domain in [name for name in dataset_info(data)["domains"] if name != SOURCE]:
        for part in TRANSFERS:
            images = results / part / domain / method / "images"
            sets[f"{part}/{domain}"] = open_split(data, held_out, images=images)
        images = results / TRANSFERS[0] / domain / "photometric" / "images"
        sets[f"photometric/{domain}"] = open_split(data, held_out, images=images)
        sets[f"truth/{domain}"] = open_split(data, f"test/{domain}")
    if candidate == reference_of(candidate.domain):
        sets[f"shuffled/{candidate.domain}"] = shuffled(sets[f"{TRANSFERS[0]}/{candidate.domain}"])
    return sets


def shuffled(dataset: AnyDataset) -> list[Sample]:
    """Every image with the label map of the next one: a transfer that lost its layout, and nothing else."""
    samples = [dataset[index] for index in range(len(dataset))]
    following = samples[1:] + samples[:1]
    return [replace(sample, label=other.label) for sample, other in zip(samples, following, strict=True)]


def score_network(network: nn.Module, sets: Mapping[str, AnyDataset], label_set: LabelSet) -> dict[str, np.ndarray]:
    """Confusion matrices int32 (N, C, C) on every set, and as `confidence/SET` how often each confidence occurs."""
    scores = {}
    for name, dataset in sets.items():
        scores[name] = image_confusions(network, dataset, label_set.num_classes, BATCH).astype(np.int32)
        if name.split("/")[0] in ("source", TRANSFERS[0]):
            scores[f"confidence/{name}"] = confidence_histogram(network, dataset)
    return scores


@torch.inference_mode()
def confidence_histogram(network: nn.Module, dataset: AnyDataset) -> np.ndarray:
    """Number of pixels by the probability of their most likely class, int64 (BINS,), from 0 to 1."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for first in range(0, len(dataset), BATCH):
        images = [dataset[i].image for i in range(first, min(first + BATCH, len(dataset)))]
        confidence = image_logits(network, np.stack(images)).softmax(1).amax(1)
        counts += torch.bincount((confidence * BINS).long().clamp(max=BINS - 1).flatten(), minlength=BINS)
    return counts.numpy()


# ---------------------------------------------------------------- all candidates


def mean_confidence(histogram: np.ndarray) -> float:
    """Mean of a `confidence_histogram`, percent."""
    return float(100 * (histogram * (np.arange(BINS) + 0.5) / BINS).sum() / histogram.sum())


def average_thresholded_confidence(histogram: np.ndarray, source: np.ndarray, accuracy: float) -> float:
    """ATC (Garg et al., ICLR 2022): share of pixels more confident than a threshold chosen on the source, percent.

    Args:
        histogram: `confidence_histogram` on the images in question.
        source: the same on labelled source images.
        accuracy: share of right pixels on the source, 0 .. 1; the threshold leaves this share of its pixels above.
    """
    above_source = np.cumsum(source[::-1])[::-1] / source.sum()
    threshold = int(np.abs(above_source - accuracy).argmin())
    return float(100 * histogram[threshold:].sum() / histogram.sum())


def table(results: str | Path) -> pd.DataFrame:
    """Scores and truth of all candidates, a line for each candidate, step and domain.

    Returns:
        `variant`, `adapted_to`, `network`, `seed`, `step`, `steps`, `domain`, the columns of `SCORES`, `low` and `high`
        of the estimate, and `truth`; percent. Means are over the classes that are not rare in the held-out images.

    Raises:
        FileNotFoundError: if there is no candidate.
    """
    results = Path(results)
    names = label_set_of(results / "data").names
    rows = []
    for file in sorted(results.glob(f"candidates/**/{SCORES_FILE}")):
        metrics = read_json(file.parent / METRICS_FILE)["metrics"]
        run = {name: metrics[name] for name in ("variant", "network", "seed")} | {"adapted_to": metrics["domain"]}
        scores = dict(np.load(file))
        domains = [name.partition("/")[2] for name in scores if name.startswith("truth/")]
        for index, step in enumerate(scores["steps"]):
            now = {name: values[index] for name, values in scores.items() if name != "steps"}
            where = run | {"step": int(step), "steps": int(scores["steps"][-1])}
            rows += [where | {"domain": domain} | _line(now, domain, names) for domain in domains]
    if not rows:
        raise FileNotFoundError(f"{results}: no scores in candidates/; `python -m zodi.studies candidate` makes them")
    return pd.DataFrame(rows)


def load(results: str | Path, record: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """`table` and `layout_table` of `results`, or the recorded ones when there are no candidates.

    Returns:
        Both frames and where they come from, a phrase to print.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if any(Path(results).glob(f"candidates/**/{SCORES_FILE}")):
        return table(results), layout_table(results), f"the candidates below {results}"
    files = [Path(record) / name for name in (TABLE_FILE, LAYOUT_FILE)]
    if not all(file.exists() for file in files):
        raise FileNotFoundError(
            f"found no candidates below {results} and no record {record}; expected one of them. "
            "Run a profile with candidates first, for example `make reproduce PROFILE=camvid`."
        )
    frame, layout = (pd.read_csv(file, keep_default_na=False) for file in files)
    return frame, layout, f"our recorded candidates in {record} (there are none below {results})"


def write_record(results: str | Path, record: str | Path) -> None:
    """Write what `load` reads, percent with three decimals."""
    for name, frame in {TABLE_FILE: table(results), LAYOUT_FILE: layout_table(results)}.items():
        with atomic_path(Path(record) / name) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.3f")


def _line(scores: Mapping[str, np.ndarray], domain: str, names: tuple[str, ...]) -> dict[str, float]:
    transfers = np.stack([scores[f"{part}/{domain}"] for part in TRANSFERS])
    found = estimation.estimate_from(transfers, names)
    common = [names.index(name) for name in found.classes.index if name not in found.rare]

    def mean(matrices: np.ndarray) -> float:
        return float(100 * np.nanmean(iou(matrices.sum(0))[common]))

    source = scores[f"source/{SOURCE}"].sum(0)
    histograms = [scores[f"confidence/{name}"] for name in (f"{TRANSFERS[0]}/{domain}", f"source/{SOURCE}")]
    return {
        "estimate": found.miou,
        "low": found.low,
        "high": found.high,
        "one_transfer": mean(transfers[0]),
        "source": mean(scores[f"source/{SOURCE}"]),
        "photometric": mean(scores[f"photometric/{domain}"]),
        "confidence": mean_confidence(histograms[0]),
        "atc": average_thresholded_confidence(*histograms, np.trace(source) / source.sum()),
        "truth": mean(scores[f"truth/{domain}"]),
    }


def by_domain(frame: pd.DataFrame) -> pd.DataFrame:
    """How well every score follows the truth, a line a domain and score.

    Args:
        frame: from `table`.

    Returns:
        `domain`, `score`, `models`, the correlations and `mae` of `zodi.studies.agreement`, `regret`, points: what
        is lost by choosing the model of the best score.
    """
    rows = []
    for domain, part in frame.groupby("domain", sort=False):
        for score in SCORES:
            measures = agreement.agreement(part[score], part["truth"])
            lost = agreement.regret(part[score], part["truth"])
            rows.append({"domain": domain, "score": score, "models": len(part)} | measures | {"regret": lost})
    return pd.DataFrame(rows)


def intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of the truths inside the 95 % intervals, percent, and the mean error, points, raw and corrected, by domain.

    Args:
        frame: from `table`, with the columns of `zodi.studies.agreement.leave_one_domain_out`.
    """
    raw = (frame["truth"] >= frame["low"]) & (frame["truth"] <= frame["high"])
    corrected = (frame["truth"] >= frame["calibrated_low"]) & (frame["truth"] <= frame["calibrated_high"])
    measures = {
        "coverage": 100.0 * raw,
        "mae": (frame["estimate"] - frame["truth"]).abs(),
        "bias": frame["estimate"] - frame["truth"],
        "coverage_calibrated": 100.0 * corrected,
        "mae_calibrated": (frame["calibrated"] - frame["truth"]).abs(),
    }
    return pd.DataFrame(measures).groupby(frame["domain"], sort=False).mean()


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """What choosing the epoch by each rule loses against the best epoch of the same training, points.

    Args:
        frame: from `table`.

    Returns:
        A line a training and domain: `variant`, `adapted_to`, `network`, `seed`, `domain`, `last`, all of `SCORES`.
    """
    rows = []
    run = ["variant", "adapted_to", "network", "seed", "domain"]
    for key, part in frame.groupby(run, sort=False):
        part = part.sort_values("step", ignore_index=True)
        lost = {score: agreement.regret(part[score], part["truth"]) for score in SCORES}
        lost = {"last": float(part["truth"].max() - part["truth"].iloc[-1])} | lost
        rows.append(dict(zip(run, key, strict=True)) | lost)
    return pd.DataFrame(rows)


def cleaning(frame: pd.DataFrame) -> pd.DataFrame:
    """What leaving out the least faithful images does to a training's truth at its last step.

    Args:
        frame: from `table`.

    Returns:
        A line a domain, network and seed that was trained both ways: `zodi`, with all images, and `zodi_faithful`,
        percent, and `difference`, points.
    """
    last = frame[(frame["step"] == frame["steps"]) & (frame["domain"] == frame["adapted_to"])]
    both = last[last["variant"].isin(["zodi", "zodi_faithful"])]
    truth = both.pivot(index=["domain", "network", "seed"], columns="variant", values="truth")
    truth = truth.reindex(columns=["zodi", "zodi_faithful"]).dropna().rename_axis(columns=None)
    return truth.assign(difference=truth["zodi_faithful"] - truth["zodi"]).reset_index()


def layout_table(results: str | Path) -> pd.DataFrame:
    """Does the fidelity score tell images that kept their layout from those that lost it? A line for each oracle.

    Returns:
        `fidelity` and `fidelity_lost`, mean over the generated images with their own labels and with others', percent;
        `threshold` from all other domains, percent; `accuracy`, balanced, of this threshold on the domain, percent;
        `abstains`: whether an estimate would be refused for the domain, and for the shuffled images (`abstains_lost`).

    Raises:
        FileNotFoundError: if there is no oracle at all.
    """
    results = Path(results)
    found = {}
    for domain in [name for name in dataset_info(results / "data")["domains"] if name != SOURCE]:
        file = reference_of(domain).folder(results) / SCORES_FILE
        if not file.exists():
            continue
        scores = np.load(file)
        found[domain] = tuple(
            estimation.fidelity(scores[f"{kind}/{domain}"][-1]) for kind in (TRANSFERS[0], "shuffled")
        )
    if not found:
        raise FileNotFoundError(f"{results}: no oracle among the candidates; fidelity needs one as its reference")
    rows = []
    for domain, (kept, lost) in found.items():
        others = [pair for name, pair in found.items() if name != domain] or [(kept, lost)]
        threshold, _ = estimation.best_threshold(*(np.concatenate(values) for values in zip(*others, strict=True)))
        rows.append(
            {
                "domain": domain,
                "fidelity": 100 * kept.mean(),
                "fidelity_lost": 100 * lost.mean(),
                "threshold": 100 * threshold,
                "accuracy": 50 * ((kept >= threshold).mean() + (lost < threshold).mean()),
                "abstains": bool((kept >= threshold).mean() < estimation.MIN_KEPT),
                "abstains_lost": bool((lost >= threshold).mean() < estimation.MIN_KEPT),
            }
        )
    return pd.DataFrame(rows)
