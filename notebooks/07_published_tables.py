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
# # 07 · Published results: what the choice of the epoch does to a table
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/07_published_tables.ipynb)
#
# **In one sentence.** The paper's authors publish 47 training logs, and from each of them a table needs one number;
# here you see the numbers that three rules make of the same logs, in the paper's grouping, beside what others publish.
#
# **What you will learn:** three rules that turn a log into one number · how much they differ, run by run · whether
# the source domain tells us when to stop · how to read a table of peers.
#
# **Level:** introductory. **What you need:** [05 Adaptation](05_adaptation.ipynb) for the rows,
# [06](06_performance_estimation.ipynb) for regret. No GPU and no runs: all numbers here are **published** by others; we
# ran none of it.
#
# **How long it takes:** twenty minutes to read, seconds to run.
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
# The published figures and their sources are stored in `zodi/studies/published/`.

# %%
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

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
# adaptation: it is an *oracle*. The authors' program stores the networks of several epochs, those of these rules among
# them. The logs do not say which one the paper's tables report, and we leave the question open. The figures printed in
# the paper itself are not among the files that we could read, so all numbers here are computed from the logs.

# %%
logs = tables.published_logs()
words = {
    "last": "last",
    "at_best_source": "best on source",
    "best_target": "best on target",
}
rules = [words[rule] for rule in tables.PUBLISHED_RULES]
logs = logs.rename(columns=words)
domains = list(logs["domain"].unique())
counts = logs.groupby(["network", "domain"], sort=False).size().unstack()
counts.rename_axis(index=None, columns="logs of")

# %% [markdown]
# ## The published figures, as the paper groups them
#
# The paper groups its results by network, with a column for every target domain. Mean ± standard deviation over the
# seeds of the logs, in percent, for each rule:

# %% tags=["nbval-check-output"]
cells = tables.published_rules(tables.published_logs()).replace({"rule": words})
pairs = zip(cells["mean"], cells["std"], strict=True)
cells["published"] = [tables.plus_minus(mean, std) for mean, std in pairs]
lines = [(network, rule) for network in logs["network"].unique() for rule in rules]
grouped = cells.pivot(index=["network", "rule"], columns="domain", values="published")
grouped.loc[lines, domains].rename_axis(columns=None)

# %% [markdown]
# Beside it, what other methods report for the *same* source, Cityscapes, with DeepLabv3+ on a ResNet-50. The last
# three lines are ZoDi's logs for this network, one per rule. Read the protocol before the numbers: how the epoch was
# chosen, where it is known.

# %% tags=["nbval-check-output"]
R50 = "DeepLabv3+-resnet50"
peers = tables.published_peers()
shown = [name for name in domains if name in peers]
cityscapes = peers[peers["source_domain"] == "Cityscapes"].set_index("method")
deeplab = cells[cells["network"] == R50]
deeplab = deeplab.pivot(index="domain", columns="rule", values="mean")
ours = deeplab.T.loc[rules].rename(index=lambda rule: f"ZoDi, {rule}")
beside = pd.concat([cityscapes[shown], ours[shown]]).map("{:.1f}".format)
protocol = cityscapes["protocol"].str.split("; | in its").str[0]
beside["protocol"] = protocol.reindex(beside.index).fillna("logs")
beside.replace("nan", "-")

# %% [markdown]
# ## What the oracle adds
#
# We subtract within a run, so that network and seed cancel out. How much better is the best epoch on the target's
# labels than the last one?

# %%
gain = logs["best on target"] - logs["last"]
assert (gain >= 0).all()
optimism = logs.assign(gain=gain, row=logs["network"])
optimism["domain"] = pd.Categorical(optimism["domain"], domains)
optimism = optimism.sort_values(["domain", "network"]).astype({"domain": str})
mean_gain = optimism.groupby("domain", sort=False)["gain"].mean()
plots.show(
    plots.row_points(optimism, "gain", "best on target − last (points)"),
    "Published logs: what the choice of the epoch on the target's labels adds to the "
    "last epoch. Dots are runs, ticks their means. You should see no run left of zero, "
    f"and domain means from {mean_gain.min():.1f} to {mean_gain.max():.1f} points.",
)

# %% [markdown]
# In numbers, over all runs per domain:

# %% tags=["nbval-check-output"]
numbers = optimism.groupby("domain", sort=False)["gain"]
numbers = numbers.agg(["mean", "min", "max", "count"]).round(1)
numbers.rename(columns={"count": "runs"}).rename_axis(index="gain in points")

# %% [markdown]
# Compare this with the differences between methods in the table above. A method that reports its oracle
# epoch and one that reports its last epoch are not comparable, in either direction.
#
# ## Does the source tell when to stop?
#
# *Best on source* needs no target. But does it choose a good epoch? Compared with the last epoch, it may win or lose.

# %%
honest = optimism.assign(gain=optimism["best on source"] - optimism["last"])
right = int((honest["gain"] > 0).sum())
assert 0 < right < len(honest)
plots.show(
    plots.row_points(honest, "gain", "best on source − last (points)"),
    "Published logs: the epoch that is best on the source, against the last one. Right "
    "of zero the source was a good guide. You should see runs on both sides: "
    f"{right} of {len(honest)} lie to the right.",
)

# %% [markdown]
# How often does it win, and how much of the oracle's advantage does it recover? *Regret* is what a rule loses
# compared with the oracle: $\text{regret} = m_t(e^\text{oracle}) - m_t(e)$.

# %% tags=["nbval-check-output"]
both = ("last", "best on source")
regret = pd.DataFrame({rule: logs["best on target"] - logs[rule] for rule in both})
summary = regret.groupby(logs["domain"], sort=False).mean().add_prefix("regret, ")
wins = (logs["best on source"] > logs["last"]).groupby(logs["domain"])
wins = wins.sum().astype(str) + " of " + wins.size().astype(str)
summary["source beats last"] = wins.reindex(summary.index)
summary.round(2)

# %% [markdown]
# A network that is better on the source need not be better on the target. Each dot is one run: its mIoU on the
# source, and on the target at the same epoch.

# %%
pair = ["best_source", "best on source"]
means_of = logs.groupby(["domain", "network"])[pair].transform("mean")
per_domain = logs.groupby("domain", sort=False)[pair]
over_all = per_domain.apply(lambda part: part.corr().iloc[0, 1])
centred = (logs[pair] - means_of).groupby(logs["domain"], sort=False)
within = centred.apply(lambda part: part.corr().iloc[0, 1])
# The caption below speaks of little order.
assert within.abs().max() < 0.5 < over_all.median()

# %% [markdown]
# One panel per domain:

# %%
look = {"x": pair[0], "y": pair[1], "hue": "network", "style": "network", "s": 45}
labels = {"xlabel": "source mIoU (%)", "ylabel": "target mIoU (%)"}
figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout="constrained")
for ax, domain in zip(axes.flat, domains, strict=False):
    part = logs[logs["domain"] == domain]
    sns.scatterplot(part, **look, ax=ax)
    ax.set(title=domain, **labels)
    legend = ax.get_legend_handles_labels()
    ax.get_legend().remove()
axes[1, 2].axis("off")
axes[1, 2].legend(*legend, loc="center", title="network")
plots.show(
    figure,
    "Published logs, best epoch on the source: source mIoU against target mIoU. You "
    f"should see the networks apart (correlation over all runs {over_all.min():.2f} to "
    f"{over_all.max():.2f}) and little order among the seeds of one network "
    f"({within.min():.2f} to {within.max():.2f}).",
)

# %% [markdown]
# As one number per domain: the Pearson correlation over all runs, and the correlation after the mean of each network
# has been subtracted.

# %% tags=["nbval-check-output"]
pd.DataFrame({"over all runs": over_all, "within networks": within}).round(2)

# %% [markdown]
# ## Does the ranking survive?
#
# Rank the three networks by their means, once for each rule. Where a line changes from column to column, the
# conclusion depends on the rule. The networks by their initials: RN = RefineNet R50, D50 and D101 = DeepLabv3+ with
# ResNet-50 and ResNet-101.

# %% tags=["nbval-check-output"]
INITIALS = {R50: "D50", "DeepLabv3+-resnet101": "D101", "RefineNet-resnet50": "RN"}
means = cells.pivot(index=["domain", "rule"], columns="network", values="mean")
means = means.rename(columns=INITIALS)
order = means.apply(lambda row: row.sort_values(ascending=False).index.tolist(), axis=1)
ranking = order.map(" > ".join).unstack("rule").loc[domains, rules]
ranking.rename_axis(index=None, columns=None)

# %% [markdown]
# Counted:

# %%
changes = [domain for domain in domains if ranking.loc[domain].nunique() > 1]
first = {domain: {names[0] for names in order.loc[domain]} for domain in domains}
same_first = sum(len(names) == 1 for names in first.values())
where = f" ({', '.join(changes)})" if changes else ""
display(Markdown(
    f"The ranking depends on the rule in {len(changes)} of {len(domains)} domains"
    f"{where}; the first place is the same under all rules in {same_first} of them."
))  # fmt: skip

# %% [markdown]
# ## Explore
#
# Choose a rule, a second rule to compare it with, and a network. Each dot is one published log: the mIoU that the
# first rule reports minus the mIoU that the second would have reported for the same training run.


# %%
def rule_against_rule(rule: str, against: str, network: str) -> tuple[bytes, str]:
    """Differences of two rules, run by run, and their mean in words."""
    is_wanted = (optimism["network"] == network) | (network == "all")
    part = optimism[is_wanted]
    part = part.assign(gain=part[rule] - part[against], row=part["network"])
    figure = plots.row_points(part, "gain", f"{rule} − {against} (points)")
    picture = plots.png(figure)
    plt.close(figure)
    gain = part["gain"]
    range_text = f"from {gain.min():+.2f} to {gain.max():+.2f}"
    return picture, f"{len(part)} logs: mean {gain.mean():+.2f} points, {range_text}"


# %% [markdown]
# Without a running kernel you see the first choice: what the oracle adds to the last epoch.


# %%
def menu(name: str, options: list[str], value: str) -> widgets.Dropdown:
    """A control of the explorer."""
    return widgets.Dropdown(options=options, value=value, description=name)


names = ["all", *logs["network"].unique()]
explore.Explorer(
    rule_against_rule,
    {
        "rule": menu("rule", rules, "best on target"),
        "against": menu("against", rules, "last"),
        "network": menu("network", names, "all"),
    },
    "Selection-rule explorer: what one rule reports more than another, log by log.",
)

# %% [markdown]
# ## Peers
#
# All methods that we know of with results on the same target images, also those that start from another source or see
# target images:

# %%
columns = ["source_domain", "network", *shown]
every = peers.set_index("method")[columns].rename(columns={"source_domain": "source"})
unstated = "; README states no backbone"
every["network"] = every["network"].str.replace(unstated, "", regex=False)
every.astype(object).fillna("-")

# %% [markdown]
# We compare ZoDi's logs with the methods that start from Cityscapes: by how many points is a peer above or below ZoDi's
# last epoch? The bar is not a spread over seeds: it reaches from the last epoch to the oracle's, so it shows the effect
# of the *rule*. A peer inside the bar is neither better nor worse.

# %%
same_source = peers[peers["source_domain"] == "Cityscapes"]
same_source = same_source.melt("method", shown, "domain", "miou").dropna()
ends = same_source.join(deeplab, on="domain")
ends["above"] = ends["miou"] - ends["last"]
inside = int(ends["miou"].between(ends["last"], ends["best on target"]).sum())

# %% [markdown]
# As a figure, zero for ZoDi's last epoch:

# %%
figure, ax = plt.subplots(figsize=(8.5, 3), layout="constrained")
effect = (deeplab["best on target"] - deeplab["last"])[shown]
ax.barh(shown, effect, color="0.8", height=0.7, label="ZoDi, last to best on target")
dots = {"order": shown, "jitter": False, "size": 7, "zorder": 3}
sns.stripplot(ends, x="above", y="domain", hue="method", ax=ax, **dots)
ax.axvline(0, color="0.3", linewidth=0.8)
ax.set(xlabel="target mIoU above ZoDi's last epoch (points)", ylabel="")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    figure,
    "Published figures. Grey: ZoDi with DeepLabv3+ R50, from its last epoch to its "
    "best on the target's labels. Dots: peers from Cityscapes, each by a protocol of "
    f"its own. You should see {inside} of {len(ends)} dots inside a bar, where the "
    "rule decides.",
)

# %% [markdown]
# ## Pitfalls
#
# - **An unnamed oracle.** A report says "best checkpoint" and does not say on what. If it was the best on the
#   target's labels, it is the oracle's.
# - **Mixed rules.** If you compare your own last epoch with a peer's best, you lose points before the method has had any
#   effect: the figure of *What the oracle adds* says how many.
# - **Ranking by means of three seeds.** Look at the spread in the first table before you rank.
#
# ## Try it
#
# **1. Predict:** is the oracle's advantage larger where the target is harder? Then check by sorting the domains.
#
# <details><summary>Solution</summary>
#
# ```python
# advantage = optimism.groupby("domain")["gain"].mean()
# last = logs.groupby("domain")["last"].mean()
# pd.DataFrame({"advantage": advantage, "last": last}).sort_values("last")
# ```
# The hardest domain stands at the top. Is its advantage the largest?
# </details>
#
# **2. Modify:** compare *best on target* of DeepLabv3+ R50 with *last* of R101. Who wins, and what would a reader
# conclude?
#
# <details><summary>Solution</summary>
#
# ```python
# table = cells.pivot(index=["network", "rule"], columns="domain", values="mean")
# small = table.loc[(R50, "best on target")]
# small - table.loc[("DeepLabv3+-resnet101", "last")]
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
# groups = logs.groupby(["domain", "network"])
# groups["best on target"].max() - groups["last"].mean()
# ```
# The effects of the two oracles add up.
# </details>

# %% [markdown]
# ## Recap
#
# One log gives three numbers, and the rule has to be named. What it is worth here, in one sentence:

# %%
share = 100 * (1 - regret["best on source"].mean() / regret["last"].mean())
recovers = f"recovers {share:.0f} %" if share > 0 else "recovers nothing"
display(Markdown(
    f"The oracle's epoch is worth {mean_gain.min():.1f} to {mean_gain.max():.1f} points"
    f" over the last one; the best epoch on the source {recovers} of that."
))  # fmt: skip

# %% [markdown]
# A table that does not state its rule cannot be compared with others. [06](06_performance_estimation.ipynb) has a rule
# that needs neither target labels nor the score on the source: best on synthetic images.

# %%
published = cells.drop(columns="published").to_dict("records")
metrics = {"published": published, "regret": regret.mean().to_dict()}
_ = runs.save_metrics(out, "published", {}, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [08 Real photographs](08_real_photographs.ipynb): from day to dusk without a dusk image.
#
# **References.** Training logs in azuma164/ZoDi, `model_adaptation/runs/results_on_paper` · sources of the peers'
# figures: `zodi/studies/published/peers.csv` · I. Gulrajani, D. Lopez-Paz, *In Search of Lost Domain Generalization*,
# ICLR 2021 (model selection is part of the method).
