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
# # 05 · Adaptation: learning from both images of a pair
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/05_adaptation.ipynb)
#
# **In one sentence.** The network sees every scene twice, in clear weather and transferred, with one label map for
# both, and a third loss term asks for *similar features* in the two.
#
# **What you will learn:** the three terms of the loss and their gradient · when the two images should go through the
# network in two separate passes · reading training curves with several terms · where a gain comes from, class by class · what
# the deepest features of a pair have in common, before and after · which part of the method deserves the credit,
# according to our recorded runs.
#
# **Level:** intermediate. **What you need:** [01 The domain gap](01_domain_gap.ipynb), [03 Layout-to-image](03_layout_to_image.ipynb) and [04
# Transferring a data set](04_transferring_a_data_set.ipynb); the results of 01 and 04 are used if they exist and made
# again if not.
#
# **How long it takes:** half an hour to read, a few minutes to run on two CPU cores.
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
# The method of this notebook is one module, `zodi.adaptation`; `zodi.rows` says what each row of the tables trains on,
# and `zodi.experiment` trains it.

# %%
import time

from zodi import adaptation, datasets, evaluation, experiment
from zodi.miniature import dataset
from zodi.rows import get_row
from zodi.studies.selection import EpochSelection
from zodi.support import runs

start = time.perf_counter()

# %% [markdown]
# For a closer look:

# %% tags=["reader"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output
from matplotlib.cm import ScalarMappable
from torch import nn
from torch.nn import functional as F

# %% [markdown]
# And the modules of the course:
# %% tags=["reader"]
from zodi import segmentation
from zodi.labels import IGNORE_INDEX
from zodi.studies import findings, tables
from zodi.studies.table_rows import table_rows
from zodi.support import plots
from zodi.support.files import folder_name
from zodi.support.gallery import brightened, gallery, show_scenes

plots.use_theme()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
data: str = "../results/course/data"  # the data set; rendered there when missing
synth: str = ""  # folder with images/ transferred by 04, "" to transfer them now
domain: str = "night"  # target domain
variant: str = "zodi"  # row of the table, one of zodi.rows.ROWS
network: str = "DeepLabV3Plus/tu-resnet10t"  # architecture/encoder, or hf:FOLDER
seed: int = 0  # decides initial weights, batches and augmentation
recipe: str = "mini"  # settings of the training: "mini", "paper" or "transformer"
changes: dict = {"steps": 200}  # settings of the recipe that should have other values
held_out: str = ""  # folder with transferred test/clear images, to score epochs on
score_every: int = 1  # epochs from one score to the next
rule: str = "best_synthetic"  # which scored epoch counts, one of selection.RULES
out: str = "../results/course/runs/zodi/night/DeepLabV3Plus-tu-resnet10t/seed0"  # run
record: str = "records/full.csv"  # our recorded runs, for the table of ablations

# %% [markdown]
# ## Pairs
#
# The *variant* says what the synthesized images are. For ZoDi they come from stochastic inversion; the oracle uses
# the true target images instead, which no zero-shot method may do.

# %%
root = dataset.prepare(data)
label_set = datasets.label_set_of(root)
source = datasets.open_split(root, "train")
test = {name: datasets.open_split(root, f"test/{name}") for name in ("clear", domain)}
row = get_row(variant)

# %% [markdown]
# If there are no transferred images yet, they are made now, as in 04. This is the slowest cell of the notebook.

# %%
if row.method and not synth:
    from zodi import diffusion, transfer, transfer_folder

    mini = diffusion.load("mini")
    config = transfer.domain_config(domain, row.method, mini.defaults)
    synth = f"{out}/synth"
    images, labels = root / "train" / "images", root / "train" / "labels"
    transfer_folder.transfer_folder(
        mini,
        images,
        labels,
        synth,
        config,
        label_set,
        progress=False,
    )

# %% [markdown]
# A synthetic image has the same file name as its source and shares its label map. All labels, void included, apply to
# both.

# %%
sets = experiment.training_sets(row, root, domain, synth if row.method else None)
target = sets.second or sets.first

# %% [markdown]
# The first scenes:

# %% tags=["reader"]
pairs = [(source[i], target[i]) for i in range(min(3, len(source), len(target)))]
is_dark = pairs[0][1].image.mean() < 60
pictures = []
for s, t in pairs[:2]:
    pictures += [s.image, label_set.colorize(t.label), t.image]
    pictures.append(brightened(t.image) if is_dark else None)
titles = ["source image $x_s$", "label map $y$", "synthesized image $x_t$"]
titles.append("the same, brightened" if is_dark else "")
figure = gallery(pictures, titles * len(pairs[:2]))
plots.label_legend(figure, [t.label for _, t in pairs[:2]], label_set)
show_scenes(
    figure,
    f"What “{row.label}” trains on. You should see one label map that fits both images "
    "of a pair, except for what is too small for the transfer.",
)

# %% [markdown]
# ## The loss
#
# Both images have the label map $y$, so both get a cross-entropy. The third term looks inside the network: $f_s$ and
# $f_t$ are its deepest features. Averaged over the image (*global average pooling*, GAP), they should point in the
# same direction:
#
# $$ L = \text{CE}(h(x_s), y) + \text{CE}(h(x_t), y) - \lambda\, \cos(g_s, g_t), $$
#
# $$ g = \text{GAP}(f), \quad \cos(g_s, g_t) = \frac{g_s \cdot g_t}{|g_s|\,|g_t|}, \quad \lambda = 0.1 . $$

# %% tags=["reader"]
generator = torch.Generator().manual_seed(0)
f_s, f_t = torch.randn(2, 4, 8, 3, 6, generator=generator)
g_s, g_t = f_s.mean((2, 3)), f_t.mean((2, 3))
cos = (g_s * g_t).sum(1) / (g_s.norm(dim=1) * g_t.norm(dim=1))
assert torch.allclose(cos.mean(), adaptation.similarity(f_s, f_t), atol=1e-6)

# %% [markdown]
# ## The gradient of the similarity term
#
# With unit vectors $\hat g = g / |g|$, the derivative is
#
# $$ \frac{\partial \cos}{\partial g_s} = \frac{\hat g_t - \cos(g_s, g_t)\, \hat g_s}{|g_s|} . $$
#
# It is perpendicular to $g_s$ and vanishes when both point in the same direction. So it turns the feature. Any step of
# finite size also makes it longer, since the hypotenuse is longer than the leg, and by less the smaller the step is.
# Automatic differentiation agrees:

# %% tags=["reader"]
a = g_s[0].clone().requires_grad_()
F.cosine_similarity(a, g_t[0], dim=0).backward()
unit_s, unit_t = (F.normalize(g[0], dim=0) for g in (g_s, g_t))
by_hand = (unit_t - cos[0] * unit_s) / g_s[0].norm()
assert torch.allclose(a.grad, by_hand, atol=1e-6)
assert abs(torch.dot(a.grad, g_s[0])) < 1e-5
assert (g_s[0] + 0.1 * a.grad).norm() > g_s[0].norm()

# %% [markdown]
# In two dimensions it can be drawn. At every point the arrow shows in which direction a feature $g_s$ at that point
# is pulled when $g_t$ points to the right.

# %% tags=["reader"]
axis = torch.linspace(-2, 2, 15)
place = torch.cartesian_prod(axis, axis)
place = place[place.norm(dim=1) > 0.3].requires_grad_()
F.cosine_similarity(place, torch.tensor([[1.0, 0.0]])).sum().backward()
arrows = place.grad
figure, ax = plt.subplots(figsize=(4, 4), layout="constrained")
ax.quiver(*place.detach().T, *arrows.T, color="C0", width=0.005)
arrow = {"arrowstyle": "-|>", "color": "0", "lw": 2}
ax.annotate("", (2.2, 0), (0, 0), arrowprops=arrow)
ax.text(2.25, 0, "$g_t$", va="center", fontsize=12)
ax.set(xlim=(-2.3, 2.6), aspect="equal")
ax.set(xlabel="first component of $g_s$", ylabel="second component of $g_s$")
plots.show(
    figure,
    "Gradient of the cosine; the black arrow is $g_t$. You should see that all arrows "
    "are perpendicular to $g_s$, and that short features turn faster than long ones.",
)

# %% [markdown]
# ## Two passes
#
# Batch normalisation subtracts the mean of a *batch*. Where it is live, as in the paper's training, day and night in one
# batch would be normalised with a common mean, which fits neither. So there are two passes, one per domain. How
# different are the two statistics? The brightness of the two halves of a mixed batch gives an idea:

# %% tags=["reader"]
brightness = {
    "clear": np.mean([s.image.mean() for s, _ in pairs]),
    domain: np.mean([t.image.mean() for _, t in pairs]),
}
pd.Series(brightness, name="mean grey value (0 to 255)").round(1).to_frame()

# %% [markdown]
# One problem remains: at test time there is one set of statistics for both. The miniature trains for few steps on
# domains that are far apart, so it keeps the statistics of the pretrained network (`freeze_norm`). Then one batch and
# two passes give the same result; exercise 4 shows what freezing is worth.
#
# ## One step by hand
#
# We compute the whole loss for one batch, as the equation states it. The network is new, so its numbers mean nothing
# yet; what matters is that the equation and the module agree.

# %%
config = adaptation.recipe(recipe, variant, network=network, seed=seed, **changes)

# %% [markdown]
# The first batch of a training run with these settings, and a network:

# %% tags=["reader"]
twins_of = adaptation.find_pairs(source, target, config)
batches = adaptation.cut_batches(0, source, target, twins_of, config)
(x_s, y_s), (x_t, y_t) = (adaptation.augment(batch, config) for batch in batches)
classes = label_set.num_classes
h = segmentation.build_network(network, classes, void_output=config.void_output).eval()

# %% [markdown]
# Two passes, two cross-entropies, one cosine. With pairs the label maps $y_s$ and $y_t$ are the same.

# %% tags=["reader"]
(logits_s, f_s), (logits_t, f_t) = h(x_s), h(x_t)
ce_s = F.cross_entropy(logits_s, y_s, ignore_index=IGNORE_INDEX)
ce_t = F.cross_entropy(logits_t, y_t, ignore_index=IGNORE_INDEX)
cos = F.cosine_similarity(f_s.mean((2, 3)), f_t.mean((2, 3))).mean()
loss = ce_s + ce_t - config.similarity_weight * cos
batch = ((x_s, y_s), (x_t, y_t))
terms = adaptation.adaptation_loss(h, *batch, config.similarity_weight)
assert torch.isclose(loss, terms["loss"], rtol=1e-5)

# %% [markdown]
# The step follows the negative gradient of this loss, $\theta \leftarrow \theta - \eta\, \partial L / \partial
# \theta$, in encoder, decoder and head. With a small step the loss on the same batch falls:

# %% tags=["reader"]
optimizer = torch.optim.SGD(h.parameters(), lr=1e-2)
loss.backward()
optimizer.step()
after = adaptation.adaptation_loss(h, *batch, config.similarity_weight)["loss"]
assert after < loss

# %% [markdown]
# ## Training
#
# Both images get the same crop and flip, because they share one label map; colour jitter is drawn for each of them
# separately. If there are transferred held-out images, the epochs are scored on them, so that rules for choosing an
# epoch can be compared, as in [07](07_published_tables.ipynb). The epoch that counts is the best on these synthetic
# images, which needs no target.

# %%
device = runs.best_device()
epochs = None
if held_out:
    splits = {"source": test["clear"], "target": test[domain]}
    splits["synthetic"] = datasets.open_split(
        root,
        "test/clear",
        images=f"{held_out}/images",
    )
    epochs = EpochSelection(
        splits,
        adaptation.epoch_length(len(source), config),
        out,
        every=score_every,
    )

# %% [markdown]
# With the same settings and seed the result is the same, for any number of worker processes.

# %%
trained = experiment.train_row(
    sets,
    config,
    out,
    callback=epochs,
    device=device,
    workers=runs.worker_count(device),
)
model, history = trained.network, trained.history
if epochs and rule != "last":
    model = epochs.network(rule).to(device)

# %% [markdown]
# The individual terms tell more than their sum. Which of the two images does the network find harder?

# %% tags=["reader"]
late = history.iloc[-max(1, len(history) // 10) :].filter(like="ce_").mean()
plots.show(
    plots.training_curves(history),
    "Loss terms on the training batches; grey: each step, coloured: running mean. The "
    "loss is the sum of the two cross-entropies minus the weighted similarity. You "
    f"should see “{plots.LOSS_TERMS[late.idxmax()]}” end higher. Means of the last "
    "tenth of the training: "
    + ", ".join(f"“{plots.LOSS_TERMS[name]}” {ce:.2f}" for name, ce in late.items())
    + ".",
)

# %% [markdown]
# ## What has changed
#
# The partner for the comparison is a source-only network with the same seed and length: the one trained in 01 or, if
# there is none, one trained now.

# %% tags=["reader"]
place = Path("runs/source_only") / folder_name(network) / f"seed{seed}" / "network"
partner_folder = Path(data).parent / place
if partner_folder.exists():
    partner = segmentation.load_network(partner_folder)
else:
    settings = {"network": network, "seed": seed} | changes
    alone = adaptation.recipe(recipe, "source_only", **settings)
    alone_sets = experiment.training_sets(get_row("source_only"), root)
    with capture_output():  # the settings, which are those above without a second image
        partner = experiment.train_row(alone_sets, alone, None, device=device).network

# %% [markdown]
# Scores on the target's true images and on clear ones:

# %%
scores = {
    name: evaluation.evaluate(model, split, label_set, batch_size=10)
    for name, split in test.items()
}  # fmt: skip

# %% [markdown]
# Next to its partner:

# %% tags=["reader"]
before, miou = {}, {}
for name, split in test.items():
    before[name] = evaluation.evaluate(partner, split, label_set, batch_size=10)
    miou[name] = {"source only": before[name]["miou"], row.label: scores[name]["miou"]}
comparison = pd.DataFrame(miou).T
difference = comparison[row.label] - comparison["source only"]
comparison["difference (points)"] = difference
comparison.rename_axis("mIoU (%) on").round(1)

# %% [markdown]
# What it gained, and what it cost:

# %% tags=["reader"]
gained, at_home = difference[domain], difference["clear"]
price = "costs" if at_home < 0 else "costs nothing there: it brings"
Markdown(
    f"With this seed, adaptation to {domain} changes the mIoU {findings.where(domain)} "
    f"by {gained:+.1f} points. On clear images it {price} {abs(at_home):.1f} points."
)

# %% [markdown]
# One seed decides nothing; [A3](A3_tables.ipynb) looks at several, and at what every row costs at home. But we can
# already see *where* the difference on the target comes from, class by class.

# %% tags=["reader"]
ious = [pd.Series(found[domain]["iou"], dtype=float) for found in (scores, before)]
gain = (ious[0] - ious[1]).dropna().sort_values(ascending=False)
plots.show(
    plots.class_bars(gain.to_frame(), f"gain in IoU {findings.where(domain)} (points)"),
    f"Gain over source only {findings.where(domain)}, class by class. You should see "
    f"the largest in {gain.index[0]}, the smallest in {gain.index[-1]}; "
    f"{(gain < 0).sum()} of {len(gain)} classes lose.",
)

# %% [markdown]
# And in pictures. Look for objects that the adapted network finds and the other one misses.

# %% tags=["reader"]
samples = [test[domain][i] for i in range(min(2, len(test[domain])))]
networks = {"source only": partner, row.label: model}
is_dark, pictures, label_maps = samples[0].image.mean() < 60, [], []
for sample in samples:
    seen = [
        evaluation.predict(network_, sample.image) for network_ in networks.values()
    ]
    pictures.append(brightened(sample.image) if is_dark else sample.image)
    pictures += [label_set.colorize(label) for label in (sample.label, *seen)]
    label_maps += [sample.label, *seen]
titles = ["image, brightened" if is_dark else "image", "truth", *networks]
figure = gallery(pictures, titles * len(samples))
plots.label_legend(figure, label_maps, label_set)
show_scenes(
    figure,
    f"Test scenes {findings.where(domain)}. You should see most change in "
    f"{gain.index[0]}: over all test scenes its IoU changes by {gain.iloc[0]:+.0f} "
    "points.",
)

# %% [markdown]
# ## What the features say
#
# The similarity term asks the pooled deepest features of a pair to point in the same direction. Do they, for scenes
# that neither network was trained on? To find out we need pairs. The miniature has *true* ones: a test scene has the
# same name in clear weather and in the target domain. Photographs have none, so a transferred image replaces the true
# one.

# %% tags=["reader"]
choices = [("the true image of the same test scene", test["clear"], test[domain])]
if held_out:
    choices.append(("its transfer", test["clear"], splits["synthetic"]))
choices.append(("its synthesized image in training", source, target))
# A data set without any pairs, as for an oracle on photographs, is left with strangers.
strangers = ("an image of another scene", test["clear"], test[domain])
kind, clear, other = next(
    (choice for choice in choices if {*choice[1].keys} & {*choice[2].keys}), strangers
)  # fmt: skip
shared = [key for key in clear.keys if key in {*other.keys}][:12]
places = [(clear.keys.index(key), other.keys.index(key)) for key in shared]
places = places or [(i, i) for i in range(min(3, len(clear), len(other)))]
twins = [(clear[i].image, other[j].image) for i, j in places]

# %% [markdown]
# This function computes the deepest features of an image; averaged over the image, they are the $g$ of the loss.


# %% tags=["reader"]
@torch.inference_mode()
def deepest(network: nn.Module, image: np.ndarray) -> torch.Tensor:
    """Features (1, D, h, w) of an image (H, W, 3), padded to multiples of 32."""
    x = torch.from_numpy(image)[None].to(next(network.parameters()).device)
    x = segmentation.normalise(x)
    x = F.pad(x, (0, -x.shape[3] % 32, 0, -x.shape[2] % 32), mode="replicate")
    return network.eval()(x)[1].cpu()


pooled = {}
for name, network_ in networks.items():
    pooled[name] = [
        torch.cat([deepest(network_, pair[side]).mean((2, 3)) for pair in twins])
        for side in (0, 1)
    ]  # fmt: skip

# %% [markdown]
# A high cosine alone proves nothing: features that ignore the image have one too. So every clear image is also
# compared with *another scene* in clear weather. As long as the two images of a pair are further apart than two
# different streets, the features describe mainly the weather. The pairs should come closer together, and the streets
# should stay as far apart as they were.

# %% tags=["reader"]
cosines = pd.DataFrame([
    {"network": name, "compared with": what, "cosine": cosine}
    for name, (g_s, g_t) in pooled.items()
    for what, g in ((kind, g_t), ("another clear scene", g_s.roll(1, 0)))
    for cosine in F.cosine_similarity(g_s, g).tolist()
])  # fmt: skip
means = cosines.groupby(["network", "compared with"], sort=False)["cosine"].mean()
(pair_0, street_0), (pair_1, street_1) = means.unstack(sort=False).to_numpy()
figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
colors = [plots.DOMAIN_COLORS.get(name, "0.5") for name in (domain, "clear")]
look = {"dodge": True, "jitter": 0.05, "alpha": 0.7, "palette": colors, "ax": ax}
sns.stripplot(cosines, x="cosine", y="network", hue="compared with", **look)
ax.set(xlabel="cosine of the pooled deepest features", ylabel="")
sns.move_legend(ax, "lower center", bbox_to_anchor=(0.4, 1), ncols=2)
plots.show(
    figure,
    f"A clear image compared with {kind}, and with another clear scene. You should see "
    f"the mean of the first go from {pair_0:.3f} to {pair_1:.3f}, and that of the "
    f"second from {street_0:.3f} to {street_1:.3f}.",
)

# %% [markdown]
# What that means, computed from the dots. (Whether two means differ is decided by the standard error of their
# difference, image by image.)

# %% tags=["reader"]
g_s, g_t = pooled[row.label]
apart = F.cosine_similarity(g_s, g_t) - F.cosine_similarity(g_s, g_s.roll(1, 0))
error = (apart.std() / len(apart) ** 0.5).item()
than = {
    findings.BETTER: "more alike than",
    findings.TIED: "as alike as",
    findings.WORSE: "less alike than",
}.get(findings.verdict(apart.mean().item(), error), "not to be told from")
closer = "come closer, as they should" if pair_1 > pair_0 else "not come closer"
streets = "stay apart, so the features still tell them apart"
if street_1 > street_0:
    streets = "have become more alike too, so a part of the rise comes from features "
    streets += "that say less about any image"
Markdown(
    f"The pairs have {closer}. The *unrelated* streets {streets}. Pairs are now {than} "
    "two streets."
)

# %% [markdown]
# Pooling hides *where* two images differ. Before pooling, every location has its own feature, and $1 - \cos$ of the
# two is a map: it is bright where the network sees something different in the other image.


# %% tags=["reader"]
def difference_map(network: nn.Module, pair: tuple) -> np.ndarray:
    """1 - cos of the deepest features of two images, as large as the images."""
    height, width = pair[0].shape[:2]
    distance = 1 - F.cosine_similarity(*(deepest(network, image) for image in pair))
    size = (height + -height % 32, width + -width % 32)
    padded = F.interpolate(distance[None], size, mode="bilinear")[0, 0]
    return padded[:height, :width].numpy()


shown_pairs = twins[:2]
maps = [[difference_map(x, pair) for x in networks.values()] for pair in shown_pairs]

# %% [markdown]
# Black is no difference, light yellow the largest:

# %% tags=["reader"]
colors, pictures = ScalarMappable(plt.Normalize(0, 1), "magma"), []
for pair, of_pair in zip(shown_pairs, maps, strict=True):
    pictures += [*pair, *(colors.to_rgba(m, bytes=True)[..., :3] for m in of_pair)]
titles = ["clear", domain, *(f"difference, {name}" for name in networks)]
figure = gallery(pictures, titles * len(shown_pairs))
figure.set_figwidth(figure.get_figwidth() + 0.9)  # the place of the colour bar
figure.colorbar(colors, ax=figure.axes, label="$1 - \\cos$", shrink=0.5, pad=0.01)
first, last = (np.mean([of_pair[i].mean() for of_pair in maps]) for i in (0, -1))
show_scenes(
    figure,
    f"Where the deepest features of a clear image and {kind} differ, before and after "
    "adaptation. You should see the maps grow "
    f"{'darker' if last < first else 'lighter'}: the mean of $1 - \\cos$ goes from "
    f"{first:.2f} to {last:.2f}. What stays bright, the network still takes for "
    "something else.",
)

# %% [markdown]
# ## Which part does it?
#
# One run cannot say where its gain comes from: the new images, their number, or the similarity term? An *ablation*
# changes one thing and repeats the experiment. Every row takes one explanation of the gain away:
#
# - *source only, as many images* sees as many images as ZoDi. Is it just more training?
# - *RandAugment*, *AugMix* and *random weather* change the image itself, differently at every step, by operations that
#   know no domain. Is strong plain augmentation as good?
# - *photometric* darkens or veils the image by hand. Is a diffusion model needed at all?
# - *clear prompt* lets the diffusion model redraw the image, but not in another domain. Is it the redrawing alone?
# - *SDEdit* redraws without the inverted noise, *ControlNet only* without the image. Is the stochastic inversion needed?
# - *ZoDi, no similarity* lacks the third term of the loss. Is it this term?
# - *test-time transfer* trains nothing: it redraws every target image in the *source's* domain, and the source-only
#   network, unchanged, segments what it knows ([09](09_bring_your_own_domain.ipynb) does it step by step). Why train?
#
# The table is **not** from the run above. It comes from our recorded runs of the miniature: ZoDi minus each other row,
# in points of mIoU on the true target images, with the standard error of the difference over seeds. A difference below
# two standard errors is a tie. [A3](A3_tables.ipynb) shows the rows themselves, seed by seed.

# %% tags=["reader"]
frame = tables.read_record(record)
table = findings.comparison_table(frame)
every = table_rows().values()
parts = pd.DataFrame({
    "second image": {v.label: v.method or v.augmentation or "-" for v in every},
    "similarity": {v.label: v.similarity_weight > 0 for v in every},
})  # fmt: skip
parts["second image"] = parts["second image"].str.replace("_", " ")
parts["similarity"] = parts["similarity"].map({True: "yes", False: "no"})
parts.loc[table_rows()["oracle"].label, "second image"] = "true target image"
parts.join(table, how="right")

# %% [markdown]
# The questions again, with their answers, computed from these runs:

# %% tags=["reader"]
questions = {
    "Is it just more training?": "source_only_long",
    "Is the strongest plain augmentation as good?": findings.strongest(frame),
    "Is a change by hand as good?": "photometric",
    "Is it the redrawing alone, whatever the domain?": "clear_prompt",
    "Is adding noise to the image as good as inverting it?": "sdedit",
    "Does the layout do without the image?": "controlnet_only",
    "Is it the similarity term?": "zodi_no_similarity",
    "Why train, if target images can be redrawn instead?": "redrawn",
}
missing = "This record has no such run, see below."
answers = {text: findings.against(frame, name) for text, name in questions.items()}
lines = [f"- {text} {answer or missing}" for text, answer in answers.items()]
display(Markdown("\n".join(lines)))

# %% [markdown]
# What remains without an answer: training the row *clear prompt* takes another round of transfers. Exercise 5 trains it
# with one seed, and `make quality` in five domains with three seeds (more than an hour on two cores).
# [A1](A1_how_the_miniature_was_made.ipynb) shows what the redrawing alone does to the images.
#
# In one sentence, over all domains:

# %% tags=["reader"]
compared = findings.compare(frame)
compared = compared[compared["other"] != "oracle"]
farthest = compared["points"].abs().groupby(compared["other"], sort=False).max()
near = farthest[farthest < 2]
parts_of_it = {"sdedit", "controlnet_only", "zodi_no_similarity"}
Markdown(
    "Less than two points from ZoDi in every domain: "
    f"**{findings.listed([findings.called(name) for name in near.index]) or 'no row'}**"
    + (f", at most {near.max():.1f}. " if len(near) else ". ")
    + "So in these runs the redrawn images bring the gain. How the model redraws them, "
    "and whether the features are compared, hardly matters."
    * (parts_of_it <= {*near.index})
)

# %% [markdown]
# This holds for the miniature, with its short training and frozen statistics. At the paper's scale **we have not run
# this ablation yet**. What ZoDi costs on clear images, domain by domain, is in [A3](A3_tables.ipynb).

# %% [markdown]
# ## Pitfalls
#
# - **Pairing by directory order.** The order of `os.listdir` is not guaranteed. Here pairs are matched by file name.
# - **One concatenated batch.** Where batch normalisation is live, it mixes the statistics of the two domains, see
#   *Two passes*.
# - **A large $\lambda$.** The easiest way to satisfy the similarity term is with features that do not depend on the
#   image at all.
# - **Comparing with a shorter training.** ZoDi sees two images per step. The row *source only, as many images* exists
#   for that reason.

# %% [markdown]
# ## Try it
#
# **1. Predict:** what does the similarity term do to a pair whose features already point in the same direction?
#
# <details><summary>Solution</summary>
#
# Nothing: the gradient is proportional to the part of $\hat g_t$ perpendicular to $\hat g_s$, which is zero.
# ```python
# a = torch.tensor([1.0, 2.0], requires_grad=True)
# F.cosine_similarity(a, torch.tensor([2.0, 4.0]), dim=0).backward()
# a.grad
# ```
# </details>
#
# **2. Modify:** train with `similarity_weight=0` and compare the curve of the similarity. It is logged even so.
#
# <details><summary>Solution</summary>
#
# ```python
# settings = {"network": network, "seed": seed} | changes
# without = adaptation.recipe(recipe, "zodi_no_similarity", **settings)
# trained, curves = adaptation.train(without, source, target, None, device=device)
# plots.show(plots.training_curves(curves), "Without the similarity term.")
# pooled_of = [[deepest(trained, image).mean((2, 3)) for image in pair] for pair in twins]
# cosine = np.mean([F.cosine_similarity(*pair).item() for pair in pooled_of])
# print(f"mean cosine of the pairs without the term: {cosine:.3f}")
# ```
# If the similarity rises here as well, the shared labels alone have brought it about, and little was left for the
# term to do.
# </details>
#
# **3. Break:** give the synthesized images the wrong partners: shuffle `target.keys`. Which term of the loss notices
# first?
#
# <details><summary>Solution</summary>
#
# With wrong labels the cross-entropy of the synthetic images stays high, whatever the network does: this is the term
# that ties a picture to its label map. Pairing by directory order risks exactly this.
# </details>
#
# **4. Break:** let batch normalisation update its statistics, `freeze_norm=False`. What happens on clear and on the
# target?
#
# <details><summary>Solution</summary>
#
# ```python
# settings = {"network": network, "seed": seed, "freeze_norm": False} | changes
# moving = adaptation.recipe(recipe, variant, **settings)
# moved, _ = adaptation.train(moving, source, target, None)
# found = {name: evaluation.evaluate(moved, s, label_set) for name, s in test.items()}
# {name: score["miou"] for name, score in found.items()}
# ```
# The running statistics become a mixture of both domains, which fits neither. The longer the training and the closer
# the domains, the less it matters.
# </details>
#
# **5. Go on:** is it the redrawing alone? Train the row *clear prompt*: images that the same model has redrawn at the same
# strength, but in clear weather. Between which rows of this notebook do you expect it?
#
# <details><summary>Solution</summary>
#
# ```python
# from zodi import diffusion, transfer, transfer_folder
#
# mini = diffusion.load("mini")
# in_clear = transfer.domain_config(domain, "clear_prompt", mini.defaults)
# inputs = root / "train" / "images", root / "train" / "labels", f"{out}/clear_prompt"
# transfer_folder.transfer_folder(mini, *inputs, in_clear, label_set, progress=False)
# redrawn = datasets.open_split(root, "train", images=f"{out}/clear_prompt/images")
# settings = {"network": network, "seed": seed} | changes
# plain = adaptation.recipe(recipe, "clear_prompt", **settings)
# trained, _ = adaptation.train(plain, source, redrawn, None, device=device)
# found = {name: evaluation.evaluate(trained, s, label_set) for name, s in test.items()}
# alone = found[domain]["miou"] - before[domain]["miou"]
# print({name: round(score["miou"], 1) for name, score in found.items()})
# print(f"over source only: {alone:+.1f} points of the {gained:+.1f} above")
# ```
# The last line sets what redrawing in clear weather brings beside the whole gain. When we ran it, that was a small part.
# One seed decides nothing, as before.
# </details>

# %% [markdown]
# ## Recap
#
# The loss has two cross-entropies for one label map, and one cosine that turns the features of a pair towards each
# other. Two passes keep the statistics of the domains apart where batch normalisation is live. What adaptation gains on
# the target it may cost at home. No target image was used, unless the row is the oracle.

# %%
for name, split in test.items():
    evaluation.write_predictions(model, split, f"{out}/predictions/{name}")
choice = {
    "rule": rule if epochs else "last",
    "epochs": epochs.table().to_dict("records") if epochs else [],
}
metrics = trained.record | choice | evaluation.by_domain(scores)
settings = {"data": data, "synth": synth, "config": config}
_ = runs.save_metrics(out, "adapt", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# ## Self-check
#
# Five questions without a computer.
#
# **1.** The similarity term pulls on the feature $g_s$ of a pair. What can an infinitely small step change about $g_s$,
# and what not?
#
# <details><summary>Answer</summary>
#
# Its direction, not its length: the gradient of the cosine is perpendicular to $g_s$. Short features turn faster than
# long ones, because the gradient is divided by $|g_s|$.
# </details>
#
# **2.** Two passes or one batch with both domains: when does the choice change the result, and why not in the miniature?
#
# <details><summary>Answer</summary>
#
# Where batch normalisation is live, since it subtracts the mean of its batch, and the two domains have different means.
# The miniature freezes the statistics (`freeze_norm`), so what happens to one image does not depend on the others.
# </details>
#
# **3.** After training, the features of a pair have a high cosine. Why does this not yet show that they are the same for
# every weather, and which comparison tells more?
#
# <details><summary>Answer</summary>
#
# Features that ignore the image have a high cosine, too. So compare the pairs with *unrelated* streets: only if pairs
# are at least as alike as these, and the streets stay apart, has the weather gone and the street stayed.
# </details>
#
# **4.** ZoDi beats source only. Which row makes the comparison fair in the number of images, and does ZoDi beat it?
#
# <details><summary>Answer</summary>
#
# *Source only, as many images*, which trains for twice the steps because ZoDi sees two images per step. The first answer
# under *Which part does it?* says yes, in every domain of our record.
# </details>
#
# **5.** In the record, “ZoDi, no similarity” and ZoDi are hardly to be told apart. May you leave the term out of the
# paper's training?
#
# <details><summary>Answer</summary>
#
# The record cannot say. It shows that the term brings little in short trainings with frozen statistics; exercise 2 asks
# how far the shared labels alone make the features of a pair alike. At the paper's scale we have not run the ablation.
# </details>
#
# **Next:** [06 Performance estimation](06_performance_estimation.ipynb): how good will it be where nobody has been?
# All rows and seeds are in [A3 Tables](A3_tables.ipynb).
#
# **References.** The paper, Section 3 (model adaptation) · S. Ioffe, C. Szegedy, *Batch Normalization*, ICML 2015 ·
# X. Chen, K. He, *Exploring Simple Siamese Representation Learning* (cosine similarity of two views), CVPR 2021 · E. D.
# Cubuk et al., *RandAugment*, NeurIPS 2020 · D. Hendrycks et al., *AugMix*, ICLR 2020.
