"""Files of tensors: damaged and foreign ones are one line that names the file, and nothing in them is run."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from zodi.support import files, tensors


class Runs:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def whole_state(network, optimizer):
    state = {"fingerprint": "f", "step": 3, "history": [{"step": 3}]}
    return state | {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def damaged(kind, file):
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("no tensors")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"fingerprint": Runs(file.parent / "ran")}))
    elif kind == "code":
        torch.save({"fingerprint": Runs(file.parent / "ran")}, file)
    elif kind == "a list":
        torch.save([1, 2], file)
    elif kind == "other names":
        torch.save({"weight": torch.zeros(2)}, file)
    elif kind == "another network":
        other = nn.Linear(7, 5)
        torch.save(whole_state(other, torch.optim.AdamW(other.parameters())), file)
    elif kind == "another optimizer":
        state = torch.load(file, weights_only=True)
        torch.save(state | {"optimizer": {"param_groups": [], "state": {}}}, file)


KINDS = (
    "empty",
    "text",
    "truncated",
    "pickle",
    "code",
    "a list",
    "other names",
    "another network",
    "another optimizer",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_none_is_refused_in_one_line_and_not_run(tmp_path, kind):
    network, file = nn.Linear(2, 2), tmp_path / "training.pt"
    optimizer = torch.optim.AdamW(network.parameters())
    torch.save(whole_state(network, optimizer), file)
    assert tensors.resume(file, "f", network, optimizer, "cpu") == (3, [{"step": 3}])
    damaged(kind, file)
    with pytest.raises(ValueError, match="delete it to train from the start") as caught:
        tensors.resume(file, "f", network, optimizer, "cpu")
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_no_state_and_one_of_another_training_start_anew(tmp_path, capsys):
    network, file = nn.Linear(2, 2), tmp_path / "training.pt"
    optimizer = torch.optim.AdamW(network.parameters())
    assert tensors.resume(file, "f", network, optimizer, "cpu") == (0, [])
    torch.save(whole_state(network, optimizer), file)
    assert tensors.resume(file, "g", network, optimizer, "cpu") == (0, [])
    assert "starting from the beginning" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "pickle"])
def test_damaged_safetensors_are_one_line(tmp_path, kind):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    damaged(kind, file)
    with pytest.raises(ValueError, match=r"expected a whole safetensors file; do this$") as caught:
        tensors.read_tensors(file, "do this")
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"gone: no such file; do this"):
        tensors.read_tensors(tmp_path / "gone", "do this")


def write_tensors(path):
    with files.atomic_path(path) as temporary:
        torch.save({"a": torch.zeros(200_000)}, temporary)


def test_a_disk_that_is_full_is_one_error_that_names_the_file(tmp_path):
    code = (
        "import resource; from pathlib import Path; from test_tensors import write_tensors;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try: write_tensors(Path({str(tmp_path / 'training.pt')!r}))\n"
        "except OSError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), capture_output=True, text=True)
    assert found.stdout.startswith(f"{tmp_path / 'training.pt'}: cannot be written, the disk is full"), found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
    ],
)
def test_full_disks_by_whatever_the_libraries_raise(tmp_path, error):
    def write(path):
        with files.atomic_path(path / "network") as folder:
            folder.mkdir()
            with files.atomic_path(folder / "weights"):
                raise error

    with pytest.raises(OSError, match=r"/network: cannot be written, the disk is full .*free some space") as caught:
        write(tmp_path)
    assert files.is_disk_full(caught.value) and str(caught.value).count("the disk is full") == 1


def test_other_errors_of_a_block_stay_what_they_are(tmp_path):
    def write(error):
        with files.atomic_path(tmp_path / "file"):
            raise error

    for error in (RuntimeError("other"), PermissionError(13, "no"), KeyError("k")):
        with pytest.raises(type(error)) as caught:
            write(error)
        assert caught.value is error
