# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A3 · Tables: does it help, by how much, and can we be sure?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/A3_tables.ipynb)
#
# **In one sentence.** All runs of 01 and 05 become one table, mean and spread over seeds, and every claim about it is a
# sentence that this notebook computes.
#
# **What you will learn:** why a single run proves nothing · how to compare two methods seed by seed · which rows a
# table needs so that a gain can be *explained*.
#
# **What you need:** [01](01_domain_gap.ipynb) for mIoU, [05](05_adaptation.ipynb) for the rows. No GPU; when you have
# no runs of your own, the record of ours is read.
#
# **How long it takes:** half an hour to read, seconds to run.

# %% [markdown]
# On Google Colab this cell gets the course and installs what is missing; anywhere else it does nothing.

# %%
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("../pyproject.toml").exists():
    # !git clone -q --depth 1 --branch v0.1.0 https://github.com/zodi-companion/zodi
    # %cd -q zodi/notebooks
    # %pip install -q "..[course]"
    print("Installed. If Colab asks for it, restart the runtime before you go on.")

# %% [markdown]
# The module `zodi.studies.tables` turns run folders into one tidy frame; everything below is a selection from it.

# %%
import time

from IPython.display import Markdown, display

from zodi import datasets
from zodi.studies import tables
from zodi.support import plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; these make the notebook run on its own.

# %% tags=["parameters"]
results: str = "../results/mini"  # results folder of a profile; its runs/ are read
record: str = "records/mini.csv"  # our recorded runs, read when `results` has none
out: str = "../results/course/tables"  # folder of the tables and figures

# %% [markdown]
# ## One tidy frame
#
# A run is a row (*variant*), the domain it was adapted to, a network and a seed. Each was tested on the domain's test
# set and on clear. `class` is a class name, or `mean` for the mIoU.

# %%
frame, origin = tables.load_runs(results, record)
display(Markdown(f"These tables are made from **{origin}**."))
frame.groupby(["variant", "domain"], sort=False)["seed"].nunique().unstack().dropna(axis=1, how="all").rename(
    tables.label
)

# %% [markdown]
# ## The table
#
# Every cell is the mIoU on the *true* target images, in percent: mean ± sample standard deviation over seeds,
#
# $$ \bar m = \frac1n \sum_{i=1}^n m_i, \qquad s = \sqrt{\frac{1}{n-1} \sum_{i=1}^n (m_i - \bar m)^2}. $$
#
# The last step counts in every run: no target label has chosen it. One thing was not blind: the training settings, which
# all rows share, were tuned by looking at source-only and the oracle of one seed on these test scenes, never at ZoDi.

# %%
table = tables.main_table(frame)
_ = tables.write_table(table, Path(out) / "main")
display(table)

# %% [markdown]
# A standard deviation of three numbers is a rough thing. Look at the numbers themselves: each dot is a run.

# %%
tested = tables.on_target(frame)
plots.show(
    plots.row_points(tested),
    "mIoU on the true target images. Dots are runs (seeds), ticks their means. Overlapping clouds are not a ranking.",
    Path(out) / "figures" / "rows.png",
)

# %% [markdown]
# ## Seed by seed
#
# Two rows of one seed start from the same weights. Part of the spread is therefore shared, and drops out when we
# subtract *before* we average:
#
# $$ d_i = m_i^{\text{variant}} - m_i^{\text{source only}} . $$

# %%
pairs = tables.paired(frame)
plots.show(
    plots.row_points(pairs, "gain", "gain over source only (points)"),
    "Gain over source only, every seed minus its own partner. A row is better when all its dots lie right of zero.",
    Path(out) / "figures" / "gains.png",
)

# %% [markdown]
# The same as sentences. They are computed from the runs, so they change when the runs do.

# %%
gains = tables.gains(pairs)
_ = tables.write_table(gains.set_index(["variant", "domain"]), Path(out) / "gains")
display(Markdown("\n".join(f"- {tables.statement(gain, 'source_only')}" for _, gain in gains.iterrows())))

# %% [markdown]
# ## What explains the gain?
#
# ZoDi changes several things at once: it shows the network *other* images, *more* images, and it adds the similarity
# term. A table that holds only source-only and ZoDi cannot tell which of them helped. Each of these rows takes one
# explanation away:
#
# - *source only, longer*: as many images as ZoDi sees. Is it just more training?
# - *clear prompt*: redrawn by the diffusion model, but not in another domain. Is it just augmentation?
# - *RandAugment*, *AugMix*, *random weather*: the image itself, changed anew at every step by operations that know no
#   domain. Is strong plain augmentation as good?
# - *photometric*: darkened or veiled by hand. Is a diffusion model needed at all?
# - *without similarity*: the second term of the paper taken away.

# %%
plain = ["randaugment", "augmix", "weather", "photometric"]
questions = ["source_only_long", "clear_prompt", *plain, "zodi_no_similarity"]
against = {name: tables.gains(tables.paired(frame, name)) for name in questions if name in set(frame["variant"])}
lines = [
    f"- {tables.statement(gain, name)}"
    for name, part in against.items()
    for _, gain in part[part["variant"] == "zodi"].iterrows()
]
display(Markdown("\n".join(lines) or "No ZoDi runs to compare with these rows."))

# %% [markdown]
# The **oracle** trains on true target images of the training scenes. No zero-shot method can be expected to pass it, so
# it measures what there is to win:
#
# $$ \text{gap closed} = 100\,\% \cdot \frac{\bar m - \bar m^{\text{source only}}}
# {\bar m^{\text{oracle}} - \bar m^{\text{source only}}} . $$

# %%
closed = tables.gap_closed(frame)
closed.round(0)

# %% [markdown]
# ## What it costs at home
#
# An adapted network still has to work in clear weather. Columns are the domains that a row was adapted to; the number
# is the mIoU on **clear** test images.

# %%
home = frame[(frame["test_domain"] == "clear") & (frame["class"] == tables.MEAN)]
clear = tables.summary(home.replace({"domain": {"": "(none)"}}))
clear["row"] = clear["variant"].map(tables.label)
clear["cell"] = [tables.plus_minus(mean, std) for mean, std in zip(clear["mean"], clear["std"], strict=True)]
index = ["network", "row"] if clear["network"].nunique() > 1 else ["row"]
clear.pivot(index=index, columns="domain", values="cell").reindex(clear.set_index(index).index.unique()).fillna("-")

# %% [markdown]
# ## Class by class
#
# The mIoU gives a class with ten pixels the weight of the road. Which classes gain, and which pay?

# %%
classes = tables.gains(tables.paired(frame, classes=None))
zodi = classes[classes["variant"] == "zodi"].pivot_table("mean", "class", "domain", sort=False)
if len(zodi):
    plots.show(
        plots.class_bars(zodi.sort_values(zodi.columns[0], ascending=False), "gain of ZoDi in IoU (points)"),
        "Gain of ZoDi over source only, class by class, mean over seeds.",
        Path(out) / "figures" / "classes.png",
    )

# %% [markdown]
# ## In pictures
#
# Numbers say how much, pictures say what. The first test images of every domain, and what networks of one seed see in
# them. Look for things that appear from left to right, and for what even the oracle misses.

# %%
shown = ["source_only", "photometric", "zodi", "oracle"]
for name in dict.fromkeys(tested["domain"] if origin.startswith("the runs") else []):
    samples, predictions = tables.read_predictions(results, name, shown)
    label_set = datasets.label_set_of(f"{results}/data")
    images, truths = [s.image for s in samples], [s.label for s in samples]
    plots.show(
        plots.prediction_grid(images, truths, predictions, label_set),
        f"Test images in {name}: truth, and what networks of one seed predict.",
        Path(out) / "figures" / f"predictions_{name}.png",
    )

# %% [markdown]
# ## In the paper
#
# The paper's tables hold DeepLabv3+ and RefineNet on Cityscapes, adapted to ACDC (night, snow, rain, fog) and GTA5
# (game), with Stable Diffusion. The column *published* **was not run by us**: it is averaged from the training logs that
# the authors publish in their repository; *reproduced* is what `make reproduce PROFILE=paper` has left in these results,
# and `-` where it was not run. [07](07_published_tables.ipynb) takes the logs apart.

# %%
comparison = tables.beside_published(tables.collect_epochs(results), tables.published_logs())
_ = tables.write_table(comparison, Path(out) / "published")
network = "DeepLabv3+-resnet50"
comparison.xs(network, level="network").rename_axis(index=["domain", f"rule ({network})"])

# %% [markdown]
# Where runs have scored their epochs (with held-out transferred images, as at the paper's scale), each rule's *regret* is
# what the best epoch on the target's labels, an oracle, would have brought more. Mean over the runs of a row, in points;
# empty where there are no such runs.

# %%
epochs = tables.epoch_regret(tables.collect_epochs(results))
_ = tables.write_table(epochs, Path(out) / "epoch_regret")
epochs.round(2) if len(epochs) else Markdown("No run in these results has scored its epochs.")

# %% [markdown]
# ## Pitfalls
#
# - **Comparing the best epoch of one row with the last of another.** Rows whose epochs were scored count the
#   one that is best on synthetic images, all others the last; the table of rules says what that is worth.
# - **Reading ± as certainty.** With three seeds, a difference of one standard deviation happens by chance all the time.
# - **A weak baseline.** Source-only must have converged, and must be allowed to train as long as the method: 01 shows
#   the curve, the row *source only, longer* is the check.
# - **Absent classes.** A class without a pixel in the truth has no IoU. It is left out, not counted as zero.

# %% [markdown]
# ## Try it
#
# **1. Predict:** which classes decide the mIoU of the night column? Then list the five largest gains.
#
# <details><summary>Solution</summary>
#
# ```python
# night = classes[(classes["variant"] == "zodi") & (classes["domain"] == "night")]
# night.sort_values("mean", ascending=False).head()
# ```
# </details>
#
# **2. Modify:** drop one seed and make the main table again. Does the ranking of the rows survive, for every seed you
# may drop?
#
# <details><summary>Solution</summary>
#
# ```python
# for seed in frame["seed"].unique():
#     display(tables.main_table(frame[frame["seed"] != seed]))
# ```
# Rows that change places were never ranked.
# </details>
#
# **3. Break:** compare ZoDi with the *worst* seed of source-only. How large does the gain get? What does that tell you
# about papers that run the baseline once?
#
# <details><summary>Solution</summary>
#
# ```python
# worst = tested[tested["variant"] == "source_only"].groupby("domain")["iou"].min()
# tested[tested["variant"] == "zodi"].groupby("domain")["iou"].mean() - worst
# ```
# The bias is the distance between the mean and the smallest of the seeds, and it grows with the number of seeds from
# which one may choose.
# </details>

# %% [markdown]
# ## Recap
#
# Differences are taken seed by seed, explained by rows that remove one cause each, and bounded by the oracle. The
# tables and figures are files now, and so are the numbers.

# %%
means = tables.summary(tested)
metrics = {"origin": origin, "miou": means.drop(columns=["class"]).to_dict("records")}
if origin.startswith("the runs"):
    tables.write_record(frame, Path(out) / "record.csv")
settings = {"results": results, "record": record}
_ = runs.save_metrics(out, "tables", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Back to:** [05 Adaptation](05_adaptation.ipynb), or on to [07 The paper's tables, and what they hide](07_published_tables.ipynb).
#
# **References.** The paper, Section 4 · J. Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*,
# JMLR 2006 · X. Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021 · sources of
# the published figures: `zodi/studies/published/`.
