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
# # 11 · Stable Diffusion on a graphics card: from the badge to five redrawn streets
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/11_stable_diffusion.ipynb)
#
# **In one sentence.** Stable Diffusion 1.5 and its ControlNet for segmentation maps redraw a street of our renderer,
# or a photograph of yours, in five domains, on any graphics card from Colab's free T4 upwards.
#
# **What you will do:** see what a download costs and allows before you ask for it · load Stable Diffusion in 16 bits
# and watch the memory · redraw one street with five prompts at three strengths · let a network look for the labels in
# the results · write the command for a whole data set.
#
# **Level:** intermediate. **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb). For Stable Diffusion itself
# a graphics card with 16 GB (on Colab: *Runtime, Change runtime type, T4*). Without one, every cell runs on the miniature
# and says so.
#
# **How long it takes:** fifteen minutes to read, three to run with the miniature on two CPU cores; under ten from the
# badge to the pictures on a T4 by the calculation below, which assumes two rates.
#
# Words and symbols are in the [glossary](glossary.md), errors in [troubleshooting](troubleshooting.md).
#
# > **What was run by us, and what was not.** We had neither a T4 nor these weights. You see the miniature's pictures
# > here. The lines that run only on a card are tested with small random networks of the same classes, on a card that
# > is made up. With Stable Diffusion this notebook was **not run by us**.

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
# The same modules as in [03](03_layout_to_image.ipynb) and [04](04_transferring_a_data_set.ipynb) do all the work.

# %%
import shutil
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output
from PIL import Image

# %% [markdown]
# And the modules of the course:
# %%
from zodi import datasets, diffusion, segmentation, transfer
from zodi.domains import DOMAINS
from zodi.labels import CITYSCAPES, get_label_set
from zodi.miniature import graders, scenes
from zodi.networks import hub
from zodi.support import files, plots, runs
from zodi.tools import importing

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. On a card, set `download` to `True` and run all cells; that is all.

# %% tags=["parameters"]
download: bool = False  # True: fetch Stable Diffusion 1.5 and its ControlNet, once
model: str = "auto"  # "auto", "mini", a folder in diffusers' format, or a hub id
dtype: str = "auto"  # on a card: float16 on a T4, bfloat16 on newer ones
domains: list = ["night", "snow", "rain", "fog", "game"]  # or sentences of your own
scene_seed: int = 200_009  # number of the street that the renderer draws
photograph: str = ""  # an image of yours in place of the street
labels: str = ""  # the label map of the photograph
label_set: str = "cityscapes"  # what the pixel values of this label map mean
reference: str = ""  # network for the audit of a photograph: a folder, or hf:HUB_ID
steps: int = 0  # denoising steps of the whole grid; 0 for those of the checkpoint
judge_scenes: int = 150  # streets that the network for the audit learns from
judge_steps: int = 400  # length of the training of the network for the audit
repository: str = ".."  # folder of the repository, as seen from here
out: str = "../results/course/stable_diffusion"  # folder of this notebook's results

# %% [markdown]
# ## What is here, and what would be downloaded
#
# Two checkpoints are needed. Both licences allow use, also commercial, and passing on; both forbid a list of harmful
# uses, and whoever passes the model on has to pass on this list. Read them on the pages of the checkpoints before you
# set `download`. **Nothing is downloaded while `download` is `False`.**

# %%
pd.DataFrame(
    [
        (hub.STABLE_DIFFUSION, hub.STABLE_DIFFUSION_SIZE, "CreativeML Open RAIL-M"),
        (hub.CONTROLNET_SEG, hub.CONTROLNET_SEG_SIZE, "Open RAIL-M"),
    ],
    columns=["on the hub", "download", "licence"],
).set_index("on the hub")

# %% [markdown]
# Is there a card, and are the weights on this machine already? `examine` reads their settings only.


# %%
def is_here(name: str) -> bool:
    """Whether a checkpoint is on this machine, with its ControlNet."""
    try:
        diffusion.examine(name)
    except FileNotFoundError:
        return False
    return True


card = runs.best_device()
chosen = model
if model == "auto":
    with_weights = download or is_here(diffusion.STABLE_DIFFUSION)
    is_possible = card != "cpu" and with_weights
    chosen = diffusion.STABLE_DIFFUSION if is_possible else "mini"

# %% [markdown]
# The choice, in words:

# %%
NOT_RUN = "Drawn by the miniature. **Not run by us with Stable Diffusion.**"
remark = NOT_RUN if chosen == "mini" else f"Drawn by {chosen}."
if chosen != "mini":
    choice = f"This run draws with **{chosen}**."
elif card == "cpu":
    choice = "No graphics card was found, so this run draws with the **miniature**."
else:
    choice = (
        "There is a graphics card, but Stable Diffusion is not on this machine, so "
        "the **miniature** draws. Set `download = True` to fetch Stable Diffusion."
    )
display(Markdown(choice))

# %% [markdown]
# ## Will it take less than ten minutes?
#
# Before you wait, calculate. A transfer evaluates UNet and ControlNet once to rebuild the noise and twice per step:
# $1 + 2n$ times. What one evaluation at 1024 x 512 pixels costs was counted by `make bench`
# ([A2](A2_paper_scale.ipynb)). Two rates are **assumed**: that of the download and that of the T4, which computes up to
# 65 TFLOP/s in float16 according to its maker, of which diffusion models reach a small part.


# %%
def three_strengths(name: str, defaults: diffusion.TransferDefaults) -> list:
    """The settings of a domain with less strength than its own, its own, and more."""
    own = transfer.prompt_config(name, defaults)
    if steps:
        own = replace(own, num_inference_steps=steps)
    less, more = max(0.1, own.strength - 0.2), min(0.95, own.strength + 0.2)
    return [replace(own, strength=round(s, 2)) for s in (less, own.strength, more)]


def evaluations(config: transfer.TransferConfig) -> int:
    """How often a transfer evaluates UNet and ControlNet."""
    return 1 + 2 * int(config.strength * config.num_inference_steps)


# %% [markdown]
# The sum for all fifteen pictures, with Stable Diffusion's own settings:

# %%
ASSUMED_TFLOPS, ASSUMED_MB_PER_SECOND = 5, 50
bench = files.read_json(Path(repository, "benchmarks", "stable_diffusion_gpu.json"))
each = bench["tflop_per_image"] / evaluations(transfer.domain_config("night"))
paper = diffusion.TransferDefaults()
total = sum(evaluations(c) for name in domains for c in three_strengths(name, paper))
sizes = (hub.STABLE_DIFFUSION_SIZE, hub.CONTROLNET_SEG_SIZE)
gigabytes = sum(float(size.split()[1]) for size in sizes)
minutes = pd.Series({
    f"download {gigabytes:.1f} GB at {ASSUMED_MB_PER_SECOND} MB/s":
        1000 * gigabytes / ASSUMED_MB_PER_SECOND / 60,
    f"draw: {total * each:.0f} TFLOP at {ASSUMED_TFLOPS} TFLOP/s":
        total * each / ASSUMED_TFLOPS / 60,
}, name="minutes")  # fmt: skip
minutes.to_frame().rename_axis("assumed").round(1)

# %% [markdown]
# Installing on Colab and training the network for the audit come on top; we expect two minutes each at most.
#
# ## Load it
#
# `dtype="auto"` takes bfloat16 where the card has it, and float16 on older ones such as the T4, whose compute
# capability is 7.5. This halves the memory. Should a value leave float16's range, the transfer stops with an error
# instead of drawing a black image.


# %%
def memory() -> str:
    """The most memory that was in use on the card so far."""
    if card != "cuda":
        return "memory of the card: no CUDA card to ask"
    peak = torch.cuda.max_memory_allocated() / 1e9
    size = torch.cuda.get_device_properties(0).total_memory / 1e9
    name = torch.cuda.get_device_name(0)
    return f"memory of the card: at most {peak:.1f} of {size:.1f} GB used ({name})"


fetch = download and chosen != "mini"
options = {"device": "auto", "local_files_only": not fetch}
options["dtype"] = dtype if card != "cpu" else "float32"
generator = diffusion.load(chosen, **options)
print(runs.device_text(generator.device, generator.dtype))
print(memory())

# %% [markdown]
# What has been loaded, part by part:

# %%
parts = diffusion.describe(generator).set_index("part")
parts

# %% [markdown]
# ## The street
#
# The renderer draws at any size. Stable Diffusion 1.5 gets 1024 x 512 pixels, as in the paper; the miniature gets
# the 192 x 96 that it was trained on. The labels are exact, so no data set is needed. A photograph of yours needs a
# label map; which values it may have is in [09](09_bring_your_own_domain.ipynb).

# %%
height = generator.defaults.short_side
classes = get_label_set(label_set) if photograph else CITYSCAPES
if photograph:
    image, label = datasets.read_pair(Path(photograph), Path(labels), classes)
    key = Path(photograph).stem
else:
    scene = scenes.render(scene_seed, "clear", height, 2 * height)
    image, label, key = scene.image, scene.label, str(scene_seed)
layout = classes.colorize(label)
figure = plots.image_grid([[image, layout]], ["source", "layout"], width=9)
plots.label_legend(figure, [label], classes)
plots.show(
    figure,
    f"What goes in: {image.shape[1]} x {image.shape[0]} pixels and their layout. "
    "You should see every object of the left image in the right one.",
)

# %% [markdown]
# ## Five prompts, three strengths
#
# In the middle is the strength that belongs to the domain: the paper's for Stable Diffusion, the checkpoint's own
# for the miniature. On both sides of it, 0.2 less and 0.2 more.

# %%
WHICH = ("less", "its own", "more")
plan = {}
for name in domains:
    configs = three_strengths(name, generator.defaults)
    plan |= {(name, which): c for which, c in zip(WHICH, configs, strict=True)}
rows = {name: {w: plan[name, w].strength for w in WHICH} for name in domains}
table = pd.DataFrame.from_dict(rows, orient="index")
table.insert(0, "prompt", [plan[name, WHICH[1]].prompt for name in domains])
table

# %% [markdown]
# Now draw. Everything is the same for all images except prompt and strength, also the noise, which is seeded by the name
# of the image.

# %%
drawn, seconds = {}, {}
for (name, which), config in plan.items():
    begin = time.perf_counter()
    pictures = transfer.transfer_images(generator, [image], [layout], [key], config)
    drawn[name, which] = pictures[0]
    seconds[name, which] = time.perf_counter() - begin
total_seconds = sum(seconds.values())
print(f"{len(drawn)} images in {total_seconds:.0f} s, {memory()}")

# %% [markdown]
# The streets, each at the strength of its domain. Dark ones are shown a second time, brightened for the screen:


# %%
def brightened(picture: np.ndarray) -> np.ndarray:
    """The square root of the brightness, uint8 (H, W, 3)."""
    return (255 * np.sqrt(picture / 255)).round().astype(np.uint8)


streets = {"source": image} | {name: drawn[name, WHICH[1]] for name in domains}
dark = [name for name, picture in streets.items() if picture.mean() < 80]
streets |= {f"{name}, brightened": brightened(streets[name]) for name in dark}
pictures = list(streets.values())
by_three = [pictures[i : i + 3] for i in range(0, len(pictures), 3)]
figure = plots.image_grid(by_three, titles=list(streets), width=11.8)
plots.show(
    figure,
    f"One street and what the prompts make of it. {remark} You should see the road, "
    "the houses and the cars where they were, in another light and weather.",
    f"{out}/streets.png",
)

# %% [markdown]
# And all strengths. Read a row from left to right: what does more strength buy, and what does it cost?

# %%
titles = [f"{name}, strength {config.strength:g}" for (name, _), config in plan.items()]
grid = [[drawn[name, which] for which in WHICH] for name in domains]
plots.show(
    plots.image_grid(grid, titles=titles, width=11.8),
    f"Prompts from top to bottom, strengths from left to right. {remark} You should "
    "look for what no label protects, such as the marks on the road: compare each row "
    "with the source. Whether the domain becomes clearer is counted below.",
    f"{out}/strengths.png",
)

# %% [markdown]
# ## Are the labels still true?
#
# Your eyes forgive a lot, so ask a network. A *judge* segments each picture, and `importing.audit` counts the pixels in
# which it finds their label. A second small network names the domain. Both are trained here on the renderer's true
# images of other streets in all domains, at the miniature's size, so the pictures are brought to this size. For the
# rendered street we also have the true image in each domain: what the judge does not find *there* is the judge's
# error, not the transfer's.
#
# The judge knows the renderer's streets only. Objects that Stable Diffusion draws in another style may be there and
# not be found. For a photograph give a network that was trained on photographs as `reference`.

# %%
JUDGED = (96, 192)
shown = {(name, w): drawn[name, w] for name in domains for w in WHICH}
judge, both = None, None
if not photograph:
    for name in (name for name in domains if name in graders.DOMAIN_NAMES):
        shown[name, "true"] = scenes.render(scene_seed, name, *JUDGED).image
    lengths = {"judge_steps": judge_steps, "classifier_steps": judge_steps // 2}
    settings = graders.GraderConfig(judge_scenes, **lengths)
    with capture_output():
        both = graders.load_or_train(settings, Path(out, "graders"), generator.device)
    judge = both.judge
elif reference:
    judge = segmentation.load_network(reference).to(generator.device)

# %% [markdown]
# The audit reads folders, as the command `zodi import` does: the pictures, their sources and their label maps, all
# with the same names.


# %%
def write_three_folders(place: Path, size: tuple[int, int]) -> None:
    """The folders images, source and maps, one file per picture, all of one size."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("images", "source", "maps"):
        (place / folder).mkdir(parents=True)
    for number, picture in enumerate(shown.values()):
        pictures = {"images": picture, "source": image, "maps": label}
        for folder, values in pictures.items():
            nearest = Image.Resampling.NEAREST
            how = nearest if folder == "maps" else Image.Resampling.LANCZOS
            small = Image.fromarray(values).resize(size[::-1], how)
            small.save(place / folder / f"{number:02}.png")


# %% [markdown]
# Share of the pixels in which the judge finds their label, in percent. In `written` label maps the values are the class
# indices themselves:

# %%
place, audited = Path(out, "audit"), None
if judge is None:
    print("no network for the audit: give one as `reference`")
else:
    write_three_folders(place, image.shape[:2] if photograph else JUDGED)
    folders = (place, place / "source", place / "maps")
    audited = importing.audit(*folders, classes.written(), judge, progress=False).images
    found = pd.Series(audited["fidelity"].to_numpy(), pd.MultiIndex.from_tuples(shown))
    columns = [which for which in (*WHICH, "true") if which in {*found.index.levels[1]}]
    table = found.unstack().reindex(index=domains, columns=columns)
    display(table.round(0))

# %% [markdown]
# What the table says:

# %%
if audited is not None:
    falls = int((table[WHICH[2]] < table[WHICH[0]]).sum())
    lost = (table[WHICH[0]] - table[WHICH[2]]).mean()
    of_source = audited["fidelity_source"].iloc[0]
    text = (
        f"In the source image the judge finds {of_source:.0f} % of the pixels. From "
        f"the least strength to the most, the share falls in {falls} of {len(table)} "
        f"domains; it changes by {-lost:+.1f} points in the mean. {remark}"
    )
    display(Markdown(text))

# %% [markdown]
# And which domain does the second network see?

# %%
if both is not None:
    files_of = sorted((place / "images").glob("*.png"))
    names = graders.classify(both, [datasets.read_image(file) for file in files_of])
    seen = pd.Series(names, pd.MultiIndex.from_tuples(shown)).unstack()
    seen = seen.reindex(index=domains, columns=table.columns).fillna("-")
    right = seen.eq(pd.Series(seen.index, seen.index), axis=0).sum()
    counts = ", ".join(f"{number} ({which})" for which, number in right.items())
    display(seen)
    display(Markdown(f"Of {len(seen)} prompted domains it sees: {counts}. {remark}"))

# %% [markdown]
# ## A whole data set
#
# If you like what you see, the same settings go over a folder of images. The command resumes where it was stopped, so a
# Colab session that ends costs nothing but time. Keep `OUT` on a disk that outlives it.

# %%
best = plan[domains[0], WHICH[1]]
aim = "--domain" if domains[0] in DOMAINS else "--prompt"
command = [
    "python -m zodi transfer --images IMAGES --labels LABELS --out OUT",
    f"{aim} {domains[0]!r} --strength {best.strength:g} --model {chosen}",
    f"--steps {best.num_inference_steps} --batch-size 4",
]
print(" \\\n    ".join(command))

# %% [markdown]
# How long would it take here for the 2975 training images of Cityscapes, one after the other?

# %%
of_own = np.mean([seconds[name, WHICH[1]] for name in domains])
hours = 2975 * of_own / 3600
print(f"{of_own:.1f} s per image here, so {hours:.1f} hours per domain; {memory()}")
batch, gigabytes = bench["settings"]["batch_size"], bench["peak_memory_gb"]
where = f"{bench['machine']['gpu']}, {bench['settings']['dtype']}"
print(f"batches of {batch} took {gigabytes:.1f} GB, measured by us on one {where}")

# %% [markdown]
# ## Pitfalls
#
# - **The wrong palette.** The public ControlNet was trained on layouts in ADE20K's colours, the paper gives it
#   Cityscapes' colours. Both are options (`palette`); look at both before you transfer thousands of images.
# - **Judging by the middle column alone.** A strength is right for a model *and* a kind of image. A rendered street is
#   not a photograph: what Stable Diffusion does with it says little about photographs.
# - **A second model in memory.** If you load another checkpoint in the same session, delete the first and call
#   `torch.cuda.empty_cache()`, or 16 GB will not be enough.
# - **A session that ends.** Colab's disk goes with the session, with the weights and your images on it.
#
# ## Try it
#
# **1. Predict:** you use the prompt "driving in clear weather". Which of your pictures will come closest to the source,
# and is the difference zero?
#
# <details><summary>Solution</summary>
#
# The least strength comes closest, and the difference is never zero: the VAE alone changes the image, and new noise is
# drawn in every step.
# ```python
# for config in three_strengths("clear", generator.defaults)[:2]:
#     (again,) = transfer.transfer_images(generator, [image], [layout], [key], config)
#     print(config.strength, np.abs(again.astype(int) - image).mean().round(1))
# ```
# </details>
#
# **2. Modify:** draw a domain of your own, with a sentence in place of a name.
#
# <details><summary>Solution</summary>
#
# ```python
# config = transfer.prompt_config("driving at sunset", generator.defaults)
# (sunset,) = transfer.transfer_images(generator, [image], [layout], [key], config)
# plots.show(plots.image_grid([[image, sunset]]), "A sentence of one's own. " + remark)
# ```
# The miniature knows six kinds of weather and no sunset; Stable Diffusion has seen many.
# </details>
#
# **3. Break:** give the ControlNet the layout of another street. What follows the image, what the layout?
#
# <details><summary>Solution</summary>
#
# ```python
# other = scenes.render(scene_seed + 1, "clear", *image.shape[:2])
# config = plan[domains[0], "more"]
# wrong = [CITYSCAPES.colorize(other.label)]
# (mixed,) = transfer.transfer_images(generator, [image], wrong, [key], config)
# plots.show(plots.image_grid([[image, wrong[0], mixed]]), "Image and layout disagree.")
# ```
# The more strength, the more the shapes follow the layout. Compare with `plan[domains[0], "less"]`.
# </details>

# %% [markdown]
# ## Recap
#
# You know what Stable Diffusion's download costs and allows, whether it fits your card in 16 bits, and what prompts and
# strengths make of one street. The judge's table tells how much strength the labels survive. With pictures that you
# trust, go on to a data set and train on it.

# %%
metrics = {"seconds": {f"{name}, {which}": s for (name, which), s in seconds.items()}}
if audited is not None:
    metrics["fidelity"] = {f"{name}, {which}": v for (name, which), v in found.items()}
settings = {"model": chosen, "domains": domains, "scene_seed": scene_seed}
took, device = time.perf_counter() - start, runs.device_text(generator.device)
_ = runs.save_metrics(out, "stable_diffusion", settings, metrics, took, device)
plt.close("all")

# %% [markdown]
# **Next:** [04 Transferring a data set](04_transferring_a_data_set.ipynb) with `model` set to Stable Diffusion, or
# [A2 Running at paper scale](A2_paper_scale.ipynb) for the paper's experiment.
#
# **References.** R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022 · L. Zhang
# et al., *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023 · the descriptions of both
# checkpoints on the hub (size, licence) · NVIDIA, *T4 datasheet* (65 TFLOP/s).
