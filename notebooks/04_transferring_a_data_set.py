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
# # 04 · Transferring a data set: thousands of images, and the ones that fail
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/04_transferring_a_data_set.ipynb)
#
# **In one sentence.** Transferring one image is an experiment; transferring a whole training set has to run unattended.
# It has to be fast, survive interruptions, give the same images on every machine, and say which of them have gone wrong.
#
# **What you will learn:** what a data set costs, in network evaluations and hours · batches, and why they must not
# change the result · a manifest that lets a killed run continue · sharing the work between processes · *fidelity*:
# which images have lost their layout, which classes are lost, and what can be done about it.
#
# **Level:** intermediate. **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb) for the transfer of one
# image; no GPU.
#
# **How long it takes:** half an hour to read, two minutes to run on two CPU cores.
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
# `zodi.transfer` transfers images, `zodi.transfer_folder` whole folders; `zodi.estimation` computes the fidelity.

# %%
import time

from zodi import datasets, diffusion, transfer
from zodi.miniature import dataset
from zodi.support import runs
from zodi.transfer_folder import transfer_folder

start = time.perf_counter()

# %% [markdown]
# For a closer look:

# %% tags=["reader"]
import hashlib
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output
from torch.nn import functional as F

# %% [markdown]
# And the modules of the course:
# %% tags=["reader"]
from zodi import adaptation, estimation, evaluation, sampling
from zodi.domains import DOMAINS, TARGETS
from zodi.labels import IGNORE_INDEX
from zodi.support import diagrams, plots
from zodi.support.gallery import brightened, gallery, show_scenes
from zodi.support.results import read_manifest

plots.use_theme()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
data: str = "../results/course/data"  # data set; rendered there when it is missing
domain: str = "night"  # target domain
method: str = "stochastic_inversion"  # one of transfer.METHODS, or "clear_prompt"
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps on the full schedule
dtype: str = "float32"  # of the networks: "float32", "bfloat16", "float16" or "auto"
limit: int = 8  # training images to transfer, 0 for all
seed: int = 0  # decides all noise
out: str = "../results/course/transfer"  # folder of this notebook's results
reference_steps: int = 250  # training steps of the network that looks for failures

# %% [markdown]
# ## Another problem than one image
#
# A transfer evaluates the UNet and the ControlNet once for the inversion and twice for every step, with the prompt
# and with the negative prompt. At strength $s$, $\lfloor 20\, s \rfloor$ of the paper's 20 steps are taken.
# Cityscapes has 2,975 training images, and the paper has five target domains:

# %% tags=["reader"]
cityscapes = 2975
plan = pd.DataFrame({"strength": {name: DOMAINS[name].strength for name in TARGETS}})
plan["steps walked"] = (20 * plan["strength"]).astype(int)
plan["evaluations per image"] = 1 + 2 * plan["steps walked"]
plan["evaluations in all"] = cityscapes * plan["evaluations per image"]
display(plan.rename_axis("target domain"))
Markdown(
    f"Together **{plan['evaluations in all'].sum():,}** evaluations of two networks, "
    "before any training begins."
)

# %% [markdown]
# A run of hours or days will be interrupted, and nobody will look at fifteen thousand pictures. So four things matter
# that did not matter for one image: speed, the same result under all circumstances, resuming after an interruption,
# and a *measured* verdict on every image.

# %% tags=["reader"]
diagrams.show(
    diagrams.data_way(),
    "The way of one image. You should see three things meet in the denoising: the "
    "latent of the image, the layout of its labels, and noise that depends only on the "
    "run's seed and the image's name. An image is finished when its line is in the "
    "manifest.",
)

# %% [markdown]
# The data set, the model, and the settings of the transfer:

# %%
root = dataset.prepare(data)
label_set = datasets.label_set_of(root)
images, labels = root / "train" / "images", root / "train" / "labels"
sources = datasets.open_split(root, "train")
mini = diffusion.load(model, device="auto", dtype=dtype)
common = {
    "defaults": mini.defaults,
    "num_inference_steps": num_inference_steps,
    "seed": seed,
}
config = transfer.domain_config(domain, method, **common)

# %% [markdown]
# ## Batches
#
# *Guidance* needs two predictions for the same latent. The authors' program calls the networks twice. Both
# predictions can also be rows of *one* batch: the negative prompt first, then the prompt. We begin with what the two
# ways have in common, for four images at $t = 500$:

# %% tags=["reader"]
example = transfer.domain_config(domain, **common)
few = [sources[i] for i in range(min(4, len(sources)))]
size = transfer.working_size(*few[0].label.shape, example.short_side, example.multiple)
pixels = torch.from_numpy(np.stack([sample.image for sample in few]))
pixels = F.interpolate(pixels.permute(0, 3, 1, 2).float() / 255, size)
z = diffusion.encode(mini, pixels.permute(0, 2, 3, 1))
layouts = [label_set.colorize(sample.label) for sample in few]
control = torch.stack(
    [transfer.prepare_layout(layout, size, example.palette) for layout in layouts]
)
prompts = [example.negative_prompt, example.prompt + example.prompt_suffix]
embeds = diffusion.embed(mini, prompts)

# %% [markdown]
# And the networks as a function, as in 03:


# %% tags=["reader"]
@torch.inference_mode()
def predict(z, layout, embeds, t=500):
    """What the UNet answers for latents z at time t, with the ControlNet's help."""
    down, mid = mini.controlnet(z, t, embeds, controlnet_cond=layout, return_dict=False)
    added = {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": mid,
    }
    return mini.unet(z, t, embeds, **added).sample


# %% [markdown]
# Here are the two ways. They have to agree, because no row of a batch sees another one: convolutions, attention and
# group normalisation all work within one image.


# %% tags=["reader"]
def two_calls(z, layout):
    """Predictions for the negative prompt, then for the prompt."""
    rows = [row.expand(len(z), -1, -1) for row in embeds[:, None]]
    return torch.cat([predict(z, layout, row) for row in rows])


def one_call(z, layout):
    """The same as one batch of twice the size."""
    rows = embeds.repeat_interleave(len(z), 0)
    return predict(torch.cat([z, z]), torch.cat([layout, layout]), rows)


assert torch.allclose(two_calls(z, control), one_call(z, control), atol=1e-4)


# %% [markdown]
# How much time does this save on this machine? We take the median of five measurements.


# %% tags=["reader"]
def milliseconds(call, *arguments):
    """Median time of five calls."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        call(*arguments)
        times.append(1000 * (time.perf_counter() - begin))
    return np.median(times)


two, one = (milliseconds(call, z[:1], control[:1]) for call in (two_calls, one_call))
Markdown(
    f"A guided step for one image: {two:.0f} ms in two calls, {one:.0f} ms in one, "
    f"{two / one:.2f} times as fast."
)

# %% [markdown]
# Images can share a call as well. We take the same images again, with whole transfers this time, in batches of one,
# two, four and eight:

# %% tags=["reader"]
speed, by_batch = {}, {}
for batch in [batch for batch in (1, 2, 4, 8) if batch <= len(sources)]:
    part = [sources[i] for i in range(max(batch, len(few)))]
    by_batch[batch], begin = [], time.perf_counter()
    for first in range(0, len(part), batch):
        rows = part[first : first + batch]
        layouts = [label_set.colorize(row.label) for row in rows]
        pictures, names = [row.image for row in rows], [row.key for row in rows]
        by_batch[batch] += transfer.transfer_images(
            mini, pictures, layouts, names, example
        )
    speed[batch] = len(part) / (time.perf_counter() - begin)

# %% [markdown]
# A single image already keeps a processor core busy. A graphics card has thousands of units that one small image leaves
# idle: there, batches and half precision together make the transfer several times as fast
# ([A4](A4_accounting.ipynb) has the measurements).

# %% tags=["reader"]
figure, ax = plt.subplots(figsize=(4, 2.4), layout="constrained")
color = plots.DOMAIN_COLORS[domain]
bars = ax.bar([str(batch) for batch in speed], list(speed.values()), color=color)
ax.bar_label(bars, fmt="%.2f")
ax.set(xlabel="images per batch", ylabel="images per second")
ax.margins(y=0.15)
ax.grid(False, axis="x")
best, gain = max(speed, key=speed.get), max(speed.values()) / speed[1]
plots.show(
    figure,
    f"Speed of the transfer with {torch.get_num_threads()} thread(s), "
    f"{num_inference_steps} steps, images of {size[1]} x {size[0]} pixels. You should "
    f"see the best speed at {best} per batch, {gain:.2f} times that of single images.",
)

# %% [markdown]
# ## The same noise, whatever the batch
#
# Another batch size, another order, a resumed run: the image must not change, or nobody can repeat the experiment.
# The danger is not the networks but the *noise*. A single random generator for the whole run would hand out its
# numbers in the order of the images. We give every image its own generator, seeded with the run's seed and the
# image's name:

# %% tags=["reader"]
key = few[0].key
digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
own = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))
assert torch.equal(
    torch.randn(8, generator=own),
    torch.randn(8, generator=runs.generator_for(key, seed)),
)

# %% [markdown]
# The runs in the figure above already test this. We add one in reversed order, and one with another seed for
# comparison:

# %% tags=["reader"]
rows = few[::-1]
layouts = [label_set.colorize(row.label) for row in rows]
arguments = [row.image for row in rows], layouts, [row.key for row in rows]
backwards = transfer.transfer_images(mini, *arguments, example)[::-1]
last, another = (part[-1:] for part in arguments), replace(example, seed=seed + 1)
(other,) = transfer.transfer_images(mini, *last, another)

# %% [markdown]
# We compare with batches of one. The rounding of a float32's last digit depends on the batch size and occasionally
# moves a pixel to the next of the 256 grey values. Nothing more should happen.

# %% tags=["reader"]
runs_of_few = {f"batches of {n}": by_batch[n][: len(few)] for n in speed if n > 1}
runs_of_few[f"one batch of {len(few)}, reversed"] = backwards
runs_of_few["another seed, first image"] = [other]
differences = {
    name: np.abs(np.stack(found).astype(int) - np.stack(by_batch[1][: len(found)]))
    for name, found in runs_of_few.items()
}
same = pd.DataFrame({
    "largest difference (of 255)": {n: d.max() for n, d in differences.items()},
    "values that differ (%)": {n: 100 * (d > 0).mean() for n, d in differences.items()},
})  # fmt: skip
assert same.iloc[:-1, 0].max() <= 1
same.round(3)

# %% [markdown]
# ## The whole folder
#
# `transfer_folder` goes through a folder of images and writes another one. While the networks work, it reads the next
# batch and writes the previous one. An image that cannot be read becomes an entry in the report; it does not end the
# run.

# %%
report = transfer_folder(
    mini, images, labels, out, config, label_set, limit=limit or None, progress=False
)
assert report.ok, report.errors
pairs = datasets.FolderDataset(f"{out}/images", labels, label_set)

# %% [markdown]
# This is what it has done:

# %% tags=["reader"]
Markdown(
    f"{report.total} images asked for, {report.done} made, {report.skipped} there "
    f"before, {len(report.errors)} failed."
)

# %% [markdown]
# Go through the pairs with the layout in mind. Does every label still name what is there?

# %% tags=["reader"]
originals = [sources.only([key])[0] for key in pairs.keys[:2]]
pictures = []
for i, original in enumerate(originals):
    made = pairs[i].image
    layout = label_set.colorize(original.label)
    pictures += [original.image, layout, made, brightened(made)]
titles = ["source", "layout", "transferred", "transferred, brightened"]
figure = gallery(pictures, titles * len(originals))
plots.label_legend(figure, [original.label for original in originals], label_set)
show_scenes(
    figure,
    f"Training images and their transfer ({method}, {domain}). You should see one "
    "label map for two images: the one on disk serves both.",
)

# %% [markdown]
# ## The manifest
#
# Next to the images there is a file `manifest.jsonl`, with one line per *finished* image, written after the image
# itself: its name and size, the checksum of its file, the checksum of what it was made from, and the hash of all
# settings.

# %% tags=["reader"]
lines = pd.DataFrame(read_manifest(out).values()).head(3).set_index("key")
for column in ("sha256", "source_sha256"):
    lines[column] = lines[column].str[:8] + "…"
lines

# %% [markdown]
# ## Stopped in the middle
#
# Let us interrupt a run. A *hook* on the UNet lets three of four images pass and raises `KeyboardInterrupt`, as Ctrl-C
# does, in the middle of the last. (We use four steps and batches of one, because only the bookkeeping matters here;
# everything goes into a separate folder `demo`.)

# %% tags=["reader"]
demo = Path(out) / "demo"
shutil.rmtree(demo, ignore_errors=True)
short = replace(example, num_inference_steps=min(4, num_inference_steps))
steps = sampling.visited_timesteps(
    short.strength, short.num_inference_steps, sampling.paper_scheduler(mini.scheduler)
)
calls = []


def pull_the_plug(*_):
    """Every image calls the UNet once for the inversion and once per step."""
    calls.append("UNet")
    if len(calls) > 3 * (1 + len(steps)) + 1:
        raise KeyboardInterrupt


# %% [markdown]
# The run, and its end:

# %% tags=["reader"]
hook = mini.unet.register_forward_pre_hook(pull_the_plug)
small = {"batch_size": 1, "limit": 4, "progress": False}
try:
    transfer_folder(mini, images, labels, demo / "stopped", short, label_set, **small)
except KeyboardInterrupt:
    print("Interrupted while the fourth of four images was being made.")
finally:
    hook.remove()

# %% [markdown]
# To make matters worse, the file of the first image loses its second half, as if the disk had been full. What is
# there now? An image counts as finished only if its line is in the manifest *and* the checksum of its file agrees.

# %% tags=["reader"]
keys = sources.keys[:4]
files = {key: demo / "stopped" / "images" / f"{key}.png" for key in keys}
broken = files[keys[0]]
broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
recorded = read_manifest(demo / "stopped")
state = pd.DataFrame(index=pd.Index(keys, name="image"))
state["file"] = [files[key].exists() for key in keys]
state["line in the manifest"] = [key in recorded for key in keys]
state["checksum agrees"] = [
    key in recorded
    and hashlib.sha256(files[key].read_bytes()).hexdigest() == recorded[key]["sha256"]
    for key in keys
]
written = {k: f.stat().st_mtime_ns for k, f in files.items() if f.exists()}

# %% [markdown]
# All three finished images are in the manifest, including the one that was being written when the plug was pulled. A
# more abrupt end, such as a power cut, may leave an image without its line; the image is then made again, which costs
# seconds. The opposite, a line without an image, would ruin an experiment, and it cannot happen. We repeat the same
# call:

# %% tags=["reader"]
target = demo / "stopped"
again = transfer_folder(mini, images, labels, target, short, label_set, **small)
state["second run"] = [
    "skipped" if file.stat().st_mtime_ns == written.get(key) else "made"
    for key, file in files.items()
]
assert (again.done, again.skipped) == (2, 2)
assert not list(demo.rglob("*.partial"))
state.replace({True: "yes", False: "no"})

# %% [markdown]
# ## Settings do not mix
#
# A folder with some images made at one strength and some at another looks like any other folder. So the folder
# records its settings, and a run with different ones is refused:

# %% tags=["reader"]
try:
    stronger = replace(short, guidance_scale=short.guidance_scale + 1)
    transfer_folder(mini, images, labels, target, stronger, label_set, **small)
except ValueError as error:
    display(Markdown(f"> {error}"))

# %% [markdown]
# ## Shards
#
# Two machines, or two graphics cards, can share the work without talking to each other: with `shard=(i, n)` a process
# takes every $n$-th image, starting with the $i$-th, and keeps its own manifest. On the command line this is `--shard
# 0/2` and `--shard 1/2`. Together the shards cover everything:

# %% tags=["reader"]
shared, options = demo / "shards", {"limit": 4, "progress": False}
for i in (0, 1):
    part = {"shard": (i, 2), **options}
    transfer_folder(mini, images, labels, shared, short, label_set, **part)
assert read_manifest(shared).keys() == read_manifest(target).keys()
for manifest in sorted(shared.glob("manifest*.jsonl")):
    held = [key for key in keys if key in manifest.read_text()]
    print(f"{manifest.name}: {', '.join(held)}")

# %% [markdown]
# And the images are the same as those of the run that was stopped, damaged and resumed:

# %% tags=["reader"]
whole, parts = (
    [datasets.read_image(folder / "images" / f"{key}.png") for key in keys]
    for folder in (target, shared)
)
whole, parts = np.stack(whole).astype(int), np.stack(parts)
print("largest difference, grey values of 255:", np.abs(whole - parts).max())
assert np.abs(whole - parts).max() <= 1

# %% [markdown]
# ## Fidelity: is the layout still there?
#
# The transferred image borrows the label map of its source. If the pavement has moved, the label is wrong, and a
# network will learn the error. Nobody can look at all images, but a *reference* network that knows the target domain
# can. Let $r(x)$ be its prediction for an image, and
#
# $$ \text{fidelity}(x, y) = \frac{\#\{\text{labelled pixels with } r(x) = y\}}{\#\{\text{labelled pixels}\}} . $$
#
# Where does such a network come from? Here we cheat: the miniature can render true target images, and the reference
# learns from them, though not from the scenes that it will judge. In practice you use a network from elsewhere or
# train one on a few labelled images of the domain; without either, you can only look.
#
# One trap remains. No VAE of this size keeps the finest grain of an image. A network that has learnt from sharp
# images expects that grain and would blame the transfer for everything that is slightly soft. So the true images go
# through the VAE as well.

# %% tags=["reader"]
round_trip = transfer.domain_config(domain, "vae_round_trip", **common)
true_images, true_labels = (
    root / f"train_{domain}" / name for name in ("images", "labels")
)
transfer_folder(
    mini, true_images, None, demo / "true", round_trip, label_set, progress=False
)
truth = datasets.FolderDataset(demo / "true" / "images", true_labels, label_set)

# %% [markdown]
# At most half of the scenes are graded; the reference learns from the others. (Photographs of two domains have no
# scene in common; in that case half of the true ones are set aside.)

# %% tags=["reader"]
half = len(truth) // 2
graded = pairs.only(pairs.keys[:half])
aside = [key for key in truth.keys if key in graded.keys] or truth.keys[:half]
unseen = truth.only(aside)
learned = truth.only([key for key in truth.keys if key not in aside])
changes = {"body_factor": 0.1, "freeze_norm": False, "jitter": 0.1, "hue": 0.02}
recipe = adaptation.recipe("mini", "source_only", steps=reference_steps, **changes)
device = runs.best_device()
with capture_output():  # all settings; what differs from the recipe's is above
    reference, _ = adaptation.train(recipe, learned, None, None, device=device)

# %% [markdown]
# We compute one confusion matrix per image and from it the fidelity; for the first image the share defined above is
# written out as a check.


# %% tags=["reader"]
def grade(pictures, label_maps):
    """Confusion matrices of the reference, one per image."""
    both = zip(pictures, label_maps, strict=True)
    samples = [datasets.Sample(image, label, "") for image, label in both]
    classes = label_set.num_classes
    return evaluation.image_confusions(reference, samples, classes, batch_size=10)


of_graded = [graded[i] for i in range(len(graded))]
graded_images = [sample.image for sample in of_graded]
graded_labels = [sample.label for sample in of_graded]
confusions = grade(graded_images, graded_labels)
fidelity = estimation.fidelity(confusions)
labelled = graded_labels[0] != IGNORE_INDEX
by_hand = evaluation.predict(reference, graded_images[0]) == graded_labels[0]
by_hand = by_hand[labelled].mean()
assert abs(by_hand - fidelity[0]) < 1e-3

# %% [markdown]
# A number needs something to compare it with. The upper reference is true images of the same scenes, where there are
# any. The lower reference is the transferred images with the label map of *another* scene, as if the layout were lost
# altogether. (It is far from zero, because every street has sky above and road below.)

# %% tags=["reader"]
true_samples = [unseen[i] for i in range(len(unseen))]
on_truth = grade([s.image for s in true_samples], [s.label for s in true_samples])
on_lost = grade(graded_images, graded_labels[1:] + graded_labels[:1])
groups = {"true images": on_truth, "transferred": confusions}
groups["transferred, others' labels"] = on_lost
scores = pd.concat([
    pd.DataFrame({"images": name, "fidelity": 100 * estimation.fidelity(matrices)})
    for name, matrices in groups.items()
])  # fmt: skip

# %% [markdown]
# Each dot is one image:

# %% tags=["reader"]
figure, ax = plt.subplots(figsize=(6.5, 2), layout="constrained")
style = {"color": color, "alpha": 0.6, "jitter": 0.15}
sns.stripplot(scores, x="fidelity", y="images", **style, ax=ax)
means = scores.groupby("images", sort=False)["fidelity"].mean()
ax.scatter(means, range(len(means)), marker="|", s=250, color="0.1", zorder=3)
ax.set(xlabel="fidelity: labelled pixels with the label found (%)", ylabel="")
nearer = means.index[(means.iloc[[0, 2]] - means.iloc[1]).abs().to_numpy().argmin() * 2]
plots.show(
    figure,
    "Fidelity of single images (dots) and its mean (ticks): "
    + ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
    + f". You should see the transferred images nearer to the {nearer}.",
)

# %% [markdown]
# ## Which classes get lost?
#
# Most pixels are road, sky and buildings, which no transfer loses. The IoU of each class tells us more. Whatever the
# reference misses in *true* images is its own weakness; only the difference is due to the transfer. Classes of which
# it finds hardly anything even there are left out, because it cannot judge them.

# %% tags=["reader"]
names = ["true images", "transferred"]
ious = {name: 100 * evaluation.iou(groups[name].sum(0)) for name in names}
classes = pd.DataFrame(ious, index=label_set.names).dropna()
known = classes[classes["true images"] >= min(5, classes["true images"].max())]
known = known.loc[(known["transferred"] - known["true images"]).sort_values().index]
figure = plots.class_bars(known, "IoU of the reference (%)")
plots.show(
    figure,
    "What the reference finds of every class. You should see the largest losses at the "
    f"top: {', '.join(known.index[:3])}. Not judged: "
    f"{', '.join(classes.index.difference(known.index)) or 'none'}.",
)

# %% [markdown]
# How could the fidelity of whole images look so good? Count the pixels of the classes that have lost more than half:

# %% tags=["reader"]
pixels = confusions.sum(2)
halved = known.index[known["transferred"] < known["true images"] / 2]
share = pixels[:, np.isin(label_set.names, halved)].sum() / pixels.sum()
Markdown(
    f"**{', '.join(halved) or 'No class'}** lost more than half of the IoU, "
    f"{100 * share:.1f} % of all labelled pixels."
)

# %% [markdown]
# ## The failures
#
# Next, the two images with the lowest fidelity. Above each are its fidelity and the class that was lost: of the classes
# that the reference can judge and that cover at least fifty pixels, the one with the lowest share of pixels found.
# Beside it is the reference's result on the true image of the scene.

# %% tags=["reader"]
worst = np.argsort(fidelity)[:2].tolist()
originals = [sources.only([graded.keys[i]])[0] for i in worst]
found = np.diagonal(confusions, axis1=1, axis2=2) / np.maximum(pixels, 1)
judged = np.isin(label_set.names, known.index)
where = [np.where(judged & (pixels[i] >= 50), found[i], 2).argmin() for i in worst]
gone = [label_set.names[place] for place in where]
of_truth = dict(zip(unseen.keys, 100 * estimation.fidelity(on_truth), strict=True))

# %% [markdown]
# The pictures, with the true and the transferred ones brightened, because night hides its failures well:

# %% tags=["reader"]
twins = {key: brightened(unseen[i].image) for i, key in enumerate(unseen.keys)}
pictures, titles = [], []
for i, original, lost in zip(worst, originals, gone, strict=True):
    seen = label_set.colorize(evaluation.predict(reference, graded_images[i]))
    layout, key = label_set.colorize(original.label), original.key
    pictures += [brightened(graded_images[i]), twins.get(key), seen, layout]
    of_true = f"true: {of_truth[key]:.0f} %" if key in of_truth else ""
    titles += [f"transferred: {100 * fidelity[i]:.0f} %, lost: {lost}", of_true]
    titles += ["seen by the reference", "layout"]
figure = gallery(pictures, titles)
plots.label_legend(figure, [original.label for original in originals], label_set)
show_scenes(
    figure,
    "The least faithful images, what they should have become, and what the reference "
    f"sees in them. You should miss {' and '.join(dict.fromkeys(gone))} where the "
    "layout has it.",
)

# %% [markdown]
# Now a closer look at the four classes that lose most. For each we show the part of an image that contains most of
# it: a blurred map of the class has its maximum in the middle of the largest object.


# %% tags=["reader"]
def largest_piece(c):
    """Index of an image and the window of it that show most of class c."""
    i = int(pixels[:, c].argmax())
    height, width = graded_labels[i].shape[0] // 4, graded_labels[i].shape[1] // 6
    mask = torch.from_numpy(graded_labels[i] == c)[None, None].float()
    smooth = F.avg_pool2d(mask, (height // 2 + 1, width // 2 + 1), 1)
    smooth = F.avg_pool2d(smooth, (height // 2, width // 2), 1)[0, 0]
    top, left = np.unravel_index(int(smooth.argmax()), smooth.shape)
    return i, np.s_[top : top + height, left : left + width]


# %% [markdown]
# Before, as it should be, and as it is:

# %% tags=["reader"]
lost = list(known.index[:4])
pieces = [largest_piece(label_set.names.index(name)) for name in lost]
before = [sources.only([graded.keys[i]])[0].image[window] for i, window in pieces]
true = [
    twins[graded.keys[i]][w] if graded.keys[i] in twins else None for i, w in pieces
]
after = [brightened(graded_images[i])[window] for i, window in pieces]
figure = plots.image_grid(
    [before, true, after], lost, ["source", "true", "transferred"], width=8
)
plots.show(
    figure,
    f"The largest {', '.join(lost)} of the graded images. You should see in the first "
    "row what it was, in the second what it should be, in the third what it became.",
)

# %% [markdown]
# What survives, and what dissolves? The IoU of each class, as a share of that in true images, sorts them:

# %% tags=["reader"]
part = known["transferred"] / known["true images"]
areas = pd.Series(pixels.sum(0), index=label_set.names)[known.index]
keeps, loses = part.index[part >= 0.8], part.index[part < 0.5]
typical = {
    name: areas[group].median() / len(pixels) if len(group) else np.nan
    for name, group in (("kept", keeps), ("lost", loses))
}
Markdown(
    "At least 80 % of the true images' IoU **survives** for "
    f"{', '.join(keeps) or 'none'}. Less than half is left of "
    f"{', '.join(loses) or 'none'}, which **dissolve**. A class of the first kind "
    f"covers {typical['kept']:.0f} pixels per image, one of the second "
    f"{typical['lost']:.0f} (medians)."
)

# %% [markdown]
# Where a class dissolves, its labels stay, and teach the network that a patch of darkness is an object. Other things
# are **invented or changed**: lane markings move, windows light up elsewhere, cars lose their colour. That is not a
# failure here: the layout says only *road*, *building* and *car*, and it stays true.
#
# ## What to do with them
#
# **Leave them out.** `faithful_keys` returns the names of the images that reach a threshold, and `only` the data set
# without the others; training in 05 would get `target.only(keys)`. An absolute threshold depends on how good the
# reference is, so use a quantile: here the worst fifth is dropped.

# %% tags=["reader"]
threshold = float(np.quantile(fidelity, 0.2))
kept = graded.only(estimation.faithful_keys(graded, confusions, threshold))
Markdown(
    f"Threshold {100 * threshold:.1f} %: {len(kept)} of {len(graded)} images stay. At "
    "`min_fidelity=0.5`, the default of `zodi.estimation.estimate`, it would be "
    f"{(fidelity >= 0.5).sum()}."
)

# %% [markdown]
# Whether cleaning the training set *helps* is another question: train the rows `zodi` and `zodi_faithful` and compare.
#
# **Draw again.** Another seed gives another image. Is the scene difficult, or was it bad luck? We draw the worst
# images with three more seeds:

# %% tags=["reader"]
drawn = {seed: [graded_images[i] for i in worst]}
layouts = [label_set.colorize(original.label) for original in originals]
arguments = [o.image for o in originals], layouts, [o.key for o in originals]
for other_seed in range(seed + 1, seed + 4):
    other = replace(config, seed=other_seed)
    drawn[other_seed] = transfer.transfer_images(mini, *arguments, other)

# %% [markdown]
# The fidelity of each image stands above it:

# %% tags=["reader"]
label_maps = [original.label for original in originals]
retried = 100 * np.array(
    [estimation.fidelity(grade(pictures, label_maps)) for pictures in drawn.values()]
)
won, apart = (retried.max(0) - retried[0]).mean(), np.ptp(retried.mean(0))
by_seed = np.ptp(retried, axis=0).mean()
cause = "bad luck" if by_seed > apart else "a difficult scene"
pictures = [brightened(images[0]) for images in drawn.values()]
titles = [
    f"seed {s}: {value:.1f} %" for s, value in zip(drawn, retried[:, 0], strict=True)
]
show_scenes(
    gallery(pictures, titles),
    "The least faithful image drawn with four seeds, brightened. You should see one "
    "street four times, with other things lost. Over both images, the best of four "
    f"wins {won:.1f} points of fidelity over the first. The seeds of an image lie "
    f"{by_seed:.1f} points apart, the images' means {apart:.1f}: rather {cause}.",
)

# %% [markdown]
# **Find the cause.** If a class is lost in all images, this is not bad luck but a limit of the model. A lower
# strength or a larger working size may then help more than any selection.
#
# ## What it costs
#
# We extrapolate the speed measured above to whole data sets. All numbers are for this model and these small images on
# this machine:

# %% tags=["reader"]
per_image = 1 / max(speed.values())
sizes = {"one image": 1, "this training set": len(sources)}
sizes["Cityscapes, one domain"] = cityscapes
sizes["Cityscapes, five domains"] = cityscapes * len(TARGETS)
cost = pd.DataFrame({"images": sizes})
cost["hours, this machine"] = cost["images"] * per_image / 3600
cost.round(3)

# %% [markdown]
# Stable Diffusion works on images many times as large with networks a hundred times as large;
# [A4](A4_accounting.ipynb) shows measurements of what this takes on a graphics card.
#
# ## Pitfalls
#
# - **One generator for the whole run.** It works until the first resumed run, the first change of batch size, or the
#   first shard.
# - **Trusting files because they exist.** A killed process leaves half a file with the right name. Write under
#   another name, then rename, and keep checksums.
# - **Selecting, then measuring.** The worst images of one draw look better in the next, whatever you do (*regression
#   to the mean*). Compare with the average over all images before you praise the remedy.
# - **A reference that has seen the scenes.** It may find a layout that is not in the image, because it remembers it.
# - **Using a reference that was trained on the target and calling it zero-shot.** As a check this is fine; as a
#   filter for the training set it is target supervision.
#
# ## Try it
#
# **1. Predict:** shards take every $n$-th image. Suppose they took blocks instead, the first half here and the second
# half there. What would go wrong once somebody adds images to the folder?
#
# <details><summary>Solution</summary>
#
# With blocks a new name moves the boundary, so that images move from one process to another; with strides they do so
# as well. This does no harm in either case, because every shard reads *all* manifests and skips what another one has
# finished. The advantage of strides is balance: sequences of similar, similarly slow images are spread over all
# processes.
# ```python
# {i: keys[i::3] for i in range(3)}
# ```
# </details>
#
# **2. Modify:** choose between seeds without the reference, by the difference from the source image in grey values.
# Does this find the same images?
#
# <details><summary>Solution</summary>
#
# ```python
# before = sources.only(graded.keys)
# far = [
#     np.abs(image.astype(int) - before[i].image).mean()
#     for i, image in enumerate(graded_images)
# ]
# both = pd.DataFrame({"fidelity": fidelity, "distance": far}, index=graded.keys)
# both.rank().astype(int)
# ```
# Distance measures light, not layout: a perfect night image is far from its source.
# </details>
#
# **3. Break:** draw the noise of a batch from *one* generator. Which images of a batch of four equal those of a batch
# of one?
#
# <details><summary>Solution</summary>
#
# ```python
# def noise(count, generator, steps=3):
#     draws = [torch.randn(count, 16, generator=generator) for _ in range(steps)]
#     return torch.stack(draws, dim=1)
#
#
# together = noise(4, torch.Generator().manual_seed(seed))
# single = torch.Generator().manual_seed(seed)
# alone = torch.cat([noise(1, single) for _ in range(4)])
# [torch.equal(a, b) for a, b in zip(together, alone)]
# ```
# None. At its second step the first image alone gets the numbers that went to the second image in the batch.
# </details>

# %% [markdown]
# ## Recap
#
# Every image has its own noise, so batch, order and process do not matter. Every finished image has its line, so an
# interruption costs only minutes. The fidelity of every image can be computed, so failures can be named. The
# transferred images are stored in a folder under the names of their sources, so that every label map finds its
# synthesized image.

# %%
metrics = {"domain": domain, "method": method, "images": len(pairs)}

# %% [markdown]
# If the images were graded, their grades are added:

# %% tags=["reader"]
metrics |= {
    "images_per_second": max(speed.values()),
    "fidelity": fidelity.mean(),
    "fidelity_of_true_images": estimation.fidelity(on_truth).mean(),
    "class_iou": classes.to_dict(),
}

# %% [markdown]
# Everything is written at the very end, so that a folder with `metrics.json` is a finished one:

# %%
settings = {"data": data, "model": model, "limit": limit, "config": config}
_ = runs.save_metrics(out, "transfer", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [05 Adaptation](05_adaptation.ipynb): a network learns from both images of every pair.
#
# **References.** The paper, Section 3 (image transfer) and Section 4 (data sets) · J. Ho, T. Salimans, *Classifier-Free
# Diffusion Guidance*, 2022 · M. Cordts et al., *The Cityscapes Dataset*, CVPR 2016.
