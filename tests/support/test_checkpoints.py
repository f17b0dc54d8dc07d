"""Parts of checkpoints: told apart by every weight, and refused in one line whatever is wrong with them."""

import json

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from zodi.support import checkpoints, files

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A tiny UNet on disk."""
    torch.manual_seed(0)
    tiny.unet().save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def load(folder, dtype=torch.float32):
    with checkpoints.quietly():
        return checkpoints.load_network(UNet2DConditionModel, folder, "cpu", dtype)


def change_one_value(file):
    """The last value of the largest tensor, so that neither size nor the start of anything changes."""
    weights = load_file(file)
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[-1] += 1
    save_file(weights, file, metadata={"format": "pt"})


def test_one_changed_value_changes_the_digest_of_a_file(folder):
    before = checkpoints.weights_digest(load(folder))
    assert checkpoints.weights_digest(load(folder)) == before
    change_one_value(folder / WEIGHTS)
    assert checkpoints.weights_digest(load(folder)) != before


def test_a_loaded_network_has_the_digest_of_its_file_in_any_type_and_of_the_same_in_memory(folder):
    torch.manual_seed(0)
    in_memory = checkpoints.weights_digest(tiny.unet())
    assert checkpoints.weights_digest(load(folder)) == in_memory
    assert checkpoints.weights_digest(load(folder, torch.bfloat16)) == in_memory


def test_weights_changed_in_memory_or_a_file_changed_after_loading_do_not_answer_for_each_other(folder):
    network = load(folder)
    before = checkpoints.weights_digest(network)
    change_one_value(folder / WEIGHTS)
    assert checkpoints.weights_digest(network) == before
    other = load(folder)
    loaded = checkpoints.weights_digest(other)
    with torch.no_grad():
        other.conv_out.bias.add_(1)
    assert len({before, loaded, checkpoints.weights_digest(other)}) == 3


def test_large_files_are_read_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "CACHED_FROM_BYTES", 0)
    before = checkpoints.weights_digest(load(folder))
    monkeypatch.setattr(checkpoints, "_digest_of_file", lambda file: "read again")
    assert checkpoints.weights_digest(load(folder)) == before
    change_one_value(folder / WEIGHTS)
    assert checkpoints.weights_digest(load(folder)) == "read again"


def settings(**values):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def without_a_weight(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["conv_out.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


DAMAGE = {
    "truncated": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "a web page": lambda folder: (folder / WEIGHTS).write_text("<html>not found</html>"),
    "foreign": lambda folder: save_file({"x": torch.zeros(2)}, folder / WEIGHTS, metadata={"format": "pt"}),
    "one weight missing": without_a_weight,
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no settings": lambda folder: (folder / "config.json").unlink(),
    "settings are a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "settings are no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a word for a number": settings(in_channels="four"),
    "a word for a small number": settings(norm_eps="x"),
    "a word for a list": settings(block_out_channels="x"),
    "a word for a truth value": settings(flip_sin_to_cos="no"),
    "a number for a name": settings(act_fn=3),
    "not a number": settings(norm_eps=float("nan")),
    "another shape": settings(cross_attention_dim=24),
    "another network": settings(block_out_channels=[8, 32]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_that_names_the_part(folder, damage):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(str(folder)) and "\n" not in text and len(text) < 900
    assert any(advice in text for advice in ("copy", "run the stage"))


def test_values_of_the_kinds_that_settings_have():
    for value, default in (
        (1, 0.5),
        (2.5, 1),
        ([1, 2], 8),
        ([[1], 2], (4, 4)),
        (None, "x"),
        ("a", None),
        (True, False),
    ):
        assert checkpoints.fits(value, default)
    for value, default in ((True, 1), (1, True), ("1", 1), (float("inf"), 1.0), ([1, "a"], (1, 2)), (1, "x")):
        assert not checkpoints.fits(value, default)
