"""Execute one course notebook with given parameters and keep the executed copy, even if it fails.

    python workflow/run_notebook.py notebooks/05_adaptation.py results/log.ipynb --parameters '{"seed": 1}'

The notebook's text twin is what runs, without its cells for readers (see `twins`) and with its folder as working
directory, so paths in parameters are relative to it. The copy's outputs, with the traceback if there is one, are
written as the cells run. With --out, an interrupted run is resumed only if it had the same code, inputs and parameters;
otherwise it is moved aside, see `stale`. What a run has made is recorded beside it, so that the stages that read it can
check it. Exit code 2: wrong parameters or damaged inputs, nothing was run; 1: a cell failed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import papermill
import processes
import stale
import twins
import yaml
from jupyter_client import AsyncKernelManager
from traitlets.config import Config

METRICS_FILE = "metrics.json"


class TiedKernelManager(AsyncKernelManager):
    """Starts kernels that die with this process."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        await super()._async_launch_kernel(kernel_cmd, preexec_fn=processes.die_with_parent, **options)

    _launch_kernel = _async_launch_kernel


def run(notebook: Path, log: Path, parameters: dict[str, Any]) -> None:
    """Convert the text twin, check the parameters' names, execute.

    Args:
        notebook: text twin, a jupytext py:percent file with one cell tagged `parameters`.
        log: where the executed .ipynb goes.
        parameters: values for names that the parameters cell defines.

    Raises:
        ValueError: for names that the parameters cell does not define; papermill itself would only warn.
        papermill.PapermillExecutionError: if a cell fails; the copy holds the traceback.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    text = twins.computation(notebook.read_text(encoding="utf-8"))
    jupytext.write(jupytext.reads(text, fmt="py:percent"), log)
    known = papermill.inspect_notebook(log)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook}: unknown parameters {unknown}; its parameters cell has {sorted(known)}")
    # Sockets in a folder of their own: other users of the machine could listen to TCP ports, and kernels that start
    # side by side in one folder would take each other's sockets.
    with tempfile.TemporaryDirectory() as sockets:
        _clear_when_stopped(sockets)
        transport = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        papermill.execute_notebook(
            log,
            log,
            parameters,
            cwd=notebook.parent,
            progress_bar=False,
            config=transport,
            kernel_manager_class=TiedKernelManager,
        )


def _clear_when_stopped(folder: str) -> None:
    """Delete a folder when this process is asked to end, and end at once."""

    def stop(*_: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="text twin, notebooks/NAME.py")
    parser.add_argument("log", type=Path, help="where the executed notebook goes, NAME.ipynb")
    parser.add_argument("--parameters", type=yaml.safe_load, default={}, help="JSON or YAML mapping of names to values")
    parser.add_argument("--rule", default="", help="the job's rule, recorded with the time it took")
    parser.add_argument("--results", type=Path, help="the profile's results folder; goes with --out")
    parser.add_argument("--out", type=Path, help="the run's folder, moved aside when what determines it has changed")
    parser.add_argument("--draws", action="store_true", help="the result is a figure")
    parser.add_argument("--inputs", type=Path, nargs="+", default=[], help="files that determine the result")
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        if arguments.out:
            stale.check_inputs(arguments.inputs)
            now = stale.made_from(str(arguments.notebook), arguments.draws, arguments.inputs, arguments.parameters)
            stale.claim(arguments.results, arguments.out, now)
        run(arguments.notebook, arguments.log, arguments.parameters)
        if arguments.out:
            took = {"rule": arguments.rule, "seconds": round(time.perf_counter() - start, 1)}
            stale.record(arguments.out, METRICS_FILE, now, arguments.log, took)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except papermill.PapermillExecutionError as error:
        print(
            f"error: {arguments.notebook}, cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"       the executed notebook with the whole traceback is {arguments.log}",
            file=sys.stderr,
        )
        return 1
    print(f"done in {time.perf_counter() - start:.0f} s: {arguments.log}")
    return 0


if __name__ == "__main__":
    processes.die_with_parent()
    sys.exit(main())
