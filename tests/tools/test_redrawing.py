"""Target photographs redrawn in the source's domain, from the network's own prediction or from none."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zodi import diffusion
from zodi.__main__ import main
from zodi.datasets import find_files
from zodi.labels import CITYSCAPES, IGNORE_INDEX
from zodi.miniature.dataset import write_miniature
from zodi.segmentation import DEFAULT_NETWORK, build_network, save_network
from zodi.support.files import read_json
from zodi.tools.redrawing import redraw_target

ROAD, SKY = (CITYSCAPES.names.index(name) for name in ("road", "sky"))
QUICK = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 1.0}


class UpAndDown(nn.Module):
    """Calls the upper half of every image sky and the lower one road."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        logits = torch.zeros(len(x), CITYSCAPES.num_classes, *x.shape[2:])
        half = x.shape[2] // 2
        logits[:, SKY, :half] = self.height
        logits[:, ROAD, half:] = self.height
        return logits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("redrawing") / "data"
    write_miniature(root, 1, 2, ["night"], 96, 192, progress=False)
    return root


@pytest.fixture(scope="module")
def model():
    return diffusion.load()


def images_of(folder):
    return {key: np.asarray(Image.open(file)) for key, file in find_files(folder / "redrawn" / "images").items()}


def test_the_layout_is_what_the_network_sees_and_labels_are_not_read(data, model, tmp_path):
    night, settings = tmp_path / "photographs", QUICK | {"strength": 0.75, "guidance_scale": 2.0}
    night.symlink_to(data / "test" / "night" / "images")
    report = redraw_target(UpAndDown(), night, tmp_path / "out", model, CITYSCAPES, progress=False, **settings)
    assert (report.done, report.ok) == (2, True)
    layouts = {key: np.asarray(Image.open(file)) for key, file in find_files(tmp_path / "out" / "layout").items()}
    assert len(layouts) == 2
    assert all((label[:48] == SKY).all() and (label[48:] == ROAD).all() for label in layouts.values())
    redrawn = images_of(tmp_path / "out")
    assert redrawn.keys() == layouts.keys() and all(image.shape == (96, 192, 3) for image in redrawn.values())
    photographs = [np.asarray(Image.open(file)) for file in find_files(night).values()]
    assert np.mean(list(redrawn.values())) > 1.3 * np.mean(photographs), "a clear day is brighter than a night"
    again = redraw_target(UpAndDown(), night, tmp_path / "out", model, CITYSCAPES, progress=False, **settings)
    assert (again.done, again.skipped) == (0, 2)


def test_without_a_layout_everything_is_void_and_the_image_another_one(data, model, tmp_path):
    night = data / "test" / "night" / "images"
    for layout in ("predicted", "none"):
        redraw_target(UpAndDown(), night, tmp_path / layout, model, CITYSCAPES, layout, progress=False, **QUICK)
    for file in find_files(tmp_path / "none" / "layout").values():
        assert (np.asarray(Image.open(file)) == IGNORE_INDEX).all()
    with_layout, without = images_of(tmp_path / "predicted"), images_of(tmp_path / "none")
    assert any(not np.array_equal(with_layout[key], without[key]) for key in without)


def test_wrong_arguments_are_named_before_anything_is_written(data, model, tmp_path):
    night = data / "test" / "night" / "images"
    with pytest.raises(ValueError, match="layout 'true': expected one of"):
        redraw_target(UpAndDown(), night, tmp_path / "out", model, CITYSCAPES, "true")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        redraw_target(UpAndDown(), tmp_path / "empty", tmp_path / "out", model, CITYSCAPES)
    assert not (tmp_path / "out").exists()


def test_the_command_scores_before_and_after(data, tmp_path, capsys):
    save_network(build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini"), tmp_path / "network")
    night = data / "test" / "night"
    command = ["redraw", "--network", str(tmp_path / "network"), "--images", str(night / "images")]
    command += ["--labels", str(night / "labels"), "--out", str(tmp_path / "out")]
    assert main([*command, "--strength", "0.5", "--steps", "4"]) == 0
    text = capsys.readouterr().out
    assert "before: mIoU" in text and "after: mIoU" in text
    metrics = read_json(tmp_path / "out" / "metrics.json")["metrics"]
    assert 0 <= metrics["before"] <= 100 and 0 <= metrics["after"] <= 100
    assert metrics["before"] != metrics["after"]
