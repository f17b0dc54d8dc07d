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
# # 01 · The domain gap: trained in sunshine, tested at night
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/01_domain_gap.ipynb)
#
# **In one sentence.** A segmentation network is trained on clear weather, and then we measure how much of its skill
# is left when the same streets are seen at night or in snow.
#
# **What you will learn:** what semantic segmentation predicts · the mean intersection over union (mIoU), by hand ·
# training a small network on a CPU and *asking its learning curve whether it is finished* · measuring the gap, in total
# and class by class.
#
# **Level:** introductory. **What you need:** some PyTorch; [00 Start here](00_start_here.ipynb) checks your machine.
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
# `zodi.datasets` reads images and labels, `zodi.segmentation` builds networks, `zodi.experiment` trains a row of the
# tables and `zodi.evaluation` computes the scores.

# %%
import time

from zodi import adaptation, datasets, evaluation, experiment, segmentation
from zodi.miniature import dataset
from zodi.rows import get_row
from zodi.support import runs

start = time.perf_counter()

# %% [markdown]
# For tables and figures:

# %% tags=["reader"]
import numpy as np
import pandas as pd
from IPython.display import Markdown

from zodi.labels import IGNORE_INDEX
from zodi.studies import findings
from zodi.support import plots
from zodi.support.gallery import brightened, gallery, show_scenes

plots.use_theme()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
data: str = "../results/course/data"  # data set; rendered there when it is missing
variant: str = "source_only"  # or "source_only_long", "weather", ..., for no domain
network: str = "DeepLabV3Plus/tu-resnet10t"  # architecture/encoder, or hf:FOLDER
seed: int = 0  # decides initial weights, batches and augmentation
recipe: str = "mini"  # settings of the training: "mini", "paper" or "transformer"
changes: dict = {"steps": 200}  # settings that differ from the recipe's
out: str = "../results/course/runs/source_only/DeepLabV3Plus-tu-resnet10t/seed0"  # run

# %% [markdown]
# ## Scenes and labels
#
# A sample is an image and a *label map* of the same size, which holds a class index for every pixel. All domains show
# the same kind of streets with the same classes; only the light and the weather change.

# %%
root = dataset.prepare(data)
info = datasets.dataset_info(root)
label_set = datasets.label_set_of(root)
train = datasets.open_split(root, "train")
test = {name: datasets.open_split(root, f"test/{name}") for name in info["domains"]}

# %% [markdown]
# How many images are there?

# %% tags=["reader"]
splits = {"train": train} | {f"test/{name}": split for name, split in test.items()}
counts = {name: len(split) for name, split in splits.items()}
pd.Series(counts, name="images").to_frame()

# %% [markdown]
# One test scene from each domain. Colours stand for classes. A dark image stands beside a brightened copy of itself.

# %% tags=["reader"]
first = {name: split[0] for name, split in test.items()}
images, titles = [], []
for name, sample in first.items():
    is_dark = sample.image.mean() < 60
    layout = label_set.colorize(sample.label)
    images += [sample.image, brightened(sample.image) if is_dark else layout]
    titles += [name, "the same, brightened" if is_dark else f"label map of {name}"]
figure = gallery(images, titles)
plots.label_legend(figure, [sample.label for sample in first.values()], label_set)
show_scenes(
    figure,
    "The first test scene of every domain, label maps in the colours of Cityscapes. "
    "You should see the same classes everywhere, in another light.",
)

# %% [markdown]
# The classes are far from equally common. A network that knows road, buildings and sky already gets most *pixels*
# right, so we do not count correct pixels.

# %% tags=["reader"]
pixels = np.concatenate([train[i].label.ravel() for i in range(len(train))])
counts = np.bincount(pixels, minlength=256)[: label_set.num_classes]
share = pd.DataFrame({"share": 100 * counts / counts.sum()}, index=label_set.names)
common, rare = share["share"].nlargest(3), int((share["share"] < 1).sum())
plots.show(
    plots.class_bars(share, "share of the training pixels (%)"),
    "How common the classes are. You should see three that fill "
    f"{common.sum():.0f} % of the pixels ({', '.join(common.index)}) and {rare} of "
    f"{len(share)} with less than 1 % each.",
)

# %% [markdown]
# ## mIoU by hand
#
# Take two classes and sixteen pixels, one of them *void* (`ignore_index`, not counted). The rows of the **confusion
# matrix** are the truth, its columns the prediction:
#
# $$ C_{ij} = \#\{\text{pixels of class } i \text{ that were called } j\} . $$

# %% tags=["reader"]
void = IGNORE_INDEX
truth = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, void]], np.uint8)
called = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
valid = truth != void
C = np.zeros((2, 2), int)
np.add.at(C, (truth[valid], called[valid]), 1)
pd.DataFrame(C, ["truth 0", "truth 1"], ["called 0", "called 1"])

# %% [markdown]
# The **intersection over union** of a class is its number of correct pixels divided by the number of pixels that
# belong to it in the truth or in the prediction. The mIoU averages over the classes that occur in the truth:
#
# $$ \text{IoU}_c = \frac{C_{cc}}{\sum_j C_{cj} + \sum_i C_{ic} - C_{cc}}, \qquad
# \text{mIoU} = \frac{1}{|\mathcal C|} \sum_{c \in \mathcal C} \text{IoU}_c . $$
#
# Count with a pencil first. How many pixels of class 1 are correct, how many are missed, and how many are false?

# %% tags=["nbval-check-output", "reader"]
correct = np.diag(C)
iou = correct / (C.sum(1) + C.sum(0) - correct)
assert np.allclose(iou, evaluation.iou(C), equal_nan=True)
accuracy = correct.sum() / valid.sum()
f"IoU {iou[0]:.3f} and {iou[1]:.3f}, mIoU {iou.mean():.3f}, pixels right {accuracy:.3f}"

# %% [markdown]
# ## Training on clear weather
#
# The network maps an image to one score per class and pixel, the *logits*. Training lowers the cross-entropy of the
# true class, averaged over the pixels that are not void:
#
# $$ \text{CE} = -\frac{1}{N} \sum_n \log \operatorname{softmax}(\text{logits}_n)_{y_n} . $$
#
# Encoder and decoder start from weights pretrained on other clear scenes, as the paper's encoder starts from
# ImageNet; the last layer is new. One number has to be watched: the mIoU on clear *test* scenes. While it still rises
# steeply, a failure at night might be a lack of training. Once more training changes it far less than the night does,
# the failure has another cause.

# %%
config = adaptation.recipe(recipe, variant, network=network, seed=seed, **changes)
device = runs.best_device()
progress, callback = [], None

# %% [markdown]
# It is measured ten times during training, and nothing is decided by it:


# %% tags=["reader"]
def watch(step, model):
    """The mIoU on clear, every tenth of the training."""
    if step % max(1, config.steps // 10) == 0 or step == config.steps:
        score = evaluation.evaluate(model, test["clear"], label_set, batch_size=10)
        progress.append({"step": step, "miou_clear": score["miou"]})


callback = watch


# %% [markdown]
# Now the training. It prints every setting that the run has, so that its log tells them:

# %% tags=["hide-output"]
sets = experiment.training_sets(get_row(variant), root)
trained = experiment.train_row(
    sets,
    config,
    out,
    callback=callback,
    device=device,
    workers=runs.worker_count(device),
)
model, history = trained.network, trained.history

# %% [markdown]
# What does the loss do?

# %% tags=["reader"]
tenth = max(1, len(history) // 10)
begin, end = history["loss"].iloc[:tenth].mean(), history["loss"].iloc[-tenth:].mean()
plots.show(
    plots.training_curves(history[["step", "loss"]]),
    "Cross-entropy on the training batches; grey: each step, blue: running mean. You "
    f"should see it go from {begin:.2f}, the mean of the first tenth of the training, "
    f"to {end:.2f}, that of the last.",
)

# %% [markdown]
# And the mIoU on clear test scenes? If the curve still climbed steeply at its right end, every later comparison would
# compare unfinished networks.

# %% tags=["reader"]
if not progress or progress[-1]["step"] < config.steps:
    watch(config.steps, model)
curve = pd.DataFrame(progress)
on_clear, half = curve["miou_clear"], (len(curve) - 1) // 2
late, last = on_clear.iloc[-1] - on_clear.iloc[half], on_clear.diff().iloc[-2:].sum()
verdict = "still rises in its second half" if late > 2 else "has flattened"
if len(curve) < 2:
    verdict = "is a single point, because this run was finished before"
plots.show(
    plots.curve(
        curve, "step", ["miou_clear"], "optimisation step", "mIoU on clear (%)"
    ),
    "mIoU on clear test scenes during the training. You should see a curve that "
    f"{verdict}: that half changed it by {late:+.1f} points, the last fifth, in which "
    f"the learning rate falls to zero, by {last:+.1f}.",
)

# %% [markdown]
# ## The gap
#
# Now the same network, unchanged, on all test domains.

# %%
scores = {
    name: evaluation.evaluate(model, split, label_set, batch_size=10)
    for name, split in test.items()
}

# %% [markdown]
# As a figure:

# %% tags=["reader"]
miou = {name: score["miou"] for name, score in scores.items()}
lost = {name: miou["clear"] - value for name, value in miou.items() if name != "clear"}
worst = max(lost, key=lost.get)
plots.show(
    plots.domain_bars(miou),
    "mIoU of the network, which was trained on clear only. You should see it lose in "
    f"every other domain, most {findings.where(worst)}: {lost[worst]:.1f} points."
    if min(lost.values()) > 0
    else "mIoU of the network. It loses most "
    f"{findings.where(worst)}: {lost[worst]:.1f} points.",
)

# %% [markdown]
# What do the wrong pixels look like? Compare each prediction with the truth beside it. The images are those of the
# first figure.

# %% tags=["reader"]
predictions = {name: evaluation.predict(model, s.image) for name, s in first.items()}
labels = [label for name, s in first.items() for label in (s.label, predictions[name])]
right = {
    name: 100 * (predictions[name] == s.label)[s.label != void].mean()
    for name, s in first.items()
}
titles = [f"{name}, {what}" for name in first for what in ("truth", "prediction")]
figure = gallery([label_set.colorize(label) for label in labels], titles)
plots.label_legend(figure, labels, label_set)
show_scenes(
    figure,
    "Truth and prediction in the first test scene of every domain. You should see the "
    "street dissolve where the weather is not clear. Pixels right: "
    + ", ".join(f"{name} {value:.0f} %" for name, value in right.items()) + ".",
)  # fmt: skip

# %% [markdown]
# Class by class: which ones does the network still find, and which are lost first?

# %% tags=["reader"]
ious = {name: score["iou"] for name, score in scores.items()}
classes = pd.DataFrame(ious, dtype=float).dropna(how="all")[["clear", worst]]
figure = plots.class_bars(classes, "IoU (%)")
gone = classes.index[(classes["clear"] >= 20) & (classes[worst] < classes["clear"] / 4)]
plots.show(
    figure,
    f"IoU of every class in the test scenes, in clear weather and "
    f"{findings.where(worst)}. You should see {len(gone)} classes that reach 20 % in "
    "clear weather and lose more than three quarters of their IoU: "
    f"{', '.join(gone) or 'none'}.",
)

# %% [markdown]
# ## Pitfalls
#
# - **Averaging over images.** The mIoU of the data set is computed from *one* confusion matrix; the mean of the mIoUs
#   of the images is a different number, which may be larger or smaller.
# - **Classes that do not occur.** They have no IoU. Counting them as 0 or as 100 makes a large difference on small
#   test sets.
# - **Void.** Pixels without a label are not counted, so the network may predict anything there.
# - **Choosing the best epoch on the target.** It uses labels that a zero-shot method does not have. We always report
#   the last step; 07 shows how much the choice matters.

# %% [markdown]
# ## Try it
#
# **1. Predict:** in the 4x4 example, call every pixel class 0. What are the pixel accuracy and the mIoU?
#
# <details><summary>Solution</summary>
#
# Ten of fifteen pixels are right: the accuracy is 10/15. The IoU is 10/15 for class 0 and 0 for class 1, so the mIoU
# is half the accuracy. The mIoU notices that a class has been given up.
# ```python
# evaluation.iou(np.array([[10, 0], [5, 0]]))
# ```
# </details>
#
# **2. Modify:** count how often the network confuses sky with building at night. Which entry of which matrix is it?
#
# <details><summary>Solution</summary>
#
# ```python
# matrix = np.array(scores[worst]["confusion"])
# sky, building = (label_set.names.index(name) for name in ("sky", "building"))
# matrix[sky, building] / matrix[sky].sum()
# ```
# </details>
#
# **3. Break:** darken a clear test image by hand until the prediction falls apart. At which factor?
#
# <details><summary>Solution</summary>
#
# ```python
# sample, dark = test["clear"][0], test[worst][0]
# as_dark = dark.image.mean() / sample.image.mean()
# for factor in (1.0, 0.6, 0.4, 0.2, as_dark):
#     label = evaluation.predict(model, (sample.image * factor).astype(np.uint8))
#     print(f"{factor:.2f}: {(label == sample.label).mean():.2f} of the pixels right")
# label = evaluation.predict(model, dark.image)
# print(f"{worst}: {(label == dark.label).mean():.2f} of the pixels right")
# ```
# The last factor makes the clear image as dark as the other one. What is right at that factor, and not in the last
# line, is not lost to darkness but to lights, noise and missing colour.
# </details>

# %% [markdown]
# ## Recap
#
# We can now measure: one confusion matrix, one IoU per class, one mean. Is the loss a lack of training? The next cell
# compares it with what training still changed.

# %% tags=["reader"]
Markdown(
    f"The network loses **{lost[worst]:.1f} points** {findings.where(worst)}. The "
    f"second half of its training changed the mIoU on clear by **{late:+.1f}**. "
    + (
        "So more of the same training is unlikely to make up for it; the network "
        "needs other images."
        if lost[worst] > 2 * abs(late)
        else "So this network is not finished: train it for longer before you conclude."
    )
)

# %% [markdown]
# What the course needs later is written to the run's folder:

# %%
metrics = trained.record | {"convergence": progress} | evaluation.by_domain(scores)
segmentation.save_network(model, f"{out}/network")
for name, split in test.items():
    evaluation.write_predictions(model, split, f"{out}/predictions/{name}")
_ = runs.save_metrics(
    out,
    "source_only",
    {"data": data, "config": config},
    metrics,
    time.perf_counter() - start,
)

# %% [markdown]
# **Next:** [02 Diffusion in one hour](02_diffusion.ipynb): how a network draws images out of noise.
#
# **References.** The paper, Section 4 · M. Everingham et al., *The PASCAL Visual Object Classes Challenge*, IJCV 2010
# (IoU) · M. Cordts et al., *The Cityscapes Dataset*, CVPR 2016 · L.-C. Chen et al., *Encoder-Decoder with Atrous
# Separable Convolution* (DeepLabv3+), ECCV 2018.
