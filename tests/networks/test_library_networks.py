"""Transformers of segmentation_models_pytorch by name, their recipe, and LoRA."""

import numpy as np
import pytest
import torch

from zodi.adaptation import TRANSFORMER_CONFIG, build_optimizer, recipe, train
from zodi.datasets import open_split
from zodi.miniature.dataset import write_miniature
from zodi.networks.optimizers import encoder_layers, learning_rate_at
from zodi.networks.own import OwnNetwork
from zodi.segmentation import build_network, load_network, save_network
from zodi.support.files import read_json

# A twentieth of the real width.
VIT = {
    "embed_dim": 48,
    "num_heads": 3,
    "decoder_intermediate_channels": (16, 16, 16, 16),
    "decoder_fusion_channels": 16,
}
# Name -> arguments, channels and stride of the deepest features, blocks of the encoder.
NETWORKS = {
    "Segformer/mit_b0": ({}, 256, 32, 8),
    "UPerNet/tu-convnext_atto": ({"decoder_channels": 16}, 320, 32, 12),
    "DPT/tu-vit_tiny_patch16_224": (VIT, 48, 16, 12),
    "DPT/tu-vit_small_patch14_dinov2": (VIT, 48, 16, 12),
    "DPT/tu-vit_small_patch16_dinov3": (VIT, 48, 16, 12),
}


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("data") / "mini", 2, 1, ["night"], 64, 96, progress=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_features_gradients_and_a_saved_network(name, tmp_path):
    arguments, channels, stride, _ = NETWORKS[name]
    network = build_network(name, 5, void_output=True, **arguments).train()
    for height, width in ((64, 96), (32, 64)):
        logits, features = network(images(height, width))
        assert logits.shape == (2, 6, height, width)
        assert features.shape == (2, channels, height // stride, width // stride)
    (logits.square().mean() + features.square().mean()).backward()
    with_gradient = [p for p in network.parameters() if p.grad is not None]
    assert all(p.grad.isfinite().all() for p in with_gradient)
    # A backbone's last norm may have no part in its features.
    assert len(with_gradient) >= len(list(network.parameters())) - 4

    network.eval()
    save_network(network, tmp_path / "network")
    again = load_network(tmp_path / "network")
    with torch.inference_mode():
        assert network(images())[0].shape == (2, 5, 64, 96)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(network(images()), again(images()), strict=True))


@pytest.mark.parametrize("size", range(6))
def test_every_size_of_segformer_is_known(size):
    network = build_network(f"Segformer/mit_b{size}", 19).eval()
    with torch.inference_mode():
        logits, features = network(torch.zeros(1, 3, 64, 128))
    assert logits.shape == (1, 19, 64, 128) and features.shape == (1, 512 if size else 256, 2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UPerNet/tu-vit_tiny_patch16_224", "features of one size only; choose DPT"),
        ("Segformer/tu-vit_small_patch14_dinov2", "features of one size only; choose DPT"),
        ("DPT/resnet18", "Only Timm encoders"),
        ("UPerNet/tu-nothing", "Unknown model"),
        ("DPT/tu-nothing", "Unknown model"),
        ("Segfomer/mit_b0", "expected ARCHITECTURE/ENCODER .* or hf:FOLDER"),
    ],
)
def test_a_name_that_cannot_be_built_is_one_line(name, message):
    with pytest.raises(ValueError, match=rf"network '{name}': .*{message}") as caught:
        build_network(name, 5)
    assert "\n" not in str(caught.value)


def test_an_encoder_for_images_of_one_size_says_so_and_is_built_for_another():
    with pytest.raises(ValueError, match=r"cannot take images of 64 x 96 pixels .*img_size"):
        build_network("UPerNet/tu-swin_tiny_patch4_window7_224", 5)(images())
    network = build_network("UPerNet/tu-swin_tiny_patch4_window7_224", 5, img_size=(64, 96), decoder_channels=16)
    assert network(images())[0].shape == (2, 5, 64, 96)


@pytest.mark.parametrize("name", ["Segformer/mit_b0", "UPerNet/tu-convnext_atto.d2_in1k"])
def test_pretrained_weights_that_are_not_here_are_one_line(name, monkeypatch):
    def nothing(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("segmentation_models_pytorch.create_model", nothing)
    with pytest.raises(FileNotFoundError, match=rf"network '{name}': the weights of its encoder .*weights=None"):
        build_network(name, 5, "imagenet")


# ---------------------------------------------------------------- recipe


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_of_an_encoder_are_its_blocks_in_order(name):
    arguments, *_, blocks = NETWORKS[name]
    encoder = build_network(name, 5, **arguments).encoder
    layers = encoder_layers(encoder)
    assert {*layers} == {name for name, _ in encoder.named_parameters()}
    assert {*layers.values()} == {*range(blocks + 1)}
    embedding = next(name for name in layers if "embed" in name or "stem" in name)
    assert layers[embedding] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_has_one_rate_that_falls_with_the_depth(name):
    arguments, *_, blocks = NETWORKS[name]
    network = build_network(name, 5, **arguments)
    optimizer = build_optimizer(network, recipe("transformer", network=name))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert {*groups} == {id(p) for p in network.parameters()}
    layers = encoder_layers(network.encoder)
    for part, parameter in network.encoder.named_parameters():
        assert groups[id(parameter)]["factor"] == pytest.approx(0.1 * 0.9 ** (blocks - layers[part]))
    for part, parameter in network.named_parameters():
        plain = parameter.ndim < 2 or part.endswith(("pos_embed", "cls_token", "reg_token"))
        assert groups[id(parameter)]["weight_decay"] == (0 if plain else 0.01), part
        if ".encoder." not in part:
            assert groups[id(parameter)]["factor"] == 1


def test_the_learning_rate_rises_then_falls():
    config = recipe("transformer", steps=100, warmup=0.1)
    rates = [learning_rate_at(step, 1, config) for step in range(100)]
    assert rates[0] == pytest.approx(TRANSFORMER_CONFIG.learning_rate / 10)
    assert max(rates) == rates[9] == pytest.approx(TRANSFORMER_CONFIG.learning_rate * 0.91**0.9)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert len({*rates}) == 100
    without = recipe("transformer", steps=100, warmup=0.0)
    assert learning_rate_at(0, 1, without) == TRANSFORMER_CONFIG.learning_rate


def test_the_recipe_for_transformers_sees_as_many_images_as_the_papers():
    ours, paper = recipe("transformer"), recipe("paper")
    for field in ("steps", "batch_size", "crop", "similarity_weight", "jitter", "hue"):
        assert getattr(ours, field) == getattr(paper, field)
    assert (ours.optimizer, ours.network, ours.weights) == ("adamw", "Segformer/mit_b5", "imagenet")


@pytest.mark.parametrize("changes", [{"warmup": 1.5}, {"layer_decay": 2.0}, {"layer_decay": -1.0}, {"lora_rank": -1}])
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        recipe("transformer", **changes)


def test_a_network_that_names_no_encoder_cannot_learn_layer_by_layer():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1))
    with pytest.raises(ValueError, match="layer_decay: the network names no encoder"):
        build_optimizer(OwnNetwork(model, "0"), recipe("transformer"))


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("name", ["Segformer/mit_b0"])
def test_adapters_change_nothing_at_first_and_only_they_and_the_head_learn(name, data, tmp_path):
    settings = {"steps": 3, "batch_size": 2, "crop": (32, 64), "weights": None, "learning_rate": 1e-2}
    config = recipe("transformer", network=name, lora_rank=2, **settings)
    source, target = open_split(data, "train"), open_split(data, "train_night")
    states = {}

    def keep(step, network):
        states[step] = {key: value.clone() for key, value in network.state_dict().items()}

    network, history = train(config, source, target, tmp_path / "run", callback=keep)
    assert np.isfinite(history.to_numpy()).all()
    encoder = {key for key in states[0] if ".encoder." in key}
    adapters = {key for key in encoder if ".lora_" in key}
    unchanged = {key for key in encoder if torch.equal(states[0][key], states[3][key])}
    assert unchanged == encoder - adapters, "frozen weights are the same to the bit, adapters are not"
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for key, p in network.named_parameters() if key in adapters or key not in encoder}
    assert sum(states[0][key].numel() for key in adapters) < sum(states[0][key].numel() for key in encoder) / 20

    save_network(network, tmp_path / "network")
    assert read_json(tmp_path / "network" / "network.json")["arguments"] == {"lora_rank": 2}
    again = load_network(tmp_path / "network")
    with torch.inference_mode():
        assert torch.equal(network(images())[0], again(images())[0])

    resumed, resumed_history = train(config, source, target, tmp_path / "run")
    assert resumed_history.equals(history)
    assert all(torch.equal(value, states[3][key]) for key, value in resumed.state_dict().items())


def test_a_network_with_adapters_begins_as_the_one_without():
    arguments = NETWORKS["DPT/tu-vit_small_patch16_dinov3"][0]
    torch.manual_seed(0)
    plain = build_network("DPT/tu-vit_small_patch16_dinov3", 5, **arguments).eval()
    torch.manual_seed(0)
    adapted = build_network("DPT/tu-vit_small_patch16_dinov3", 5, lora_rank=4, **arguments).eval()
    with torch.inference_mode():
        assert torch.equal(plain(images())[0], adapted(images())[0])
    frozen = [p for name, p in adapted.encoder.named_parameters() if "lora_" not in name]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in adapted.head.parameters())


@pytest.mark.parametrize(
    ("name", "found"), [("Unet/resnet18", "no linear layers"), ("Unet/mobileone_s0", "no linear layers")]
)
def test_adapters_need_a_transformer(name, found):
    with pytest.raises(ValueError, match=rf"lora_rank=4: found {found} in the encoder of '{name}'"):
        build_network(name, 5, lora_rank=4)
