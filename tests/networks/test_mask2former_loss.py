"""Mask2Former's own loss: transformers' value, what is ignored, trainings that use it, and those that do not."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessor

from zodi import adaptation
from zodi.__main__ import main
from zodi.adaptation import AdaptationConfig, adaptation_loss, recipe, train
from zodi.datasets import open_split
from zodi.miniature.dataset import write_miniature
from zodi.networks.huggingface import segments
from zodi.networks.own import OwnNetwork
from zodi.segmentation import SegmentationNetwork, build_network
from zodi.support.files import read_json
from zodi.support.runs import settings_hash

VOID = 255
SMALL = {"steps": 3, "batch_size": 2, "crop": (32, 64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_networks.save(tiny_networks.mask2former(), tmp_path_factory.mktemp("checkpoints") / "mask2former")


@pytest.fixture
def network(folder):
    # In evaluation mode, without the random depth of Swin: a loss depends on the drawn points only.
    return build_network(f"hf:{folder}", 19, "checkpoint").eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("data") / "mini", 2, 1, ["night"], 64, 96, progress=False)


@pytest.fixture
def batch():
    """Images, and labels of four classes and void in blocks, so that a few steps can learn them."""
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    blocks = torch.tensor([[[0, 3, 7], [0, VOID, 18]], [[3, 3, 0], [7, 7, VOID]]])
    return x, blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)


def loss_of(network, x, y, seed=0):
    torch.manual_seed(seed)
    return network.segmentation_loss(x, y, VOID)[0]


def by_transformers(network, x, masks, classes):
    """Loss over the sum of its weights, for a checkpoint that is normalised as ours."""
    torch.manual_seed(0)
    loss = network.model.model(pixel_values=x, mask_labels=masks, class_labels=classes).loss
    config = network.model.model.config
    return loss / (config.decoder_layers * (config.class_weight + config.mask_weight + config.dice_weight))


# ---------------------------------------------------------------- the loss


def test_segments_are_those_of_transformers_own_preparation(batch):
    processor = Mask2FormerImageProcessor(ignore_index=VOID, do_resize=False, do_reduce_labels=False)
    images = [np.zeros((64, 96, 3), np.uint8)] * 2
    theirs = processor(images, segmentation_maps=[y.numpy() for y in batch[1]], return_tensors="pt")
    for label, masks, classes in zip(batch[1], theirs["mask_labels"], theirs["class_labels"], strict=True):
        ours = segments(label, VOID)
        assert torch.equal(ours[0], classes) and torch.equal(ours[1], masks)
        assert torch.equal(ours[1].sum(0) == 0, label == VOID), "ignored pixels, and only they, are in no mask"


def test_the_loss_is_that_of_transformers_over_the_sum_of_its_weights(network, batch):
    x, y = batch
    classes, masks = zip(*(segments(label, VOID) for label in y), strict=True)
    found, features = network.segmentation_loss(*batch, VOID)
    assert found.shape == () and found.isfinite() and torch.equal(features, network(x)[1])
    expected = by_transformers(network, x, masks, classes)
    assert loss_of(network, x, y).item() == pytest.approx(expected.item(), rel=1e-5)
    # Of the size of a cross-entropy, so that the weight of the similarity term means the same.
    assert 0.2 < found / F.cross_entropy(network(x)[0], y, ignore_index=VOID) < 5


def test_the_order_of_the_segments_does_not_matter(network, batch):
    x, y = batch
    classes, masks = zip(*(segments(label, VOID) for label in y), strict=True)
    turned = by_transformers(network, x, [m.flip(0) for m in masks], [c.flip(0) for c in classes])
    assert loss_of(network, x, y).item() == pytest.approx(turned.item(), rel=1e-5)
    # The same through our interface: classes in another order, and a classifier with its outputs in that order.
    before, order = loss_of(network, x, y), torch.arange(18, -1, -1)
    with torch.no_grad():
        for value in (network.head.weight, network.head.bias):
            value[:19] = value[order]
    renamed = torch.where(y == VOID, VOID, 18 - y)
    assert loss_of(network, x, renamed).item() == pytest.approx(before.item(), rel=1e-5)
    assert loss_of(network, x, y).item() != pytest.approx(before.item(), rel=1e-3)


def test_an_image_without_labels_is_left_out(network, batch):
    x, y = batch
    alone = loss_of(network, x[:1], y[:1])
    beside = x.clone().requires_grad_()
    loss = loss_of(network, beside, torch.stack([y[0], torch.full_like(y[1], VOID)]))
    loss.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    assert beside.grad[0].abs().max() > 0 and beside.grad[1].abs().max() == 0


def test_a_batch_without_labels_stops_the_training_as_with_cross_entropy(folder, data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    for file in (root / "train" / "labels").iterdir():
        Image.fromarray(np.full((64, 96), VOID, np.uint8)).save(file)
    config = recipe("transformer", "source_only", network=f"hf:{folder}", **SMALL)
    with pytest.raises(ValueError, match="step 1: found ce_source = nan, because every pixel of the batch is void"):
        train(config, open_split(root, "train"), None, None)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_falls_on_one_image_and_so_do_the_wrong_pixels(network, batch, bf16):
    x, y = (part[:1] for part in batch)
    optimizer = torch.optim.AdamW(network.train().parameters(), 1e-3)
    losses = []
    for step in range(40):
        torch.manual_seed(step)
        terms = adaptation_loss(network, (x, y), None, 0.1, bf16)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert terms["loss"].dtype == torch.float32 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    with torch.inference_mode():
        right = (network.eval()(x)[0].argmax(1) == y)[y != VOID]
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("bf16", [False, True])
def test_the_similarity_term_is_the_same_as_ever(network, batch, bf16):
    x, y = batch
    torch.manual_seed(0)
    terms = adaptation_loss(network, (x, y), (x.flip(3) * 0.3, y.flip(2)), 0.1, bf16)
    expected = terms["ce_source"] + terms["ce_synth"] - 0.1 * terms["similarity"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = [network(images)[1].float() for images in (x, x.flip(3) * 0.3)]
    cosine = adaptation.similarity(*features).item()
    assert terms["similarity"].item() == pytest.approx(cosine, abs=1e-3 if bf16 else 1e-5)
    encoder = [p for p in network.encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(terms["similarity"], encoder, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


# ---------------------------------------------------------------- trainings


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2, "bf16": True}])
def test_a_resumed_training_is_that_of_one_go(folder, data, tmp_path, changes, capsys):
    config = recipe("transformer", "zodi", network=f"hf:{folder}", **SMALL, **changes)
    source, target = open_split(data, "train"), open_split(data, "train_night")
    whole, history = train(config, source, target, tmp_path / "whole")
    assert "Mask2Former's own" in capsys.readouterr().out
    settings = read_json(tmp_path / "whole" / "settings.json")
    assert settings["own_loss"]["train_num_points"] == 12544 and settings["steps"] == 3

    def stop(step, network):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, source, target, tmp_path / "parts", callback=stop, save_every=1)
    torch.rand(5)  # whatever else draws numbers in between
    resumed, history_of_both = train(config, source, target, tmp_path / "parts")
    assert history_of_both.equals(history)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_state_of_another_loss_is_not_resumed(folder, data, tmp_path, monkeypatch, capsys):
    place = shutil.copytree(folder, tmp_path / "checkpoint")
    config = recipe("transformer", "source_only", network=f"hf:{place}", **SMALL)
    source, started = open_split(data, "train"), "starting from the beginning"
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationNetwork, "segmentation_loss", None)
        _, cross_entropy = train(config, source, None, tmp_path / "run")
    assert "own" not in capsys.readouterr().out
    assert "own_loss" not in read_json(tmp_path / "run" / "settings.json")
    _, own = train(config, source, None, tmp_path / "run")
    assert started in capsys.readouterr().out and not own.equals(cross_entropy)

    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dice_weight": 1.0}))
    _, other = train(config, source, None, tmp_path / "run")
    assert started in capsys.readouterr().out and not other.equals(own)
    _, again = train(config, source, None, tmp_path / "run")
    assert started not in capsys.readouterr().out and again.equals(other)


def test_the_record_of_a_training_names_the_loss(folder, data, tmp_path):
    found = {}
    for name in (f"hf:{folder}", "Unet/resnet18"):
        run = ["adapt", "--data", str(data), "--variant", "source_only", "--network", name, "--steps", "1"]
        assert main([*run, "--crop", "32", "64", "--batch-size", "2", "--out", str(tmp_path / "out")]) == 0
        found[name] = read_json(tmp_path / "out" / "metrics.json")["metrics"].get("own_loss")
    ours, other = found.values()
    assert ours["loss"] == "Mask2Former's own" and ours["mask_weight"] == 5 and other is None


def test_the_named_weight_of_no_object_is_the_one_that_is_used(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "checkpoint")
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"no_object_weight": 0.7}))
    network = build_network(f"hf:{place}", 19, "checkpoint")
    used = float(network.model.model.criterion.empty_weight[-1])
    assert network.loss_settings["no_object_weight"] == pytest.approx(used, abs=1e-6)


def test_other_networks_have_cross_entropy_and_the_fingerprint_they_had(data, tmp_path, monkeypatch):
    calls, cross_entropy = [], F.cross_entropy

    def counted(logits, labels, **options):
        calls.append((logits.shape, options))
        return cross_entropy(logits, labels, **options)

    monkeypatch.setattr("zodi.adaptation.F.cross_entropy", counted)
    source = open_split(data, "train")
    segformer = tiny_networks.save(tiny_networks.segformer(), tmp_path / "segformer")
    for name in ("PaperDeepLabV3Plus/resnet18", f"hf:{segformer}"):
        assert build_network(name, 19).segmentation_loss is None and build_network(name, 19).loss_settings == {}
        config = AdaptationConfig(network=name, weights=None, **SMALL).resolved()
        calls.clear()
        train(config, source, None, tmp_path / "run")
        assert calls == [((2, 19, 32, 64), {"ignore_index": VOID})] * 3
        of_data = {"source": source.fingerprint(), "synth": None, "initial": None}
        state = torch.load(tmp_path / "run" / "training.pt", weights_only=True)
        assert state["fingerprint"] == settings_hash(asdict(config) | of_data)
        assert settings_hash(read_json(tmp_path / "run" / "settings.json")) == settings_hash(config)


class WithLoss(OwnNetwork):
    """A network of one's own that brings its loss."""

    def segmentation_loss(self, x, labels, ignore_index):
        logits, features = self(x)
        return 2 * F.cross_entropy(logits, labels, ignore_index=ignore_index), features


def test_a_network_of_ones_own_may_bring_its_loss(data, tmp_path, capsys):
    def make(kind):
        torch.manual_seed(0)
        return kind(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 19, 1)), "0")

    config, source = AdaptationConfig(**SMALL), open_split(data, "train")
    _, plain = train(config, source, None, tmp_path / "run", network=make(OwnNetwork))
    _, doubled = train(config, source, None, tmp_path / "run", network=make(WithLoss))
    assert "starting from the beginning" in capsys.readouterr().out
    assert doubled["ce_source"][0] == pytest.approx(2 * plain["ce_source"][0], rel=1e-6)
