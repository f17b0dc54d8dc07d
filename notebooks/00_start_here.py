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
# # 00 · Start here
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/00_start_here.ipynb)
#
# **In one sentence.** ZoDi takes labelled photographs of sunny streets, lets a diffusion model redraw each of them at
# night or in snow *while its labels should stay valid*, and trains a segmentation network on both. The network should
# then cope with a domain from which it has not seen a single real image.
#
# This course rebuilds the paper *Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer* (Azuma, Matsui and
# Maki, [arXiv 2403.13652](https://arxiv.org/abs/2403.13652)) step by step. It runs on a laptop, because it comes with
# a **miniature**: a renderer of street scenes whose night and snow are known exactly, and a small latent diffusion
# model in the same file format as Stable Diffusion. The functions of the package work on both.
#
# **What you will do here:** look at the result in one picture, check your machine, the weights and the data, and
# choose your route through the course.
#
# **Level:** introductory. **What you need:** Python and some PyTorch; no GPU, no download, no knowledge of diffusion.
#
# **How long it takes:** a few minutes to read, well under a minute to run on two CPU cores.
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
# Everything we use comes from the package `zodi`, which has one module for each step of the paper.

# %%
import subprocess
import time

import numpy as np
import pandas as pd

from zodi import datasets, diffusion, transfer
from zodi.domains import DOMAINS, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import dataset, scenes
from zodi.support import diagrams, plots, runs
from zodi.support.gallery import brightened, gallery, show_scenes

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# Each notebook has one cell of parameters. `make reproduce` fills in other values; with the values you see here, the
# notebook runs on its own.

# %% tags=["parameters"]
data: str = "../results/course/data"  # data set; rendered there when it is missing
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
domain: str = "night"  # target domain of the picture
scene_seed: int = 200_003  # number of the scene in the picture
num_inference_steps: int = 12  # denoising steps on the full schedule
out: str = "../results/course/start"  # folder of this notebook's results

# %% [markdown]
# ## The method in one picture
#
# ZoDi has three parts, and so has this course. The diagram names what goes into each part and what comes out of it.

# %%
diagrams.show(
    diagrams.method(),
    "Transfer (02 to 04), adaptation (05) and estimation (06). You should see that "
    "real images of the source domain go in everywhere, and none of the target domain.",
)

# %% [markdown]
# ## The result in one picture
#
# We draw a scene that the diffusion model has never seen, in clear weather. The renderer also knows its *label map*,
# which says what is at every pixel; painted in the colours of Cityscapes, the label map is called the **layout**.

# %%
source = scenes.render(scene_seed, "clear")
layout = CITYSCAPES.colorize(source.label)
truth = {name: scenes.render(scene_seed, name).image for name in TARGETS}

# %% [markdown]
# Now the transfer. The model gets the clear image, the layout and a sentence, and nothing else: the true night image
# stays hidden from it. Each domain has its own prompt and *strength*, which says how much of the image may change.

# %%
mini = diffusion.load(model)
steps = {"defaults": mini.defaults, "num_inference_steps": num_inference_steps}
inputs = [source.image], [layout], [str(scene_seed)]
transferred = {}
for name in TARGETS:
    config = transfer.domain_config(name, **steps)
    (transferred[name],) = transfer.transfer_images(mini, *inputs, config)

# %% [markdown]
# Ask two questions of the picture. Is everything still where it was? Does it look like the domain? Here the truth is
# known, so that we can also ask which classes come out least like it.

# %%
ours, true = transferred[domain], truth[domain]
apart = np.abs(ours.astype(int) - true).mean(-1)
by_class = {
    name: apart[source.label == i].mean()
    for i, name in enumerate(CITYSCAPES.names)
    if (source.label == i).sum() >= 20
}
worst = sorted(by_class, key=by_class.get)[:-4:-1]

# %% [markdown]
# A screen shows little of a dark image, so both images of the target domain stand beside a brightened copy.

# %%
figure = gallery(
    [source.image, layout, ours, brightened(ours), true, brightened(true)],
    [
        *("source (clear)", "layout"),
        *(f"transferred to {domain}", "the same, brightened"),
        *(f"truth ({domain})", "the same, brightened"),
    ],
)
plots.label_legend(figure, [source.label], CITYSCAPES)
show_scenes(
    figure,
    f"The clear image, the layout and “{DOMAINS[domain].prompt}” go in, the second row "
    "comes out; the truth is only there to compare with. You should see that road, "
    "houses, trees and cars stay where the layout has them. What is small melts away, "
    "and what the layout does not name, such as windows and markings, is drawn anew or "
    f"lost. Least like the truth: {', '.join(worst)}.",
)

# %% [markdown]
# The same scene in the paper's five target domains: the model's images on the left, the renderer's true images on the
# right.

# %%
distance = {
    name: np.abs(transferred[name].astype(int) - truth[name]).mean() for name in TARGETS
}
nearest, farthest = min(distance, key=distance.get), max(distance, key=distance.get)
titles = [title for name in TARGETS for title in (f"transferred to {name}", "truth")]
pairs = [image for name in TARGETS for image in (transferred[name], truth[name])]
show_scenes(
    gallery(pairs, titles),
    "One scene, five sentences. You should see five kinds of weather over one street, "
    "softer than the truth. Closest to the truth, in grey levels per pixel, is "
    f"{nearest} ({distance[nearest]:.0f} of 255), farthest from it {farthest} "
    f"({distance[farthest]:.0f}).",
)

# %% [markdown]
# ## Is everything here?
#
# **The machine.** Two cores are enough for the whole course. The versions are written into every result, so that
# every number can be traced back to what produced it.

# %% tags=["machine"]
environment = runs.environment()
packages = environment.pop("packages")
known = {name: value for name, value in environment.items() if value is not None}
pd.Series(known | packages, name="this machine").to_frame()

# %% [markdown]
# **The weights.** A latent diffusion model is a set of networks that can be loaded and saved one by one. Stable
# Diffusion has the same parts under the same names, but is about a hundred times larger.

# %%
diffusion.describe(mini)

# %% [markdown]
# **The data.** A data set is a folder with labelled training images in clear weather and a labelled test set for each
# domain. If the folder does not exist yet, it is rendered now.

# %%
root = dataset.prepare(data, domains=("night", "snow"))
domains = datasets.dataset_info(root)["domains"]
splits = ["train", *(f"test/{name}" for name in domains)]
counts = {name: len(datasets.open_split(root, name)) for name in splits}
pd.Series(counts, name="images").to_frame()

# %% [markdown]
# **Other people's data sets and weights.** The miniature needs none. The course looks for real photographs and Stable
# Diffusion in the repository's folder `data/`; `make data` prints this table and says what to do next.

# %%
script = Path("../data_scripts/status.py")
if script.exists():
    command = [sys.executable, str(script), "--root", "../data"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # `make data` also prints what to type next.
    width = text.index("next")
    print("\n".join(line[:width].rstrip() for line in text.splitlines()))

# %% [markdown]
# ## The map of the course
#
# | notebook | question | in the paper |
# |---|---|---|
# | [01 The domain gap] | How much does a network lose when the weather changes? | Sections 1 and 4 |
# | [02 Diffusion in one hour] | How does noise become a picture, and who steers it? | background |
# | [03 Layout-to-image] | How does a diffusion model redraw an image and keep its labels true? | Section 3, transfer |
# | [04 Transferring a data set] | What changes when it is three thousand images, and which of them failed? | Section 3, transfer |
# | [05 Adaptation] | How does a network learn from both images of a pair? | Section 3, adaptation |
# | [06 Performance estimation] | How good will it be where nobody has been? | Section 4 |
# | [07 Published results] | What does the choice of the epoch do to a published number? | Section 4 |
# | [08 Real photographs] | What do training and estimating give on photographs, from day to dusk? | not in the paper |
# | [09 Bring your own domain] | Your images, your sentence, your network: where to start? | not in the paper |
# | [10 Generators and networks of today] | What may take the place of Stable Diffusion 1.5 and of the ResNets? | not in the paper |
# | [11 Stable Diffusion on a graphics card] | What does Stable Diffusion make of a street, in ten minutes on a free card? | Section 3, transfer |
# | [A1 How the miniature was made] | Where do the scenes and the small model come from? | not in the paper |
# | [A2 Running at paper scale] | What to type, what does it take, and what to check first? | not in the paper |
# | [A3 Tables] | Does it help, by how much, and can we be sure? | Section 4 |
# | [A4 Accounting] | Where do the hours of the paper's scale come from? | not in the paper |
#
# [01 The domain gap]: 01_domain_gap.ipynb
# [02 Diffusion in one hour]: 02_diffusion.ipynb
# [03 Layout-to-image]: 03_layout_to_image.ipynb
# [04 Transferring a data set]: 04_transferring_a_data_set.ipynb
# [05 Adaptation]: 05_adaptation.ipynb
# [06 Performance estimation]: 06_performance_estimation.ipynb
# [07 Published results]: 07_published_tables.ipynb
# [08 Real photographs]: 08_real_photographs.ipynb
# [09 Bring your own domain]: 09_bring_your_own_domain.ipynb
# [10 Generators and networks of today]: 10_generators_and_networks.ipynb
# [11 Stable Diffusion on a graphics card]: 11_stable_diffusion.ipynb
# [A1 How the miniature was made]: A1_how_the_miniature_was_made.ipynb
# [A2 Running at paper scale]: A2_paper_scale.ipynb
# [A3 Tables]: A3_tables.ipynb
# [A4 Accounting]: A4_accounting.ipynb
#
# Read 01 to 11 in this order, A3 between 05 and 06, and the rest of the appendix whenever you wonder about the miniature,
# the GPU or the numbers. `make reproduce` runs the experiments and ends with the table. With Stable Diffusion and real photographs the experiments
# need other parameters, not other code. This holds for 02 and 03 too, which read from the checkpoint whether its
# network predicts the noise, as Stable Diffusion 1.5 does, or the velocity, as the miniature does.

# %% [markdown]
# ## Words
#
# The same words mean the same things in all notebooks, in the tables and in the code.
#
# | word | what it means |
# |---|---|
# | source, target | the labelled domain that we train on, here clear weather; the domain in which the network should work and of which nobody has images |
# | domain | how the world looks; for the transfer, a prompt and a *strength* |
# | layout, label map | the class of every pixel of an image; drawn in colours, it is what the ControlNet reads |
# | train id, void | the number of a class in a label map; 255, the pixels without a class, which are never counted |
# | synthesized image (`synth`) | what the transfer makes of a source image; the two form a *pair* and share a label map |
# | strength | how far back into noise a transfer goes, 0 to 1 |
# | row, variant | one way to train a network, a line in the tables; its identifier is the variant |
# | oracle | the row that trains on true target images, which a zero-shot method may not use: an upper bound |
# | seed | the number from which all of a run's randomness comes; the rows with the same seed start from the same weights |
# | held-out images | labelled source images that nothing was trained on; estimates are made from their transferred versions |
# | candidate | a training run whose estimates are compared with the truth, or one of several networks to choose from |
# | mIoU, points | intersection over union, averaged over the classes, in percent; the difference of two is given in points |
# | gap | the oracle's mIoU minus that of source only |
# | regret | what is lost by choosing with a score instead of the truth, in points |
# | checkpoint | a folder with a diffusion model's parts |

# %% [markdown]
# ## Pitfalls
#
# - The miniature is not Stable Diffusion. It has seen six kinds of weather and nothing else, so do not judge the
#   method's image quality by it. Every step of the method carries over, and so does every way to get it wrong.
# - A transferred image that looks good to you may still have lost a pedestrian. Whether the images are good is
#   decided in 05, by a network that has to learn from them, not by our eyes.

# %% [markdown]
# ## Try it
#
# **1.** Change `scene_seed` to 200_004 and run the notebook again. Which small objects survive the transfer, and which
# do not?
#
# <details><summary>Solution</summary>
#
# Walls, roads and cars stay in place. Thin poles, traffic signs and distant pedestrians suffer most: the model works
# on latents a quarter as wide as the image, where a pole is less than one cell wide. The layout still says that the
# pole is there, and 03 shows how closely the ControlNet follows it.
# </details>
#
# **2.** Before you run it: what happens to the night image when you give the *snow* prompt with night's strength?
#
# <details><summary>Solution</summary>
#
# ```python
# strength = transfer.domain_config("night", **steps).strength
# config = transfer.domain_config("snow", **steps, strength=strength)
# (image,) = transfer.transfer_images(mini, *inputs, config)
# names = ["snow at its own strength", f"snow at night's, {strength}"]
# show_scenes(gallery([transferred["snow"], image], names), "The prompt decides.")
# ```
# You get snow, not night: the prompt decides the domain. The strength decides how much of the source's colours and
# shapes may be replaced: the layout still holds the street in place, but less of its houses comes from the source.
# </details>

# %% [markdown]
# ## Recap and the way on
#
# You have seen everything that goes into the method and everything that comes out, and your machine has the weights
# and the data. Like all the others, this notebook ends by writing a results file; here it holds the distance between
# the transferred images and the truth.

# %%
metrics = {"scene_seed": scene_seed, "mean_absolute_difference_to_truth": distance}
settings = {"data": data, "model": model, "domain": domain}
settings["num_inference_steps"] = num_inference_steps
_ = runs.save_metrics(out, "start", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [01 The domain gap](01_domain_gap.ipynb): we train a network on clear scenes and watch it fail.
#
# **References.** H. Azuma, Y. Matsui, A. Maki, *ZoDi: Zero-Shot Domain Adaptation with Diffusion-Based Image Transfer*,
# arXiv 2403.13652 · R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022 ·
# L. Zhang et al., *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023 · M. Cordts et al., *The
# Cityscapes Dataset*, CVPR 2016.
