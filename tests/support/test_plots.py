"""Figures are checked for what they contain, not for their pixels. All numbers are made up."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from zodi.labels import CITYSCAPES, IGNORE_INDEX
from zodi.support import plots

LABEL = np.array([[0, 0, 10], [13, IGNORE_INDEX, 10]], np.uint8)
IMAGE = np.zeros((2, 3, 3), np.uint8)
pytestmark = pytest.mark.usefixtures("theme")


def test_show_displays_an_alternative_text_and_a_caption_and_saves_the_file(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.show(plots.domain_bars({"clear": 50.0, "night": 20.0}), "Night is dark.", tmp_path / "figures" / "bars.png")
    picture, caption = shown
    assert picture.alt == "Night is dark." and "Night is dark." in caption.data
    with Image.open(tmp_path / "figures" / "bars.png") as saved:
        assert saved.width > 100
    assert not plt.get_fignums()


def test_a_jpeg_is_made_of_all_colours_and_not_of_the_256_of_the_png():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    in_256_colours, original = (
        plots.encode_png(noise),
        plots.encode_png(np.full((100, 200, 3), (20, 40, 200), np.uint8)),
    )
    data, kind = plots.compact(in_256_colours, original)
    assert kind == "jpeg"
    with Image.open(BytesIO(data)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - (20, 40, 200)).max() < 5
    assert plots.compact(original) == (original, "png")


def test_show_makes_its_jpeg_of_all_colours(monkeypatch):
    shown, given = [], []
    monkeypatch.setattr(plots, "display", shown.append)
    monkeypatch.setattr(plots, "compact", lambda *pictures: given.extend(pictures) or (pictures[0], "png"))
    plots.show(plots.image_grid([[np.random.default_rng(0).integers(0, 256, (50, 99, 3), np.uint8)]]), "Noise.")
    colours = [len(Image.open(BytesIO(data)).convert("RGB").getcolors(10**6)) for data in given]
    assert colours[0] <= 256 < colours[1]


def test_encode_png_keeps_every_pixel():
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert (np.asarray(Image.open(BytesIO(plots.encode_png(image)))) == image).all()


def test_image_grid_leaves_missing_cells_empty_and_names_rows_and_columns():
    figure = plots.image_grid([[IMAGE, LABEL], [IMAGE, None]], ["a", "b"], ["first", "second"])
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    assert figure.axes[2].get_ylabel() == "second"


def test_image_grid_titles_every_image():
    figure = plots.image_grid([[IMAGE, LABEL], [IMAGE, LABEL]], titles=["a", "b", "c", "d"])
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "d"]


def test_prediction_grid_has_a_column_a_network_and_a_legend_of_the_classes_present():
    prediction = np.full_like(LABEL, 11)
    figure = plots.prediction_grid([IMAGE], [LABEL], {"source": [LABEL], "ZoDi": [prediction]}, CITYSCAPES)
    assert [ax.get_title() for ax in figure.axes] == ["image", "truth", "source", "ZoDi"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["road", "sky", "person", "car"]


def test_training_curves_draw_the_terms_that_were_logged():
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2, 1], "similarity": [np.nan] * 3})
    figure = plots.training_curves(history, window=2)
    (ax,) = figure.axes
    assert ax.lines[1].get_ydata().tolist() == [3.0, 2.5, 1.5]
    assert ax.get_xlabel() and ax.get_ylabel()


def test_training_curves_have_two_panels_in_a_row():
    terms = {name: [2.0, 1.0] for name in plots.LOSS_TERMS}
    for count, places in ((3, 3), (4, 4)):
        figure = plots.training_curves(pd.DataFrame({"step": [1, 2], **dict(list(terms.items())[:count])}))
        assert len(figure.axes) == places and {ax.get_subplotspec().colspan.start for ax in figure.axes} == {0, 1}
        assert figure.get_figwidth() < 9


def test_curve_colours_domains():
    frame = pd.DataFrame({"step": [1, 2], "psnr_night": [20.0, 30], "psnr_fog": [10.0, 20]})
    (ax,) = plots.curve(frame, "step", ["psnr_night", "psnr_fog"], "step", "PSNR (dB)").axes
    assert [line.get_color() for line in ax.lines] == [plots.DOMAIN_COLORS["night"], plots.DOMAIN_COLORS["fog"]]
    assert [text.get_text() for text in ax.get_legend().texts] == ["night", "fog"]


def test_domain_bars_write_their_values():
    (ax,) = plots.domain_bars({"clear": 50.04, "night": 20.0}).axes
    assert [text.get_text() for text in ax.texts] == ["50.0", "20.0"]


def test_class_bars_start_with_the_first_class_at_the_top():
    values = pd.DataFrame({"gain": [1.0, -2.0]}, index=["road", "sky"])
    (ax,) = plots.class_bars(values, "gain (points)").axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sky", "road"]


def test_class_bars_and_their_legend_have_the_colours_of_the_domains_in_the_order_of_the_columns():
    values = pd.DataFrame({"clear": [90.0, 80.0], "night": [40.0, 20.0], "ZoDi": [1.0, 2.0]}, index=["road", "sky"])
    (ax,) = plots.class_bars(values, "IoU (%)").axes
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.texts] == ["clear", "night", "ZoDi"]
    drawn = {bars.get_label(): to_rgb(bars.patches[0].get_facecolor()) for bars in ax.containers}
    assert drawn["clear"] == to_rgb(plots.DOMAIN_COLORS["clear"])
    assert drawn["night"] == to_rgb(plots.DOMAIN_COLORS["night"])
    assert [to_rgb(patch.get_facecolor()) for patch in legend.get_patches()] == list(map(drawn.get, values.columns))
    top = {bars.get_label(): bars.patches[0].get_y() for bars in ax.containers}
    assert top["clear"] > top["night"] > top["ZoDi"]
    assert [bars.patches[1].get_width() for bars in ax.containers if bars.get_label() == "clear"] == [90.0]


def test_row_points_are_three_abreast():
    tested = pd.DataFrame({"row": "ZoDi", "domain": list(plots.DOMAIN_COLORS)[:5], "gain": range(5)})
    figure = plots.row_points(tested, "gain", "gain (points)")
    tops = [ax.get_position().y0 for ax in figure.axes]
    assert [ax.get_title() for ax in figure.axes] == tested["domain"].tolist()
    assert tops[0] == tops[2] > tops[3] == tops[4]


def test_row_points_put_the_mean_of_every_row_in_its_line():
    tested = pd.DataFrame(
        {
            "row": ["Source only", "Source only", "ZoDi", "ZoDi", "ZoDi"],
            "domain": ["night", "snow", "night", "night", "snow"],
            "iou": [10.0, 20.0, 30.0, 32.0, 40.0],
        }
    )
    figure = plots.row_points(tested)
    assert [ax.get_title() for ax in figure.axes] == ["night", "snow"]
    means = {tuple(map(float, point)) for point in figure.axes[0].collections[-1].get_offsets()}
    assert means == {(10.0, 0.0), (31.0, 1.0)}


def test_domain_colours_stand_out_from_white():
    """Contrast of at least 3:1, as WCAG 2.1 asks of graphics."""

    def luminance(color: str) -> float:
        red, green, blue = ((c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in to_rgb(color))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low = {name: color for name, color in plots.DOMAIN_COLORS.items() if 1.05 / (luminance(color) + 0.05) < 3}
    assert low == {}
