import numpy as np
import pytest
import torch
from torch import nn

from zodi import evaluation
from zodi.datasets import open_split, read_label, write_miniature
from zodi.labels import CITYSCAPES, IGNORE_INDEX


class Constant(nn.Module):
    """Calls every pixel `index`."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.tensor(float(index)))

    def forward(self, x):
        logits = torch.zeros(len(x), CITYSCAPES.num_classes, *x.shape[2:])
        logits[:, int(self.index)] = 1
        return logits, logits


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = write_miniature(tmp_path_factory.mktemp("data") / "mini", 1, 3, ["night"], 48, 80, progress=False)
    return open_split(root, "test/clear")


def test_iou_by_hand():
    matrix = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
    values = evaluation.iou(matrix)
    assert values[:2] == pytest.approx([8 / 11, 4 / 7])
    assert np.isnan(values[2])
    assert evaluation.miou(matrix) == pytest.approx((8 / 11 + 4 / 7) / 2)
    assert np.isnan(evaluation.miou(np.zeros((3, 3), int)))


def test_a_class_only_predicted_lowers_the_others_and_is_not_averaged():
    matrix = np.array([[5, 5], [0, 0]])
    assert evaluation.iou(matrix)[0] == pytest.approx(0.5)
    assert evaluation.miou(matrix) == pytest.approx(0.5)


def test_confusion_counts_every_pixel_but_void_whatever_the_batch_size(dataset):
    road = CITYSCAPES.names.index("road")
    one = evaluation.confusion(Constant(road), dataset, CITYSCAPES.num_classes, batch_size=1)
    two = evaluation.confusion(Constant(road), dataset, CITYSCAPES.num_classes, batch_size=2)
    labels = np.concatenate([dataset[i].label.ravel() for i in range(len(dataset))])
    assert np.array_equal(one, two)
    assert one.sum() == (labels != IGNORE_INDEX).sum()
    assert one[:, road].sum() == one.sum()
    assert one[road, road] == (labels == road).sum()


def test_evaluate_reports_percent_by_name(dataset):
    road = CITYSCAPES.names.index("road")
    result = evaluation.evaluate(Constant(road), dataset, CITYSCAPES)
    labels = np.concatenate([dataset[i].label.ravel() for i in range(len(dataset))])
    assert result["iou"]["road"] == pytest.approx(100 * (labels == road).mean())
    assert result["iou"]["sky"] == 0
    assert result["images"] == 3


def test_predict_handles_sizes_that_are_no_multiple_of_32():
    image = np.zeros((50, 70, 3), np.uint8)
    predicted = evaluation.predict(Constant(3), image)
    assert predicted.shape == (50, 70) and predicted.dtype == np.uint8 and (predicted == 3).all()


def test_predictions_are_written_as_label_maps(dataset, tmp_path):
    evaluation.write_predictions(Constant(4), dataset, tmp_path, limit=2)
    files = sorted(tmp_path.iterdir())
    assert [file.stem for file in files] == dataset.keys[:2]
    assert (read_label(files[0], CITYSCAPES) == 4).all()
