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
# # A2 · Running at paper scale: GPU, cluster, hours, disk, what to check first
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/A2_paper_scale.ipynb)
#
# **In one sentence.** The paper's experiment is one command. This notebook calculates what it will take, names every
# place where it differs from the published program, and says what to check before you spend the first GPU hour.
#
# **What you will learn:** reading the plan of a grid of runs · counting the operations of Stable Diffusion without
# its weights · what is counted, measured, assumed or unknown · shards, resuming, Slurm · a list of checks, cheapest
# first.
#
# **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb) and [05 Adaptation](05_adaptation.ipynb). No GPU, no
# download.
#
# **How long it takes:** half an hour to read, under a minute to run on two CPU cores.
#
# > **What was run by us, and what was not.** `PROFILE=paper` was **not**: its data and weights were not available where
# > this was made. All its parts run at small size, and its *speed* was measured on one NVIDIA H200, with networks of the
# > same size and random weights. Every number below says where it comes from: *counted* here, *measured* here on this CPU
# > or on the H200, *published* by the authors, or *assumed*.

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
# Most of what we need is in the package; the planner and the lists of data sets and weights are separate scripts.

# %%
import re
import shutil
import subprocess
import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from diffusers.utils import logging
from torch.utils.flop_counter import FlopCounterMode

# %% [markdown]
# And the modules of the course:
# %%
from zodi import adaptation, datasets, diffusion, segmentation, transfer
from zodi.labels import CITYSCAPES
from zodi.miniature import dataset
from zodi.rows import ROWS
from zodi.studies import bench
from zodi.support import files, plots, runs
from zodi.transfer_folder import transfer_folder

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. The two assumptions are yours to change; apart from what is measured, nothing below depends on
# anything else about your machine.

# %% tags=["parameters"]
tflops: float = 100.0  # ASSUMED: sustained TFLOP/s of one GPU, the value that the profile's hours were reckoned with
gpus: int = 4  # ASSUMED: GPUs that work side by side
repository: str = ".."  # folder of the repository, as seen from here
out: str = "../results/course/paper_scale"  # folder of this notebook's results

# %% [markdown]
# The scripts are not part of the package, so we add their folders to the path.

# %%
sys.path += [str(Path(repository, folder).resolve()) for folder in ("workflow", "data_scripts")]
import acdc
import cityscapes
import gta5
import paper
import reproduce
import status
import weights

# Stable Diffusion's networks are made empty here, which makes diffusers talk about their types.
logging.set_verbosity_error()

# %% [markdown]
# ## The plan
#
# `make reproduce PROFILE=paper DRY_RUN=1` prints how many jobs are still to run and what they will take, and says
# what is missing. Here we call the functions behind it, as if nothing had been done yet.

# %%
grid = reproduce.read_profile("paper")
nothing_given = files.write_json(Path(out, "given.json").resolve(), {})  # neither DATA nor another MODEL
command = reproduce.snakemake_command(["paper"], nothing_given, cores=2, cluster="")
command += ["--config", "results=results/nothing_yet"]
jobs = dict(reproduce.work_to_do(command).rules)
print(reproduce.plan(jobs, grid["expected"]))

# %% [markdown]
# The hours are **assumed**: the profile says how long a job takes, calculated from operation counts at 100 TFLOP/s.
# We check this below. The number of jobs is a product that can be counted by hand:
#
# $$ \text{adapt} = \text{rows} \times \text{domains} \times \text{networks} \times \text{seeds}, \qquad
# \text{transfer} = 2 \times \text{domains} ; $$
#
# where the factor two stands for the training images and the *held-out* images, on which an epoch is chosen without
# looking at the target.

# %%
domains, networks, seeds = grid["domains"], grid["networks"], grid["seeds"]
rows = [name for name in grid["variants"] if ROWS[name].adapted]
for_all = [
    ROWS[name] for name in grid["variants"] if name not in rows
]  # source-only and augmented: one for all domains
by_hand = {
    "source_only": len(for_all) * len(networks) * len(seeds),
    "transfer": 2 * len(domains),
    "transfer_shard": 2 * len(domains) * grid["transfer"]["shards"],
    "adapt": len(rows) * len(domains) * len(networks) * len(seeds),
}
assert by_hand.items() <= jobs.items()

# %% [markdown]
# Which jobs wait for which? Snakemake knows, because every job names its inputs. We ask it for the graph and draw it.

# %%
answer = subprocess.run(
    [*command, "--rulegraph", "--quiet", "rules", "host"],
    cwd=reproduce.ROOT,
    capture_output=True,
    text=True,
    check=True,
)
names = dict(re.findall(r'(\d+)\[label = "(\w+)"', answer.stdout))
edges = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", answer.stdout) if names[b] != "all"]
places = {"data": (0, 1), "transfer_shard": (1, 1.7), "transfer": (2, 1.5), "source_only": (1.45, 0.35),
          "adapt": (2.95, 1.05), "tables": (4, 0.4), "published": (4, 1.65)}  # fmt: skip

# %% [markdown]
# Each box shows a rule, the number of its jobs, and the hours that the profile assumes.

# %%
texts = {}
for rule, number in jobs.items():
    assumed = number * grid["expected"].get(rule, {}).get("hours", 0)
    texts[rule] = f"{rule}\n{number} job{'s' * (number > 1)}" + (f"\n{assumed:.0f} GPU h assumed" if assumed else "")

# %% [markdown]
# An arrow means *comes before*.

# %%
figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
boxes = {}
for rule, text in texts.items():
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#cfe3f3" if "GPU" in text else "0.95", "edgecolor": "0.4"}
    boxes[rule] = ax.text(*places[rule], text, ha="center", va="center", bbox=box, zorder=3).get_bbox_patch()
for first, second in edges:
    ends = {"patchA": boxes[first], "patchB": boxes[second], "shrinkA": 2, "shrinkB": 2}
    ax.annotate("", places[second], places[first], arrowprops={"arrowstyle": "-|>", "color": "0.5"} | ends)
ax.set(xlim=(-0.4, 4.4), ylim=(0, 2), xticks=[], yticks=[], frame_on=False)
total = sum(jobs.values())
plots.show(
    figure,
    f"The workflow of PROFILE=paper: {total} jobs, in blue the rules whose hours are in the profile. The transfer is cut "
    "into shards that run side by side, and collected; source-only waits for nothing but the data.",
)

# %% [markdown]
# ## Images
#
# The training part of Cityscapes is transferred to every domain, and so is its validation part, which provides the
# held-out images.

# %%
train, held_out = (part.count for part in cityscapes.CITYSCAPES.parts)
height, width = transfer.working_size(1024, 2048, 512, 64)
images = {name: train + held_out for name in domains}
print(
    f"{train} + {held_out} images, {len(domains)} domains: {sum(images.values())} transfers at {width}x{height} pixels"
)

# %% [markdown]
# ## Operations of one transfer
#
# With strength $s$ and 20 steps in the full grid, $n = \lfloor 20\, s \rfloor$ steps are taken. Stochastic inversion
# evaluates the networks once, and each step evaluates them twice, with the prompt and with the negative prompt. Let
# $F_\epsilon$ be the operations of the UNet and the ControlNet together, $F_E, F_D$ those of the two halves of the
# VAE and $F_T$ those of the text encoder. Then
#
# $$ F(s) = F_E + (1 + 2n)\, F_\epsilon + F_D + 2 F_T . $$
#
# PyTorch can count operations while a network runs.


# %%
def flop(call) -> int:
    """Floating point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# %% [markdown]
# It can even count without any weights: on the device `meta`, tensors have a shape but no content, so a model of a
# gigabyte takes no memory. These are the four terms, for one image.


# %%
@torch.no_grad()
def pieces(model: diffusion.DiffusionModel, height: int, width: int) -> dict[str, int]:
    """FLOP of one pass of the VAE's halves, of UNet with ControlNet, and of the text encoder, for one image."""
    length, shrink = model.tokenizer.model_max_length, 2 ** (len(model.vae.config.block_out_channels) - 1)
    with torch.device(model.device):
        pixels, tokens = torch.zeros(1, 3, height, width), torch.zeros(1, length, dtype=torch.long)
        z = torch.zeros(1, model.unet.config.in_channels, height // shrink, width // shrink)
        prompt = torch.zeros(1, length, model.unet.config.cross_attention_dim)
        t = torch.tensor(500)

    def predict() -> None:
        down, mid = model.controlnet(z, t, prompt, controlnet_cond=pixels, return_dict=False)
        model.unet(z, t, prompt, down_block_additional_residuals=down, mid_block_additional_residual=mid)

    calls = {"E": lambda: model.vae.encode(pixels), "D": lambda: model.vae.decode(z)}
    calls |= {"eps": predict, "T": lambda: model.text_encoder(tokens)}
    return {name: flop(call) for name, call in calls.items()}


# %% [markdown]
# And the formula:


# %%
def per_transfer(piece: dict[str, int], config: transfer.TransferConfig) -> int:
    """FLOP of one transfer."""
    n = int(config.strength * config.num_inference_steps)
    return piece["E"] + (1 + 2 * n) * piece["eps"] + piece["D"] + 2 * piece["T"]


# %% [markdown]
# Is it right? For the miniature we can count a whole transfer while it runs (`zodi.studies.bench.flops_per_image`,
# the number that `make bench` records):

# %%
mini = diffusion.load("mini")
mini_config = transfer.domain_config("night", defaults=mini.defaults)
formula = per_transfer(pieces(mini, 96, 192), mini_config)
assert formula == bench.flops_per_image(bench.BenchConfig(), "cpu")
recorded = files.read_json(Path(repository, "benchmarks", "mini_cpu.json"))
assert round(formula / 1e12, 4) == recorded["tflop_per_image"]

# %% [markdown]
# Now Stable Diffusion 1.5, as empty networks of its size:

# %%
stable = bench.random_stable_diffusion("meta", torch.float32)
piece = pieces(stable, height, width)
configs = {name: transfer.domain_config(name) for name in domains}
cost = pd.DataFrame({
    "strength (published)": {name: config.strength for name, config in configs.items()},
    "steps n": {name: int(config.strength * config.num_inference_steps) for name, config in configs.items()},
    "TFLOP an image": {name: per_transfer(piece, config) / 1e12 for name, config in configs.items()},
})  # fmt: skip
cost["miniatures"] = cost["TFLOP an image"] / (formula / 1e12)
cost.round(2)

# %% [markdown]
# The last column says how many transfers with the miniature cost as much as one of these. Night is the most expensive
# domain, only because it has the highest strength.
#
# ## Operations of one training
#
# A step of ZoDi sends two batches forward and backward, a step of source-only sends one. We count one batch for each
# network:

# %%
recipe = adaptation.recipe("paper")


def batch_flop(name: str) -> dict[str, float]:
    """TFLOP of one batch: forward and backward, the same of the encoder alone, and one test image forward."""
    with torch.device("meta"):
        network = segmentation.build_network(name, CITYSCAPES.num_classes, void_output=recipe.void_output)
        x, image = torch.zeros(recipe.batch_size, 3, *recipe.crop), torch.zeros(1, 3, height, width)
    whole = flop(lambda: network(x)[0].sum().backward())
    encoder = flop(lambda: network.encoder(x)[-1].sum().backward())
    with torch.no_grad():
        test = flop(lambda: network.eval()(image))
    count = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": count, "batch": whole / 1e12, "encoder": encoder / 1e12, "test": test / 1e12}


# %% [markdown]
# The three networks of the paper:

# %%
training = pd.DataFrame({name: batch_flop(name) for name in networks}).T
training.assign(parameters=training["parameters"] / 1e6).rename(
    columns={"parameters": "parameters (M)", "batch": f"batch of {recipe.batch_size} (TFLOP)",
             "encoder": "its encoder alone (TFLOP)", "test": "one test image (TFLOP)"}
).round(3)  # fmt: skip

# %% [markdown]
# The cost of a run is then that of its steps and, for ZoDi's rows, of scoring its epochs on source, synthetic and
# target images:

# %%
epoch = adaptation.epoch_length(train, recipe)
target_images = {name: acdc.COUNTS[name][1] if name in acdc.COUNTS else paper.GTA5_TEST_FRAMES for name in domains}
scored = recipe.steps // epoch / (grid["parameters"]["adapt"].get("score_every", 1))
mean_target = np.mean(list(target_images.values()))
training["source_only"] = recipe.steps * training["batch"] / 1e6
training["zodi"] = 2 * recipe.steps * training["batch"] / 1e6
training["scores"] = scored * (2 * held_out + mean_target) * training["test"] / 1e6
training[["source_only", "zodi", "scores"]].round(2).rename(
    columns={"source_only": "source-only (EFLOP)", "zodi": "ZoDi (EFLOP)", "scores": "scores of its epochs (EFLOP)"}
)

# %% [markdown]
# ## Where the operations go
#
# All jobs together, by stage:

# %%
per_network = len(seeds) * len(domains) * len(rows)
per_network_for_all = len(seeds) * sum(row.images_per_sample for row in for_all)  # in trainings of source-only
stages = pd.Series({
    "transfer": sum(cost.loc[name, "TFLOP an image"] * images[name] for name in domains) / 1e6,
    "source-only": per_network_for_all * training["source_only"].sum(),
    "adapt: steps": per_network * training["zodi"].sum(),
    "adapt: scores": per_network * training["scores"].sum(),
})  # fmt: skip
hours = stages * 1e6 / tflops / 3600

# %% [markdown]
# A stacked bar:


# %%
def stacked(values: pd.Series, labels: list[str], colormap: str, xlabel: str) -> tuple[plt.Figure, plt.Axes]:
    """One bar, its parts side by side."""
    figure, ax = plt.subplots(figsize=(9, 2.2), layout="constrained")
    colors = plt.get_cmap(colormap)(np.linspace(0.3, 0.85, len(values)))
    for value, end, label, color in zip(values, values.cumsum(), labels, colors, strict=True):
        ax.barh(0, value, left=end - value, color=color, label=label)
    ax.set(xlabel=xlabel, yticks=[], ylim=(-0.5, 0.5))
    figure.legend(loc="outside lower center", ncols=2)
    return figure, ax


# %% [markdown]
# It has two scales: the operations are counted, and the hours follow from the assumption.

# %%
labels = [f"{stage}: {value:.1f} EFLOP, {hours[stage]:.0f} h" for stage, value in stages.items()]
figure, ax = stacked(stages, labels, "Blues", "operations (EFLOP, counted)")
factor = 1e6 / tflops / 3600
top = ax.secondary_xaxis("top", functions=(lambda x: x * factor, lambda x: x / factor))
top.set_xlabel(f"GPU hours at an assumed {tflops:.0f} TFLOP/s")
share = 100 * stages["transfer"] / stages.sum()
plots.show(
    figure,
    f"The whole experiment, {stages.sum():.0f} EFLOP. The transfer, the only part with a diffusion model, is {share:.0f} % of "
    "it; the rest is the grid of trainings.",
)

# %% [markdown]
# Does the profile agree with its own assumption? We compare its hours per job with ours, at 100 TFLOP/s:

# %%
shards = grid["transfer"]["shards"]
reckoned = {
    "transfer_shard": stages["transfer"] / (2 * len(domains) * shards),
    "source_only": stages["source-only"] / by_hand["source_only"],
    "adapt": (stages["adapt: steps"] + stages["adapt: scores"]) / by_hand["adapt"],
}
pd.DataFrame({
    "counted (PFLOP a job)": {rule: 1000 * value for rule, value in reckoned.items()},
    "hours at 100 TFLOP/s": {rule: value * 1e6 / 100 / 3600 for rule, value in reckoned.items()},
    "hours in the profile": {rule: grid["expected"][rule]["hours"] for rule in reckoned},
}).round(2)  # fmt: skip

# %% [markdown]
# The profile rounds up. But is 100 TFLOP/s a realistic rate? The authors' logs help here: they say how long a
# training run took. **Published** (their repository, fog, seed 1, one Tesla V100 with 16 GB):

# %% tags=["nbval-check-output"]
published_minutes = {
    "PaperDeepLabV3Plus/resnet50": 605,
    "PaperDeepLabV3Plus/resnet101": 689,
    "PaperRefineNet/resnet50": 1231,
}
pd.Series(published_minutes, name="published: hours on a V100").div(60).round(1).to_frame()

# %% [markdown]
# Their program sends each batch through the network once and through the encoder once more, for the similarity: four
# passes per step where ours has two. It scores two parts after each epoch, ours three. Operations divided by time is
# the rate that they achieved, everything included:

# %%
known = training[training.index.isin(published_minutes)].copy()
known["minutes"] = pd.Series(published_minutes)
theirs = 2 * recipe.steps * (known["batch"] + known["encoder"])
theirs += recipe.steps // epoch * (held_out + acdc.COUNTS["fog"][1]) * known["test"]
known["rate"] = theirs / (60 * known["minutes"])
known["ours"] = (known["zodi"] + known["scores"]) * 1e6 / known["rate"] / 3600
known[["rate", "ours"]].round(1).rename(
    columns={"rate": "sustained on the V100 (TFLOP/s)", "ours": "hours of our run, if it had this rate"}
)

# %% [markdown]
# ## Can the CPU keep up?
#
# A GPU that waits for images is an expensive heater. One thing can be **measured** on any CPU: how long one core
# takes to crop and flip the two batches of a step at the paper's size. (The colours are jittered on the device where
# the network runs.)

# %%
folder = Path(out, "toy")
dataset.write_miniature(folder, train=8, test=1, domains=["night"], progress=False)
toy = folder / "train"
source = datasets.FolderDataset(toy / "images", toy / "labels", CITYSCAPES, size=(height, width))
pairs = adaptation.find_pairs(source, source, recipe)
threads = torch.get_num_threads()
torch.set_num_threads(1)
adaptation.cut_batches(0, source, source, pairs, recipe)
begin = time.process_time()  # of the processor, so that what else runs here does not count
for step in range(1, 4):
    adaptation.cut_batches(step, source, source, pairs, recipe)
seconds = (time.process_time() - begin) / 3
torch.set_num_threads(threads)

# %% [markdown]
# We start from decoded images, as the workers get them from `datasets.pack`. This gives a lower bound for the hours
# of a training run, however fast the card is:

# %%
workers = 2
floor = recipe.steps * seconds / workers / 3600
print(f"one step's two batches: {1000 * seconds:.0f} ms of one core of this machine")
print(
    f"with {workers} such cores: {workers / seconds:.0f} steps a second, {floor:.1f} hours for {recipe.steps} steps at best"
)

# %% [markdown]
# ## Measured on a card
#
# `make bench` was run on one NVIDIA H200. First the transfer to night, with images of 1024 x 512 pixels. The table
# compares the loop of the authors' program (one image, float32, two calls per step), rewritten from its description,
# with ours (eight images, bfloat16, one call per step). If you have run the command on your card, its records are in
# `benchmarks/` and are read here:


# %%
def record(name: str) -> dict:
    """A record of `make bench`."""
    return files.read_json(Path(repository, "benchmarks", f"{name}.json"))


names = {"mini_cpu": "miniature, CPU", "mini_cpu_bfloat16": "the same in bfloat16",
         "stable_diffusion_gpu": "Stable Diffusion's size, GPU", "stable_diffusion_gpu_compiled": "and with --compile"}  # fmt: skip
found = {title: record(name) for name, title in names.items()}
machine = record("training_gpu")["machine"]
keys = {"images_per_second": "images a second", "authors_images_per_second": "the authors' loop", "speedup": "times",
        "share_of_matmul": "share of the rate of matrix products", "peak_memory_gb": "peak memory (GB)"}  # fmt: skip
print(f"{machine['gpu']}, {machine['cpus']} CPU cores, torch {machine['packages']['torch']}")
pd.DataFrame({title: {new: value[old] for old, new in keys.items()} for title, value in found.items()}).T.round(2)

# %% [markdown]
# The second half of the bill is the training: steps per second with two batches that are already on the card, and
# with workers that read them, as in a run. In float32, as in the paper, PyTorch lets convolutions use TF32:

# %%
trained = pd.DataFrame(record("training_gpu")["trainings"])
trained["network"] = trained["network"].str.removeprefix("Paper")
trained.set_index(["network", "precision"])[
    ["steps_per_second", "steps_per_second_with_reading", "tflops", "peak_memory_gb", "hours_of_the_papers_training"]
].rename(columns=lambda name: name.replace("_", " "))

# %% [markdown]
# Batches of four are too small for such a card: the two small networks spend more time waiting for their next
# instruction than computing. Their speed varied by a quarter between two of our runs. Against that variation the
# table shows a clear gain from bfloat16 only for the large network; of the two small ones, one is faster with it and
# the other is not. A rate of operations says little here. So we use the measured seconds, not the rate, to calculate
# what the grid takes:

# %%
seconds_of_night = 1 / found["and with --compile"]["images_per_second"]
share = cost["TFLOP an image"] / cost.loc["night", "TFLOP an image"]
card = trained[trained["precision"] == "float32"].set_index("network")
scores = training["scores"].rename(lambda name: name.removeprefix("Paper")) * 1e6 / card["tflops"] / 3600
zodi_hours = card["hours_of_the_papers_training"] + scores
h200 = pd.Series({
    "transfer": sum(images[name] * share[name] for name in domains) * seconds_of_night / 3600,
    "source-only": per_network_for_all * (card["hours_of_the_papers_training"] / 2).sum(),
    "adapt": per_network * zodi_hours.sum(),
}, name="hours on the H200, reckoned from its measured speed")  # fmt: skip
h200["together"] = h200.sum()
rates, per_second, count = np.geomspace(5, 300, 60), np.geomspace(0.1, 20, 60), sum(images.values())
h200.round(1).to_frame()

# %% [markdown]
# The transfer, the heart of the method, is the smallest part.
#
# So on a new card 100 TFLOP/s is a cautious guess for the transfer, a fair one for the large network, and a bad one
# for the small networks. Nobody should book a cluster on the basis of one number. Here are the hours for every rate,
# with dots for the H200:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=[1, 1.2])
axes[0].loglog(per_second, count / per_second / 3600, color="0.3")
axes[0].loglog(1 / seconds_of_night, count * seconds_of_night / 3600, "o", color="0.3")
axes[0].set(xlabel="assumed transfers per second of one GPU", ylabel="GPU hours, all transfers")
for name, line in training.iterrows():
    axes[1].loglog(rates, (line["zodi"] + line["scores"]) * 1e6 / rates / 3600, label=name.removeprefix("Paper"))
axes[1].scatter(card["tflops"], zodi_hours, color=[line.get_color() for line in axes[1].lines], zorder=3)
axes[1].axvspan(known["rate"].min(), known["rate"].max(), color="0.88", label="authors' V100,\npublished")
axes[1].axvline(tflops, color="0.4", linestyle=":", label="assumed")
axes[1].axhline(floor, color="0.4", linestyle="--", label=f"{workers} workers,\nmeasured here")
axes[1].set(xlabel="assumed sustained rate (TFLOP/s)", ylabel="GPU hours, one ZoDi training")
for axis in (*(ax.xaxis for ax in axes), *(ax.yaxis for ax in axes)):
    axis.set_major_formatter("{x:g}")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    figure,
    f"Left: {count} transfers, if all were as expensive as the night. Right: one training of each network; "
    "dots are the H200's; below the dashed line any card waits for its images.",
    f"{out}/hours.png",
)

# %% [markdown]
# Look at `nvidia-smi` in the first minutes: a card that is busy only half of the time is waiting for its workers, and
# a faster card will not help.
#
# ## Memory and disk
#
# Weights are counted; the memory for activations is measured, in the tables above. The authors' training runs fitted
# into 16 GB (published). The VAE works image by image (`enable_slicing`), because decoding a whole batch would take
# more memory than all networks.

# %%
memory = diffusion.describe(stable).set_index("part")["parameters"]
table = pd.DataFrame({"parameters (M)": memory / 1e6, "float32 (GB)": memory * 4e-9, "bfloat16 (GB)": memory * 2e-9})
table.loc["together"] = table.sum()
table.round(2)

# %% [markdown]
# What has to be downloaded, according to the scripts. Where a script does not know a size, neither do we.


# %%
def gigabytes(text: str) -> float:
    """Sum of the sizes in a text; NaN if it names none."""
    sizes = [float(number) / {"GB": 1, "MB": 1000}[unit] for number, unit in re.findall(r"([\d.]+) (GB|MB)", text)]
    return sum(sizes) if sizes else float("nan")


sets = {found.name: found for found in (cityscapes.CITYSCAPES, acdc.ACDC, gta5.GTA5)}
download = {name: gigabytes(found.instructions) for name, found in sets.items()}
download |= {found.name: gigabytes(found.size) for found in weights.all_weights()}
into = {name: "DATA/" + name for name in sets} | {
    name: "HF_HOME" if "/" in name else "TORCH_HOME" for name in download if name not in sets
}
table = pd.DataFrame({"download (GB)": download, "goes to": into}).round(2)
table.astype({"download (GB)": object}).fillna("not known")

# %% [markdown]
# What the run writes: a PNG takes at most three bytes per pixel, a label image one; photographs are compressed, by an
# amount that is not known beforehand. Packed copies, for the workers of a GPU, take exactly four. A run keeps its
# last state (weights and momentum) and the networks of up to three epochs.

# %%
pixels = height * width
everything = train + held_out + sum(map(sum, acdc.COUNTS.values())) + gta5.GTA5.parts[0].count
of_runs = 20 * training["parameters"].sum() * (per_network + len(seeds))
disk = pd.Series({
    "prepared data, at most": everything * 4 * pixels,
    "transferred images, at most": sum(images.values()) * 3 * pixels,
    "packed copies": (1 + len(domains)) * train * 4 * pixels,
    "networks and states": of_runs,
}) / 1e9  # fmt: skip
figure, _ = stacked(disk, [f"{what}: {value:.0f} GB" for what, value in disk.items()], "Greens", "disk (GB)")
plots.show(figure, f"Disk that results/paper may take, {disk.sum():.0f} GB, besides the downloads.")

# %% [markdown]
# The plan at the top adds up only the rules for which the profile gives a size. The prepared data are not among them.
# Most of these data belong to the game: all its frames are resized, for an oracle row that this profile does not even
# run.
#
# ## What is missing on this machine
#
# Before anything runs, everything that is missing is listed at once:

# %%
try:
    reproduce.check_needs("paper", grid, data="", cluster="")
except ValueError as error:
    print(
        "\n".join(
            textwrap.fill(part, 110, subsequent_indent="  ") for part in re.split("; (?=model |PROFILE)", str(error))
        )
    )

# %% [markdown]
# If a checkpoint is requested that is not available, one message says what to get, how large it is and where to put
# it. Nothing is ever downloaded without being asked for.

# %%
if reproduce.missing_models([diffusion.STABLE_DIFFUSION]):
    try:
        diffusion.load(diffusion.STABLE_DIFFUSION)
    except FileNotFoundError as error:
        print(textwrap.fill(str(error).partition(" Cause:")[0], 110))
else:
    print(f"{diffusion.STABLE_DIFFUSION} is on this machine")

# %% [markdown]
# The nodes of a cluster often have no internet. In that case download on the login node (`data_scripts/weights.py
# download`) with `HF_HOME` and `TORCH_HOME` on a file system that the nodes share, or copy the folders there and give
# their paths as `--model` and `--controlnet` in the profile.
#
# ## Options that change the speed
#
# | option | what it does | what it costs |
# |---|---|---|
# | `--dtype auto`, the default | bfloat16 where the card supports it, float16 on older ones: halves weights and memory traffic | small differences, measured below |
# | `--batch-size 8` | that many images per network call, both branches of the guidance in one | memory; other sizes change single values by one grey level |
# | `--compile` | `torch.compile` for all networks | minutes at the start of *every shard*: fewer shards then |
# | VAE slicing | always on: one image at a time through the VAE | nothing that we have measured |
# | tiling | **there is none**: an image is resized to 512 pixels at its shorter side and back | detail beyond that size |
# | `bf16: true` in the recipe | trains in bfloat16 | not the paper's setting; we have not tried it at this size |
# | `--steps` | fewer denoising steps, fewer operations | other images: a deviation from the paper |
#
# What does bfloat16 change? We can see it on the miniature, in grey levels (with few steps, because a CPU is slow at
# it):

# %%
small = datasets.open_split(folder, "train")[0]
layout, few = (
    CITYSCAPES.colorize(small.label),
    transfer.domain_config("night", defaults=mini.defaults, num_inference_steps=4),
)
both = [
    transfer.transfer_images(diffusion.load("mini", dtype=dtype), [small.image], [layout], ["scene"], few)[0]
    for dtype in (torch.float32, torch.bfloat16)
]
difference = np.abs(both[0].astype(int) - both[1])
changed = np.abs(both[0].astype(int) - small.image)
plots.show(
    plots.image_grid(
        [[*both, np.minimum(50 * difference, 255).astype(np.uint8)]], ["float32", "bfloat16", "difference x 50"]
    ),
    f"The same transfer in two precisions differs by {difference.mean():.1f} grey levels in the mean; the transfer itself "
    f"changes the image by {changed.mean():.1f}.",
)

# %% [markdown]
# ## Shards and resuming
#
# `--shard I/N` takes every $N$-th image, starting with the $I$-th. Processes that share a folder need not know about
# each other: each writes its own manifest, and an image counts as done when its line is there and its checksum
# agrees. With the photometric change, which needs no model, we can try it in a moment:

# %%
config = transfer.domain_config("night", "photometric")
place = Path(out, "shards")
shutil.rmtree(place, ignore_errors=True)
arguments = (None, toy / "images", toy / "labels", place, config, CITYSCAPES)
reports = {f"--shard {i}/2": transfer_folder(*arguments, shard=(i, 2), progress=False) for i in (0, 1)}
reports["without --shard"] = transfer_folder(*arguments, progress=False)
(place / "images" / f"{source.keys[3]}.png").unlink()
reports["after one file was lost"] = transfer_folder(*arguments, progress=False)
pd.DataFrame({name: vars(report) for name, report in reports.items()}).T[["total", "done", "skipped"]]

# %% [markdown]
# The same holds for everything: a killed training run resumes from its last saved state, a finished job is not run
# again, and the same `make reproduce` command is always the right way to continue.
#
# ## Slurm
#
# `make reproduce PROFILE=paper DATA=path CLUSTER=slurm` sends every job to the queue. The resources that each job
# requests are in `workflow/profiles/slurm/config.yaml`; rules that compute also request one GPU.

# %%
slurm = yaml.safe_load(Path(repository, "workflow", "profiles", "slurm", "config.yaml").read_text(encoding="utf-8"))
limits = pd.DataFrame({"every other rule": dict(item.split("=") for item in slurm["default-resources"])}).T
for item in slurm["set-resources"]:
    rule, name, value = re.split("[:=]", item)
    limits.loc[rule, name] = value
limits = limits.fillna(limits.loc["every other rule"]).astype(int)
limits.rename(columns={"runtime": "minutes", "mem_mb": "memory (MB)", "cpus_per_task": "CPUs"})

# %% [markdown]
# Check two things before you send it. A job that exceeds its minutes is killed and sent again once; it then resumes
# from its last state. And with one CPU, a training run alternates between reading its images and feeding the card: if
# the nodes have more CPUs, add the lines `adapt:cpus_per_task=4` and `source_only:cpus_per_task=4` to the file. What
# rate do the limits assume?

# %%
worst = {"transfer_shard": cost["TFLOP an image"].max() * train / shards,
         "adapt": (training["zodi"] + training["scores"]).max() * 1e6}  # fmt: skip
needed = pd.Series({rule: value / (60 * limits.loc[rule, "runtime"]) for rule, value in worst.items()})
for rule, value in needed.items():
    print(f"{rule}: the longest job fits into {limits.loc[rule, 'runtime']} minutes from {value:.1f} TFLOP/s on")

# %% [markdown]
# The wall time of the whole grid, if $G$ GPUs are always busy, is at least
#
# $$ T \ge \max\Big( \frac{\text{all hours}}{G},\ \text{longest chain: shard} + \text{training} \Big) . $$

# %%
chain = (worst["transfer_shard"] + worst["adapt"]) / tflops / 3600
wall = pd.Series({g: max(hours.sum() / g, chain) for g in sorted({1, gpus, 32})}, name="days, at least").div(24)
wall.rename_axis(f"GPUs, at an assumed {tflops:.0f} TFLOP/s").round(1).to_frame()

# %% [markdown]
# ## The settings, beside the published ones
#
# The published values come from the authors' program and from the arguments at the beginning of their logs; ours are
# read from the code.

# %%
ours = transfer.domain_config("night")
published = [
    ("transfer", "steps of the grid", 20, ours.num_inference_steps),
    ("transfer", "guidance", 9.0, ours.guidance_scale),
    ("transfer", "eta", 1.0, ours.eta),
    ("transfer", "shorter side (pixels)", 512, ours.short_side),
    ("transfer", "added to the prompt", ", best quality", ours.prompt_suffix),
    ("transfer", "negative prompt", "lower quality, worst quality", ours.negative_prompt),
    *(("transfer", f"strength, {name}", value, configs[name].strength)
      for name, value in {"night": 0.90, "snow": 0.65, "rain": 0.65, "fog": 0.60, "game": 0.60}.items() if name in configs),
    ("training", "epochs", 100, recipe.steps // epoch), ("training", "batch size", 4, recipe.batch_size),
    ("training", "crop (pixels)", (384, 768), recipe.crop), ("training", "optimizer", "sgd", recipe.optimizer),
    ("training", "learning rate", 1e-3, recipe.learning_rate), ("training", "of the encoder", 1e-3, recipe.learning_rate * recipe.body_factor),
    ("training", "weight decay", 1e-4, recipe.weight_decay), ("training", "falls once an", "epoch", recipe.schedule),
    ("training", "weight of the similarity", 0.1, recipe.similarity_weight), ("training", "jitter", 0.5, recipe.jitter),
]  # fmt: skip
settings = pd.DataFrame(published, columns=["stage", "setting", "published", "ours"])
assert (settings["published"] == settings["ours"]).all()
settings.astype(str).set_index(["stage", "setting"])

# %% [markdown]
# ## Where we differ, by name
#
# | what | the published program | `PROFILE=paper` | to go back |
# |---|---|---|---|
# | noise | seed 42 again for every image: all images get the same noise | drawn for each image, seeded by its name | `--noise paper --seed 42`, row `paper_noise` |
# | UNet's weights | `v1-5-pruned.ckpt`, not averaged | averaged (EMA) | `--variant non_ema` |
# | precision of the transfer | float32 | bfloat16, on older cards float16 | `--dtype float32` |
# | latent of the source image | a sample of the VAE's distribution | its mean | none |
# | batches of the transfer | one image, two calls per step | eight images, one call | `--batch-size 1` |
# | encoding time | `int(1000 s)`, although the denoising begins at an earlier time | kept | `--align` is the corrected one, row `aligned` |
# | pairs | by the order of two directory listings | by file name | none |
# | similarity | encoder runs once more: four passes | two passes, same gradient (a test shows it) | none |
# | epoch that counts | best on the target's labels is kept, among others | best on transferred held-out images | all rules are tabulated |
# | frames of the game for testing | a list of names | every $n$-th frame | `--gta5-test FILE` |
#
# Every deliberate difference has its own row in `PROFILE=ablations`, so that its effect can be measured instead of
# argued about.
#
# ## What to check first, cheapest first
#
# | | command | catches | GPU |
# |---|---|---|---|
# | 1 | `make test` | a broken installation; parity with the paper's formulas, networks and loop (`test_transfer`, `test_paper_networks`, `test_bench`) | no |
# | 2 | `make data DATA=path` | missing data sets and weights | no |
# | 3 | `python data_scripts/paper.py --root path check` | unreadable, mismatched, mislabelled files | no |
# | 4 | `make reproduce PROFILE=paper DATA=path DRY_RUN=1` | a wrong plan, everything that is missing | no |
# | 5 | `make reproduce PROFILE=paper-smoke` | anything that breaks between raw files and tables, with every size cut | no |
# | 6 | `make test-cluster` | errors with Slurm, with a run killed in the middle and resumed | no |
# | 7 | `make bench` on one GPU node | the card's rate and memory: **put it on the axes above** | minutes |
# | 8 | `python -m zodi transfer ... --limit 8` and *look* at `preview.png` | a wrong checkpoint, palette or label set | minutes |
# | 9 | the whole grid, with one network and one seed | everything else | hours |
#
# Step 2, here and now:

# %%
state = pd.DataFrame(status.rows(Path(repository, "data")), columns=["what", "state", "size", "next"]).set_index("what")
state[["state", "size"]]

# %% [markdown]
# ## Pitfalls
#
# - **Believing an hour that was measured elsewhere.** Step 7 takes minutes and replaces the assumption.
# - **Many shards with `--compile`.** Each process compiles again.
# - **The home directory.** Caches and results together exceed many quotas: set `HF_HOME`, `TORCH_HOME` and a `results`
#   that is a link to a large disk.
# - **Changing the code in the middle.** A job runs again when a module of `zodi` has changed. Use a clone for the long
#   run.
# - **Comparing with the paper's table by its best epoch.** We do not know which rule it uses
#   ([07](07_published_tables.ipynb)).
#
# ## Try it
#
# **1. Predict:** by what factor is a transfer to night more expensive than one to fog, in network calls?
#
# <details><summary>Solution</summary>
#
# $(1 + 2 \cdot 18) / (1 + 2 \cdot 12)$, somewhat less in operations, because the VAE costs the same for both.
# ```python
# calls = 1 + 2 * cost["steps n"]
# pd.Series({"calls": calls["night"] / calls.min(), "operations": cost["TFLOP an image"]["night"] / cost["TFLOP an image"].min()})
# ```
# </details>
#
# **2. Modify:** you have one GPU and a weekend. Which part of the grid fits into 48 hours at a rate of 30 TFLOP/s?
#
# <details><summary>Solution</summary>
#
# One domain, the two small networks, one seed, both rows, and their source-only partners:
# ```python
# small = training.drop(index="PaperRefineNet/resnet50", errors="ignore")
# work = small["source_only"].sum() + 2 * (small["zodi"] + small["scores"]).sum()
# work += cost["TFLOP an image"].max() * (train + held_out) / 1e6
# print(f"{work * 1e6 / 30 / 3600:.0f} hours")
# ```
# Write it down as a profile: copy `paper.yaml`, shorten its lists, and give it another `results`. With one seed no
# difference can be told from chance, so drop a network rather than the second seed.
# </details>
#
# **3. Break:** transfer into a folder that holds images made with other settings.
#
# <details><summary>Solution</summary>
#
# ```python
# other = transfer.domain_config("night", "photometric", seed=1)
# try:
#     transfer_folder(None, toy / "images", toy / "labels", place, other, CITYSCAPES, progress=False)
# except ValueError as error:
#     print(str(error).partition("another")[2])
# ```
# It refuses and names what differs. A folder never holds a mixture.
# </details>

# %% [markdown]
# ## Recap
#
# The grid is a product, the operations are counted, and the hours are an assumption until `make bench` has run on
# your card, as it has on ours. Start with the cheapest checks. Kill and resume runs as you like. Everything that
# differs from the published program has a name.

# %%
metrics = {
    "jobs": jobs, "transfers": sum(images.values()), "eflop": stages.to_dict(), "assumed_tflops": tflops,
    "hours_at_that_rate": hours.to_dict(), "hours_on_the_h200": h200.to_dict(),
    "disk_gb": disk.to_dict(), "seconds_per_step_of_batches": seconds,
}  # fmt: skip
_ = runs.save_metrics(out, "paper_scale", {"tflops": tflops, "gpus": gpus}, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [00 Start here](00_start_here.ipynb), or [A3 Tables](A3_tables.ipynb) for the results of the runs.
#
# **References.** The paper, Sections 3 and 4 · the authors' program and training logs, github.com/azuma164/ZoDi
# (published settings and training times) · J. Mölder et al., *Sustainable data analysis with Snakemake*, F1000Research
# 2021 · A. Yoo et al., *SLURM*, JSSPP 2003.
