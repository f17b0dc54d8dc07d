import numpy as np
import pytest
import torch

from zodi.miniature.scenes import render
from zodi.photometric import OPERATIONS, photometric


@pytest.fixture(scope="module")
def image():
    return render(200_000).image


@pytest.mark.parametrize("domain", list(OPERATIONS))
def test_same_seed_same_result_other_seed_other_result(image, domain):
    results = [photometric(image, domain, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert results[0].shape == image.shape and results[0].dtype == np.uint8
    assert np.array_equal(results[0], results[1])
    assert domain == "game" or not np.array_equal(results[0], results[2])


def test_operations_go_the_right_way(image):
    result = {name: photometric(image, name, torch.Generator().manual_seed(0)).astype(float) for name in OPERATIONS}

    def saturation(x):
        return (x.max(2) - x.min(2)).mean()

    assert result["night"].mean() < 0.4 * image.mean()
    assert result["snow"].mean() > image.mean()
    assert result["fog"].std() < 0.8 * image.std()
    assert saturation(result["rain"]) < saturation(image.astype(float)) < saturation(result["game"])


def test_unknown_domain_is_named(image):
    with pytest.raises(ValueError, match=r"'desert'.*night"):
        photometric(image, "desert", torch.Generator())
