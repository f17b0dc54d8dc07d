import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zodi.labels import CAMVID, CITYSCAPES
from zodi.networks.own import OwnNetwork
from zodi.segmentation import (
    DEFAULT_NETWORK,
    MINI_SEGMENTER_FILE,
    body_state,
    build_network,
    load_network,
    normalise,
    save_network,
)


@pytest.mark.parametrize("name", [DEFAULT_NETWORK, "Unet/resnet18", "FPN/mobilenet_v2", "Segformer/mit_b0"])
def test_logits_have_the_images_size_and_features_are_the_deepest(name):
    network = build_network(name, 7).eval()
    with torch.inference_mode():
        logits, features = network(torch.randn(1, 3, 64, 96))
    assert logits.shape == (1, 7, 64, 96)
    assert features.shape[1] == network.encoder.out_channels[-1]
    assert features.shape[2] < 8


@pytest.mark.parametrize("name", ["Unet", "NoSuch/resnet18", "Unet/no_such_encoder"])
def test_unknown_networks_are_named(name):
    with pytest.raises(ValueError, match=name):
        build_network(name, 3)


def test_saved_network_is_the_same_again(tmp_path):
    network = build_network(DEFAULT_NETWORK, 4).eval()
    save_network(network, tmp_path / "network")
    again = load_network(tmp_path / "network")
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(network(x)[0], again(x)[0])
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        load_network(tmp_path / "nothing_here")


def test_any_network_returns_the_output_of_one_of_its_parts_as_features():
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(8, 5, 1), nn.Upsample(scale_factor=2))
    model = nn.Sequential(encoder, head)
    network, x = OwnNetwork(model, "0", head="1"), torch.randn(2, 3, 32, 64)
    logits, features = network(x)
    assert torch.equal(logits, model(x)) and torch.equal(features, encoder(x))
    assert network.head is head and OwnNetwork(model, "0").head is None
    assert not encoder._forward_hooks, "the model is left as it was"
    with pytest.raises(ValueError, match=r"no part 'layer4'.*'0.1'"):
        OwnNetwork(model, "layer4")


def test_normalise_takes_bytes_and_floats():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    from_bytes = normalise(torch.from_numpy(images))
    from_floats = normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(from_bytes, from_floats)
    assert from_bytes[0, 0, 0, 0].item() == pytest.approx((images[0, 0, 0, 0] / 255 - 0.485) / 0.229, rel=1e-5)


def test_shipped_segmenter_fits_the_default_network():
    assert MINI_SEGMENTER_FILE.stat().st_size < 5e6
    torch.manual_seed(0)
    random = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes)
    torch.manual_seed(0)
    trained = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini")
    new, old = trained.state_dict(), random.state_dict()
    same = [name for name, value in old.items() if value.ndim == 4 and torch.equal(value, new[name])]
    assert same == ["model.segmentation_head.0.weight"], "encoder and decoder are pretrained, the head is new"


def test_weights_of_the_encoder_alone_leave_the_decoder_new(tmp_path):
    donor = build_network(DEFAULT_NETWORK, 3)
    save_file({name: value for name, value in body_state(donor).items() if name.startswith("encoder.")}, tmp_path / "e")
    network = build_network(DEFAULT_NETWORK, 5, tmp_path / "e")
    ours, theirs = body_state(network), body_state(donor)
    same = {name.split(".")[0] for name in ours if ours[name].ndim == 4 and torch.equal(ours[name], theirs[name])}
    assert same == {"encoder"}


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"other.safetensors.*do not fit"):
        build_network(DEFAULT_NETWORK, 3, file)
    with pytest.raises(FileNotFoundError, match=r"missing.safetensors"):
        build_network(DEFAULT_NETWORK, 3, tmp_path / "missing.safetensors")


def test_a_network_keeps_the_label_set_that_it_was_trained_on(tmp_path):
    network = build_network("Unet/resnet18", CAMVID.num_classes)
    network.label_set = CAMVID
    save_network(network, tmp_path / "new")
    assert load_network(tmp_path / "new").label_set == CAMVID
    network.label_set = None
    save_network(network, tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "network.json").read_text())
    del settings["label_set"]
    (tmp_path / "old" / "network.json").write_text(json.dumps(settings))
    assert load_network(tmp_path / "old").label_set is None, "files from before label sets were kept"


SETTINGS = {"name": "Unet/resnet18", "num_classes": 11, "arguments": {}, "void_output": False, "label_set": None}


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[]",
        "{}",
        "7",
        json.dumps(SETTINGS | {"name": 7}),
        json.dumps(SETTINGS | {"name": "Unet/mystery"}),
        json.dumps(SETTINGS | {"num_classes": "many"}),
        json.dumps(SETTINGS | {"arguments": []}),
        json.dumps(SETTINGS | {"weights": "imagenet"}),
        json.dumps(SETTINGS | {"label_set": "camvid"}),
        json.dumps(SETTINGS | {"label_set": {"names": ["a"]}}),
        json.dumps(SETTINGS | {"label_set": CITYSCAPES.to_dict()}),
    ],
)
def test_settings_that_describe_no_network_are_one_line(tmp_path, settings):
    save_network(build_network("Unet/resnet18", 11), tmp_path / "network")
    file = tmp_path / "network" / "network.json"
    file.write_text(settings)
    with pytest.raises(ValueError, match=r"again") as caught:
        load_network(tmp_path / "network")
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_weights_that_are_damaged_or_another_networks_are_one_line(tmp_path):
    save_network(build_network("Unet/resnet18", 11), tmp_path / "network")
    file = tmp_path / "network" / "model.safetensors"
    whole = file.read_bytes()
    save_network(build_network("Unet/resnet18", 19), tmp_path / "other")
    for content in (whole[:-1000], b"", b"text", (tmp_path / "other" / "model.safetensors").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="train the network again") as caught:
            load_network(tmp_path / "network")
        assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: no such file; train the network again"):
        load_network(tmp_path / "network")


def test_weights_to_start_from_that_are_damaged_are_one_line(tmp_path):
    for name, content in (("a.safetensors", b"text"), ("b.pth", b"text"), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="copy it again"):
            build_network("Unet/resnet18", 5, tmp_path / name)
    torch.save([1], tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"d.pth: found no tensors by name"):
        build_network("Unet/resnet18", 5, tmp_path / "d.pth")
