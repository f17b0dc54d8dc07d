"""Make every record again: the runs behind the README, the notebooks and `benchmarks/`, then the executed notebooks.

    python workflow/records.py --dry-run       what is stale, and how long it will take
    python workflow/records.py                 all of it, in order; what is done and unchanged is skipped
    python workflow/records.py --data=path     with the real photographs of CamVid, profile "camvid"

After a change to the checkpoint or the code, this one command brings everything up to date. It may be stopped at any
time; the same command continues from there. Exit code 1: a part failed, and what comes after it was not started.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import processes
import reproduce
import stale

from zodi.support.files import read_json, write_json

ROOT = Path(__file__).parent.parent
# In this order: what is quick and seen by most readers comes first.
PROFILES = ("mini", "full", "estimation")
WITH_DATA = "camvid"
COURSE = ROOT / "results" / "course"
# What the notebooks were last executed from: one digest each.
EXECUTED = ROOT / "results" / "records" / "executed.json"


def outlook(name: str, cores: int, data: str) -> tuple[int, str]:
    """Number of jobs that a profile has to run, and a few lines on why and how long they take."""
    profile = reproduce.read_profile(name)
    results = Path(profile["results"])
    # Held, because another run of the profile may have other settings.
    with reproduce.lock(ROOT / results):
        write_json(ROOT / results / reproduce.GIVEN_FILE, reproduce.given_settings(data, "mini"))
        work = reproduce.work_to_do(reproduce.snakemake_command([name], results / reproduce.GIVEN_FILE, cores, ""))
    time = reproduce.expected_time(work.rules, reproduce.known_seconds(results), cores)
    return work.rules.total(), "\n  ".join(filter(None, (reproduce.explain(work, results), time)))


def notebooks_to_execute() -> dict[str, str]:
    """Notebooks last executed with other code, text, records or weights: name -> digest of the current ones."""
    data = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _data_of_notebooks()]
    found = {file.stem: _digest(file, data) for file in sorted((ROOT / "notebooks").glob("*.py"))}
    before = read_json(EXECUTED) if EXECUTED.exists() else {}
    return {name: digest for name, digest in found.items() if before.get(name) != digest}


def _digest(twin: Path, data: list[str]) -> str:
    """Digest of a notebook's text, its code and the digests of what notebooks read."""
    code = stale.code_of(twin.relative_to(ROOT).as_posix())
    parts = [code, twin.read_text(encoding="utf-8"), data]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _data_of_notebooks() -> Iterator[Path]:
    for folder in (ROOT / "notebooks" / "records", ROOT / "benchmarks", ROOT / "zodi" / "weights"):
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def execute(names: dict[str, str]) -> bool:
    """Execute notebooks as if for the first time, and record each that succeeded; returns whether all did."""
    shutil.rmtree(COURSE, ignore_errors=True)
    for name, digest in names.items():
        if not call("workflow/execute_notebooks.py", f"notebooks/{name}.ipynb"):
            return False
        done = read_json(EXECUTED) if EXECUTED.exists() else {}
        write_json(EXECUTED, done | {name: digest})
    return True


def call(*command: str) -> bool:
    """Run a program of ours in the checkout, its output unchanged; returns whether it succeeded."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="", help="jobs to run side by side (default: as many as fit the machine)")
    parser.add_argument("--data", default="", help="folder of CamVid, for the record of real photographs")
    parser.add_argument("--dry-run", action="store_true", help="only say what is stale, and how long it will take")
    arguments = parser.parse_args()
    return processes.exit_code_of(partial(run, arguments))


def run(arguments: argparse.Namespace) -> int:
    """Say what is to be done, then do it; returns the exit code."""
    cores, sentence = reproduce.core_count(arguments.cores, reproduce.JOB_GIGABYTES)
    profiles = [*PROFILES, *([WITH_DATA] if arguments.data else [])]
    print(sentence)
    for name in profiles:
        count, why = outlook(name, cores, arguments.data)
        print(f"{name}: {why if count else 'nothing to do'}")
    if not arguments.data:
        print(f"{WITH_DATA}: left out, its record is kept; DATA=path runs it")
    changed = ", ".join(notebooks_to_execute()) or "none"
    print(f"then the benchmarks, the records, and the notebooks that have changed by then (now: {changed})")
    if arguments.dry_run:
        return 0
    for name in profiles:
        data = [f"--data={arguments.data}"] if name == WITH_DATA else []
        if not call("workflow/reproduce.py", name, f"--cores={cores}", *data):
            print(f"error: PROFILE={name} failed, see above; the same command continues from there", file=sys.stderr)
            return 1
    whole = call("-m", "zodi.studies", "bench") and call("workflow/record.py") and execute(notebooks_to_execute())
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
