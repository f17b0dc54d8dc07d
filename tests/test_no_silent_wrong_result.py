"""What does not fit is refused in one line: classes, files, sizes, damaged states, what is no number, no step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from zodi.__main__ import main
from zodi.adaptation import recipe, train
from zodi.datasets import FolderDataset, pack
from zodi.diffusion import save
from zodi.estimation import estimate, estimate_from
from zodi.evaluation import evaluate, image_confusions
from zodi.experiment import training_sets
from zodi.labels import CAMVID, CITYSCAPES
from zodi.miniature.dataset import write_miniature
from zodi.rows import get_row
from zodi.segmentation import build_network, load_network, save_network

NETWORK = "Unet/resnet18"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("data") / "data", 4, 2, ["night"], 64, 128, progress=False)


@pytest.fixture
def street(data, tmp_path) -> FolderDataset:
    """A copy of the training images, to be changed."""
    shutil.copytree(data / "train", tmp_path / "street")
    return FolderDataset(tmp_path / "street" / "images", tmp_path / "street" / "labels", CITYSCAPES, cache=False)


def short(**changes):
    return recipe("mini", "source_only", network=NETWORK, **{"steps": 2, "batch_size": 2, "crop": (32, 64)} | changes)


# ---------------------------------------------------------------- classes


@pytest.fixture(scope="module")
def camvid_network(tmp_path_factory) -> Path:
    network = build_network(NETWORK, CAMVID.num_classes)
    network.label_set = CAMVID
    save_network(network, tmp_path_factory.mktemp("network") / "network")
    return next(tmp_path_factory.getbasetemp().glob("network*/network"))


def test_a_network_keeps_its_label_set(camvid_network):
    assert load_network(camvid_network).label_set == CAMVID


def test_a_network_is_evaluated_on_its_own_classes_only(camvid_network, street, data, tmp_path, capsys):
    network = load_network(camvid_network)
    both = r"has 11 classes \(sky, building, .*\), the data has 19 classes \(road, sidewalk, .*\), expected the same"
    with pytest.raises(ValueError, match=both):
        evaluate(network, street, CITYSCAPES)
    with pytest.raises(ValueError, match=both):
        estimate(network, street.images_folder, street.images_folder.parent / "labels", "night", tmp_path / "out")
    assert main(["evaluate", "--network", str(camvid_network), "--data", str(data)]) == 2
    assert "has 11 classes (sky, building," in capsys.readouterr().err


def test_without_a_known_label_set_the_number_of_classes_is_compared(street):
    for classes in (11, 25):
        with pytest.raises(ValueError, match=f"has {classes} classes, the data has 19 classes"):
            image_confusions(build_network(NETWORK, classes), street, 19)


# ---------------------------------------------------------------- trainings


def changed_label(folder: Path) -> None:
    file = next(iter(sorted((folder / "labels").iterdir())))
    Image.fromarray(np.array(Image.open(file))[::-1].copy()).save(file)


def other_images(folder: Path) -> None:
    for file in (folder / "images").iterdir():
        Image.fromarray(255 - np.array(Image.open(file))).save(file)


@pytest.mark.parametrize("change", [changed_label, other_images])
def test_a_training_does_not_answer_for_other_data(change, street, tmp_path):
    first, _ = train(short(), street, None, tmp_path / "run")
    again, _ = train(short(), street, None, tmp_path / "run")
    assert all(value.equal(again.state_dict()[name]) for name, value in first.state_dict().items())
    change(tmp_path / "street")
    other, _ = train(short(), street, None, tmp_path / "run")
    assert any(not value.equal(other.state_dict()[name]) for name, value in first.state_dict().items())


def test_packed_data_have_the_fingerprint_of_their_files(street, tmp_path):
    packed = pack(street, tmp_path / "packed", progress=False)
    assert packed.fingerprint() == street.fingerprint()
    before = street.fingerprint()
    changed_label(tmp_path / "street")
    assert street.fingerprint() != before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a state"])
def test_a_damaged_state_is_named(content, street, tmp_path):
    (tmp_path / "training.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"training\.pt: is damaged or holds more than tensors .* delete it"):
        train(short(), street, None, tmp_path)


def test_a_state_that_asks_for_code_is_refused_and_not_run(street, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"fingerprint": Evil()}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match=r"training\.pt: is damaged or holds more than tensors"):
        train(short(), street, None, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content"), [("network.json", b"[1]"), ("network.json", b'{"a": 1}'), ("model.safetensors", b"cut")]
)
def test_a_damaged_network_is_named(file, content, camvid_network, tmp_path):
    shutil.copytree(camvid_network, tmp_path / "network")
    (tmp_path / "network" / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: .*train the network again"):
        load_network(tmp_path / "network")


def test_a_training_stops_at_the_first_loss_that_is_not_a_number(street, tmp_path):
    settings = short(learning_rate=1e30, body_factor=1.0, optimizer="sgd", steps=20)
    with pytest.raises(ValueError, match=r"step \d+: found ce_source = (nan|inf), .* choose a lower learning rate"):
        train(settings, street, None, tmp_path, save_every=1)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    assert state["history"] and all(np.isfinite(line["loss"]) for line in state["history"])


def test_labels_of_nothing_but_void_are_called_that(street, tmp_path):
    for file in (tmp_path / "street" / "labels").iterdir():
        Image.fromarray(np.full((64, 128), 255, np.uint8)).save(file)
    with pytest.raises(ValueError, match="step 1: found ce_source = nan, because every pixel of the batch is void"):
        train(short(), street, None, None)


def test_a_network_that_gives_no_number_is_not_evaluated(street):
    network = build_network(NETWORK, 19)
    network.head[0].bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="found logits for 100000 that are infinite or not a number"):
        evaluate(network, street, CITYSCAPES)


def test_an_image_smaller_than_the_crop_is_named_before_the_first_step(street, tmp_path):
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (60, 40)).save(tmp_path / "street" / kind / "100003.png")
    changed = FolderDataset(street.images_folder, tmp_path / "street" / "labels", CITYSCAPES)
    with pytest.raises(ValueError, match=r"100003\.png: found 60x40 pixels, crop=\(32, 64\) is larger than the im"):
        train(short(), changed, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- transfers and estimates


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = tiny.mini()
    save(replace(model, defaults=replace(model.defaults, strengths={"night": 0.8, "fog": 0.9})), folder)
    return folder


def transfer(checkpoint: Path, folder: Path, *options: str) -> int:
    places = ["--images", folder / "images", "--labels", folder / "labels", "--out", folder / "out"]
    return main(["transfer", *map(str, places), "--model", str(checkpoint), *options])


def test_a_strength_that_takes_no_step_is_refused_before_anything_is_done(checkpoint, tmp_path, capsys):
    tiny.write_dataset(tmp_path)
    assert transfer(checkpoint, tmp_path, "--domain", "night", "--strength", "0.04", "--steps", "20") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "strength=0.04 of num_inference_steps=20 takes no step" in line and "at least 0.05" in line
    assert not (tmp_path / "out" / "images").exists()
    assert transfer(checkpoint, tmp_path, "--domain", "night", "--method", "vae_round_trip") == 0


def test_strengths_below_those_of_the_checkpoint_are_said_and_a_prompt_gets_one_of_them(checkpoint, tmp_path, capsys):
    tiny.write_dataset(tmp_path)
    assert transfer(checkpoint, tmp_path, "--domain", "night", "--strength", "0.5", "--steps", "4", "--limit", "1") == 0
    assert (
        capsys.readouterr().err.count("warning: strength 0.5 is below all those that the model was made for (0.8") == 1
    )
    shutil.rmtree(tmp_path / "out")
    assert transfer(checkpoint, tmp_path, "--prompt", "in a storm", "--steps", "4", "--limit", "1") == 0
    assert "warning" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]["strength"] == pytest.approx(0.85)


def test_one_image_has_no_interval_and_few_images_a_weak_one():
    rng = np.random.default_rng(0)
    confusions = rng.integers(1, 50, (2, 5, 3, 3))
    one = estimate_from(confusions[:, :1], ("a", "b", "c"))
    assert np.isnan([one.low, one.high]).all() and one.classes[["low", "high"]].isna().all(axis=None)
    assert "no interval: one image has no spread" in str(one) and "nan" not in str(one)
    few = estimate_from(confusions, ("a", "b", "c"))
    assert few.low <= few.miou <= few.high and "of little worth below 10 images" in str(few)
    with pytest.raises(ValueError, match="4 images: no class is seen in 4 of them"):
        sparse = np.zeros((1, 4, 2, 2), int)
        sparse[0, 0] = 1
        estimate_from(sparse, ("a", "b"))


def test_no_transfer_at_all_is_refused_by_name(camvid_network, tmp_path, capsys):
    tiny.write_dataset(tmp_path)
    places = ["--images", tmp_path / "images", "--labels", tmp_path / "labels", "--network", camvid_network]
    command = ["estimate", *map(str, places), "--domain", "night", "--out", str(tmp_path / "out"), "--seeds", "0"]
    assert main(command) == 2 and "--seeds 0: expected at least 1" in capsys.readouterr().err


def test_images_that_a_killed_transfer_left_are_not_trained_on(data, tmp_path):
    command = ["transfer", "--images", str(data / "train" / "images"), "--domain", "night", "--method", "photometric"]
    assert main([*command, "--out", str(tmp_path / "synth"), "--limit", "3"]) == 0
    extra = sorted((data / "train" / "images").iterdir())[3]
    shutil.copy(extra, tmp_path / "synth" / "images")
    leftover = tmp_path / "synth" / "images" / ".100001.png.x1y2.partial" / "100001.png"
    leftover.parent.mkdir()
    shutil.copy(extra, leftover)
    with pytest.warns(UserWarning, match=r"left out 1 of 4 images that its manifest does not vouch for"):
        sets = training_sets(get_row("photometric"), data, "night", tmp_path / "synth")
    assert sets.second.keys == ["100000", "100001", "100002"]
    # A folder of the user's own has no manifest and is taken as it is.
    shutil.copytree(data / "train_night" / "images", tmp_path / "own" / "images")
    assert len(training_sets(get_row("photometric"), data, "night", tmp_path / "own").second) == 4


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there_is_one_line(device, data, camvid_network, tmp_path, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    commands = [
        ["adapt", "--data", data, "--variant", "source_only", "--out", tmp_path / "run"],
        ["evaluate", "--data", data, "--network", camvid_network],
    ]
    for command in commands:
        assert main([*map(str, command), "--device", device]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and device in line


def test_a_failed_run_leaves_no_old_metrics(data, tmp_path):
    (tmp_path / "metrics.json").write_text('{"metrics": {"miou": 99.9}}')
    command = ["adapt", "--data", str(data), "--variant", "source_only", "--network", NETWORK, "--steps", "1"]
    assert main([*command, "--crop", "128", "128", "--out", str(tmp_path)]) == 2
    assert not (tmp_path / "metrics.json").exists()
