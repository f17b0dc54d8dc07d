"""Tables are made from run folders. All numbers here are made up, to check the arithmetic."""

import json
import shutil

import pandas as pd
import pytest
from PIL import Image

from zodi.datasets import open_split
from zodi.domains import TARGETS
from zodi.miniature.dataset import write_miniature
from zodi.studies import tables
from zodi.studies.selection import RULES

NETWORK = "DeepLabV3Plus/tu-resnet10t"


def fabricate(results, variant, domain, seed, miou, **changes):
    """Write a metrics.json with made-up numbers; IoU of road is the mIoU + 10, of sky - 10, of train undefined."""
    iou = {test: {"road": value + 10, "sky": value - 10, "train": None} for test, value in miou.items()}
    metrics = {"variant": variant, "domain": domain, "network": NETWORK, "seed": seed, "images_seen": 100}
    folder = results / "runs" / variant / (domain or "-") / f"seed{seed}"
    folder.mkdir(parents=True)
    content = {"stage": "test", "metrics": metrics | {"miou": miou, "iou": iou} | changes}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder / "metrics.json"


@pytest.fixture
def results(tmp_path):
    """Two variants, two domains, three seeds."""
    for seed in range(3):
        fabricate(tmp_path, "source_only", "", seed, {"clear": 50.0 + seed, "night": 20.0 + seed, "snow": 30.0 + seed})
        fabricate(tmp_path, "zodi", "night", seed, {"clear": 48.0, "night": 25.0 + 2 * seed})
        fabricate(tmp_path, "zodi", "snow", seed, {"clear": 49.0, "snow": 29.0 + 1.5 * seed})
    return tmp_path


def test_collect_is_tidy_and_drops_classes_absent_from_the_truth(results):
    runs = tables.collect(results)
    assert list(runs.columns) == tables.COLUMNS
    assert len(runs) == 3 * (3 + 2 + 2) * 3
    assert set(runs["class"]) == {"mean", "road", "sky"}


def test_record_read_back_equals_the_runs(results, tmp_path):
    runs = tables.collect(results)
    tables.write_record(runs, tmp_path / "record.csv")
    pd.testing.assert_frame_equal(tables.read_record(tmp_path / "record.csv"), runs, check_dtype=False)


def test_load_runs_falls_back_on_the_record_and_says_so(results, tmp_path):
    tables.write_record(tables.collect(results), tmp_path / "record.csv")
    assert tables.load_runs(results, tmp_path / "record.csv")[1].startswith("the runs below")
    runs, origin = tables.load_runs(tmp_path / "nothing", tmp_path / "record.csv")
    assert len(runs) == len(tables.collect(results)) and "record.csv" in origin
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        tables.load_runs(tmp_path / "nothing", tmp_path / "no_record.csv")


def test_main_table_has_mean_and_sample_standard_deviation_on_the_target(results):
    table = tables.main_table(tables.collect(results))
    assert list(table.columns) == ["night", "snow", "seeds"]
    assert table.loc[tables.label("source_only")].tolist() == ["21.0 ± 1.0", "31.0 ± 1.0", "3"]
    assert table.loc[tables.label("zodi")].tolist() == ["27.0 ± 2.0", "30.5 ± 1.5", "3"]
    assert list(table.index) == [tables.label("source_only"), tables.label("zodi")]


def test_main_table_shows_missing_runs_and_single_seeds(results):
    fabricate(results, "oracle", "night", 0, {"night": 40.0})
    table = tables.main_table(tables.collect(results))
    assert table.loc[tables.label("oracle")].tolist() == ["40.0", "-", "1"]


def test_main_table_splits_networks(results):
    fabricate(results, "zodi", "night", 7, {"night": 40.0}, network="Unet/resnet18")
    table = tables.main_table(tables.collect(results))
    assert table.loc[("Unet/resnet18", tables.label("zodi")), "night"] == "40.0"


def test_gains_are_paired_by_seed(results):
    gains = tables.gains(tables.paired(tables.collect(results))).set_index("domain")
    # night: 5, 6, 7; snow: -1, -0.5, 0
    assert gains.loc["night", ["mean", "std", "seeds", "positive"]].tolist() == [6.0, 1.0, 3, 3]
    assert gains.loc["snow", ["mean", "std", "seeds", "positive"]].tolist() == [-0.5, 0.5, 3, 0]


def test_gains_leave_out_seeds_without_a_partner(results):
    fabricate(results, "zodi", "night", 9, {"night": 99.0})
    assert tables.gains(tables.paired(tables.collect(results))).set_index("domain").loc["night", "seeds"] == 3


def test_gains_of_single_classes(results):
    gains = tables.gains(tables.paired(tables.collect(results), classes=None))
    assert set(gains["class"]) == {"road", "sky"}


def test_statement_says_whether_the_seeds_agree(results):
    gains = tables.gains(tables.paired(tables.collect(results)))
    night, snow = (tables.statement(gain, "source_only") for _, gain in gains.iterrows())
    assert "+6.0 ± 1.0 points, better in all 3 seeds" in night
    assert "-0.5 ± 0.5 points, better in none of 3 seeds" in snow
    line = gains.iloc[0].copy()
    line["positive"] = 2
    assert "better in 2 of 3 seeds: undecided" in tables.statement(line, "source_only")
    line["seeds"], line["std"] = 1, float("nan")
    assert tables.statement(line, "source_only").endswith("+6.0 points, one seed, which decides nothing")


def test_gap_closed_is_the_share_of_the_way_to_the_oracle(results):
    assert tables.gap_closed(tables.collect(results)).empty
    for seed in range(3):
        fabricate(results, "oracle", "night", seed, {"night": 33.0})
        fabricate(results, "oracle", "snow", seed, {"snow": 30.0})
    closed = tables.gap_closed(tables.collect(results)).loc[tables.label("zodi")]
    assert closed["night"] == pytest.approx(50.0)
    assert pd.isna(closed["snow"])
    # A network that ran without the two ends has no gap of its own.
    file = fabricate(results, "zodi", "night", 9, {"night": 90.0})
    content = json.loads(file.read_text())
    content["metrics"]["network"] = "Segformer/mit_b0"
    file.write_text(json.dumps(content))
    assert tables.gap_closed(tables.collect(results)).loc[tables.label("zodi"), "night"] == closed["night"]


def test_collect_names_the_file_that_lacks_a_key(results):
    file = fabricate(results, "zodi", "fog", 0, {"fog": 1.0})
    content = json.loads(file.read_text())
    del content["metrics"]["miou"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"fog.*metrics\.json.*miou"):
        tables.collect(results)


def test_collect_refuses_a_run_that_is_there_twice(results):
    shutil.copytree(results / "runs" / "zodi" / "night", results / "runs" / "zodi" / "copy")
    with pytest.raises(ValueError, match="second time"):
        tables.collect(results)


def test_collect_refuses_seeds_of_different_length(results):
    fabricate(results, "zodi", "night", 5, {"night": 1.0}, images_seen=7)
    with pytest.raises(ValueError, match="different numbers of images"):
        tables.collect(results)


def test_read_record_names_missing_columns(tmp_path):
    (tmp_path / "record.csv").write_text("variant,iou\nzodi,1\n")
    with pytest.raises(ValueError, match="seed"):
        tables.read_record(tmp_path / "record.csv")


def test_published_logs_are_averaged_for_each_rule():
    logs = pd.DataFrame(
        {
            "domain": "night",
            "network": "A",
            "seed": [1, 2],
            "best_target": [30, 32],
            "at_best_source": [20, 24],
            "last": 10,
        }
    )
    summary = tables.published_rules(logs).set_index("rule")
    assert summary.loc["best_target", ["mean", "seeds"]].tolist() == [31.0, 2]
    assert summary.loc["at_best_source", "std"] == pytest.approx(8**0.5)


def test_published_figures_come_with_the_package_and_name_their_source():
    logs, peers = tables.published_logs(), tables.published_peers()
    assert len(logs) == 47 and set(logs["domain"]) == set(TARGETS)
    assert (logs["best_target"] >= logs[["last", "at_best_source"]].max(axis=1)).all()
    for table in (logs, peers, tables.published_genval()):
        assert table["source"].str.len().min() > 3


def test_reproduced_runs_stand_beside_the_published_ones(tmp_path):
    run = {"variant": "zodi", "domain": "night", "network": "PaperRefineNet/resnet50"}
    for seed, target in enumerate((20.0, 22.0)):
        lines = [{"rule": rule, "epoch": 3, "source": 60.0, "synthetic": 30.0, "target": target} for rule in RULES]
        folder = tmp_path / "runs" / f"seed{seed}"
        folder.mkdir(parents=True)
        record = {"metrics": run | {"seed": seed, "epochs": lines}}
        (folder / "metrics.json").write_text(json.dumps(record))
    epochs = tables.collect_epochs(tmp_path)
    assert len(epochs) == 2 * len(RULES)
    regret = tables.epoch_regret(epochs)
    assert (regret["best_target"] == 0).all() and (regret >= 0).all().all() and len(regret) == 1
    assert tables.epoch_regret(epochs.head(0)).empty
    table = tables.beside_published(epochs, tables.published_logs()).sort_index()
    line = table.loc[("night", "RefineNet-resnet50", "at_best_source")]
    assert line["reproduced"] == "21.0 ± 1.4" and line["seeds, reproduced"] == 2
    assert line["difference"] == pytest.approx(21.0 - float(line["published"].split()[0]), abs=0.06)
    assert (table.loc["fog", "reproduced"] == "-").all()


def test_write_table_leaves_csv_and_markdown(results, tmp_path):
    csv, markdown = tables.write_table(tables.main_table(tables.collect(results)), tmp_path / "tables" / "main")
    assert pd.read_csv(csv)["night"].tolist() == ["21.0 ± 1.0", "27.0 ± 2.0"]
    assert "| 21.0 ± 1.0" in markdown.read_text(encoding="utf-8")
    regret = pd.DataFrame({"last": [1 / 3]}, pd.MultiIndex.from_tuples([("zodi", "night")], names=["row", "domain"]))
    _, markdown = tables.write_table(regret, tmp_path / "tables" / "regret")
    assert markdown.read_text(encoding="utf-8").splitlines()[-1].split() == [
        "|",
        "zodi",
        "|",
        "night",
        "|",
        "0.33",
        "|",
    ]


def test_predictions_of_a_domain_come_from_its_runs_and_from_source_only(tmp_path):
    data = write_miniature(tmp_path / "data", 1, 2, ["night", "snow"], 32, 64, progress=False)
    keys = open_split(data, "test/night").keys
    places = {"source_only/N/seed0/predictions/night": 0, "zodi/night/N/seed0/predictions/night": 1}
    places |= {"zodi/night/N/seed1/predictions/night": 2, "zodi/snow/N/seed0/predictions/snow": 3}
    for place, value in places.items():
        folder = tmp_path / "runs" / place
        folder.mkdir(parents=True)
        for key in keys:
            Image.new("L", (64, 32), value).save(folder / f"{key}.png")
    samples, predictions = tables.read_predictions(tmp_path, "night", ["zodi", "oracle", "source_only"])
    assert [sample.key for sample in samples] == keys
    assert {name: {int(part.max()) for part in parts} for name, parts in predictions.items()} == {
        "ZoDi": {1},
        "source only": {0},
    }
