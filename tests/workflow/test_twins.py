"""What the grid runs of a notebook, and what it leaves to readers."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import papermill
import pytest
import twins

ROOT = Path(__file__).parents[2]
GRID = ("01_domain_gap", "04_transferring_a_data_set", "05_adaptation")
TWIN = """# ---
# jupyter: {}
# ---

# %% [markdown]
# # Title

# %% tags=["parameters"]
seed: int = 0

# %% tags=["reader"]
print("for readers")

# %% tags=["nbval-check-output", "reader"]
"for readers too"


# %% tags=["readers-digest"]
kept = 1

# %%
# A comment that says tags=["reader"] is no tag.
kept + seed
"""


def test_cells_for_readers_are_left_out_and_nothing_else():
    text = twins.computation(TWIN)
    assert "for readers" not in text
    kept = [cell.source for cell in jupytext.reads(text, fmt="py:percent").cells]
    everything = [cell.source for cell in jupytext.reads(TWIN, fmt="py:percent").cells]
    assert kept == [source for source in everything if "for readers" not in source] and len(kept) == 5
    assert twins.computation(text) == text


@pytest.mark.parametrize("name", GRID)
def test_what_the_grid_runs_needs_no_cell_for_readers(name, tmp_path):
    text = twins.computation((ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8"))
    file = tmp_path / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    # Names that are used and not defined (F821), and imports that only readers need (F401).
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F401", file]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", GRID)
def test_the_grid_draws_nothing(name):
    text = twins.computation((ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8"))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not re.search(r"matplotlib|seaborn|plots\.|display\(", code)
    assert "save_metrics" in code


@pytest.mark.parametrize("name", GRID)
def test_papermill_reads_every_parameter(name, tmp_path):
    twin = ROOT / "notebooks" / f"{name}.py"
    cells = jupytext.read(twin).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    jupytext.write(jupytext.read(twin), tmp_path / "log.ipynb")
    assert list(papermill.inspect_notebook(tmp_path / "log.ipynb")) == re.findall(r"^(\w+):", cell.source, re.MULTILINE)
