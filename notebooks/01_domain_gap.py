# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/main/notebooks/01_domain_gap.ipynb)
#
# **In one sentence.** A segmentation network is trained on clear weather until it stops getting better, and then we
# count what is left of it when the same streets are seen at night, in snow or in fog.
#
# **What you will learn:** what semantic segmentation predicts · the mean intersection over union (mIoU), by hand ·
# training a small network on a CPU and *seeing that it has converged* · measuring the gap, in total and class by class.
#
# **What you need:** some PyTorch. [00 Start here](00_start_here.ipynb) checks your machine.
#
# **How long it takes:** half an hour to read, a few minutes to run on two CPU cores.

# %% [markdown]
# On Google Colab this cell installs the package; anywhere else it does nothing.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "zodi[course] @ git+https://github.com/zodi-companion/zodi@main"
    print("Installed. If Colab asks for it, restart the runtime before you go on.")

# %% [markdown]
# `zodi.datasets` reads images and labels, `zodi.segmentation` builds networks, `zodi.adaptation` trains them and
# `zodi.evaluation` counts.

# %%
import time

import numpy as np
import pandas as pd

from zodi import adaptation, datasets, evaluation, plots, runs
from zodi.labels import IGNORE_INDEX, get_label_set

plots.use_theme()
start = time.perf_counter()

# %% tags=["parameters"]
data: str = "../results/course/data"  # folder of the data set; rendered there when it is missing
variant: str = "source_only"  # row of the table: "source_only" or "source_only_long"
network: str = "DeepLabV3Plus/tu-resnet10t"  # architecture/encoder of segmentation_models_pytorch
seed: int = 0  # rules initial weights, batches and augmentation
steps: int = 300  # optimisation steps
out: str = "../results/course/source_only"  # folder of this notebook's results

# %% [markdown]
# ## Scenes and labels
#
# A sample is an image and a *label map* of the same size, which holds a class index for every pixel. All domains show
# the same kind of streets with the same classes; only the light and the weather change.

# %%
root = datasets.prepare(data)
info = datasets.dataset_info(root)
label_set = get_label_set(info["label_set"])
train = datasets.open_split(root, "train")
test = {name: datasets.open_split(root, f"test/{name}") for name in info["domains"]}
pd.Series({"train": len(train)} | {f"test/{name}": len(split) for name, split in test.items()}, name="images").to_frame()

# %%
rows = [[sample.image, label_set.colorize(sample.label)] for split in test.values() for sample in [split[0]]]
figure = plots.image_grid(rows, ["image", "label map"], list(test), width=5.5)
plots.label_legend(figure, [split[0].label for split in test.values()], label_set)
plots.show(figure, "The first test scene of every domain with its label map, in the colours of Cityscapes.")

# %% [markdown]
# Classes are far from equally common. A network that knows road, buildings and sky already gets most *pixels* right,
# which is why we will not count pixels.

# %%
counts = np.bincount(np.concatenate([train[i].label.ravel() for i in range(len(train))]), minlength=256)
share = pd.DataFrame({"share": 100 * counts[: label_set.num_classes] / counts[: label_set.num_classes].sum()})
share.index = label_set.names
plots.show(plots.class_bars(share, "share of the training pixels (%)"), "How common the classes are in training.")

# %% [markdown]
# ## mIoU by hand
#
# Two classes, sixteen pixels, one of them *void* (`ignore_index`, not counted). Rows of the **confusion matrix** are
# the truth, columns the prediction:
#
# $$ C_{ij} = \#\{\text{pixels of class } i \text{ that were called } j\} . $$

# %%
truth = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, IGNORE_INDEX]], np.uint8)
prediction = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
valid = truth != IGNORE_INDEX
confusion = np.zeros((2, 2), int)
np.add.at(confusion, (truth[valid], prediction[valid]), 1)
confusion

# %% [markdown]
# The **intersection over union** of a class divides the pixels that are right by all that belong to it in the truth or
# in the prediction, and the mIoU averages over the classes that occur in the truth:
#
# $$ \text{IoU}_c = \frac{C_{cc}}{\sum_j C_{cj} + \sum_i C_{ic} - C_{cc}}, \qquad
# \text{mIoU} = \frac{1}{|\mathcal C|} \sum_{c \in \mathcal C} \text{IoU}_c . $$
#
# Count with a pencil first: how many pixels of class 1 are right, how many are missed, how many are false?

# %% tags=["nbval-check-output"]
correct = np.diag(confusion)
iou = correct / (confusion.sum(1) + confusion.sum(0) - correct)
assert np.allclose(iou, evaluation.iou(confusion), equal_nan=True)
f"IoU of the classes: {iou[0]:.3f} and {iou[1]:.3f}, mIoU: {iou.mean():.3f}, pixels right: {correct.sum() / valid.sum():.3f}"

# %% [markdown]
# ## Training on clear weather
#
# The network maps an image to one score a class and pixel, the *logits*. Training lowers the cross-entropy of the true
# class, averaged over pixels that are not void:
#
# $$ \text{CE} = -\frac{1}{N} \sum_n \log \operatorname{softmax}(\text{logits}_n)_{y_n} . $$
#
# The encoder starts from weights pretrained on other clear scenes, as the paper's starts from ImageNet. One number must
# be watched: the mIoU on clear *test* scenes. When it no longer rises, the network has converged, and what it cannot do
# at night is not for lack of training.

# %%
TODO
