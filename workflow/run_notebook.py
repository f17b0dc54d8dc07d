"""Execute one course notebook with given parameters and keep the executed copy, also when it fails.

    python workflow/run_notebook.py notebooks/05_adaptation.py results/log.ipynb --parameters '{"seed": 1}'

The notebook's text twin is what runs, with its folder as working directory, so paths in parameters are relative to it.
The copy's outputs, with the traceback if there is one, are written as the cells run. With --out and --inputs, a run
that was cut off is resumed only if it had the same inputs and parameters; otherwise its folder is emptied first.
Exit code 2: wrong parameters, nothing was run; 1: a cell failed.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import papermill
import yaml
from traitlets.config import Config


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
    jupytext.write(jupytext.read(notebook), log)
    known = papermill.inspect_notebook(log)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook}: unknown parameters {unknown}; its parameters cell has {sorted(known)}")
    # Sockets in a folder of their own: TCP ports could be listened to by other users of the machine, and kernels that
    # start side by side in one folder would take each other's sockets.
    with tempfile.TemporaryDirectory() as sockets:
        transport = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        papermill.execute_notebook(log, log, parameters, cwd=notebook.parent, progress_bar=False, config=transport)


def empty_when_changed(out: Path, inputs: list[Path], parameters: dict[str, Any]) -> None:
    """Delete what a run with other code, data or parameters left in `out`, so that nothing stale is resumed.

    Args:
        out: the run's folder; the contents of `inputs` and the parameters are recorded in its `inputs.json`.
        inputs: files that decide the result.
        parameters: the notebook's parameters.
    """
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs}
    text = json.dumps({"parameters": parameters, "inputs": digests}, indent=2)
    file = out / "inputs.json"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="text twin, notebooks/NAME.py")
    parser.add_argument("log", type=Path, help="where the executed notebook goes, NAME.ipynb")
    parser.add_argument("--parameters", type=yaml.safe_load, default={}, help="JSON or YAML mapping of names to values")
    parser.add_argument("--out", type=Path, help="the run's folder, emptied when its inputs have changed")
    parser.add_argument("--inputs", type=Path, nargs="+", default=[], help="files that decide the result")
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        if arguments.out:
            empty_when_changed(arguments.out, arguments.inputs, arguments.parameters)
        run(arguments.notebook, arguments.log, arguments.parameters)
    except ValueError as error:
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
    sys.exit(main())
