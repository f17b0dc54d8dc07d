"""The table of data sets and weights, and what is said of weights that cannot be read."""

import hashlib
import http.client
import shlex
from dataclasses import replace
from pathlib import Path

import command
import pytest
import status
import torch
import weights
from safetensors.torch import save_file
from test_dataset_scripts import small, write_tree


def test_present_incomplete_and_missing_data_sets(tmp_path, monkeypatch):
    found = [(small(dataset), script) for dataset, script in status.DATASETS]
    monkeypatch.setattr(status, "DATASETS", found)
    monkeypatch.setattr(weights, "all_weights", list)
    for dataset, _ in found[:2]:
        write_tree(dataset, tmp_path / dataset.name)
    next((tmp_path / "acdc").rglob("*_rgb_anon.png")).unlink()
    (tmp_path / "gta5").mkdir()
    (tmp_path / "gta5" / "01_images.zip").write_bytes(b"")
    rows = {name: (state, command) for name, state, _, command in status.rows(tmp_path)}
    assert rows["cityscapes"] == ("present", f"python data_scripts/cityscapes.py --root {tmp_path}/cityscapes check")
    assert rows["acdc"][0] == "incomplete" and rows["acdc"][1].endswith("instructions")
    assert rows["gta5"][0] == "incomplete" and rows["gta5"][1].endswith("extract")
    assert rows["dark_zurich"][0] == "missing"


def test_the_weights_of_the_paper_are_listed():
    names = [found.name for found in weights.all_weights()]
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in names and len(names) == 4


def test_check_names_what_is_missing_or_damaged(tmp_path, monkeypatch, capsys):
    good, bad, plain = tmp_path / "good.safetensors", tmp_path / "bad.safetensors", tmp_path / "resnet.pth"
    save_file({"a": torch.zeros(2)}, good)
    bad.write_bytes(good.read_bytes()[:20])
    torch.save({"a": torch.zeros(2)}, plain)

    def found(name: str, files: list[Path]) -> weights.Weights:
        return weights.Weights(name, "1 GB", lambda: files, lambda: None)

    listed = [found("good", [good, plain]), found("bad", [bad]), found("none", [])]
    monkeypatch.setattr(weights, "all_weights", lambda: listed)
    monkeypatch.setattr("sys.argv", ["weights.py", "check"])
    assert weights.main() == 1
    printed = capsys.readouterr().out
    assert "good (1 GB): complete" in printed and "none (1 GB): missing" in printed
    assert "bad.safetensors: cannot be read" in printed and "good.safetensors" not in printed


@pytest.mark.parametrize(
    "error", [OSError("no network"), RuntimeError("no network"), http.client.HTTPException("no network")]
)
def test_a_download_that_fails_is_one_message(error, monkeypatch, capsys):
    def fail() -> None:
        raise error

    listed = [replace(weights.Weights("sd", "4 GB", list, lambda: None), get=fail)]
    monkeypatch.setattr(weights, "all_weights", lambda: listed)
    monkeypatch.setattr("sys.argv", ["weights.py", "download"])
    assert command.run(weights.main) == 2
    assert "sd (4 GB) could not be downloaded: no network" in capsys.readouterr().err


def test_instructions_say_what_to_run(monkeypatch, capsys):
    monkeypatch.setattr(weights, "all_weights", lambda: [weights.Weights("sd", "4 GB", list, lambda: None)])
    monkeypatch.setattr("sys.argv", ["weights.py", "instructions"])
    assert weights.main() == 0
    assert "sd (4 GB): python data_scripts/weights.py download" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02}q\x00.", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w-01234567.pth"])
def test_weights_that_cannot_be_read_are_named_and_fetched_again(name, content, tmp_path, monkeypatch, capsys):
    stored, linked = tmp_path / "blob", tmp_path / name
    stored.write_bytes(content)
    linked.symlink_to(stored)
    assert (weights.problem(linked) or "").startswith(f"{linked}: ")

    def get() -> None:
        assert not stored.exists() and not linked.is_symlink()
        stored.write_bytes(b"new")

    monkeypatch.setattr(weights, "all_weights", lambda: [weights.Weights("w", "1 GB", lambda: [linked], get)])
    monkeypatch.setattr("sys.argv", ["weights.py", "check"])
    assert weights.main() == 1 and "w (1 GB): damaged" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["weights.py", "download"])
    assert weights.main() == 0 and stored.read_bytes() == b"new"
    assert f"{linked}: " in (said := capsys.readouterr().out) and "fetching it again" in said


def test_the_checksum_in_the_name_decides(tmp_path):
    content = b"any bytes"
    file = tmp_path / f"resnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    assert weights.problem(file) is None
    file.write_bytes(content + b"?")
    assert "found SHA-256" in weights.problem(file)


def test_the_checksum_that_the_hub_calls_a_file_by_decides(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    stored, linked = tmp_path / hashlib.sha256(content).hexdigest(), tmp_path / "model.safetensors"
    stored.write_bytes(content)
    linked.symlink_to(stored)
    assert weights.problem(linked) is None
    # A weight that has changed leaves a file that can be read.
    stored.write_bytes(content[:-1] + b"\x3f")
    assert f"expected one that starts with {stored.name}" in weights.problem(linked)


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    root = tmp_path / "it's $HOME #1 {x}"
    found, script = status.DATASETS[0]
    _, _, _, call = status.status_of(found, script, root)
    assert shlex.split(call)[3] == str(root)
