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
# # 03 · Adaptation: learning from both images of a pair
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/main/notebooks/03_adaptation.ipynb)
#
# **In one sentence.** The network sees every scene twice, in clear weather and transferred, with one label map for both,
# and a third loss term asks it to *think the same* of the two.
#
# **What you will learn:** the three terms of the loss and their gradient · why the two images go through the network in
# two separate passes · reading training curves with several terms · where a gain comes from, class by class.
#
# **What you need:** [01 The domain gap](01_domain_gap.ipynb) and [02 Image transfer](02_image_transfer.ipynb); their
# results are used when they are there, and made again when not.
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
# The method of this notebook is one module, `zodi.adaptation`.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from zodi import adaptation, datasets, evaluation, plots, runs, segmentation
from zodi.labels import get_label_set

plots.use_theme()
start = time.perf_counter()

# %% tags=["parameters"]
data: str = "../results/course/data"  # folder of the data set; rendered there when it is missing
synth: str = ""  # folder with images/ transferred by 02; "" = transfer the training images now
domain: str = "night"  # target domain
variant: str = "zodi"  # row of the table, one of adaptation.VARIANTS
network: str = "DeepLabV3Plus/tu-resnet10t"  # architecture/encoder of segmentation_models_pytorch
seed: int = 0  # rules initial weights, batches and augmentation
steps: int = 300  # optimisation steps
out: str = "../results/course/runs/zodi/night/DeepLabV3Plus-tu-resnet10t/seed0"  # folder of this run

# %% [markdown]
# ## Pairs
#
# The *variant* says what the second images are. For ZoDi they come from stochastic inversion; for the oracle they are
# the true target images, which no zero-shot method may use.

# %%
TODO
