"""The diagrams: valid SVG, every part named, nothing overlaps, readable on white and on nearly black."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from zodi.support import diagrams

PARTS = {
    "method": ("1 Transfer", "2 Adaptation", "3 Estimation", "source image", "label map", "driving at night", "mIoU"),
    "unet_with_controlnet": ("ControlNet", "UNet", "layout", "zero convolution", "cross-attention", "text encoder"),
    "data_way": ("images/", "labels/", "layout", "noise of", "encode", "decode", "manifest.jsonl", "fidelity"),
    "intervals": ("truth", "estimate", "sampling only", "the generator's own error", "both together", "mIoU"),
}
NAMES = sorted(PARTS)
PAGES = {"light": "#ffffff", "dark": "#121212"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 .. 21 (WCAG 2.2)."""

    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pieces(figure) -> dict[str, Bbox]:
    """Where every box, text and label of a diagram is, in pixels, by id."""
    figure.canvas.draw()
    found = [artist for artist in figure.findobj(lambda artist: isinstance(artist, (Patch, Text))) if artist.get_gid()]
    ids = [artist.get_gid() for artist in found]
    assert len(ids) == len({*ids}), "two pieces have one id"
    return {name: artist.get_window_extent() for name, artist in zip(ids, found, strict=True)}


def overlapping(one: Bbox, other: Bbox) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_svg_with_text_as_text_that_names_its_parts(name):
    text = diagrams.svg(getattr(diagrams, name)(), "A title.")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text == "A title."
    words = " ".join("".join(node.itertext()) for node in root.iter(f"{SVG}text"))
    assert [part for part in PARTS[name] if part not in re.sub(r"\s+", " ", words)] == []
    assert not list(root.iter(f"{SVG}image"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_every_time(name):
    draw = getattr(diagrams, name)
    assert diagrams.svg(draw(), "") == diagrams.svg(draw(), "")


@pytest.mark.parametrize("name", NAMES)
def test_no_shape_is_white_and_the_page_shows_through(name):
    root = ElementTree.fromstring(diagrams.svg(getattr(diagrams, name)(), ""))
    shapes = [node for tag in ("path", "rect", "use") for node in root.iter(f"{SVG}{tag}")]
    styles = [node.get("style", "") for node in shapes]
    assert styles and not [style for style in styles if re.search(r"fill: *(#fff|white)", style)]
    assert "fill: none" in styles[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_lies_in_its_box_and_nothing_overlaps(name):
    figure = getattr(diagrams, name)()
    found = pieces(figure)
    boxes = {key: place for key, place in found.items() if key.startswith("box:")}
    labels = {key: place for key, place in found.items() if key.startswith("label:")}
    texts = {key: place for key, place in found.items() if key.startswith("text:")}
    assert {key.split(":")[1] for key in boxes} == {key.split(":")[1] for key in texts}
    for key, place in texts.items():
        box = boxes[key.replace("text:", "box:")]
        assert box.x0 + 2 <= place.x0 and place.x1 <= box.x1 - 2, key
        assert box.y0 <= place.y0 and place.y1 <= box.y1, key
    apart = [*boxes.items(), *labels.items()]
    pairs = [(one, other) for (one, a), (other, b) in itertools.combinations(apart, 2) if overlapping(a, b)]
    assert pairs == []
    for key, place in found.items():
        assert min(place.x0, place.y0) >= 0, key
        assert place.x1 <= figure.bbox.width and place.y1 <= figure.bbox.height, key


@pytest.mark.parametrize("page", sorted(PAGES))
@pytest.mark.parametrize("name", NAMES)
def test_letters_and_shapes_can_be_read_on_both_pages(name, page):
    figure = getattr(diagrams, name)()
    for artist in figure.findobj(lambda artist: isinstance(artist, (Patch, Text)) and artist.get_gid()):
        key = artist.get_gid()
        if key.startswith("label:"):
            assert contrast(to_hex(artist.get_color()), PAGES[page]) >= 4, key
        elif key.startswith("text:"):
            assert to_hex(artist.get_color()) == "#ffffff", key
        else:
            assert contrast(to_hex(artist.get_facecolor()), "#ffffff") >= 4.5, key
            # Shapes need less than letters do.
            assert contrast(to_hex(artist.get_facecolor()), PAGES[page]) >= 2.9, key


def test_the_truth_lies_outside_the_first_interval_and_inside_the_last():
    figure = diagrams.intervals()
    found = pieces(figure)
    (line,) = [artist for artist in figure.axes[0].lines if artist.get_gid() == "line:truth"]
    truth = line.get_window_extent().x0
    inside = {key: place.x0 <= truth <= place.x1 for key, place in found.items() if key.startswith("bar:")}
    assert list(inside.values()) == [False, True, True]
    widths = [place.width for key, place in found.items() if key.startswith("bar:")]
    assert widths[2] ** 2 == pytest.approx(widths[0] ** 2 + widths[1] ** 2, rel=1e-3)


@pytest.mark.parametrize("miss", [1.0, 5.0])
def test_a_diagram_that_would_say_something_else_is_refused(miss):
    with pytest.raises(ValueError, match=r"expected a number between 2 and 4\.47"):
        diagrams.intervals(miss=miss)


def test_show_displays_svg_with_an_alternative_text_and_a_caption(monkeypatch):
    shown = []
    monkeypatch.setattr(diagrams, "display", lambda what, **how: shown.append((what, how)))
    diagrams.show(diagrams.method(), "The *method* in one picture.")
    (picture, how), (caption, _) = shown
    assert picture["image/svg+xml"].startswith("<svg") and how["raw"]
    assert how["metadata"]["image/svg+xml"]["alt"] == "The *method* in one picture."
    assert "<title>The method in one picture.</title>" in picture["image/svg+xml"]
    assert "one picture" in caption.data
    assert not plt.get_fignums()
