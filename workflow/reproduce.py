"""Run a profile of the workflow to the end, with a progress bar, then print its table; `make reproduce` calls this.

    python workflow/reproduce.py mini --cores 2
    python workflow/reproduce.py camvid --data path/to/CamVid

What is done and unchanged is not run again. Exit code 2: wrong arguments, nothing was run; 1: a job failed, the others
were run.
"""

import argparse
import fcntl
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
PROFILES = ROOT / "workflow" / "profiles"
PROGRESS = re.compile(r"(\d+) of (\d+) steps \(.*\) done")
CHATTER = re.compile(
    r"Assuming unrestricted|Building DAG|Using shell|Provided cores|Rules claiming|Select jobs|Execute \d+ jobs"
    r"|Finished job|Complete log|Elapsed time|\[\w{3} \w{3} +\d+ [\d:]+ \d{4}\]$"
)


def read_profile(name: str) -> dict[str, Any]:
    """Settings of a profile.

    Raises:
        ValueError: if there is none of this name.
    """
    file = PROFILES / f"{name}.yaml"
    if not file.is_file():
        names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        raise ValueError(f"PROFILE={name}: no such profile; expected one of {', '.join(names)}")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def check_source(profile: str, needs: list[str], data: str) -> None:
    """Check that DATA is given when a profile reads a data set of the user's, and that it looks like that data set.

    Args:
        profile: name, for the message.
        needs: folders that the data set must have; empty if the profile makes its own data.
        data: the user's DATA, "" if there is none.

    Raises:
        ValueError: with what to do.
    """
    usage = f"make reproduce PROFILE={profile} DATA=path"
    if not needs:
        if data:
            raise ValueError(f"DATA={data}: the profile {profile} makes its own data; leave DATA out")
        return
    layout = f"a folder with {', '.join(name + '/' for name in needs)}"
    if not data:
        raise ValueError(f"PROFILE={profile} needs your copy of the data set: {usage}, where path is {layout}")
    if not Path(data).is_dir():
        raise ValueError(f"DATA={data}: no such folder; expected {layout}: {usage}")
    missing = [name for name in needs if not (Path(data) / name).is_dir()]
    if missing:
        raise ValueError(f"DATA={data}: found no {', '.join(name + '/' for name in missing)} in it; expected {layout}")


def missing_models(names: list[str]) -> list[str]:
    """What to do about every model that is neither a folder nor in the hub's cache on this machine."""
    if not names:
        return []
    # Loads torch, which profiles without models need not wait for.
    from zodi.diffusion import snapshot

    def is_here(name: str) -> bool:
        try:
            return Path(name).is_dir() or snapshot(name).is_dir()
        except OSError:
            return False

    advice = "not in the hub's cache (HF_HOME); `.venv/bin/python data_scripts/weights.py download` gets it"
    return [f"model {name}: {advice}" for name in names if not is_here(name)]


def has_graphics_card() -> bool:
    """Whether this machine has an NVIDIA card whose driver is installed."""
    return shutil.which("nvidia-smi") is not None


def with_upgrade(name: str, profile: dict[str, Any], cluster: str) -> tuple[list[str], dict[str, Any], str]:
    """A profile, changed by the one that it names as `upgrade` where this machine has what that one needs.

    Returns:
        Names of the profiles whose settings count, later ones first, the settings, and a sentence that says which.
    """
    upgrade = profile.get("upgrade")
    if upgrade is None:
        return [name], profile, ""
    better = read_profile(upgrade)
    if better.get("gpu") and not cluster and not has_graphics_card():
        missing = ["a graphics card: found no nvidia-smi"]
    else:
        missing = missing_models(better.get("model_needs", []))
    if missing:
        return [name], profile, f"{profile['without_upgrade']} ({upgrade}.yaml needs {'; '.join(missing)})"
    return [name, upgrade], profile | better, better["with_upgrade"]


def check_needs(name: str, profile: dict[str, Any], data: str, cluster: str) -> None:
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
    if profile.get("gpu") and not cluster and not has_graphics_card():
        problems.append(
            f"PROFILE={name} needs a graphics card: found no nvidia-smi on this machine; or use CLUSTER=slurm"
        )
    if problems:
        raise ValueError("; ".join(problems))


def plan(jobs: dict[str, int], expected: dict[str, dict[str, float]]) -> str:
    """What is still to run: jobs of every rule, and what they will take where the profile says what one takes."""
    lines = [f"{'rule':<16}{'jobs':>6}{'GPU hours':>12}{'GB on disk':>12}"]
    totals = [0.0, 0.0]
    for rule, count in jobs.items():
        each = expected.get(rule, {})
        hours, gigabytes = count * each.get("hours", 0), count * each.get("gigabytes", 0)
        totals = [totals[0] + hours, totals[1] + gigabytes]
        lines.append(f"{rule:<16}{count:>6}" + (f"{hours:>12.1f}{gigabytes:>12.1f}" if each else ""))
    lines.append(f"{'total':<16}{sum(jobs.values()):>6}{totals[0]:>12.1f}{totals[1]:>12.1f}")
    return "\n".join(lines)


def planned_jobs(command: list[str]) -> dict[str, int]:
    """Number of jobs a rule that Snakemake would run."""
    result = subprocess.run(
        [*command, "--dry-run", "--quiet", "rules"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    table = (result.stdout + result.stderr).partition("Job stats:")[2].partition("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if name != "all"}


@contextmanager
def lock(results: Path) -> Iterator[None]:
    """Keep a second run out of the same results; the system lets go of it however this process ends.

    Raises:
        ValueError: if another run holds it.
    """
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{results}: another run is writing there; wait for it or stop it") from None
        yield


def show(lines: Iterable[str]) -> None:
    """Turn Snakemake's lines into a progress bar; without a terminal, into one line a finished job."""
    bar = tqdm(unit="job", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    for line in lines:
        # A progress bar of a job redraws its line: only the last state is of interest.
        line = line.rstrip().rsplit("\r", 1)[-1]
        progress = PROGRESS.fullmatch(line)
        if progress:
            bar.total = int(progress[2])
            bar.update(int(progress[1]) - bar.n)
        if line and not CHATTER.match(line) and (bar.disable or not progress):
            bar.write(line, file=sys.stderr)
    bar.close()


def status_command(cluster: str) -> list[str]:
    """Options by which Snakemake asks for its jobs: a Slurm that keeps no accounts answers squeue, not sacct."""
    if not cluster or shutil.which("sacct") is None:
        return []
    answer = subprocess.run(["sacct", "--noheader", "--allocations"], check=False, capture_output=True)
    return ["--slurm-status-command", "squeue"] if answer.returncode else []


def snakemake_command(profiles: list[str], data: str, cores: int, cluster: str) -> list[str]:
    """The call of Snakemake for a profile, and others that change it."""
    # Locks of Snakemake outlive a killed run and then block the next: `lock` takes their place.
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--snakefile", "workflow/Snakefile", "--configfile"]
    command += [f"workflow/profiles/{profile}.yaml" for profile in profiles]
    if data:
        command += ["--config", f"source={Path(data).resolve()}"]
    # On this machine every job sees the first graphics card, so that one runs at a time.
    here = ["--cores", str(cores), "--resources", "gpu=1"]
    there = ["--profile", f"workflow/profiles/{cluster}", *status_command(cluster)]
    return command + (there if cluster else here)


def run_snakemake(command: list[str], dry_run: bool) -> int:
    """Run the workflow; returns Snakemake's exit code."""
    command = [*command, *(["--dry-run"] if dry_run else []), "--quiet", "rules", "host"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        show(io.TextIOWrapper(process.stdout, encoding="utf-8", newline="\n"))
    return process.returncode


def report(results: Path) -> None:
    """Print the main tables and where everything is."""
    folders = [results / stage for stage in ("tables", "photographs", "estimation") if (results / stage).is_dir()]
    # The photographs' notebook shows the same main table as the tables' notebook.
    for text in dict.fromkeys((folder / "main.md").read_text(encoding="utf-8") for folder in folders):
        print(text)
    for what, suffix in {"tables": "md", "data of the tables": "csv", "figures": "png"}.items():
        print(f"{what}:")
        found = sorted(path for folder in folders for path in folder.glob(f"**/*.{suffix}"))
        # A notebook may have transferred images of its own, which are no figures.
        for path in [path for path in found if path.parent.name != "images" and path.name != "preview.png"]:
            print(f"  {path}")
    print(f"executed notebooks: {results / 'notebooks'}")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="name of a file in workflow/profiles, without .yaml")
    parser.add_argument("--data", default="", help="folder of the data set, for profiles that need one")
    parser.add_argument("--cores", type=int, default=2, help="jobs that run side by side (default 2)")
    parser.add_argument("--cluster", default="", help="folder in workflow/profiles, for example slurm")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run, and why")
    arguments = parser.parse_args()
    try:
        profile = read_profile(arguments.profile)
        profiles, profile, sentence = with_upgrade(arguments.profile, profile, arguments.cluster)
        command = snakemake_command(profiles, arguments.data, arguments.cores, arguments.cluster)
        try:
            check_needs(arguments.profile, profile, arguments.data, arguments.cluster)
        except ValueError as error:
            # A plan can be made without data and models; it says what it would stop at.
            if not arguments.dry_run or "expected" not in profile:
                raise
            print(f"missing: {error}", file=sys.stderr)
        results = Path(profile["results"])
        with lock(ROOT / results):
            if sentence:
                print(sentence)
            if "expected" in profile:
                print(plan(planned_jobs(command), profile["expected"]))
            code = run_snakemake(command, arguments.dry_run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if code == 0 and not arguments.dry_run:
        report(results)
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
