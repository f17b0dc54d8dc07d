"""The course's diagrams, drawn by code: vector graphics that can be read on white and on dark pages.

Every function returns a matplotlib figure; `show` puts it into a notebook as SVG, with text as text. The page shows
through: only boxes are filled, in colours on which white letters can be read, and whatever lies outside them is in a
grey that stands out from white and from black. Boxes, their texts and free labels carry ids (`box:`, `text:` and
`label:`), by which tests find them.
"""

import re
from collections.abc import Sequence
from io import StringIO

import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

# White letters on each of these have a contrast of at least 4.5 to 1 (WCAG 2.2, success criterion 1.4.3).
DATA, NETWORK, WORDS, RESULT, OTHER = "#00735C", "#0067A3", "#9E5200", "#8A4A7F", "#666666"
# As far from white as from nearly black: 4.5 and 4.2 to 1.
INK = "#767676"
# Units of a diagram, which are pixels where it is shown at its own size.
_DPI = 100
# The boxes are measured with the first, which comes with matplotlib; a browser takes the first that it has.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
_LETTERS = {"ha": "center", "va": "center", "fontsize": 9.5, "color": INK, "family": "DejaVu Sans", "linespacing": 1.25}
Point = tuple[float, float]


# ---------------------------------------------------------------- showing


def svg(figure: Figure, title: str) -> str:
    """The figure as SVG on a transparent page: text as text, the same characters for the same figure.

    Args:
        figure: from one of the functions below.
        title: what a reader who does not see it is told.
    """
    stream = StringIO()
    for artist in figure.findobj():
        # Nothing lies outside, and every path would carry the name of what cuts it off.
        artist.set_clip_on(False)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zodi"}):
        metadata = {"Date": None, "Creator": None, "Title": title}
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    # From the first tag on: a notebook's output is part of a page, not a document.
    tags = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL)
    return tags.replace("'DejaVu Sans'", _FONTS)


def show(figure: Figure, caption: str) -> None:
    """Display a diagram as SVG with its caption below, which is also its alternative text, and close it.

    Args:
        figure: from one of the functions below.
        caption: what is drawn and what to look at. Markdown is allowed.
    """
    picture = svg(figure, re.sub(r"[*$`]", "", caption))
    plt.close(figure)
    display({"image/svg+xml": picture, "text/plain": caption}, metadata={"image/svg+xml": {"alt": caption}}, raw=True)
    display(Markdown(f"*Figure.* {caption}"))


# ---------------------------------------------------------------- the four diagrams


def method() -> Figure:
    """The method in one picture: transfer, adaptation, estimation; one line each, from left to right."""
    figure, ax = _canvas(820, 460)
    _stage(ax, 440, "1  Transfer: redraw every training image")
    _box(ax, (20, 390, 150, 34), "source image", DATA)
    _box(ax, (20, 348, 150, 34), "its label map", DATA)
    _box(ax, (20, 306, 150, 34), "“driving at night”", WORDS)
    _box(ax, (280, 336, 220, 60), "diffusion model\nwith ControlNet", NETWORK)
    _box(ax, (610, 336, 190, 60), "the same street\nat night", RESULT)
    for y in (407, 365, 323):
        _arrow(ax, [(172, y), (278, 366)])
    _arrow(ax, [(502, 366), (608, 366)])

    _stage(ax, 276, "2  Adaptation: learn from both images of a pair")
    _box(ax, (20, 212, 150, 48), "source image\n+ label map", DATA)
    _box(ax, (20, 156, 150, 48), "night image\n+ same label map", RESULT)
    _box(ax, (280, 178, 220, 60), "segmentation network,\ntrained on both", NETWORK)
    _box(ax, (610, 178, 190, 60), "network for\nthe night", RESULT)
    _arrow(ax, [(172, 236), (278, 212)])
    _arrow(ax, [(172, 180), (278, 204)])
    _arrow(ax, [(502, 208), (608, 208)])

    _stage(ax, 126, "3  Estimation: how good is it where nobody has been?")
    _box(ax, (20, 52, 150, 60), "labelled images\nheld out", DATA)
    _box(ax, (280, 52, 220, 60), "redrawn as in 1, then\nsegmented by the network", NETWORK)
    _box(ax, (610, 52, 190, 60), "estimated mIoU\nwith an interval", RESULT)
    _arrow(ax, [(172, 82), (278, 82)])
    _arrow(ax, [(502, 82), (608, 82)])
    _arrow(ax, [(705, 176), (502, 106)])
    _label(ax, (410, 22), "No step sees a real image of the target domain.", italic=True)
    return figure


def unet_with_controlnet() -> Figure:
    """UNet and ControlNet: copied first half, zero convolutions, cross-attention, and where they meet.

    Three levels as in the miniature, where only the lowest one and the middle have cross-attention. The UNet of Stable
    Diffusion 1.5 has four levels, with cross-attention at all but the lowest one.
    """
    figure, ax = _canvas(820, 560)
    heights, width = {1: 406, 2: 318, 3: 230}, 140
    copied, down, up, sums = 20, 330, 660, 575
    attention = {3: "\n+ cross-attention"}
    for level, y in heights.items():
        _box(ax, (copied, y, width, 50), f"copy of block {level}{attention.get(level, '')}", OTHER)
        _box(ax, (down, y, width, 50), f"block {level}{attention.get(level, '')}", NETWORK)
        _box(ax, (up, y, width, 50), f"up block {level}{attention.get(level, '')}", NETWORK)
    _box(ax, (copied, 122, width, 50), "copy of middle\n+ cross-attention", OTHER)
    _box(ax, (420, 122, width, 50), "middle\n+ cross-attention", NETWORK)
    _box(ax, (copied, 500, width, 34), "layout", DATA)
    _box(ax, (down, 500, width, 34), "noisy latent", DATA)
    _box(ax, (up, 500, width, 34), "prediction", RESULT)
    _box(ax, (20, 16, 140, 44), "prompt", WORDS)
    _box(ax, (240, 16, 180, 44), "text encoder", NETWORK)
    _box(ax, (500, 16, 300, 44), "one vector per word, read by\nevery cross-attention", WORDS)

    for x in (copied, down):
        _arrow(ax, [(x + 70, 500), (x + 70, 458)])
        _arrow(ax, [(x + 70, 406), (x + 70, 370)])
        _arrow(ax, [(x + 70, 318), (x + 70, 282)])
    _arrow(ax, [(copied + 70, 230), (copied + 70, 174)])
    _arrow(ax, [(down + 70, 230), (down + 70, 147), (418, 147)])
    _arrow(ax, [(up + 70, 280), (up + 70, 316)])
    _arrow(ax, [(up + 70, 368), (up + 70, 404)])
    _arrow(ax, [(up + 70, 456), (up + 70, 498)])
    _arrow(ax, [(330, 517), (200, 517), (200, 440), (162, 440)])
    _arrow(ax, [(160, 38), (238, 38)])
    _arrow(ax, [(420, 38), (498, 38)])

    # What the first half passes to the second, and what the ControlNet adds to it on the way.
    for level, y in heights.items():
        _arrow(ax, [(470, y + 36), (sums - 9, y + 36)])
        _arrow(ax, [(sums + 9, y + 36), (658, y + 36)])
        _sum(ax, (sums, y + 36))
        _label(ax, (510, y + 47), f"$h_{level}$")
        _zero(ax, (218, y + 12), f"zero-convolution-{level}")
        _arrow(ax, [(160, y + 12), (207, y + 12)], head=False)
        _arrow(ax, [(229, y + 12), (330, y + 12)], head=False, dashed=True)
        _arrow(ax, [(470, y + 12), (sums, y + 12), (sums, y + 27)], dashed=True)
        _label(ax, (265, y + 24), f"$c_{level}$")
    _zero(ax, (218, 134), "zero-convolution-4")
    _arrow(ax, [(160, 134), (207, 134)], head=False)
    _arrow(ax, [(229, 134), (250, 134), (250, 92), (610, 92), (610, 138)], dashed=True)
    _sum(ax, (610, 147))
    _arrow(ax, [(560, 147), (601, 147)])
    _arrow(ax, [(619, 147), (up + 70, 147), (up + 70, 228)])
    _label(ax, (430, 103), "$c_4$")
    _label(ax, (copied, 546), "ControlNet", align="left", bold=True)
    _label(ax, (down, 546), "UNet", align="left", bold=True)
    _zero(ax, (90, 479), "zero-convolution-layout")
    _zero(ax, (660, 76), "zero-convolution-legend")
    _label(ax, (676, 76), "zero convolution", align="left")
    return figure


def data_way() -> Figure:
    """The data's way through the transfer of a folder: read, encode, noise, denoise, decode, write, check."""
    figure, ax = _canvas(820, 420)
    _box(ax, (20, 340, 150, 56), "images/\nstreet_7.png", DATA)
    _box(ax, (20, 254, 150, 56), "labels/\nstreet_7.png", DATA)
    _box(ax, (20, 168, 150, 56), "seed of the run\n+ name “street_7”", OTHER)
    _box(ax, (250, 340, 150, 56), "VAE: encode\nto a latent", NETWORK)
    _box(ax, (250, 254, 150, 56), "paint the classes:\nthe layout", OTHER)
    _box(ax, (250, 168, 150, 56), "noise of\nthis image", OTHER)
    _box(ax, (480, 244, 150, 76), "add noise, then\nguided steps with\nprompt and layout", NETWORK)
    _box(ax, (680, 254, 120, 56), "VAE: decode\nto an image", NETWORK)
    for y in (368, 282, 196):
        _arrow(ax, [(170, y), (248, y)])
    _arrow(ax, [(400, 368), (520, 368), (520, 322)])
    _arrow(ax, [(400, 282), (478, 282)])
    _arrow(ax, [(400, 196), (520, 196), (520, 242)])
    _arrow(ax, [(630, 282), (678, 282)])

    _box(ax, (610, 90, 190, 56), "1  out/images/street_7.png\nwritten, then renamed", RESULT)
    _box(ax, (350, 90, 200, 56), "2  a line in manifest.jsonl\nwith both checksums", RESULT)
    _box(ax, (20, 90, 270, 56), "finished: the next run skips it;\nno line, and it is made again", OTHER)
    _arrow(ax, [(740, 254), (740, 148)])
    _arrow(ax, [(610, 118), (552, 118)])
    _arrow(ax, [(350, 118), (292, 118)])
    _box(ax, (350, 14, 450, 40), "fidelity: does a network still find the labels in it?", NETWORK)
    _box(ax, (20, 14, 270, 40), "keep, leave out or draw again", RESULT)
    _arrow(ax, [(705, 90), (705, 56)])
    _arrow(ax, [(350, 34), (292, 34)])
    return figure


def intervals(sampling: float = 2.0, generator: float = 4.0, miss: float = 3.5) -> Figure:
    """What an interval is: sampling only, the generator's own error, both together, and the truth.

    Half widths add up as their squares do, because the two err independently. Numbers are points of mIoU and only say
    how the diagram looks.

    Args:
        sampling: half width from other images and other noise.
        generator: half width of what the generator does wrong on all images alike.
        miss: how far the estimate is above the truth.

    Raises:
        ValueError: if the truth would not be outside the first interval and inside the last.
    """
    both = (sampling**2 + generator**2) ** 0.5
    if not sampling < miss < both:
        raise ValueError(f"miss={miss}: expected a number between {sampling:g} and {both:.3g}")
    figure, ax = _canvas(820, 300)
    middle, unit = 560, 200 / both
    truth = middle - miss * unit
    rows = (
        (212, sampling, OTHER, "sampling only", "other images, other noise:\nshrinks with more images"),
        (142, generator, WORDS, "the generator's own error", "wrong in the same way on all\nimages: does not shrink"),
        (72, both, RESULT, "both together", "half width\n√(sampling² + generator²)"),
    )
    for y, half, color, name, meaning in rows:
        _label(ax, (20, y + 18), name, align="left", bold=True)
        _label(ax, (20, y - 9), meaning, align="left")
        bar = Rectangle((middle - half * unit, y - 9), 2 * half * unit, 18, facecolor=color, edgecolor="none")
        ax.add_patch(bar)
        bar.set_gid(f"bar:{name}")
        ax.plot([middle, middle], [y - 15, y + 15], color=INK, linewidth=2)
    ax.plot([truth, truth], [40, 252], color=INK, linewidth=1.6, linestyle=(0, (4, 3)), gid="line:truth")
    _label(ax, (truth, 266), "truth", bold=True)
    _label(ax, (middle, 266), "estimate", bold=True)
    _arrow(ax, [(340, 34), (790, 34)])
    _label(ax, (565, 16), "mIoU on the target domain")
    return figure


# ---------------------------------------------------------------- pieces


def _canvas(width: int, height: int) -> tuple[Figure, Axes]:
    """An empty figure whose coordinates are pixels, from the lower left corner."""
    figure = plt.figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    figure.patch.set_alpha(0)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def _box(ax: Axes, place: tuple[float, float, float, float], text: str, color: str) -> None:
    """A filled box (left, bottom, width, height) with white letters in its middle."""
    x, y, width, height = place
    key = _slug(text)
    style = "round,pad=0,rounding_size=6"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="none", gid=f"box:{key}")
    )
    ax.text(x + width / 2, y + height / 2, text, gid=f"text:{key}", **_LETTERS | {"color": "#ffffff"})


def _label(ax: Axes, place: Point, text: str, align: str = "center", italic: bool = False, bold: bool = False) -> None:
    """Letters outside the boxes."""
    style = {"ha": align, "style": "italic" if italic else "normal", "weight": "bold" if bold else "normal"}
    ax.text(*place, text, gid=f"label:{_slug(text)}", **_LETTERS | style)


def _slug(text: str) -> str:
    """A text as part of an id."""
    return "-".join(re.findall(r"\w+", text)).lower()


def _stage(ax: Axes, y: float, text: str) -> None:
    """The heading of a line of boxes."""
    _label(ax, (20, y), text, align="left", bold=True)


def _arrow(ax: Axes, points: Sequence[Point], head: bool = True, dashed: bool = False) -> None:
    """A line through points, with a head at its end."""
    style = {"color": INK, "linewidth": 1.4, "linestyle": (0, (4, 2)) if dashed else "-"}
    xs, ys = zip(*points, strict=True)
    last = len(points) - 1 if head else len(points)
    ax.plot(xs[:last], ys[:last], **style)
    if head:
        ends = {"posA": points[-2], "posB": points[-1], "arrowstyle": "-|>", "mutation_scale": 11}
        ax.add_patch(FancyArrowPatch(**ends, shrinkA=0, shrinkB=0, **style))


def _sum(ax: Axes, place: Point) -> None:
    """A plus sign in a circle: two features are added."""
    ax.add_patch(Circle(place, 9, facecolor=RESULT, edgecolor="none"))
    ax.text(*place, "+", **_LETTERS | {"color": "#ffffff", "fontsize": 12})


def _zero(ax: Axes, place: Point, key: str) -> None:
    """The sign of a zero convolution: a 0 in a small box."""
    x, y = place
    ax.add_patch(Rectangle((x - 11, y - 9), 22, 18, facecolor=WORDS, edgecolor="none", gid=f"box:{key}"))
    ax.text(x, y, "0", gid=f"text:{key}", **_LETTERS | {"color": "#ffffff"})
