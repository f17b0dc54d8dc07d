"""What many processes and full disks do to files: names, claims, holds, leftovers, digests."""

import errno
import multiprocessing
import os
from collections import namedtuple

import pytest

from zodi.support import files


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    target = tmp_path / f"{'n' * 251}.png"
    with files.atomic_path(target) as temporary:
        temporary.write_text("done")
    assert target.read_text() == "done" and list(tmp_path.iterdir()) == [target]


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    for name in ("images/.frame0.png.abcd.partial", "images/city/.0a1b2c3d.partial", ".00000000.partial"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "frame0.png").write_text("half")
    (tmp_path / "images" / ".11111111.partial").write_text("half")
    (tmp_path / "images" / "a.partial").write_text("a result")
    assert files.clear_leftovers(tmp_path) == 4
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.partial", "city", "images"]


def test_leftovers_stay_while_another_process_holds_the_folder(tmp_path):
    leftover = tmp_path / ".0a1b2c3d.partial"
    with files.held(tmp_path):
        leftover.mkdir()
        with files.held(tmp_path):
            assert leftover.exists()
    with files.held(tmp_path):
        assert not leftover.exists()


def _create(folder, number, barrier, created):
    for turn in range(20):
        barrier.wait()
        if files.create_json(folder / f"{turn}.json", {"by": number}):
            created.put((turn, number))


def test_one_of_many_processes_creates_a_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, created = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_create, args=(tmp_path, n, barrier, created)) for n in range(4)]
    for process in processes:
        process.start()
    winners = [created.get(timeout=60) for _ in range(20)]
    for process in processes:
        process.join()
    assert created.empty() and sorted(turn for turn, _ in winners) == list(range(20))
    assert all(files.read_json(tmp_path / f"{turn}.json") == {"by": number} for turn, number in winners)
    assert len(list(tmp_path.iterdir())) == 20


def test_a_file_is_created_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create_json(tmp_path / "a.json", {"a": 1})
    assert not files.create_json(tmp_path / "a.json", {"a": 2})
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


def test_lines_end_with_a_line_break_only_and_broken_ones_are_skipped(tmp_path):
    lines = ['{"key": "a\u2028b\x85c"}', '{"key": "ha', "[" * 100_000, "", "7", "\ufffe"]
    (tmp_path / "m.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\x00\n[1]")
    assert files.read_json_lines(tmp_path / "m.jsonl") == [{"key": "a\u2028b\x85c"}, 7, [1]]


def test_a_name_that_is_not_utf8_goes_through_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "v.json", {"file": name})
    assert files.read_json(tmp_path / "v.json") == {"file": name}
    assert files.printable(name) == "caf\\udce9.png"


@pytest.mark.parametrize("out", ["data/images", "data/images/out", "data", ".", "link", "link/out"])
def test_results_and_inputs_in_one_place_are_refused(tmp_path, out):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "images")
    with pytest.raises(ValueError, match=r"in one place, expected separate folders"):
        files.check_apart(tmp_path / out, tmp_path / "data" / "images")
    files.check_apart(tmp_path / "data" / "images2", tmp_path / "data" / "images")


def test_too_little_space_names_the_folder_and_both_numbers(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**10, 0, 10**9))
    files.check_disk(tmp_path, 10**9)
    with pytest.raises(OSError, match=r"new/deep: not enough disk space, .*2\.50 GB.*1\.00 GB are free\. Free some"):
        files.check_disk(tmp_path / "new" / "deep", 25 * 10**8)


def test_digests_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "CACHED_FROM_BYTES", 0)
    file, computed = tmp_path / "weights", []

    def digest(path):
        computed.append(path.read_text())
        return computed[-1]

    file.write_text("one")
    assert [files.cached_digest(file, digest) for _ in range(3)] == ["one"] * 3 and computed == ["one"]
    file.write_text("two")
    os.utime(file, ns=(0, 0))
    assert files.cached_digest(file, digest) == "two"
    cache = tmp_path / "cache" / "zodi" / files.DIGESTS_FILE
    assert list(files.read_json(cache)) == [str(file)]
    for damage in ("[]", "{", f'{{"{file}": 7}}'):
        cache.write_text(damage)
        assert files.cached_digest(file, digest) == "two"
    cache.parent.rename(tmp_path / "moved")
    cache.parent.write_text("a file where the folder should be")
    assert files.cached_digest(file, digest) == "two"
