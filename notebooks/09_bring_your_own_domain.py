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
# # 09 · Bring your own domain: own images, own prompt, own network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/09_bring_your_own_domain.ipynb)
#
# **In one sentence.** You have a folder of labelled images, a sentence for a place that nobody has photographed, and
# your own network. This notebook takes you from the raw files to an estimate of how good the network will be there.
#
# **What you will learn:** reading label files in another format with a mapping, and what the checker says when files
# are wrong · choosing a prompt and a strength without a target image · a transfer that may be killed at any time ·
# adapting *any* PyTorch module · an honest estimate · redrawing photographs for a network that stays as it is · when
# not to use the method at all.
#
# **Level:** intermediate. **What you need:** [05 Adaptation](05_adaptation.ipynb) and [06 Performance
# estimation](06_performance_estimation.ipynb). No data: if you have none, the notebook makes a stand-in folder.
#
# **How long it takes:** half an hour to read, three minutes to run on two CPU cores.
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
# One module per step, as before.

# %%
import shutil
import subprocess
import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.utils.capture import capture_output
from PIL import Image
from torch import nn
from torch.nn import functional as F

start = time.perf_counter()

# %% [markdown]
# And the modules of the course:
# %%
from zodi import (
    adaptation,
    datasets,
    diffusion,
    estimation,
    evaluation,
    segmentation,
    transfer,
)
from zodi.labels import CITYSCAPES, get_label_set
from zodi.miniature import scenes
from zodi.networks.own import OwnNetwork
from zodi.rows import get_row
from zodi.support import pictures, plots, runs
from zodi.support.bootstrap import bootstrap, resample_weights
from zodi.support.gallery import brightened, gallery, show_scenes
from zodi.tools import redrawing
from zodi.transfer_folder import transfer_folder

plots.use_theme()

# %% [markdown]
# The parameters. Put your own folders, mapping and sentence here; empty values mean the stand-in.

# %% tags=["parameters"]
images: str = ""  # your folder of images, "" for the stand-in
labels: str = ""  # your folder of label maps (8-bit PNG), "" for the stand-in
mapping: str = ""  # your mapping file, "" for the stand-in
prompt: str = "driving at night"  # your sentence
settings: dict = {"strength": 0.75, "num_inference_steps": 12}  # of the transfer
photographs: str = ""  # a few images of the target, without labels, if you have some
count: int = 50  # images of the stand-in
steps: int = 120  # length of every training
repository: str = ".."  # folder of the repository, as seen from here
out: str = "../results/course/own"  # folder of this notebook's results

# %% [markdown]
# ## A folder in a foreign format
#
# Other people's data never look like the examples. So the stand-in is written as you might find it: JPEGs in one
# subfolder per drive, label maps with their own numbers, and two numbers for the road, one for its surface and one
# for its markings.

# %%
stand_in = not images
mine, size = Path(out, "mine"), (96, 192)
numbers = np.zeros(256, np.uint8)
numbers[: CITYSCAPES.num_classes] = 10 * np.arange(1, CITYSCAPES.num_classes + 1)
if stand_in:
    shutil.rmtree(mine, ignore_errors=True)
    for index, seed in enumerate(scenes.TEST_SEEDS[50_000 : 50_000 + count]):
        scene = scenes.render(seed, "clear", *size)
        raw = numbers[scene.label]
        raw[(scene.label == 0) & (scene.image.min(2) > 170)] = 11  # markings
        for kind, array in (("images", scene.image), ("labels", raw)):
            suffix = "jpg" if kind == "images" else "png"
            file = mine / kind / f"drive{index // 20}" / f"{index:03d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file, quality=95)
    images, labels = str(mine / "images"), str(mine / "labels")
    mapping = str(mine / "mapping.yaml")

# %% [markdown]
# A *mapping* says which Cityscapes class the numbers mean: one class per line with your pixel values, and the values
# that are void. The file begins like this. Classes that Cityscapes lacks cannot be used: make them void, or map them
# to the nearest class that a layout can show.

# %%
if stand_in:
    lines = [f"  {name}: {10 * i}" for i, name in enumerate(CITYSCAPES.names, 1)]
    text = "\n".join(lines).replace("road: 10", "road: [10, 11]")
    Path(mapping).write_text(f"classes:\n{text}\nvoid: 0\n", encoding="utf-8")
if mapping.endswith(".yaml"):  # a known label set has no file
    first = Path(mapping).read_text(encoding="utf-8").splitlines()[:4]
    print("\n".join(first), "\n  ...")
label_set = get_label_set(mapping)

# %% [markdown]
# Look before you trust it: an image, the label file as stored, and what the mapping makes of it, alone and laid over
# the image.


# %%
def values(file: Path) -> np.ndarray:
    """The numbers of a label file as stored, read as the package reads them."""
    return pictures.as_values(pictures.open_picture(file), file.name)


found = datasets.find_files(images)
found_labels = datasets.find_files(labels, (".png",))
key = next(iter(found))
image, stored = datasets.read_image(found[key]), values(found_labels[key])
label = datasets.read_label(found_labels[key], label_set)
mapped = CITYSCAPES.colorize(label)
over = image // 2 + mapped // 2 if image.shape == mapped.shape else None
titles = ["image", "label file, as stored", "as mapped", "mapped, over the image"]
figure = gallery([image, stored, mapped, over], titles)
plots.label_legend(figure, [label], CITYSCAPES)
show_scenes(
    figure,
    f"The first of {len(found)} images. You should see every colour on what the legend "
    "calls it; a wrong mapping looks wrong here.",
)

# %% [markdown]
# ## What the checker says
#
# `data_scripts/own.py` checks a folder before anything is computed from it. This cell calls it as you would in a
# terminal, without the progress bars.


# %%
def say(*words: object) -> int:
    """Run Python with these words; print what it says; the exit code."""
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    for line in (result.stdout + result.stderr).splitlines():
        if line.strip() and "%|" not in line:
            print(textwrap.fill(line, 88, subsequent_indent="      "))
    return result.returncode


tool = f"{repository}/data_scripts/own.py"
own = [tool, "--images", images, "--labels", labels, "--mapping", mapping]
code = say(*own, "check")
assert code == 0, "repair what is named above; the rest of the notebook needs it"

# %% [markdown]
# All is well. To see what a defect looks like, we break a copy of a few files in three ways: we remove one label map,
# shrink another, and paint an undeclared number into a third.

# %%
broken, few = Path(out, "broken"), list(found)[:6]
shutil.rmtree(broken, ignore_errors=True)
for kind, files in (("images", found), ("labels", found_labels)):
    for key in few:
        copy = broken / kind / f"{key}{files[key].suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[key], copy)
lost, small, strange = (broken / "labels" / f"{key}.png" for key in few[:3])
lost.unlink()
Image.fromarray(values(small)[::3, ::3]).save(small)
array = values(strange).copy()
array[:8, :8] = 250
Image.fromarray(array).save(strange)

# %% [markdown]
# A missing partner stops the check at once; without it there is no pair to look at.

# %%
where = ["--images", broken / "images", "--labels", broken / "labels"]
check_broken = [tool, *where, "--mapping", mapping, "check"]
_ = say(*check_broken)

# %% [markdown]
# With the label back in place every file is read, and each kind of defect is listed with the file, what was found and
# what was expected.

# %%
shutil.copy(found_labels[few[0]], lost)
_ = say(*check_broken)

# %% [markdown]
# ## The data set folder
#
# `prepare` resizes (images by Lanczos, labels by nearest neighbour), writes Cityscapes' class numbers, and sets aside
# every fifth image by name for testing. The miniature works at 96 x 192 pixels; for photographs and Stable Diffusion
# ask for 512 x 1024.

# %%
root = Path(out, "data")
if stand_in:  # whose files are new, so that what an earlier run has prepared is refused
    shutil.rmtree(root, ignore_errors=True)
code = say(*own, "prepare", "--out", root, "--height", size[0], "--width", size[1])
assert code == 0
train, held_out = (
    datasets.open_split(root, "train"),
    datasets.open_split(root, "test/clear"),
)
print(f"{len(train)} to train on, {len(held_out)} held out")

# %% [markdown]
# Taking every fifth image *by name* is a choice. If your images are video frames, neighbouring frames land on both
# sides, and the held-out images are easier than they should be. In that case give `own.py` folders that you have
# split yourself ([08](08_real_photographs.ipynb) splits by drive).
#
# ## The sentence
#
# The prompt decides what is drawn. A model can only draw words that it has learnt. The miniature was trained on the
# sentences of a few domains: its tokenizer has a token for each of their words and *spells* all others, and the spelt
# words mean nothing to it.

# %%
model = diffusion.load("mini")
tries = [prompt, "driving in fog at night", "driving through a sandstorm"]
pieces = {}
for text in tries:
    pieces[text] = [len(model.tokenizer.tokenize(word)) for word in text.split()]
spelt = {
    text: [w for w, n in zip(text.split(), found, strict=True) if n > 1]
    for text, found in pieces.items()
}  # fmt: skip
table = pd.DataFrame({
    "words": {text: len(found) for text, found in pieces.items()},
    "known words": {text: len(pieces[text]) - len(w) for text, w in spelt.items()},
    "unknown, spelled": {text: ", ".join(w) or "-" for text, w in spelt.items()},
})  # fmt: skip
table.rename_axis("prompt")

# %% [markdown]
# We are going to redraw images with many sentences. All it takes is a configuration made from a prompt, images,
# layouts, and names, from which the noise is seeded.


# %%
def redraw(
    text: str,
    samples: list[datasets.Sample],
    **changes: object,
) -> list[np.ndarray]:
    """The samples redrawn by a prompt."""
    config = transfer.prompt_config(text, model.defaults, **settings | changes)
    layouts = [CITYSCAPES.colorize(sample.label) for sample in samples]
    return transfer.transfer_images(
        model,
        [s.image for s in samples],
        layouts,
        [s.key for s in samples],
        config,
    )


# %% [markdown]
# What does it draw for a sentence that it does not know? We take two held-out images and all sentences, with the same
# strength and noise. The plain sentence of the source domain comes first. The figure shows the first image.

# %%
shown = [held_out[i] for i in range(min(2, len(held_out)))]
drawn = {text: redraw(text, shown) for text in ["driving in clear weather", *tries]}
tiles = [shown[0].image, CITYSCAPES.colorize(shown[0].label)]
tiles += [made[0] for made in drawn.values()]
show_scenes(
    gallery(tiles, ["source", "layout", *(f"“{text}”" for text in drawn)]),
    "One strength, one noise, four sentences. You should see that an unknown sentence "
    "gives neither an error nor its meaning.",
)

# %% [markdown]
# How far does each sentence move the image away from what the plain sentence draws? This is the effect of the
# sentence alone, in grey levels.

# %%
plain = drawn["driving in clear weather"]
work = {}
for text in tries:
    both = zip(drawn[text], plain, strict=True)
    work[text] = np.mean([np.abs(a.astype(int) - b).mean() for a, b in both])
light = {text: np.mean(made) for text, made in drawn.items()}
effect = {
    "difference from the plain sentence (grey levels)": work,
    "mean grey level (0 to 255)": light,
}
pd.DataFrame(effect).loc[tries].rename_axis("prompt").round(1)

# %% [markdown]
# The miniature can be used only within its vocabulary. A sentence with unknown words still gives an image, and no number
# here says that it shows no sandstorm. Even two known words that it has never seen together, fog and night, need not
# give both. Stable Diffusion was trained on captions of every kind and knows far more. But there, too,
# your network learns from the picture, not from the sentence, so look at the picture.
#
# ## A strength, without a target image
#
# A free prompt has no published strength. `prompt_config` starts at the median of the strengths that come with the
# checkpoint, or at 0.65 if there are none. Look at a strip first:

# %%
ladder = [0.3, 0.45, 0.6, 0.75, 0.9]
strip = [held_out[i] for i in range(min(4, len(held_out)))]
frames = {s: redraw(prompt, strip, strength=s) for s in ladder}
tiles, titles = [strip[0].image], ["source"]
for s in ladder:
    image = frames[s][0]
    is_dark = image.mean() < 60
    tiles.append(brightened(image) if is_dark else image)
    titles.append(f"strength {s}" + (", brightened" if is_dark else ""))
show_scenes(
    gallery(tiles, titles),
    f"“{prompt}”, from hardly to almost completely redrawn. You should find two "
    "limits: where the new domain appears, and where labelled objects are lost.",
)

# %% [markdown]
# Your eyes tell you whether the domain is right. Whether the *labels* are still true can be measured: a *reference*
# network that copes with strange light counts the pixels in which it finds the label. Their share is the **fidelity**
# of [04](04_transferring_a_data_set.ipynb). Nobody has seen the target, so the reference is trained on your own images
# with strong colour jitter. It is good only for comparisons, so it also gets a floor: what it finds if every image
# has the labels of another one.

# %%
violent = adaptation.recipe("mini", "source_only", steps=steps, jitter=0.9, hue=0.3)
with capture_output():  # the settings, which train prints
    reference, _ = adaptation.train(violent, train, None, None)


def found_in(drawn: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """Share of pixels, percent, in which the reference finds the label."""
    both = enumerate(zip(drawn, labels, strict=True))
    samples = [datasets.Sample(*pair, str(i)) for i, pair in both]
    found = evaluation.image_confusions(reference, samples, CITYSCAPES.num_classes)
    return float(100 * estimation.fidelity(found).mean())


# %% [markdown]
# Fidelity, floor, and how much each strength changes the image:

# %%
truth = [sample.label for sample in strip]
floor = found_in([sample.image for sample in strip], truth[-1:] + truth[:-1])
lines = []
for s in ladder:
    both = zip(frames[s], strip, strict=True)
    change = np.mean([np.abs(a.astype(int) - b.image).mean() for a, b in both])
    lines.append(
        {"strength": s, "fidelity": found_in(frames[s], truth), "change": change},
    )
guide = pd.DataFrame(lines)

# %% [markdown]
# Both curves against the strength:

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
axes[0].plot(guide["strength"], guide["change"], marker="o", color="0.4")
axes[0].set(xlabel="strength", ylabel="change of the image\n(grey levels)")
axes[1].plot(guide["strength"], guide["fidelity"], marker="o", color="0.4")
axes[1].axhline(floor, color="0.6", linewidth=1, label="labels of other images")
axes[1].set(xlabel="strength", ylabel="fidelity (% of pixels)")
line = {"color": plots.DOMAIN_COLORS["night"], "linestyle": ":", "label": "chosen"}
for ax in axes:
    ax.axvline(settings["strength"], **line)
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    figure,
    "How much changes, and how much of the labels a reference still finds. No target "
    "image was used. You should see more change and less fidelity from left to right.",
)

# %% [markdown]
# Read them together. Where the change jumps, the new domain appears; where the fidelity falls to the floor, the
# labels are lost.

# %%
jump = int(guide["change"].diff().idxmax())
before, after = guide.iloc[jump - 1], guide.iloc[jump]
print(f"largest jump: from strength {before['strength']:g} to {after['strength']:g}")
there = f"from {before['fidelity']:.0f} % to {after['fidelity']:.0f} %"
print(f"fidelity there: {there}, floor {floor:.0f} %")

# %% [markdown]
# ## The transfer
#
# Now the whole training part. The transfer may be killed at any time: an image counts once its line is in the
# manifest. To see this, we stop after a third and then repeat the same call. (On a second run of this notebook all of
# the images exist already.)

# %%
config = transfer.prompt_config(prompt, model.defaults, **settings)
synth, part = Path(out, "synth"), root / "train"
arguments = (model, part / "images", part / "labels", synth, config, CITYSCAPES)
third, reports = max(1, len(train) // 3), {}
reports["a third"] = transfer_folder(*arguments, limit=third, progress=False)
reports["called again"] = transfer_folder(*arguments, progress=False)
table = pd.DataFrame({name: vars(report) for name, report in reports.items()})
table.T[["total", "done", "skipped"]]

# %% [markdown]
# Look at pairs. This is the last moment at which your eyes can save a training run.

# %%
second = datasets.open_split(root, "train", images=synth / "images")
pairs = [(train[i], second[i]) for i in range(min(2, len(train)))]
tiles = []
for a, b in pairs:
    tiles += [a.image, CITYSCAPES.colorize(a.label), b.image, brightened(b.image)]
titles = ["yours", "labels of both", f"“{prompt}”", "the same, brightened"]
figure = gallery(tiles, titles * len(pairs))
plots.label_legend(figure, [a.label for a, _ in pairs], CITYSCAPES)
show_scenes(
    figure,
    "Pairs, as the training will see them. You should find what is labelled in both "
    "images. What is missing in the second teaches the network an error.",
)

# %% [markdown]
# ## Your own network
#
# Adaptation asks little of a network: images `(B, 3, H, W)` in, logits `(B, C, H, W)` out, and *features* in between,
# which the similarity term compares. Here is a network that no library knows. It uses group normalisation, so there
# are no batch statistics that the two domains could spoil for each other.


# %%
def block(inputs: int, outputs: int, **how: int) -> nn.Sequential:
    """Convolution, normalisation of one image alone, activation."""
    layers = nn.Conv2d(inputs, outputs, 3, **how), nn.GroupNorm(8, outputs), nn.ReLU()
    return nn.Sequential(*layers)


# %% [markdown]
# Of such blocks:


# %%
class Tiny(nn.Module):
    """Three steps down, one look around, one step up."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = ((3, width), (width, 2 * width), (2 * width, 4 * width))
        down = [block(*pair, stride=2, padding=1) for pair in sizes]
        around = block(4 * width, 4 * width, padding=4, dilation=4)
        self.encoder = nn.Sequential(*down, around)
        self.head = nn.Conv2d(4 * width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the size of the images."""
        return F.interpolate(self.head(self.encoder(x)), x.shape[2:], mode="bilinear")


# %% [markdown]
# `OwnNetwork` makes it return its features too: you name the part, the wrapper reads the features there, and the
# module itself is not changed.

# %%
torch.manual_seed(0)
tiny = OwnNetwork(Tiny(CITYSCAPES.num_classes), features="encoder")
x = torch.randn(2, 3, 64, 128)
logits, features = tiny(x)
assert torch.equal(logits, tiny.model(x))
assert torch.equal(features, tiny.model.encoder(x))
parameters = sum(p.numel() for p in tiny.parameters())
print(f"logits {tuple(logits.shape)}, features {tuple(features.shape)}")
print(f"{parameters:,} parameters")

# %% [markdown]
# The loss of [05](05_adaptation.ipynb) needs nothing more. One line trains the network; `network=` replaces the
# recipe's network by yours. It is trained from scratch, so all of it has the same learning rate. If parts are
# pretrained, name the new part, `head="head"`; the learning rate of the rest is then multiplied by `body_factor`.


# %%
def adapt(variant: str, own: bool) -> nn.Module:
    """Source-only or ZoDi, with the own network or one by its name."""
    pair = second if get_row(variant).method else None
    changes, network = {"steps": steps}, None
    if own:
        torch.manual_seed(0)
        network = OwnNetwork(Tiny(CITYSCAPES.num_classes), "encoder")
        changes |= {"network": network, "learning_rate": 5e-3}
    recipe = adaptation.recipe("mini", variant, **changes)
    with capture_output():
        return adaptation.train(recipe, train, pair, None, network=network)[0]


networks = {
    ("Tiny (own)", "source only"): adapt("source_only", own=True),
    ("Tiny (own)", "ZoDi"): adapt("zodi", own=True),
}

# %% [markdown]
# A network from segmentation_models_pytorch needs only its name, `network="Unet/resnet34"`, and for photographs
# `weights="imagenet"`. We take the course's default, whose weights come with the package.

# %%
by_name = adaptation.recipe("mini").network
networks |= {
    (by_name, "source only"): adapt("source_only", own=False),
    (by_name, "ZoDi"): adapt("zodi", own=False),
}

# %% [markdown]
# ## How good will it be?
#
# You have no image of the target. So take the **held-out** images, transfer them, and measure on the results. Five
# lines do this for any network:

# %%
where = root / "test/clear/images", root / "test/clear/labels"
how = {"model": model, "progress": False} | settings
place = Path(out, "estimate")
network = networks["Tiny (own)", "ZoDi"]
found = estimation.estimate(network, *where, prompt, place, **how)
print(textwrap.fill(str(found), 88))

# %% [markdown]
# Now for all four networks. The generated images exist already, so this takes only four evaluations.

# %%
lines = {}
for name, network in networks.items():
    e = estimation.estimate(network, *where, prompt, place, **how)
    lines[name] = {"low": e.low, "estimate": e.miou, "high": e.high}
summary = pd.DataFrame(lines).T

# %% [markdown]
# Next to each estimate we need the mIoU at home, on the unchanged held-out images and over the same classes: a gain
# elsewhere may cost something there.


# %%
def score(network: nn.Module, samples: object) -> float:
    """mIoU in percent over the classes of the estimate."""
    matrix = evaluation.confusion(network, samples, CITYSCAPES.num_classes)
    return 100 * float(np.nanmean(evaluation.iou(matrix)[common]))


kept = found.classes.index[~found.classes["rare"]]
common = [CITYSCAPES.names.index(name) for name in kept]
home = {name: score(network, held_out) for name, network in networks.items()}
summary.insert(0, "at home", home)
summary.rename_axis(["network", "trained"]).round(1)

# %% [markdown]
# The stand-in is rendered, so the truth can be rendered too: true night images, of scenes that no network has seen.
# **You will not have this.** It is here to show what an estimate is worth.

# %%
known = stand_in and prompt == "driving at night"
if known:
    target = []
    for seed in scenes.TEST_SEEDS[60_000 : 60_000 + count]:
        scene = scenes.render(seed, "night", *size)
        target.append(datasets.Sample(scene.image, scene.label, str(seed)))
    true = {name: score(network, target) for name, network in networks.items()}
    summary["truth"] = true
ranked = summary.sort_values("estimate")
overlaps = int((ranked["low"].iloc[1:].values <= ranked["high"].iloc[:-1].values).sum())

# %% [markdown]
# Estimates with their 95 % intervals, and the truth as a cross:

# %%
figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
places = np.arange(len(summary))[::-1]
line = {"color": "0.6", "linewidth": 4, "label": "95 % interval"}
ax.hlines(places, summary["low"], summary["high"], **line)
ax.scatter(summary["estimate"], places, color="0.2", zorder=3, label="estimate")
if known:
    cross = {"marker": "x", "s": 50, "color": plots.DOMAIN_COLORS["night"]}
    ax.scatter(summary["truth"], places, zorder=4, label="truth", **cross)
names = [f"{name}, {how_}" for name, how_ in summary.index]
ax.set(yticks=places, yticklabels=names, xlabel=f"mIoU, “{prompt}” (%)")
ax.set_ylim(-0.6, len(summary) - 0.4)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    figure,
    f"Estimates from {found.images} held-out images, {found.seeds} transfers of each. "
    f"You should see {overlaps} of {len(summary) - 1} pairs of neighbours overlap; "
    "such a pair should not be ranked by its estimates.",
)

# %% [markdown]
# Was the estimate right? We compute two answers: is the *order* of the networks correct, and is the *level*?

# %%
if known:
    inside = int(summary["truth"].between(summary["low"], summary["high"]).sum())
    by_estimate, by_truth = (
        list(summary[kind].sort_values().index) for kind in ("estimate", "truth")
    )  # fmt: skip
    order = "right" if by_estimate == by_truth else "wrong"
    too_high = (summary["estimate"] - summary["truth"]).mean()
    print(f"order of the {len(summary)} networks: {order}")
    print(f"truth inside the interval: {inside} of {len(summary)}")
    print(f"estimate − truth: {too_high:+.1f} points in the mean")

# %% [markdown]
# Generated images are not real ones: a network may do better or worse on them than on real ones, and a network
# trained on this generator's images may have an advantage. The interval accounts for the sample and the noise, not
# for this bias. [06](06_performance_estimation.ipynb) measures on many networks how far an estimate can be trusted.
# It is safest to compare the same network before and after, as we do next.

# %% [markdown]
# ## Did it help?
#
# The only honest answer is a computed one. Compare two networks on the *same* images: resample the images and take
# the difference of the two networks in every resample, so that most of what depends on the choice of images cancels.
# This needs no target image either.


# %%
def matrices(network: nn.Module, parts: list) -> np.ndarray:
    """Confusion matrices, one per part and image; parts have the same images."""
    classes = CITYSCAPES.num_classes
    return np.stack([evaluation.image_confusions(network, p, classes) for p in parts])


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Difference of mIoU, a minus b, in points, and its 95 % interval."""
    weights = resample_weights(a.shape[1], len(a))
    points = 100 * (bootstrap(a, weights) - bootstrap(b, weights))
    drawn = np.nanmean(points[:, common], axis=1)
    return float(drawn.mean()), *np.percentile(drawn, [2.5, 97.5]).tolist()


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says."""
    return "helped" if low > 0 else "hurt" if high < 0 else "undecided"


# %% [markdown]
# Three kinds of images can serve as judges: those from home, the generated ones and, for the stand-in only, true
# ones.

# %%
judges = {"home": [held_out]}
generated = [place / f"seed{seed}" / "images" for seed in (0, 1)]
judges["generated"] = [
    datasets.open_split(root, "test/clear", images=folder) for folder in generated
]  # fmt: skip
if known:
    judges["true"] = [target]

# %% [markdown]
# One training run is one seed, and another seed may give another answer; the interval accounts only for the images.
# Look at home, too: a gain in one domain often costs something in the other.

# %%
lines = []
for name in dict.fromkeys(name for name, _ in networks):
    for judge, parts in judges.items():
        both = [matrices(networks[name, how], parts) for how in ("ZoDi", "source only")]
        gain, low, high = difference(*both)
        line = {"network": name, "images": judge, "gain": gain}
        line |= {"low": low, "high": high, "ZoDi": verdict(low, high)}
        lines.append(line)
gains = pd.DataFrame(lines).set_index(["network", "images"])
gains.round(1).rename(columns={"gain": "ZoDi − source only (points)"})

# %% [markdown]
# In words, computed from the table:

# %%
judged = "true" if known else "generated"
for name, line in gains.xs(judged, level="images").iterrows():
    at_home = gains.loc[(name, "home"), "gain"]
    there = f"{line['gain']:+.1f} points on {judged} images of “{prompt}”"
    print(f"{name}: {line['ZoDi']}, {there}, {at_home:+.1f} at home")

# %% [markdown]
# ## The other way round
#
# Everything so far taught the network about the target. If you have a few *photographs* of it, without labels, you may
# leave the network as it is and change the photograph instead: redraw it in the source's domain, with the prompt of
# the source, and let the source-only network segment what it knows. This is *test-time transfer*. The layout cannot
# come from labels. It is what the network sees in the photograph, mistakes included, or nothing (`layout="none"`).
#
# For the stand-in the photographs are the rendered night images.

# %%
if known and not photographs:
    photographs = str(Path(out, "photographs"))
    Path(photographs).mkdir(parents=True, exist_ok=True)
    for sample in target:
        Image.fromarray(sample.image).save(Path(photographs, f"{sample.key}.png"))
unchanged, redrawn = networks[by_name, "source only"], Path(out, "redrawn")
if photographs:
    # The network is new with every run of this notebook, and so are its layouts.
    shutil.rmtree(redrawn, ignore_errors=True)
    those = (unchanged, photographs, redrawn, model, CITYSCAPES)
    report = redrawing.redraw_target(*those, progress=False, **settings)
    print(f"{report.done} redrawn, {report.seconds / report.done:.1f} s per photograph")

# %% [markdown]
# What the network sees before and after:

# %%
if photographs:
    before = datasets.find_files(photographs)
    after = datasets.find_files(redrawn / redrawing.REDRAWN_FOLDER / "images")
    tiles, seen = [], []
    for key in list(before)[:2]:
        for image in (datasets.read_image(files[key]) for files in (before, after)):
            seen.append(evaluation.predict(unchanged, image))
            tiles += [image, CITYSCAPES.colorize(seen[-1])]
    titles = ["photograph", "what it sees: the layout", "redrawn", "what it sees then"]
    figure = gallery(tiles, titles * (len(tiles) // 4))
    plots.label_legend(figure, seen, CITYSCAPES)
    show_scenes(
        figure,
        "Test-time transfer. What the network misses in the photograph, the layout "
        "misses. You should see daylight in the redrawn image, and the mistakes of the "
        "layout drawn into it.",
    )

# %% [markdown]
# Is it worth it? With the truth of the stand-in we can say. For comparison: the adapted network on the photographs as
# they are.

# %%
if known:
    samples = []
    for sample in target:
        image = datasets.read_image(after[sample.key])
        samples.append(datasets.Sample(image, sample.label, sample.key))
    plain = matrices(unchanged, [target])
    ways = {"redrawn, source only": matrices(unchanged, [samples])}
    ways["as they are, ZoDi"] = matrices(networks[by_name, "ZoDi"], [target])
    lines = {name: difference(way, plain) for name, way in ways.items()}
    worth = pd.DataFrame(lines, ["gain", "low", "high"]).T
    for name, (gain, low, high) in lines.items():
        said = f"{gain:+.1f} points ({low:+.1f} to {high:+.1f}), {verdict(low, high)}"
        print(f"photographs {name}: {said}")

# %% [markdown]
# Two things speak for redrawing: no training, and no label. Two speak against it: every new photograph costs a
# transfer, and the layout is as good as the network that drew it, so where the network sees nothing there is nothing to
# redraw. [A3](A3_tables.ipynb) has the row for all five domains and three seeds. On the command line it is
# `python -m zodi redraw --network DIR --images PHOTOGRAPHS --out DIR`.

# %% [markdown]
# ## The same without a notebook
#
# ```bash
# python data_scripts/own.py --images DIR --labels DIR --mapping mine.yaml \
#     prepare --out results/own/data
# python -m zodi transfer --images results/own/data/train/images \
#     --labels results/own/data/train/labels \
#     --prompt "driving at night" --out results/own/night
# python -m zodi adapt --data results/own/data --variant zodi \
#     --synth results/own/night --out results/own/run
# python -m zodi evaluate --network results/own/run/network --data results/own/data
# python -m zodi estimate --network results/own/run/network \
#     --images results/own/data/test/clear/images \
#     --labels results/own/data/test/clear/labels \
#     --domain "driving at night" --out results/own/estimate
# ```
#
# `--model` takes Stable Diffusion ([A2](A2_paper_scale.ipynb)), `--shard I/N` shares a folder among machines.
# Networks of your own class can be used only from Python; the command line knows networks by name. Here is one of the
# commands, for a network from above (it counts all classes, including the rare ones):

# %%
segmentation.save_network(networks[by_name, "ZoDi"], Path(out, "network"))
code = say("-m", "zodi", "evaluate", "--network", Path(out, "network"), "--data", root)
assert code == 0

# %% [markdown]
# ## Before you start: a checklist
#
# **How many images?** The estimate is the first limit: its interval narrows with the square root of the number of
# held-out images. Extrapolated from the one above:

# %%
line = summary.loc[("Tiny (own)", "ZoDi")]
numbers_of_images = pd.Series([found.images, 50, 100, 200, 500])
widths = (line["high"] - line["low"]) * (found.images / numbers_of_images) ** 0.5
columns = {"held-out images": numbers_of_images, "width (points)": widths}
pd.DataFrame(columns).round(1).set_index("held-out images")

# %% [markdown]
# **Which sizes?** Any size will do, but the diffusion model works at its own size and the result is scaled back. The
# last columns say how large the smallest detail is, one cell of the latent, in pixels of *your* image. Anything
# smaller is invented.

# %%
sd = diffusion.TransferDefaults()
kinds = {"miniature": (model.defaults, 4), "Stable Diffusion 1.5": (sd, 8)}
cell, lines = "one cell (your pixels)", []
for h, w in ((96, 192), (360, 480), (1080, 1920), (1024, 2048), (2160, 3840)):
    for kind, (defaults, pixels) in kinds.items():
        size_ = transfer.working_size(h, w, defaults.short_side, defaults.multiple)
        line = {"your images": f"{w}x{h}", "model": kind}
        line |= {"works at": f"{size_[1]}x{size_[0]}"}
        lines.append(line | {cell: round(pixels * h / size_[0], 1)})
sizes = pd.DataFrame(lines)
order = list(dict.fromkeys(sizes["your images"]))
wide = sizes.pivot(index="your images", columns="model", values=["works at", cell])
wide.loc[order]

# %% [markdown]
# - **Memory.** It grows with the working size and the batch size, not with the number of images. Stable Diffusion
#   needs a GPU; [A2](A2_paper_scale.ipynb) counts what it takes.
# - **Privacy.** Nothing leaves the machine: no model is downloaded unless you say `--download`, and no image is ever
#   uploaded. But a transferred image is *not* anonymous: faces and number plates are redrawn, not removed, and at a
#   low strength they are kept.
# - **Licence.** The licence of your images also applies to their synthesized images, and a checkpoint has its own
#   terms. Read both.
# - **Labels.** Transferred images inherit them, mistakes included.
#
# **When not to use it**
#
# - You have some labelled images of the target: train on them. This method is for those who have none.
# - The target differs in *what is there*, not in how it looks: other objects, another camera height, another
#   country's signs. A transfer keeps the layout, and therefore that gap.
# - The target comes from another sensor: thermal, radar, depth. No sentence can draw its physics.
# - The details that matter to you are smaller than one cell in the table above.
# - A wrong estimate could hurt somebody. It has a bias that its interval does not include
#   ([06](06_performance_estimation.ipynb)).

# %% [markdown]
# ## Pitfalls
#
# - **Colour label images.** The checker refuses them: `LabelSet.from_colors` turns Cityscapes' colours into class
#   numbers; for other colours first make your own `LabelSet` with them.
# - **Labels saved as JPEG** or resized with interpolation: halfway between two class numbers lies a third class. If
#   you are lucky, the checker reports unknown values.
# - **Choosing the strength by the truth.** With a target image at hand you would be tempted to, and then the method
#   is no longer zero-shot.
# - **Estimating on training images.** Keep the held-out part out of the training.
# - **A transfer with another prompt into the same folder.** It is refused, so that a folder never holds a mixture.
#
# ## Try it
#
# **1. Predict:** what happens to the fidelity if the prompt is the plain one of the source domain, at strength 0.9?
#
# <details><summary>Solution</summary>
#
# The light stays as it was, so the task is easier for the reference than at night; whatever it misses is lost layout
# alone.
# ```python
# plain = redraw("driving in clear weather", strip, strength=0.9)
# lost_light = guide.set_index("strength")["fidelity"].get(0.9)
# print(f"plain {found_in(plain, truth):.0f} %, “{prompt}” {lost_light:.0f} %")
# ```
# </details>
#
# **2. Modify:** make your own label set with four classes: free, obstacle, sky, mark. Which parts need to know about
# it?
#
# <details><summary>Solution</summary>
#
# Only the data sets: `FolderDataset` reads with any `LabelSet`, and the network gets as many outputs. Its colours must
# be those of Cityscapes' classes, because the layout is drawn with them.
# ```python
# from zodi.labels import LabelSet
# groups = {
#     "free": ("road", "sidewalk", "terrain"),
#     "sky": ("sky",),
#     "mark": ("traffic sign", "traffic light"),
# }
# rest = [n for n in CITYSCAPES.names if not any(n in g for g in groups.values())]
# groups["obstacle"] = tuple(rest)
# ids = CITYSCAPES.names.index
# colors = tuple(CITYSCAPES.colors[ids(g[0])] for g in groups.values())
# raw_values = tuple(tuple(ids(n) for n in g) for g in groups.values())
# four = LabelSet("four", tuple(groups), colors, raw_values=raw_values)
# few = datasets.FolderDataset(root / "train/images", root / "train/labels", four)
# own_four = OwnNetwork(Tiny(four.num_classes), "encoder")
# few_steps = adaptation.recipe("mini", "source_only", steps=4)
# adapted, _ = adaptation.train(few_steps, few, None, None, network=own_four)
# evaluation.predict(adapted, few[0].image).shape
# ```
# </details>
#
# **3. Break:** name a part that the network does not have, or one whose output is a vector.
#
# <details><summary>Solution</summary>
#
# The first is refused when the network is wrapped, and the message lists the names that exist:
# ```python
# try:
#     OwnNetwork(Tiny(19), features="layer4")
# except ValueError as error:
#     print(error)
# ```
# A vector has no height and width to average over, and `similarity` stops with torch's message about dimensions.
# </details>

# %% [markdown]
# ## Recap
#
# We went through a mapping, a sentence, a strength chosen by eye and by fidelity, a transfer, a network, and an
# estimate with an interval; and, in the opposite direction, from a photograph back to what the network knows. Each stage
# checks its input and says what is wrong, and the final comparisons said whether it was worth it.

# %%
metrics = {
    "images": len(train), "held_out": len(held_out), "guide": guide.to_dict("records"),
    "networks": summary.reset_index().to_dict("records"),
    "gains": gains.reset_index().to_dict("records"),
    "redrawn": worth.reset_index().to_dict("records") if known else [],
}  # fmt: skip
used = {"prompt": prompt, "settings": settings, "stand_in": stand_in, "steps": steps}
_ = runs.save_metrics(out, "own_domain", used, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [10 Generators and networks of today](10_generators_and_networks.ipynb) for other models and images that
# other programs made, [A1 How the miniature was made](A1_how_the_miniature_was_made.ipynb) for what lies behind the
# stand-in, or [A2 Running at paper scale](A2_paper_scale.ipynb) for Stable Diffusion, GPUs and hours.
#
# **References.** The paper, Section 3 (transfer and adaptation) and Section 4 (estimating the performance) · Y. Wu, K.
# He, *Group Normalization*, ECCV 2018 · P. Iakubovskii, *Segmentation Models PyTorch*, 2019.
