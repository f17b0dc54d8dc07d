"""Plain augmentation: drawn from the generator alone, each image on its own, and no pixel leaves its place."""

import numpy as np
import pytest
import torch

from zodi.support.augmentations import AUGMENTATIONS, GEOMETRIC, ColourAugMix, ColourRandAugment, augmented


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 32, 64), generator=generator(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_alone_rules_what_is_drawn(name, images):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- whether the libraries listen to it is what is tested
    before = torch.get_rng_state()
    first = augmented(images, name, generator(0))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(augmented(images, name, generator(0)), first)
    assert not torch.equal(augmented(images, name, generator(1)), first)
    assert first.shape == images.shape and first.dtype == torch.uint8


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_gets_operations_of_its_own(name, images):
    same = images[:1].repeat(8, 1, 1, 1)
    results = augmented(same, name, generator(0))
    assert len({image.numpy().tobytes() for image in results}) > 4


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_pixel_leaves_its_place(name):
    edge = torch.full((1, 3, 32, 64), 60, dtype=torch.uint8)
    edge[..., 40:] = 160
    results = augmented(edge.repeat(60, 1, 1, 1), name, generator(0)).float()
    jumps = results.mean((1, 2)).diff(dim=1).abs()
    visible = jumps.amax(1) > 10
    assert visible.sum() > 40
    # Sharpening blurs over one pixel.
    assert ((jumps.argmax(1)[visible] - 39).abs() <= 1).all()


def test_the_policies_are_torchvisions_without_what_moves_pixels():
    for policy, count in ((ColourRandAugment, 9), (ColourAugMix, 8)):
        names = {*policy._AUGMENTATION_SPACE}
        assert names == {*policy.__base__._AUGMENTATION_SPACE} - {*GEOMETRIC} and len(names) == count
    assert {*ColourAugMix._PARTIAL_AUGMENTATION_SPACE}.isdisjoint(GEOMETRIC)


def test_an_unknown_name_is_told(images):
    with pytest.raises(ValueError, match=r"'mixup'.*randaugment"):
        augmented(images, "mixup", generator(0))
