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
# # 08 · Real photographs: training and estimating from day to dusk, without diffusion
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/08_real_photographs.ipynb)
#
# **In one sentence.** Half of the method on real photographs: networks learn from drives through Cambridge by day, and
# from the same frames darkened by a formula *in place of the diffusion model*, and are tested at dusk.
#
# **What you will learn:** how to split a video data set so that the test is fair · how much a hand-made change of the
# images helps where the gap is small · reading a result that is *not* a success story · estimates on photographs.
#
# **Level:** intermediate. **What you need:** [05 Adaptation](05_adaptation.ipynb),
# [06 Performance estimation](06_performance_estimation.ipynb).
#
# **How long it takes:** twenty minutes to read, seconds to run; the runs themselves take about 25 minutes on two CPU
# cores.
#
# Words and symbols are in the [glossary](glossary.md), errors in [troubleshooting](troubleshooting.md).
#
# > **What this notebook is not.** It is not ZoDi on photographs. No diffusion model was run here; that needs Stable
# > Diffusion and a graphics card ([11](11_stable_diffusion.ipynb)), and **we have not run it** on these photographs.

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
# Nothing here is specific to photographs: we use the same modules as in the previous notebooks.

# %%
import time

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from zodi import datasets, transfer
from zodi.miniature import scenes
from zodi.studies import evidence, tables
from zodi.support import plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. The runs are made by `make reproduce PROFILE=camvid DATA=path`; without them our records are shown,
# but no photographs, because CamVid is meant for research and we may not redistribute it.

# %% tags=["parameters"]
results: str = "../results/camvid"  # results folder of the profile camvid
record: str = "records/camvid"  # our recorded results, read when there are none
scene_seed: int = 200_004  # number of the rendered street that is shown
out: str = "../results/course/photographs"  # folder of this notebook's results

# %% [markdown]
# ## The data
#
# CamVid (Brostow et al., 2009) is four drives through Cambridge with 701 labelled frames; three drives took place by
# day and one, `0001TP`, at dusk. Frames of one drive resemble each other, so a random split would test on neighbours
# of training frames. Here the data are split by drive and by time:
#
# | part | frames | used for |
# |---|---|---|
# | `train` | day: CamVid's train and val | training |
# | `test/clear` | day: another drive | source score, held-out images for estimates |
# | `train_dusk` | first half of the dusk drive | the oracle only |
# | `test/dusk` | second half, after a gap | the truth |
#
# The oracle therefore trains on **the same drive** that everybody is tested on: the same evening, the same camera, the
# same town, and streets that continue around the corner. Keep this in mind for every comparison with it.
#
# ```bash
# python data_scripts/camvid.py --root data/CamVid download  # no registration, about 180 MB
# python data_scripts/camvid.py --root data/CamVid extract
# python data_scripts/camvid.py --root data/CamVid check
# make reproduce PROFILE=camvid DATA=data/CamVid
# ```

# %%
frame, origin = tables.load_runs(results, Path(record) / "runs.csv")
display(Markdown(f"Everything below is made from **{origin}**."))

# %% [markdown]
# ## The change
#
# The profile does what a user would do without diffusion: it changes exposure, gamma, colour temperature and noise,
# chosen by hand for the word *dusk*, without looking at a dusk frame. CamVid's frames may not be shown here, so look
# at the change on a street of our renderer, twice, because the amounts are drawn at random for each image:

# %%
street = scenes.render(scene_seed, "clear", 192, 384).image
config = transfer.domain_config("dusk", "photometric")
draws = transfer.transfer_images(None, [street] * 2, None, ["first", "second"], config)
names = ["clear", "changed", "changed again"]
figure = plots.image_grid([[street, *draws]], names, width=11.8)
darker = 100 * (1 - np.mean(draws) / street.mean())
plots.show(
    figure,
    f"A rendered street, and the hand-made change to dusk, which takes {darker:.0f} % "
    "of the brightness. You should see what it does *not* do: no lamp is lit, no sky "
    "turns bright at the horizon.",
)

# %% [markdown]
# With CamVid's frames on your disk, the next figure shows the same on them, beside true dusk:

# %%
place = Path(results)
if (place / "data").is_dir():
    parts = ("train", "test/dusk")
    train, true = (datasets.open_split(place / "data", name) for name in parts)
    made = {folder.name: folder for folder in (place / "transfer/dusk").iterdir()}
    method = next(m for m in ("stochastic_inversion", "photometric") if m in made)
    images = made[method] / "images"
    synth = datasets.open_split(place / "data", "train", images=images)
    some = (0, len(train) // 2)
    rows = [[train[i].image, synth[i].image, true[i % len(true)].image] for i in some]
    names = ["day", f"changed ({method})", "true dusk, other place"]
    figure = plots.image_grid(rows, names, width=11.8)
    by_day, changed, dusk = (np.mean([row[k] for row in rows]) for k in range(3))
    plots.show(
        figure,
        "Photographs by day, the same changed to dusk, and true dusk. You should see "
        f"how dark each is: grey values of {by_day:.0f}, {changed:.0f} and {dusk:.0f}.",
    )
else:
    print(f"no photographs below {results}: the figure is left out")

# %% [markdown]
# ## The result
#
# mIoU over CamVid's eleven classes on the true dusk frames, in percent, mean ± standard deviation over the seeds.
# Epochs were scored during training; the one that counts is the best on *changed day frames*. For source-only and the
# oracle, which have seen no changed frame, the last epoch counts. The oracle's row is an upper bound for more than the
# light: it has trained on another part of the drive that is the test.

# %%
table = tables.main_table(frame)
_ = tables.write_table(table, Path(out) / "main")
display(table)

# %% [markdown]
# The same, run by run:

# %%
tested = tables.on_target(frame)
means = tested.groupby("row")["iou"].mean().sort_values(ascending=False)
first = f"{means.index[0]}, {means.iloc[0] - means.iloc[1]:.1f} points above the next"
plots.show(
    plots.row_points(tested),
    "mIoU on the true dusk frames. Dots are runs, ticks their means; what overlaps is "
    f"not ranked. You should see the highest mean in the row {first}.",
    f"{out}/rows.png",
)

# %% [markdown]
# Each seed minus its own source-only partner, as sentences computed from the runs:


# %%
def statements(gains: pd.DataFrame, against: str) -> Markdown:
    """One sentence per line of a table of gains."""
    lines = [f"- {tables.statement(gain, against)}" for _, gain in gains.iterrows()]
    return Markdown("\n".join(lines))


gains = tables.gains(tables.paired(frame))
display(statements(gains, "source_only"))

# %% [markdown]
# Does the crude change help by itself, or only together with the similarity term, the third term of the loss?

# %%
ours = "zodi" if "zodi" in set(frame["variant"]) else "photometric"
without = f"{ours}_no_similarity"
similarity = pd.DataFrame()
if without in set(frame["variant"]):
    pairs = tables.paired(frame, reference=without)
    similarity = tables.gains(pairs[pairs["variant"] == ours])
    display(statements(similarity, without))

# %% [markdown]
# In one sentence, computed from the runs:


# %%
def in_seeds(row: str) -> str:
    """In how many seeds a row is better than source-only."""
    line = gains.set_index("variant").loc[row]
    seeds = f"{int(line['positive'])} of {int(line['seeds'])} seeds"
    return f"{seeds} ({line['mean']:+.1f} points)"


# %% [markdown]
# The verdict:

# %%
verdict = f"With the similarity term the change helps in {in_seeds(ours)}"
if len(similarity):
    both = gains.set_index("variant").loc[[ours, without]]
    every = both["positive"] == both["seeds"]
    verdict += f", without it in {in_seeds(without)}"
    if every.tolist() == [True, False]:
        verdict += ", so in every seed only with it"
    term = similarity.iloc[0]
    size = f"{term['mean']:+.1f} ± {term['std']:.1f} points"
    seeds = f"{int(term['positive'])} of {int(term['seeds'])} seeds"
    verdict += f". The term itself changes the mIoU by {size} and helps in {seeds}"
display(Markdown(verdict + "."))

# %% [markdown]
# How large is the gap in the first place? What the oracle gains over source-only may be more than the light alone is
# worth, because it knows the drive. By class:

# %%
classes = tables.on_target(frame, None)
classes = classes.groupby(["class", "variant"], sort=False)["iou"].mean().unstack()
rows = [name for name in (ours, "oracle") if name in classes]
gain = classes[rows].sub(classes["source_only"], axis=0).rename(columns=tables.label)
gain = gain.sort_values(gain.columns[-1], ascending=False)
top, most = gain.index[0], gain.iloc[0]
plots.show(
    plots.class_bars(gain, "gain in IoU over source only (points)"),
    "Class by class: what the change of the images gains over source-only, and what "
    f"the oracle gains. You should see the oracle's largest gain for *{top}*, "
    f"{most.iloc[-1]:+.0f} points, where the change gains {most.iloc[0]:+.0f}.",
)

# %% [markdown]
# ## Which epoch?
#
# The regret of every rule compared with the best epoch on the dusk labels, mean over the runs, in points. A rule is
# *best* on the source, on the changed day frames (`best_synthetic`), or on the target:

# %%
recorded = Path(record) / "epochs.csv"
here = tables.collect(results).size > 0
epochs = tables.collect_epochs(results) if here else pd.read_csv(recorded)
lost = tables.epoch_regret(epochs)
_ = tables.write_table(lost.round(2), Path(out) / "epoch_regret")
lost.rename_axis(index=[None, None]).rename(tables.label, level=0).round(2)

# %% [markdown]
# ## Estimates on photographs
#
# As in [06](06_performance_estimation.ipynb): day frames of the other drive, on which nothing was trained, are
# changed to dusk, and the mIoU on them is the *estimate*. Each training run is scored at several steps, and every step
# counts as a network; the mIoU on the true dusk frames is the truth.

# %%
models, layout, _ = evidence.load(results, record)
off = (models["estimate"] - models["truth"]).abs()
plots.show(
    plots.estimate_points(models),
    "Estimated against true mIoU at dusk; a point is a network at one step of its "
    "training, bars are 95 % intervals from sampling only. Good estimates would lie on "
    f"the line. You should see {(off > 5).sum()} of {len(off)} points more than five "
    "points of mIoU away from it.",
)

# %% [markdown]
# Compared with the simpler scores: a good score follows the truth (Pearson's r, Kendall's tau) and chooses well
# (regret).

# %%
names = evidence.scores_in(models)
scores = evidence.by_domain(models).set_index("score").loc[list(names)].rename(names)
_ = tables.write_table(scores.round(3), Path(out) / "scores")
scores[["pearson", "kendall", "mae", "regret"]].round(2)

# %% [markdown]
# Do the estimates follow the truth? And why, or why not? Look at the training runs one by one:

# %%
columns = ["source", "estimate", "truth"]
by_training = models.groupby("variant", sort=False)[columns].mean()
shown = by_training.rename(index=tables.label)
shown.rename_axis(index="mean over the steps, mIoU (%)").round(1)

# %% [markdown]
# The same in words, computed from the table:

# %%
r = scores.iloc[0]["pearson"]
truest, lowest = by_training["truth"].idxmax(), by_training["estimate"].idxmin()
follows = "does not follow" if r <= 0 else "follows weakly" if r < 0.7 else "follows"
sentences = [f"The estimate {follows} the truth (r = {r:.2f})."]
if truest == lowest:
    best = tables.label(truest)
    sentences.append(f"The best at true dusk, {best}, is the worst on changed frames.")
for row, line in by_training.iterrows():
    side = "harder" if line["estimate"] < line["truth"] else "easier"
    gap = abs(line["estimate"] - line["truth"])
    name = tables.label(row)
    sentences.append(f"*{name}* finds changed frames {gap:.0f} points {side}.")
display(Markdown(" ".join(sentences)))

# %% [markdown]
# A change that was written for the word *dusk* need not be dusk, and an estimate is only as good as its images. The
# miniature's diffusion model is put to the same test in [06](06_performance_estimation.ipynb). This section should be
# repeated with Stable Diffusion; **we have not run it yet**.
#
# Can one notice from the changed frames alone how far to trust them? A reference network should find the layout in
# them. Here the reference is the oracle. How often can it tell frames with their own labels from frames with those of
# another scene? Guessing is right in 50 %.

# %%
found = layout.set_index("domain")[["fidelity", "fidelity_lost", "accuracy"]]
columns = ["own labels (%)", "others' labels (%)", "told apart (%)"]
display(found.set_axis(columns, axis=1).rename_axis(index=None).round(1))
told = found["accuracy"].mean()
right = "reads the layout in most of them" if told > 75 else "is often wrong"
Markdown(f"With {told:.0f} % told apart, the reference {right}.")

# %% [markdown]
# ## Pitfalls
#
# - **Neighbouring frames.** A random split of a video tests on almost the same frames that it trained on.
# - **Choosing the strength of the change by the dusk frames.** It might help, but it would no longer be zero-shot.
#   Ours was written for the word and not touched again.
# - **Small test sets.** A few dozen frames of one drive show one place at one time. The interval of the estimate says how
#   much that matters.
#
# ## Try it
#
# **1. Predict:** which class should gain least from darker training images?
#
# <details><summary>Solution</summary>
#
# One would think: a class that is recognised by its shape and place rather than by its colour, such as the road.
# Compare with the bars above. A class that no row ever finds gains nothing either way.
# ```python
# gain.sort_values(gain.columns[0]).head(3)
# ```
# </details>
#
# **2. Modify:** how many seeds would it take to see an effect of one point?
#
# <details><summary>Solution</summary>
#
# The standard error of the mean difference is $s / \sqrt n$. It should be half the effect.
# ```python
# gains.assign(needed=(2 * gains["std"] / 1.0) ** 2)[["variant", "std", "needed"]]
# ```
# </details>
#
# **3. Break:** compare the rows by their best epoch on dusk instead. What would you have concluded?
#
# <details><summary>Solution</summary>
#
# ```python
# epochs[epochs["rule"] == "best_target"].groupby("variant")["target"].mean()
# ```
# Every row gains its regret, and the order may change.
# </details>

# %% [markdown]
# ## Recap
#
# Training and estimating run on photographs as they do on the miniature; the diffusion model is still to come. What
# the runs say:

# %%
oracle = gains.set_index("variant").loc["oracle"]
recap = (
    f"- As *training* images: {verdict[0].lower()}{verdict[1:]}.\n"
    f"- The oracle gains {oracle['mean']:+.1f} points. It has seen the same drive, so "
    "this bounds more than the light.\n"
    f"- As *test* images: the estimate {follows} the truth (r = {r:.2f})."
)
display(Markdown(recap))

# %% [markdown]
# The results file, as at the end of every notebook:

# %%
metrics = {"scores": scores.reset_index().to_dict("records")}
metrics["gains"] = gains.to_dict("records")
took = time.perf_counter() - start
_ = runs.save_metrics(out, "photographs", {"results": results}, metrics, took)

# %% [markdown]
# **Next:** [09 Bring your own domain](09_bring_your_own_domain.ipynb): the same with your images and your sentence.
#
# **References.** G. Brostow et al., *Semantic Object Classes in Video*, Pattern Recognition Letters 2009 ·
# V. Badrinarayanan et al., *SegNet*, PAMI 2017 (the 11-class labels).
