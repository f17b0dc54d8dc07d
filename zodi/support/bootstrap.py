"""How far a score would move with other images: resampling of confusion matrices (the bootstrap of Efron, 1979)."""

import numpy as np

RESAMPLES = 10_000


def resample_weights(images: int, seeds: int = 1, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each generated image counts in each resample.

    Images are drawn with replacement, and for every drawn image as many transfers as it has, again with replacement, so
    that the variation caused by the generator's noise widens the interval.

    Returns:
        float32 (R, S * N), the transfers one after the other.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(images, size=(resamples, images, 1))
    transfers = rng.integers(seeds, size=(resamples, images, seeds)) if seeds > 1 else 0
    places = (transfers * images + drawn).reshape(resamples, -1)
    places += np.arange(resamples)[:, None] * seeds * images
    counts = np.bincount(places.ravel(), minlength=resamples * seeds * images)
    return counts.reshape(resamples, -1).astype(np.float32)


def bootstrap(confusions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """IoU of every class in every resample.

    Args:
        confusions: int (S, N, C, C).
        weights: float (R, S * N) of `resample_weights`.

    Returns:
        float64 (R, C), 0 .. 1; NaN where the resample does not contain the class.
    """
    matrices = confusions.reshape(-1, *confusions.shape[2:]).astype(np.float64)
    weights = weights.astype(np.float64)
    correct = weights @ np.diagonal(matrices, axis1=1, axis2=2)
    truth, predicted = weights @ matrices.sum(2), weights @ matrices.sum(1)
    return np.where(truth > 0, correct / np.maximum(truth + predicted - correct, 1), np.nan)
