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
# # 06 · Performance estimation: how good will it be where nobody has been?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/06_performance_estimation.ipynb)
#
# **In one sentence.** Images that were made for training can also *test*: the mIoU on transferred source images says
# how well a network will do on a target that nobody has photographed, and we measure how far it can be trusted.
#
# **What you will learn:** estimating the mIoU without a target image, with an interval · how well such estimates
# follow the truth, compared with simpler scores · when an estimate must be refused · choosing an epoch without
# labels, and what a wrong choice costs.
#
# **What you need:** [05 Adaptation](05_adaptation.ipynb).
#
# **How long it takes:** half an hour to read, three minutes to run on two CPU cores.

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
# The estimator is one module, `zodi.estimation`; `zodi.studies.evidence` asks whether it is right.

# %%
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from zodi import adaptation, datasets, estimation, evaluation, transfer
from zodi.labels import get_label_set
from zodi.miniature import dataset
from zodi.studies import agreement, evidence, tables
from zodi.support import explore, plots, runs
from zodi.support.bootstrap import bootstrap, resample_weights
from zodi.transfer_folder import transfer_folder

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce PROFILE=estimation` fills in other values.

# %% tags=["parameters"]
data: str = "../results/course/data"  # folder of the data set; rendered there when it is missing
domain: str = "night"  # target domain of the first example
steps: int = 120  # length of the two small trainings of this notebook
results: str = "../results/estimation"  # folder with the evidence of the workflow's profile estimation
record: str = "records/estimation"  # the evidence recorded by us, used when there is none
out: str = "../results/course/estimation"  # folder of this notebook's results

# %% [markdown]
# ## The idea
#
# Let $T_D(x, \varepsilon)$ be the transfer of a source image $x$ to the domain $D$ with noise $\varepsilon$. It keeps
# the layout, so the label map $y$ of the source image still holds. For a network $h$ and labelled source images
# $(x_n, y_n)$ that it was *not* trained on, we add up the confusion matrices of the transferred images:
#
# $$ \widehat{C} = \sum_{n} C\big(h(T_D(x_n, \varepsilon_n)),\, y_n\big), \qquad
# \widehat{\text{mIoU}}_D(h) = \text{mIoU}(\widehat C) . $$
#
# This needs no target image and no target label. Two conditions have to hold, and both will be checked: the images
# must *look* like the target, and their layout must still match the labels.
#
# First we train a network that needs an estimate, on clear weather.

# %%
root = dataset.prepare(data)
label_set = get_label_set(datasets.dataset_info(root)["label_set"])
train = datasets.open_split(root, "train")
alone, _ = adaptation.train(adaptation.recipe("mini", "source_only", steps=steps), train, None, None)

# %% [markdown]
# ## Five lines
#
# An estimate takes no more than this: a network, labelled images, a domain or a prompt, and a folder. Any network
# that maps images to logits will do. The generated images stay in the folder and are used again for the next network.

# %%
held_out = root / "test" / "clear"
folder = Path(out) / "generated" / domain
found = estimation.estimate(
    alone, held_out / "images", held_out / "labels", domain, folder, label_set=label_set, progress=False
)
print(found)

# %% [markdown]
# Class by class, with intervals. Classes that appear in too few images are marked and left out of the mean.

# %%
found.classes.sort_values("iou", ascending=False).round(1)

# %% [markdown]
# ## Where the interval comes from
#
# The images are a sample. The *bootstrap* draws the same number of images, with replacement, ten thousand times, and
# looks at the mIoU of every draw. Each image was transferred twice, and the draw also chooses between its transfers,
# so the interval takes the generator's noise into account.

# %%
transfers = [datasets.open_split(root, "test/clear", images=folder / f"seed{seed}" / "images") for seed in (0, 1)]
matrices = np.stack([evaluation.image_confusions(alone, part, label_set.num_classes, 10) for part in transfers])
weights = resample_weights(images=matrices.shape[1], seeds=2)
resampled = 100 * bootstrap(matrices, weights)
common = [label_set.names.index(name) for name in found.classes.index if name not in found.rare]
draws = np.nanmean(resampled[:, common], axis=1)

# %% [markdown]
# And the truth? On real data nobody knows it. Here we can render the true images of the domain.

# %%
target = evaluation.evaluate(alone, datasets.open_split(root, f"test/{domain}"), label_set, batch_size=10)
truth = np.nanmean([target["iou"][label_set.names[i]] for i in common])
figure, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.hist(draws, 60, color="0.75")
ax.axvspan(found.low, found.high, color=plots.DOMAIN_COLORS[domain], alpha=0.15, label="95 % interval")
ax.axvline(truth, color=plots.DOMAIN_COLORS[domain], label="truth")
ax.set(xlabel="mIoU (%)", ylabel="resamples")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
inside = "inside" if found.low <= truth <= found.high else "outside"
plots.show(
    figure,
    f"Ten thousand resamples of the estimate for {domain}; the truth, {truth:.1f} %, lies {inside} the interval.",
)

# %% [markdown]
# ## The evidence
#
# One network proves nothing. `make reproduce PROFILE=estimation` trains many: three architectures and the rows
# source-only, photometric, ZoDi and oracle, each scored at four steps of its training. Each of these networks is a
# point: its mIoU on the transferred *held-out* scenes, and its mIoU on the true test scenes, which are different
# scenes.

# %%
frame, layout, origin = evidence.load(results, record)
frame = agreement.leave_one_domain_out(frame)
print(f"from {origin}: {len(frame) // frame['domain'].nunique()} networks, {frame['domain'].nunique()} domains")
plots.show(
    plots.estimate_points(frame),
    "Estimate against truth. A point is a network at one step of its training, the bar its 95 % interval; on the line both "
    "are equal. Points below the line were promised more than they hold.",
    f"{out}/estimates.png",
)

# %% [markdown]
# How closely do the estimates follow the truth? We compare them with four other scores that need no target images:
# the mIoU on the **source** images, the mIoU on **photometric** changes of them, the **mean confidence**, and
# **ATC**, the share of pixels that are more confident than a threshold taken from the source. The last two look at
# the generated images and need no labels for them.

# %%
scores = evidence.by_domain(frame)
names = evidence.scores_in(frame)
correlation = scores.pivot(index="score", columns="domain", values="pearson").loc[list(names)].rename(names)
correlation = correlation[list(dict.fromkeys(frame["domain"]))]
correlation.assign(mean=correlation.mean(axis=1)).round(2).rename_axis(index="Pearson's r", columns=None)

# %% [markdown]
# Others have measured the same thing on photographs, with 40 networks and images from larger generators. These
# numbers are **published**, not ours:

# %% tags=["nbval-check-output"]
published = tables.published_genval().set_index("generator")
published[[name for name in correlation.columns if name in published]].astype(object).fillna("-")

# %% [markdown]
# Rank correlations measure the same without assuming a straight line:

# %%
ranks = (
    scores.pivot(index="score", columns="domain", values="kendall").loc[list(names)].rename(names)[correlation.columns]
)
ax = sns.heatmap(ranks, annot=True, fmt=".2f", cmap="crest", vmin=0, vmax=1, cbar_kws={"label": "Kendall's tau"})
ax.set(xlabel="target domain", ylabel="")
ax.figure.set_size_inches(6.5, 2.8)
plots.show(ax.figure, "Kendall's rank correlation of every score with the truth, over all networks.")

# %% [markdown]
# ## How far off, and can it be corrected?
#
# The points of one domain lie on a line, but not always on the line of equality: the generator has a bias in every
# domain. We learn a correction from domains whose truth is known and apply it to the one left out:
#
# $$ \text{mIoU} \approx a + b \cdot \widehat{\text{mIoU}}, \qquad (a, b) \text{ from all other domains.} $$
#
# The interval of the corrected estimate comes from the residuals of that line.

# %%
covered = evidence.intervals(frame)
covered.rename(
    columns={"coverage": "truth in 95 % interval (%)", "mae": "error (points)", "bias": "bias (points)",
             "coverage_calibrated": "corrected: in interval (%)", "mae_calibrated": "corrected: error (points)"}
).rename_axis(index=None).round(1)  # fmt: skip

# %% [markdown]
# The raw interval accounts for two things, the sample of images and the generator's noise. It does not account for
# the *bias*, so it covers the truth too rarely wherever the bias is larger than the interval. The correction comes
# with an interval that accounts for what happened in other domains. It does not make every number better: compare the
# error before and after the correction, domain by domain. Where the bias differs from that of the other domains, the
# correction raises the error.

# %%
error = frame.assign(raw=frame["estimate"] - frame["truth"], corrected=frame["calibrated"] - frame["truth"])
error = error.melt("domain", ["raw", "corrected"], "which", "error")
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
sns.boxplot(error, x="domain", y="error", hue="which", ax=ax, fliersize=1.5, linewidth=0.8)
ax.axhline(0, color="0.3", linewidth=0.8)
ax.set(xlabel="target domain", ylabel="estimate − truth (points)")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(figure, "Errors of all networks, raw and after the correction that the other domains teach.")

# %% [markdown]
# ## When an estimate must be refused
#
# If the generator loses the layout, the labels no longer describe the image and the estimate is meaningless. A
# *reference* network that knows the domain notices this: its share of correct pixels on an image is the **fidelity**
# of that image. Here the reference is the domain's oracle, where one was trained. To see what a lost layout looks
# like, every image is also given the label map of *another* scene; the threshold between the two cases comes from the
# other domains.

# %%
table = layout.set_index("domain")[["fidelity", "fidelity_lost", "threshold", "accuracy", "abstains", "abstains_lost"]]
table.rename(
    columns={"fidelity": "own labels (%)", "fidelity_lost": "others' labels (%)", "threshold": "threshold (%)",
             "accuracy": "told apart (%)", "abstains": "refused", "abstains_lost": "others' labels: refused"}
).rename_axis(index=None).round(1)  # fmt: skip

# %% [markdown]
# The fidelity cannot detect a generator that *keeps* the layout and draws the wrong weather. The domain classifier of
# [A1](A1_how_the_miniature_was_made.ipynb) is there for that.
#
# ### Leaving images out of the training
#
# The same score can clean a *training* set: `data.only(estimation.faithful_keys(...))`. Does it help? `make reproduce
# PROFILE=estimation` trains some networks twice, with all generated images and without the least faithful fifth. The
# judge is the domain's oracle, which has seen the target, so this uses more than a zero-shot method may know. These
# are our recorded runs; true mIoU in percent, one line per pair:

# %%
pairs = evidence.cleaning(frame)
pairs = pairs if len(pairs) > 1 else pd.read_csv(Path(record) / evidence.CLEANING_FILE)
pairs.drop(columns="network").set_index(["domain", "seed"]).round(1).rename(
    columns={"zodi": "all images", "zodi_faithful": "without the worst fifth", "difference": "difference (points)"}
)

# %% [markdown]
# In one sentence, with the standard error of the mean:

# %%
gain = pairs["difference"]
error = gain.std() / np.sqrt(len(gain))
verdict = "an effect" if abs(gain.mean()) > 2 * error else "no effect that could be told from chance"
Markdown(
    f"Leaving them out changes the truth by **{gain.mean():+.1f} ± {error:.1f} points** over {len(gain)} pairs: {verdict}."
)

# %% [markdown]
# ## Choosing without labels
#
# [07](07_published_tables.ipynb) shows how much the choice of an epoch matters. Every training run here offers four
# steps; each rule picks one, and its *regret* is how much better the best step would have been:
#
# $$ \text{regret} = \max_e m_t(e) - m_t(e^\text{rule}) . $$

# %%
chosen = evidence.choices(frame)
rules = {"last": "last step", "source": "best on source", "estimate": "best on synthetic (ours)", **{
    key: f"best {names[key]}" for key in ("photometric", "confidence", "atc")}}  # fmt: skip
lost = chosen.groupby("domain", sort=False)[list(rules)].mean().T.rename(rules)
lost.assign(mean=lost.mean(axis=1)).round(2).rename_axis(index="mean regret (points)", columns=None)

# %% [markdown]
# And for a choice between *networks*, with all steps of all training runs pooled: how much is lost by trusting a
# score?

# %%
pot = scores.pivot(index="score", columns="domain", values="regret").loc[list(names)].rename(names)[correlation.columns]
pot.assign(mean=pot.mean(axis=1)).round(2).rename_axis(index="regret (points)", columns=None)

# %% [markdown]
# For comparison, the 47 published logs, for which nobody has synthetic scores: the mean regret of the same rules
# compared with their oracle.

# %% tags=["nbval-check-output"]
logs = tables.published_logs()
pd.DataFrame({rule: logs["best_target"] - logs[rule] for rule in ("last", "at_best_source")}).mean().round(2)

# %% [markdown]
# ## Choosing a strength
#
# We compare two networks, trained on night images made at two strengths. `agreement.select` would take the one with
# the better estimate; both are judged on the same generated images. Is it right?

# %%
names_of = {"strength_70": "strength 0.70", "zodi": "the miniature's own, 0.92"}
final = frame[(frame["step"] == frame["steps"]) & (frame["domain"] == frame["adapted_to"])]
rows = final[(final["domain"] == "night") & final["variant"].isin(list(names_of)) & (final["seed"] == 1)]
rows = rows[rows["network"] == "DeepLabV3Plus/tu-resnet10t"].set_index("variant")[["estimate", "low", "high", "truth"]]
rows.rename(names_of).sort_values("estimate", ascending=False).rename_axis(index="night, trained on").round(1)

# %% [markdown]
# ## Explore
#
# We add a second network, trained with photometric changes to the same domain, and a few more domains.


# %%
def photometric(name: str, keys: list[str]) -> datasets.FolderDataset:
    """The training images with photometric changes, in a folder of their own."""
    images, labels = root / "train" / "images", root / "train" / "labels"
    config = transfer.domain_config(name, "photometric")
    transfer_folder(None, images, labels, Path(out) / "photometric", config, label_set, progress=False)
    return datasets.open_split(root, "train", images=Path(out) / "photometric" / "images").only(keys)


second = photometric(domain, train.keys)
changed, _ = adaptation.train(adaptation.recipe("mini", "photometric", steps=steps), train, second, None)
networks = {"source only": alone, f"photometric ({domain})": changed}

# %% [markdown]
# Choose a domain and a network. You see a generated image, what the network makes of it, the estimate and, at a
# click, the truth. Everything is computed beforehand, so the answer appears at once.

# %%
pictures, sentences, truths = {}, {}, {}
for name in [name for name in datasets.dataset_info(root)["domains"] if name != "clear"]:
    place = Path(out) / "generated" / name
    for title, network in networks.items():
        arguments = (network, held_out / "images", held_out / "labels", name, place)
        guess = estimation.estimate(*arguments, label_set=label_set, seeds=(0,), progress=False)
        sample = datasets.open_split(root, "test/clear", images=place / "seed0" / "images")[0]
        shown = [
            sample.image,
            label_set.colorize(evaluation.predict(network, sample.image)),
            label_set.colorize(sample.label),
        ]
        pictures[name, title] = plots.encode_png(np.concatenate(shown, axis=1))
        sentences[name, title] = str(guess)
        true = datasets.open_split(root, f"test/{name}")
        truths[name, title] = evaluation.evaluate(network, true, label_set, batch_size=10)["miou"]

# %% [markdown]
# The **estimate explorer** only looks things up. Without a running kernel you see its first choice.


# %%
def look_up(domain: str, network: str, truth: bool) -> tuple[bytes, str]:
    """Generated image, prediction and labels, and the estimate in words."""
    known = f"<br>true mIoU: <b>{truths[domain, network]:.1f} %</b>" if truth else ""
    return pictures[domain, network], f"generated image · prediction · labels<br>{sentences[domain, network]}{known}"


explore.Explorer(
    look_up,
    {
        "domain": widgets.ToggleButtons(options=sorted({name for name, _ in pictures}), description="domain"),
        "network": widgets.ToggleButtons(options=list(networks), description="network"),
        "truth": widgets.ToggleButton(description="show the truth"),
    },
    "Estimate explorer: a generated image, what the network makes of it, and the labels.",
)

# %% [markdown]
# ## Pitfalls
#
# - **Estimating on training images.** The network knows them, even in different weather. Hold some out.
# - **Believing the interval.** It accounts for the sample and the noise, not for the generator's bias.
# - **Comparing an estimate with a number from a table.** Its images, classes and bias are different. Compare
#   estimates with estimates: they rank well, and the difference between two networks on the same images is far more
#   certain than either value.
# - **Choosing among networks that were trained on the judge's own generator.** They may be favoured; look at the points of
#   `zodi` rows before you trust a ranking of methods.
#
# ## Try it
#
# **1. Predict:** a class appears in two of sixty images. What will its interval look like, and how does the mean
# treat it?
#
# <details><summary>Solution</summary>
#
# It is wide, or missing: many resamples do not contain the class at all. `estimate` calls it rare and leaves it out
# of the mean.
# ```python
# found.classes.assign(width=found.classes["high"] - found.classes["low"]).sort_values("images")
# ```
# </details>
#
# **2. Modify:** make an estimate for your own domain: give a prompt instead of a name.
#
# <details><summary>Solution</summary>
#
# ```python
# own = estimation.estimate(alone, held_out / "images", held_out / "labels", "driving in fog", f"{out}/own")
# print(own)
# ```
# The miniature knows only the words of its six domains; Stable Diffusion knows more.
# </details>
#
# **3. Break:** judge with labels that do not belong to the images, as if the layout had been lost. Does the estimate
# notice?
#
# <details><summary>Solution</summary>
#
# Not by itself; with a reference network it is refused.
# ```python
# lost = evidence.score_network(alone, {"x": evidence.shuffled(transfers[0])}, label_set)["x"][None]
# print(estimation.estimate_from(lost, label_set.names))
# print(estimation.estimate_from(lost, label_set.names, reference=lost))
# ```
# </details>

# %% [markdown]
# ## Recap
#
# Transferred held-out images estimate a network's mIoU without a target image. On average over the domains the
# estimates follow the truth more closely than the other scores do. The photometric score comes close, though, and in
# snow it is ahead. As numbers, estimates carry the generator's bias. A correction learnt from other domains widens
# the intervals, so that in most domains they cover the truth far more often, but it raised the error in some domains
# and also on average. And where the layout is lost, the right answer is no estimate at all.

# %%
summary = pd.DataFrame({
    "Pearson's r": scores[scores["score"] == "estimate"].set_index("domain")["pearson"],
    "r of source mIoU": scores[scores["score"] == "source"].set_index("domain")["pearson"],
    "error (points)": covered["mae"], "corrected": covered["mae_calibrated"],
    "in corrected 95 % interval (%)": covered["coverage_calibrated"],
    "regret, best on synthetic": lost.loc[rules["estimate"]], "regret, last": lost.loc["last step"],
}).rename_axis(index=None)  # fmt: skip
for name, values in {"main": summary, "scores": scores, "regret_of_epochs": lost, "layout": layout}.items():
    tables.write_table(values.round(2), Path(out) / name)
metrics = {"scores": scores.to_dict("records"), "intervals": covered.to_dict("index"), "regret": lost.to_dict()}
settings = {"data": data, "domain": domain, "steps": steps, "results": results}
_ = runs.save_metrics(out, "estimation", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [07 The paper's tables, and what they hide](07_published_tables.ipynb): how much a choice by the target's
# labels matters in published numbers.
#
# **References.** The paper, Section 4 (performance estimation) · S. Garg et al., *Leveraging Unlabeled Data to Predict
# Out-of-Distribution Performance* (ATC), ICLR 2022 · *GenVal*, ECCV 2024, figures in `zodi/studies/published/genval.csv` · B. Efron,
# *Bootstrap Methods*, Annals of Statistics 1979.
