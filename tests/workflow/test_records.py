"""One command makes every record anew: what it says before it starts, what it runs, and where it goes on."""

import argparse
import json

import pandas as pd
import pytest
import record
import records
import reproduce

from zodi.studies import estimates, evidence, findings, tables


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two notebooks, whose programs only write down that they ran."""
    for name in ("notebooks/records", "benchmarks", "zodi/weights"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("00_start", "A1_made"):
        (tmp_path / "notebooks" / f"{name}.py").write_text("# %%\nvalue = 1\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "COURSE", tmp_path / "results" / "course")
    monkeypatch.setattr(records, "EXECUTED", tmp_path / "results" / "records" / "executed.json")
    monkeypatch.setattr(records.stale, "code_of", lambda entry: {entry: "digest"})
    monkeypatch.setattr(records, "outlook", lambda name, cores, data: (1, f"1 jobs are new ({data})"))
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """What was called; a call whose words hold one of `failing` fails."""
    made, failing = [], []

    def call(*command):
        made.append(" ".join(command))
        return not any(word in made[-1] for word in failing)

    monkeypatch.setattr(records, "call", call)
    return made, failing


def arguments(**changes):
    return argparse.Namespace(**{"cores": "2", "data": "", "dry_run": False} | changes)


def test_it_says_what_is_to_be_done_and_does_nothing_on_a_dry_run(checkout, calls, capsys):
    assert records.run(arguments(dry_run=True)) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: 1 jobs are new" in text for name in records.PROFILES)
    assert "camvid: left out" in text and "(now: 00_start, A1_made)" in text
    assert not calls[0]


def test_profiles_then_benchmarks_then_records_then_notebooks(checkout, calls):
    made, _ = calls
    assert records.run(arguments(data="CamVid")) == 0
    profiles = [f"workflow/reproduce.py {name} --cores=2" for name in records.PROFILES]
    assert made == [
        *profiles,
        "workflow/reproduce.py camvid --cores=2 --data=CamVid",
        "-m zodi.studies bench",
        "workflow/record.py",
        "workflow/execute_notebooks.py notebooks/00_start.ipynb",
        "workflow/execute_notebooks.py notebooks/A1_made.ipynb",
    ]


def test_it_stops_at_a_failure_and_goes_on_from_there(checkout, calls, capsys):
    made, failing = calls
    failing.append("reproduce.py full")
    assert records.run(arguments()) == 1
    assert made[-1].startswith("workflow/reproduce.py full") and "PROFILE=full failed" in capsys.readouterr().err
    failing[:] = ["A1_made"]
    assert records.run(arguments()) == 1
    assert list(json.loads(records.EXECUTED.read_text())) == ["00_start"]
    failing.clear()
    made.clear()
    assert records.run(arguments()) == 0
    assert [command for command in made if "execute" in command] == [
        "workflow/execute_notebooks.py notebooks/A1_made.ipynb"
    ]


def test_notebooks_are_executed_again_when_text_code_records_or_weights_have_changed(checkout, calls, monkeypatch):
    assert records.run(arguments()) == 0 and not records.notebooks_to_execute()
    (checkout / "notebooks" / "00_start.py").write_text("# %%\nvalue = 2\n")
    assert list(records.notebooks_to_execute()) == ["00_start"]
    (checkout / "zodi" / "weights" / "model.safetensors").write_bytes(b"other")
    assert list(records.notebooks_to_execute()) == ["00_start", "A1_made"]
    assert records.run(arguments()) == 0 and not records.notebooks_to_execute()
    monkeypatch.setattr(records.stale, "code_of", lambda entry: {entry: "another"})
    assert list(records.notebooks_to_execute()) == ["00_start", "A1_made"]


def test_every_profile_of_a_record_is_there():
    for name in (*records.PROFILES, records.WITH_DATA):
        assert reproduce.read_profile(name)["results"] == f"results/{name}"


def test_the_readme_shows_the_record_and_what_it_took_to_make():
    readme, measured = record.README.read_text(encoding="utf-8"), json.loads(record.MAIN_JOB.read_text())
    for name, file in record.SHOWN.items():
        assert record.readme_with_table(readme, name, file) == readme, "run `make record`"
    assert record.readme_with_duration(readme, measured) == readme
    # The goal is ten minutes. It was met where transfers are made in bfloat16, and missed on a processor without it.
    assert measured["minutes"] <= (10 if measured["bfloat16"] else 15) and measured["cores"] == 2
    other = {"minutes": 12.34, "cores": 4, "bfloat16": True, "machine": {"processor": "One"}}
    assert "takes 12.3 minutes on 4 cores (One, with bfloat16; measured" in record.readme_with_duration(readme, other)
    with pytest.raises(ValueError, match="found 0 sentences"):
        record.readme_with_duration("nothing", measured)
    with pytest.raises(ValueError, match="found 0 pairs of comments 'record'"):
        record.readme_with_table("nothing", "record", record.MINI_RECORD)


def test_the_readme_says_what_its_tables_say(tmp_path):
    runs = tables.read_record(record.MINI_RECORD)
    # Made up: photometric takes ZoDi's place, and the reverse.
    names = {"zodi": "photometric", "photometric": "zodi"}
    tables.write_record(runs.assign(variant=runs["variant"].replace(names)), tmp_path / "other.csv")
    marks = "<!-- record: made by `make record` -->\n<!-- end of record -->\n"
    texts = [record.readme_with_table(marks, "record", file) for file in (record.MINI_RECORD, tmp_path / "other.csv")]
    for text, frame in zip(texts, (runs, tables.read_record(tmp_path / "other.csv")), strict=True):
        assert findings.paragraph(frame) in " ".join(text.split())
        assert all(len(line) <= 120 or line.startswith("|") for line in text.splitlines())
        assert record.readme_with_table(text, "record", record.MINI_RECORD) == texts[0]
    assert texts[0] != texts[1]


def test_nothing_is_recorded_of_what_the_tool_does_not_apply():
    tried = pd.DataFrame({"kept": [True, False]}, index=[estimates.GIVEN, "another"])
    record.check_what_is_applied("raw", tried)
    with pytest.raises(ValueError, match="the correction 'half' may be applied"):
        record.check_what_is_applied("half", tried)
    with pytest.raises(ValueError, match=r"of the intervals \['another'\] holds"):
        record.check_what_is_applied("raw", tried.assign(kept=~tried["kept"]))
    with pytest.raises(ValueError, match="of the intervals none holds"):
        record.check_what_is_applied("raw", tried.assign(kept=False))


def test_what_corrections_and_intervals_came_to_replaces_what_an_earlier_record_said_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "TRIES", tmp_path / "tries.csv")
    lines = [("more steps", 0.212, "yes"), (f"{estimates.TRY} half", 3.0, "yes")]
    pd.DataFrame(lines, columns=["try", "before", "kept"]).assign(why="", measure="", after=0).to_csv(
        record.TRIES, index=False
    )
    errors = pd.DataFrame({"night": [4.0, 5.0], "shipped": False}, index=["raw", "half"])
    last = evidence.last_steps(evidence.load("nowhere", record.ESTIMATION_RECORD)[0])
    tried = estimates.interval_tries(last)
    record.record_tries(errors, tried)
    record.record_tries(errors, tried)
    found = pd.read_csv(record.TRIES)
    intervals = found[found["try"].str.startswith(estimates.INTERVAL_TRY)]
    assert len(intervals) == 4 and intervals.loc[intervals["kept"] == "yes", "try"].item().endswith(estimates.GIVEN)
    found = found.drop(index=intervals.index)
    assert found["try"].to_list() == ["more steps", f"{estimates.TRY} half"] and found["kept"].to_list() == [
        "yes",
        "no",
    ]
    assert found["before"].to_list() == [0.212, 4.0]
