"""The paper's networks: the published sizes, the interface of all networks, and ImageNet weights from a file."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from zodi.networks.paper import PAPER_NETWORKS
from zodi.segmentation import build_network, load_network, save_network


@pytest.mark.parametrize(
    ("name", "million_parameters", "gmac"),
    [("PaperDeepLabV3Plus/resnet50", 39.76, 41.6), ("PaperRefineNet/resnet50", 99.06, 286.6)],
)
def test_parameters_and_operations_are_the_papers(name, million_parameters, gmac):
    with torch.device("meta"):
        network = build_network(name, 19, void_output=True).eval()
        x = torch.empty(1, 3, 384, 768)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(million_parameters, abs=0.005)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits, features = network(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05)
    assert logits.shape == (1, 19, 384, 768) and features.shape == (1, 2048, 12, 24)


@pytest.mark.parametrize("architecture", PAPER_NETWORKS)
def test_gradients_reach_every_part_and_the_network_is_saved_and_read(architecture, tmp_path):
    network = build_network(f"{architecture}/resnet18", 5)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits, features = network.train()(x)
    (logits.square().mean() + features.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    save_network(network, tmp_path / "network")
    again = load_network(tmp_path / "network")
    with torch.inference_mode():
        assert torch.equal(network.eval()(x)[0], again(x)[0])


def test_torchvisions_file_goes_into_the_encoder(tmp_path):
    torch.manual_seed(0)
    trained = torchvision.models.resnet18()
    torch.save(trained.state_dict(), tmp_path / "resnet18.pth")
    network = build_network("PaperDeepLabV3Plus/resnet18", 5, tmp_path / "resnet18.pth")
    encoder = network.encoder.state_dict()
    expected = {name: value for name, value in trained.state_dict().items() if not name.startswith("fc.")}
    assert encoder.keys() == expected.keys()
    assert all(torch.equal(encoder[name], value) for name, value in expected.items())


def test_an_older_file_without_counters_is_read_and_one_without_weights_is_not(tmp_path):
    trained = torchvision.models.resnet18().state_dict()
    older = {name: value for name, value in trained.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "older.pth")
    network = build_network("PaperDeepLabV3Plus/resnet18", 5, tmp_path / "older.pth")
    assert torch.equal(network.encoder.conv1.weight, trained["conv1.weight"])
    del older["conv1.weight"]
    torch.save(older, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"1 tensors do not fit .*encoder\.conv1\.weight"):
        build_network("PaperDeepLabV3Plus/resnet18", 5, tmp_path / "broken.pth")


def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        build_network("PaperDeepLabV3Plus/resnet18", 5, tmp_path / "module.pth")


def test_imagenet_weights_of_other_encoders_are_an_error():
    with pytest.raises(ValueError, match="resnet50"):
        build_network("PaperDeepLabV3Plus/resnet18", 5, "imagenet")
