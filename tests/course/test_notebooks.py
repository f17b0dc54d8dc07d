"""The committed notebooks: paired with their text twins, executed once from top to bottom, small and clean."""

import itertools
import json
import re
from pathlib import Path

import jupytext
import papermill
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TWINS = sorted((ROOT / "notebooks").glob("*.py"))
COURSE = [
    "00_start_here",
    "01_domain_gap",
    "02_diffusion",
    "03_layout_to_image",
    "04_transferring_a_data_set",
    "05_adaptation",
    "06_performance_estimation",
    "07_published_tables",
    "08_real_photographs",
    "09_bring_your_own_domain",
    "10_generators_and_networks",
    "11_stable_diffusion",
    "A1_how_the_miniature_was_made",
    "A2_paper_scale",
    "A3_tables",
    "A4_accounting",
]
SMOKE_PARAMETERS = yaml.safe_load((ROOT / "tests" / "course" / "smoke_parameters.yaml").read_text(encoding="utf-8"))
# What the site's column holds at laptop width.
WIDTH = 88
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~])/(?:home|root|tmp|work|Users|usr|opt|mnt|private|var|content)/|[A-Z]:\\\\Users"
)

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read(notebook: Path) -> dict:
    return json.loads(notebook.read_text(encoding="utf-8"))


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_of_the_course_has_a_twin_and_smoke_parameters():
    names = [path.stem for path in NOTEBOOKS]
    assert set(COURSE) <= set(names)
    assert names == [path.stem for path in TWINS]
    assert names == sorted(SMOKE_PARAMETERS)


@each_notebook
def test_in_step_with_its_twin(notebook):
    def cells(path: Path) -> list[tuple]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in jupytext.read(path).cells]

    assert cells(notebook) == cells(notebook.with_suffix(".py")), "run `make sync`"


@each_notebook
def test_executed_once_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook) if "".join(cell["source"]).strip()]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@each_notebook
def test_outputs_have_no_errors_and_no_stderr(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@each_notebook
def test_no_machine_paths(notebook):
    def without_pictures(output: dict) -> dict:
        return {kind: data for kind, data in output.get("data", {}).items() if not kind.startswith("image/")} | {
            "text": output.get("text", "")
        }

    cells = read(notebook)["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    texts += [json.dumps(without_pictures(output)) for cell in cells for output in cell.get("outputs", [])]
    assert not [match[0] for text in texts for match in MACHINE_PATH.finditer(text)]


@each_notebook
def test_small_and_without_widget_state(notebook):
    assert notebook.stat().st_size < 400_000
    assert "widgets" not in read(notebook)["metadata"]


@each_notebook
def test_headings_are_in_order(notebook):
    text = "\n".join("".join(cell["source"]) for cell in read(notebook)["cells"] if cell["cell_type"] == "markdown")
    levels = [
        len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@each_notebook
def test_pictures_have_alternative_texts(notebook):
    for output in (output for cell in code_cells(notebook) for output in cell["outputs"]):
        for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
            alt = output["metadata"].get("alt") or output["metadata"].get(kind, {}).get("alt")
            assert alt, "show figures by `zodi.support.plots.show`"


@each_notebook
def test_code_cells_are_short_and_have_prose_before_them(notebook):
    cells = [cell for cell in read(notebook)["cells"] if "".join(cell["source"]).strip()]
    for before, cell in itertools.pairwise(cells):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", "".join(cell["source"])
            assert len("".join(cell["source"]).splitlines()) <= 20, "".join(cell["source"])


@each_notebook
def test_code_fits_the_sites_column(notebook):
    cells = code_cells(notebook)
    # The cell for Colab is folded on the site.
    lines = [line for cell in cells[1:] for line in "".join(cell["source"]).splitlines()]
    assert [line for line in lines if len(line) > WIDTH] == []


@each_notebook
def test_anatomy(notebook):
    text = "\n".join("".join(cell["source"]) for cell in read(notebook)["cells"] if cell["cell_type"] == "markdown")
    for part in ("**In one sentence.**", "**What you need:**", "**How long it takes:**", "## Pitfalls", "## Try it"):
        assert part in text
    assert text.count("<details><summary>Solution</summary>") >= 2
    assert "**What you will" in text


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_parameters_cell_is_typed_commented_and_understood_by_papermill(twin, tmp_path):
    text = jupytext.read(twin)
    (cell,) = [cell for cell in text.cells if "parameters" in cell.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    assert all(re.fullmatch(r"\w+: \w+ = .+  # .+", line) for line in lines), lines
    jupytext.write(text, tmp_path / "notebook.ipynb")
    known = papermill.inspect_notebook(tmp_path / "notebook.ipynb")
    assert list(known) == [line.split(":")[0] for line in lines], "papermill cannot read a comment with an equals sign"
    assert set(SMOKE_PARAMETERS[twin.stem]) <= set(known)


def test_headers_do_not_change_with_every_release_of_jupytext():
    assert not [twin.name for twin in TWINS if "jupytext_version:" in twin.read_text(encoding="utf-8")]
