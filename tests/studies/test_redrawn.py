"""The row for which nothing is trained: a source-only network on test images that were redrawn."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zodi import diffusion
from zodi.datasets import open_split
from zodi.evaluation import evaluate
from zodi.labels import CITYSCAPES
from zodi.miniature.dataset import write_miniature
from zodi.rows import ROWS
from zodi.segmentation import DEFAULT_NETWORK, build_network, load_network, save_network
from zodi.studies import redrawn, tables
from zodi.studies.__main__ import main
from zodi.studies.table_rows import REDRAWN, table_rows
from zodi.support.files import folder_name, read_json, write_json

PLACE = f"{folder_name(DEFAULT_NETWORK)}/seed3"
QUICK = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a profile: data, and a source-only run with a network that was not trained."""
    root = tmp_path_factory.mktemp("redrawn")
    write_miniature(root / "data", 1, 2, ["night", "snow"], 96, 192, progress=False)
    run = root / "runs" / "source_only" / PLACE
    network = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini")
    network.label_set = CITYSCAPES
    save_network(network, run / "network")
    record = {"variant": "source_only", "domain": "", "network": DEFAULT_NETWORK, "seed": 3, "images_seen": 600}
    scores = {"miou": {"night": 5.0, "snow": 6.0}, "iou": {"night": {"road": 5.0}, "snow": {"road": 6.0}}}
    write_json(run / "metrics.json", {"metrics": record | scores})
    return root


@pytest.fixture(scope="module")
def metrics(results):
    model = diffusion.load()
    file = redrawn.run_redrawn(results, DEFAULT_NETWORK, 3, ["night", "snow"], model, progress=False, **QUICK)
    assert file == results / "runs" / "redrawn" / PLACE / "metrics.json"
    return read_json(file)


def test_the_unchanged_network_is_scored_on_redrawn_images_with_true_labels(results, metrics):
    run = results / "runs" / "redrawn" / PLACE
    network = load_network(results / "runs" / "source_only" / PLACE / "network")
    for domain in ("night", "snow"):
        images = run / "images" / domain / "redrawn" / "images"
        seen = open_split(results / "data", f"test/{domain}", images=images)
        assert len(seen) == 2
        assert metrics["metrics"]["miou"][domain] == pytest.approx(evaluate(network, seen, CITYSCAPES)["miou"])
        photographs = open_split(results / "data", f"test/{domain}")
        assert not any(np.array_equal(seen[i].image, photographs[i].image) for i in range(2))
        prediction = np.asarray(Image.open(run / "predictions" / domain / f"{seen.keys[0]}.png"))
        assert prediction.shape == seen[0].label.shape


def test_images_go_back_as_far_as_the_transfer_to_their_domain(results, metrics):
    strengths = diffusion.load().defaults.strengths
    assert metrics["settings"]["strengths"] == {name: strengths[name] for name in ("night", "snow")}
    for domain in ("night", "snow"):
        folder = results / "runs" / "redrawn" / PLACE / "images" / domain / "redrawn"
        config = read_json(folder / "settings.json")["settings"]
        assert (config["strength"], config["num_inference_steps"]) == (strengths[domain], 4)
        assert config["prompt"] == "driving in clear weather"


def test_it_is_a_row_of_the_tables_before_the_oracle(results, metrics):
    runs = tables.collect(results)
    assert set(runs["variant"]) == {"source_only", "redrawn"}
    table = tables.main_table(runs)
    assert list(table.index) == ["source only", REDRAWN.label]
    assert table.loc[REDRAWN.label, "night"] == f"{metrics['metrics']['miou']['night']:.1f}"
    assert metrics["metrics"]["images_seen"] == 600
    assert [name for name in table_rows() if name != "redrawn"] == list(ROWS)
    assert list(table_rows())[-2:] == ["redrawn", "oracle"]


def test_the_command_goes_on_and_says_what_is_missing(results, metrics, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "copy")
    command = ["redrawn", "--results", str(tmp_path / "copy"), "--network", DEFAULT_NETWORK, "--domains", "night"]
    command += ["--steps", "4", "--dtype", "float32", "--device", "cpu"]
    assert main([*command, "--seed", "3"]) == 0
    again = read_json(tmp_path / "copy" / "runs" / "redrawn" / PLACE / "metrics.json")["metrics"]
    assert again["miou"] == {"night": metrics["metrics"]["miou"]["night"]}
    capsys.readouterr()
    assert main([*command, "--seed", "4"]) == 2
    assert "seed4/metrics.json: not found; expected a run of source_only" in capsys.readouterr().err
    assert main([*command[:-6], "fog", "--seed", "3"]) == 2
    assert "no test images of ['fog']" in capsys.readouterr().err


def test_rows_are_read_without_torch():
    code = "import sys, zodi.studies.table_rows; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"
