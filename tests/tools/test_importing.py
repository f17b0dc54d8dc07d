"""Images of other programs: matched by name, checked, audited, and trained on like a transfer's."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from zodi.__main__ import main
from zodi.datasets import synthesized
from zodi.experiment import training_sets
from zodi.labels import CITYSCAPES, IGNORE_INDEX
from zodi.rows import ROWS
from zodi.segmentation import DEFAULT_NETWORK, build_network, save_network
from zodi.support.files import read_json, write_json
from zodi.support.results import finished_keys
from zodi.tools.importing import ImportConfig, audit, import_folder

ROAD, SKY = (CITYSCAPES.names.index(name) for name in ("road", "sky"))
HEIGHT, WIDTH = 32, 64


class Brightness(nn.Module):
    """Calls bright pixels sky and all others road."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        logits = torch.zeros(len(x), CITYSCAPES.num_classes, *x.shape[2:])
        bright = x.mean(1) > self.threshold
        logits[:, SKY], logits[:, ROAD] = bright.float(), (~bright).float()
        return logits


def street(bright_rows=HEIGHT // 2):
    """An image uint8 (H, W, 3) whose upper rows are bright."""
    image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    image[:bright_rows] = 220
    return image


@pytest.fixture
def world(tmp_path):
    """Three source images with labels, and another program's: one alike, one half as large, one with a lower sky."""
    label = np.full((HEIGHT, WIDTH), CITYSCAPES.values[ROAD][0], np.uint8)
    label[: HEIGHT // 2] = CITYSCAPES.values[SKY][0]
    label[0, 0] = IGNORE_INDEX
    for key in ("a/0", "a/1", "b/2"):
        for folder, array in {"source": street(), "labels": label}.items():
            file = tmp_path / folder / f"{key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    theirs = {"a/0_fog.png": street(), "a/1_fog.png": street()[::2, ::2], "b/2_fog.jpg": street(HEIGHT // 4)}
    for name, image in theirs.items():
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "theirs" / name, quality=100)
    return tmp_path


FOG = ImportConfig("{key}_fog", origin="another program")


def run(world, config=FOG):
    places = (world / "theirs", world / "source", world / "labels", world / "out")
    return import_folder(*places, CITYSCAPES, config, progress=False)


def test_images_are_matched_brought_to_size_and_vouched_for(world):
    report = run(world)
    assert (report.total, report.done, report.skipped, report.resized, report.ok) == (3, 3, 0, 1, True)
    assert finished_keys(world / "out") == ["a/0", "a/1", "b/2"]
    data = synthesized(world / "out", world / "labels", CITYSCAPES)
    assert data.keys == ["a/0", "a/1", "b/2"] and data[1].image.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(data[0].image, street())
    assert (world / "out" / "preview.png").exists()
    assert read_json(world / "out" / "settings.json")["settings"]["origin"] == "another program"


def test_an_import_goes_on_and_does_again_what_has_changed(world):
    run(world)
    files = {file: file.stat().st_mtime_ns for file in (world / "out" / "images").rglob("*.png")}
    again = run(world)
    assert (again.done, again.skipped) == (0, 3)
    assert {file: file.stat().st_mtime_ns for file in files} == files
    audit(world / "out", world / "source", world / "labels", CITYSCAPES, Brightness(), mask=True, progress=False)
    Image.fromarray(street(3)).save(world / "theirs" / "a" / "0_fog.png")
    changed = run(world)
    assert (changed.done, changed.skipped) == (1, 2)
    assert not (world / "out" / "labels").exists() and not (world / "out" / "audit.csv").exists(), "of other images"
    with pytest.raises(ValueError, match=r"origin: 'another program' there, 'me' asked for"):
        run(world, ImportConfig("{key}_fog", origin="me"))


def test_what_does_not_fit_is_named_and_the_rest_is_done(world):
    Image.fromarray(street()[:, : WIDTH // 2]).save(world / "theirs" / "a" / "0_fog.png")
    (world / "theirs" / "a" / "1_fog.png").unlink()
    (world / "theirs" / "b" / "2_fog.jpg").write_bytes(b"no image")
    Image.fromarray(street()).save(world / "theirs" / "stranger.png")
    report = run(world)
    assert report.done == 0 and not report.ok and report.unused == ["stranger"]
    assert "found 32x32 pixels, expected the shape of its source 0.png, 64x32" in report.errors["a/0"]
    assert "a/1.png: no image a/1_fog in" in report.errors["a/1"]
    assert "2_fog.jpg" in report.errors["b/2"]
    assert read_json(world / "out" / "report.json")["errors"] == report.errors


def test_names_that_fit_nothing_say_what_is_there(world):
    with pytest.raises(
        FileNotFoundError, match=r"none of the 3 images, for example a/0 for a/0, but a/0_fog; .*--name"
    ):
        run(world, ImportConfig())
    assert not (world / "out").exists()
    for name in ("fog", "{key}{key}", "{key", "{other}", "{key}_{}"):
        with pytest.raises(ValueError, match=r"expected \{key\} once"):
            ImportConfig(name)


def test_a_result_inside_one_of_the_folders_is_refused(world):
    with pytest.raises(ValueError, match="out"):
        import_folder(world / "theirs", world / "source", world / "labels", world / "theirs" / "out", CITYSCAPES, FOG)


def test_the_audit_finds_where_labels_were_lost(world):
    run(world)
    found = audit(
        world / "out", world / "source", world / "labels", CITYSCAPES, Brightness(), mask=True, progress=False
    )
    pixels, lost = HEIGHT * WIDTH - 1, HEIGHT // 4 * WIDTH
    assert (found.images["fidelity_source"] == 100).all()
    assert found.images.loc["a/0", "fidelity"] == 100 and found.images.loc["a/0", "lost"] == 0
    assert found.images.loc["b/2", "lost"] == pytest.approx(100 * lost / pixels)
    assert list(found.classes.index) == ["road", "sky"]
    assert found.classes.loc["sky", "lost"] == pytest.approx(100 * lost / (3 * (HEIGHT // 2 * WIDTH - 1)))
    assert found.classes.loc["road", "lost"] == 0 and "lost their label" in str(found)
    written = pd.read_csv(world / "out" / "audit.csv", index_col=0)
    assert np.allclose(written, found.images, atol=0.01)

    masked = synthesized(world / "out", world / "labels", CITYSCAPES)
    label = masked[2].label
    assert (label[HEIGHT // 4 : HEIGHT // 2] == IGNORE_INDEX).all() and (label[HEIGHT // 2 :] == ROAD).all()
    assert label[0, 0] == IGNORE_INDEX and (label[0, 1:] == SKY).all()
    unmasked = audit(world / "out", world / "source", world / "labels", CITYSCAPES, Brightness(), progress=False)
    assert unmasked.images.equals(found.images) and not (world / "out" / "labels").exists()


def test_training_takes_the_masked_labels_for_the_imported_images_only(world):
    data = world / "data"
    (data / "train").mkdir(parents=True)
    for folder, name in {"source": "images", "labels": "labels"}.items():
        (data / "train" / name).symlink_to(world / folder)
    info = {"name": "toy", "label_set": "cityscapes", "source": "clear", "domains": ["clear", "fog"]}
    write_json(data / "dataset.json", info)
    run(world)
    audit(world / "out", world / "source", world / "labels", CITYSCAPES, Brightness(), mask=True, progress=False)
    sets = training_sets(ROWS["zodi"], data, "fog", world / "out")
    assert (sets.first[2].label == IGNORE_INDEX).sum() == 1
    assert (sets.second[2].label == IGNORE_INDEX).sum() == 1 + HEIGHT // 4 * WIDTH


def test_the_command_imports_and_audits(world, capsys):
    network = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini")
    save_network(network, world / "network")
    places = {"--images": "theirs", "--source": "source", "--labels": "labels", "--out": "out"}
    command = ["import", *(str(part) for option, name in places.items() for part in (option, world / name))]
    assert main([*command, "--name", "{key}_fog", "--mask"]) == 2
    assert "--mask needs --reference" in capsys.readouterr().err
    assert main([*command, "--name", "{key}_fog", "--reference", str(world / "network"), "--mask"]) == 0
    text = capsys.readouterr().out
    assert "3 done (1 resized), 0 were there already, 0 failed" in text and "the reference finds" in text
    assert (world / "out" / "labels" / "b" / "2.png").exists()
    metrics = read_json(world / "out" / "metrics.json")["metrics"]
    assert metrics["report"]["done"] == 3 and 0 <= metrics["audit"]["lost"] <= 100
    (world / "theirs" / "a" / "0_fog.png").unlink()
    assert main([*command, "--name", "{key}_fog"]) == 1
    assert not (world / "out" / "metrics.json").exists()
