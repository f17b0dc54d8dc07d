"""Performance without target images: labelled source images are transferred, and a network's mIoU on them estimates
its mIoU on a target that nobody has photographed (claimed in the paper's Section 4; its program has no code for it).

    estimate = zodi.estimation.estimate(network, "images", "labels", "night", out="results/estimate")

The images must not have been trained on. An interval comes from resampling images and noise; a reference network says
whether the layout is still there, without which the labels mean nothing. Nothing here looks at a target image; how
good estimates are is measured in `zodi.studies`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from zodi import diffusion, transfer
from zodi.datasets import AnyDataset, FolderDataset
from zodi.evaluation import image_confusions, iou
from zodi.labels import CITYSCAPES, LabelSet
from zodi.support.bootstrap import bootstrap, resample_weights
from zodi.support.checks import check_network
from zodi.support.results import finished_keys
from zodi.transfer_folder import transfer_folder

# A class seen in fewer images has an IoU that says nothing about the next image.
MIN_IMAGES = 10
# Half of the images must have kept their layout, or there is no estimate.
MIN_KEPT = 0.5


@dataclass(frozen=True)
class Estimate:
    """What a network will reach on a target, in percent.

    Attributes:
        miou: mean IoU over all classes that are not rare.
        low, high: percentile interval of `miou`; NaN for one image.
        level: its confidence level, 0 .. 1.
        classes: a line a class of the labels: `iou`, `low`, `high`, the `images` that show it, whether it is `rare`;
            with a reference, the reference's IoU as `fidelity`.
        images, seeds: numbers of images and of transfers of each.
        kept: share of the images that kept their layout, 0 .. 1; NaN without a reference.
        reliable: False = abstains: too few images kept their layout.
    """

    miou: float
    low: float
    high: float
    level: float
    classes: pd.DataFrame
    images: int
    seeds: int
    kept: float = float("nan")
    reliable: bool = True

    @property
    def rare(self) -> list[str]:
        """Classes that are too rare to be estimated; they are not part of the mean."""
        return list(self.classes.index[self.classes["rare"]])

    def __str__(self) -> str:
        if not self.reliable:
            return f"no estimate: only {100 * self.kept:.0f} % of the generated images kept their layout"
        limit = min(MIN_IMAGES, self.images)
        rare = f"; left out, in fewer than {limit} images and so too rare: {', '.join(self.rare)}" if self.rare else ""
        interval = f"{100 * self.level:.0f} % interval {self.low:.1f} .. {self.high:.1f}"
        if self.images == 1:
            interval = "no interval: one image has no spread"
        elif self.images < MIN_IMAGES:
            interval += f", of little worth below {MIN_IMAGES} images"
        counts = f"{self.images} images, {self.seeds} transfers of each{rare}"
        return f"estimated mIoU {self.miou:.1f} % ({interval}; {counts})"


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
        reference: a network that finds the layout in good images of the domain; None = do not check.
        min_fidelity: what `fidelity` must reach for an image to count as one that kept its layout, 0 .. 1.
        progress: show a bar.
        changes: other settings of the transfer, for example `strength`, see `zodi.transfer.prompt_config`.

    Raises:
        FileNotFoundError: if a folder is missing or empty.
        ValueError: if images cannot be transferred; names the report that lists them.
    """
    if len(seeds) == 0:
        raise ValueError("seeds: found none, expected at least one transfer of every image (--seeds 1)")
    for judge in filter(None, (network, reference)):
        check_network(judge, label_set.names)
    if isinstance(model, str):
        model = diffusion.load(model)
    generated = [
        _generated(model, images, labels, domain, Path(out) / f"seed{seed}", label_set, progress, seed=seed, **changes)
        for seed in seeds
    ]
    confusions = np.stack([image_confusions(network, part, label_set.num_classes) for part in generated])
    found = None
    if reference is not None:
        found = np.stack([image_confusions(reference, part, label_set.num_classes) for part in generated])
    return estimate_from(confusions, label_set.names, found, min_fidelity)


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
        float(values[common].mean()), *interval.tolist(), level, classes, images, seeds, kept, not kept < MIN_KEPT
    )  # fmt: skip


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


def best_threshold(kept: np.ndarray, lost: np.ndarray) -> tuple[float, float]:
    """The value that tells images that kept their layout from those that lost it.

    Args:
        kept: `fidelity` of images with their own labels, any shape.
        lost: the same with labels that do not belong to them.

    Returns:
        The threshold, in the middle between the two neighbouring values, and the balanced accuracy, 0 .. 1.
    """
    values = np.unique(np.concatenate([kept.ravel(), lost.ravel()]))
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    accuracy = [((kept >= cut).mean() + (lost < cut).mean()) / 2 for cut in cuts]
    best = int(np.argmax(accuracy))
    return float(cuts[best]), float(accuracy[best])


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
