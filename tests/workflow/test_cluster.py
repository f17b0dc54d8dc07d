"""The workflow on a real Slurm: a controller and a node on this machine. Only `make test-cluster` runs it.

It installs Debian's packages where they are missing, which takes root; where that cannot be, it is skipped.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "paper-smoke"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
CONFIG = """
ClusterName=zodi
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs={cpus} RealMemory=20000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Where Slurm looks by itself: jobs do not inherit SLURM_CONF.
CONFIG_FILE = Path("/etc/slurm/slurm.conf")

pytestmark = pytest.mark.skipif(
    os.environ.get("ZODI_TEST_CLUSTER") != "1", reason="starts system services; run `make test-cluster`"
)


def install() -> None:
    """Debian's Slurm, or a skip that says why not."""
    if all(shutil.which(program, path="/usr/sbin:/usr/bin") for program in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("Slurm is not installed, and installing it takes root and apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "-qq", *PACKAGES]):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            pytest.skip(f"Slurm cannot be installed: {result.stderr.strip()[-200:]}")


def wait_for(condition, what: str, seconds: float) -> None:
    """Poll a condition; fails with what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A Slurm of one node; yields the environment in which its commands find it."""
    install()
    if CONFIG_FILE.exists():
        pytest.skip(f"{CONFIG_FILE} is there: this machine has a Slurm of its own, which the test leaves alone")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    CONFIG_FILE.parent.mkdir(exist_ok=True)
    CONFIG_FILE.write_text(CONFIG.format(host=socket.gethostname(), cpus=os.cpu_count(), folder=folder))
    environment = os.environ | {"PATH": f"/usr/sbin:/usr/bin:{os.environ['PATH']}"}
    services = []

    def munge_answers() -> bool:
        # Its socket alone says nothing: it outlives a killed daemon.
        result = subprocess.run(["munge", "--no-input"], env=environment, capture_output=True, check=False)
        return result.returncode == 0

    if not munge_answers():
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        munged = ["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--foreground", "--force"]
        services.append(subprocess.Popen(munged))
        wait_for(munge_answers, "munge", 20)
    services += [subprocess.Popen([name, "-D"], env=environment) for name in ("slurmctld", "slurmd")]

    def idle() -> bool:
        result = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        return result.stdout.strip() == "idle"

    try:
        wait_for(idle, "idle node", 60)
        yield environment
    finally:
        CONFIG_FILE.unlink()
        for service in reversed(services):
            service.terminate()
            service.wait(timeout=30)


def start(environment: dict[str, str]) -> subprocess.Popen:
    command = ["make", "-o", ".venv/.done", "reproduce", "PROFILE=paper-smoke", "CLUSTER=slurm"]
    # A session of its own, so that all of it can be killed at once.
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finished() -> dict[Path, int]:
    """Every metrics.json and when it was written."""
    return {file: file.stat().st_mtime_ns for file in RESULTS.glob("**/metrics.json")}


def running_jobs(environment: dict[str, str]) -> list[str]:
    result = subprocess.run(["squeue", "-h", "-o", "%i"], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_a_run_that_is_killed_finishes_only_what_is_missing(slurm):
    shutil.rmtree(RESULTS, ignore_errors=True)
    run = start(slurm)
    runs = RESULTS / "runs"
    wait_for(lambda: any(runs.glob("**/metrics.json")) and running_jobs(slurm), "finished training", 1200)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    subprocess.run(["scancel", *running_jobs(slurm)], env=slurm, check=True)
    wait_for(lambda: not running_jobs(slurm), "end of the jobs", 60)
    before = finished()
    assert not (RESULTS / "tables" / "metrics.json").exists()

    again = start(slurm)
    output, _ = again.communicate(timeout=1500)
    assert again.returncode == 0, output[-3000:]
    after = finished()
    assert (RESULTS / "tables" / "metrics.json") in after
    assert {file: after[file] for file in before} == before
    assert len(after) > len(before)
