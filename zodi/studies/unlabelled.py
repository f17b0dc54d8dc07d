"""Scores of a network on images without labels: what it says of itself.

On generated images they compete with the estimate, which has labels; on photographs of the target, where there are a
few, they are all that one has. None is in the unit of mIoU: they rank networks.
"""

import numpy as np
import torch
from torch import Tensor, nn

from zodi.datasets import AnyDataset
from zodi.evaluation import image_logits

# Confidences are counted in so many bins between 0 and 1.
BINS = 1000
# MaNo's exponent, and the mean -log probability above which its networks count as confident (its Sections 4.1, 4.2).
MANO_POWER, MANO_CONFIDENT = 4, 5.0


@torch.inference_mode()
def scores(network: nn.Module, dataset: AnyDataset, batch_size: int) -> dict[str, np.ndarray]:
    """All that the scores need, from one pass over the images.

    Args:
        network: images float (B, 3, H, W), ImageNet-normalised -> logits (B, C, H, W) or a tuple that starts with them.
        dataset: images of one size; labels are not looked at.
        batch_size: images per pass.

    Returns:
        `histogram` int64 (BINS,): number of pixels by the probability of their most likely class, from 0 to 1;
        `nuclear_norm` and `mano`: float64 (), see the functions of these names.
    """
    histogram, products, pixels = torch.zeros(BINS, dtype=torch.int64), 0.0, 0
    powers, surprise = torch.zeros(2, dtype=torch.float64), 0.0
    for first in range(0, len(dataset), batch_size):
        images = [dataset[i].image for i in range(first, min(first + batch_size, len(dataset)))]
        logits = image_logits(network, np.stack(images)).movedim(1, -1).flatten(0, -2).cpu().double()
        p = logits.softmax(1)
        histogram += torch.bincount((p.amax(1) * BINS).long().clamp(max=BINS - 1), minlength=BINS)
        products = products + p.T @ p
        pixels += len(p)
        powers += torch.stack([_power_sum(p), _power_sum(_taylor(logits))])
        surprise -= float(logits.log_softmax(1).sum())
    classes = len(products)
    # Confident networks are judged by the softmax, others by its Taylor polynomial, which forgives them more.
    power = powers[0] if surprise / (pixels * classes) > MANO_CONFIDENT else powers[1]
    return {
        "histogram": histogram.numpy(),
        "nuclear_norm": np.float64(nuclear_norm(products, pixels)),
        "mano": np.float64((power / (pixels * classes)) ** (1 / MANO_POWER)),
    }


def nuclear_norm(products: Tensor, pixels: int) -> float:
    """Nuclear norm of the N x C matrix P of probabilities, as a share of its largest possible value, 0 .. 1.

    It is high where predictions are confident and spread over the classes (Deng et al., *Confidence and Dispersity
    Speak*, ICML 2023). The singular values of P are the roots of the eigenvalues of P^T P.

    Args:
        products: P^T P, float64 (C, C).
        pixels: N.
    """
    values = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    return float(values.sum() / np.sqrt(min(pixels, len(products)) * pixels))


def _taylor(logits: Tensor) -> Tensor:
    """Probabilities with 1 + q + q^2 / 2 in place of exp(q)."""
    values = 1 + logits + logits.square() / 2
    return values / values.sum(1, keepdim=True)


def _power_sum(p: Tensor) -> Tensor:
    return p.pow(MANO_POWER).sum()


def mean_confidence(histogram: np.ndarray) -> float:
    """Mean probability of the most likely class, from a `histogram` of `scores`, percent."""
    return float(100 * (histogram * (np.arange(BINS) + 0.5) / BINS).sum() / histogram.sum())


def average_thresholded_confidence(histogram: np.ndarray, source: np.ndarray, accuracy: float) -> float:
    """ATC (Garg et al., ICLR 2022): share of pixels more confident than a threshold chosen on the source, percent.

    Args:
        histogram: of `scores` on the images in question.
        source: the same on labelled source images.
        accuracy: share of right pixels on the source, 0 .. 1; the threshold leaves this share of its pixels above.
    """
    above_source = np.cumsum(source[::-1])[::-1] / source.sum()
    threshold = int(np.abs(above_source - accuracy).argmin())
    return float(100 * histogram[threshold:].sum() / histogram.sum())
