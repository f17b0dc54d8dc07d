"""Execute notebooks in place, as they are committed: with outputs but without timings and live widgets.

    python workflow/execute_notebooks.py notebooks/*.ipynb

An explorer (`zodi.support.explore`) leaves the picture of its first choice, which GitHub, the site and a JupyterLab
that has not run the cell can show; running the cell brings the controls back.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

from zodi.studies.bench import machine
from zodi.support.files import atomic_path

WIDGET = "application/vnd.jupyter.widget-view+json"


def make_static(notebook: nbformat.NotebookNode) -> None:
    """Drop live widgets where the output has a picture of them."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            output["data"].pop(WIDGET, None)


def executed_on() -> dict[str, Any]:
    """What the site says of the machine below every page: processor, cores, graphics card or null, version of torch."""
    here = machine()
    return {name: here[name] for name in ("processor", "cpus", "gpu")} | {"torch": here["packages"]["torch"]}


def execute(file: Path) -> None:
    """Run a notebook in a fresh kernel and its own folder; nothing is written when a cell fails."""
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        timeout=None,
        resources={"metadata": {"path": str(file.parent)}},
    )
    client.execute()
    make_static(notebook)
    notebook.metadata["executed_on"] = executed_on()
    with atomic_path(file) as temporary:
        nbformat.write(notebook, temporary)


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    for file in (bar := tqdm(sorted(Path(argument) for argument in arguments))):
        bar.set_description(file.stem)
        execute(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
