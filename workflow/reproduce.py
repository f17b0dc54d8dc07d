"""Run a profile of the workflow to the end, with a progress bar, then print its table; `make reproduce` calls this.

    python workflow/reproduce.py mini
    python workflow/reproduce.py camvid --data path/to/CamVid

What is done and unchanged is skipped; what has changed or been damaged since it was made is made again. Exit code 2:
wrong arguments, nothing was run; 1: a job failed, the others were run; 130: stopped by Ctrl-C, with all its jobs.
"""

import argparse
import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import processes
import psutil
import stale
import yaml
from tqdm import tqdm

from zodi.support.files import write_json

ROOT = Path(__file__).parent.parent
PROFILES = ROOT / "workflow" / "profiles"
# In the results folder: what the user gives besides the profile.
GIVEN_FILE = ".given.json"
# Memory that a job of the miniature takes; profiles with larger networks set `job_gigabytes`.
JOB_GIGABYTES = 1.5
# What a stage prints at the end.
MAIN_TABLES = ("main.md", "verdicts.md")
# How Snakemake starts what it says about a job.
JOB = re.compile(r"^(?:local)?rule (\w+):$", re.MULTILINE)
PROGRESS = re.compile(r"(\d+) of (\d+) steps \(.*\) done")
CHATTER = re.compile(
    r"Assuming unrestricted|Building DAG|Using shell|Provided cores|Rules claiming|Select jobs|Execute \d+ jobs"
    r"|Finished job|Complete log|Elapsed time|\[\w{3} \w{3} +\d+ [\d:]+ \d{4}\]$"
)


def slurm_limits() -> dict[str, dict[str, int]]:
    """What CLUSTER=slurm asks for, by rule: runtime in minutes, mem_mb, cpus_per_task; "every other rule" is the rest.

    See `workflow/profiles/slurm/config.yaml`.
    """
    slurm = yaml.safe_load((PROFILES / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    rest = {name: int(value) for name, value in (item.split("=") for item in slurm["default-resources"])}
    limits = {"every other rule": rest}
    for item in slurm["set-resources"]:
        rule, name, value = re.split("[:=]", item)
        limits.setdefault(rule, dict(rest))[name] = int(value)
    return limits


def read_profile(name: str) -> dict[str, Any]:
    """Settings of a profile.

    Raises:
        ValueError: if there is none of this name.
    """
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"PROFILE={printable(name)}: no such profile; expected one of {', '.join(names)}")
    return _read_settings(name)


def _read_settings(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))


def printable(text: str) -> str:
    """The text in one line, whatever is in it."""
    return text if text.isprintable() else ascii(text)


def core_count(text: str, job_gigabytes: float) -> tuple[int, str]:
    """CORES as a number; "" = as many as the machine has cores, and memory for their jobs.

    Args:
        text: CORES.
        job_gigabytes: memory per job.

    Returns:
        The number of jobs that run side by side, and a sentence that says where it comes from.

    Raises:
        ValueError: if it is not a number, or less than 1.
    """
    if not text:
        cores, gigabytes = usable_cores(), psutil.virtual_memory().available / 1e9
        count = max(1, min(cores, int(gigabytes / job_gigabytes)))
        found = f"{cores} cores, {gigabytes:.0f} GB of memory free, a job takes about {job_gigabytes:g} GB"
        return count, f"{count} jobs side by side ({found}; CORES=number changes it)"
    with suppress(ValueError):
        if (count := int(text)) >= 1:
            return count, f"{count} jobs side by side"
    raise ValueError(f"CORES={printable(text)}: expected a whole number of at least 1, jobs that run side by side")


def usable_cores() -> int:
    """Cores that this process may use."""
    # Not on every system: it may have been given fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cluster(name: str) -> None:
    """Check that there are settings for a cluster; "" means this machine.

    Raises:
        ValueError: if there are none of this name.
    """
    names = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
    if name and name not in names:
        raise ValueError(f"CLUSTER={printable(name)}: no such cluster; expected nothing or one of {', '.join(names)}")


def given_settings(data: str, model: str) -> dict[str, str]:
    """What the user adds to a profile: a data set's folder and another checkpoint.

    Raises:
        ValueError: for names that are not UTF-8.
    """
    settings = {"source": str(Path(data).expanduser().resolve())} if data else {}
    settings |= {"model": model} if model != "mini" else {}
    for name, value in settings.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} {value!a}: found a name that is not UTF-8; rename the folder") from None
    return settings


def check_source(profile: str, needs: list[str], data: str) -> None:
    """Check that DATA is given when a profile reads the user's data set, and that it looks like that data set.

    Args:
        profile: name, for the message.
        needs: folders that the data set must have; empty if the profile makes its own data.
        data: the user's DATA, "" if there is none.

    Raises:
        ValueError: saying what to do.
    """
    usage = f"make reproduce PROFILE={profile} DATA=path"
    if not needs:
        if data:
            raise ValueError(f"DATA={printable(data)}: the profile {profile} makes its own data; leave DATA out")
        return
    layout = f"a folder with {', '.join(name + '/' for name in needs)}"
    if not data:
        raise ValueError(f"PROFILE={profile} needs your copy of the data set: {usage}, where path is {layout}")
    folder, data = Path(data).expanduser(), printable(data)
    if not folder.is_dir():
        raise ValueError(f"DATA={data}: no such folder; expected {layout}: {usage}")
    missing = [name for name in needs if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"DATA={data}: found no {', '.join(name + '/' for name in missing)} in it; expected {layout}")


def missing_models(names: list[str]) -> list[str]:
    """What to do about every model that is neither a folder nor in the hub's cache on this machine."""
    if not names:
        return []
    from zodi.networks.hub import snapshot

    def is_here(name: str) -> bool:
        try:
            return Path(name).is_dir() or snapshot(name).is_dir()
        except (OSError, ValueError):
            return False

    advice = "not in the hub's cache (HF_HOME); `.venv/bin/python data_scripts/weights.py download` fetches it"
    return [f"model {printable(name)}: {advice}" for name in names if not is_here(name)]


def has_graphics_card() -> bool:
    """Whether this machine has an NVIDIA card whose driver is installed."""
    return shutil.which("nvidia-smi") is not None


def with_upgrade(name: str, profile: dict[str, Any], cluster: str) -> tuple[list[str], dict[str, Any], str]:
    """A profile, changed by the one that it names as `upgrade` if this machine has what that one needs.

    Returns:
        Names of the profiles whose settings apply, later ones first, the settings, and a sentence that says which.
    """
    upgrade = profile.get("upgrade")
    if upgrade is None:
        return [name], profile, ""
    better = _read_settings(upgrade)
    if better.get("gpu") and not cluster and not has_graphics_card():
        missing = ["a graphics card: found no nvidia-smi"]
    else:
        missing = missing_models(better.get("model_needs", []))
    if missing:
        return [name], profile, f"{profile['without_upgrade']} ({upgrade}.yaml needs {'; '.join(missing)})"
    return [name, upgrade], profile | better, better["with_upgrade"]


def check_needs(name: str, profile: dict[str, Any], data: str, cluster: str, model: str = "mini") -> None:
    """Check that data, models and the graphics card are there before anything runs.

    Raises:
        ValueError: listing everything that is missing.
    """
    problems = []
    try:
        check_source(name, profile.get("source_needs", []), data)
    except ValueError as error:
        problems.append(str(error))
    problems += missing_models(profile.get("model_needs", []))
    problems += missing_models([model] if model != "mini" else [])
    if profile.get("gpu") and not cluster and not has_graphics_card():
        problems.append(
            f"PROFILE={name} needs a graphics card: found no nvidia-smi on this machine; or use CLUSTER=slurm"
        )
    if problems:
        raise ValueError("; ".join(problems))


def plan(jobs: Mapping[str, int], expected: dict[str, dict[str, float]]) -> str:
    """What is still to run: the jobs of every rule, and what they will take if the profile says what one takes."""
    lines = [f"{'rule':<16}{'jobs':>6}{'GPU hours':>12}{'GB on disk':>12}"]
    totals = [0.0, 0.0]
    for rule, count in jobs.items():
        each = expected.get(rule, {})
        hours, gigabytes = count * each.get("hours", 0), count * each.get("gigabytes", 0)
        totals = [totals[0] + hours, totals[1] + gigabytes]
        lines.append(f"{rule:<16}{count:>6}" + (f"{hours:>12.1f}{gigabytes:>12.1f}" if each else ""))
    lines.append(f"{'total':<16}{sum(jobs.values()):>6}{totals[0]:>12.1f}{totals[1]:>12.1f}")
    return "\n".join(lines)


@contextmanager
def lock(results: Path) -> Iterator[IO]:
    """Keep a second run out of the same results.

    Yields:
        The locked file. Any process that inherits it holds the lock too; the system releases it when all have ended.

    Raises:
        ValueError: if another run, or what is left of one, holds it.
    """
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{results}: another run is writing there; wait for it or stop it") from None
        except OSError as error:
            print(f"{results}: cannot be locked ({error.strerror}); do not start a second run", file=sys.stderr)
        yield file


def show(lines: Iterable[str]) -> None:
    """Turn Snakemake's lines into a progress bar; without a terminal, into one line per finished job."""
    with tqdm(unit="job", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for line in lines:
            # A job's progress bar redraws its line: only the last state matters.
            line = line.rstrip().rsplit("\r", 1)[-1]
            progress = PROGRESS.fullmatch(line)
            if progress:
                bar.total = int(progress[2])
                bar.update(int(progress[1]) - bar.n)
            if line and not CHATTER.match(line) and (bar.disable or not progress):
                bar.write(line, file=sys.stderr)


def status_command(cluster: str) -> list[str]:
    """Options with which Snakemake asks about its jobs: a Slurm without accounting answers squeue, not sacct."""
    if not cluster or shutil.which("sacct") is None:
        return []
    answer = subprocess.run(["sacct", "--noheader", "--allocations"], check=False, capture_output=True)
    return ["--slurm-status-command", "squeue"] if answer.returncode else []


def snakemake_command(profiles: list[str], given: Path, cores: int, cluster: str) -> list[str]:
    """The call of Snakemake for a profile, the others that change it, and the file with what the user gives."""
    # Snakemake's locks outlive a killed run and then block the next one: `lock` replaces them.
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--snakefile", "workflow/Snakefile", "--configfile"]
    command += [f"workflow/profiles/{profile}.yaml" for profile in profiles]
    # In a file: on its command line Snakemake reads numbers, truth values and YAML.
    command.append(str(given))
    # On this machine every job uses the first graphics card, so one runs at a time.
    here = ["--cores", str(cores), "--resources", "gpu=1"]
    there = ["--profile", f"workflow/profiles/{cluster}", *status_command(cluster)]
    return command + (there if cluster else here)


@dataclass
class Work:
    """What Snakemake would do.

    Attributes:
        changed: first output of every job whose own code, inputs or parameters have changed -> what has changed.
        new: number of jobs whose result is not there yet.
        following: number of jobs that run because an earlier job does.
        rules: number of all jobs, by rule.
    """

    changed: dict[str, list[str]] = field(default_factory=dict)
    new: int = 0
    following: int = 0
    rules: Counter[str] = field(default_factory=Counter)


def work_to_do(command: list[str]) -> Work:
    """What Snakemake would make, and why."""
    result = subprocess.run(
        [*command, "--dry-run"], cwd=ROOT, check=False, capture_output=True, text=True, **processes.tied()
    )
    work, parts = Work(), JOB.split(result.stdout + result.stderr)
    for rule, block in zip(parts[1::2], parts[2::2], strict=True):
        output, reason = (re.search(rf"^ +{name}: (.*)$", block, re.MULTILINE) for name in ("output", "reason"))
        if reason is None or output is None:
            continue
        work.rules[rule] += 1
        file = output[1].split(", ")[0]
        if not (ROOT / file).exists():
            work.new += 1
        elif "Input files updated by another job" in reason[1]:
            work.following += 1
        else:
            why = stale.why(ROOT / Path(file).parent)
            work.changed[file] = why or [reason[1].replace("Forced execution", "it is no longer as it was made")]
    return work


def explain(work: Work, results: Path) -> str:
    """A few lines on what is stale and why; jobs with the same reasons share a line."""
    groups: dict[str, list[str]] = {}
    for file, reasons in work.changed.items():
        groups.setdefault("; ".join(reasons), []).append(file)
    lines = [f"{work.new} jobs are new, {len(work.changed)} are stale, {work.following} follow"]
    for reasons, files in groups.items():
        shown = ", ".join(str(Path(file).parent) for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        lines.append(f"  stale: {shown}{more}: {reasons}")
    if work.changed or work.following:
        lines.append(f"  their present files will be moved to {results / 'stale'}")
    return "\n".join(lines)


def known_seconds(results: Path) -> dict[str, float]:
    """What jobs took on this machine: rule -> median, seconds; in this profile, or else in others at full length."""
    others = (path.stem for path in sorted(PROFILES.glob("*.yaml")) if not path.stem.endswith("smoke"))
    folders = [*(Path(_read_settings(name)["results"]) for name in others), results]
    return {rule: took for folder in folders for rule, took in stale.seconds_by_rule(ROOT / folder).items()}


def expected_time(rules: Mapping[str, int], seconds: Mapping[str, float], cores: int) -> str:
    """How long jobs will take, estimated from what jobs of the same rule took; "" if there is nothing to do.

    Args:
        rules: number of jobs by rule.
        seconds: how long a job of each rule took, see `stale.seconds_by_rule`.
        cores: how many jobs run side by side.
    """
    if not rules:
        return ""
    unknown = sorted(set(rules) - set(seconds))
    longest = max((seconds[rule] for rule in rules if rule in seconds), default=0)
    total = max(longest, sum(count * seconds.get(rule, 0) for rule, count in rules.items()) / cores)
    rest = f"{'without' if total else 'not known for'} {', '.join(unknown)}, which have not run here yet"
    if not total:
        return f"expected time: {rest}"
    time = f"{total / 60:.0f} min" if total >= 90 else f"{total:.0f} s"
    return f"expected time: about {time}, from what such jobs took here" + (f", {rest}" if unknown else "")


def mend(results: Path, dry_run: bool) -> tuple[str, list[str]]:
    """Set aside what is no longer as it was made, so that it is made again.

    Returns:
        A line for every such run, and the files to make again, including those that are gone without a trace.
    """
    lines, again = [], []
    for folder, problems in stale.damaged_runs(ROOT / results).items():
        if not dry_run:
            stale.set_aside(ROOT / results, folder, problems)
        run = folder.relative_to(ROOT)
        again += [run / name for name in stale.ENDS]
        (name, problem), more = next(iter(problems.items())), len(problems) - 1
        file = printable(os.path.normpath(run / name)) + (f" and {more} more" if more else "")
        lines.append(f"changed since it was made: {file}: {problem}; {run} will be made again")
    if lines:
        lines.append(f"  their files {'will be' if dry_run else 'have been'} moved to {results / 'stale'}")
    again += [file.relative_to(ROOT) for file in stale.unfinished(ROOT / results)]
    return "\n".join(lines), [file.as_posix() for file in dict.fromkeys(again)]


def forced(command: list[str], files: list[str]) -> list[str]:
    """Options with which Snakemake makes files again, as far as they belong to the profile's grid."""
    if not files:
        return []
    result = subprocess.run(
        [*command, "--summary"], cwd=ROOT, check=False, capture_output=True, text=True, **processes.tied()
    )
    of_the_grid = {line.partition("\t")[0] for line in result.stdout.splitlines()}
    again = [file for file in files if file in of_the_grid]
    return ["--forcerun", *again] if again else []


def run_snakemake(command: list[str], dry_run: bool, held: IO, cluster: str) -> int:
    """Run the workflow; returns Snakemake's exit code.

    Args:
        command: from `snakemake_command`.
        dry_run: only say what would run.
        held: the locked file. As standard input it is passed on to every job, which closes other files.
        cluster: name of the cluster, "" for this machine.
    """
    # On a dry run Snakemake prints the number of jobs twice, and `run` has printed it.
    command = [*command, "--quiet", "rules", "host", *(["progress", "--dry-run"] if dry_run else [])]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=held, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **processes.tied()
    )
    try:
        show(io.TextIOWrapper(process.stdout, encoding="utf-8", newline="\n", errors="replace"))
        return process.wait()
    except processes.Stopped:
        if cluster:
            # Jobs on other machines are for Snakemake to cancel.
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        raise


def report(results: Path) -> None:
    """Print the main tables and say where everything is."""
    folders = [
        results / stage
        for stage in ("tables", "photographs", "estimation", "images", "quality")
        if (results / stage).is_dir()
    ]
    # The photographs' notebook shows the same main table as the tables' notebook.
    mains = [file for folder in folders for name in MAIN_TABLES if (file := folder / name).exists()]
    for text in dict.fromkeys(file.read_text(encoding="utf-8") for file in mains):
        print(text)
    for what, suffix in {"tables": "md", "data of the tables": "csv", "figures": "png"}.items():
        print(f"{what}:")
        found = sorted(path for folder in folders for path in folder.glob(f"**/*.{suffix}"))
        # A notebook may have transferred images of its own, which are not figures.
        for path in [path for path in found if path.parent.name != "images" and path.name != "preview.png"]:
            print(f"  {path}")
    print(f"executed notebooks: {results / 'notebooks'}")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="name of a file in workflow/profiles, without .yaml")
    parser.add_argument("--data", default="", help="folder of the data set, for profiles that need one")
    parser.add_argument("--cores", default="", help="jobs to run side by side (default: as many as fit the machine)")
    parser.add_argument("--model", default="mini", help="checkpoint, for profiles that measure one (default: mini)")
    parser.add_argument("--cluster", default="", help="folder in workflow/profiles, for example slurm")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run, and why")
    arguments = parser.parse_args()
    return processes.exit_code_of(partial(run, arguments))


def run(arguments: argparse.Namespace) -> int:
    """Check the arguments, run the workflow and show its results; returns the exit code.

    Raises:
        ValueError: for wrong arguments.
    """
    profile = read_profile(arguments.profile)
    cores, sentence_on_jobs = core_count(arguments.cores, profile.get("job_gigabytes", JOB_GIGABYTES))
    given = given_settings(arguments.data, arguments.model)
    check_cluster(arguments.cluster)
    profiles, profile, sentence = with_upgrade(arguments.profile, profile, arguments.cluster)
    try:
        check_needs(arguments.profile, profile, arguments.data, arguments.cluster, arguments.model)
    except ValueError as error:
        # A plan can be made without data and models; it says what the run would stop at.
        if not arguments.dry_run or "expected" not in profile:
            raise
        print(f"missing: {error}", file=sys.stderr)
    results = Path(profile["results"])
    with lock(ROOT / results) as held:
        write_json(ROOT / results / GIVEN_FILE, given)
        command = snakemake_command(profiles, results / GIVEN_FILE, cores, arguments.cluster)
        if sentence:
            print(sentence)
        mended, again = mend(results, arguments.dry_run)
        if mended:
            print(mended)
        command += forced(command, again)
        work = work_to_do(command)
        if "expected" in profile:
            print(plan(work.rules, profile["expected"]))
        elif arguments.dry_run:
            print("\n".join(f"{rule:<16}{count:>6}" for rule, count in work.rules.items()))
        print(explain(work, results))
        if work.rules and "expected" not in profile and not arguments.cluster:
            print(sentence_on_jobs)
            print(expected_time(work.rules, known_seconds(results), cores))
        code = run_snakemake(command, arguments.dry_run, held, arguments.cluster)
    if code == 0 and not arguments.dry_run:
        report(results)
    return min(code, 1) if code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
