"""Scores without labels, on predictions whose scores can be reckoned by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from zodi.datasets import Sample
from zodi.evaluation import image_confusions
from zodi.studies import unlabelled

CLASSES = 4


class Says(nn.Module):
    """Logits of `height` for the class that the brightness of a pixel's column names; 0 for the others."""

    def __init__(self, height: float, classes: list[int]) -> None:
        super().__init__()
        self.height, self.classes = nn.Parameter(torch.tensor(height)), classes

    def forward(self, x):
        logits = torch.zeros(len(x), CLASSES, *x.shape[2:])
        for column in range(x.shape[3]):
            logits[:, self.classes[column % len(self.classes)], :, column] = self.height
        return logits


def scores_of(height, classes, batch_size=2):
    images = [Sample(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), str(i)) for i in range(3)]
    found = unlabelled.Scores(CLASSES)
    image_confusions(Says(height, classes), images, CLASSES, batch_size, look=found.add)
    return found.found()


def test_confident_predictions_of_all_classes_have_the_largest_nuclear_norm():
    assert scores_of(100.0, [0, 1, 2, 3])["nuclear_norm"] == pytest.approx(1)
    assert scores_of(100.0, [0])["nuclear_norm"] == pytest.approx(CLASSES**-0.5), "one class alone"
    assert scores_of(0.0, [0])["nuclear_norm"] == pytest.approx(1 / CLASSES), "no idea at all"


def test_nuclear_norm_is_that_of_the_whole_matrix():
    p = torch.rand(50, CLASSES, dtype=torch.float64).softmax(1)
    expected = torch.linalg.matrix_norm(p, "nuc").item() / np.sqrt(CLASSES * 50)
    assert unlabelled.nuclear_norm(p.T @ p, 50) == pytest.approx(expected)


def test_mano_of_confident_and_of_unsure_networks():
    assert scores_of(100.0, [0, 1])["mano"] == pytest.approx(CLASSES**-0.25), "the softmax of a confident network"
    polynomial = np.array([1 + 2 + 2, 1, 1, 1]) / 8
    expected = (np.sum(polynomial**4) / CLASSES) ** 0.25
    assert scores_of(2.0, [0, 1])["mano"] == pytest.approx(expected), "the polynomial of an unsure one"


@pytest.mark.parametrize("height", [0.5, 2.0, 100.0])
def test_scores_do_not_depend_on_the_batches(height):
    one, all_at_once = scores_of(height, [0, 2], 1), scores_of(height, [0, 2], 3)
    assert np.array_equal(one["histogram"], all_at_once["histogram"]) and one["histogram"].sum() == 3 * 32 * 32
    for name in ("nuclear_norm", "mano"):
        assert one[name] == pytest.approx(all_at_once[name])


def test_atc_and_mean_confidence_on_known_histograms():
    histogram = np.zeros(unlabelled.BINS, int)
    histogram[[200, 800]] = [30, 70]
    assert unlabelled.mean_confidence(histogram) == pytest.approx(100 * (0.3 * 0.2005 + 0.7 * 0.8005))
    assert unlabelled.average_thresholded_confidence(histogram, histogram, 0.7) == pytest.approx(70)
    shifted = np.zeros(unlabelled.BINS, int)
    shifted[[200, 800]] = [60, 40]
    assert unlabelled.average_thresholded_confidence(shifted, histogram, 0.7) == pytest.approx(40)
