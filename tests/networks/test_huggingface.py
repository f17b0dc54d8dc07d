"""Networks of transformers: loaded by folder and checked, compared with the library's own maps, trained, saved."""

import json
import shutil

import numpy as np
import pytest
import tiny_networks
import torch
from transformers import Mask2FormerImageProcessor, SegformerImageProcessor

from zodi.__main__ import main
from zodi.adaptation import recipe, train
from zodi.datasets import open_split
from zodi.evaluation import evaluate
from zodi.labels import CAMVID, CITYSCAPES
from zodi.miniature.dataset import write_miniature
from zodi.networks import huggingface
from zodi.networks.build import auto_weights, weights_file
from zodi.segmentation import build_network, load_network, normalise, save_network
from zodi.support.files import read_json

KINDS = {"segformer": tiny_networks.segformer, "mask2former": tiny_networks.mask2former}
PROCESSORS = {"segformer": SegformerImageProcessor, "mask2former": Mask2FormerImageProcessor}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_networks.save(make(), root / name) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("data") / "mini", 2, 1, ["night"], 64, 96, progress=False)


@pytest.fixture
def changed(folders, tmp_path):
    """A copy of SegFormer's folder, to be damaged."""
    return shutil.copytree(folders["segformer"], tmp_path / "changed")


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_is_that_of_transformers_own_post_processing(kind, folders):
    # Mask2Former's goes over masks of 384 x 384 pixels, whatever the image's size.
    x = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    network, original = load_network(folders[kind]), KINDS[kind]()
    with torch.inference_mode():
        logits, features = network(x)
        output = original(x)
    expected = PROCESSORS[kind]().post_process_semantic_segmentation(output, target_sizes=[(384, 384)] * 2)
    differ = logits.argmax(1) != torch.stack(list(expected))
    best, second = logits.topk(2, dim=1).values.unbind(1)
    assert logits.shape == (2, 19, 384, 384) and differ.float().mean() < 1e-4
    assert (best - second)[differ].numel() == 0 or (best - second)[differ].max() < 1e-5, "ties but for rounding"
    assert len(logits.argmax(1).unique()) > 1
    assert features.shape == (2, 32 if kind == "segformer" else 64, 12, 12)
    if kind == "mask2former":
        scores = torch.einsum(
            "bqc,bqhw->bchw",
            output.class_queries_logits.softmax(-1)[..., :-1],
            huggingface._resized(output.masks_queries_logits, x).sigmoid(),
        )
        assert torch.allclose(logits.softmax(1), scores / scores.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_are_taken_and_gradients_reach_every_part(kind, folders):
    network = build_network(f"hf:{folders[kind]}", 19, "checkpoint").train()
    logits, features = network(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 19, 64, 96) and features.shape[2:] == (2, 3)
    (logits.square().mean() + features.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # Swin's last norm has no part in a backbone.
    assert [name for name in without if "swin.layernorm." not in name] == []
    assert {id(p) for p in network.head.parameters()} < {id(p) for p in network.parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_checkpoints_or_random_and_new_classes_get_a_new_layer(kind, folders):
    original = KINDS[kind]().state_dict()

    def same(network):
        state = network.model.model.state_dict()
        assert {*state} == {*original}
        return {name for name in state if state[name].shape == original[name].shape and state[name].ndim > 1
                and torch.equal(state[name], original[name])}  # fmt: skip

    name, matrices = f"hf:{folders[kind]}", {name for name, value in original.items() if value.ndim > 1}
    assert same(build_network(name, 19, "checkpoint")) == matrices
    new = {"segformer": "decode_head.classifier.weight", "mask2former": "class_predictor.weight"}[kind]
    other = build_network(name, 5, "checkpoint")
    assert same(other) == matrices - {new}
    assert other(torch.zeros(1, 3, 64, 64))[0].shape[1] == 5
    torch.manual_seed(1)
    # What begins as zeros is the same.
    assert len(same(build_network(name, 19))) < len(matrices) / 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_needs_its_checkpoint_no_more(kind, folders, tmp_path):
    place = shutil.copytree(folders[kind], tmp_path / "gone")
    network = build_network(f"hf:{place}", 5, "checkpoint").eval()
    save_network(network, tmp_path / "network")
    shutil.rmtree(place)
    again, x = load_network(tmp_path / "network"), torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(network(x)[0], again(x)[0]) and torch.equal(network(x)[1], again(x)[1])
    assert "_name_or_path" not in read_json(tmp_path / "network" / "network.json")["arguments"]["config"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_training_by_the_recipe_for_transformers(kind, folders, data, tmp_path):
    settings = {"steps": 2, "batch_size": 2, "crop": (32, 64)}
    config = recipe("transformer", "zodi", network=f"hf:{folders[kind]}", **settings)
    assert config.weights == "checkpoint"
    source, target = open_split(data, "train"), open_split(data, "train_night")
    network, history = train(config, source, target, tmp_path / "run")
    assert np.isfinite(history.to_numpy()).all() and network.label_set == source.label_set
    before = build_network(config.network, 19, "checkpoint").state_dict()
    after = network.state_dict()
    assert all(
        not torch.equal(before[name], after[name]) for name in before if name.endswith(("weight", "bias_table"))
        and before[name].ndim > 1
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_cityscapes_checkpoint_is_evaluated_without_training(kind, folders, data, tmp_path, capsys):
    network = load_network(folders[kind])
    assert network.label_set == CITYSCAPES and not network.training
    split = open_split(data, "test/night")
    expected = evaluate(network, split, CITYSCAPES)["miou"]
    command = ["evaluate", "--data", str(data), "--domains", "night", "--out", str(tmp_path / "out"), "--network"]
    for folder in (str(folders[kind]), f"hf:{folders[kind]}"):
        assert main([*command, folder]) == 0
        found = read_json(tmp_path / "out" / "metrics.json")["metrics"]["miou"]["night"]
        assert found == pytest.approx(expected)
    assert "night" in capsys.readouterr().out


def test_a_cityscapes_checkpoint_is_estimated_without_training(folders, data, tmp_path):
    images, labels = (str(data / "test" / "clear" / part) for part in ("images", "labels"))
    command = ["estimate", "--network", str(folders["segformer"]), "--images", images, "--labels", labels]
    command += ["--domain", "night", "--seeds", "1", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(command) in (0, 1)  # 1: the estimate says that it is not to be relied on
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_the_classes_of_checkpoint_and_data_must_be_the_same(data, tmp_path, capsys):
    folder = tiny_networks.save(tiny_networks.segformer(CAMVID.names), tmp_path / "camvid")
    assert load_network(folder).label_set == CAMVID
    assert main(["evaluate", "--data", str(data), "--network", str(folder)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "11 classes" in line and "19 classes" in line

    swapped = ("sidewalk", "road", *CITYSCAPES.names[2:])
    folder = tiny_networks.save(tiny_networks.segformer(swapped), tmp_path / "swapped")
    assert load_network(folder).label_set.names == swapped
    assert main(["evaluate", "--data", str(data), "--network", str(folder)]) == 2
    assert "sidewalk, road" in capsys.readouterr().err


def test_classes_without_names_are_refused(changed):
    edit(changed, id2label={str(i): f"LABEL_{i}" for i in range(19)})
    with pytest.raises(ValueError, match=r"config.json: id2label has no names, only LABEL_0"):
        load_network(changed)
    config = json.loads((changed / "config.json").read_text())
    del config["id2label"]
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: found no id2label"):
        load_network(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_a_frozen_checkpoint(kind, folders, tmp_path):
    name = f"hf:{folders[kind]}"
    plain, adapted = (build_network(name, 19, "checkpoint", **more).eval() for more in ({}, {"lora_rank": 2}))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(plain(x)[0], adapted(x)[0])
    learning = {key for key, p in adapted.encoder.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in key for key in learning)
    for key, parameter in adapted.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1) if "lora_B" in key else None
    save_network(adapted, tmp_path / "network")
    with torch.inference_mode():
        assert torch.equal(adapted(x)[0], load_network(tmp_path / "network")(x)[0])
        assert not torch.equal(adapted(x)[0], plain(x)[0])


def test_another_checkpoint_in_the_same_folder_is_another_start(changed):
    name, file = f"hf:{changed}", changed / "model.safetensors"
    assert weights_file(name, auto_weights(name, "auto")) == file
    assert weights_file(name, None) is None
    assert auto_weights(name, "imagenet") == "checkpoint" and auto_weights(name, None) is None
    assert auto_weights(name, "some.pth") == "some.pth", "what the user names is refused, not replaced"


def test_another_class_is_named(changed):
    edit(changed, architectures=["SegformerForImageClassification"])
    with pytest.raises(ValueError, match=r"found a SegformerForImageClassification, expected one of .*Mask2Former"):
        build_network(f"hf:{changed}", 19, "checkpoint")


def test_missing_weights_are_named(changed):
    shutil.move(changed / "model.safetensors", changed / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no weights, expected model.safetensors; other formats may run code"):
        build_network(f"hf:{changed}", 19, "checkpoint")
    build_network(f"hf:{changed}", 19)


def test_a_checkpoint_with_a_part_of_the_weights_is_refused(changed):
    edit(changed, depths=[1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"tensors are missing or of another shape .*segformer"):
        build_network(f"hf:{changed}", 5, "checkpoint")
    edit(changed, depths=[1, 1, 1, 2])
    (changed / "model.safetensors").write_bytes((changed / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"changed: cannot be read .*copy it again") as caught:
        build_network(f"hf:{changed}", 19, "checkpoint")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf:nobody/nothing", "hf:./nothing", "hf:/no/such/folder"])
def test_what_is_not_here_says_what_to_get_and_where_to_put_it(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"not on this machine.*model.safetensors.*hub's cache") as caught:
        build_network(name, 19)
    assert "\n" not in str(caught.value)


def test_a_folder_without_settings_and_weights_for_other_networks_are_refused(changed):
    with pytest.raises(ValueError, match=r"weights 'mini': expected 'checkpoint' or None"):
        build_network(f"hf:{changed}", 19, "mini")
    (changed / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file; expected a folder that save_pretrained"):
        build_network(f"hf:{changed}", 19)


def test_images_are_normalised_as_the_checkpoint_says(changed):
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    (changed / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    images = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    ours = normalise(images)
    theirs = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    original = tiny_networks.segformer()
    with torch.inference_mode():
        logits = load_network(changed)(ours)[0]
        expected = huggingface._resized(original(theirs).logits, images)
    assert torch.allclose(logits, expected, atol=1e-5)
