"""What the method asks of a device, on one that is made up: it has no float64, like "mps", and draws no noise.

torch's "meta" device computes shapes and types of everything and the values of nothing.
"""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zodi import adaptation, diffusion, transfer
from zodi.datasets import Sample
from zodi.generators import interface
from zodi.segmentation import build_network, normalise
from zodi.support import checkpoints

RANDOM = ("rand", "normal", "uniform", "bernoulli", "multinomial")
# "vae_round_trip" has no noise and "photometric" no networks.
METHODS = [method for method in transfer.METHODS if method not in transfer.WITHOUT_DIFFUSION]


class Card(TorchDispatchMode):
    """Refuses every operation that leaves float64 or random numbers on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, f"{function}: float64 on the device"
                assert not any(word in str(function) for word in RANDOM), f"{function}: drawn on the device"
        return result


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.ones(2, dtype=torch.float64).to("meta"),
        lambda: torch.from_numpy(np.ones(2)).to("meta"),
        lambda: torch.ones(2, device="meta").double(),
        lambda: torch.randn(2, device="meta"),
        lambda: torch.empty(2, device="meta").uniform_(),
    ],
)
def test_the_card_refuses_what_it_should(wrong):
    with Card(), pytest.raises(AssertionError, match="on the device"):
        wrong()


def on_card(model):
    return replace(model, **{name: checkpoints.placed(part, "meta") for name, part in model.networks().items()})


def transferred(monkeypatch, model, **changes) -> torch.Tensor:
    """Latents on the card of a transfer of two images."""
    decoded = []
    # Values that are not there can be neither checked nor shown.
    monkeypatch.setattr(interface, "finite", lambda values, *_: values)
    monkeypatch.setattr(
        transfer, "decode", lambda model, z: decoded.append(z) or torch.zeros((len(z), 16, 32, 3), dtype=torch.uint8)
    )
    config = transfer.prompt_config("at night", model.defaults, num_inference_steps=4, **changes)
    images = list(np.zeros((2, 16, 32, 3), np.uint8))
    with Card():
        transfer.transfer_images(on_card(model), images, images, ["a", "b"], config)
    (z,) = decoded
    return z


@pytest.mark.parametrize("noise", transfer.NOISE_CHOICES)
@pytest.mark.parametrize("method", METHODS)
def test_a_transfer(monkeypatch, method, noise):
    model = tiny.instruct_pix2pix() if method == "instruct_pix2pix" else tiny.mini()
    model = replace(model, defaults=tiny.MINI_DEFAULTS)
    z = transferred(monkeypatch, model, method=method, noise=noise)
    assert z.device.type == "meta" and z.dtype == torch.float32


# FLUX.1's positions are float64 but where diffusers knows by name that a device has none ("mps").
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "flux"])
def test_a_transfer_with_another_family(monkeypatch, family):
    z = transferred(monkeypatch, getattr(tiny, family)())
    assert z.device.type == "meta" and z.dtype == torch.float32


def test_decoding(monkeypatch):
    monkeypatch.setattr(interface, "finite", lambda values, *_: values)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
    with Card():
        images = diffusion.decode(on_card(tiny.mini()), torch.zeros(1, 4, 4, 8))
    assert images.shape == (1, 16, 32, 3) and images.dtype == torch.uint8


def test_a_step_of_a_training(monkeypatch):
    # "meta" has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    recipe = adaptation.recipe("mini", network="Unet/resnet18", weights=None, optimizer="sgd", crop=(32, 32))
    samples = [Sample(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8), key) for key in "abcd"]

    class Data(list):
        @property
        def keys(self):
            return [sample.key for sample in self]

    data = Data(samples)
    batches = adaptation.cut_batches(0, data, data, {key: i for i, key in enumerate(data.keys)}, recipe)
    network = build_network(recipe.network, 19, None).to("meta")
    optimizer = adaptation.build_optimizer(network, recipe)
    with Card():
        pairs = [adaptation.augment(batch.to("meta"), recipe) for batch in batches]
        terms = adaptation.optimisation_step(network, optimizer, *pairs, recipe)
    assert {value.device.type for value in terms.values()} == {"meta"} and {*terms} >= {"similarity", "loss"}


def test_the_colours_stay_numbers():
    batch = adaptation.Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.ones(2, 4, dtype=torch.float64))
    moved = batch.to("meta")
    assert [part.device.type for part in moved] == ["meta", "meta", "cpu"]
    assert moved.jitter.dtype == torch.float64, "so that a result does not depend on the device"


@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("cuda:1", True), ("mps", False), ("cpu", False)])
def test_a_copy_is_waited_for_but_on_cuda(device, expected):
    found = []

    class Part:
        def to(self, device, non_blocking):
            found.append(non_blocking)

    adaptation.Batch(Part(), Part(), Part()).to(device)
    assert found == [expected, expected]


def test_images_to_segment():
    with Card():
        x = normalise(torch.zeros((1, 8, 8, 3), dtype=torch.uint8).to("meta"))
    assert x.device.type == "meta" and x.dtype == torch.float32
