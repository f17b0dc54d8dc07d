"""What a job depends on, what is said of it when that changes, and what becomes of results that do not hold."""

import functools
import json
from pathlib import Path

import pytest
import stale

NOTEBOOK = """# %% [markdown]
# Prose.

# %%
from zodi import method
from zodi.support import plots
"""
METHOD = '''"""What it is for."""

from zodi.networks.parts import LAYERS


def double(value):
    """Twice."""
    return 2 * value
'''
COMMANDS = '''"""A command line."""

import argparse
import sys

import zodi.common


def main():
    commands = {"draw": _draw, "count": _count}
    return commands[sys.argv[1]]()


def _draw():
    from zodi.method import double

    return _checked(double(1))


def _count():
    import zodi.counting

    return 1


def _checked(value):
    return value
'''


@pytest.fixture
def checkout(tmp_path) -> Path:
    files = {
        "notebooks/lesson.py": NOTEBOOK,
        "zodi/__init__.py": "",
        "zodi/__main__.py": COMMANDS,
        "zodi/method.py": METHOD,
        "zodi/common.py": "import json\n",
        "zodi/counting.py": "import lonely\n",
        "zodi/unused.py": "",
        "zodi/networks/__init__.py": "",
        "zodi/networks/parts.py": "LAYERS = 3\n",
        "zodi/support/__init__.py": "",
        "zodi/support/plots.py": "COLOUR = 'red'\n",
        "data_scripts/streets.py": "import archive\n",
        "data_scripts/archive.py": "import zodi.common\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


CODE_OF = stale.code_of


def code(checkout: Path, entry: str, draws: bool = True) -> dict[str, str]:
    """As a new process would find it."""
    stale._code_of.cache_clear()
    return CODE_OF(entry, draws, checkout)


# ---------------------------------------------------------------- code


def test_code_is_the_entry_and_what_it_imports_near_and_far(checkout):
    assert sorted(code(checkout, "notebooks/lesson.py")) == [
        "notebooks/lesson.py",
        "zodi/__init__.py",
        "zodi/method.py",
        "zodi/networks/__init__.py",
        "zodi/networks/parts.py",
        "zodi/support/__init__.py",
        "zodi/support/plots.py",
    ]


def test_scripts_find_their_neighbours(checkout):
    found = code(checkout, "data_scripts/streets.py")
    assert sorted(found) == ["data_scripts/archive.py", "data_scripts/streets.py", "zodi/__init__.py", "zodi/common.py"]


def test_what_only_draws_does_not_count_for_numbers(checkout):
    figure, number = (code(checkout, "notebooks/lesson.py", draws) for draws in (True, False))
    assert figure.keys() - number.keys() == {"zodi/support/plots.py"}


def test_a_command_is_its_function_what_that_calls_and_the_imports(checkout):
    draw, count = (code(checkout, f"zodi/__main__.py:{name}") for name in ("draw", "count"))
    assert draw.keys() - count.keys() == {"zodi/method.py", "zodi/networks/__init__.py", "zodi/networks/parts.py"}
    assert count.keys() - draw.keys() == {"zodi/counting.py"}
    assert "zodi/common.py" in draw.keys() & count.keys()


def test_another_command_of_the_same_file_does_not_count(checkout):
    before = {name: code(checkout, f"zodi/__main__.py:{name}") for name in ("draw", "count")}
    file = checkout / "zodi/__main__.py"
    file.write_text(file.read_text().replace("return 1", "return 2"))
    assert code(checkout, "zodi/__main__.py:draw") == before["draw"]
    assert code(checkout, "zodi/__main__.py:count") != before["count"]
    # Called by draw alone.
    file.write_text(COMMANDS.replace("    return value", "    return value + 1"))
    assert code(checkout, "zodi/__main__.py:draw") != before["draw"]
    assert code(checkout, "zodi/__main__.py:count") == before["count"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("notebooks/lesson.py", "# Prose.", "# Other prose."),
        ("notebooks/lesson.py", "# %%\n", "# %%\n# why\n\n"),
        ("zodi/method.py", "What it is for", "What else"),
        ("zodi/method.py", '    """Twice."""\n', ""),
        ("zodi/method.py", "2 * value", "(2*value)  # why"),
        ("zodi/unused.py", "", "VALUE = 1\n"),
    ],
)
def test_words_and_layout_do_not_count(checkout, name, old, new):
    before = code(checkout, "notebooks/lesson.py")
    file = checkout / name
    file.write_text(file.read_text().replace(old, new))
    assert code(checkout, "notebooks/lesson.py") == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("notebooks/lesson.py", "import method\n", "import method\nvalue = 1\n"),
        ("zodi/method.py", "2 * value", "3 * value"),
        ("zodi/networks/parts.py", "3", "4"),
    ],
)
def test_what_is_computed_counts(checkout, name, old, new):
    before = code(checkout, "notebooks/lesson.py")
    file = checkout / name
    file.write_text(file.read_text().replace(old, new))
    after = code(checkout, "notebooks/lesson.py")
    assert {path for path in after if after[path] != before[path]} == {name}


def test_an_entry_that_is_not_there_is_named(checkout):
    with pytest.raises(ValueError, match=r"nothing\.py: cannot be read \(No such file"):
        code(checkout, "notebooks/nothing.py")
    with pytest.raises(ValueError, match=r"found no function _paint, expected one of .*_count.*_draw"):
        code(checkout, "zodi/__main__.py:paint")


# ---------------------------------------------------------------- what has changed

MADE = {"entry": "a.py", "draws": False, "code": {"a.py": "1"}, "parameters": {"seed": 0}, "inputs": {"x.json": "2"}}


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({}, []),
        ({"code": {"a.py": "2"}}, ["a.py has changed"]),
        ({"code": {"a.py": "1", "b.py": "1"}}, ["b.py has changed"]),
        ({"inputs": {}}, ["x.json has changed"]),
        ({"parameters": {"seed": 1}}, ["seed has changed (0 -> 1)"]),
        ({"parameters": "--seed 1"}, ["seed has changed (0 -> None)", "the command has changed (None -> '--seed 1')"]),
    ],
)
def test_differences_are_told_one_by_one(change, phrases):
    assert sorted(stale.differences(MADE, MADE | change)) == sorted(phrases)


def test_a_record_that_is_not_whole_counts_as_old():
    assert stale.differences({"entry": "a.py"}, MADE) == ["it was made by an earlier version of the workflow"]


def test_why_compares_with_the_files_as_they_are(checkout, monkeypatch):
    weights, out = checkout / "weights", checkout / "out"
    weights.write_text("1")
    monkeypatch.setattr(stale, "code_of", functools.partial(code, checkout))
    now = stale.made_from("notebooks/lesson.py", True, [weights], {})
    assert stale.why(out) == []
    stale.claim(checkout, out, now)
    assert stale.why(out) == []
    weights.write_text("2")
    (checkout / "zodi/method.py").write_text(METHOD.replace("2", "3"))
    assert stale.why(out) == ["zodi/method.py has changed", f"{weights} has changed"]
    weights.unlink()
    (reason,) = stale.why(out)
    assert "weights" in reason
    (out / "inputs.json").write_text('{"entry": "no')
    assert stale.why(out) == ["it was made by an earlier version of the workflow"]


# ---------------------------------------------------------------- claiming


def test_a_run_of_the_same_goes_on_and_leftovers_are_cleared(tmp_path):
    out = tmp_path / "runs" / "a"
    stale.claim(tmp_path, out, MADE)
    (out / "half_done").touch()
    (out / "images" / ".01234567.partial").mkdir(parents=True)
    stale.claim(tmp_path, out, MADE, alone=False)
    assert (out / "images" / ".01234567.partial").exists()
    stale.claim(tmp_path, out, MADE)
    assert (out / "half_done").exists() and not (out / "images" / ".01234567.partial").exists()
    assert not (tmp_path / "stale").exists()


def test_another_run_is_moved_aside_whole_and_said(tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    for seed in range(3):
        stale.claim(tmp_path, out, MADE | {"parameters": {"seed": seed}})
        (out / f"made by {seed}").touch()
    first, second = sorted((tmp_path / "stale/runs/a").iterdir())
    assert (first / "made by 0").exists() and (second / "made by 1").exists()
    assert [path.name for path in out.glob("made*")] == ["made by 2"]
    assert f"moved aside to {first}: seed has changed (0 -> 1)" in capsys.readouterr().err


def test_a_run_whose_record_was_cut_off_is_moved_aside(tmp_path):
    out = tmp_path / "runs" / "a"
    stale.claim(tmp_path, out, MADE)
    (out / "inputs.json").write_text('{"entry": "no')
    stale.claim(tmp_path, out, MADE)
    assert json.loads((out / "inputs.json").read_text()) == MADE
    assert len(list((tmp_path / "stale/runs/a").iterdir())) == 1


# ---------------------------------------------------------------- what a run has made


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run below RESULTS."""
    results = tmp_path / "results"
    out = results / "runs" / "a"
    stale.claim(results, out, MADE)
    files = {
        "metrics.json": '{"miou": 50}', "images/1.png": "pixels", "weights.safetensors": "weights", "main.md": "| 50 |",
        "packed/index.json": "{}", "stale/2.png": "old", ".lock": "",
    }  # fmt: skip
    for name, text in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    log = results / "notebooks" / "a.ipynb"
    log.parent.mkdir()
    log.write_text('{"cells": [{}]}')
    stale.record(out, "metrics.json", MADE, log)
    return out


def test_a_run_that_is_as_it_was_made_holds(run):
    for name in ("packed/index.json", "stale/2.png", ".lock", "added.txt"):
        (run / name).write_text("later")
    log = run.parents[1] / "notebooks" / "a.ipynb"
    log.write_text('{"cells": [{}], "metadata": {"looked": "at"}}')
    assert stale.damage(run) == {}
    assert stale.damaged_runs(run.parents[1]) == {}
    stale.check_inputs([run / "metrics.json"])


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("metrics.json", '{"miou": 99}', "found other content than the run wrote"),
        ("metrics.json", '{"miou": 99.9}', "found 14 bytes, expected 12"),
        ("main.md", "| 99 |", "found other content than the run wrote"),
        ("images/1.png", "pix", "found 3 bytes, expected 6"),
        ("images/1.png", None, "cannot be read (No such file or directory)"),
        ("weights.safetensors", None, "cannot be read (No such file or directory)"),
        ("../../notebooks/a.ipynb", None, "is gone"),
        ("../../notebooks/a.ipynb", '{"cells": [{', "found an incomplete notebook"),
        ("outputs.json", '{"files": {"met', "found a damaged record"),
    ],
)
def test_what_no_longer_holds_is_named_refused_and_set_aside(run, name, text, problem):
    results = run.parents[1]
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)
    assert stale.damaged_runs(results) == {run: {name: problem}}
    with pytest.raises(ValueError, match="`make reproduce` with the same settings makes it again") as refused:
        stale.check_inputs([run / "metrics.json"])
    assert str(refused.value).startswith(f"{(run / name).resolve()}: {problem}")

    aside = stale.set_aside(results, run, {name: problem})
    assert aside.parent == results / "stale" / "runs" / "a"
    assert not (run / "metrics.json").exists() and (aside / "metrics.json").exists()
    if text is not None:
        assert (aside / name.replace("../../notebooks/", "")).read_text() == text
    assert (run / "inputs.json").exists() and (run / "packed/index.json").exists()
    assert stale.damaged_runs(results) == {}


def test_a_run_that_begins_again_is_not_taken_for_finished(run):
    stale.claim(run.parents[1], run, MADE)
    assert not (run / "outputs.json").exists()


def test_a_run_without_its_last_file_is_not_recorded(tmp_path):
    stale.claim(tmp_path, tmp_path / "a", MADE)
    with pytest.raises(ValueError, match=r"metrics\.json: found no such file, expected the run to write it at its end"):
        stale.record(tmp_path / "a", "metrics.json", MADE)
    assert not (tmp_path / "a" / "outputs.json").exists()


def test_a_stage_that_replaces_its_folder_keeps_what_it_was_made_from(tmp_path):
    out = tmp_path / "data"
    stale.claim(tmp_path, out, MADE)
    (out / "inputs.json").unlink()
    (out / "dataset.json").write_text("{}")
    stale.record(out, "dataset.json", MADE)
    assert json.loads((out / "inputs.json").read_text()) == MADE


def test_what_is_gone_although_later_runs_were_made_from_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stale, "ROOT", tmp_path)
    results = tmp_path / "results"
    for name, inputs in {"a": {}, "b": {"results/a/metrics.json": "1", "zodi/gone.safetensors": "1"}}.items():
        stale.claim(results, results / name, MADE | {"inputs": inputs})
        (results / name / "metrics.json").write_text("{}")
    assert stale.unfinished(results) == []
    (results / "a" / "metrics.json").unlink()
    assert stale.unfinished(results) == [results / "a" / "dataset.json", results / "a" / "metrics.json"]
    (results / "a" / "inputs.json").unlink()
    (results / "a").rmdir()
    assert stale.unfinished(results) == [results / "a" / "metrics.json"]


def test_cells_for_readers_do_not_count(checkout):
    file = checkout / "notebooks" / "lesson.py"
    before = CODE_OF("notebooks/lesson.py", root=checkout)
    file.write_text(NOTEBOOK + '\n# %% tags=["reader"]\nimport zodi.unused\n')
    stale._code_of.cache_clear()
    assert CODE_OF("notebooks/lesson.py", root=checkout) == before
    file.write_text(NOTEBOOK + "\n# %%\nimport zodi.unused\n")
    stale._code_of.cache_clear()
    assert "zodi/unused.py" in CODE_OF("notebooks/lesson.py", root=checkout)


def test_how_long_a_run_took_and_where_makes_nothing_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(stale, "code_of", lambda entry, draws: {})
    file = tmp_path / "metrics.json"

    def digest(content):
        file.write_text(json.dumps(content))
        return stale.made_from("x", False, [file], {})["inputs"]

    first = digest({"miou": 1, "seconds": 10, "environment": {"cpus": 2}})
    assert digest({"seconds": 99, "environment": {"cpus": 16}, "miou": 1}) == first
    assert digest({"miou": 2, "seconds": 10, "environment": {"cpus": 2}}) != first
    file.write_text("{damaged")
    assert stale.made_from("x", False, [file], {})["inputs"] != first


def test_seconds_of_a_rule_are_the_median_of_its_jobs_outdated_ones_too(tmp_path):
    for folder, rule, seconds in (
        ("runs/a", "adapt", 40), ("runs/b", "adapt", 50), ("stale/runs/a/2026", "adapt", 90), ("data", "data", 3)
    ):  # fmt: skip
        out = tmp_path / folder
        out.mkdir(parents=True)
        (out / "metrics.json").write_text("{}")
        stale.record(out, "metrics.json", MADE, took={"rule": rule, "seconds": seconds})
    stale_without_time = tmp_path / "old"
    stale_without_time.mkdir()
    (stale_without_time / "metrics.json").write_text("{}")
    stale.record(stale_without_time, "metrics.json", MADE)
    assert stale.seconds_by_rule(tmp_path) == {"adapt": 50, "data": 3}
