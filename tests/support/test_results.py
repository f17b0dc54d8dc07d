"""Folders of results: claims that differ are named, and records that lie do not count."""

import json
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from zodi.support import results

SETTINGS = {"seed": 0, "label_set": {"classes": {"road": {"values": [0]}}}}


@pytest.fixture
def folder(tmp_path):
    """A claimed folder with two finished images and their sources."""
    digest = results.claim(tmp_path, SETTINGS)
    for key in ("a", "city/b"):
        source = tmp_path.parent / f"{tmp_path.name}-sources" / f"{key}.png"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(key)
        image = np.zeros((4, 6, 3), np.uint8)
        write_line(tmp_path, results.write_image(tmp_path, key, image, results.sha256_of(source), digest))
    return tmp_path


def write_line(folder, record, file="manifest.jsonl"):
    with (folder / file).open("a") as lines:
        lines.write("\n" + json.dumps(record))


def test_whole_images_of_these_settings_are_finished(folder):
    assert results.finished_keys(folder) == ["a", "city/b"]
    (folder / "images" / "a.png").write_bytes(b"other")
    assert results.finished_keys(folder) == ["city/b"]
    (folder / "images" / "city" / "b.png").unlink()
    assert results.finished_keys(folder) == []


def test_same_size_but_other_bytes_is_not_finished(folder):
    file = folder / "images" / "a.png"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert results.finished_keys(folder) == ["city/b"]


def test_a_record_in_any_manifest_counts(folder):
    record = results.read_manifest(folder)["a"]
    write_line(folder, record | {"source_sha256": "new"}, "manifest-0-of-2.jsonl")
    assert results.finished_keys(folder) == ["a", "city/b"]
    source = folder.parent / f"{folder.name}-sources" / "a.png"
    assert results.finished_of(folder, record["settings_hash"], {"a": [source]}) == {"a"}
    source.write_text("changed")
    assert results.finished_of(folder, record["settings_hash"], {"a": [source]}) == set()


def test_records_of_another_form_do_not_count(folder):
    record = results.read_manifest(folder)["a"]
    file = folder / "manifest.jsonl"
    for line in (
        [1],
        7,
        None,
        "a",
        {},
        {"key": "a"},
        record | {"key": 3},
        record | {"bytes": "1"},
        record | {"sha256": []},
    ):
        file.write_text(json.dumps(line))
        assert results.finished_keys(folder) == [] and results.read_manifest(folder) == {}


@pytest.mark.parametrize("key", ["../outside", "/outside", "a/../../outside"])
def test_a_record_that_leaves_the_folder_does_not_count(folder, key):
    record = results.read_manifest(folder)["a"]
    (folder / "outside.png").write_bytes((folder / "images" / "a.png").read_bytes())
    for lie in ({"file": "../outside.png"}, {"file": "outside.png"}, {"key": key, "file": f"images/{key}.png"}):
        (folder / "manifest.jsonl").write_text(json.dumps(record | lie))
        assert results.finished_keys(folder) == []


def test_lines_of_other_settings_do_not_count(folder):
    (folder / "settings.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"settings\.json"):
        results.finished_keys(folder)
    results.claim(folder, SETTINGS | {"seed": 1})
    assert results.finished_keys(folder) == []


def test_settings_edited_by_hand_are_other_settings(folder):
    file = folder / "settings.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ValueError, match=r"seed: 5 there, 0 asked for"):
        results.claim(folder, SETTINGS)
    for content in ("[]", '{"settings": 3}', "{}"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"settings\.json: found no settings of a transfer"):
            results.claim(folder, SETTINGS)


def test_differences_are_named_down_to_the_value(folder):
    other = {"seed": 0, "label_set": {"classes": {"road": {"values": [128]}}}}
    with pytest.raises(ValueError, match=r"label_set\.classes\.road\.values: \[0\] there, \[128\] asked for"):
        results.claim(folder, other)
    with pytest.raises(ValueError, match=r"; and 6 more\)"):
        results.claim(folder, SETTINGS | dict.fromkeys("bcdefghijkl", 1))


def _claim(root, number, barrier, accepted):
    for turn in range(15):
        barrier.wait()
        try:
            results.claim(root / str(turn), {"seed": number % 2})
            accepted.put((turn, number % 2))
        except ValueError:
            accepted.put((turn, None))


def test_two_settings_of_the_same_instant_are_never_both_accepted(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, accepted = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim, args=(tmp_path, n, barrier, accepted)) for n in range(3)]
    for process in processes:
        process.start()
    found = [accepted.get(timeout=120) for _ in range(3 * 15)]
    for process in processes:
        process.join()
    for turn in range(15):
        seeds = [seed for t, seed in found if t == turn and seed is not None]
        assert len(set(seeds)) == 1 and len(seeds) == (2 if seeds[0] == 0 else 1)


def test_only_what_no_line_vouches_for_is_set_aside(folder):
    for name in ("gone.png", "city/gone.jpg", "shard.png", ".hidden.png", ".0a1b2c3d.partial/a.png"):
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / "images" / name).write_text(name)
    assert results.set_aside(folder, {"a", "city/b"}, {"shard"}) == ["city/gone.jpg", "gone.png"]
    assert (folder / "stale" / "city" / "gone.jpg").read_text() == "city/gone.jpg"
    assert results.finished_keys(folder) == ["a", "city/b"] and (folder / "images" / "shard.png").exists()


def test_strips_have_a_preview(tmp_path):
    shapes = [(4000, 4), (4, 4000), (8, 8)]
    results.write_preview(tmp_path / "p.png", [[np.zeros((*shape, 3), np.uint8)] for shape in shapes], 16)
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (8 * 16, 3 * 16)
    results.write_preview(tmp_path / "q.png", [], 16)
    assert not (tmp_path / "q.png").exists()
