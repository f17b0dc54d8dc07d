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
# # 07 · The paper's tables, and what they hide
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/07_published_tables.ipynb)
#
# **In one sentence.** The authors publish 47 training logs. Which epoch of each log counts is a choice, and on
# average this choice alone moves a result by one to two and a half points of mIoU.
#
# **What you will learn:** three rules that turn a log into one number · how much they differ, run by run · whether
# the source domain tells us when to stop · how to read a table of peers.
#
# **What you need:** [05 Adaptation](05_adaptation.ipynb) for the rows, [06](06_performance_estimation.ipynb) for
# regret. No GPU and no runs: all numbers here are **published** by others; we ran none of it.
#
# **How long it takes:** twenty minutes to read, seconds to run.

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
# The published figures and their sources are stored in `zodi/studies/published/`.

# %%
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from zodi.studies import tables
from zodi.support import explore, plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters.

# %% tags=["parameters"]
out: str = "../results/course/published"  # folder of this notebook's results

# %% [markdown]
# ## One log, three numbers
#
# A log holds, for every epoch $e$, the mIoU on the source's validation set $m_s(e)$ and on the target's $m_t(e)$. A
# table holds one number. Which epoch does it come from?
#
# $$ \text{last:}\; e = E, \qquad \text{best on source:}\; e = \arg\max_e m_s(e), $$
#
# $$ \text{best on target:}\; e = \arg\max_e m_t(e) . $$
#
# The number is always $m_t(e)$. The third rule looks at the target's labels, which are not available in zero-shot
# adaptation: it is an *oracle*. The authors' program saves that epoch, among others. We do not know which rule the
# paper's tables use, so nothing here says that they use this one.

# %%
logs = tables.published_logs()
rules = list(tables.PUBLISHED_RULES)
logs.groupby(["network", "domain"], sort=False).size().unstack().rename_axis(index=None, columns="logs of")

# %% [markdown]
# Mean ± standard deviation over the seeds for every rule, in percent:

# %% tags=["nbval-check-output"]
cells = tables.published_rules(logs)
cells["published"] = [tables.plus_minus(mean, std) for mean, std in zip(cells["mean"], cells["std"], strict=True)]
domains = list(cells["domain"].unique())
cells.pivot(index=["network", "rule"], columns="domain", values="published")[domains]

# %% [markdown]
# ## What the oracle adds
#
# We subtract within a run, so that network and seed cancel out. How much better is the best epoch on the target's
# labels than the last one?

# %%
optimism = logs.assign(gain=logs["best_target"] - logs["last"], row=logs["network"])
optimism["domain"] = pd.Categorical(optimism["domain"], domains)
optimism = optimism.sort_values(["domain", "network"]).astype({"domain": str})
plots.show(
    plots.row_points(optimism, "gain", "best on target − last (points)"),
    "Published logs: what the choice of the epoch on the target's labels adds to the last epoch. Dots are runs, ticks "
    "their means. No run can lie left of zero.",
)

# %% [markdown]
# In numbers, over all runs per domain:

# %% tags=["nbval-check-output"]
optimism.groupby("domain", sort=False)["gain"].agg(["mean", "min", "max", "count"]).round(1).add_suffix(" (points)")

# %% [markdown]
# Compare this with the differences between methods in the table of peers below. A method that reports its oracle
# epoch and one that reports its last epoch are not comparable, in either direction.
#
# ## Does the source tell when to stop?
#
# *Best on source* needs no target. But does it choose a good epoch? Compared with the last epoch, it may win or lose.

# %%
honest = optimism.assign(gain=optimism["at_best_source"] - optimism["last"])
plots.show(
    plots.row_points(honest, "gain", "best on source − last (points)"),
    "Published logs: the epoch that is best on the source, against the last one. Right of zero the source was a good guide.",
)

# %% [markdown]
# How often does it win, and how much of the oracle's advantage does it recover? *Regret* is what a rule loses
# compared with the oracle: $\text{regret} = m_t(e^\text{oracle}) - m_t(e)$.

# %% tags=["nbval-check-output"]
regret = pd.DataFrame({rule: logs["best_target"] - logs[rule] for rule in ("last", "at_best_source")})
summary = regret.groupby(logs["domain"], sort=False).mean().add_prefix("mean regret of ")
summary["source better than last (runs)"] = (logs["at_best_source"] > logs["last"]).groupby(logs["domain"]).sum()
summary.round(2)

# %% [markdown]
# A network that is better on the source need not be better on the target. Each dot is one run: its mIoU on the
# source, and on the target at the same epoch.

# %%
grid = sns.relplot(
    logs, x="best_source", y="at_best_source", hue="network", style="network", col="domain", col_order=domains,
    height=2.4, aspect=0.85, facet_kws={"sharey": False}, s=45,
)  # fmt: skip
grid.set_axis_labels("source mIoU (%)", "target mIoU (%)").set_titles("{col_name}")
plots.show(
    grid.figure,
    "Published logs, best epoch on the source: source mIoU against target mIoU. Between networks the two rise together; "
    "among the seeds of one network they say little about each other.",
)

# %% [markdown]
# As one number per domain: the Pearson correlation over all runs, and the correlation after the mean of each network
# has been subtracted.

# %% tags=["nbval-check-output"]
pair = ["best_source", "at_best_source"]
centred = logs[pair] - logs.groupby(["domain", "network"])[pair].transform("mean")
over_all = logs.groupby("domain", sort=False)[pair].apply(lambda part: part.corr().iloc[0, 1])
within = centred.groupby(logs["domain"], sort=False).apply(lambda part: part.corr().iloc[0, 1])
pd.DataFrame({"over all runs": over_all, "within networks": within}).round(2)

# %% [markdown]
# ## Does the ranking survive?
#
# Rank the three networks by their means, once for each rule. Where a column changes, the conclusion depends on the rule.

# %% tags=["nbval-check-output"]
means = cells.pivot(index=["domain", "rule"], columns="network", values="mean")
ranking = means.apply(lambda row: " > ".join(row.sort_values(ascending=False).index), axis=1)
ranking.unstack("rule").loc[domains, rules]

# %% [markdown]
# ## Explore
#
# Choose a rule, a second rule to compare it with, and a network. Each dot is one published log: the mIoU that the
# first rule reports minus the mIoU that the second would have reported for the same training run.


# %%
def rule_against_rule(rule: str, against: str, network: str) -> tuple[bytes, str]:
    """Differences of two rules, run by run, and their mean in words."""
    part = optimism if network == "all" else optimism[optimism["network"] == network]
    part = part.assign(gain=part[rule] - part[against], row=part["network"])
    figure = plots.row_points(part, "gain", f"{rule} − {against} (points)")
    picture = plots.png(figure)
    plt.close(figure)
    gain = part["gain"]
    return picture, f"{len(part)} logs: mean {gain.mean():+.2f} points, from {gain.min():+.2f} to {gain.max():+.2f}"


# %% [markdown]
# Without a running kernel you see the first choice: what the oracle adds to the last epoch.

# %%
explore.Explorer(
    rule_against_rule,
    {
        "rule": widgets.Dropdown(options=rules, value="best_target", description="rule"),
        "against": widgets.Dropdown(options=rules, value="last", description="against"),
        "network": widgets.Dropdown(options=["all", *logs["network"].unique()], description="network"),
    },
    "Selection-rule explorer: for every published log, what one rule of epoch choice reports more than another.",
)

# %% [markdown]
# ## Peers
#
# Other methods report results on the same target images. Read the other columns before the numbers: some methods
# train on another source, some see target images, and where the protocol is known the rules differ.

# %%
peers = tables.published_peers()
shown = [name for name in domains if name in peers]
columns = [*shown, "source_domain", "network", "protocol"]
peers.set_index("method")[columns].astype(object).fillna("-")

# %% [markdown]
# We compare ZoDi's logs with the methods that start from Cityscapes. The bar is not a spread over seeds: it reaches
# from the last epoch to the oracle's, so it shows the effect of the *rule*. A peer inside the bar is neither better
# nor worse.

# %%
deeplab = cells[cells["network"] == "DeepLabv3+-resnet50"].pivot(index="domain", columns="rule", values="mean")
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for place, name in enumerate(shown):
    ax.plot(
        [place, place],
        deeplab.loc[name, ["last", "best_target"]],
        color="0.6",
        linewidth=9,
        solid_capstyle="butt",
        zorder=1,
    )
same_source = peers[peers["source_domain"] == "Cityscapes"].melt("method", shown, "domain", "miou").dropna()
sns.stripplot(same_source, x="domain", y="miou", hue="method", order=shown, ax=ax, jitter=False, size=6, zorder=2)
ax.set(xlabel="target domain", ylabel="target mIoU (%)")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    figure,
    "Published figures. Grey: ZoDi with DeepLabv3+ R50, from its last epoch to its best on the target's labels. Dots: "
    "peers from Cityscapes, each by a protocol of its own.",
)

# %% [markdown]
# ## Pitfalls
#
# - **An unnamed oracle.** A report says "best checkpoint" and does not say on what. If it was the best on the
#   target's labels, it is the oracle's.
# - **Mixed rules.** If you compare your own last epoch with a peer's best, you lose a point before the method has had
#   any effect.
# - **Ranking by means of three seeds.** Look at the spread in the first table before you rank.
#
# ## Try it
#
# **1. Predict:** is the oracle's advantage larger where the target is harder? Then check by sorting the domains.
#
# <details><summary>Solution</summary>
#
# ```python
# optimism.groupby("domain")["gain"].mean().sort_values()
# ```
# Night is the hardest domain and has the smallest advantage: where a network sees little, no epoch sees much more.
# </details>
#
# **2. Modify:** compare *best on target* of DeepLabv3+ R50 with *last* of R101. Who wins, and what would a reader conclude?
#
# <details><summary>Solution</summary>
#
# ```python
# table = cells.pivot(index=["network", "rule"], columns="domain", values="mean")
# table.loc[("DeepLabv3+-resnet50", "best_target")] - table.loc[("DeepLabv3+-resnet101", "last")]
# ```
# Where the difference is positive, the smaller network "wins" by the rule alone.
# </details>
#
# **3. Break:** choose the best *seed* as well as the best epoch. How far from the mean of the last epochs does this
# take you?
#
# <details><summary>Solution</summary>
#
# ```python
# logs.groupby(["domain", "network"])["best_target"].max() - logs.groupby(["domain", "network"])["last"].mean()
# ```
# The effects of the two oracles add up.
# </details>

# %% [markdown]
# ## Recap
#
# One log gives three numbers. The choice of the rule is worth one to two and a half points on average, the source is
# a weak guide among runs of one network, and a table that does not state its rule cannot be compared with others.
# [06](06_performance_estimation.ipynb) has a rule that needs neither target labels nor the score on the source: best
# on synthetic images.

# %%
metrics = {"published": cells.drop(columns="published").to_dict("records"), "regret": regret.mean().to_dict()}
_ = runs.save_metrics(out, "published", {}, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [08 Real photographs](08_real_photographs.ipynb): from day to dusk without a dusk image.
#
# **References.** Training logs in azuma164/ZoDi, `model_adaptation/runs/results_on_paper` · sources of the peers' figures:
# `zodi/studies/published/peers.csv` · I. Gulrajani, D. Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021 (model
# selection is part of the method).
