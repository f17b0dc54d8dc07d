"""The data scripts on generated trees in the official layouts: complete ones, and one defect at a time."""

import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
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


def test_hidden_files_are_no_data(tree):
    found, root, image, label = tree
    for path in (image, label):
        left = path.parent / ".1234abcd.partial" / path.name.replace("frame0", "frame9")
        left.parent.mkdir()
        left.write_bytes(b"half")
        (path.parent / f"._{path.name}").write_bytes(b"of the system")
    assert dataset.check(found, root, progress=False) == {}


def test_folders_that_lie_elsewhere_are_followed_once(tree):
    found, root, image, label = tree
    for path in (image, label):
        (path.parent).rename(root / path.name)
        path.parent.symlink_to(root / path.name)
        (root / path.name / "loop").symlink_to(path.parent.parent)
    assert dataset.check(found, root, progress=False) == {}


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
    assert "complete and correct (test: 2 images)" in capsys.readouterr().out
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


# ---------------------------------------------------------------- download and extract together


def one_archive(folder: Path, name="set.zip", **options) -> tuple[dataset.Dataset, Path]:
    """A data set that comes in one archive, and the server's file of it."""
    folder.mkdir()
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("images/00001.png", b"1")
    archive = dataset.Archive(name, (folder / name).as_uri(), **options)
    return replace(gta5.GTA5, archives=(archive,)), folder / name


@pytest.mark.parametrize("damage", [lambda good: good[:-40], lambda good: b"<html>", lambda good: b""])
def test_an_archive_that_cannot_be_extracted_is_downloaded_again(damage, tmp_path, capsys):
    found, served = one_archive(tmp_path / "server")
    root = tmp_path / "root"
    assert run(found, "--root", root, "download") == 0
    (root / "set.zip").write_bytes(damage(served.read_bytes()))
    assert run(found, "--root", root, "extract") == 2
    assert f"error: {root / 'set.zip'}: " in capsys.readouterr().err
    assert run(found, "--root", root, "download") == 0
    assert "fetching it again" in capsys.readouterr().out
    assert run(found, "--root", root, "extract") == 0
    assert (root / "images" / "00001.png").read_bytes() == b"1"


def test_a_published_checksum_holds_for_download_and_extract(tmp_path, capsys):
    found, served = one_archive(tmp_path / "server")
    right = hashlib.sha256(served.read_bytes()).hexdigest()
    found = replace(found, archives=(replace(found.archives[0], checksum=right),))
    root = tmp_path / "root"
    assert run(found, "--root", root, "download") == 0
    assert "cannot be verified" not in capsys.readouterr().out
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        archive.writestr("images/other.png", b"2")
    assert run(found, "--root", root, "extract") == 2
    assert f"expected {right}; `download` fetches it again" in capsys.readouterr().err
    assert run(found, "--root", root, "download") == 0
    assert run(found, "--root", root, "extract") == 0
    assert [path.name for path in (root / "images").iterdir()] == ["00001.png"]


def test_what_is_missing_or_unfinished_is_said(tmp_path, capsys):
    found, served = one_archive(tmp_path / "server")
    found = replace(found, archives=(*found.archives, dataset.Archive("other.zip")))
    root = tmp_path / "root"
    root.mkdir()
    (root / "set.zip.part").write_bytes(b"1")
    assert run(found, "--root", root, "extract") == 2
    assert "found set.zip.part, not finished: `download` continues" in capsys.readouterr().err
    (root / "set.zip").write_bytes(served.read_bytes())
    assert run(found, "--root", root, "extract") == 0
    assert "not here and so not extracted: other.zip" in capsys.readouterr().err


def test_an_archive_without_the_folder_that_counts_is_not_taken_for_extracted(tmp_path, capsys):
    found, _ = one_archive(tmp_path / "server", inside="NighttimeDrivingTest/")
    assert run(found, "--root", tmp_path / "root", "download") == 0
    assert run(found, "--root", tmp_path / "root", "extract") == 2
    assert "found no files below NighttimeDrivingTest/" in capsys.readouterr().err


def test_what_cannot_be_verified_is_said_before_it_comes(tmp_path, capsys):
    for found in DATASETS.values():
        for archive in found.archives:
            assert not archive.url.startswith("http:") or archive.checksum
    plain = replace(gta5.GTA5, archives=(dataset.Archive("x.zip", "http://127.0.0.1:1/x.zip"),))
    (tmp_path / "x.zip").write_bytes(one_archive(tmp_path / "server")[1].read_bytes())
    assert run(plain, "--root", tmp_path, "download") == 0
    said = capsys.readouterr().out
    assert "no checksum is published and plain http can be changed" in said and "cannot be verified" in said


# ---------------------------------------------------------------- names

FOLDERS = ["two words", 'it\'s "quoted"', "#1 $(touch x) `y`", "{x} [y] *", "k: v", "é", "%41%", b"latin\xff", b"\x80"]


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_any_name_are_taken_as_they_are(name, tmp_path, capsys):
    root = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    found, _ = one_archive(tmp_path / "server")
    found = replace(small(gta5.GTA5), archives=found.archives)
    assert run(found, "--root", root, "download") == 0
    assert run(found, "--root", root, "extract") == 0
    (root / "images" / "00001.png").unlink()
    write_tree(found, root)
    assert run(found, "--root", root, "check") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"server", root.name}
    assert root.name.encode(errors="backslashreplace").decode() in capsys.readouterr().out


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    root = os.fsencode(tmp_path) + b"/latin\xff"
    os.mkdir(root)
    script = Path(__file__).parents[2] / "data_scripts" / "camvid.py"
    for verb, code in ((b"check", 1), (b"extract", 2), (b"prepare", 2)):
        # The strict encoding of a terminal's output.
        told = subprocess.run(
            [sys.executable, str(script), b"--root", root, verb],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
            cwd=tmp_path,
        )
        assert told.returncode == code and rb"latin\udcff" in told.stderr and b"Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("path", "code"), [("", 2), (" ", 2), ("~no-such-user/x", 2), ("a\nb", 0), ("file/below", 2), ("n" * 300, 2)]
)
def test_paths_that_cannot_be_are_one_line(path, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    found, _ = one_archive(tmp_path / "server")
    if path.strip() and not path.startswith("~"):
        assert run(found, f"--root={path}", "download") == code
    else:
        with pytest.raises(SystemExit, match=str(code)):
            run(found, f"--root={path}", "download")
    assert len([line for line in capsys.readouterr().err.splitlines() if "error: " in line]) == (code == 2)
    assert not (tmp_path / "set.zip").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found, _ = one_archive(tmp_path / "server")
    assert run(found, "--root=~/data", "download") == 0
    assert (tmp_path / "home" / "data" / "set.zip").is_file()


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "download", stop)
    assert run(one_archive(tmp_path / "server")[0], "--root", tmp_path, "download") == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\xff",
        b"BM" + bytes(8) + b"\x36\x00\x00\x00\x28\x00\x00\x00" + struct.pack("<iiHH", 10**5, 10**5, 1, 24) + bytes(24),
        b"RIFF\x10\x00\x00\x00WEBPVP8X\xff\xff\xff\xff",
    ],
)
def test_an_image_of_any_damage_is_a_line_of_the_report(content, tree):
    found, root, image, _ = tree
    image.write_bytes(content)
    problems = dataset.check(found, root, progress=False)
    assert problems.keys() == {"unreadable image"} and str(image) in problems["unreadable image"][0]
