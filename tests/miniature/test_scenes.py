import numpy as np
import pytest

from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.miniature.weather import SHADERS, shade

SKY, ROAD = CITYSCAPES.names.index("sky"), CITYSCAPES.names.index("road")


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = scenes.render(7, "night"), scenes.render(7, "night"), scenes.render(8, "night")
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert not np.array_equal(first.label, other.label)


def test_scene_does_not_depend_on_what_was_rendered_before():
    alone = scenes.render(11, "rain").image
    scenes.render(3, "snow")
    assert np.array_equal(alone, scenes.render(11, "rain").image)


# Recorded once; a tolerance, because rounding in Pillow and numpy may differ by platform.
@pytest.mark.parametrize(
    ("domain", "mean"),
    [("clear", 111.59), ("night", 39.99), ("snow", 155.85), ("rain", 60.26), ("fog", 120.82), ("game", 100.79)],
)
def test_recorded_mean_of_scene_0(domain, mean):
    assert scenes.render(0, domain).image.mean() == pytest.approx(mean, abs=0.5)


def test_recorded_label_shares_of_scene_0():
    label = scenes.render(0).label
    shares = {name: (label == index).mean() for index, name in enumerate(CITYSCAPES.names)}
    assert shares["road"] == pytest.approx(0.489, abs=0.01)
    assert shares["sky"] == pytest.approx(0.086, abs=0.01)


@pytest.mark.parametrize("domain", list(SHADERS))
def test_every_domain_shows_the_same_layout(domain):
    scene, clear = scenes.render(5, domain), scenes.render(5)
    assert scene.image.shape == (96, 192, 3) and scene.image.dtype == np.uint8
    assert scene.label.dtype == np.uint8 and scene.depth.dtype == np.float32
    assert np.array_equal(scene.label, clear.label) and np.array_equal(scene.depth, clear.depth)


def test_domains_look_as_they_are_called():
    layers = [scenes.build(seed) for seed in range(8)]
    mean = {domain: np.mean([shade(each, domain, i).mean() for i, each in enumerate(layers)]) for domain in SHADERS}
    assert mean["night"] < 0.35 * mean["clear"]
    assert mean["rain"] < 0.7 * mean["clear"]
    assert mean["snow"] > 1.1 * mean["clear"]


def test_fog_hides_what_is_far():
    layers = scenes.build(2)
    image = shade(layers, "fog", 2).astype(float)
    far, near = layers.depth > 80, layers.depth < 8
    assert image[far].std() < 0.6 * image[near].std()


def test_most_classes_occur_and_depth_fits_the_labels():
    seen = set()
    for seed in range(60):
        layers = scenes.build(seed)
        seen |= set(np.unique(layers.label))
        assert (layers.depth[layers.label == SKY] == scenes.FAR).all()
        assert layers.depth.min() > 0.5
    assert len(seen) >= 17


def test_ground_depth_follows_the_pinhole_camera():
    layers = scenes.build(4)
    column = layers.depth[:, 96]
    rows = np.flatnonzero(layers.label[:, 96] == ROAD)
    product = column[rows] * (rows - layers.horizon)
    assert product.std() / product.mean() < 0.05


def test_any_size():
    small, large = scenes.render(1, height=64, width=96), scenes.render(1, height=128, width=256)
    assert small.image.shape == (64, 96, 3) and large.image.shape == (128, 256, 3)


def test_seed_ranges_are_disjoint():
    ranges = [scenes.PRETRAIN_SEEDS, scenes.TRAIN_SEEDS, scenes.TEST_SEEDS]
    assert sum(map(len, ranges)) == len(set().union(*ranges))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="'desert'"):
        scenes.render(0, "desert")
    with pytest.raises(ValueError, match="seed -1"):
        scenes.render(-1)
    with pytest.raises(ValueError, match="4x192"):
        scenes.render(0, height=4)
