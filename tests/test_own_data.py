"""A user's own images with a mapping: checked, written as a data set folder, and used by the package."""

import sys

import numpy as np
import own
import pytest
from PIL import Image

from zodi.datasets import dataset_info, open_split

MAPPING = "classes: {road: [1, 2], car: 9}\nvoid: 0\n"


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("source", 6), ("target", 2)):
        for i in range(count):
            for kind, array in (
                ("images", rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)),
                ("labels", rng.choice(np.array([0, 1, 2, 9], np.uint8), (20, 40))),
            ):
                folder = tmp_path / part / kind / "drive"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{i}.png")
    (tmp_path / "mine.yaml").write_text(MAPPING)
    return tmp_path


def run(monkeypatch, folders, verb, *options):
    source = ["--images", folders / "source/images", "--labels", folders / "source/labels"]
    command = ["own.py", verb, *source, "--mapping", folders / "mine.yaml", "--out", folders / "data", *options]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--height", "16", "--width", "32"])
    return own.main()


def test_a_data_set_with_cityscapes_classes(folders, monkeypatch, capsys):
    target = ["--domain", "night", "--target-images", folders / "target/images"]
    assert run(monkeypatch, folders, "prepare", *target) == 2
    assert "belong together" in capsys.readouterr().err
    target += ["--target-labels", folders / "target/labels"]
    assert run(monkeypatch, folders, "check", *target) == 0
    assert run(monkeypatch, folders, "prepare", *target) == 0
    assert dataset_info(folders / "data")["domains"] == ["clear", "night"]
    assert open_split(folders / "data", "train").keys == ["drive_1", "drive_2", "drive_3", "drive_4"]
    assert open_split(folders / "data", "test/clear").keys == ["drive_0", "drive_5"]
    sample = open_split(folders / "data", "test/night")[0]
    assert sample.image.shape == (16, 32, 3) and set(np.unique(sample.label)) <= {0, 13, 255}


def test_problems_are_named(folders, monkeypatch, capsys):
    Image.fromarray(np.full((20, 40), 5, np.uint8)).save(folders / "source/labels/drive/1.png")
    assert run(monkeypatch, folders, "check") == 1
    assert "unknown label values: 1" in capsys.readouterr().err
    (folders / "source/labels/drive/2.png").unlink()
    assert run(monkeypatch, folders, "prepare") == 2
    assert "no label map for 1 of 6 images: drive/2" in capsys.readouterr().err
