"""Every row of the tables means the same in the command line, in the course's notebooks and in the studies."""

import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from zodi import adaptation
from zodi.__main__ import main
from zodi.miniature.dataset import write_miniature
from zodi.rows import ABLATIONS, ROWS, get_row
from zodi.segmentation import DEFAULT_NETWORK, build_network, save_network
from zodi.studies import evidence
from zodi.support import plots
from zodi.support.augmentations import AUGMENTATIONS
from zodi.support.files import read_json

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
DOMAIN = "night"
STEPS = 3
METHODS = sorted({row.method for row in ROWS.values() if row.method})


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A results folder with data, a transfer for every method, and the oracle that says what is faithful."""
    root = tmp_path_factory.mktemp("results")
    write_miniature(root / "data", 4, 2, [DOMAIN], 64, 128, progress=False)
    photometric = root / "transfer" / DOMAIN / "photometric"
    images = root / "data" / "train" / "images"
    command = ["--images", str(images), "--domain", DOMAIN, "--method", "photometric", "--out", str(photometric)]
    assert main(["transfer", *command]) == 0
    for method in {*METHODS} - {"photometric"}:
        shutil.copytree(photometric, root / "transfer" / DOMAIN / method, dirs_exist_ok=True)
    for folder in evidence.TRANSFERS:
        for method in ("photometric", "stochastic_inversion"):
            target = root / folder / DOMAIN / method / "images"
            shutil.copytree(root / "data" / "test" / DOMAIN / "images", target, dirs_exist_ok=True)
    oracle = evidence.reference_of(DOMAIN).folder(root)
    # With weights that tell the images apart; a network that sees one class everywhere may find all of them the same.
    torch.manual_seed(0)
    save_network(build_network(DEFAULT_NETWORK, 19, "mini"), oracle / "network")
    return root


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """What every training would have trained on; none is run."""
    calls: list[dict] = []
    network = build_network(DEFAULT_NETWORK, 19).eval()

    def describe(dataset) -> tuple | None:
        return dataset and (dataset.images_folder.parent.name, dataset.images_folder.parents[1].name, dataset.keys)

    def train(config, source, synth, out, callback=None, **settings):
        calls.append({"config": config, "first": describe(source), "second": describe(synth)})
        return network, pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]})

    monkeypatch.setattr(adaptation, "train", train)
    return calls


def through_the_command_line(row, results: Path, out: Path) -> dict:
    options = {"data": results / "data", "variant": row.name, "steps": STEPS, "tests": "clear", "out": out}
    options |= {"domain": DOMAIN} if row.adapted else {}
    options |= {"synth": results / "transfer" / DOMAIN / row.method} if row.method else {}
    options |= {"reference": evidence.reference_of(DOMAIN).folder(results) / "network"} if row.faithful_only else {}
    assert main(["adapt", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]) == 0
    return read_json(out / "metrics.json")["metrics"]


def through_the_notebook(row, results: Path, out: Path, monkeypatch) -> dict:
    """The cells of 05, or of 01 for rows without a second image, up to the training."""
    monkeypatch.setattr(plots, "show", lambda figure, *_: plt.close(figure))
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    name = "05_adaptation" if row.adapted else "01_domain_gap"
    cells = [cell for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells if cell.cell_type == "code"]
    names = {"__name__": name}
    for cell in (cell for cell in cells if "google.colab" not in cell.source):
        exec(compile(cell.source, name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"data": str(results / "data"), "variant": row.name, "out": str(out), "changes": {"steps": STEPS}}
            names |= {"domain": DOMAIN, "synth": str(results / "transfer" / DOMAIN / (row.method or ""))}
        if "experiment.train_row(" in cell.source:
            return names["trained"].record
    raise AssertionError(f"{name}: no cell trains the row")


def through_the_studies(row, results: Path) -> dict:
    candidate = evidence.Candidate(row.name, DOMAIN if row.adapted else "", DEFAULT_NETWORK, 0)
    return read_json(evidence.run_candidate(candidate, results, steps=STEPS))["metrics"]


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_the_same_everywhere(name, results, trained, tmp_path, monkeypatch):
    row = ROWS[name]
    records = [through_the_command_line(row, results, tmp_path / "cli")]
    if not row.faithful_only:  # which takes a reference network that the notebook does not train
        records.append(through_the_notebook(row, results, tmp_path / "notebook", monkeypatch))
    records.append(through_the_studies(row, results))

    keys = ("variant", "domain", "network", "seed", "images_seen", "loss")
    assert all({key: record[key] for key in keys} == {key: records[0][key] for key in keys} for record in records)
    assert all(call == trained[0] for call in trained) and len(trained) == len(records)
    images = row.source + (row.adapted or bool(row.augmentation))
    assert records[0]["images_seen"] == STEPS * row.length * 4 * images
    assert records[0]["domain"] == (DOMAIN if row.adapted else "")

    first, second = trained[0]["first"], trained[0]["second"]
    here = ("train", "data") if row.source else (row.method, DOMAIN)
    assert first[:2] == here
    if row.augmentation:
        assert second == first
    elif not row.adapted or not row.source:
        assert second is None
    else:
        assert second[:2] == ((f"train_{DOMAIN}", "data") if row.true_target else (row.method, DOMAIN))
        assert len(second[2]) == (3 if row.faithful_only else 4)
    config = trained[0]["config"]
    assert (config.similarity_weight, config.augmentation) == (row.similarity_weight, row.augmentation)


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("zodi_faithful", ["--domain", "night", "--synth", "SYNTH"], "needs --reference"),
        ("zodi", ["--domain", "night"], "needs --synth"),
        ("zodi", ["--synth", "SYNTH"], "needs --domain"),
        ("oracle", [], "needs --domain"),
        ("oracle", ["--domain", "night", "--synth", "SYNTH"], "no use for --synth"),
        ("source_only", ["--domain", "night"], "no use for --domain"),
        ("magic", [], "no such row"),
    ],
)
def test_a_row_is_not_trained_under_another_name(variant, options, message, results, trained, tmp_path, capsys):
    given = [str(results / "transfer" / "night" / "photometric") if text == "SYNTH" else text for text in options]
    command = ["adapt", "--data", str(results / "data"), "--variant", variant, "--out", str(tmp_path / "out"), *given]
    assert main(command) == 2 and not trained
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_the_similarity_weight_belongs_to_the_row(results, tmp_path, capsys):
    command = ["adapt", "--data", str(results / "data"), "--out", str(tmp_path), "--similarity-weight", "0"]
    with pytest.raises(SystemExit):
        main(command)
    assert "--similarity-weight" in capsys.readouterr().err


def test_rows_are_named_once_and_every_ablation_has_one():
    assert all(name == row.name for name, row in ROWS.items())
    assert len({row.label for row in ROWS.values()}) == len(ROWS)
    assert {row.method for row in ROWS.values()} >= set(ABLATIONS)
    assert {row.augmentation for row in ROWS.values()} == {"", *AUGMENTATIONS}
    assert get_row("zodi").similarity_weight == 0.1 and get_row("zodi_no_similarity").similarity_weight == 0
    with pytest.raises(ValueError, match=r"variant 'zodie'.*expected one of"):
        get_row("zodie")


def test_rows_are_read_without_torch():
    code = "import sys, zodi.rows; print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_a_recipe_leaves_nothing_open():
    config = adaptation.recipe("mini")
    assert config.weights == "mini" and config.freeze_norm is True
    other = adaptation.recipe("mini", network="Unet/resnet18")
    assert other.weights is None and other.freeze_norm is False
    own = adaptation.recipe("mini", network=build_network("Unet/resnet18", 19))
    assert (own.network, own.weights, own.freeze_norm) == ("SegmentationNetwork", None, False)
    assert config.resolved() == config
