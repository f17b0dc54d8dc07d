"""What it takes to add a domain, a row, an ablation, a network: an entry in one table of one file."""

import numpy as np
import pytest
import tiny
import torch

from zodi import sampling
from zodi.adaptation import recipe
from zodi.domains import DOMAINS, Domain
from zodi.experiment import training_sets
from zodi.miniature.dataset import write_miniature
from zodi.networks.paper import PAPER_NETWORKS, paper_deeplabv3plus
from zodi.photometric import OPERATIONS
from zodi.rows import ABLATIONS, ROWS, Row
from zodi.segmentation import build_network
from zodi.studies import tables
from zodi.support import plots
from zodi.transfer import METHODS, domain_config, transfer_images


@pytest.fixture
def sandstorm(monkeypatch) -> Domain:
    domain = Domain("sandstorm", "driving in sand", 0.7)
    monkeypatch.setitem(DOMAINS, "sandstorm", domain)
    return domain


def test_a_domain_is_an_entry_in_domains(sandstorm):
    model = tiny.mini()
    config = domain_config("sandstorm", defaults=model.defaults, num_inference_steps=3)
    assert (config.prompt, config.strength) == ("driving in sand", 0.7)
    image, layout = np.full((16, 32, 3), 90, np.uint8), np.zeros((16, 32, 3), np.uint8)
    (result,) = transfer_images(model, [image], [layout], ["a"], config)
    assert result.shape == image.shape and not np.array_equal(result, image)
    figure = plots.domain_bars({"clear": 40.0, "sandstorm": 20.0})
    assert len(figure.axes[0].patches) == 2
    plots.plt.close(figure)


def test_the_baseline_without_diffusion_says_when_it_lacks_the_domain(sandstorm):
    config = domain_config("sandstorm", "photometric")
    with pytest.raises(ValueError, match="photometric transfer has no domain 'sandstorm'"):
        transfer_images(None, [np.zeros((8, 8, 3), np.uint8)], None, ["a"], config)
    assert set(OPERATIONS) == set(DOMAINS) - {"sandstorm"}


def test_a_row_is_an_entry_in_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(ABLATIONS, "fewer_steps", {"num_inference_steps": 5})
    row = Row("zodi_fast", "ZoDi, five steps", "fewer_steps", 0.05)
    monkeypatch.setitem(ROWS, row.name, row)
    assert domain_config("night", "fewer_steps").num_inference_steps == 5
    assert recipe("mini", "zodi_fast").similarity_weight == 0.05
    assert tables.label("zodi_fast") == "ZoDi, five steps"
    root = write_miniature(tmp_path / "data", 2, 1, ["night"], 32, 64, progress=False)
    sets = training_sets(row, root, "night", root / "train_night")
    assert (len(sets.first), len(sets.second)) == (2, 2)


def test_a_network_is_an_entry_in_networks(monkeypatch):
    monkeypatch.setitem(PAPER_NETWORKS, "Another", paper_deeplabv3plus)
    network = build_network("Another/resnet18", 19).eval()
    logits, features = network(torch.zeros(1, 3, 32, 64))
    assert logits.shape == (1, 19, 32, 64) and features.shape[1] == 512


def test_a_transfer_method_is_a_function_in_sampling(monkeypatch):
    def half_way(s: sampling.Sampler, z0: torch.Tensor) -> torch.Tensor:
        """Stop in the middle."""
        eps, *step_noise = s.noise
        z = sampling.add_noise(z0, eps, s.t_enc, s.scheduler)
        return sampling.denoise(s.predict, z, s.timesteps[:1], step_noise, s.scheduler, s.eta, s.callback)

    monkeypatch.setitem(sampling.SAMPLERS, "half_way", half_way)
    monkeypatch.setitem(METHODS, "half_way", half_way.__doc__)
    model = tiny.mini()
    image, layout = np.full((16, 32, 3), 90, np.uint8), np.zeros((16, 32, 3), np.uint8)
    config = domain_config("night", "half_way", model.defaults, num_inference_steps=6)
    (result,) = transfer_images(model, [image], [layout], ["a"], config)
    assert result.shape == image.shape and not np.array_equal(result, image)
    assert METHODS["sdedit"] == sampling.sdedit.__doc__
