"""The paper's data sets in their official layouts: what is cut out of them, and what is said about defects."""

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import paper
import pytest
from PIL import Image

from zodi.datasets import dataset_info, open_split, read_label
from zodi.labels import CITYSCAPES_IDS

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "cityscapes_sample"
SIZE = (32, 64)


def frame(image: Path, label: Path, size=SIZE, palette=False):
    rng = np.random.default_rng(zlib.crc32(image.name.encode()))
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    ids = Image.fromarray(rng.choice(np.array([0, 7, 8, 11, 23, 33, 34], np.uint8), size))
    if palette:
        ids = ids.convert("P")
    ids.save(label)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Cityscapes, ACDC (night) and GTA5 with two frames a part."""
    monkeypatch.setattr(paper.acdc, "SIZE", SIZE[::-1])
    for part, city in (("train", "aachen"), ("val", "munster")):
        for i in range(2):
            folder, name = tmp_path / "cityscapes", f"{part}/{city}/{city}_{i:06d}"
            frame(folder / f"leftImg8bit/{name}_leftImg8bit.png", folder / f"gtFine/{name}_gtFine_labelIds.png")
            folder, name = tmp_path / "acdc", f"night/{part}/GOPR0{part}/GOPR0{part}_frame_{i:06d}"
            frame(folder / f"rgb_anon/{name}_rgb_anon.png", folder / f"gt/{name}_gt_labelIds.png")
    for i in range(4):
        frame(tmp_path / f"gta5/images/{i:05d}.png", tmp_path / f"gta5/labels/{i:05d}.png", palette=True)
    return tmp_path


def splits(root, domains=("night", "game"), names=None):
    return paper.all_splits(root, domains, names)


def test_parts_are_cut_paired_and_resized(root, tmp_path):
    paper.check(splits(root))
    paper.prepare(splits(root), ["night", "game"], tmp_path / "data", 16, 32)
    assert dataset_info(tmp_path / "data")["domains"] == ["clear", "night", "game"]
    train = open_split(tmp_path / "data", "train")
    assert train.keys == ["aachen_000000", "aachen_000001"]
    assert train[0].image.shape == (16, 32, 3)
    assert set(np.unique(train[0].label)) <= {0, 1, 2, 10, 18, 255}
    assert open_split(tmp_path / "data", "test/night").keys == ["GOPR0val_frame_000000", "GOPR0val_frame_000001"]
    assert open_split(tmp_path / "data", "test/game").keys == ["00000", "00002"]
    assert open_split(tmp_path / "data", "train_game").keys == ["00001", "00003"]
    paper.prepare(splits(root), ["night", "game"], tmp_path / "data", 16, 32)
    with pytest.raises(ValueError, match="another data set"):
        paper.prepare(splits(root), ["night"], tmp_path / "data", 16, 32)


def test_test_frames_of_the_game_can_be_listed(root):
    assert [image.stem for image, _ in splits(root, names=["00003"])["test/game"]] == ["00003"]
    with pytest.raises(ValueError, match="99999"):
        splits(root, names=["99999"])


def test_frames_of_other_sizes_are_left_out_and_said(root, capsys):
    night = "night/val/GOPR0val/GOPR0val_frame_000009"
    frame(root / f"acdc/rgb_anon/{night}_rgb_anon.png", root / f"acdc/gt/{night}_gt_labelIds.png", (20, 30))
    Image.new("L", (8, 8)).save(root / "gta5/labels/00001.png")
    found = splits(root)
    assert len(found["test/night"]) == 2
    assert len(found["test/game"]) + len(found["train_game"]) == 3
    printed = capsys.readouterr().out
    assert "1 frames are not 1920x1080" in printed and "1 frames have labels of another size" in printed


def test_everything_that_is_missing_is_listed_at_once(root):
    (root / "cityscapes/gtFine/val/munster/munster_000001_gtFine_labelIds.png").unlink()
    for path in (root / "gta5" / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no frames for") as error:
        splits(root)
    assert "no frames for test/game" in str(error.value)
    assert "test/clear: 1 of 2 labels missing" in str(error.value)


def test_unreadable_and_wrong_files_are_named(root):
    image = root / "cityscapes/leftImg8bit/val/munster/munster_000000_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:60])
    label = root / "cityscapes/gtFine/train/aachen/aachen_000000_gtFine_labelIds.png"
    Image.fromarray(np.full(SIZE, 200, np.uint8)).save(label)
    with pytest.raises(ValueError, match="some files cannot be used") as error:
        paper.check(splits(root))
    assert "munster_000000_leftImg8bit.png" in str(error.value) and "unknown label values: 1" in str(error.value)


def test_command_line_says_what_to_do(tmp_path):
    script = str(ROOT / "data_scripts" / "paper.py")
    told = subprocess.run([sys.executable, script, "instructions"], capture_output=True, text=True, check=True)
    assert "data_scripts/cityscapes.py" in told.stdout
    missing = subprocess.run([sys.executable, script, "--root", str(tmp_path), "check"], capture_output=True, text=True)
    assert missing.returncode == 2 and "no frames for train" in missing.stderr


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs ../shared/data/cityscapes_sample")
def test_real_label_ids_become_the_official_train_ids():
    (pair,) = paper.cityscapes_splits(SAMPLE)["test/clear"]
    official = pair[1].with_name(pair[1].name.replace("labelIds", "labelTrainIds"))
    ours, theirs = read_label(pair[1], CITYSCAPES_IDS), np.array(Image.open(official))
    # The sample's two label files were made smaller one by one, so that some borders lie a pixel apart.
    assert (ours == theirs).mean() > 0.995
    for value in np.unique(ours):
        assert np.bincount(theirs[ours == value]).argmax() == value


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\x00", "not UTF-8"), (b"", "found nothing"), (b" \n\n", "found nothing")]
)
def test_a_list_of_test_frames_that_is_none_is_named(content, message, tmp_path):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        paper.listed_names(tmp_path / "list")
    assert str(error.value).startswith(f"{tmp_path / 'list'}: ")


def test_listed_frames_may_have_spaces_in_their_names(tmp_path):
    (tmp_path / "list").write_bytes("\ufeff00003\r\nframe 4\n".encode())
    assert paper.listed_names(tmp_path / "list") == ["00003", "frame 4"]
