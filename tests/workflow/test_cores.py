"""How many jobs run side by side, on this machine and on larger ones, and what they do with its cores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import reproduce

ROOT = Path(__file__).parents[2]
# What jobs took on one core of our machine, seconds; only their ratios matter here.
SECONDS = {"data": 12, "start": 40, "transfer": 60, "source_only": 24, "adapt": 42, "tables": 12}
PHOTOMETRIC = 12
# A stand-in for both programs that run a job: it waits, writes down when, and touches what Snakemake expects.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
rule = sys.argv[sys.argv.index("--rule") + 1]
seconds = SECONDS[rule]
output = Path(sys.argv[sys.argv.index("--output") + 1]) if "--output" in sys.argv else Path(OUT(sys.argv))
if "photometric" in str(output):
    seconds = PHOTOMETRIC
threads = int(os.environ["OMP_NUM_THREADS"])
begin = time.time()
time.sleep(seconds / threads / 15)
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text("{}")
with open("jobs.jsonl", "a") as file:
    file.write(json.dumps({"rule": rule, "threads": threads, "begin": begin, "end": time.time()}) + "\\n")
"""


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("zodi", "notebooks", "data_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = STAND_IN.replace("SECONDS", json.dumps(SECONDS)).replace("PHOTOMETRIC", str(PHOTOMETRIC))
    text = text.replace("OUT(sys.argv)", 'sys.argv[sys.argv.index("--out") + 1] + "/metrics.json"')
    for name in ("run_notebook.py", "run_command.py"):
        (tmp_path / "workflow" / name).write_text(text)
    return tmp_path


def reserved(jobs):
    """Threads of the widest job, for which there may be no room."""
    return max(job["threads"] for job in jobs)


@pytest.mark.parametrize("cores", [2, 4, 8, 16])
def test_the_main_job_keeps_more_than_four_fifths_of_the_cores_busy(checkout, cores):
    command = reproduce.snakemake_command(["mini"], Path("given.json"), cores, "")
    (checkout / "given.json").write_text("{}")
    result = subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    jobs = [json.loads(line) for line in (checkout / "jobs.jsonl").read_text().splitlines()]
    # One job makes the data, before all others, and one the tables, after them.
    jobs = [job for job in jobs if job["rule"] not in ("data", "tables")]
    assert len(jobs) == 28
    # Counted whenever a job has just started, so that a slow machine between two jobs is no fault of the plan. When the
    # last jobs find no partner, nothing starts any more.
    starts = sorted(job["begin"] for job in jobs)
    in_flight = [sum(job["threads"] for job in jobs if job["begin"] <= at < job["end"]) for at in starts]
    assert max(in_flight) <= cores
    ramp = next(i for i, threads in enumerate(in_flight) if threads > cores - reserved(jobs))
    assert sum(in_flight[ramp:]) / len(in_flight[ramp:]) > 0.8 * cores
    assert all(job["threads"] == 1 for job in jobs if job["rule"] != "transfer")


def test_cores_are_those_of_the_machine_unless_memory_is_short(monkeypatch):
    monkeypatch.setattr(reproduce, "usable_cores", lambda: 16)
    for gigabytes, count in ((64, 16), (12, 8), (0.5, 1)):
        memory = SimpleNamespace(available=gigabytes * 1e9)
        monkeypatch.setattr(reproduce.psutil, "virtual_memory", lambda memory=memory: memory)
        found, sentence = reproduce.core_count("", 1.5)
        assert found == count
        assert f"{count} jobs side by side (16 cores" in sentence and "a job takes about 1.5 GB" in sentence
    assert reproduce.core_count("3", 1.5) == (3, "3 jobs side by side")


def test_expected_time_comes_from_what_jobs_took():
    assert reproduce.expected_time({}, {}, 2) == ""
    text = reproduce.expected_time({"adapt": 18, "transfer": 2}, {"adapt": 40, "transfer": 90}, 2)
    assert text == "expected time: about 8 min, from what such jobs took here"
    # However many cores there are, it takes as long as its longest job.
    assert "about 90 s" not in reproduce.expected_time({"adapt": 2}, {"adapt": 40}, 16)
    assert "about 40 s" in reproduce.expected_time({"adapt": 2}, {"adapt": 40}, 16)
    text = reproduce.expected_time({"adapt": 2, "tables": 1}, {"adapt": 40}, 1)
    assert text.endswith("about 80 s, from what such jobs took here, without tables, which have not run here yet")
    assert reproduce.expected_time({"adapt": 2}, {}, 1).startswith("expected time: not known for adapt")


def test_only_the_grid_is_held_to_one_thread():
    for target in ("lab", "bench", "data", "notebooks"):
        result = subprocess.run(
            ["make", "-n", "-o", ".venv/.done", target], cwd=ROOT, check=True, capture_output=True, text=True,
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        )  # fmt: skip
        assert "OMP_NUM_THREADS" not in result.stdout
    script = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('GLIBC_TUNABLES'))"
    makefile = f'include Makefile\nprobe:\n\t@{sys.executable} -c "{script}"\n'
    # Not what a make around these tests has set.
    outer = ("OMP_NUM_THREADS", "GLIBC_TUNABLES", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    result = subprocess.run(
        ["make", "-f", "-", "probe"],
        cwd=ROOT,
        input=makefile,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.stdout.split() == ["None", "None"]


def test_times_of_a_profile_that_has_not_run_come_from_others_but_not_from_toys(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    for name, rule, seconds in (
        ("mini", "adapt", 40),
        ("smoke", "tables", 1),
        ("full", "data", 9),
        ("mini", "data", 5),
    ):
        out = tmp_path / "results" / name / rule
        out.mkdir(parents=True)
        (out / "metrics.json").write_text("{}")
        made = {"entry": "", "draws": False, "code": {}, "parameters": {}, "inputs": {}}
        reproduce.stale.record(out, "metrics.json", made, took={"rule": rule, "seconds": seconds})
    assert reproduce.known_seconds(Path("results/full")) == {"adapt": 40, "data": 9}
