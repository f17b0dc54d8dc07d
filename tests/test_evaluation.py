import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image
from torch import nn

from zodi import evaluation
from zodi.datasets import FolderDataset, Sample, open_split, read_label
from zodi.labels import CAMVID, CITYSCAPES, CITYSCAPES_IDS, IGNORE_INDEX, LabelSet
from zodi.miniature.dataset import write_miniature
from zodi.segmentation import IMAGENET_MEAN, IMAGENET_STD, build_network

SHARED = Path(__file__).parents[2] / "shared" / "data" / "cityscapes_sample"
IDS = np.array([values[0] for values in CITYSCAPES_IDS.values])


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


class Readout(nn.Module):
    """Calls every pixel what its red value says, so that a test can write any prediction as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        index = ((x[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255).round().long()
        logits = nn.functional.one_hot(index, CITYSCAPES.num_classes).permute(0, 3, 1, 2).float()
        return logits, logits


def test_every_pixel_is_counted_in_its_cell():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, CITYSCAPES.num_classes, (2, 40, 70), dtype=np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE_INDEX
    expected = np.zeros((CITYSCAPES.num_classes,) * 2, np.int64)
    for truth, found in zip(label.ravel(), predicted.ravel(), strict=True):
        if truth != IGNORE_INDEX:
            expected[truth, found] += 1
    sample = Sample(np.stack([predicted] * 3, -1), label, "a")
    (matrix,) = evaluation.image_confusions(Readout(), [sample], CITYSCAPES.num_classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


def both_evaluations(folder, labels, predictions):
    """Ours and cityscapesscripts', on maps of Cityscapes ids and of predicted train ids: class -> IoU, and the mean."""
    for part in ("images", "labels", "predictions"):
        (folder / part).mkdir(parents=True)
    for index, (label, predicted) in enumerate(zip(labels, predictions, strict=True)):
        Image.fromarray(np.stack([predicted] * 3, -1)).save(folder / "images" / f"{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"{index}.png")
        Image.fromarray(IDS[predicted].astype(np.uint8)).save(folder / "predictions" / f"{index}.png")
    dataset = FolderDataset(folder / "images", folder / "labels", CITYSCAPES_IDS)
    ours = evaluation.evaluate(Readout(), dataset, CITYSCAPES_IDS)
    args = copy.copy(official.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    files = [[str(file) for file in sorted((folder / part).iterdir())] for part in ("predictions", "labels")]
    theirs = official.evaluateImgLists(*files, args)
    return ours, theirs["classScores"], theirs["averageScoreClasses"]


def test_agrees_with_cityscapesscripts(tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 34, (40, 70), dtype=np.uint8) for _ in range(3)]
    predictions = [rng.integers(0, CITYSCAPES.num_classes, label.shape, dtype=np.uint8) for label in labels]
    for label, predicted in zip(labels, predictions, strict=True):
        known = rng.random(label.shape) < 0.7
        for index, value in enumerate(IDS):
            predicted[known & (label == value)] = index
    ours, theirs, average = both_evaluations(tmp_path, labels, predictions)
    assert ours["iou"] == pytest.approx({name: 100 * theirs[name] for name in CITYSCAPES.names}, abs=1e-9)
    assert 20 < ours["miou"] < 90
    assert ours["miou"] == pytest.approx(100 * average, abs=1e-9)


def test_a_class_without_truth_is_where_cityscapesscripts_counts_a_zero(tmp_path):
    labels = np.full((4, 4), IDS[0], np.uint8)
    predicted = np.zeros((4, 4), np.uint8)
    predicted[0] = 5
    ours, theirs, average = both_evaluations(tmp_path, [labels], [predicted])
    assert ours["miou"] == pytest.approx(75) and np.isnan(ours["iou"][CITYSCAPES.names[5]])
    assert theirs[CITYSCAPES.names[5]] == 0 and average == pytest.approx(0.375)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/cityscapes_sample (a real label file)")
def test_agrees_with_cityscapesscripts_on_a_real_label_file(tmp_path):
    file = next(SHARED.rglob("*_labelIds.png"))
    label = np.array(Image.open(file))
    predicted = np.roll(read_label(file, CITYSCAPES_IDS), 5, axis=1)
    predicted[predicted == IGNORE_INDEX] = 0
    ours, theirs, _ = both_evaluations(tmp_path, [label], [predicted])
    present = {name: value for name, value in ours["iou"].items() if not np.isnan(value)}
    assert len(present) > 5
    assert present == pytest.approx({name: 100 * theirs[name] for name in present}, abs=1e-9)


class Outputs(nn.Module):
    """Calls every pixel the last of `count` classes, or gives a value that is no number."""

    def __init__(self, count: int, value: float = 1.0, label_set: LabelSet | None = None) -> None:
        super().__init__()
        self.count, self.value, self.label_set = count, nn.Parameter(torch.tensor(value)), label_set

    def forward(self, x):
        logits = torch.zeros(len(x), self.count, *x.shape[2:])
        logits[:, -1] = self.value
        return logits


def named(label_set: LabelSet | None, count: int) -> nn.Module:
    network = build_network("Unet/resnet18", count)
    network.label_set = label_set
    return network


OTHER_ORDER = LabelSet("turned", CITYSCAPES.names[::-1], CITYSCAPES.colors[::-1])


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (lambda: Outputs(19), ""),
        (lambda: Outputs(19, label_set=CITYSCAPES_IDS), ""),
        (lambda: named(CITYSCAPES, 19), ""),
        (lambda: named(None, 19), ""),
        (lambda: Outputs(11), "network 'Outputs' has 11 classes, the data has 19 classes"),
        (lambda: Outputs(25), "network 'Outputs' has 25 classes, the data has 19 classes"),
        (lambda: Outputs(11, label_set=CAMVID), r"has 11 classes \(sky, .*bicyclist\), the data has 19 .*\(road, "),
        (lambda: Outputs(19, label_set=OTHER_ORDER), r"has 19 classes \(bicycle, .*, the data has 19 classes \(road, "),
        (lambda: named(CAMVID, 11), r"'Unet/resnet18' has 11 classes \(sky, .*, the data has 19 classes \(road, "),
        (lambda: named(None, 11), r"'Unet/resnet18' has 11 classes, the data has 19 classes \(road, "),
        (lambda: Outputs(19, float("nan")), "network 'Outputs': found logits for .* not a number"),
        (lambda: Outputs(19, float("inf")), "network 'Outputs': found logits for .* not a number"),
    ],
)
def test_a_network_is_only_evaluated_on_its_own_classes_and_with_numbers(dataset, network, found):
    calls = [
        lambda: evaluation.evaluate(network(), dataset, CITYSCAPES),
        lambda: evaluation.image_confusions(network(), dataset, 19, batch_size=2),
        lambda: evaluation.confusion(network(), dataset, 19),
    ]
    for call in calls:
        if not found:
            assert call() is not None
        else:
            with pytest.raises(ValueError, match=found):
                call()


def test_the_image_of_logits_that_are_no_numbers_is_named(dataset):
    with pytest.raises(ValueError, match=f"for {dataset.keys[0]} that"):
        evaluation.confusion(Outputs(19, float("nan")), dataset, 19)
    with pytest.raises(ValueError, match="not a number"):
        evaluation.predict(Outputs(19, float("nan")), dataset[0].image)


def test_the_label_set_of_an_evaluation_is_the_data_sets(dataset):
    with pytest.raises(ValueError, match="label_set has 11 classes"):
        evaluation.evaluate(Outputs(11), dataset, CAMVID)
    with pytest.raises(ValueError, match="num_classes has 11 classes, the data has 19"):
        evaluation.image_confusions(Outputs(11), dataset, 11)


def test_no_row_of_the_matrix_holds_anything_but_its_class():
    image, label = np.zeros((4, 8, 3), np.uint8), np.array([[0, 1, 2, 255] * 2] * 4, np.uint8)
    matrix = evaluation.confusion(Outputs(3), [Sample(image, label, "a")], 3)
    assert matrix.sum(1).tolist() == [8, 8, 8] and matrix[:, 2].tolist() == [8, 8, 8]
    with pytest.raises(ValueError, match="has 5 classes, the data has 3"):
        evaluation.confusion(Outputs(5), [Sample(image, label, "a")], 3)
    label[0, 0] = 3
    with pytest.raises(ValueError, match=r"a: found the class 3, expected 0 .. 2"):
        evaluation.confusion(Outputs(3), [Sample(image, label, "a")], 3)
