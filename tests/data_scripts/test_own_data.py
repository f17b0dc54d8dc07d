"""A user's own images with a mapping: checked, written as a data set folder, and used by the package."""

import os
import shutil
import subprocess
import sys

import numpy as np
import own
import pytest
from folder import write_folder
from PIL import Image

from zodi.datasets import dataset_info, open_split
from zodi.labels import CITYSCAPES

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
    assert open_split(folders / "data", "train").keys == ["drive/1", "drive/2", "drive/3", "drive/4"]
    assert open_split(folders / "data", "test/clear").keys == ["drive/0", "drive/5"]
    sample = open_split(folders / "data", "test/night")[0]
    assert sample.image.shape == (16, 32, 3) and set(np.unique(sample.label)) <= {0, 13, 255}


def test_problems_are_named(folders, monkeypatch, capsys):
    Image.fromarray(np.full((20, 40), 5, np.uint8)).save(folders / "source/labels/drive/1.png")
    assert run(monkeypatch, folders, "check") == 1
    assert "unknown label values: 1" in capsys.readouterr().err
    (folders / "source/labels/drive/2.png").unlink()
    assert run(monkeypatch, folders, "prepare") == 2
    assert "no label map for 1 of 6 images: drive/2" in capsys.readouterr().err


def test_label_values_keep_their_meaning_in_the_data_set(folders, monkeypatch, capsys):
    """CamVid's 0 is sky; read with Cityscapes' names it would be road."""
    for i in range(6):
        Image.fromarray(np.full((20, 40), 0, np.uint8)).save(folders / f"source/labels/drive/{i}.png")
    command = ["own.py", "prepare", "--mapping", "camvid", "--out", folders / "data", "--height", "16", "--width", "32"]
    command += ["--images", folders / "source/images", "--labels", folders / "source/labels"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    assert own.main() == 0
    train = open_split(folders / "data", "train")
    assert {train.label_set.names[index] for index in np.unique(train[0].label)} == {"sky"}
    assert dataset_info(folders / "data")["labels"]["names"][3] == "road"


@pytest.mark.parametrize("change", ["mapping", "label", "image", "root"])
def test_what_has_changed_since_is_not_taken_for_what_is_there(change, folders, monkeypatch, capsys):
    assert run(monkeypatch, folders, "prepare") == 0
    assert run(monkeypatch, folders, "prepare") == 0
    if change == "mapping":
        (folders / "mine.yaml").write_text(MAPPING.replace("[1, 2]", "[1]").replace("void: 0", "void: [0, 2]"))
    elif change == "root":
        (folders / "source").rename(folders / "moved")
        shutil.copytree(folders / "moved", folders / "source", copy_function=shutil.copyfile)
    else:
        file = folders / f"source/{change}s/drive/1.png"
        array = np.array(Image.open(file))
        Image.fromarray(array[::-1].copy()).save(file)
    assert run(monkeypatch, folders, "prepare") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    every = "train/drive/1, train/drive/2, train/drive/3, train/drive/4, test/clear/drive/0, test/clear/drive/5"
    differing = {"mapping": "meaning of the label files", "root": every}.get(change, "train/drive/1")
    assert f"holds another data set (what differs: {differing}); delete it" in line


def test_a_label_of_another_size_is_not_resized(folders, monkeypatch, capsys):
    Image.fromarray(np.ones((10, 20), np.uint8)).save(folders / "source/labels/drive/3.png")
    assert run(monkeypatch, folders, "check") == 1 and run(monkeypatch, folders, "prepare") == 2
    assert "3.png: found size 20x10, expected that of its image" in capsys.readouterr().err
    assert not (folders / "data").exists()


def test_names_in_subfolders_do_not_fall_together(folders, monkeypatch):
    for kind in ("images", "labels"):
        for name in ("a/b_c", "a_b/c"):
            file = folders / "source" / kind / f"{name}.png"
            file.parent.mkdir(exist_ok=True)
            shutil.copy(folders / "source" / kind / "drive" / "0.png", file)
    assert run(monkeypatch, folders, "prepare") == 0
    keys = open_split(folders / "data", "train").keys + open_split(folders / "data", "test/clear").keys
    assert {"a/b_c", "a_b/c"} <= set(keys) and len(keys) == 8


def test_check_and_prepare_agree_about_every_kind_of_photograph(folders, monkeypatch, capsys):
    images = folders / "source/images/drive"
    shape = (20, 40)
    Image.fromarray(np.full(shape, 99, np.uint8)).save(images / "0.png")
    Image.fromarray(np.full(shape, 30000, np.uint16)).save(images / "1.png")
    Image.fromarray(np.full(shape, 1, np.uint8)).convert("P").save(images / "2.png")
    Image.fromarray(np.full(shape, True)).save(images / "3.png")
    assert run(monkeypatch, folders, "check") == 0
    assert run(monkeypatch, folders, "prepare") == 0
    train = open_split(folders / "data", "train")
    assert train[0].image[0, 0].tolist() == [117] * 3
    Image.fromarray(np.zeros(shape, np.float32)).save(images / "4.tif")
    (images / "4.png").unlink()
    shutil.rmtree(folders / "data")
    assert run(monkeypatch, folders, "check") == 1 and run(monkeypatch, folders, "prepare") == 2
    assert capsys.readouterr().err.count("4.tif: found pixels of type 'F'") == 2


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_the_first_ten_files_of_each_kind_are_named(verb, folders, monkeypatch, capsys):
    for i in range(12):
        for kind, array in (("images", np.zeros((20, 40, 3), np.uint8)), ("labels", np.full((20, 40), 77, np.uint8))):
            Image.fromarray(array).save(folders / "source" / kind / "drive" / f"x{i:02}.png")
    (folders / "source/images/drive/0.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(folders / "source/labels/drive/1.png")
    assert run(monkeypatch, folders, verb) == {"check": 1, "prepare": 2}[verb]
    err = capsys.readouterr().err
    assert "unknown label values: 12" in err and "... and 2 more" in err
    assert "x09.png: found unknown label values [77]" in err and "x10.png" not in err
    assert "0.png: cannot be read as an image" in err and "label without any class: 1" in err
    assert not (folders / "data").exists()


def test_a_mapping_under_another_name_is_the_same_and_a_folder_without_its_sources_is_not_trusted(
    folders, monkeypatch, capsys
):
    assert run(monkeypatch, folders, "prepare") == 0
    (folders / "mine.yaml").rename(folders / "other.yaml")
    assert run(monkeypatch, folders, "prepare", "--mapping", folders / "other.yaml") == 0
    for content, message in (("[]", "what differs: meaning of the label files, train/drive/1"), (None, "no sources")):
        (folders / "data/sources.json").unlink()
        if content is not None:
            (folders / "data/sources.json").write_text(content)
        assert run(monkeypatch, folders, "prepare", "--mapping", folders / "other.yaml") == 2
        assert message in capsys.readouterr().err


def test_results_do_not_lie_among_the_images(folders, monkeypatch, capsys):
    assert run(monkeypatch, folders, "prepare", "--out", folders / "source/images/data") == 2
    assert "expected separate folders" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_large_photographs_are_read_when_that_is_allowed(verb, folders, monkeypatch, capsys):
    assert run(monkeypatch, folders, verb, "--max-pixels", 799) == {"check": 1, "prepare": 2}[verb]
    assert "0.png: cannot be read as an image (found 40x20 pixels, expected at most 799" in capsys.readouterr().err
    assert run(monkeypatch, folders, verb, "--max-pixels", 800) == 0


def test_names_that_are_not_utf8_are_told_and_used(folders):
    name = os.fsdecode(b"stra\xdfe.png")
    image, label = (folders / "source" / kind / name for kind in ("images", "labels"))
    try:
        shutil.copy(folders / "source/images/drive/0.png", image)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    command = [sys.executable, own.__file__, "prepare", "--mapping", folders / "mine.yaml", "--out", folders / "data"]
    command += ["--images", folders / "source/images", "--labels", folders / "source/labels"]
    missing = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert missing.returncode == 2 and "no label map for 1 of 7 images: stra\\udcdfe" in missing.stderr
    shutil.copy(folders / "source/labels/drive/0.png", label)
    for _ in ("written", "recognised"):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (folders / "data/train/images" / name).is_file() or (folders / "data/test/clear/images" / name).is_file()


def test_two_images_of_one_key_are_refused(folders):
    files = [folders / "source" / kind / "drive" / "0.png" for kind in ("images", "labels")]
    splits = {"train": [("a", *files), ("a", *files)]}
    with pytest.raises(ValueError, match=r"0\.png: found the key 'a' again"):
        write_folder(folders / "data", {"name": "x"}, splits, CITYSCAPES, (16, 32))
    assert not (folders / "data").exists()
