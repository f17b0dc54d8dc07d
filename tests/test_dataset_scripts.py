"""The data scripts on generated trees in the official layouts: complete ones, and one defect at a time."""

import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import acdc
import camvid
import cityscapes
import dark_zurich
import dataset
import gta5
import nighttime_driving
import numpy as np
import pytest
from PIL import Image

DATASETS = {
    found.name: found
    for found in (
        cityscapes.CITYSCAPES,
        acdc.ACDC,
        gta5.GTA5,
        dark_zurich.DARK_ZURICH,
        nighttime_driving.NIGHTTIME_DRIVING,
        camvid.CAMVID_FRAMES,
    )
}
SIZE = (32, 16)
COUNT = 2


def small(found: dataset.Dataset) -> dataset.Dataset:
    """The data set with the same layout, but two small images a part."""
    parts = tuple(replace(part, count=part.count and COUNT, size=part.size and SIZE) for part in found.parts)
    return replace(found, parts=parts)


def write_tree(found: dataset.Dataset, root: Path) -> None:
    """Images and labels of every part, in a sequence's folder where the layout has one."""
    rng = np.random.default_rng(0)
    values = sum(found.label_set.values, ())
    for part in found.parts:
        for i in range(COUNT):
            name = f"sequence/frame{i}" if part.image_end != ".png" else f"frame{i}"
            image, label = (
                root / part.images / f"{name}{part.image_end}",
                root / part.labels / f"{name}{part.label_end}",
            )
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(image)
            Image.fromarray(rng.choice(values, SIZE[::-1]).astype(np.uint8)).save(label)


@pytest.mark.parametrize("name", DATASETS)
def test_a_complete_tree_has_no_problems(name, tmp_path):
    found = small(DATASETS[name])
    write_tree(found, tmp_path)
    assert dataset.check(found, tmp_path, progress=False) == {}


@pytest.fixture
def tree(tmp_path):
    """A complete Cityscapes, and its first image and label of val."""
    found = small(cityscapes.CITYSCAPES)
    write_tree(found, tmp_path)
    return found, tmp_path, *dataset.pairs(tmp_path, found.parts[1])[0]


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)


DEFECTS = {
    "a folder is missing": ("folder missing", lambda root, image, label: shutil.rmtree(root / "gtFine" / "val")),
    "an image and its label are missing": (
        "wrong number of images",
        lambda root, image, label: (image.unlink(), label.unlink()),
    ),
    "one too many": (
        "wrong number of images",
        lambda root, image, label: [
            shutil.copy(path, path.with_name(path.name.replace("frame0", "frame7"))) for path in (image, label)
        ],
    ),
    "a label is missing": ("image without label", lambda root, image, label: label.unlink()),
    "an image is missing": ("label without image", lambda root, image, label: image.unlink()),
    "a label under another name": (
        "image without label",
        lambda root, image, label: label.rename(label.with_name("frame0_gtFine_labelTrainIds.png")),
    ),
    "a half-written file": (
        "half-written file",
        lambda root, image, label: (image.parent / "frame9_leftImg8bit.png.part").write_bytes(b"1"),
    ),
    "a truncated image": ("unreadable image", lambda root, image, label: image.write_bytes(image.read_bytes()[:200])),
    "an empty image": ("unreadable image", lambda root, image, label: image.write_bytes(b"")),
    "an error page in place of an image": ("unreadable image", lambda root, image, label: image.write_text("<html>")),
    "a truncated label": ("unreadable label", lambda root, image, label: label.write_bytes(label.read_bytes()[:60])),
    "an image of another size": (
        "image of a wrong size",
        lambda root, image, label: save(image, np.zeros((8, 8, 3), np.uint8)),
    ),
    "a label of another size": (
        "label of another size",
        lambda root, image, label: save(label, np.full((8, 8), 7, np.uint8)),
    ),
    "a grey image": ("image of a wrong type", lambda root, image, label: save(image, np.zeros(SIZE[::-1], np.uint8))),
    "a label in colours": (
        "label of a wrong type",
        lambda root, image, label: save(label, np.zeros((*SIZE[::-1], 3), np.uint8)),
    ),
    "a label of 16 bits": (
        "label of a wrong type",
        lambda root, image, label: save(label, np.full(SIZE[::-1], 7, np.uint16)),
    ),
    "unknown label values": (
        "unknown label values",
        lambda root, image, label: save(label, np.full(SIZE[::-1], 77, np.uint8)),
    ),
    "nothing but void": (
        "label without any class",
        lambda root, image, label: save(label, np.zeros(SIZE[::-1], np.uint8)),
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_found_and_named(defect, tree):
    found, root, image, label = tree
    kind, damage = DEFECTS[defect]
    damage(root, image, label)
    problems = dataset.check(found, root, progress=False)
    assert kind in problems
    message = dataset.describe(problems)
    assert f"{kind}: 1" in message and str(root) in message


def test_only_the_first_ten_of_a_kind_are_shown():
    text = dataset.describe({"unreadable image": [f"frame{i}" for i in range(12)]})
    assert text.splitlines()[0] == "unreadable image: 12"
    assert "  frame9" in text and "frame10" not in text and "... and 2 more" in text


def run(found, *arguments):
    return dataset.main(found, [str(argument) for argument in arguments])


def test_archives_are_extracted_and_checked(tmp_path, capsys):
    found = small(nighttime_driving.NIGHTTIME_DRIVING)
    write_tree(found, tmp_path / "tree")
    root = tmp_path / "root"
    assert run(found, "--root", root, "extract") == 2
    assert "found none of the archives NighttimeDrivingTest.zip" in capsys.readouterr().err
    root.mkdir()
    with zipfile.ZipFile(root / "NighttimeDrivingTest.zip", "w") as archive:
        for path in (tmp_path / "tree").rglob("*.png"):
            archive.write(path, Path("NighttimeDrivingTest") / path.relative_to(tmp_path / "tree"))
    assert run(found, "--root", root, "extract") == 0
    assert run(found, "--root", root, "check") == 0
    assert "complete and right (test: 2 images)" in capsys.readouterr().out
    next(root.rglob("*_leftImg8bit.png")).unlink()
    assert run(found, "--root", root, "check") == 1
    assert "label without image: 1" in capsys.readouterr().err


def test_what_needs_an_account_is_not_downloaded_but_explained(tmp_path, capsys):
    assert run(cityscapes.CITYSCAPES, "--root", tmp_path, "download") == 2
    assert "csDownload" in capsys.readouterr().err
    assert run(acdc.ACDC, "instructions") == 0
    assert "acdc.vision.ee.ethz.ch" in capsys.readouterr().out


def test_what_needs_none_is_downloaded(tmp_path, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images/00001.png", b"1")
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "01_images.zip").write_bytes(buffer.getvalue())
    address = (tmp_path / "server" / "01_images.zip").as_uri()
    found = replace(gta5.GTA5, archives=(dataset.Archive("01_images.zip", address),))
    assert run(found, "--root", tmp_path / "gta5", "download") == 0
    assert run(found, "--root", tmp_path / "gta5", "extract") == 0
    assert (tmp_path / "gta5/images/00001.png").read_bytes() == b"1"
