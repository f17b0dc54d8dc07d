import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from zodi.adaptation import (
    PAPER_CONFIG,
    AdaptationConfig,
    adaptation_loss,
    augment,
    cut_batches,
    epoch_length,
    recipe,
    similarity,
    train,
)
from zodi.datasets import FolderDataset, open_split, pack
from zodi.evaluation import evaluate
from zodi.labels import CITYSCAPES
from zodi.miniature.dataset import write_miniature
from zodi.networks.own import OwnNetwork
from zodi.segmentation import body_state, build_network
from zodi.studies.selection import RULES, EpochSelection, choose_epochs
from zodi.support import files
from zodi.support.files import read_json

NETWORK = "Unet/resnet18"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("data") / "mini", 4, 1, ["night"], 64, 96, progress=False)


@pytest.fixture(scope="module")
def source(data):
    return open_split(data, "train")


@pytest.fixture(scope="module")
def target(data):
    return open_split(data, "train_night")


def config(**changes):
    settings = {
        "network": NETWORK,
        "steps": 4,
        "batch_size": 2,
        "crop": (32, 64),
        "weights": None,
        "bf16": False,
    }
    return AdaptationConfig(**settings | changes)


def random_pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_s, x_t = torch.randn(2, 2, 3, 32, 64, generator=generator)
    y = torch.randint(0, 5, (2, 32, 64), generator=generator)
    return x_s, x_t, y


def gradient(network, loss):
    parts = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def make_batches(step, source, synth, pairs, settings):
    return [batch and augment(batch, settings) for batch in cut_batches(step, source, synth, pairs, settings)]


def test_similarity_is_the_cosine_of_pooled_features():
    f_s, f_t = torch.randn(2, 3, 8, 2, 4)
    g_s, g_t = f_s.mean((2, 3)), f_t.mean((2, 3))
    expected = ((g_s * g_t).sum(1) / g_s.norm(dim=1) / g_t.norm(dim=1)).mean()
    assert torch.allclose(similarity(f_s, f_t), expected, atol=1e-6)
    assert similarity(f_s, f_s).item() == pytest.approx(1)
    assert similarity(f_s, -f_s).item() == pytest.approx(-1)


def test_loss_is_the_papers_sum_and_void_pixels_do_not_count():
    torch.manual_seed(0)
    network = build_network(NETWORK, 5)
    x_s, x_t, y = random_pair()
    y[:, :8] = 255
    terms = adaptation_loss(network, (x_s, y), (x_t, y), 0.1)
    logits, features_s = network(x_s)
    by_hand = F.cross_entropy(logits[:, :, 8:], y[:, 8:])
    assert terms["ce_source"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    expected = terms["ce_source"] + terms["ce_synth"] - 0.1 * terms["similarity"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms["similarity"].item() == pytest.approx(similarity(features_s, network(x_t)[1]).item(), rel=1e-5)


def test_two_passes_give_the_gradient_of_the_terms_and_one_mixed_batch_does_not():
    torch.manual_seed(0)
    network = build_network(NETWORK, 5).double()
    x_s, x_t, y = random_pair()
    x_s, x_t = x_s.double(), x_t.double() * 0.2 - 2
    ours = gradient(network, adaptation_loss(network, (x_s, y), (x_t, y), 0.1)["loss"])

    def ce(x):
        return F.cross_entropy(network(x)[0], y)

    # The authors' program runs the backbone once more a domain for the similarity: four passes in all.
    four = gradient(network, ce(x_s)) + gradient(network, ce(x_t))
    four += gradient(network, -0.1 * similarity(network(x_s)[1], network(x_t)[1]))
    assert (ours - four).norm() / four.norm() < 1e-6

    logits, features = network(torch.cat([x_s, x_t]))
    mixed_loss = (
        F.cross_entropy(logits[:2], y) + F.cross_entropy(logits[2:], y) - 0.1 * similarity(features[:2], features[2:])
    )
    mixed = gradient(network, mixed_loss)
    assert (mixed - four).norm() / four.norm() > 0.1


def test_pairs_share_crop_and_flip_but_not_jitter(source):
    plain = config(jitter=0.0, hue=0.0)
    pairs = {key: i for i, key in enumerate(source.keys)}
    (x_s, y_s), (x_t, y_t) = make_batches(3, source, source, pairs, plain)
    assert torch.equal(y_s, y_t) and torch.equal(x_s, x_t)
    (x_s, y_s), (x_t, y_t) = make_batches(3, source, source, pairs, config())
    assert torch.equal(y_s, y_t) and not torch.equal(x_s, x_t)


def test_batches_depend_on_seed_and_step_only(source):
    first = make_batches(5, source, None, None, config())[0][0]
    make_batches(6, source, None, None, config())
    assert torch.equal(first, make_batches(5, source, None, None, config())[0][0])
    assert not torch.equal(first, make_batches(6, source, None, None, config())[0][0])
    assert not torch.equal(first, make_batches(5, source, None, None, config(seed=1))[0][0])


def test_an_epoch_sees_every_image_once_and_the_next_in_another_order(source):
    plain = config(jitter=0.0, hue=0.0, crop=(64, 96))
    assert epoch_length(len(source), plain) == 2
    images = [np.sort(make_batches(step, source, None, None, plain)[0][0].mean((1, 2, 3)).numpy()) for step in range(8)]
    epochs = [np.concatenate(images[first : first + 2]) for first in range(0, 8, 2)]
    for epoch in epochs:
        assert len(np.unique(epoch.round(5))) == len(source)
    assert len({tuple(epoch.round(5)) for epoch in epochs}) > 1


def test_workers_do_not_change_the_result(source, target):
    alone, history = train(config(steps=2), source, target, None)
    helped, helped_history = train(config(steps=2), source, target, None, workers=2)
    pd.testing.assert_frame_equal(history, helped_history)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, helped.state_dict()[name]), name


def test_the_learning_rate_falls_by_step_or_by_epoch_and_has_a_floor(source):
    _, by_step = train(config(steps=4, learning_rate=0.1), source, None, None)
    expected = [0.1 * (1 - step / 4) ** 0.9 for step in range(4)]
    assert by_step["learning_rate"].tolist() == pytest.approx(expected)
    _, by_epoch = train(config(steps=4, learning_rate=0.1, schedule="epoch"), source, None, None)
    assert by_epoch["learning_rate"].tolist() == pytest.approx([expected[0]] * 2 + [expected[2]] * 2)
    _, floored = train(config(steps=4, learning_rate=0.1, learning_rate_floor=0.08), source, None, None)
    assert floored["learning_rate"].min() == 0.08


def test_the_recipe_of_the_paper():
    assert recipe("paper", seed=3) == dataclasses.replace(PAPER_CONFIG, seed=3)
    assert (PAPER_CONFIG.optimizer, PAPER_CONFIG.learning_rate, PAPER_CONFIG.weight_decay) == ("sgd", 1e-3, 1e-4)
    assert PAPER_CONFIG.steps == 100 * epoch_length(2975, PAPER_CONFIG)
    with pytest.raises(ValueError, match="recipe 'big'"):
        recipe("big")
    with pytest.raises(ValueError, match="unknown settings \\['stepz'\\]"):
        recipe("mini", stepz=3)


def test_a_row_rules_length_and_similarity_of_a_recipe():
    assert recipe("mini", "zodi_no_similarity").similarity_weight == 0
    assert recipe("mini", "source_only_long", steps=7).steps == 14
    assert recipe("mini", crop=[32, 64]).crop == (32, 64)
    with pytest.raises(ValueError, match="variant 'mystery'"):
        recipe("mini", "mystery")


def test_the_void_output_exists_in_training_only():
    network = build_network(NETWORK, 5, void_output=True)
    x = torch.zeros(2, 3, 32, 64)
    assert network.train()(x)[0].shape[1] == 6
    assert network.eval()(x)[0].shape[1] == 5


def test_every_epoch_is_scored_and_each_rule_keeps_its_network(source, target, tmp_path):
    def selection():
        return EpochSelection({"source": source, "synthetic": target, "target": target}, 2, tmp_path)

    settings = config(steps=6, learning_rate=0.1)
    epochs = selection()
    _, _ = train(settings, source, target, None, callback=epochs)
    scores, table = epochs.scores(), epochs.table().set_index("rule")
    assert scores["epoch"].tolist() == [1, 2, 3]
    assert set(table.index) == set(RULES)
    assert table.loc["last", "epoch"] == 3
    assert table.loc["best_target", "target"] == scores["target"].max()
    kept = EpochSelection({}, 2, tmp_path).network("best_target")
    score = evaluate(kept, target, target.label_set)["miou"]
    assert score == pytest.approx(table.loc["best_target", "target"])

    splits = {"source": source, "synthetic": target, "target": target}
    sparse = EpochSelection(splits, 2, tmp_path / "sparse", every=3)
    train(settings, source, target, None, callback=sparse)
    pd.testing.assert_frame_equal(sparse.scores(), scores[scores["epoch"] == 3].reset_index(drop=True))

    class Stop(Exception):
        pass

    def stop_after_three(step, network):
        again(step, network)
        if step == 5:
            raise Stop

    again = selection()
    with pytest.raises(Stop):
        train(settings, source, target, tmp_path / "run", callback=stop_after_three, save_every=3)
    train(settings, source, target, tmp_path / "run", callback=selection(), save_every=3)
    pd.testing.assert_frame_equal(selection().scores(), scores)


def test_the_earliest_of_equal_epochs_is_chosen_and_none_is_an_error():
    scores = pd.DataFrame({"epoch": [1, 2, 3], "source": [5.0, 7.0, 7.0]})
    assert choose_epochs(scores).set_index("rule")["epoch"].to_dict() == {"last": 3, "best_source": 2}
    with pytest.raises(ValueError, match="no finished epoch"):
        choose_epochs(scores.head(0))


def test_resumed_training_equals_one_that_ran_through(source, target, tmp_path):
    whole, history = train(config(), source, target, tmp_path / "whole")

    def stop(step, network):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(), source, target, tmp_path / "parts", callback=stop, save_every=2)
    resumed, resumed_history = train(config(), source, target, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    pd.testing.assert_frame_equal(history, resumed_history)
    assert list(history["step"]) == [1, 2, 3, 4]
    assert np.isfinite(history.to_numpy()).all()


@pytest.mark.parametrize("name", ["randaugment", "augmix", "weather"])
def test_an_augmented_copy_is_drawn_anew_at_every_step_and_the_same_when_resumed_or_with_workers(
    name, source, tmp_path
):
    settings = config(augmentation=name)
    whole, history = train(settings, source, source, None)

    def stop(step, network):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, source, source, tmp_path, callback=stop, save_every=2)
    _, resumed = train(settings, source, source, tmp_path)
    helped, with_workers = train(settings, source, source, None, workers=1)
    pd.testing.assert_frame_equal(history, resumed)
    pd.testing.assert_frame_equal(history, with_workers)
    assert all(torch.equal(value, helped.state_dict()[key]) for key, value in whole.state_dict().items())

    pairs, whole_image = {key: i for i, key in enumerate(source.keys)}, config(augmentation=name, crop=(64, 96))
    plain, copies = zip(*(cut_batches(step, source, source, pairs, whole_image) for step in range(8)), strict=True)
    changed = [(a.images != b.images).float().mean() for a, b in zip(plain, copies, strict=True)]
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(plain, copies, strict=True))
    assert max(changed) > 0.2 and len({value.item() for value in changed}) > 4
    without = cut_batches(0, source, source, pairs, config(crop=(64, 96)))
    assert torch.equal(without[0].images, plain[0].images), "the source images are those of the other rows"
    assert torch.equal(without[1].jitter, copies[0].jitter)


def test_an_augmentation_without_second_images_is_an_error(source):
    with pytest.raises(ValueError, match=r"augmentation='weather'.*give the source as synth"):
        train(config(augmentation="weather"), source, None, None)


def own_network(channels, head=None):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
    head_layers = nn.Sequential(nn.Conv2d(channels, CITYSCAPES.num_classes, 1), nn.Upsample(scale_factor=2))
    return OwnNetwork(nn.Sequential(encoder, head_layers), "0", head)


def test_a_network_of_ones_own_is_trained_and_resumed(source, target, tmp_path):
    before = own_network(4).state_dict()
    own, whole = own_network(4), config(learning_rate=1e-2)
    trained, history = train(whole, source, target, tmp_path / "whole", network=own)
    assert trained is own and {"ce_source", "ce_synth", "similarity"} <= set(history)
    assert all(not torch.equal(value, before[name]) for name, value in own.state_dict().items() if value.ndim == 4)
    assert read_json(tmp_path / "whole" / "settings.json")["network"] == "Sequential"

    def stop(step, network):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(whole, source, target, tmp_path / "parts", callback=stop, save_every=1, network=own_network(4))
    resumed, _ = train(whole, source, target, tmp_path / "parts", network=own_network(4))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    _, other = train(whole, source, target, tmp_path / "parts", network=own_network(6))
    assert len(other) == whole.steps and not other["loss"].equals(history["loss"]), "another shape starts anew"


def test_only_the_head_of_a_network_of_ones_own_learns_at_the_full_rate(source):
    def change(head):
        network = own_network(4, head)
        before = [value.clone() for value in network.parameters()]
        train(config(steps=1, body_factor=0.0, weight_decay=0.0), source, None, None, network=network)
        return [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]

    assert change("1") == [False] * 4 + [True] * 2
    assert change(None)[0] and all(change(None)[-2:])


def test_a_state_of_other_settings_is_not_resumed(source, tmp_path):
    train(config(steps=1), source, None, tmp_path)
    fresh, _ = train(config(steps=1, seed=1), source, None, tmp_path)
    expected, _ = train(config(steps=1, seed=1), source, None, None)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_unpaired_images_need_similarity_zero(source, data):
    other = open_split(data, "test/night")
    with pytest.raises(ValueError, match="similarity_weight=0"):
        train(config(), source, other, None)
    _, history = train(config(steps=1, similarity_weight=0.0), source, other, None)
    assert {"ce_source", "ce_synth"} <= set(history)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"crop": (33, 64)}, "multiples of 32"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"jitter": 2}, "jitter=2"),
        ({"schedule": "cosine"}, "schedule"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_crop_larger_than_the_images_is_an_error(source):
    with pytest.raises(ValueError, match="larger than the images"):
        train(config(crop=(128, 128)), source, None, None)


# ---------------------------------------------------------------- a training answers for what it was trained on


@pytest.fixture
def folders(data, tmp_path):
    """Copies that a test may change: source and synthesized images, and the labels of both."""
    for part in ("train", "train_night"):
        shutil.copytree(data / part, tmp_path / part)

    def opened(labels="train/labels", synth="train_night/images", label_set=CITYSCAPES):
        source = FolderDataset(tmp_path / "train" / "images", tmp_path / labels, label_set)
        return source, FolderDataset(tmp_path / synth, tmp_path / labels, label_set)

    return tmp_path, opened


def other_synth(root):
    shutil.copytree(root / "train" / "images", root / "other")
    return {"synth": "other"}


def changed_label(root):
    file = sorted((root / "train" / "labels").iterdir())[0]
    Image.fromarray(np.full((64, 96), 1, np.uint8)).save(file)
    return {}


def changed_image(root):
    Image.new("RGB", (96, 64)).save(sorted((root / "train" / "images").iterdir())[0])
    return {}


def changed_synth(root):
    Image.new("RGB", (96, 64)).save(sorted((root / "train_night" / "images").iterdir())[0])
    return {}


def a_class_of_another_colour(root):
    colors = ((1, 2, 3), *CITYSCAPES.colors[1:])
    return {"label_set": dataclasses.replace(CITYSCAPES, colors=colors)}


def another_meaning(root):
    return {"label_set": dataclasses.replace(CITYSCAPES, names=("lane", *CITYSCAPES.names[1:]))}


CHANGES = (other_synth, changed_label, changed_image, changed_synth, a_class_of_another_colour, another_meaning)


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_on_other_data_starts_anew(folders, change, capsys):
    root, opened = folders
    train(config(steps=2), *opened(), root / "run")
    _, again = train(config(steps=2), *opened(), root / "run")
    assert "starting from the beginning" not in capsys.readouterr().out and len(again) == 2
    changed = opened(**change(root))
    network, history = train(config(steps=2), *changed, root / "run")
    expected, expected_history = train(config(steps=2), *changed, None)
    assert "starting from the beginning" in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, expected_history)
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_other_weights_to_start_from_start_anew(source, tmp_path, capsys):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(body_state(build_network(NETWORK, 5)), tmp_path / "w.safetensors")
        train(config(steps=1, weights=str(tmp_path / "w.safetensors")), source, None, tmp_path / "run")
        assert ("starting from the beginning" in capsys.readouterr().out) == (seed == 1)


def test_packed_data_are_the_same_data(source, target, tmp_path):
    whole, history = train(config(), source, target, tmp_path / "whole")

    def stop(step, network):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(), source, target, tmp_path / "parts", callback=stop, save_every=1)
    packed = [pack(part, tmp_path / name, progress=False) for name, part in (("s", source), ("t", target))]
    steps = []
    resumed, resumed_history = train(config(), *packed, tmp_path / "parts", callback=lambda step, _: steps.append(step))
    assert steps == [2, 3, 4], "goes on after the last saved step"
    pd.testing.assert_frame_equal(history, resumed_history)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_source_and_synthesized_images_have_the_same_classes(folders):
    _, opened = folders
    source, _ = opened()
    _, synth = opened(label_set=dataclasses.replace(CITYSCAPES, names=("lane", *CITYSCAPES.names[1:])))
    with pytest.raises(
        ValueError, match=r"the source has 19 classes \(road, .*, the second data set has 19 .*\(lane, "
    ):
        train(config(), source, synth, None)


def test_a_trained_network_knows_its_classes(source):
    network, _ = train(config(steps=1), source, None, None)
    assert network.label_set == source.label_set
    own, _ = train(config(steps=1), source, None, None, network=own_network(4))
    assert own.label_set == source.label_set


# ---------------------------------------------------------------- numbers, sizes, disks


class Diverging(nn.Module):
    """A network of one's own whose logits become no numbers in the pass of a step."""

    def __init__(self, bad_pass: int, value: float) -> None:
        super().__init__()
        self.layer, self.bad_pass, self.value, self.passes = nn.Conv2d(3, 19, 1), bad_pass, value, 0

    def forward(self, x):
        logits = self.layer(x)
        if self.training:
            self.passes += 1
            if self.passes == self.bad_pass:
                logits = logits * self.value
        return logits, logits


@pytest.mark.parametrize(("bad_pass", "term"), [(5, "ce_source"), (6, "ce_synth")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_stops_at_the_first_loss_that_is_no_number(source, target, tmp_path, bad_pass, term, value):
    steps = []
    with pytest.raises(ValueError, match=rf"step 3: found {term} = .*learning rate.*bf16.*labels"):
        train(
            config(),
            source,
            target,
            tmp_path,
            callback=lambda step, _: steps.append(step),
            save_every=1,
            network=Diverging(bad_pass, value),
        )
    assert steps == [0, 1, 2]
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2


def test_weights_that_are_no_numbers_are_not_saved(source, tmp_path, monkeypatch):
    def step(network, optimizer, *_):
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] = float("nan")
        return {"ce_source": torch.tensor(1.0), "loss": torch.tensor(1.0)}

    monkeypatch.setattr("zodi.adaptation.optimisation_step", step)
    with pytest.raises(ValueError, match=r"step 1: found .*weight = nan"):
        train(config(steps=1), source, None, tmp_path)
    assert not (tmp_path / "training.pt").exists()


def test_a_batch_of_void_labels_is_called_that(folders):
    root, opened = folders
    for file in (root / "train" / "labels").iterdir():
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(file)
    with pytest.raises(ValueError, match="step 1: found ce_source = nan, because every pixel of the batch is void"):
        train(config(), *opened(), None)


@pytest.mark.parametrize("part", ["train", "train_night"])
def test_an_image_smaller_than_the_crop_is_named_before_the_training(folders, part):
    root, opened = folders
    name = sorted((root / part / "images").iterdir())[-1].name
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (60, 64)).save(
            root / "train" / "labels" / name if kind == "labels" else root / part / kind / name
        )
    started = []
    with pytest.raises(ValueError, match=rf"{name}: found 60x64 pixels.*larger than the images"):
        train(config(), *opened(), None, callback=lambda *_: started.append(1))
    assert not started


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_state_is_one_line(source, tmp_path, content):
    train(config(steps=1), source, None, tmp_path)
    file = tmp_path / "training.pt"
    file.write_bytes(file.read_bytes()[:-500] if content is None else content)
    with pytest.raises(ValueError, match=r"training.pt: .*delete it to train from the start"):
        train(config(steps=1), source, None, tmp_path)


def test_a_full_disk_names_the_file_and_keeps_the_state_before(source, tmp_path, monkeypatch):
    train(config(steps=1), source, None, tmp_path)
    before = (tmp_path / "training.pt").read_bytes()

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"training.pt: cannot be written, the disk is full") as caught:
        train(config(steps=1, seed=1), source, None, tmp_path)
    assert files.is_disk_full(caught.value) and (tmp_path / "training.pt").read_bytes() == before
