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
# # A4 · Accounting: where the hours of the paper's scale come from
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/A4_accounting.ipynb)
#
# **In one sentence.** Counting every operation of the paper's experiment, and timing some of it, tells what the whole
# will take on a card, and how wrong such a calculation can be.
#
# **What you will learn:** counting the operations of Stable Diffusion without its weights · what is counted, measured,
# assumed or unknown · why a rate of operations misleads for small batches · whether the CPU can keep up.
#
# **Level:** advanced. **What you need:** [A2 Running at paper scale](A2_paper_scale.ipynb), which has the commands. No
# GPU, no download.
#
# **How long it takes:** half an hour to read, under a minute to run on two CPU cores.
#
# Words and symbols are in the [glossary](glossary.md), errors in [troubleshooting](troubleshooting.md).
#
# > **What was run by us, and what was not.** `PROFILE=paper` was **not**: its data and weights were not available where
# > this was made. Every number below says where it comes from: *counted* here, *measured* here on this CPU or on an
# > H200 with networks of the same size and random weights, *published* by the authors, or *assumed*.

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
# Most of what we need is in the package; the planner and the lists of data sets are separate scripts.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from diffusers.utils import logging
from IPython.display import Markdown, display
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

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. The two assumptions are yours to change; apart from what is measured, nothing below depends on
# anything else about your machine.

# %% tags=["parameters"]
tflops: float = 100.0  # ASSUMED: sustained TFLOP/s of one GPU, as in the profile
gpus: int = 4  # ASSUMED: GPUs that work side by side
repository: str = ".."  # folder of the repository, as seen from here
out: str = "../results/course/accounting"  # folder of this notebook's results

# %% [markdown]
# The scripts are not part of the package, so we add their folders to the path.

# %%
sys.path += [str(Path(repository, f).resolve()) for f in ("workflow", "data_scripts")]
import acdc
import cityscapes
import gta5
import paper
import reproduce

# Stable Diffusion is made empty here, and diffusers would talk about its types.
logging.set_verbosity_error()

# %% [markdown]
# ## Jobs
#
# The profile says which domains, networks, seeds and rows there are. The number of jobs is a product:
#
# $$ \text{adapt} = \text{rows} \times \text{domains} \times \text{networks} \times \text{seeds}, \qquad
# \text{transfer} = 2 \times \text{domains} ; $$
#
# where the factor two stands for the training images and the *held-out* images, on which an epoch is chosen without
# looking at the target. Snakemake's plan should say the same as our multiplication:

# %%
grid = reproduce.read_profile("paper")
given = Path(out, "given.json").resolve()
nothing_given = files.write_json(given, {})  # neither DATA nor another MODEL
command = reproduce.snakemake_command(["paper"], nothing_given, cores=2, cluster="")
command += ["--config", "results=results/nothing_yet"]
jobs = dict(reproduce.work_to_do(command).rules)

# %% [markdown]
# Source-only and the augmented rows are trained once for all domains:

# %%
domains, networks, seeds = grid["domains"], grid["networks"], grid["seeds"]
rows = [name for name in grid["variants"] if ROWS[name].adapted]
for_all = [ROWS[name] for name in grid["variants"] if name not in rows]
by_hand = {
    "source_only": len(for_all) * len(networks) * len(seeds),
    "transfer": 2 * len(domains),
    "transfer_shard": 2 * len(domains) * grid["transfer"]["shards"],
    "adapt": len(rows) * len(domains) * len(networks) * len(seeds),
}
assert by_hand.items() <= jobs.items()
pd.Series(by_hand, name="jobs").to_frame()

# %% [markdown]
# ## Images
#
# The training part of Cityscapes is transferred to every domain, and so is its validation part, which provides the
# held-out images.

# %%
train, held_out = (part.count for part in cityscapes.CITYSCAPES.parts)
height, width = transfer.working_size(1024, 2048, 512, 64)
images = {name: train + held_out for name in domains}
print(f"{train} + {held_out} images, {len(domains)} domains: ", end="")
print(f"{sum(images.values())} transfers at {width} x {height} pixels")

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
    """FLOP per image of the VAE's halves, UNet with ControlNet, and text encoder."""
    config, length = model.unet.config, model.tokenizer.model_max_length
    low = 2 ** (len(model.vae.config.block_out_channels) - 1)
    with torch.device(model.device):
        pixels = torch.zeros(1, 3, height, width)
        tokens = torch.zeros(1, length, dtype=torch.long)
        z = torch.zeros(1, config.in_channels, height // low, width // low)
        prompt = torch.zeros(1, length, config.cross_attention_dim)
        given = (z, torch.tensor(500), prompt)

    def predict() -> None:
        down, mid = model.controlnet(*given, controlnet_cond=pixels, return_dict=False)
        model.unet(*given, None, None, None, None, None, down, mid)

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
is_same = round(formula / 1e12, 4) == recorded["tflop_per_image"]
print(f"counted {formula / 1e12:.4f} TFLOP per image, ", end="")
print("as in the record" if is_same else "the record is of another miniature")

# %% [markdown]
# Now Stable Diffusion 1.5, as empty networks of its size:

# %%
stable = bench.random_stable_diffusion("meta", torch.float32)
piece = pieces(stable, height, width)
configs = {name: transfer.domain_config(name) for name in domains}
lines = {
    name: {
        "strength (published)": config.strength,
        "steps n": int(config.strength * config.num_inference_steps),
        "TFLOP per image": per_transfer(piece, config) / 1e12,
    }
    for name, config in configs.items()
}
cost = pd.DataFrame.from_dict(lines, orient="index").astype({"steps n": int})
cost["miniatures"] = cost["TFLOP per image"] / (formula / 1e12)
# The dearest domain is the one with the highest strength, as the text below says.
assert (
    cost["TFLOP per image"].idxmax() == cost["strength (published)"].idxmax() == "night"
)
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
    """TFLOP of one batch, of the encoder's part of it, and of one test image."""
    classes, void = CITYSCAPES.num_classes, recipe.void_output
    with torch.device("meta"):
        network = segmentation.build_network(name, classes, void_output=void)
        x = torch.zeros(recipe.batch_size, 3, *recipe.crop)
        image = torch.zeros(1, 3, height, width)
    whole = flop(lambda: network(x)[0].sum().backward())
    encoder = flop(lambda: network.encoder(x)[-1].sum().backward())
    with torch.no_grad():
        test = flop(lambda: network.eval()(image))
    count = sum(parameter.numel() for parameter in network.parameters())
    tera = {"batch": whole / 1e12, "encoder": encoder / 1e12, "test": test / 1e12}
    return {"parameters": count} | tera


# %% [markdown]
# The three networks of the paper:

# %%
training = pd.DataFrame({name: batch_flop(name) for name in networks}).T
table = training.assign(parameters=training["parameters"] / 1e6)
batch = f"batch of {recipe.batch_size}"
table.columns = ["parameters (M)", batch, "its encoder alone", "one test image"]
table.rename_axis(index="TFLOP").round(3)

# %% [markdown]
# The cost of a run is then that of its steps and, for ZoDi's rows, of scoring its epochs on source, synthetic and
# target images:

# %%
epoch = adaptation.epoch_length(train, recipe)
of_acdc = {name: acdc.COUNTS[name][1] for name in domains if name in acdc.COUNTS}
target_images = dict.fromkeys(domains, paper.GTA5_TEST_FRAMES) | of_acdc
every = grid["parameters"]["adapt"].get("score_every", 1)
scored = recipe.steps // epoch / every
mean_target = np.mean(list(target_images.values()))
training["source_only"] = recipe.steps * training["batch"] / 1e6
training["zodi"] = 2 * recipe.steps * training["batch"] / 1e6
training["scores"] = scored * (2 * held_out + mean_target) * training["test"] / 1e6
names = {"source_only": "source-only", "zodi": "ZoDi", "scores": "its scores"}
training[list(names)].rename(columns=names).rename_axis(index="EFLOP").round(2)

# %% [markdown]
# ## Where the operations go
#
# All jobs together, by stage:

# %%
per_network = len(seeds) * len(domains) * len(rows)
# In trainings of source-only:
per_network_for_all = len(seeds) * sum(row.images_per_sample for row in for_all)
of_domains = cost["TFLOP per image"] * pd.Series(images)
stages = pd.Series({
    "transfer": of_domains.sum() / 1e6,
    "source-only": per_network_for_all * training["source_only"].sum(),
    "adapt: steps": per_network * training["zodi"].sum(),
    "adapt: scores": per_network * training["scores"].sum(),
})  # fmt: skip
hours = stages * 1e6 / tflops / 3600

# %% [markdown]
# A stacked bar:


# %%
def stacked(values: pd.Series, labels: list[str], colormap: str) -> tuple:
    """One bar, its parts side by side: figure and axes."""
    figure, ax = plt.subplots(figsize=(9, 2.2), layout="constrained")
    colors = plt.get_cmap(colormap)(np.linspace(0.3, 0.85, len(values)))
    ends = values.cumsum()
    for value, end, label, color in zip(values, ends, labels, colors, strict=True):
        ax.barh(0, value, left=end - value, color=color, label=label)
    ax.set(yticks=[], ylim=(-0.5, 0.5))
    figure.legend(loc="outside lower center", ncols=2)
    return figure, ax


# %% [markdown]
# It has two scales: the operations are counted, and the hours follow from the assumption.

# %%
labels = [f"{s}: {value:.1f} EFLOP, {hours[s]:.0f} h" for s, value in stages.items()]
figure, ax = stacked(stages, labels, "Blues")
ax.set_xlabel("operations (EFLOP, counted)")
factor = 1e6 / tflops / 3600
there_and_back = (lambda x: x * factor, lambda x: x / factor)
top = ax.secondary_xaxis("top", functions=there_and_back)
top.set_xlabel(f"GPU hours at an assumed {tflops:.0f} TFLOP/s")
share = 100 * stages["transfer"] / stages.sum()
plots.show(
    figure,
    f"The whole experiment, {stages.sum():.0f} EFLOP. You should see that the "
    f"transfer, the only part with a diffusion model, is {share:.0f} % of it; the rest "
    "is the grid of trainings.",
)

# %% [markdown]
# Does the profile agree with its own assumption? We compare its hours per job with ours, at 100 TFLOP/s:

# %%
shards = grid["transfer"]["shards"]
all_adapt = stages["adapt: steps"] + stages["adapt: scores"]
reckoned = pd.Series({
    "transfer_shard": stages["transfer"] / (2 * len(domains) * shards),
    "source_only": stages["source-only"] / by_hand["source_only"],
    "adapt": all_adapt / by_hand["adapt"],
})  # fmt: skip
profile = pd.Series({rule: grid["expected"][rule]["hours"] for rule in reckoned.index})
hours_each = reckoned * 1e6 / 100 / 3600
assert (profile >= hours_each).all()
pd.DataFrame({
    "PFLOP, counted": 1000 * reckoned, "hours at 100 TFLOP/s": hours_each,
    "hours in the profile": profile,
}).rename_axis(index="per job").round(2)  # fmt: skip

# %% [markdown]
# The profile rounds up. But is 100 TFLOP/s a realistic rate? The authors' logs help here: they say how long a
# training run took. **Published** (their repository, fog, seed 1, one Tesla V100 with 16 GB):

# %% tags=["nbval-check-output"]
published_minutes = pd.Series({
    "PaperDeepLabV3Plus/resnet50": 605,
    "PaperDeepLabV3Plus/resnet101": 689,
    "PaperRefineNet/resnet50": 1231,
}, name="published: hours on a V100")  # fmt: skip
published_minutes.div(60).round(1).to_frame()

# %% [markdown]
# Their program sends each batch through the network once and through the encoder once more, for the similarity: four
# passes per step where ours has two. It scores two parts after each epoch, ours three. Operations divided by time is
# the rate that they achieved, everything included:

# %%
known = training[training.index.isin(published_minutes.index)].copy()
known["minutes"] = published_minutes
theirs = 2 * recipe.steps * (known["batch"] + known["encoder"])
their_images = held_out + acdc.COUNTS["fog"][1]
theirs += recipe.steps // epoch * their_images * known["test"]
known["rate"] = theirs / (60 * known["minutes"])
known["ours"] = (known["zodi"] + known["scores"]) * 1e6 / known["rate"] / 3600
names = {"rate": "V100 (TFLOP/s)", "ours": "hours of our run at this rate"}
known[list(names)].round(1).rename(columns=names)

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
size = (height, width)
source = datasets.FolderDataset(toy / "images", toy / "labels", CITYSCAPES, size=size)
pairs = adaptation.find_pairs(source, source, recipe)
threads = torch.get_num_threads()
torch.set_num_threads(1)
adaptation.cut_batches(0, source, source, pairs, recipe)
begin = time.process_time()  # of the processor: what else runs does not count
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
print(f"with {workers} such cores: {workers / seconds:.0f} steps per second, ", end="")
print(f"{floor:.1f} hours for {recipe.steps} steps at best")

# %% [markdown]
# ## Measured on a card
#
# `make bench` was run on one NVIDIA H200. First the transfer to night, with images of 1024 x 512 pixels. The table
# compares the loop of the authors' program (one image, float32, two calls per step), rewritten from its description,
# with ours (eight images, bfloat16, one call per step). *Share of matmul* is our rate of operations over that of one
# large matrix product on the same machine. If you have run the command on your card, its records are in
# `benchmarks/` and are read here:


# %%
def record(name: str) -> dict:
    """A record of `make bench`."""
    return files.read_json(Path(repository, "benchmarks", f"{name}.json"))


names = {
    "mini_cpu": "miniature, CPU, float32",
    "stable_diffusion_gpu": "Stable Diffusion's size, GPU",
    "stable_diffusion_gpu_compiled": "and with --compile",
}  # fmt: skip
found = pd.DataFrame({title: record(name) for name, title in names.items()}).T
keys = {
    "authors_images_per_second": "the authors' loop", "images_per_second": "ours",
    "speedup": "times", "share_of_matmul": "share of matmul", "peak_memory_gb": "GB",
}  # fmt: skip
machine = record("training_gpu")["machine"]
print(f"{machine['gpu']}, {machine['cpus']} CPU cores")
shown = found[list(keys)].rename(columns=keys)
shown.rename_axis(index="images per second").astype(float).round(2)

# %% [markdown]
# The second half of the bill is the training: steps per second with two batches that are already on the card, and
# with workers that read them, as in a run. In float32, as in the paper, PyTorch lets convolutions use TF32, which
# rounds the factors of a product:

# %%
trained = pd.DataFrame(record("training_gpu")["trainings"])
trained["network"] = trained["network"].str.removeprefix("Paper")
keys = {
    "steps_per_second": "on the card", "steps_per_second_with_reading": "with reading",
    "tflops": "TFLOP/s", "peak_memory_gb": "GB",
    "hours_of_the_papers_training": "hours of a training",
}  # fmt: skip
table = trained.set_index(["network", "precision"])[list(keys)].rename(columns=keys)
table.rename_axis(columns="steps per second")

# %% [markdown]
# Batches of four are too small for such a card: small networks spend more time waiting for their next instruction than
# computing. Their speed varied by a quarter between two of our runs, so smaller differences mean nothing. What does
# bfloat16 change?

# %%
VARIED = 0.25
speeds = trained.pivot(index="network", columns="precision", values="steps_per_second")
gains = speeds["bfloat16"] / speeds["float32"] - 1
clear = [name for name, gain in gains.items() if abs(gain) > VARIED]
changes = ", ".join(f"{name} {100 * gain:+.0f} %" for name, gain in gains.items())
Markdown(
    f"Speed in bfloat16 against float32: {changes}. Larger than the variation between "
    f"runs is the change for {' and '.join(clear) or 'none of them'}."
)

# %% [markdown]
# A rate of operations says little here. So we use the measured seconds, not the rate, to calculate what the grid takes:

# %%
seconds_of_night = 1 / found["images_per_second"]["and with --compile"]
share = cost["TFLOP per image"] / cost.loc["night", "TFLOP per image"]
card = trained[trained["precision"] == "float32"].set_index("network")
of_scores = training["scores"].rename(lambda name: name.removeprefix("Paper"))
scores = of_scores * 1e6 / card["tflops"] / 3600
one = card["hours_of_the_papers_training"]
zodi_hours = one + scores
of_images = pd.Series(images) * share
h200 = pd.Series({
    "transfer": of_images.sum() * seconds_of_night / 3600,
    "source-only": per_network_for_all * (one / 2).sum(),
    "adapt": per_network * zodi_hours.sum(),
}, name="hours on the H200, from its measured speed")  # fmt: skip
smallest = h200.idxmin()
h200["together"] = h200.sum()
h200.round(1).to_frame()

# %% [markdown]
# How good a guess was the assumed rate? Measured on this card, everything included:

# %%
night_tflop = cost.loc["night", "TFLOP per image"]
rate = pd.Series({"transfer, compiled": night_tflop / seconds_of_night})
rate = pd.concat([rate, card["tflops"]]).rename("TFLOP/s, measured")
table = rate.to_frame().assign(**{"of the assumed rate": rate / tflops})
display(table.round(2))
Markdown(
    f"The smallest part of the bill is *{smallest}*. Measured rates go from "
    f"{rate.min() / tflops:.1f} to {rate.max() / tflops:.1f} times the assumed one, so "
    "nobody should book a cluster on the basis of one number."
)

# %% [markdown]
# Here are the hours for every rate, with dots for the H200:

# %%
rates, per_second = np.geomspace(5, 300, 60), np.geomspace(0.1, 20, 60)
count = sum(images.values())


def draw_transfers(ax: plt.Axes) -> None:
    """GPU hours of all transfers over the transfers per second."""
    ax.loglog(per_second, count / per_second / 3600, color="0.3")
    ax.loglog(1 / seconds_of_night, count * seconds_of_night / 3600, "o", color="0.3")
    ax.set(xlabel="assumed transfers per second of one GPU", ylabel="GPU hours, all")


# %% [markdown]
# And for the trainings:


# %%
def draw_trainings(ax: plt.Axes) -> None:
    """GPU hours of one training of each network over the rate of the card."""
    for name, line in training.iterrows():
        needed = (line["zodi"] + line["scores"]) * 1e6 / rates / 3600
        ax.loglog(rates, needed, label=name.removeprefix("Paper"))
    colors = [line.get_color() for line in ax.lines]
    ax.scatter(card["tflops"], zodi_hours, color=colors, zorder=3)
    of_v100 = (known["rate"].min(), known["rate"].max())
    ax.axvspan(*of_v100, color="0.88", label="authors' V100,\npublished")
    ax.axvline(tflops, color="0.4", linestyle=":", label="assumed")
    workers_text = f"{workers} workers,\nmeasured here"
    ax.axhline(floor, color="0.4", linestyle="--", label=workers_text)
    ax.set(xlabel="assumed rate (TFLOP/s)", ylabel="GPU hours, one ZoDi training")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


# %% [markdown]
# Both in one figure:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
draw_transfers(left)
draw_trainings(right)
for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
    axis.set_major_formatter("{x:g}")
plots.show(
    figure,
    f"Left: {count} transfers, if all were as expensive as the night. Right: one "
    "training of each network; dots are the H200's. You should see how far the dots "
    "lie from the assumed rate; below the dashed line any card waits for its images.",
    f"{out}/hours.png",
)

# %% [markdown]
# The further to the left a dot lies, the longer the card waits for its next instruction.
#
# ## Memory and disk
#
# Weights are counted; the memory for activations is measured, in the tables above. The authors' training runs fitted
# into 16 GB (published). The VAE works image by image (`enable_slicing`), because decoding a whole batch would take
# more memory than all networks.

# %%
memory = diffusion.describe(stable).set_index("part")["parameters"]
sizes = {"float32 (GB)": memory * 4e-9, "bfloat16 (GB)": memory * 2e-9}
table = pd.DataFrame({"parameters (M)": memory / 1e6} | sizes)
table.loc["together"] = table.sum()
table.round(2)

# %% [markdown]
# What the run writes: a PNG takes at most three bytes per pixel, a label image one; photographs are compressed, by an
# amount that is not known beforehand. Packed copies, for the workers of a GPU, take exactly four. A run keeps its
# last state (weights and momentum) and the networks of up to three epochs.

# %%
pixels = height * width
everything = train + held_out + sum(map(sum, acdc.COUNTS.values()))
everything += gta5.GTA5.parts[0].count
# What the text below says of the game.
assert 2 * gta5.GTA5.parts[0].count > everything and "oracle" not in grid["variants"]
trainings = per_network + len(seeds) * len(for_all)
disk = pd.Series({
    "prepared data, at most": everything * 4 * pixels,
    "transferred images, at most": sum(images.values()) * 3 * pixels,
    "packed copies": (1 + len(domains)) * train * 4 * pixels,
    "networks and states": 20 * training["parameters"].sum() * trainings,
}) / 1e9  # fmt: skip
labels = [f"{what}: {value:.0f} GB" for what, value in disk.items()]
figure, ax = stacked(disk, labels, "Greens")
ax.set_xlabel("disk (GB)")
plots.show(
    figure,
    f"Disk that results/paper may take, {disk.sum():.0f} GB, besides the downloads. "
    f"You should see the largest part in *{disk.idxmax()}*.",
)

# %% [markdown]
# The plan in A2 adds up only the rules for which the profile gives a size. The prepared data are not among them. Most of
# these data belong to the game: all its frames are resized, for an oracle row that this profile does not even run.
#
# ## What does bfloat16 change?
#
# We can see it on the miniature, in grey levels (with few steps, because a CPU is slow at it):

# %%
small = datasets.open_split(folder, "train")[0]
layout = CITYSCAPES.colorize(small.label)
few = transfer.domain_config("night", defaults=mini.defaults, num_inference_steps=4)
both = []
for dtype in (torch.float32, torch.bfloat16):
    model = diffusion.load("mini", dtype=dtype)
    both += transfer.transfer_images(model, [small.image], [layout], ["scene"], few)
difference = np.abs(both[0].astype(int) - both[1])
changed = np.abs(both[0].astype(int) - small.image)
enlarged = np.minimum(50 * difference, 255).astype(np.uint8)
assert difference.mean() < 2  # grey levels, which nobody sees
names = ["float32", "bfloat16", "difference x 50"]
plots.show(
    plots.image_grid([[*both, enlarged]], names, width=11.8),
    f"The same transfer in two precisions differs by {difference.mean():.1f} grey "
    f"levels in the mean; the transfer itself changes the image by "
    f"{changed.mean():.1f}. You should see no difference between the first two.",
)

# %% [markdown]
# ## Which rate do Slurm's limits assume?
#
# A job that exceeds its minutes is killed. The limits are in `workflow/profiles/slurm/config.yaml`:

# %%
limits = pd.DataFrame(reproduce.slurm_limits()).T
names = {"runtime": "minutes", "mem_mb": "memory (MB)", "cpus_per_task": "CPUs"}
limits[["runtime"]].rename(columns=names)

# %% [markdown]
# The longest job of each kind has to fit into them. From which rate on does it?

# %%
worst = pd.Series({
    "transfer_shard": cost["TFLOP per image"].max() * train / shards,
    "adapt": (training["zodi"] + training["scores"]).max() * 1e6,
})  # fmt: skip
minutes = limits.loc[worst.index, "runtime"]
table = pd.DataFrame({"minutes": minutes, "TFLOP/s, at least": worst / minutes / 60})
table.rename_axis(index="longest job").round(1)

# %% [markdown]
# The wall time of the whole grid, if $G$ GPUs are always busy, is at least
#
# $$ T \ge \max\Big( \frac{\text{all hours}}{G},\ \text{longest chain: shard} + \text{training} \Big) . $$

# %%
chain = worst.sum() / tflops / 3600
cards = sorted({1, gpus, 32})
days = [max(hours.sum() / number, chain) / 24 for number in cards]
wall = pd.Series(days, cards, name="days, at least")
wall.rename_axis(f"GPUs, at an assumed {tflops:.0f} TFLOP/s").round(1).to_frame()

# %% [markdown]
# ## Pitfalls
#
# - **Believing an hour that was measured elsewhere.** `make bench` takes minutes and replaces the assumption.
# - **Counting operations where nothing is computed.** With small batches a card waits for its next instruction; its rate
#   then says more about the program than about the card.
# - **Forgetting the small change.** Scoring epochs, packing data and starting processes are not in the formula.
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
# tflop = cost["TFLOP per image"]
# print("calls:", calls["night"] / calls.min())
# print("operations:", tflop["night"] / tflop.min())
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
# work += cost["TFLOP per image"].max() * (train + held_out) / 1e6
# print(f"{work * 1e6 / 30 / 3600:.0f} hours")
# ```
# Write it down as a profile: copy `paper.yaml`, shorten its lists, and give it another `results`. With one seed no
# difference can be told from chance, so drop a network rather than the second seed.
# </details>

# %% [markdown]
# ## Recap
#
# The grid is a product, the operations are counted, and the hours are an assumption until `make bench` has run on
# your card, as it has on ours.

# %%
metrics = {
    "jobs": jobs, "transfers": sum(images.values()), "eflop": stages.to_dict(),
    "assumed_tflops": tflops, "hours_at_that_rate": hours.to_dict(),
    "hours_on_the_h200": h200.to_dict(), "disk_gb": disk.to_dict(),
    "seconds_per_step_of_batches": seconds,
}  # fmt: skip
settings, took = {"tflops": tflops, "gpus": gpus}, time.perf_counter() - start
_ = runs.save_metrics(out, "accounting", settings, metrics, took)

# %% [markdown]
# **Next:** [A2 Running at paper scale](A2_paper_scale.ipynb) for the commands, or [00 Start here](00_start_here.ipynb).
#
# **References.** The paper, Sections 3 and 4 · the authors' training logs, github.com/azuma164/ZoDi (published training
# times) · the records of `make bench` in `benchmarks/`.
