"""Performance without target images: labelled source images are transferred, and a network's mIoU on them estimates
its mIoU on a target that nobody has photographed (claimed in the paper's Section 4; its program has no code for it).

    estimate = zodi.estimation.estimate(network, "images", "labels", "night", out="results/estimate")
    comparison = zodi.estimation.compare(adapted, in_use, "images", "labels", "night", out="results/estimate")

The images must not have been trained on. Resampling images and noise says how far another sample would move a score
("sampling only"); what the generator does to scores can only be measured where the truth is known, and `GeneratorError`
holds what was found there. If the layout is gone, the labels mean nothing. Then the same network also fails on the
source images redrawn with the source's own prompt, where its score should be the one on the images themselves: this
is checked. Nothing here looks at a target image; how good estimates are is measured in `zodi.studies`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from zodi import diffusion, transfer
from zodi.datasets import AnyDataset, FolderDataset, synthesized
from zodi.domains import DOMAINS
from zodi.evaluation import image_confusions, iou
from zodi.labels import CITYSCAPES, LabelSet
from zodi.networks.hub import MINI_FOLDER
from zodi.rows import ABLATIONS
from zodi.support.bootstrap import bootstrap, resample_weights
from zodi.support.checks import check_network
from zodi.support.generator_error import GeneratorError, read_error
from zodi.support.mislabelled import Mislabelled
from zodi.support.results import finished_keys, vouched_keys
from zodi.transfer_folder import transfer_folder

# A class seen in fewer images has an IoU that says nothing about the next image.
MIN_IMAGES = 10
# Half of the images must have kept their layout, or there is no estimate.
MIN_KEPT = 0.5
# A network that keeps so much of its score with the labels of other scenes cannot tell whether a layout is kept.
MAX_LOST = 0.9
# What the shipped generator does to scores; its own fingerprint is in it.
MINI_ERROR_FILE = MINI_FOLDER.parent / "estimate_error_mini.json"


def generator_error(model: diffusion.DiffusionModel, file: str | Path = MINI_ERROR_FILE) -> GeneratorError | None:
    """What a file says of the errors of a generator; None if it is about another generator, or there is no file.

    Raises:
        ValueError: if the file is damaged; names it.
    """
    error = read_error(file) if Path(file).exists() else None
    return error if error and error.generator == diffusion.fingerprint(model) else None


def known_error(model: diffusion.DiffusionModel, domain: str, changes: Mapping[str, Any]) -> GeneratorError | None:
    """`generator_error` of the shipped file, if the transfer is like those on which it was measured.

    None for a free prompt, and for settings that are not the checkpoint's own for the domain: another method or
    strength has other errors.

    Args:
        model: the diffusion model.
        domain, changes: see `estimate`.
    """
    usual, asked = (transfer.prompt_config(domain, model.defaults, **more) for more in ({}, changes))
    return generator_error(model) if domain in DOMAINS and asked == usual else None


@dataclass(frozen=True)
class Estimate:
    """What a network will reach on a target, in percent.

    Attributes:
        miou: mean IoU over all classes that are not rare.
        low, high: percentile interval of `miou` from other images and noise, sampling only; NaN for one image.
        level: its confidence level, 0 .. 1.
        classes: a line a class of the labels: `iou`, `low`, `high`, the `images` that show it, whether it is `rare`;
            with a reference, the reference's IoU as `fidelity`.
        images, seeds: numbers of images and of transfers of each.
        kept: share of the images that kept their layout, 0 .. 1; NaN without a reference.
        error: what is known of the generator's errors; None = nothing.
        source: mIoU of the network on the source images themselves, classes as in `miou`; NaN = they are not known.
        redrawn: the same on these images redrawn with the source's own prompt; NaN = not checked.
        lost: the same on the redrawn images with the labels of other scenes, which is what a lost layout leaves.
    """

    miou: float
    low: float
    high: float
    level: float
    classes: pd.DataFrame
    images: int
    seeds: int
    kept: float = float("nan")
    error: GeneratorError | None = None
    source: float = float("nan")
    redrawn: float = float("nan")
    lost: float = float("nan")

    @property
    def least_redrawn(self) -> float:
        """What `redrawn` must reach, see the function of this name; NaN = not checked."""
        return least_redrawn(self.source, self.lost)

    @property
    def sees_layout(self) -> bool:
        """Whether the network would notice a lost layout, see `blind_to_layout`; True if not checked."""
        return not blind_to_layout(self.source, self.lost)

    @property
    def reliable(self) -> bool:
        """False = abstains: the layout is lost in too many images, costs too much, or cannot be judged.

        True if nothing is checked.
        """
        return not (self.kept < MIN_KEPT or not self.sees_layout or self.redrawn < self.least_redrawn)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the truth should be, 0 .. 100: `low` and `high`, widened by what the generator does; NaN: unknown."""
        low, high = _widened(self.miou, self.low, self.high, self.error and self.error.estimate * self.source)
        return float(np.clip(low, 0, 100)), float(np.clip(high, 0, 100))

    @property
    def rare(self) -> list[str]:
        """Classes that are too rare to be estimated; they are not part of the mean."""
        return list(self.classes.index[self.classes["rare"]])

    def __str__(self) -> str:
        if self.kept < MIN_KEPT:
            return f"no estimate: only {100 * self.kept:.0f} % of the generated images kept their layout"
        if not self.sees_layout:
            return (
                f"no estimate: the network scores {self.source:.1f} points on the source images, and {self.lost:.1f} "
                "with the labels of other scenes, so it cannot tell whether a layout is kept; check that the labels "
                "belong to the images, and that the network was trained for their classes"
            )
        if not self.reliable:
            return (
                f"no estimate: of the network's {self.source:.1f} points on the source images, redrawing them with "
                f"their own prompt leaves {self.redrawn:.1f}, nearer to the {self.lost:.1f} that it reaches with the "
                "labels of other scenes; look at the images, and lower the strength or change the generator"
            )
        limit = min(MIN_IMAGES, self.images)
        rare = f"; left out, in fewer than {limit} images and so too rare: {', '.join(self.rare)}" if self.rare else ""
        interval = _interval_text(self.level, (self.low, self.high), self.interval, known=self.error is not None)
        if self.images == 1:
            interval = "no interval: one image has no spread"
        elif self.images < MIN_IMAGES:
            interval += f", of little worth below {MIN_IMAGES} images"
        counts = _counts(self.images, self.seeds) + rare
        return f"estimated mIoU {self.miou:.1f} % ({interval}; {counts})"


def least_redrawn(source: Any, lost: Any) -> Any:
    """Halfway from a lost layout to the score on the source: what a network must score on the redrawn source.

    Args:
        source, lost: see `Estimate`; numbers, or series of them.
    """
    return (source + lost) / 2


def blind_to_layout(source: Any, lost: Any) -> Any:
    """Whether labels of other scenes cost a network too little for it to notice a lost layout; see `least_redrawn`."""
    return lost > MAX_LOST * source


def _widened(value: float, low: float, high: float, generator: float | None) -> tuple[float, float]:
    """An interval around a value: sampling and generator err independently, so that squares of half widths add up.

    NaN where it is not known what the generator does.
    """
    if generator is None:
        return float("nan"), float("nan")
    sampling = (high - low) / 2
    half = float(np.hypot(0 if np.isnan(sampling) else sampling, generator))
    return value - half, value + half


def _counts(images: int, seeds: int) -> str:
    return f"{images} image{'s' * (images > 1)}, {seeds} transfer{'s' * (seeds > 1)} of each"


def _interval_text(level: float, sampling: tuple[float, float], whole: tuple[float, float], known: bool = False) -> str:
    if np.isnan(whole[0]):
        missing = "is a share of the score on the source, which is not known" if known else "is not known"
        return (
            f"sampling only, at {100 * level:.0f} %: {sampling[0]:.1f} .. {sampling[1]:.1f}; what this generator does "
            f"to scores {missing}, and comes on top"
        )
    return f"{100 * level:.0f} % interval {whole[0]:.1f} .. {whole[1]:.1f}"


@dataclass(frozen=True)
class Comparison:
    """How much better one network will be than another on a target, points of mIoU.

    Attributes:
        difference: estimate of the first minus estimate of the second.
        low, high: percentile interval of the difference from other images and noise, the same for both networks:
            sampling only; NaN for one image.
        level: its confidence level, 0 .. 1.
        images, seeds: numbers of images and of transfers of each.
        error: what is known of the generator's errors; None = nothing.
    """

    difference: float
    low: float
    high: float
    level: float
    images: int
    seeds: int
    error: GeneratorError | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true difference should be; NaN where the generator's errors are unknown."""
        return _widened(self.difference, self.low, self.high, self.error and self.error.difference)

    @property
    def decided(self) -> bool:
        """Whether the interval leaves no doubt which network is better; without a known error, the sampling's."""
        low, high = (self.low, self.high) if self.error is None else self.interval
        return bool(low > 0 or high < 0)

    def __str__(self) -> str:
        better = "first" if self.difference > 0 else "second"
        verdict = f"the {better} is better" if self.decided else "undecided"
        interval = _interval_text(self.level, (self.low, self.high), self.interval)
        return (
            f"estimated difference {self.difference:+.1f} points: {verdict} ({interval}; "
            f"{_counts(self.images, self.seeds)})"
        )


def estimate(
    network: nn.Module,
    images: str | Path,
    labels: str | Path,
    domain: str,
    out: str | Path,
    *,
    label_set: LabelSet = CITYSCAPES,
    model: str | diffusion.DiffusionModel = "mini",
    seeds: Sequence[int] = (0, 1),
    reference: nn.Module | None = None,
    min_fidelity: float = 0.5,
    check: bool = True,
    progress: bool = True,
    **changes: Any,
) -> Estimate:
    """Estimate a network's mIoU on a domain from labelled source images that it was not trained on.

    Args:
        network: images float (B, 3, H, W), ImageNet-normalised -> logits (B, C, H, W) or a tuple that starts with them.
        images, labels: folders of the source images and of their label maps, see `zodi.datasets.FolderDataset`.
        domain: a target domain of `zodi.domains`, or a prompt.
        out: folder of the generated images, one subfolder a seed; what is there of the same settings is used again.
        label_set: meaning of the labels' pixel values.
        model: the diffusion model, or what `zodi.diffusion.load` takes.
        seeds: a transfer of every image for each.
        reference: a network that finds the layout in good images of the domain, if there is one.
        min_fidelity: what `fidelity` must reach for an image to count as one that kept its layout, 0 .. 1.
        check: whether the images are also redrawn with the source's own prompt, once, to see what that costs the
            network; the estimate abstains if it is too much.
        progress: show a bar.
        changes: other settings of the transfer, for example `strength`, see `zodi.transfer.prompt_config`.

    Raises:
        FileNotFoundError: if a folder is missing or empty.
        ValueError: if images cannot be transferred; names the report that lists them.
    """
    for judge in filter(None, (network, reference)):
        check_network(judge, label_set.names)
    model = diffusion.load(model) if isinstance(model, str) else model
    generated = generate(model, images, labels, domain, out, label_set, seeds, progress, **changes)
    found = replace(estimate_on(generated, network, reference, min_fidelity), error=known_error(model, domain, changes))
    found = with_source(found, network, images, labels, label_set, generated[0].keys)
    if not check:
        return found
    return checked(found, network, model, images, labels, domain, out, label_set, progress, **changes)


def compare(
    first: nn.Module,
    second: nn.Module,
    images: str | Path,
    labels: str | Path,
    domain: str,
    out: str | Path,
    *,
    label_set: LabelSet = CITYSCAPES,
    model: str | diffusion.DiffusionModel = "mini",
    seeds: Sequence[int] = (0, 1),
    progress: bool = True,
    **changes: Any,
) -> Comparison:
    """Which of two networks will be better on a domain, and by how much, judged on the same generated images.

    Part of what the generator does to one network's score it does to the other's, and cancels in the difference.

    Args:
        first, second: the networks, for example the adapted one and the one in use.
        images, labels, domain, out, label_set, model, seeds, progress, changes: see `estimate`; images in `out` that
            `estimate` made are used again.

    Raises:
        FileNotFoundError, ValueError: see `estimate`.
    """
    for network in (first, second):
        check_network(network, label_set.names)
    model = diffusion.load(model) if isinstance(model, str) else model
    generated = generate(model, images, labels, domain, out, label_set, seeds, progress, **changes)
    return replace(compare_on(generated, first, second), error=known_error(model, domain, changes))


def estimate_on(
    generated: Sequence[FolderDataset],
    network: nn.Module,
    reference: nn.Module | None = None,
    min_fidelity: float = 0.5,
) -> Estimate:
    """`estimate` on images that are there, from `generate` or `opened`; knows nothing of their generator's errors."""
    found = None if reference is None else _scores(reference, generated)
    return estimate_from(_scores(network, generated), generated[0].label_set.names, found, min_fidelity)


def compare_on(generated: Sequence[FolderDataset], first: nn.Module, second: nn.Module) -> Comparison:
    """`compare` on images that are there, from `generate` or `opened`."""
    return compare_from(_scores(first, generated), _scores(second, generated), generated[0].label_set.names)


def opened(folders: Sequence[str | Path], labels: str | Path, label_set: LabelSet = CITYSCAPES) -> list[FolderDataset]:
    """Generated images that are there already: transferred, or imported from another program.

    Args:
        folders: what `zodi.transfer_folder` or `zodi.tools.importing` wrote, one or several sets of the same images.
        labels: folder of the source images' label maps.
        label_set: meaning of their pixel values.

    Raises:
        FileNotFoundError: if a folder is missing or empty.
        ValueError: if there is none, or their images differ; names the first that is not everywhere.
    """
    if not folders:
        raise ValueError("generated images: found no folder, expected at least one")
    sets = [synthesized(folder, labels, label_set) for folder in folders]
    sets = [part.only(vouched_keys(folder, part.keys)) for folder, part in zip(folders, sets, strict=True)]
    for folder, part in zip(folders, sets, strict=True):
        differing = sorted({*part.keys} ^ {*sets[0].keys})
        if differing:
            raise ValueError(
                f"{folder}: {len(differing)} images are only here or only in {folders[0]}, for example {differing[0]}; "
                "expected transfers of the same images"
            )
    return sets


def generate(
    model: diffusion.DiffusionModel,
    images: str | Path,
    labels: str | Path,
    domain: str,
    out: str | Path,
    label_set: LabelSet,
    seeds: Sequence[int],
    progress: bool = True,
    **changes: Any,
) -> list[FolderDataset]:
    """The images that estimates are made on: a transfer of every image for each seed, see `estimate`."""
    if len(seeds) == 0:
        raise ValueError("seeds: found none, expected at least one transfer of every image (--seeds 1)")
    return [
        _generated(model, images, labels, domain, Path(out) / f"seed{seed}", label_set, progress, seed=seed, **changes)
        for seed in seeds
    ]


def with_source(
    found: Estimate,
    network: nn.Module,
    images: str | Path,
    labels: str | Path,
    label_set: LabelSet,
    keys: Sequence[str],
) -> Estimate:
    """The estimate with the network's score on the source images themselves, of which its error is a share.

    Args:
        found: the estimate.
        network, images, labels, label_set: see `estimate`.
        keys: of the images whose transfers the estimate is made on.
    """
    source = FolderDataset(images, labels, label_set, cache=False).only(keys)
    return replace(found, source=_score_on(source, network, found))


def checked(
    found: Estimate,
    network: nn.Module,
    model: diffusion.DiffusionModel,
    images: str | Path,
    labels: str | Path,
    domain: str,
    out: str | Path,
    label_set: LabelSet,
    progress: bool = True,
    **changes: Any,
) -> Estimate:
    """The estimate with what redrawing the source as it is leaves of the network's score; it may then abstain.

    The images are redrawn with the source's own prompt and all other settings of the domain's transfer. What a lost
    layout would leave is seen on the same images with the label maps of other scenes; one image alone has no other. A
    method without diffusion redraws nothing. Then the estimate comes back as it is.

    Args:
        found: the estimate, from `with_source`.
        network, model, images, labels, domain, out, label_set, progress, changes: see `estimate`.

    Raises:
        ValueError: if the score on the source is not known.
    """
    if np.isnan(found.source):
        raise ValueError("the estimate has no score on the source images; call `with_source` first")
    if transfer.prompt_config(domain, model.defaults, **changes).method in transfer.WITHOUT_DIFFUSION:
        return found
    own = changes | ABLATIONS["clear_prompt"]
    redrawn = _generated(model, images, labels, domain, Path(out) / "redrawn", label_set, progress, **own)
    if len(redrawn) < 2:
        return found
    scores = [_score_on(part, network, found) for part in (redrawn, Mislabelled(redrawn))]
    return replace(found, redrawn=scores[0], lost=scores[1])


def _score_on(dataset: FolderDataset | Mislabelled, network: nn.Module, found: Estimate) -> float:
    """mIoU of a network on a data set in percent, over the classes of an estimate that are not rare."""
    classes = [dataset.label_set.names.index(name) for name in found.classes.index if name not in found.rare]
    return float(100 * np.nanmean(iou(_scores(network, [dataset])[0].sum(0))[classes]))


def _scores(network: nn.Module, generated: Sequence[FolderDataset | Mislabelled]) -> np.ndarray:
    """Confusion matrices int (S, N, C, C) of a network on S transfers of N images."""
    return np.stack([image_confusions(network, part, part.label_set.num_classes) for part in generated])


def _generated(
    model: diffusion.DiffusionModel,
    images: str | Path,
    labels: str | Path,
    domain: str,
    out: Path,
    label_set: LabelSet,
    progress: bool,
    **changes: Any,
) -> FolderDataset:
    config = transfer.prompt_config(domain, model.defaults, **changes)
    report = transfer_folder(model, images, labels, out, config, label_set, progress=progress)
    if not report.ok:
        raise ValueError(f"{out}: {len(report.errors)} images could not be transferred; report.json there lists them")
    return FolderDataset(out / "images", labels, label_set, cache=False).only(finished_keys(out))


def estimate_from(
    confusions: np.ndarray,
    names: Sequence[str],
    reference: np.ndarray | None = None,
    min_fidelity: float = 0.5,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The estimate from confusion matrices.

    Args:
        confusions: int (S, N, C, C) of the network, for S transfers of N images; rows truth, columns prediction.
        names: of the C classes.
        reference: the same of the reference network on the same images.
        min_fidelity: see `estimate`.
        level: of the interval, 0 .. 1.
        seed: of the resampling.

    Raises:
        ValueError: for another shape, or if every class is rare.
    """
    if confusions.ndim != 4 or confusions.shape[2:] != (len(names), len(names)):
        raise ValueError(f"confusions: found shape {confusions.shape}, expected (S, N, {len(names)}, {len(names)})")
    seeds, images = confusions.shape[:2]
    # The order of the images must not change what is drawn.
    order = sorted(range(images), key=lambda index: confusions[:, index].tobytes())
    shown, common = (confusions[0].sum(2) > 0).sum(0), common_classes(confusions)
    values = 100 * iou(confusions.sum((0, 1)))
    resampled = 100 * bootstrap(confusions[:, order], resample_weights(images, seeds, seed=seed))
    tails = [50 * (1 - level), 50 * (1 + level)]
    low, high = np.nanpercentile(resampled[:, shown > 0], tails, axis=0)
    classes = pd.DataFrame({"iou": values, "images": shown, "rare": ~common}, index=list(names))[shown > 0]
    classes = classes.assign(low=low, high=high)[["iou", "low", "high", "images", "rare"]]
    interval = np.percentile(np.nanmean(resampled[:, common], axis=1), tails)
    if images == 1:
        # Whatever is drawn from one image is that image.
        classes[["low", "high"]] = interval[:] = np.nan
    kept = float("nan")
    if reference is not None:
        kept = float((fidelity(reference) >= min_fidelity).mean())
        classes["fidelity"] = 100 * iou(reference.sum((0, 1)))[shown > 0]
    return Estimate(
        float(values[common].mean()), *interval.tolist(), level, classes, images, seeds, kept
    )  # fmt: skip


def compare_from(
    first: np.ndarray, second: np.ndarray, names: Sequence[str], level: float = 0.95, seed: int = 0
) -> Comparison:
    """The comparison from confusion matrices of the same transfers of the same images (paired bootstrap).

    Args:
        first, second: int (S, N, C, C) of both networks, see `estimate_from`.
        names, level, seed: see `estimate_from`.

    Raises:
        ValueError: for other shapes, for scores on different images, or if every class is rare.
    """
    if first.shape != second.shape or first.ndim != 4 or first.shape[2:] != (len(names), len(names)):
        raise ValueError(
            f"confusions: found shapes {first.shape} and {second.shape}, expected (S, N, {len(names)}, {len(names)}) "
            "twice, from the same transfers of the same images"
        )
    different = np.flatnonzero((first.sum(3) != second.sum(3)).any((0, 2)))
    if len(different):
        raise ValueError(
            f"confusions: image {different[0]} has other labels for the second network than for the first "
            f"({len(different)} of {first.shape[1]} images do); score both on the same images in the same order"
        )
    common = common_classes(first)
    both = [100 * np.nanmean(iou(part.sum((0, 1)))[common]) for part in (first, second)]
    # The order of the images must not change what is drawn.
    order = sorted(range(first.shape[1]), key=lambda index: (first[:, index].tobytes(), second[:, index].tobytes()))
    weights = resample_weights(first.shape[1], first.shape[0], seed=seed)
    resampled = [100 * np.nanmean(bootstrap(part[:, order], weights)[:, common], axis=1) for part in (first, second)]
    low, high = np.percentile(resampled[0] - resampled[1], [50 * (1 - level), 50 * (1 + level)])
    if first.shape[1] == 1:
        low = high = np.nan
    return Comparison(float(both[0] - both[1]), float(low), float(high), level, first.shape[1], first.shape[0])


def common_classes(confusions: np.ndarray) -> np.ndarray:
    """Classes that enough images show, bool (C,), from confusion matrices int (S, N, C, C); ValueError if none is."""
    images = confusions.shape[1]
    least = min(MIN_IMAGES, images)
    common = (confusions[0].sum(2) > 0).sum(0) >= least
    if not common.any():
        raise ValueError(f"{images} images: no class is seen in {least} of them; give more images")
    return common


# ---------------------------------------------------------------- is the layout still there?


def fidelity(reference: np.ndarray) -> np.ndarray:
    """Share of an image's labelled pixels in which a reference network finds the label.

    Args:
        reference: its confusion matrices, int (..., C, C), one an image.

    Returns:
        float64 (...), 0 .. 1.
    """
    return np.trace(reference, axis1=-2, axis2=-1) / np.maximum(reference.sum((-2, -1)), 1)


def faithful_keys(dataset: AnyDataset, reference: np.ndarray, min_fidelity: float) -> list[str]:
    """Keys of the generated images that kept their layout; for `zodi.datasets.FolderDataset.only`.

    Args:
        dataset: the generated images.
        reference: confusion matrices of the reference network on them, int (N, C, C).
        min_fidelity: what `fidelity` must reach, 0 .. 1.

    Raises:
        ValueError: if none is left.
    """
    keys = [key for key, value in zip(dataset.keys, fidelity(reference), strict=True) if value >= min_fidelity]
    if not keys:
        raise ValueError(
            f"min_fidelity={min_fidelity}: none of the {len(dataset)} images reaches it; choose a lower one"
        )
    return keys
