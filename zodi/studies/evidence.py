"""Are the estimates of `zodi.estimation` right? Measured on the miniature, where every domain's truth is known.

A candidate is one training; at four steps of it the network is scored on held-out source images, on what the transfer
makes of them, and on the true images of every domain. `table` turns the scores of all candidates into one frame,
`by_domain` and `choices` into the statements that a reader wants to check.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from zodi import estimation
from zodi.adaptation import recipe
from zodi.datasets import AnyDataset, Sample, dataset_info, label_set_of, open_split
from zodi.domains import SOURCE
from zodi.evaluation import image_confusions, iou, predict
from zodi.experiment import TrainingSets, train_row, training_sets
from zodi.labels import IGNORE_INDEX, LabelSet
from zodi.rows import get_row
from zodi.segmentation import DEFAULT_NETWORK, load_network, save_network
from zodi.studies import agreement, unlabelled
from zodi.studies.agreement import LOST, MASKS, REDRAWN, VARIATIONS
from zodi.support.files import atomic_path, folder_name, read_json
from zodi.support.mislabelled import Mislabelled
from zodi.support.runs import METRICS_FILE, device_text, save_metrics

SCORES_FILE = "scores.npz"
TABLE_FILE = "models.csv"
LAYOUT_FILE = "layout.csv"
CLASSES_FILE = "classes.csv"
# A data set without this part lends its source test images, on which no candidate is trained either.
HELD_OUT = "val"
# Transfers of every held-out image, one folder each.
TRANSFERS = ("held_out", "held_out_1")
# Of so many target images a user may have photographs, without labels.
PHOTOGRAPHS = 20
BATCH = 10
# What is scored without its labels as well.
UNLABELLED = ("source", TRANSFERS[0], "photographs")
# Scores that do without target images: column -> what readers see. The first is ours, the others are what it must beat.
SCORES = {
    "estimate": "estimate",
    "one_transfer": "estimate, one transfer",
    "source": "source mIoU",
    "photometric": "photometric mIoU",
    "confidence": "mean confidence",
    "atc": "ATC",
    "nuclear_norm": "nuclear norm",
    "mano": "MaNo",
}
# Scores on `PHOTOGRAPHS` images of the target, without their labels; at the last step only.
PHOTOGRAPH_SCORES = {
    "photo_confidence": "mean confidence, photographs",
    "photo_atc": "ATC, photographs",
    "photo_nuclear_norm": "nuclear norm, photographs",
    "photo_mano": "MaNo, photographs",
}
RUN = ["variant", "adapted_to", "network", "seed"]


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
    scored, varied = scored_sets(results, candidate, method), varied_sets(results)
    scores: dict[str, list[np.ndarray]] = {}

    def score(step: int, network: nn.Module) -> None:
        if step in quarters:
            now = scored
            if step == config.steps:
                now = scored | varied | masked_sets(candidate, network, results, scored | varied)
            for name, values in score_network(network, now, sets.first.label_set).items():
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


def source_reference() -> Candidate:
    """The network that a user has too, who has no target: it says which pixels the generator lost."""
    return Candidate("source_only", "", DEFAULT_NETWORK, 0)


def scored_sets(results: Path, candidate: Candidate, method: str) -> dict[str, AnyDataset]:
    """Data sets to score on, by `KIND/DOMAIN`: the held-out source images, what is made of them, and the truth."""
    data, held_out = results / "data", held_out_split(results)
    sets: dict[str, AnyDataset] = {f"source/{SOURCE}": open_split(data, held_out)}
    for domain in [name for name in dataset_info(data)["domains"] if name != SOURCE]:
        for part in TRANSFERS:
            images = results / part / domain / method / "images"
            sets[f"{part}/{domain}"] = open_split(data, held_out, images=images)
        images = results / TRANSFERS[0] / domain / "photometric" / "images"
        sets[f"photometric/{domain}"] = open_split(data, held_out, images=images)
        sets[f"truth/{domain}"] = open_split(data, f"test/{domain}")
    if candidate == reference_of(candidate.domain):
        sets[f"shuffled/{candidate.domain}"] = Mislabelled(sets[f"{TRANSFERS[0]}/{candidate.domain}"])
    return sets


def varied_sets(results: Path) -> dict[str, AnyDataset]:
    """The held-out images as `VARIATIONS` and `LOST` make them, and `photographs`, some true images without labels."""
    data, held_out = results / "data", held_out_split(results)
    sets: dict[str, AnyDataset] = {}
    for domain in [name for name in dataset_info(data)["domains"] if name != SOURCE]:
        for method in VARIATIONS:
            images = results / TRANSFERS[0] / domain / method / "images"
            if images.is_dir():
                sets[f"{method}/{domain}"] = open_split(data, held_out, images=images)
        if f"{REDRAWN}/{domain}" in sets:
            sets[f"{LOST}/{domain}"] = Mislabelled(sets[f"{REDRAWN}/{domain}"])
        truth = open_split(data, f"test/{domain}")
        sets[f"photographs/{domain}"] = truth.only(truth.keys[:PHOTOGRAPHS])
    return sets


def masked_sets(
    candidate: Candidate, network: nn.Module, results: Path, sets: Mapping[str, AnyDataset]
) -> dict[str, AnyDataset]:
    """The transfers by `MASKS/DOMAIN`, without the pixels that the generator lost.

    A pixel is lost if `source_reference` finds its label in the source image, but no longer in the transfer ("masked"),
    or in the source image redrawn as such ("masked_redrawn").

    Args:
        candidate, network: which training, and what it has come to.
        results: see `run_candidate`.
        sets: from `scored_sets` and `varied_sets`; domains whose source was not redrawn are left out.
    """
    domains = _domains(sets, REDRAWN)
    if not domains:
        return {}
    own = candidate == source_reference()
    reference = network if own else load_network(source_reference().folder(results) / "network")
    source, masked = _predictions(reference, sets[f"source/{SOURCE}"]), {}
    for domain in domains:
        transfers = sets[f"{TRANSFERS[0]}/{domain}"]
        for mask, images in zip(MASKS, (transfers, sets[f"{REDRAWN}/{domain}"]), strict=True):
            masked[f"{mask}/{domain}"] = without_lost(transfers, source, _predictions(reference, images))
    return masked


def _domains(names: Iterable[str], kind: str) -> list[str]:
    """The domains D of the sets `KIND/D` of one kind."""
    return [name.partition("/")[2] for name in names if name.startswith(f"{kind}/")]


def _predictions(network: nn.Module, dataset: AnyDataset) -> list[np.ndarray]:
    return [predict(network, dataset[index].image) for index in range(len(dataset))]


def without_lost(dataset: AnyDataset, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> list[Sample]:
    """Samples whose labels leave out the pixels that a network found in the source and does not find any more.

    Args:
        dataset: N images with their labels.
        before, after: train ids uint8 (H, W) that it sees in each source image, and in what was made of it.
    """
    samples = []
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        label = dataset[index].label
        lost = (old == label) & (new != label)
        samples.append(replace(dataset[index], label=np.where(lost, np.uint8(IGNORE_INDEX), label)))
    return samples


def held_out_split(results: Path) -> str:
    """The part of the data that no candidate is trained on."""
    return HELD_OUT if (results / "data" / HELD_OUT).is_dir() else f"test/{SOURCE}"


def score_network(network: nn.Module, sets: Mapping[str, AnyDataset], label_set: LabelSet) -> dict[str, np.ndarray]:
    """Confusion matrices int32 (N, C, C) on every set, and as `SCORE/SET` what `unlabelled.Scores` finds."""
    scores = {}
    for name, dataset in sets.items():
        without_labels = unlabelled.Scores(label_set.num_classes)
        asked = name.split("/")[0] in UNLABELLED
        look = without_labels.add if asked else None
        scores[name] = image_confusions(network, dataset, label_set.num_classes, BATCH, look=look).astype(np.int32)
        if asked:
            scores |= {f"{score}/{name}": value for score, value in without_labels.found().items()}
    return scores


# ---------------------------------------------------------------- all candidates


def table(results: str | Path) -> pd.DataFrame:
    """Scores and truth of all candidates, a line for each candidate, step and domain.

    Returns:
        `RUN`, `step`, `steps`, `domain`, the columns of `SCORES`, `low` and `high` of the estimate, those of
        `VARIATIONS`, `MASKS`, `LOST` and `PHOTOGRAPH_SCORES`, and `truth`; percent, but for the norms, which are
        0 .. 1. Means are over the classes that are not rare in the held-out images. NaN: not scored.

    Raises:
        FileNotFoundError: if there is no candidate.
    """
    names = label_set_of(Path(results) / "data").names
    rows = []
    for run, scores in _candidates(results):
        domains = _domains(scores, "truth")
        for index, step in enumerate(scores["steps"]):
            now = _at_step(scores, index)
            where = run | {"step": int(step), "steps": int(scores["steps"][-1])}
            rows += [where | {"domain": domain} | _line(now, domain, names) for domain in domains]
    return pd.DataFrame(rows)


def class_table(results: str | Path) -> pd.DataFrame:
    """IoU of every class at the last step, a line for each candidate, domain and class that is not rare.

    Returns:
        `RUN`, `domain`, `class`, and `estimate`, `source`, `truth`, `VARIATIONS`, `MASKS`, percent.

    Raises:
        FileNotFoundError: if there is no candidate.
    """
    names = label_set_of(Path(results) / "data").names
    parts = []
    for run, scores in _candidates(results):
        last = _at_step(scores, -1)
        for domain in _domains(scores, "truth"):
            transfers, common = _transfers(last, domain, names)
            sets = {"estimate": transfers.sum(0), "source": last[f"source/{SOURCE}"], "truth": last[f"truth/{domain}"]}
            sets |= {kind: last[f"{kind}/{domain}"] for kind in (*VARIATIONS, *MASKS) if f"{kind}/{domain}" in last}
            values = {kind: 100 * iou(matrices.sum(0))[common] for kind, matrices in sets.items()}
            where = run | {"domain": domain, "class": [names[index] for index in common]}
            parts.append(pd.DataFrame(where | values))
    return pd.concat(parts, ignore_index=True)


def _candidates(results: str | Path) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """`RUN` and scores of every candidate below a results folder."""
    files = sorted(Path(results).glob(f"candidates/**/{SCORES_FILE}"))
    if not files:
        raise FileNotFoundError(f"{results}: no scores in candidates/; `python -m zodi.studies candidate` makes them")
    for file in files:
        metrics = read_json(file.parent / METRICS_FILE)["metrics"]
        run = {name: metrics[name] for name in ("variant", "network", "seed")} | {"adapted_to": metrics["domain"]}
        yield run, dict(np.load(file))


def _at_step(scores: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """What was scored at a step; counted from the end, because some is scored at the last step only."""
    behind = index % len(scores["steps"]) - len(scores["steps"])
    return {name: values[behind] for name, values in scores.items() if name != "steps" and len(values) >= -behind}


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
    # Source-only is adapted to nothing, which is no missing value; scores that were not taken are.
    frame, layout = (pd.read_csv(file) for file in files)
    frame["adapted_to"] = frame["adapted_to"].fillna("")
    return frame, layout, f"our recorded candidates in {record} (there are none below {results})"


def load_classes(results: str | Path, record: str | Path) -> pd.DataFrame:
    """`class_table` of `results`, or the recorded one; to be read after `load`, which says what is missing."""
    if any(Path(results).glob(f"candidates/**/{SCORES_FILE}")):
        return class_table(results)
    frame = pd.read_csv(Path(record) / CLASSES_FILE)
    return frame.assign(adapted_to=frame["adapted_to"].fillna(""))


def write_record(results: str | Path, record: str | Path) -> None:
    """Write what `load` reads, percent with three decimals."""
    found = {TABLE_FILE: table(results), CLASSES_FILE: class_table(results), LAYOUT_FILE: layout_table(results)}
    for name, frame in found.items():
        with atomic_path(Path(record) / name) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.3f")


def _transfers(scores: Mapping[str, np.ndarray], domain: str, names: tuple[str, ...]) -> tuple[np.ndarray, list[int]]:
    """Confusion matrices int (S, N, C, C) of the held-out images' transfers, and the classes not rare in them."""
    transfers = np.stack([scores[f"{part}/{domain}"] for part in TRANSFERS])
    return transfers, list(np.flatnonzero(estimation.common_classes(transfers)))


def _line(scores: Mapping[str, np.ndarray], domain: str, names: tuple[str, ...]) -> dict[str, float]:
    transfers, common = _transfers(scores, domain, names)
    found = estimation.estimate_from(transfers, names)

    def mean(name: str) -> float:
        return float(100 * np.nanmean(iou(scores[name].sum(0))[common])) if name in scores else float("nan")

    source = scores[f"source/{SOURCE}"].sum(0)
    accuracy = np.trace(source) / source.sum()

    def without_labels(images: str) -> dict[str, float]:
        if f"histogram/{images}" not in scores:
            return dict.fromkeys(("confidence", "atc", "nuclear_norm", "mano"), float("nan"))
        histogram = scores[f"histogram/{images}"]
        return {
            "confidence": unlabelled.mean_confidence(histogram),
            "atc": unlabelled.average_thresholded_confidence(histogram, scores[f"histogram/source/{SOURCE}"], accuracy),
            "nuclear_norm": float(scores[f"nuclear_norm/{images}"]),
            "mano": float(scores[f"mano/{images}"]),
        }

    photographs = without_labels(f"photographs/{domain}")
    return {
        "estimate": found.miou,
        "low": found.low,
        "high": found.high,
        "one_transfer": mean(f"{TRANSFERS[0]}/{domain}"),
        "source": mean(f"source/{SOURCE}"),
        "photometric": mean(f"photometric/{domain}"),
        **without_labels(f"{TRANSFERS[0]}/{domain}"),
        **{f"photo_{name}": value for name, value in photographs.items()},
        **{kind: mean(f"{kind}/{domain}") for kind in (*VARIATIONS, *MASKS, LOST)},
        "truth": mean(f"truth/{domain}"),
    }


def by_domain(frame: pd.DataFrame) -> pd.DataFrame:
    """How well every score follows the truth, a line a domain and score.

    Args:
        frame: from `table`.

    Returns:
        `domain`, `score`, `models`, the correlations and `mae` of `zodi.studies.agreement`, `sign_accuracy`, percent,
        and `regret`, points: what is lost by choosing the model of the best score. Scores that the frame lacks are
        left out.
    """
    rows = []
    for domain, part in frame.groupby("domain", sort=False):
        for score in scores_in(part):
            measures = agreement.agreement(part[score], part["truth"])
            measures["sign_accuracy"] = agreement.sign_accuracy(part[score].to_numpy(), part["truth"].to_numpy())
            measures["regret"] = agreement.regret(part[score], part["truth"])
            rows.append({"domain": domain, "score": score, "models": len(part)} | measures)
    return pd.DataFrame(rows)


def scores_in(frame: pd.DataFrame) -> dict[str, str]:
    """The scores that a frame has, column -> what readers see; an older record may lack some."""
    names = SCORES | PHOTOGRAPH_SCORES
    return {name: text for name, text in names.items() if name in frame and frame[name].notna().any()}


def last_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """The last step of every training, which is independent of others', with its name as `training`."""
    last = frame[frame["step"] == frame["steps"]].reset_index(drop=True)
    return named(last)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the name of the training as `training`."""
    return frame.assign(training=frame[RUN].astype(str).agg("/".join, axis=1))


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
        A line a training and domain: `RUN`, `domain`, `last`, and the `SCORES` of the frame.
    """
    rows = []
    run = ["variant", "adapted_to", "network", "seed", "domain"]
    for key, part in frame.groupby(run, sort=False):
        part = part.sort_values("step", ignore_index=True)
        lost = {score: agreement.regret(part[score], part["truth"]) for score in SCORES if score in part}
        lost = {"last": float(part["truth"].max() - part["truth"].iloc[-1])} | lost
        rows.append(dict(zip(run, key, strict=True)) | lost)
    return pd.DataFrame(rows)


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
        threshold, _ = agreement.best_threshold(*(np.concatenate(values) for values in zip(*others, strict=True)))
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
