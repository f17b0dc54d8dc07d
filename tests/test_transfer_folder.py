"""A transferred folder: resume, refusal, and one clear message for everything that can be wrong with the input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from zodi import diffusion
from zodi import transfer_folder as module
from zodi.labels import CITYSCAPES
from zodi.transfer import domain_config
from zodi.transfer_folder import read_manifest, transfer_folder


@pytest.fixture(scope="module")
def model():
    """A tiny checkpoint in the miniature's format."""
    return tiny.mini()


def config_for(**changes):
    return domain_config("night", defaults=tiny.MINI_DEFAULTS, **{"num_inference_steps": 2} | changes)


def run(model, root: Path, config=None, **options):
    arguments = (root / "images", root / "labels", root / "out", config or config_for(), CITYSCAPES)
    return transfer_folder(model, *arguments, progress=False, **options)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def contents(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "out" / "images").rglob("*.png"))}


def test_a_compiled_model_sees_one_batch_size_and_makes_the_same_images(model, tmp_path):
    tiny.write_dataset(tmp_path / "plain")
    tiny.write_dataset(tmp_path / "compiled")
    run(model, tmp_path / "plain", batch_size=2)
    sizes = set()
    hook = model.vae.encoder.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    report = run(replace(model, compiled=True), tmp_path / "compiled", batch_size=2)
    hook.remove()
    assert report.done == 3 and sizes == {2}
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")


def test_whole_folder(model, tmp_path):
    tiny.write_dataset(tmp_path)
    report = run(model, tmp_path)
    assert (report.total, report.done, report.skipped, report.errors, report.ok) == (3, 3, 0, {}, True)
    assert list(contents(tmp_path)) == ["frame0.png", "frame1.png", "frame2.png"]
    record = read_manifest(tmp_path / "out")["frame1"]
    saved = tmp_path / "out" / "images" / "frame1.png"
    assert (record["file"], record["width"], record["height"]) == ("images/frame1.png", 32, 16)
    assert record["bytes"] == saved.stat().st_size and len(record["sha256"]) == 64
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["settings"]["prompt"] == "driving at night" and record["settings_hash"] == settings["settings_hash"]
    assert size_of(tmp_path / "out" / "preview.png") == (3 * 320, 3 * 160)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["done"] == 3


def test_nothing_is_done_twice_and_what_changed_is_done_again(model, tmp_path):
    _, labels = tiny.write_dataset(tmp_path)
    run(model, tmp_path)
    before = contents(tmp_path)
    assert run(model, tmp_path).skipped == 3

    # As after kill -9: one image without its line, one half-written, one line half-written.
    manifest = tmp_path / "out" / "manifest.jsonl"
    lines = manifest.read_text().strip().splitlines()
    manifest.write_text("\n".join([lines[0], lines[1], lines[2][:40]]))
    broken = tmp_path / "out" / "images" / "frame0.png"
    broken.write_bytes(broken.read_bytes()[:50])
    report = run(model, tmp_path)
    assert (report.done, report.skipped) == (2, 1)
    assert contents(tmp_path) == before
    assert run(model, tmp_path).skipped == 3

    Image.fromarray(np.zeros((16, 32), np.uint8)).save(labels / "frame2.png")
    assert (run(model, tmp_path).done, len(read_manifest(tmp_path / "out"))) == (1, 3)


def test_kill_9(model, tmp_path):
    tiny.write_dataset(tmp_path, count=40)
    diffusion.save(model, tmp_path / "model")
    code = (
        "import sys; from zodi.__main__ import main;"
        f"sys.exit(main(['transfer', '--images', r'{tmp_path}/images', '--labels', r'{tmp_path}/labels', '--domain', "
        f"'night', '--model', r'{tmp_path}/model', '--out', r'{tmp_path}/out', '--steps', '10', '--batch-size', '1']))"
    )
    path = os.pathsep.join([str(Path(module.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    while len(read_manifest(tmp_path / "out")) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(read_manifest(tmp_path / "out"))
    assert 2 <= finished < 40
    loaded = diffusion.load(tmp_path / "model")
    config = domain_config("night", defaults=loaded.defaults, num_inference_steps=10)
    report = run(loaded, tmp_path, config, limit=finished + 3)
    assert (report.skipped, report.done) == (finished, 3)


def test_other_settings_are_refused_and_named(model, tmp_path):
    tiny.write_dataset(tmp_path)
    run(model, tmp_path)
    with pytest.raises(ValueError, match=r"another transfer \(seed: 0 there, 1 asked for\)"):
        run(model, tmp_path, config_for(seed=1))
    with pytest.raises(ValueError, match="model_fingerprint"):
        run(tiny.mini(seed=1), tmp_path)


def test_shards_and_batches_make_the_same_images(model, tmp_path):
    for name in ("one", "shards"):
        tiny.write_dataset(tmp_path / name, count=5)
    run(model, tmp_path / "one", batch_size=1)
    reports = [run(model, tmp_path / "shards", shard=(i, 2), batch_size=3) for i in (0, 1)]
    assert [r.done for r in reports] == [3, 2]
    assert len(read_manifest(tmp_path / "shards" / "out")) == 5
    assert run(model, tmp_path / "shards").skipped == 5
    for name in contents(tmp_path / "one"):
        one, other = (np.array(Image.open(tmp_path / d / "out" / "images" / name), int) for d in ("one", "shards"))
        assert np.abs(one - other).max() <= 1


def test_limit_can_grow(model, tmp_path):
    tiny.write_dataset(tmp_path)
    assert run(model, tmp_path, limit=2).done == 2
    report = run(model, tmp_path)
    assert (report.done, report.skipped) == (1, 2)


def test_each_bad_file_is_named_and_the_rest_is_done(model, tmp_path):
    images, labels = tiny.write_dataset(tmp_path, count=6)
    (images / "frame0.png").write_bytes((images / "frame0.png").read_bytes()[:200])
    (images / "frame1.png").write_text("not an image")
    (labels / "frame2.png").unlink()
    Image.fromarray(np.full((16, 32), 77, np.uint8)).save(labels / "frame3.png")
    Image.fromarray(np.zeros((16, 30), np.uint8)).save(labels / "frame4.png")
    report = run(model, tmp_path)
    assert not report.ok and (report.total, report.done) == (6, 1)
    for key, message in {
        "frame0": "frame0.png: cannot be read as an image",
        "frame1": "frame1.png: cannot be read as an image",
        "frame2": "no label map, expected",
        "frame3": "found unknown label values [77]",
        "frame4": "found size 30x16, expected that of its image frame4.png, 32x16",
    }.items():
        assert message in report.errors[key]
        assert key in report.errors[key]
    assert list(contents(tmp_path)) == ["frame5.png"]

    Image.fromarray(np.zeros((16, 32), np.uint8)).save(labels / "frame2.png")
    again = run(model, tmp_path)
    assert (again.done, again.skipped, len(again.errors)) == (1, 1, 4)


def test_sizes_may_differ_and_subfolders_are_kept(model, tmp_path):
    images, labels = tiny.write_dataset(tmp_path, count=1)
    for folder, mode, shape in ((images, "L", (20, 26)), (labels, "L", (20, 26))):
        (folder / "city").mkdir()
        suffix = ".jpg" if folder == images else ".png"
        Image.fromarray(np.zeros(shape, np.uint8), mode).save(folder / "city" / f"a{suffix}")
    assert run(model, tmp_path).done == 2
    assert size_of(tmp_path / "out" / "images" / "city" / "a.png") == (26, 20)


def test_a_full_disk_stops_before_the_start(model, tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match="not enough disk space, 3 images need"):
        run(model, tmp_path)
    assert not (tmp_path / "out" / "images").exists()


def test_without_diffusion_no_labels_and_no_model_are_needed(tmp_path):
    images, _ = tiny.write_dataset(tmp_path)
    config = domain_config("night", "photometric")
    report = transfer_folder(None, images, None, tmp_path / "out", config, CITYSCAPES, progress=False)
    assert report.ok and report.done == 3
    assert size_of(tmp_path / "out" / "preview.png") == (2 * 320, 3 * 160)


def test_missing_folders_and_wrong_arguments(model, tmp_path):
    images, labels = tiny.write_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        transfer_folder(model, tmp_path / "nowhere", labels, tmp_path / "out", config_for(), CITYSCAPES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no images found"):
        transfer_folder(model, tmp_path / "empty", labels, tmp_path / "out", config_for(), CITYSCAPES)
    with pytest.raises(ValueError, match="give the folder of label maps"):
        transfer_folder(model, images, None, tmp_path / "out", config_for(), CITYSCAPES)
    with pytest.raises(ValueError, match=r"shard=\(2, 2\)"):
        run(model, tmp_path, shard=(2, 2))
    with pytest.raises(ValueError, match="limit=0"):
        run(model, tmp_path, limit=0)
