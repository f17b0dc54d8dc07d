"""Six ways to light the same scene: each shader turns `Layers` into an image.

The shaders are the truth of the miniature's domains. They use what a photograph does not provide: depth, lights and the
surfaces that face the sky. `zodi.photometric` is the baseline that has to do without.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zodi.labels import CITYSCAPES

SKY = CITYSCAPES.names.index("sky")
ROAD = CITYSCAPES.names.index("road")
VEGETATION = CITYSCAPES.names.index("vegetation")


@dataclass(frozen=True)
class Layers:
    """What a scene is made of before the weather is added.

    Attributes:
        albedo: float32 (H, W, 3), 0 .. 1, surface colour.
        label: uint8 (H, W), train ids.
        depth: float32 (H, W), metres; the sky has the largest value.
        lights: float32 (H, W, 3), 0 .. 1, what emits light at night.
        up: float32 (H, W), 0 .. 1, how much snow stays on the surface.
        horizon: row of the horizon, pixels.
    """

    albedo: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    lights: np.ndarray
    up: np.ndarray
    horizon: float


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Noise float32 (H, W) in 0 .. 1 that varies over about `cells` cells across the image."""
    grid = rng.random((max(2, cells * shape[0] // shape[1]), cells)).astype(np.float32)
    image = Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a float32 (H, W, 3) image in 0 .. 1."""
    eight_bit = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(eight_bit.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance (H, W) of an RGB image (H, W, 3), in the image's units (ITU-R BT.601)."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def _drops(
    rng: np.random.Generator, shape: tuple[int, int], count: int, length: float, slant: float, width: int
) -> np.ndarray:
    """A mask float32 (H, W) of short strokes: rain, or flakes when `length` is 0."""
    mask = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(mask)
    for u, v, size, value in rng.random((count, 4)):
        x, y = u * shape[1], v * shape[0]
        reach = length * (0.5 + size)
        shade = int(110 + 145 * value)
        if reach:
            draw.line((x, y, x + slant * reach, y + reach), fill=shade, width=width)
        else:
            radius = shape[0] / 96 * (0.3 + 0.7 * size * size)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
    return np.asarray(mask, np.float32) / 255


def clear(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Sunlight with a little haze far away."""
    haze = 1 - np.exp(-layers.depth / 400)[..., None]
    sunlit = layers.albedo * rng.uniform(0.95, 1.12)
    image = sunlit * (1 - haze) + np.array([0.75, 0.82, 0.9], np.float32) * haze
    return np.where((layers.label == SKY)[..., None], layers.albedo, image)


def night(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Darkness, headlights on the road ahead, lit windows and lamps with bloom, sensor noise."""
    height, width = layers.label.shape
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    across = (u - width / 2) / width
    beam = np.exp(-layers.depth / 14) * np.exp(-((across / 0.38) ** 2)) * np.clip((v - layers.horizon) / 6 + 1, 0, 1)
    ambient = np.array([0.2, 0.21, 0.28], np.float32) * rng.uniform(0.8, 1.3)
    image = layers.albedo * (ambient + 0.55 * beam[..., None] * np.array([1.0, 0.93, 0.78], np.float32))
    sky = np.array([0.018, 0.02, 0.05], np.float32) * (1 + v / height)[..., None]
    image = np.where((layers.label == SKY)[..., None], sky, image)
    glow = _blur(layers.lights, height / 48) * 0.55 + _blur(layers.lights, height / 12) * 0.5
    image = image + layers.lights * 0.9 + glow
    return image + rng.normal(0, 0.002, image.shape)


def fog(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """A grey veil that grows with depth (Koschmieder's law)."""
    visibility = rng.uniform(13, 24)
    transmission = np.exp(-layers.depth / visibility)[..., None]
    veil = np.array([0.71, 0.73, 0.745], np.float32) * rng.uniform(0.95, 1.05)
    muted = layers.albedo * 0.55 + grey(layers.albedo)[..., None] * 0.25
    return muted * transmission + veil * (1 - transmission)


def rain(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Overcast and dark, a wet road that mirrors what is above it, streaks."""
    height, width = layers.label.shape
    image = (layers.albedo * 0.45 + grey(layers.albedo)[..., None] * 0.2) * rng.uniform(0.6, 0.75)
    image = image * np.array([0.92, 0.97, 1.06], np.float32)
    clouds = 0.30 + 0.12 * _smooth_noise(rng, (height, width), 8)
    image = np.where((layers.label == SKY)[..., None], clouds[..., None] * np.array([0.95, 1.0, 1.06]), image)
    mist = (1 - np.exp(-layers.depth / 70))[..., None]
    image = image * (1 - mist) + np.array([0.33, 0.35, 0.38]) * mist
    mirror_row = np.clip(2 * round(layers.horizon) - np.arange(height), 0, height - 1)
    wet = (layers.label == ROAD) * (0.25 + 0.45 * _smooth_noise(rng, (height, width), 10))
    mirrored = _blur((image + layers.lights * 0.25)[mirror_row], height / 60)
    image = image * (1 - wet[..., None]) * 0.95 + mirrored * wet[..., None]
    streaks = _drops(rng, (height, width), 30, height * 0.09, rng.uniform(-0.3, 0.3), 1)[..., None]
    return image * (1 - 0.3 * streaks) + 0.6 * 0.3 * streaks


def snow(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """White ground and roofs, powdered trees, a pale sky, flakes."""
    height, width = layers.label.shape
    base = layers.albedo * 0.6 + grey(layers.albedo)[..., None] * 0.25
    patches = _smooth_noise(rng, (height, width), 24)
    cover = layers.up * np.clip(0.75 + 0.5 * (patches - 0.4), 0, 1)
    cover = np.where(layers.label == VEGETATION, np.clip(layers.up + 0.25, 0, 1) * (patches > 0.45) * 0.85, cover)
    white = np.array([0.86, 0.88, 0.92], np.float32) * rng.uniform(0.95, 1.03)
    image = base * (1 - cover[..., None]) + white * cover[..., None]
    veil = (1 - np.exp(-layers.depth / 60))[..., None]
    pale = np.array([0.76, 0.78, 0.82], np.float32)
    image = image * (1 - veil) + pale * veil
    flakes = _drops(rng, (height, width), 110, 0, 0, 1)[..., None]
    return image * (1 - 0.8 * flakes) + 0.97 * 0.8 * flakes


def game(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Saturated flat colours, dark outlines and a painted sky, as in a game's graphics."""
    height, width = layers.label.shape
    muted = grey(layers.albedo)[..., None]
    vivid = np.clip(muted + (layers.albedo - muted) * 2.6, 0, 1)
    vivid = vivid * np.array([0.95, 1.05, 1.12]) * 0.9 + np.array([0.0, 0.05, 0.09])
    image = np.round(vivid * 5) / 5
    top, bottom = np.array([0.30, 0.12, 0.5]), np.array([0.98, 0.58, 0.35])
    if rng.random() < 0.5:
        top, bottom = np.array([0.05, 0.45, 0.6]), np.array([0.75, 0.9, 0.65])
    blend = np.clip(np.arange(height) / max(layers.horizon, 1), 0, 1)
    bands = np.round(blend * 6)[:, None, None] / 6
    sky = (top + (bottom - top) * bands) * np.ones((1, width, 1))
    image = np.where((layers.label == SKY)[..., None], sky, image)
    edges = np.zeros((height, width), bool)
    edges[:, 1:] |= layers.label[:, 1:] != layers.label[:, :-1]
    edges[1:] |= layers.label[1:] != layers.label[:-1]
    return np.where(edges[..., None], 0.06, image)


SHADERS = {"clear": clear, "night": night, "snow": snow, "rain": rain, "fog": fog, "game": game}


def shade(layers: Layers, domain: str, seed: int) -> np.ndarray:
    """The image uint8 (H, W, 3) of `layers` in `domain`; `seed` determines noise, raindrops and snowflakes.

    Raises:
        ValueError: if the renderer does not know the domain.
    """
    if domain not in SHADERS:
        raise ValueError(f"the renderer has no domain {domain!r}; expected one of {list(SHADERS)}")
    rng = np.random.default_rng([seed, list(SHADERS).index(domain)])
    image = SHADERS[domain](layers, rng)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
