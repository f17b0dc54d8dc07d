"""A transferred folder: resume, refusal, and one clear message for everything that can be wrong with the input."""

import errno
import json
import multiprocessing
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
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zodi import diffusion
from zodi import transfer_folder as module
from zodi.labels import CITYSCAPES
from zodi.support import files
from zodi.support.files import read_json
from zodi.support.results import finished_keys, read_manifest
from zodi.transfer import domain_config
from zodi.transfer_folder import run_settings, transfer_folder


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
        f"'night', '--model', r'{tmp_path}/model', '--out', r'{tmp_path}/out', '--steps', '10', '--batch-size', '1', "
        "'--device', 'cpu', '--dtype', 'float32']))"
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


def test_another_type_or_device_is_noticed(tmp_path):
    tiny.write_dataset(tmp_path)
    diffusion.save(tiny.mini(), tmp_path / "model")
    half = diffusion.load(tmp_path / "model", dtype="bfloat16")
    assert run(half, tmp_path, limit=1).done == 1
    record = read_json(tmp_path / "out" / "settings.json")
    assert (record["settings"]["dtype"], record["environment"]["device"]) == ("torch.bfloat16", "cpu, bfloat16")
    with pytest.raises(ValueError, match=r"dtype: 'torch.bfloat16' there, 'torch.float32' asked for\)"):
        run(diffusion.load(tmp_path / "model"), tmp_path)
    assert run(half, tmp_path).skipped == 1


def test_what_is_the_same_bit_by_bit(model, tmp_path):
    """Order, company, shards and a resumed run do not matter while batches have one size."""
    for name in ("whole", "shards", "resumed", "alone"):
        tiny.write_dataset(tmp_path / name, count=6)
    run(model, tmp_path / "whole", batch_size=3)
    for shard in ((1, 2), (0, 2)):
        run(model, tmp_path / "shards", batch_size=3, shard=shard)
    for limit in (3, 6):
        run(model, tmp_path / "resumed", batch_size=3, limit=limit)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 6 and contents(tmp_path / "shards") == whole == contents(tmp_path / "resumed")
    for key in ("frame0", "frame2", "frame4"):
        (tmp_path / "alone" / "images" / f"{key}.png").unlink()
    run(model, tmp_path / "alone", batch_size=3)
    assert contents(tmp_path / "alone").items() <= whole.items()


def test_other_batches_differ_by_one_grey_level_at_most(model, tmp_path):
    found = []
    for size in (1, 2, 5):
        tiny.write_dataset(tmp_path / str(size), count=5)
        run(model, tmp_path / str(size), batch_size=size)
        images = sorted((tmp_path / str(size) / "out" / "images").iterdir())
        found.append(np.stack([np.array(Image.open(file), int) for file in images]))
    assert max(np.abs(found[0] - other).max() for other in found[1:]) <= 1


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
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"out: not enough disk space, .*3 images need"):
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


# ---------------------------------------------------------------- one bad file


def photometric(root: Path, **options):
    return transfer_folder(
        None, root / "images", None, root / "out", domain_config("night", "photometric"), CITYSCAPES, **options
    )


def test_files_that_no_library_reads_are_entries_with_their_names(tmp_path):
    images, _ = tiny.write_dataset(tmp_path, count=1)
    header = (images / "frame0.png").read_bytes()
    (images / "bomb.png").write_bytes(
        header[:16] + (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big") + header[24:]
    )
    info = PngInfo()
    info.add_text("comment", "a" * 2_000_000, zip=True)
    Image.new("RGB", (32, 16)).save(images / "text.png", pnginfo=info)
    (images / "empty.png").write_bytes(b"")
    (images / "locked.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (32, 16)).save(images / f"{'n' * 240}.png")
    report = photometric(tmp_path, progress=False)
    assert report.done == 2 and sorted(report.errors) == ["bomb", "empty", "locked", "text"]
    for key, message in report.errors.items():
        assert str(images / f"{key}.png") in message and "\n" not in message
    assert json.loads((tmp_path / "out" / "report.json").read_text())["errors"] == report.errors


def test_strips_are_entries_where_networks_would_enlarge_them_and_have_a_preview_elsewhere(model, tmp_path):
    images, labels = tiny.write_dataset(tmp_path, count=1)
    for key, size in (("wide", (5000, 1)), ("high", (4, 4000))):
        Image.new("RGB", size).save(images / f"{key}.png")
        Image.new("L", size).save(labels / f"{key}.png")
    report = run(model, tmp_path)
    assert report.done == 1 and sorted(report.errors) == ["high", "wide"]
    assert "wide.png: found 5000x1 pixels, which the networks would work on at 80000x16" in report.errors["wide"]
    (tmp_path / "plain").mkdir()
    images.rename(tmp_path / "plain" / "images")
    assert photometric(tmp_path / "plain", progress=False).done == 3
    assert (tmp_path / "plain" / "out" / "preview.png").exists()


def test_an_image_that_does_not_fit_into_memory_is_an_entry_and_its_batch_is_done(model, tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path, count=4)
    real = module.transfer_images

    def transfer(model, images, layouts, keys, config):
        if "frame2" in keys:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return real(model, images, layouts, keys, config)

    monkeypatch.setattr(module, "transfer_images", transfer)
    report = run(model, tmp_path)
    assert report.done == 3 and "frame2.png: CUDA out of memory" in report.errors["frame2"]


def test_a_preview_that_fails_is_an_entry(tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path)

    def fail(*arguments):
        raise ZeroDivisionError("no width")

    monkeypatch.setattr(module, "write_preview", fail)
    report = photometric(tmp_path, progress=False)
    assert report.done == 3 and list(report.errors) == ["preview.png"]
    assert "preview.png: cannot be made (no width)" in report.errors["preview.png"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["done"] == 3


def test_an_image_that_cannot_be_written_is_an_entry_and_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path, count=6)
    real = Image.Image.save
    codes = {"frame1.png": errno.EIO, "frame4.png": errno.ENOSPC}

    def save(image, file, **options):
        if Path(file).name in codes:
            raise OSError(codes[Path(file).name], os.strerror(codes[Path(file).name]), str(file))
        return real(image, file, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match=r"out: the disk is full .*frame4\.png.*run the same command again"):
        photometric(tmp_path, progress=False, batch_size=2)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["done"] == 4 and "frame1.png" in record["errors"]["frame1"] and "is full" in record["stopped"]
    assert finished_keys(tmp_path / "out") == ["frame0", "frame2", "frame3", "frame5"]
    codes.clear()
    report = photometric(tmp_path, progress=False)
    assert (report.done, report.skipped, report.ok) == (2, 4, True)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_checkpoint_that_is_not_a_number_stops_the_run_and_paints_nothing(tmp_path):
    tiny.write_dataset(tmp_path)
    model = tiny.mini()
    torch.nn.init.constant_(model.unet.conv_out.weight, torch.nan)
    with pytest.raises(ValueError, match=r"'tiny-mini': found \d+ of \d+ values from the UNet.*not a number"):
        run(model, tmp_path)
    assert contents(tmp_path) == {}
    assert "not a number" in json.loads((tmp_path / "out" / "report.json").read_text())["stopped"]


def test_names_of_any_kind(tmp_path):
    images, _ = tiny.write_dataset(tmp_path, count=1)
    strange = [images / name for name in ("a\u2028b.png", "c\x85d.png", "e\nf.png", "g'\"{}.png")]
    for file in strange:
        Image.new("RGB", (32, 16)).save(file)
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes(strange[0].read_bytes())
    first, second = photometric(tmp_path, progress=False), photometric(tmp_path, progress=False)
    assert (first.done, second.done, second.skipped) == (5, 0, 5)
    for report in (first, second):
        assert list(report.errors) == ["caf\\udce9"] and "the name is not UTF-8" in report.errors["caf\\udce9"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["errors"] == second.errors


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("out", ["images", "images/out", "labels/out", "."])
def test_a_result_inside_its_input_is_refused(model, tmp_path, out):
    images, labels = tiny.write_dataset(tmp_path)
    with pytest.raises(ValueError, match="in one place"):
        transfer_folder(model, images, labels, tmp_path / out, config_for(), CITYSCAPES, progress=False)
    assert len(list(tmp_path.rglob("*"))) == 8


def test_an_input_that_links_into_the_result_is_refused(tmp_path):
    images, _ = tiny.write_dataset(tmp_path)
    assert photometric(tmp_path, progress=False).done == 3
    (images / "again.png").symlink_to(tmp_path / "out" / "images" / "frame0.png")
    with pytest.raises(ValueError, match="in one place"):
        photometric(tmp_path, progress=False)


def test_the_home_folder_may_be_called_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.write_dataset(tmp_path)
    config = domain_config("night", "photometric")
    assert transfer_folder(None, "~/images", None, "~/out", config, CITYSCAPES, progress=False).done == 3
    assert finished_keys("~/out") == ["frame0", "frame1", "frame2"]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    tiny.write_dataset(tmp_path)
    leftover = tmp_path / "out" / "images" / ".frame0.png.abcd.partial"
    leftover.mkdir(parents=True)
    (leftover / "frame0.png").write_bytes(b"half")
    assert photometric(tmp_path, progress=False).ok
    assert sorted(contents(tmp_path)) == ["frame0.png", "frame1.png", "frame2.png"] and not leftover.exists()


def _start(root, seed, barrier, accepted):
    for turn in range(5):
        config = domain_config("night", "photometric", seed=seed)
        barrier.wait()
        try:
            transfer_folder(None, root / "images", None, root / str(turn), config, CITYSCAPES, progress=False)
            accepted.put((turn, seed))
        except ValueError as error:
            accepted.put((turn, str(error)))


def test_two_runs_of_the_same_instant_share_a_folder_only_with_the_same_settings(tmp_path):
    tiny.write_dataset(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, accepted = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_start, args=(tmp_path, seed, barrier, accepted)) for seed in (0, 1)]
    for process in processes:
        process.start()
    found = [accepted.get(timeout=120) for _ in range(2 * 5)]
    for process in processes:
        process.join()
    for turn in range(5):
        seed, refused = sorted((what for t, what in found if t == turn), key=lambda what: isinstance(what, str))
        assert f"seed: {seed} there, {1 - seed} asked for" in refused
        assert len(finished_keys(tmp_path / str(turn))) == 3


# ---------------------------------------------------------------- records that lie


def test_records_of_another_form_are_skipped_and_their_images_done_again(tmp_path):
    tiny.write_dataset(tmp_path)
    photometric(tmp_path, progress=False)
    manifest = tmp_path / "out" / "manifest.jsonl"
    lines = manifest.read_text().strip().split("\n")
    outside = json.loads(lines[1]) | {"file": "../outside.png"}
    (tmp_path / "outside.png").write_bytes((tmp_path / "out" / "images" / "frame1.png").read_bytes())
    manifest.write_text("\n".join([lines[0], "[1, 2]", "3", '{"key": "frame2"}', json.dumps(outside)]))
    report = photometric(tmp_path, progress=False)
    assert (report.done, report.skipped, report.ok, report.stale) == (2, 1, True, [])


def test_settings_that_were_deleted_do_not_make_other_images_ones_own(tmp_path):
    tiny.write_dataset(tmp_path)
    photometric(tmp_path, progress=False)
    before = contents(tmp_path)
    (tmp_path / "out" / "settings.json").unlink()
    fog = domain_config("fog", "photometric")
    report = transfer_folder(None, tmp_path / "images", None, tmp_path / "out", fog, CITYSCAPES, progress=False)
    assert (report.done, report.skipped, report.stale) == (3, 0, [])
    assert not set(contents(tmp_path).values()) & set(before.values())


def test_images_whose_source_is_gone_or_broken_are_set_aside_and_said(tmp_path):
    images, _ = tiny.write_dataset(tmp_path, count=4)
    photometric(tmp_path, progress=False)
    (images / "frame0.png").unlink()
    (images / "frame1.png").write_text("broken")
    (images / "frame2.png").write_bytes((images / "frame3.png").read_bytes())
    with pytest.warns(UserWarning, match=r"found 2 images whose source is gone .*example frame0\.png.*out/stale"):
        report = photometric(tmp_path, progress=False)
    assert report.stale == ["frame0.png", "frame1.png"] and (report.done, report.skipped) == (1, 1)
    assert sorted(contents(tmp_path)) == ["frame2.png", "frame3.png"]
    assert sorted(p.name for p in (tmp_path / "out" / "stale").iterdir()) == report.stale


def test_a_shard_leaves_the_images_of_others_alone(tmp_path):
    tiny.write_dataset(tmp_path, count=4)
    photometric(tmp_path, progress=False, shard=(0, 2))
    # As another shard that is at work has it: written, and not yet recorded.
    other = tmp_path / "out" / "images" / "frame1.png"
    other.write_bytes(b"of the other shard")
    assert photometric(tmp_path, progress=False, shard=(0, 2)).skipped == 2 and other.exists()
    assert photometric(tmp_path, progress=False, shard=(1, 2)).done == 2
    assert len(finished_keys(tmp_path / "out")) == 4


def test_the_content_of_a_label_set_is_a_setting_and_its_name_is_not(model, tmp_path):
    tiny.write_dataset(tmp_path)
    run(model, tmp_path)
    arguments = (model, tmp_path / "images", tmp_path / "labels", tmp_path / "out", config_for())
    assert transfer_folder(*arguments, replace(CITYSCAPES, name="mine"), progress=False).skipped == 3
    raw = tuple((index,) for index in range(19))
    assert transfer_folder(*arguments, replace(CITYSCAPES, raw_values=raw), progress=False).skipped == 3
    for changes, said in (
        ({"raw_values": ((40,), *raw[1:])}, r"classes\.road\.values: \[0\] there, \[40\] asked"),
        ({"void_values": (254, 255)}, r"label_set\.void: \[255\] there, \[254, 255\] asked"),
        ({"colors": ((1, 2, 3), *CITYSCAPES.colors[1:])}, r"classes\.road\.color"),
        ({"names": ("street", *CITYSCAPES.names[1:])}, r"classes\.street"),
    ):
        with pytest.raises(ValueError, match=said):
            transfer_folder(*arguments, replace(CITYSCAPES, **changes), progress=False)


def test_every_weight_is_a_setting(model, tmp_path):
    before = run_settings(model, config_for(), CITYSCAPES)
    other = tiny.mini()
    assert run_settings(other, config_for(), CITYSCAPES) == before
    with torch.no_grad():
        other.unet.conv_in.weight.view(-1)[-1] += 1e-3
    after = run_settings(other, config_for(), CITYSCAPES)
    assert [name for name in before if before[name] != after[name]] == ["model_fingerprint"]
