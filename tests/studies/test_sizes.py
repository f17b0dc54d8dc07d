"""The generators at their published sizes: as many parameters as their authors say."""

import pytest

from zodi import diffusion
from zodi.studies import sizes


@pytest.fixture(scope="module")
def parameters():
    return sizes.parameters()


@pytest.mark.parametrize(
    ("name", "part", "published"),
    [
        ("Stable Diffusion 1.5", "unet", 0.86e9),
        ("Stable Diffusion XL", "unet", 2.6e9),
        ("Stable Diffusion XL", "text_encoder_2", 0.69e9),
        ("Stable Diffusion 3 medium", "transformer", 2.0e9),
        ("Stable Diffusion 3.5 large", "transformer", 8.1e9),
        ("Stable Diffusion 3.5 large", "text_encoder_3", 4.7e9),
        ("FLUX.1 dev", "transformer", 12e9),
    ],
)
def test_networks_have_the_published_number_of_parameters(parameters, name, part, published):
    assert parameters.loc[name, part] == pytest.approx(published, rel=0.03)


def test_controlnets_are_smaller_than_what_they_steer(parameters):
    denoisers = parameters["unet"].fillna(parameters["transformer"])
    assert (parameters["controlnet"] < 0.6 * denoisers).all()


def test_the_miniature_is_counted_as_it_is(parameters):
    assert parameters.loc["miniature", "unet"] == sum(p.numel() for p in diffusion.load().unet.parameters())
    assert parameters.loc["miniature"].isna().sum() == 3


def test_memory_adds_up(parameters, monkeypatch):
    monkeypatch.setattr(sizes, "parameters", lambda: parameters)
    table = sizes.memory()
    assert table["together"].to_numpy() == pytest.approx(2e-9 * parameters.sum(axis=1).to_numpy())
    assert table["together"].is_monotonic_increasing and (table["card"] > table["together"]).all()
    assert (table["together_float32"] == 2 * table["together"]).all()
