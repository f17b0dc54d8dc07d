"""Evaluation: confusion matrix, intersection over union (IoU) and its mean over classes (mIoU).

C[i, j] counts pixels of class i that were predicted as j; void pixels are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from zodi.datasets import AnyDataset, FolderDataset, Sample
from zodi.labels import IGNORE_INDEX, LabelSet
from zodi.segmentation import normalise
from zodi.support.checks import check_classes, check_labels, check_logits, check_network, network_name
from zodi.support.files import atomic_path


@torch.inference_mode()
def predict(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """Predicted train ids uint8 (H, W) of one image uint8 (H, W, 3); sides are padded to what the network needs."""
    network.eval()
    return image_logits(network, image[None]).argmax(1).to(torch.uint8)[0].cpu().numpy()


@torch.inference_mode()
def image_confusions(
    network: nn.Module,
    dataset: AnyDataset | Sequence[Sample],
    num_classes: int,
    batch_size: int = 1,
    progress: bool = False,
    look: Callable[[Tensor], None] | None = None,
) -> np.ndarray:
    """Confusion matrices of a network, one per image.

    Args:
        network: images float (B, 3, H, W) of `zodi.segmentation.normalise` -> logits (B, C, H, W), or a tuple that
            starts with them; put into evaluation mode.
        dataset: images and labels, all of the same size when `batch_size` > 1.
        num_classes: C.
        batch_size: images per pass; the result does not depend on it.
        progress: show a progress bar.
        look: called with the logits float (B, C, H, W) of every batch, for what else is to be known of them.

    Returns:
        int64 (N, C, C), rows truth, columns prediction.

    Raises:
        ValueError: if the classes of network and labels differ, or the network's output is not finite.
    """
    classes = dataset.label_set.names if hasattr(dataset, "label_set") else num_classes
    check_classes("num_classes", num_classes, "the data", classes)
    check_network(network, classes)
    network.eval()
    matrices = []
    for start in tqdm(range(0, len(dataset), batch_size), "evaluate", unit="batch", disable=not progress):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        images, keys = np.stack([sample.image for sample in samples]), [sample.key for sample in samples]
        logits = image_logits(network, images, keys)
        check_classes(network_name(network), logits.shape[1], "the data", num_classes)
        if look is not None:
            look(logits)
        for sample, predicted in zip(samples, logits.argmax(1).cpu(), strict=True):
            truth = torch.from_numpy(sample.label).long()
            check_labels(truth, num_classes, IGNORE_INDEX, sample.key)
            counted = truth != IGNORE_INDEX
            cells = truth[counted] * num_classes + predicted[counted]
            matrices.append(torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes))
    return torch.stack(matrices).numpy()


def confusion(
    network: nn.Module,
    dataset: AnyDataset | Sequence[Sample],
    num_classes: int,
    batch_size: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Confusion matrix of a network over a data set, int64 (C, C): the sum of `image_confusions`, same arguments."""
    return image_confusions(network, dataset, num_classes, batch_size, progress).sum(0)


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of every class, float64 (C,), 0 .. 1: TP / (TP + FN + FP); NaN for classes absent from the truth."""
    correct = np.diag(confusion).astype(np.float64)
    truth = confusion.sum(1)
    union = truth + confusion.sum(0) - correct
    return np.where(truth > 0, correct / np.maximum(union, 1), np.nan)


def miou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes present in the truth, 0 .. 1; NaN if there is none."""
    values = iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def evaluate(
    network: nn.Module, dataset: FolderDataset, label_set: LabelSet, batch_size: int = 1, progress: bool = False
) -> dict[str, Any]:
    """Evaluate a network on a data set.

    Returns:
        `miou` in percent, `iou` in percent by class name (NaN: class not in the truth), `confusion` int64 (C, C),
        `images` the number of images.
    """
    check_classes("label_set", label_set.names, "the data", getattr(dataset, "label_set", label_set).names)
    matrix = confusion(network, dataset, label_set.num_classes, batch_size, progress)
    by_class = dict(zip(label_set.names, (100 * iou(matrix)).tolist(), strict=True))
    return {"miou": 100 * miou(matrix), "iou": by_class, "confusion": matrix, "images": len(dataset)}


def by_domain(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results of `evaluate` by domain -> `miou` and `iou` by domain, as a run's metrics.json has them."""
    return {key: {domain: score[key] for domain, score in scores.items()} for key in ("miou", "iou")}


def write_predictions(network: nn.Module, dataset: FolderDataset, folder: str | Path, limit: int = 3) -> None:
    """Write what a network predicts for the first `limit` images as label maps `folder`/KEY.png, 8-bit class ids."""
    for sample in (dataset[i] for i in range(min(limit, len(dataset)))):
        with atomic_path(Path(folder) / f"{sample.key}.png") as temporary:
            Image.fromarray(predict(network, sample.image)).save(temporary)


@torch.inference_mode()
def image_logits(network: nn.Module, images: np.ndarray, keys: Sequence[str] = ()) -> Tensor:
    """Logits float (B, C, H, W) of images uint8 (B, H, W, 3); sides are padded to what the network needs.

    Raises ValueError if they are not finite numbers; names the network and, from `keys`, the image.
    """
    height, width = images.shape[1:3]
    device = next(network.parameters()).device
    x = normalise(torch.from_numpy(images).to(device))
    # Encoders halve the size five times.
    pad = (0, -width % 32, 0, -height % 32)
    if any(pad):
        x = nn.functional.pad(x, pad, mode="replicate")
    output = network(x)
    logits = output if isinstance(output, Tensor) else output[0]
    logits = logits[:, :, :height, :width]
    check_logits(logits, network, keys)
    return logits
