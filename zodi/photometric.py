"""The baseline without diffusion: colour and weather operations that anyone could write for a domain.

Only the image is used, neither labels nor depth; fog grows towards a guessed horizon instead.
"""

import kornia
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HORIZON = 0.42  # share of the image's height, the usual place in driving images


def photometric(image: np.ndarray, domain: str, generator: torch.Generator) -> np.ndarray:
    """An image changed by hand-made operations towards `domain`.

    Args:
        image: uint8 (H, W, 3).
        domain: one of `OPERATIONS`.
        generator: determines strengths, noise, drops and flakes.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: for an unknown domain; names the known ones.
    """
    if domain not in OPERATIONS:
        raise ValueError(f"photometric transfer has no domain {domain!r}; expected one of {list(OPERATIONS)}")
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    y = OPERATIONS[domain](x, generator).clamp(0, 1)
    return (y[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _tint(x: Tensor, red: float, green: float, blue: float) -> Tensor:
    return x * torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def _nearness_to_horizon(x: Tensor) -> Tensor:
    """1 at and above the horizon, falling to 0 at the lower edge; (1, 1, H, 1)."""
    rows = torch.linspace(0, 1, x.shape[2])
    return (1 - (rows - HORIZON) / (1 - HORIZON)).clamp(0, 1).view(1, 1, -1, 1)


def _clear(x: Tensor, generator: torch.Generator) -> Tensor:
    return kornia.enhance.adjust_brightness_accumulative(x, _uniform(0.9, 1.1, generator))


def _night(x: Tensor, generator: torch.Generator) -> Tensor:
    dark = kornia.enhance.adjust_gamma(x, _uniform(1.4, 2.0, generator)) * _uniform(0.15, 0.3, generator)
    dark = kornia.enhance.adjust_saturation(dark, 0.7)
    return _tint(dark, 0.9, 0.95, 1.2) + 0.015 * torch.randn(x.shape, generator=generator)


def _dusk(x: Tensor, generator: torch.Generator) -> Tensor:
    dim = kornia.enhance.adjust_gamma(x, _uniform(1.1, 1.5, generator)) * _uniform(0.45, 0.75, generator)
    return _tint(dim, 1.08, 0.97, 0.92) + 0.01 * torch.randn(x.shape, generator=generator)


def _fog(x: Tensor, generator: torch.Generator) -> Tensor:
    veil = _nearness_to_horizon(x) ** 1.5 * _uniform(0.75, 0.95, generator)
    muted = kornia.enhance.adjust_saturation(x, 0.6)
    return muted * (1 - veil) + 0.72 * veil


def _strokes(x: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Mask (1, 1, H, W) of `count` vertical strokes, softened."""
    height, width = x.shape[2:]
    mask = torch.zeros(1, 1, height, width)
    places = torch.rand(count, 2, generator=generator)
    for row, column in zip((places[:, 0] * height).long(), (places[:, 1] * width).long(), strict=True):
        mask[0, 0, row : row + length, column] = 1
    return kornia.filters.gaussian_blur2d(mask, (3, 3), (0.6, 0.6), border_type="replicate")


def _rain(x: Tensor, generator: torch.Generator) -> Tensor:
    dim = kornia.enhance.adjust_saturation(x, 0.5) * _uniform(0.45, 0.65, generator)
    streaks = _strokes(x, x.shape[3] // 2, max(2, x.shape[2] // 12), generator)
    return _tint(dim, 0.95, 1.0, 1.06) + 0.2 * streaks


def _snow(x: Tensor, generator: torch.Generator) -> Tensor:
    pale = kornia.enhance.adjust_saturation(x, 0.5) * 0.65 + 0.25
    ground = (1 - _nearness_to_horizon(x)).clamp(max=0.6) + 0.35 * (
        torch.arange(x.shape[2]) > HORIZON * x.shape[2]
    ).view(1, 1, -1, 1)
    patches = F.interpolate(
        torch.rand(1, 1, 8, 16, generator=generator), x.shape[2:], mode="bicubic", align_corners=False
    ).clamp(0, 1)
    cover = (ground * patches * 1.2).clamp(0, 0.85)
    flakes = _strokes(x, x.shape[3], 1, generator)
    return pale * (1 - cover) + 0.88 * cover + 0.6 * flakes


def _game(x: Tensor, generator: torch.Generator) -> Tensor:
    vivid = kornia.enhance.adjust_saturation(x, _uniform(1.8, 2.4, generator))
    flat = kornia.filters.median_blur(kornia.enhance.posterize(vivid.clamp(0, 1), 3), (3, 3))
    edges = kornia.filters.sobel(kornia.color.rgb_to_grayscale(x))
    return flat * (1 - (edges > 0.12).float() * 0.8)


OPERATIONS = {
    "clear": _clear,
    "night": _night,
    "dusk": _dusk,
    "fog": _fog,
    "rain": _rain,
    "snow": _snow,
    "game": _game,
}
