"""Scenes are shown large enough, and a night can be looked into."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from zodi.support import gallery as module
from zodi.support.gallery import brightened, gallery, sheet, show_scenes

SCENE = np.zeros((96, 192, 3), np.uint8)
pytestmark = pytest.mark.usefixtures("theme")


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_scene_is_at_least_380_pixels_wide_and_titles_fit(count):
    figure = gallery([SCENE] * count, ["transferred to night, brightened"] * count)
    figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == count
    assert all(ax.get_window_extent().width >= 380 for ax in shown)
    assert all(ax.title.get_window_extent().width <= ax.get_window_extent().width for ax in shown)


def test_a_place_may_be_empty_and_the_images_keep_their_order():
    figure = gallery([SCENE, None, SCENE], ["a", "", "c"])
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 1, 0]
    assert [ax.get_title() for ax in figure.axes] == ["a", "", "c", ""]


def test_an_image_without_a_title_is_refused():
    with pytest.raises(ValueError, match="found 1 titles for 2 images"):
        gallery([SCENE, SCENE], ["a"])


def test_show_displays_an_alternative_text_and_a_caption(monkeypatch):
    shown = []
    monkeypatch.setattr(module, "display", shown.append)
    show_scenes(gallery([SCENE, SCENE], ["a", "b"]), "Two *scenes*.")
    picture, caption = shown
    assert picture.alt == "Two *scenes*." and "Two *scenes*." in caption.data
    with Image.open(BytesIO(picture.data)) as image:
        assert image.format == "JPEG" and image.width >= 2 * 380
    assert not plt.get_fignums()


def test_a_sheet_has_its_scenes_in_their_places_and_enlarges_small_ones():
    white, wide = np.full_like(SCENE, 255), np.zeros((384, 768, 3), np.uint8)
    small = sheet([[SCENE, white], [white, SCENE]])
    assert small.shape == (2 * 192, 2 * 384, 3)
    assert [small[y, x, 0] for y, x in ((90, 190), (90, 580), (290, 190), (290, 580))] == [0, 255, 255, 0]
    assert sheet([[wide]]).shape == wide.shape


def test_brightened_lifts_the_dark_and_keeps_black_white_and_the_order_of_values():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    bright = brightened(values)
    assert bright.dtype == np.uint8 and (np.diff(bright[..., 0].ravel().astype(int)) >= 0).all()
    assert bright[0, 0, 0] == 0 and bright[-1, -1, 0] == 255
    assert bright[1, 0, 0] == round(255 * (16 / 255) ** 0.5)
