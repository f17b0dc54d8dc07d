"""Pictures of streets in the course: large enough to see what is in them, night also as a brightened copy."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from zodi.support.plots import image_grid

# A scene is 384 pixels wide at the theme's 100 dots per inch.
_CELL = 3.94
# Of JPEG. Enlarged scenes have no fine detail that a higher one would keep, and a notebook should open quickly.
_QUALITY = 45


def gallery(images: Sequence[np.ndarray | None], titles: Sequence[str], columns: int = 2) -> Figure:
    """Scenes side by side, each at least 380 pixels wide; `show_scenes` displays it.

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


def show_scenes(figure: Figure, caption: str) -> None:
    """Display a gallery with its caption below, which is also its alternative text, and close it.

    Args:
        figure: from `gallery`, perhaps with a legend.
        caption: what is shown and what to look at. Markdown is allowed.
    """
    stream = BytesIO()
    options = {"quality": _QUALITY, "optimize": True}
    figure.savefig(stream, format="jpeg", bbox_inches="tight", facecolor="white", pil_kwargs=options)
    plt.close(figure)
    display(Image(stream.getvalue(), format="jpeg", alt=caption))
    display(Markdown(f"*Figure.* {caption}"))


def sheet(rows: Sequence[Sequence[np.ndarray]], width: int = 384) -> np.ndarray:
    """Scenes without gaps as one image, which an explorer shows pixel for pixel, so every scene has to be large.

    Args:
        rows: images uint8 (H, W, 3), all of one size, as many in every row.
        width: pixels that a scene should have at least; a smaller one is enlarged by a whole factor.

    Returns:
        uint8 (rows * H', columns * W', 3).
    """
    image = PIL.Image.fromarray(np.vstack([np.hstack(row) for row in rows]))
    factor = max(1, -(-width // rows[0][0].shape[1]))
    return np.asarray(image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.BICUBIC))


def brightened(image: np.ndarray) -> np.ndarray:
    """A copy of an image that shows what the dark hides: the square root of every value, the same for all images.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3); black and white stay as they are.
    """
    return np.rint(255 * np.sqrt(image / 255)).astype(np.uint8)
