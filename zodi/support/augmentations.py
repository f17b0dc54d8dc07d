"""Plain augmentation, by libraries: what a method that redraws images has to beat.

Only operations that leave every pixel where it is are used, because the label map stays as it is. torchvision's
policies would also shear, shift and rotate, and change images alone; those operations are taken out of them.
"""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def _colours(space: dict) -> dict:
    return {name: operation for name, operation in space.items() if name not in GEOMETRIC}


class ColourRandAugment(v2.RandAugment):
    """RandAugment (Cubuk et al., NeurIPS 2020): two of nine operations on colour, magnitude 9 of 30."""

    _AUGMENTATION_SPACE = _colours(v2.RandAugment._AUGMENTATION_SPACE)


class ColourAugMix(v2.AugMix):
    """AugMix (Hendrycks et al., ICLR 2020), a mixture of three chains of operations on colour; without its loss."""

    _PARTIAL_AUGMENTATION_SPACE = _colours(v2.AugMix._PARTIAL_AUGMENTATION_SPACE)
    _AUGMENTATION_SPACE = _colours(v2.AugMix._AUGMENTATION_SPACE)


class Weather(nn.Module):
    """One or two of kornia's operations for rain, snow, fog, brightness and darkness, drawn at random.

    Fog lowers colour and contrast under a gradient of light; darkness raises gamma and dims the light. The ranges are
    wide and not tuned to any domain.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W), all changed by the same operations."""
        height, width = images.shape[2:]
        drops = (height * width // 200, height * width // 60)
        fog = (
            K.RandomSaturation((0.2, 0.7), p=1),
            K.RandomContrast((0.3, 0.7), p=1),
            K.RandomLinearIllumination((0.3, 0.6), (1, 1), p=1),
        )
        operations = K.ImageSequential(
            K.RandomRain(drops, (2, max(3, height // 12)), (-2, 2), p=1),
            K.RandomSnow((0.2, 0.6), (1.5, 3), p=1),
            K.ImageSequential(*fog),
            K.RandomBrightness((0.7, 1.4), p=1),
            K.ImageSequential(K.RandomGamma((1, 2), p=1), K.RandomContrast((0.15, 0.6), p=1)),
            random_apply=(1, 2),
        )
        return (operations(images.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)


AUGMENTATIONS: dict[str, Callable[[], nn.Module]] = {
    "randaugment": ColourRandAugment,
    "augmix": ColourAugMix,
    "weather": Weather,
}


def augmented(images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Images changed at random, each on its own.

    Args:
        images: uint8 (B, 3, H, W).
        name: a key of `AUGMENTATIONS`.
        generator: determines what is drawn. torchvision and kornia draw only from the global generator, which is seeded
            from this one for the duration and then restored.

    Returns:
        uint8 (B, 3, H, W).

    Raises:
        ValueError: for an unknown name; names the known ones.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation {name!r}: expected one of {list(AUGMENTATIONS)}")
    seed = int(torch.randint(2**62, (), generator=generator))
    transform = AUGMENTATIONS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([transform(image[None]) for image in images])
