"""Scores of a network on images without labels: what it says of itself.

On generated images they compete with the estimate, which has labels; on photographs of the target, where there are a
few, they are all that one has. None is in the unit of mIoU: they rank networks.
"""

import numpy as np
import torch
from torch import Tensor

# Confidences are counted in so many bins between 0 and 1.
BINS = 1000
# MaNo's exponent, and the mean -log probability above which its networks count as confident (its Sections 4.1, 4.2).
MANO_POWER, MANO_CONFIDENT = 4, 5.0


class Scores:
    """All that the scores need, from one pass over the images.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.histogram = torch.zeros(BINS, dtype=torch.int64)
        self.products = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self.powers = torch.zeros(2, dtype=torch.float64)
        self.pixels, self.surprise = 0, 0.0

    def add(self, logits: Tensor) -> None:
        """Look at the logits float (B, C, H, W) of a batch, see `zodi.evaluation.image_confusions`."""
        logits = logits.movedim(1, -1).flatten(0, -2).cpu().float()
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        self.histogram += torch.bincount((p.amax(1) * BINS).long().clamp(max=BINS - 1), minlength=BINS)
        self.products += p.double().T @ p.double()
        self.powers += torch.stack([_power_sum(p), _power_sum(_taylor(logits))])
        self.surprise -= float(log_p.sum(dtype=torch.float64))
        self.pixels += len(p)

    def found(self) -> dict[str, np.ndarray]:
        """What was found in all that was added.

        Returns:
            `histogram` int64 (BINS,): number of pixels by the probability of their most likely class, from 0 to 1;
            `nuclear_norm`: float64 (), see the function of this name; `mano`: float64 (), MaNo's score, 0 .. 1.
        """
        cells = self.pixels * len(self.products)
        # Confident networks are judged by the softmax, others by its Taylor polynomial, which forgives them more.
        power = self.powers[0] if self.surprise / cells > MANO_CONFIDENT else self.powers[1]
        return {
            "histogram": self.histogram.numpy(),
            "nuclear_norm": np.float64(nuclear_norm(self.products, self.pixels)),
            "mano": np.float64((power / cells) ** (1 / MANO_POWER)),
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
    return p.pow(MANO_POWER).sum(dtype=torch.float64)


def mean_confidence(histogram: np.ndarray) -> float:
    """Mean probability of the most likely class, from a `histogram` of `Scores`, percent."""
    return float(100 * (histogram * (np.arange(BINS) + 0.5) / BINS).sum() / histogram.sum())


def average_thresholded_confidence(histogram: np.ndarray, source: np.ndarray, accuracy: float) -> float:
    """ATC (Garg et al., ICLR 2022): share of pixels more confident than a threshold chosen on the source, percent.

    Args:
        histogram: of `Scores` on the images in question.
        source: the same on labelled source images.
        accuracy: share of right pixels on the source, 0 .. 1; the threshold leaves this share of its pixels above.
    """
    above_source = np.cumsum(source[::-1])[::-1] / source.sum()
    threshold = int(np.abs(above_source - accuracy).argmin())
    return float(100 * histogram[threshold:].sum() / histogram.sum())
