"""Pictures of streets in the course: large enough to see what is in them, night also as a brightened copy."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zodi.support.plots import image_grid

# With two columns a scene is 390 pixels wide at the theme's 100 dots per inch.
_CELL = 4.05


def gallery(images: Sequence[np.ndarray | None], titles: Sequence[str], columns: int = 2) -> Figure:
    """Scenes side by side, each at least 380 pixels wide with two columns; `zodi.support.plots.show` displays it.

    Args:
        images: uint8 (H, W, 3), or (H, W) for grey; None leaves a place empty. Row by row.
        titles: one per image.
        columns: scenes per row.

    Raises:
        ValueError: if there are more or fewer titles than images.
    """
    if len(images) != len(titles):
        raise ValueError(f"found {len(titles)} titles for {len(images)} images, expected one per image")
    rows = [list(images[first : first + columns]) for first in range(0, len(images), columns)]
    figure = image_grid(rows, titles=titles, width=_CELL * len(rows[0]))
    for image in (image for ax in figure.axes for image in ax.images):
        # A scene has half as many pixels as it is shown with: smooth edges look better and take less space.
        image.set_interpolation("bicubic")
    return figure


def brightened(image: np.ndarray) -> np.ndarray:
    """A copy of an image that shows what the dark hides: the square root of every value, the same for all images.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3); black and white stay as they are.
    """
    return np.rint(255 * np.sqrt(image / 255)).astype(np.uint8)
