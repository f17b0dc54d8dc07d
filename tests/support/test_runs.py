"""Atomic files, hashes of settings, seeds and the metrics file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from zodi.support import files, runs


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    out: Path = Path("results/x")


def test_atomic_path_writes_a_file_and_makes_parents(tmp_path):
    target = tmp_path / "a" / "b.png"
    with files.atomic_path(target) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_path_replaces_a_folder(tmp_path):
    target = tmp_path / "folder"
    for text in ("old", "new"):
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_leaves_the_old_result_when_the_block_fails(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_refuses_an_empty_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json"), files.atomic_path(tmp_path / "x.json"):
        pass


def test_json_round_trip_of_everything_a_run_writes(tmp_path):
    value = {
        "settings": Settings(),
        "miou": np.float32(0.5),
        "nan": float("nan"),
        "array": np.arange(3),
        "tensor": torch.tensor([[1, 2]]),
        "tuple": (1, "a", None, True),
    }
    files.write_json(tmp_path / "v.json", value)
    assert files.read_json(tmp_path / "v.json") == {
        "settings": {"steps": 3, "out": "results/x"},
        "miou": 0.5,
        "nan": None,
        "array": [0, 1, 2],
        "tensor": [[1, 2]],
        "tuple": [1, "a", None, True],
    }


def test_json_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(TypeError, match="object"):
        files.write_json(tmp_path / "v.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"broken\.json"):
        files.read_json(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        files.read_json(tmp_path / "missing.json")


def test_settings_hash_ignores_order_and_container_but_not_values():
    digest = runs.settings_hash(Settings())
    assert len(digest) == 12
    assert digest == runs.settings_hash({"out": "results/x", "steps": 3})
    assert digest != runs.settings_hash(Settings(steps=4))


def test_settings_hash_is_the_same_on_every_machine():
    assert runs.settings_hash({"steps": 3, "domain": "night"}) == "a6adce7d15d0"


def test_generator_depends_on_key_and_seed_only():
    def draw(key: str, seed: int) -> torch.Tensor:
        return torch.rand(4, generator=runs.generator_for(key, seed))

    torch.testing.assert_close(draw("a", 0), draw("a", 0), rtol=0, atol=0)
    assert not torch.equal(draw("a", 0), draw("b", 0))
    assert not torch.equal(draw("a", 0), draw("a", 1))


def test_noise_is_drawn_on_the_processor():
    assert runs.generator_for("a", 0).device.type == "cpu"


def test_save_metrics_records_settings_and_environment(tmp_path):
    path = runs.save_metrics(tmp_path / "run", "adapt", Settings(), {"miou": {"night": 12.5}}, 1.26, "cpu, float32")
    record = files.read_json(path)
    assert path == tmp_path / "run" / "metrics.json"
    assert record["stage"] == "adapt"
    assert record["metrics"] == {"miou": {"night": 12.5}}
    assert record["settings_hash"] == runs.settings_hash(Settings())
    assert record["seconds"] == 1.3
    assert record["environment"]["device"] == "cpu, float32"
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_environment_tells_nothing_about_the_machine():
    import platform

    text = str(runs.environment())
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_print_settings_aligns(capsys):
    runs.print_settings({"a": 1, "long_name": "x"})
    assert capsys.readouterr().out == "a          1\nlong_name  x\n"


def test_print_settings_counts_what_is_as_usual(capsys):
    runs.print_settings({"a": 1, "b": None, "new": None}, {"a": 2, "b": None})
    assert capsys.readouterr().out == "a    1\nnew  None\nas in the defaults: 1 more\n"
    runs.print_settings({"a": 1}, {"a": 1})
    assert capsys.readouterr().out == "as in the defaults: 1 more\n"
