"""Figures of the course: one theme, one colour per domain, the Cityscapes palette with a legend for labels.

Every function returns a matplotlib figure; `show` puts it into a notebook with a caption and alternative text.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zodi.support.files import atomic_path

# Okabe and Ito's colour-blind-safe palette, its light colours darkened to 3:1 on white; other domains are grey.
DOMAIN_COLORS = {
    "clear": "#C18600",
    "night": "#0072B2",
    "snow": "#4999C6",
    "rain": "#009E73",
    "fog": "#919191",
    "game": "#CC79A7",
    "dusk": "#D55E00",
}
# Names of the columns that `zodi.adaptation.train` logs, as the loss of the paper has them.
LOSS_TERMS = {
    "loss": "loss $L$",
    "ce_source": "CE, source",
    "ce_synth": "CE, synthetic",
    "similarity": "similarity $\\cos(g_s, g_t)$",
}


class Labels(Protocol):
    """What figures need of a `zodi.labels.LabelSet`."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Class indices uint8 (H, W) -> RGB uint8 (H, W, 3), void black."""


def use_theme() -> None:
    """Set the course's seaborn theme: white background (readable in dark notebooks too), small fonts, no clutter."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=1.05)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "axes.titlesize": "medium", "legend.frameon": False})


def png(figure: Figure) -> bytes:
    """The figure as PNG, trimmed to its content, in 256 colours chosen for it: a third of the size in a notebook."""
    return _in_256_colors(_drawn(figure))


def _drawn(figure: Figure) -> bytes:
    """The figure as PNG, trimmed to its content, in all its colours."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _in_256_colors(data: bytes) -> bytes:
    """A PNG in the 256 colours that suit it best."""
    buffer = BytesIO()
    with PIL.Image.open(BytesIO(data)) as image:
        image.convert("RGB").quantize(256).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def show(figure: Figure, caption: str, file: Path | str | None = None) -> None:
    """Display a figure with its caption below, which is also its alternative text, and close it.

    Args:
        figure: the figure.
        caption: one or two sentences: what is drawn and what to look at. Markdown is allowed.
        file: where to save the PNG as well.
    """
    drawn = _drawn(figure)
    plt.close(figure)
    data = _in_256_colors(drawn)
    if file is not None:
        with atomic_path(file) as temporary:
            temporary.write_bytes(data)
    # In 256 colours a blue car may turn green; as JPEG the picture keeps its own.
    smaller, kind = compact(data, drawn)
    display(Image(smaller, format=kind, alt=caption))
    display(Markdown(f"*Figure.* {caption}"))


def compact(data: bytes, original: bytes | None = None) -> tuple[bytes, str]:
    """A PNG as it is or as JPEG, whichever is smaller, and "png" or "jpeg"; a notebook should open quickly.

    Pictures of streets are smaller as JPEG, lines and bars as PNG.

    Args:
        data: the PNG.
        original: the same picture as a PNG in more colours, from which the JPEG is made; `data` itself if not given.
    """
    jpeg = BytesIO()
    with PIL.Image.open(BytesIO(original or data)) as image:
        image.convert("RGB").save(jpeg, format="jpeg", quality=65, optimize=True)
    return min((data, "png"), (jpeg.getvalue(), "jpeg"), key=lambda choice: len(choice[0]))


def encode_png(image: np.ndarray) -> bytes:
    """PNG of an image uint8 (H, W, 3), pixel for pixel, as image widgets take it."""
    buffer = BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def label_legend(figure: Figure, labels: Sequence[np.ndarray], label_set: Labels) -> None:
    """Legend of the label colours below a figure.

    Args:
        figure: the figure.
        labels: label maps uint8 (H, W); only classes that occur in them are listed.
        label_set: names and colours.
    """
    present = sorted({int(value) for array in labels for value in np.unique(array) if value < len(label_set.names)})
    patches = [Patch(color=np.array(label_set.colors[i]) / 255, label=label_set.names[i]) for i in present]
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(8, len(patches)))


def image_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str] = (),
    row_names: Sequence[str] = (),
    titles: Sequence[str] = (),
    width: float = 9.0,
) -> Figure:
    """A grid of images.

    Args:
        rows: images uint8 (H, W, 3), or (H, W) for grey; None leaves a cell empty.
        columns: a title for every column.
        row_names: a name for every row.
        titles: a title for every image, row by row, in place of `columns`.
        width: inches.
    """
    count = max(len(row) for row in rows)
    first = next(image for row in rows for image in row if image is not None)
    cell = width / count
    title_rows = len(rows) if titles else int(bool(columns))
    size = (width, len(rows) * (cell * first.shape[0] / first.shape[1] + 0.05) + 0.25 * title_rows)
    figure, axes = plt.subplots(len(rows), count, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for i, row in enumerate(rows):
        for j, ax in enumerate(axes[i]):
            ax.set(xticks=[], yticks=[], frame_on=False)
            if j < len(row) and row[j] is not None:
                ax.imshow(row[j], cmap="gray", interpolation="nearest")
    for ax, title in zip(axes.flat, titles or columns, strict=False):
        ax.set_title(title)
    for ax, name in zip(axes[:, 0], row_names, strict=False):
        ax.set_ylabel(name)
    return figure


def prediction_grid(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    label_set: Labels,
    row_names: Sequence[str] = (),
) -> Figure:
    """Image, truth and the predictions of one or more networks, one scene per row, with the legend of the labels.

    Args:
        images: uint8 (H, W, 3).
        truths: uint8 (H, W) class indices; void is drawn black.
        predictions: name of a network -> its predictions uint8 (H, W).
        label_set: names and colours.
        row_names: a name for every row.
    """
    names = list(predictions)
    rows = [
        [images[i], label_set.colorize(truths[i]), *(label_set.colorize(predictions[name][i]) for name in names)]
        for i in range(len(images))
    ]
    figure = image_grid(rows, ["image", "truth", *names], row_names)
    label_legend(figure, [*truths, *(array for name in names for array in predictions[name])], label_set)
    return figure


def training_curves(history: pd.DataFrame, window: int = 10) -> Figure:
    """Loss terms over the optimisation steps, smoothed by a running mean, and the learning rate if it was logged.

    Args:
        history: one row per step, with the column `step` and those of `LOSS_TERMS` that apply.
        window: steps of the running mean.
    """
    terms = [name for name in LOSS_TERMS if name in history and history[name].notna().any()]
    # Two panels in a row at most: the page would shrink a wider figure, and its letters with it.
    columns = min(2, len(terms))
    rows = -(-len(terms) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns + 0.4, 2.4 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(terms) :]:
        ax.remove()
    for ax, name in zip(axes.flat, terms, strict=False):
        ax.plot(history["step"], history[name], color="0.8", linewidth=0.7)
        ax.plot(history["step"], history[name].rolling(window, min_periods=1).mean())
        ax.set(xlabel="optimisation step", ylabel=LOSS_TERMS[name])
    return figure


def curve(frame: pd.DataFrame, x: str, ys: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """One or more columns against another one; a column named after a domain gets the domain's colour."""
    figure, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    marker = "." if len(frame) < 100 else None
    for y in ys:
        name = y.rsplit("_", 1)[-1]
        ax.plot(frame[x], frame[y], marker=marker, color=DOMAIN_COLORS.get(name), label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(ys) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def domain_bars(miou: Mapping[str, float], ylabel: str = "mIoU (%)") -> Figure:
    """One bar per domain, in the domain's colour, with its value.

    Args:
        miou: domain -> percent.
        ylabel: what the values are.
    """
    figure, ax = plt.subplots(figsize=(0.9 * len(miou) + 1.2, 2.8), layout="constrained")
    bars = ax.bar(list(miou), list(miou.values()), color=[DOMAIN_COLORS.get(name, "0.5") for name in miou])
    ax.bar_label(bars, fmt="%.1f")
    ax.set(xlabel="domain", ylabel=ylabel)
    ax.margins(y=0.12)
    ax.grid(False, axis="x")
    return figure


def class_bars(values: pd.DataFrame, xlabel: str) -> Figure:
    """Horizontal bars, one group per class; a column named after a domain gets the domain's colour.

    Args:
        values: index class names; one column per legend entry, the first at the top; NaN where a class is absent.
        xlabel: what the values are, with the unit.
    """
    colors = [DOMAIN_COLORS.get(str(name), f"C{i}") for i, name in enumerate(values.columns)]
    figure, ax = plt.subplots(
        figsize=(6, 0.28 * len(values) * max(1, len(values.columns) * 0.6) + 0.8), layout="constrained"
    )
    values.iloc[::-1, ::-1].plot.barh(ax=ax, width=0.8, legend=False, color=colors[::-1])
    if len(values.columns) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel="")
    ax.grid(False, axis="y")
    return figure


def row_points(tested: pd.DataFrame, value: str = "iou", xlabel: str = "mIoU on the target (%)") -> Figure:
    """Every run as a dot and the mean over seeds as a tick; one panel per domain, three abreast, one line per variant.

    Args:
        tested: frame of `zodi.studies.tables.on_target` or `paired`: columns row, domain and `value`.
        value: the column to draw, `iou` or `gain`.
        xlabel: what it is, with the unit.
    """
    domains, order = list(dict.fromkeys(tested["domain"])), list(dict.fromkeys(tested["row"]))
    columns, lines = min(3, len(domains)), -(-len(domains) // 3)
    size = (2.6 + 2.3 * columns, lines * (0.3 * len(order) + 0.9))
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax in axes.flat[len(domains) :]:
        ax.remove()
    figure.get_layout_engine().set(h_pad=0.08)
    for ax, domain in zip(axes.flat, domains, strict=False):
        part = tested[tested["domain"] == domain]
        color = DOMAIN_COLORS.get(domain, "0.5")
        sns.stripplot(part, x=value, y="row", order=order, ax=ax, color=color, size=5, alpha=0.7, jitter=False)
        means = part.groupby("row")[value].mean()
        ax.scatter(means, [order.index(row) for row in means.index], marker="|", s=200, color="0.1", zorder=3)
        if value == "gain":
            ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=domain, xlabel=xlabel, ylabel="", ylim=(len(order) - 0.5, -0.5))
    return figure


def estimate_points(frame: pd.DataFrame, score: str = "estimate", xlabel: str = "estimated mIoU (%)") -> Figure:
    """Estimate against truth: one point per model, one panel per domain, and the line on which both are equal.

    Args:
        frame: columns domain, truth and `score`, percent; with `low` and `high` the estimates get their intervals.
        score: the column to draw.
        xlabel: what it is, with the unit.
    """
    domains = list(dict.fromkeys(frame["domain"]))
    size = (max(2 * len(domains) + 0.6, 3.6), 2.5)
    figure, axes = plt.subplots(1, len(domains), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, domain in zip(axes[0], domains, strict=True):
        part, color = frame[frame["domain"] == domain], DOMAIN_COLORS.get(domain, "0.5")
        if score == "estimate" and "low" in part:
            ax.hlines(part["truth"], part["low"], part["high"], color=color, linewidth=0.6, alpha=0.35)
        ax.scatter(part[score], part["truth"], color=color, s=9, alpha=0.8, linewidths=0)
        ends = [min(part[score].min(), part["truth"].min()), max(part[score].max(), part["truth"].max())]
        ax.plot(ends, ends, color="0.3", linewidth=0.8)
        ax.set(title=domain, xlabel=xlabel)
    axes[0, 0].set_ylabel("true mIoU (%)")
    return figure
