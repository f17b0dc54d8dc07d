"""Copy the notebooks with toy parameters into FOLDER, and make the toy data set that they read; for `make test`.

    python tests/prepare_notebooks.py results/test/notebooks
    pytest --nbval-lax results/test/notebooks

The copies keep the committed outputs, so that nbval compares those of cells tagged `nbval-check-output`. Their results
go beside FOLDER. Everything there is deleted first.
"""

import shutil
import sys
from pathlib import Path

import papermill
import yaml

from zodi.datasets import write_miniature

ROOT = Path(__file__).parent.parent


def main(folder: Path) -> None:
    """Make the copies and the data set."""
    parameters = yaml.safe_load((ROOT / "tests" / "smoke_parameters.yaml").read_text(encoding="utf-8"))
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    write_miniature(folder.parent / "data", train=4, test=2, domains=("night", "snow"))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        papermill.execute_notebook(
            notebook, folder / notebook.name, parameters[notebook.stem], prepare_only=True, progress_bar=False
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
