"""Copy the notebooks with toy parameters into FOLDER, and make the toy data set that they read; for `make test`.

    python tests/course/prepare_notebooks.py results/test/notebooks
    pytest --nbval-lax results/test/notebooks

The copies keep the committed outputs, so that nbval compares those of cells tagged `nbval-check-output`. The folded
solutions of the exercises become cells at their end, so that they are run as well. Their results go beside FOLDER.
Everything there is deleted first.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import yaml

from zodi.miniature.dataset import write_miniature

ROOT = Path(__file__).parents[2]
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """Code of the notebook's folded solutions; those without code are answered in words."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [code for folded in SOLUTION.findall(text) for code in CODE.findall(folded)]


def prepare(notebook: Path, copy: Path, parameters: dict, solve: bool = True) -> None:
    """Write a copy with other parameters that also runs the solutions, if `solve`."""
    papermill.execute_notebook(notebook, copy, parameters, prepare_only=True, progress_bar=False)
    prepared = nbformat.read(copy, as_version=4)
    # A count of its own, as nbval only runs what has been executed.
    last = max(cell.execution_count or 0 for cell in prepared.cells if cell.cell_type == "code")
    for number, code in enumerate(solutions(prepared) if solve else [], last + 1):
        prepared.cells.append(nbformat.v4.new_code_cell(code, execution_count=number))
    nbformat.write(prepared, copy)


def main(folder: Path) -> None:
    """Make the copies and the data set; the folder and its neighbours are deleted first.

    Raises:
        ValueError: if the folder is not inside the repository's `results/`, where nothing is lost.
    """
    if (ROOT / "results").resolve() not in folder.resolve().parents[1:]:
        raise ValueError(f"{folder}: its parent would be deleted; expected one like results/test/notebooks")
    parameters = yaml.safe_load((ROOT / "tests" / "course" / "smoke_parameters.yaml").read_text(encoding="utf-8"))
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    write_miniature(folder.parent / "data", train=4, test=2, domains=("night", "snow"))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        prepare(notebook, folder / notebook.name, parameters[notebook.stem])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
