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
# **In one sentence.** All runs of 01 and 05 become one table with mean and spread over seeds, and every claim about
# it is a sentence that this notebook computes.
#
# **What you will learn:** why a single run proves nothing · how to compare two methods seed by seed · which rows a
# table needs so that a gain can be *explained* · when two rows tie.
#
# **Level:** intermediate. **What you need:** [01](01_domain_gap.ipynb) for mIoU, [05](05_adaptation.ipynb) for the rows,
# whose last part asks what explains the gain. Read this notebook after 05 and before
# [06](06_performance_estimation.ipynb). No GPU; if you have no runs of your own, the notebook reads the record of ours.
#
# **How long it takes:** half an hour to read, seconds to run.
#
# Words and symbols are in the [glossary](glossary.md), errors in [troubleshooting](troubleshooting.md).

# %% [markdown]
# On Google Colab this cell fetches the course and installs what is missing; elsewhere it does nothing.

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
# `zodi.studies.findings` says in words what a table says.

# %%
import time

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from zodi import datasets
from zodi.studies import findings, tables
from zodi.studies.table_rows import table_rows
from zodi.support import plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
results: str = "../results/full"  # results folder of a profile; its runs/ are read
record: str = "records/full.csv"  # our recorded runs, read when `results` has none
out: str = "../results/course/tables"  # folder of the tables and figures

# %% [markdown]
# ## One tidy frame
#
# A run is identified by a row (*variant*), the domain it was adapted to, a network and a seed. Each was tested on the
# domain's test set and on clear. `class` is a class name, or `mean` for the mIoU. How many seeds were run of each row,
# by the domain that it was adapted to; some rows know no domain and are trained once for all:

# %%
frame, origin = tables.load_runs(results, record)
display(Markdown(f"These tables are made from **{origin}**."))
seeds = frame.groupby(["variant", "domain"], sort=False)["seed"].nunique().unstack()
adapted_to = [name for name in frame["test_domain"].unique() if name in seeds]
order = [name for name in table_rows() if name in seeds.index]
seeds = seeds.reindex(order, columns=["", *adapted_to]).dropna(axis=1, how="all")
seeds = seeds.rename(index=tables.label, columns={"": "(none)"}).rename_axis(index=None)
seeds.astype("Int64").astype(object).fillna("-")

# %% [markdown]
# ## The table
#
# Every cell is the mIoU on the *true* target images, in percent: mean ± sample standard deviation over seeds,
#
# $$ \bar m = \frac1n \sum_{i=1}^n m_i, \qquad s = \sqrt{\frac{1}{n-1} \sum_{i=1}^n (m_i - \bar m)^2}. $$
#
# In every run the last step counts, so no target label has chosen it. One thing was not blind: the training settings,
# which all rows share, were tuned on these test scenes with the source-only and oracle rows of one seed, never with
# ZoDi.

# %%
table = tables.main_table(frame)
_ = tables.write_table(table, Path(out) / "main")
display(table)

# %% [markdown]
# What it says. A difference below two of its standard errors is called a tie, and the rows that tie with the best one
# are named beside it.

# %%
said = findings.paragraph(frame)
display(Markdown(said))

# %% [markdown]
# The row *test-time transfer* needs a word. Nothing is trained for it: every test image is redrawn in the *source's*
# domain, and the source-only network, unchanged, segments the result. The layout is what this network sees in the image,
# since nobody has labels there ([09](09_bring_your_own_domain.ipynb) does it step by step).

# %%
over = findings.against(frame, "source_only", "redrawn")
under = findings.against(frame, "redrawn")
display(Markdown(f"{over}\n\n{under}" if over else "It was not run."))

# %% [markdown]
# ## Seed by seed
#
# Two rows with the same seed start from the same weights. Part of the spread is therefore shared and cancels when we
# subtract *before* we average:
#
# $$ d_i = m_i^{\text{variant}} - m_i^{\text{source only}} . $$
#
# The standard error of the mean difference is $s_d / \sqrt n$. For three seeds that is still only a rough guide, so
# look at the numbers themselves: each dot is one seed.

# %%
pairs = tables.paired(frame)
domains = list(dict.fromkeys(pairs["domain"]))
gains = tables.gains(pairs)
always = (
    (gains["positive"] == gains["seeds"]).groupby(gains["variant"], sort=False).all()
)
named = [findings.called(name) for name in always.index[always]]
plots.show(
    plots.row_points(pairs, "gain", "gain (points)"),
    "Gain over source only, every seed minus its own partner. A row whose dots all lie "
    "right of zero is better in every seed. In every seed of every domain you should "
    f"see this for {findings.listed(named) or 'no row'}.",
    Path(out) / "figures" / "gains.png",
)

# %% [markdown]
# The same as numbers, for those who want to go on from here. Where do the seeds disagree?

# %%
_ = tables.write_table(gains.set_index(["variant", "domain"]), Path(out) / "gains")
split = gains[(gains["positive"] > 0) & (gains["positive"] < gains["seeds"])]
lines = [f"- {tables.statement(gain, 'source_only')}" for _, gain in split.iterrows()]
display(Markdown("\n".join(lines) or "Nowhere: every row's seeds agree on the sign."))

# %% [markdown]
# ## What explains the gain?
#
# ZoDi changes several things at once: it shows the network *other* images, *more* images, and it adds the similarity
# term. A table with only source-only and ZoDi cannot tell which of these helped, so each further row takes one
# explanation away. [05](05_adaptation.ipynb) asks the questions one by one and has ZoDi's differences from every row,
# with their standard errors. Here is the short form: in how many domains ZoDi is better than a row by two standard
# errors, ties with it, or is worse. The differences themselves are written to a file.

# %%
_ = tables.write_table(findings.comparison_table(frame), Path(out) / "differences")
compared = findings.compare(frame)
counts = pd.crosstab(compared["other"].map(tables.label), compared["verdict"])
kinds = [findings.BETTER, findings.TIED, findings.WORSE, findings.UNDECIDED]
counts = counts.reindex(compared["other"].map(tables.label).unique())
counts = counts.reindex(columns=[kind for kind in kinds if kind in counts])
counts.rename_axis(index="ZoDi against", columns="domains")

# %% [markdown]
# The **oracle** trains on true target images of the training scenes. No zero-shot method can be expected to surpass
# it, so it measures how much there is to gain:
#
# $$ \text{gap closed} = 100\,\% \cdot \frac{\bar m - \bar m^{\text{source only}}}
# {\bar m^{\text{oracle}} - \bar m^{\text{source only}}} . $$

# %%
closed = tables.gap_closed(frame)
closed.round(0).astype(object).fillna("-")

# %% [markdown]
# ## What it costs at home
#
# An adapted network still has to work in clear weather. The columns are the domains that a row was adapted to; the
# numbers are the mIoU on **clear** test images.

# %%
home = frame[(frame["test_domain"] == "clear") & (frame["class"] == tables.MEAN)]
clear = tables.summary(home.replace({"domain": {"": "(none)"}}))
clear["row"] = clear["variant"].map(tables.label)
spread = zip(clear["mean"], clear["std"], strict=True)
clear["cell"] = [tables.plus_minus(mean, std) for mean, std in spread]
index = ["network", "row"] if clear["network"].nunique() > 1 else ["row"]
cost = clear.pivot(index=index, columns="domain", values="cell")
cost = cost.reindex(clear.set_index(index).index.unique())
cost[[name for name in ("(none)", *adapted_to) if name in cost]].fillna("-")

# %% [markdown]
# [05](05_adaptation.ipynb) has the differences for ZoDi in words. Is it the generated images that cost so much? Compare
# with the oracle, which trains on true ones:

# %%
alone = home[home["variant"] == "source_only"]
twins = home.merge(alone, on=["network", "seed"], suffixes=("", "_alone"))
change = (twins["iou"] - twins["iou_alone"]).groupby(twins["variant"]).mean()
words = "ZoDi or the oracle was not tested on clear."
if {"zodi", "oracle"} <= {*change.index}:
    zodi, oracle = change["zodi"], change["oracle"]
    words = (
        f"On average over domains and seeds, ZoDi changes the mIoU on clear images by "
        f"{zodi:+.1f} points and the oracle by {oracle:+.1f}."
    )
    if max(zodi, oracle) < 0:
        words += f" So true images cost {100 * oracle / zodi:.0f} % as much."
display(Markdown(words))

# %% [markdown]
# ## Class by class
#
# In the mIoU a class with ten pixels counts as much as the road. Which classes gain, and which lose?

# %%
classes = tables.gains(tables.paired(frame, classes=None))
zodi = classes[classes["variant"] == "zodi"]
zodi = zodi.pivot_table("mean", "class", "domain", sort=False)
if len(zodi):
    zodi = zodi.loc[zodi.mean(axis=1).sort_values(ascending=False).index]
    size = (2 + 0.8 * len(zodi.columns), 0.8 + 0.24 * len(zodi))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    look = {"center": 0, "cmap": "RdBu", "annot": True, "fmt": ".0f"}
    sns.heatmap(zodi, ax=ax, cbar_kws={"label": "gain in IoU (points)"}, **look)
    ax.set(xlabel="adapted to", ylabel="")
    plots.show(
        figure,
        "Gain of ZoDi over source only, class by class, seeds averaged; blue gains. "
        f"Averaged over domains, {zodi.index[0]} gains most, {zodi.index[-1]} least.",
        Path(out) / "figures" / "classes.png",
    )

# %% [markdown]
# ## In pictures
#
# Numbers say how much, pictures say what. Here is the first test image of every domain, and the predictions of the
# networks of one seed. Look for objects that appear from left to right, and for what even the oracle misses. (There is
# a picture only where the runs are on this machine: the record has numbers.)

# %%
shown = ["source_only", "redrawn", "zodi", "oracle"]
samples, seen = [], {}
for name in domains if origin.startswith("the runs") else []:
    first, predictions = tables.read_predictions(results, name, shown, limit=1)
    samples += first
    for row, maps in predictions.items():
        seen.setdefault(row, []).extend(maps)
if samples:
    images, truths = [s.image for s in samples], [s.label for s in samples]
    seen = {row: maps for row, maps in seen.items() if len(maps) == len(samples)}
    label_set = datasets.label_set_of(f"{results}/data")
    plots.show(
        plots.prediction_grid(images, truths, seen, label_set),
        f"One test image each of {', '.join(domains)}: truth, and what networks of one "
        "seed predict. The nearer a column is to the truth, the better the row.",
        Path(out) / "figures" / "predictions.png",
    )

# %% [markdown]
# ## In the paper
#
# The paper's tables hold DeepLabv3+ and RefineNet on Cityscapes, adapted to ACDC (night, snow, rain, fog) and GTA5
# (game), with Stable Diffusion. The column *published* **was not run by us**: it is averaged from the training logs
# that the authors publish in their repository. The column *reproduced* comes from `make reproduce PROFILE=paper`, and
# is `-` where it was not run. [07](07_published_tables.ipynb) analyses the logs.

# %%
reproduced, logs = tables.collect_epochs(results), tables.published_logs()
comparison = tables.beside_published(reproduced, logs)
_ = tables.write_table(comparison, Path(out) / "published")
network = "DeepLabv3+-resnet50"
names = {
    "last": "last",
    "at_best_source": "best on source",
    "best_target": "best on target",
}
named = comparison.xs(network, level="network").rename(names, level="rule")
named = named.rename_axis(index=["domain", f"rule ({network})"])
named.astype(object).fillna("-")

# %% [markdown]
# Where runs have scored their epochs (with held-out transferred images, as at the paper's scale), each rule has a
# *regret*: how much better the best epoch on the target's labels, an oracle, would have been. The table shows the
# mean over the runs of a row, in points; it is empty if there are no such runs.

# %%
epochs = tables.epoch_regret(tables.collect_epochs(results))
_ = tables.write_table(epochs, Path(out) / "epoch_regret")
epochs.round(2) if len(epochs) else Markdown("No run here has scored its epochs.")

# %% [markdown]
# ## Pitfalls
#
# - **Comparing the best epoch of one row with the last of another.** For rows whose epochs were scored, the epoch
#   that is best on synthetic images counts, for all others the last; the table of rules says how much that matters.
# - **Reading ± as certainty.** With three seeds, a difference of one standard deviation often arises by chance. The
#   table has standard deviations of runs; the differences have standard errors of means, which are smaller.
# - **Counting the wins.** Among many rows and domains some differences exceed two standard errors by chance alone.
# - **A weak baseline.** Source-only has to converge, and has to be allowed to train for as long as the method: 01
#   shows the curve, and the row *source only, as many images* is the check.
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
# **2. Modify:** drop one seed and make the main table again. Does the ranking of the rows stay the same, whichever
# seed you drop?
#
# <details><summary>Solution</summary>
#
# ```python
# for seed in frame["seed"].unique():
#     display(tables.main_table(frame[frame["seed"] != seed]))
# ```
# Rows that change places cannot be ranked.
# </details>
#
# **3. Break:** compare ZoDi with the *worst* seed of source-only. How large does the gain become? What does this tell
# you about papers that run the baseline once?
#
# <details><summary>Solution</summary>
#
# ```python
# tested = tables.on_target(frame)
# worst = tested[tested["variant"] == "source_only"].groupby("domain")["iou"].min()
# tested[tested["variant"] == "zodi"].groupby("domain")["iou"].mean() - worst
# ```
# The bias is the distance between the mean and the lowest of the seeds, and it grows with the number of seeds to
# choose from.
# </details>

# %% [markdown]
# ## Recap
#
# Differences are taken seed by seed, explained by rows that remove one cause each, and bounded by the oracle. What the
# table says is computed from it. The tables, figures and numbers are now stored in files.

# %%
means = tables.summary(tables.on_target(frame)).drop(columns=["class"])
metrics = {"origin": origin, "miou": means.to_dict("records"), "said": said}
if origin.startswith("the runs"):
    tables.write_record(frame, Path(out) / "record.csv")
settings = {"results": results, "record": record}
_ = runs.save_metrics(out, "tables", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [06 Performance estimation](06_performance_estimation.ipynb), or back to [05 Adaptation](05_adaptation.ipynb).
#
# **References.** The paper, Section 4 · J. Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*,
# JMLR 2006 · X. Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021 · sources of
# the published figures: `zodi/studies/published/`.
