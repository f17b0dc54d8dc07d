"""The sample sheet of a checkpoint: one held-out scene, every domain and method, beside the true target image."""

import numpy as np
from matplotlib.figure import Figure

from zodi.diffusion import DiffusionModel
from zodi.domains import SOURCE
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support.plots import image_grid
from zodi.transfer import domain_config, transfer_images

# The most readable come first; night is shown once more, brightened.
SHEET_DOMAINS = ("snow", "game", "fog", "rain", "night", SOURCE)
BRIGHTENED = "night"
SHEET_METHODS = {
    "photometric": "photometric",
    "sdedit": "SDEdit",
    "controlnet_only": "ControlNet only",
    "stochastic_inversion": "ZoDi",
}


def sample_sheet(model: DiffusionModel, scene_seed: int, height: int = 96, width: int = 192) -> Figure:
    """One scene in all six domains: source, the transfer by each of `SHEET_METHODS`, truth.

    Args:
        model: the checkpoint.
        scene_seed: number of the scene, one that the checkpoint has not seen in its training.
        height, width: pixels.
    """
    source = scenes.render(scene_seed, SOURCE, height, width)
    layout = CITYSCAPES.colorize(source.label)
    rows, names = [], []
    for domain in SHEET_DOMAINS:
        row = [source.image]
        for method in SHEET_METHODS:
            config = domain_config(domain, method, model.defaults)
            row += transfer_images(model, [source.image], [layout], [str(scene_seed)], config)
        rows.append([*row, scenes.render(scene_seed, domain, height, width).image])
        names.append(domain)
        if domain == BRIGHTENED:
            rows.append([source.image, *(brightened(image) for image in rows[-1][1:])])
            names.append(f"{domain}, brightened")
    return image_grid(rows, ["source", *SHEET_METHODS.values(), "truth"], names, width=12)


def brightened(image: np.ndarray) -> np.ndarray:
    """A dark image uint8 (H, W, 3) as the eye would see it: the square root of its values between 0 and 1."""
    return (255 * np.sqrt(image / 255.0) + 0.5).astype(np.uint8)
