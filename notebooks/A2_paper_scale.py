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
# # A2 · Running at paper scale: what to type, what it takes, what to check first
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/A2_paper_scale.ipynb)
#
# **In one sentence.** The paper's experiment is one command; this notebook says what to type before and after it, what
# it takes in hours, memory and disk, and what to check before you spend the first GPU hour.
#
# **What you will learn:** the commands, from the data to the table · a list of checks, cheapest first · reading the plan
# of a grid of runs · downloads, shards, resuming, Slurm · every place where we differ from the published program.
#
# **Level:** advanced. **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb) and
# [05 Adaptation](05_adaptation.ipynb). No GPU, no download.
#
# **How long it takes:** twenty minutes to read, under a minute to run on two CPU cores.
#
# Words and symbols are in the [glossary](glossary.md), errors in [troubleshooting](troubleshooting.md).
#
# > **What was run by us, and what was not.** `PROFILE=paper` was **not**: its data and weights were not available where
# > this was made. All its parts run at small size, and its *speed* was measured on one NVIDIA H200, with networks of the
# > same size and random weights. How the hours were calculated is in [A4 Accounting](A4_accounting.ipynb).

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
# The planner and the lists of data sets and weights are separate scripts; the rest is in the package.

# %%
import re
import shutil
import subprocess
import textwrap
import time

import matplotlib.pyplot as plt
import pandas as pd

# %% [markdown]
# And the modules of the course:
# %%
from zodi import adaptation, datasets, diffusion, transfer
from zodi.labels import CITYSCAPES
from zodi.miniature import dataset
from zodi.rows import ROWS
from zodi.support import files, plots, runs
from zodi.transfer_folder import transfer_folder

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters.

# %% tags=["parameters"]
repository: str = ".."  # folder of the repository, as seen from here
out: str = "../results/course/paper_scale"  # folder of this notebook's results

# %% [markdown]
# The scripts are not part of the package, so we add their folders to the path.

# %%
sys.path += [str(Path(repository, f).resolve()) for f in ("workflow", "data_scripts")]
import acdc
import cityscapes
import gta5
import reproduce
import status
import weights

# %% [markdown]
# ## What to type
#
# In this order. Every command can be stopped and typed again; it goes on where it was.
#
# ```bash
# # where to get Cityscapes, ACDC and GTA5, and whether they are whole
# .venv/bin/python data_scripts/paper.py instructions
# .venv/bin/python data_scripts/paper.py --root DATA check
# # Stable Diffusion, ControlNet, ResNets
# .venv/bin/python data_scripts/weights.py download
# # the speed of your card, in minutes; every stage, with every size cut
# make bench
# make reproduce PROFILE=paper-smoke
# # the plan, and what is missing
# make reproduce PROFILE=paper DATA=DATA DRY_RUN=1
# # the experiment, on this machine or on a cluster; then one row per deliberate difference
# make reproduce PROFILE=paper DATA=DATA
# make reproduce PROFILE=paper DATA=DATA CLUSTER=slurm
# make reproduce PROFILE=ablations DATA=DATA CLUSTER=slurm
# ```
#
# The tables appear in `results/paper/tables`, next to the published figures.
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
# | 7 | `make bench` on one GPU node | the card's rate and memory: **compare it with [A4](A4_accounting.ipynb)** | minutes |
# | 8 | `python -m zodi transfer ... --limit 8` and *look* at `preview.png` | a wrong checkpoint, palette or label set | minutes |
# | 9 | the whole grid, with one network and one seed | everything else | hours |
#
# Step 2, here and now:

# %%
columns = ["what", "state", "size", "next"]
state = pd.DataFrame(status.rows(Path(repository, "data")), columns=columns)
state = state.set_index("what")
state[["state", "size"]]

# %% [markdown]
# ## The plan of the whole grid
#
# `make reproduce PROFILE=paper DRY_RUN=1` prints how many jobs are still to run and what they will take, and says
# what is missing. Here we call the functions behind it, as if nothing had been done yet.

# %%
given = Path(out, "given.json").resolve()
nothing_given = files.write_json(given, {})  # neither DATA nor another MODEL
command = reproduce.snakemake_command(["paper"], nothing_given, cores=2, cluster="")
command += ["--config", "results=results/nothing_yet"]
jobs = dict(reproduce.work_to_do(command).rules)
grid = reproduce.read_profile("paper")
print(reproduce.plan(jobs, grid["expected"]))

# %% [markdown]
# The hours are **assumed**: the profile says how long a job takes, calculated from operation counts at 100 TFLOP/s.
# [A4](A4_accounting.ipynb) checks this and counts the jobs by hand.
#
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
arrows = re.findall(r"(\d+) -> (\d+)", answer.stdout)
edges = [(names[a], names[b]) for a, b in arrows if names[b] != "all"]
# What the figure's caption says.
assert {a for a, b in edges if b == "source_only"} == {"data"}
assert ("transfer_shard", "transfer") in edges
places = {
    "data": (0, 1), "transfer_shard": (1, 1.7), "transfer": (2, 1.5),
    "source_only": (1.45, 0.35), "adapt": (2.95, 1.05),
    "tables": (4, 0.4), "published": (4, 1.65),
}  # fmt: skip

# %% [markdown]
# Each box shows a rule, the number of its jobs, and the hours that the profile assumes.

# %%
texts = {}
for rule, number in jobs.items():
    assumed = number * grid["expected"].get(rule, {}).get("hours", 0)
    texts[rule] = f"{rule}\n{number} job{'s' * (number > 1)}"
    if assumed:
        texts[rule] += f"\n{assumed:.0f} GPU h assumed"

# %% [markdown]
# An arrow means *comes before*.

# %%
figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
boxes, style = {}, {"ha": "center", "va": "center", "zorder": 3}
for rule, text in texts.items():
    box = {"boxstyle": "round,pad=0.5", "edgecolor": "0.4"}
    box["facecolor"] = "#cfe3f3" if "GPU" in text else "0.95"
    boxes[rule] = ax.text(*places[rule], text, bbox=box, **style).get_bbox_patch()
for first, second in edges:
    arrow = {"arrowstyle": "-|>", "color": "0.5", "shrinkA": 2, "shrinkB": 2}
    arrow |= {"patchA": boxes[first], "patchB": boxes[second]}
    ax.annotate("", places[second], places[first], arrowprops=arrow)
ax.set(xlim=(-0.4, 4.4), ylim=(0, 2), xticks=[], yticks=[], frame_on=False)
plots.show(
    figure,
    f"The workflow of PROFILE=paper: {sum(jobs.values())} jobs, in blue the rules "
    "whose hours are in the profile. You should see that the transfer is cut into "
    "shards that run side by side, and that source-only waits for nothing but the "
    "data.",
)

# %% [markdown]
# ## Hours and memory on a card
#
# `make bench` was run on one NVIDIA H200; if you have run it on your card, its records are in `benchmarks/` and are read
# here. What a job takes was measured, in a few steps and with random weights. The hours are these times the number of
# jobs, with all transfers as expensive as those to night, and without the time for scoring epochs.

# %%
grid = reproduce.read_profile("paper")
domains, networks, seeds = grid["domains"], grid["networks"], grid["seeds"]
bench = Path(repository, "benchmarks")
speed = files.read_json(bench / "stable_diffusion_gpu.json")
trained = pd.DataFrame(files.read_json(bench / "training_gpu.json")["trainings"])
trained = trained[trained["precision"] == "float32"].set_index("network").loc[networks]
images = sum(part.count for part in cityscapes.CITYSCAPES.parts) * len(domains)
machine = speed["machine"]
print(f"measured on one {machine['gpu']}, {machine['cpus']} CPU cores")

# %% [markdown]
# The three augmented rows cost twice as much as source-only, because they see two images per sample, as ZoDi's rows
# do:

# %%
zodi_hours = trained["hours_of_the_papers_training"]
variants = [ROWS[name] for name in grid["variants"]]
runs_of = {row: len(seeds) * (len(domains) if row.adapted else 1) for row in variants}
passes = sum(runs_of[row] * row.images_per_sample / 2 for row in variants)
needs = pd.DataFrame({
    "hours of one": zodi_hours, "hours of all": passes * zodi_hours,
    "memory of the card (GB)": trained["peak_memory_gb"],
})  # fmt: skip
each = 1 / speed["images_per_second"] / 3600
needs.loc["transfer of one image"] = each, images * each, speed["peak_memory_gb"]
needs.loc["together"] = None, needs["hours of all"].sum(), needs.iloc[:, 2].max()
needs = needs.map("{:.3g}".format).replace("nan", "-")
needs.rename_axis(index="ZoDi training with")

# %% [markdown]
# On another card only your own `make bench` counts: in A4 you can see how far apart an operation count and a clock can
# be. Look at `nvidia-smi` in the first minutes: a card that is busy only half of the time is waiting for its workers,
# and a faster card will not help.
#
# ## Downloads and disk
#
# What has to be downloaded, according to the scripts. Where a script does not know a size, neither do we.


# %%
def gigabytes(text: str) -> float:
    """Sum of the sizes in a text; NaN if it names none."""
    found = re.findall(r"([\d.]+) (GB|MB)", text)
    return sum(float(n) / {"GB": 1, "MB": 1000}[u] for n, u in found) or float("nan")


sets = {found.name: found for found in (cityscapes.CITYSCAPES, acdc.ACDC, gta5.GTA5)}
rows = {n: (gigabytes(s.instructions), f"DATA/{n}") for n, s in sets.items()}
for found in weights.all_weights():
    place = "HF_HOME" if "/" in found.name else "TORCH_HOME"
    rows[found.name] = (gigabytes(found.size), place)
columns = ["download (GB)", "goes to"]
table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(2)
table.astype({"download (GB)": object}).fillna("not known")

# %% [markdown]
# The plan above has the disk that the runs take. Prepared data and packed copies come on top; A4 adds them up.
#
# ## What is missing on this machine
#
# Before anything runs, everything that is missing is listed at once:

# %%
try:
    reproduce.check_needs("paper", grid, data="", cluster="")
except ValueError as error:
    for part in re.split("; (?=model |PROFILE)", str(error)):
        print(textwrap.fill(part, 88, subsequent_indent="  "))

# %% [markdown]
# If a checkpoint is requested that is not available, one message says what to get, how large it is and where to put
# it. Nothing is ever downloaded without being asked for.

# %%
if reproduce.missing_models([diffusion.STABLE_DIFFUSION]):
    try:
        diffusion.load(diffusion.STABLE_DIFFUSION)
    except FileNotFoundError as error:
        print(textwrap.fill(str(error).partition(" Cause:")[0], 88))
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
# | `--dtype auto`, the default | bfloat16 where the card supports it, float16 on older ones: halves weights and memory traffic | small differences, measured in [A4](A4_accounting.ipynb) |
# | `--batch-size 8` | that many images per network call, both branches of the guidance in one | memory; other sizes change single values by one grey level |
# | `--compile` | `torch.compile` for all networks | minutes at the start of *every shard*: fewer shards then |
# | VAE slicing | always on: one image at a time through the VAE | nothing that we have measured |
# | tiling | **there is none**: an image is resized to 512 pixels at its shorter side and back | detail beyond that size |
# | `bf16: true` in the recipe | trains in bfloat16 | not the paper's setting; we have not tried it at this size |
# | `--steps` | fewer denoising steps, fewer operations | other images: a deviation from the paper |

# %% [markdown]
# ## Shards and resuming
#
# `--shard I/N` takes every $N$-th image, starting with the $I$-th. Processes that share a folder need not know about
# each other: each writes its own manifest, and an image counts as done when its line is there and its checksum
# agrees. With the photometric change, which needs no model, we can try it in a moment:

# %%
folder = Path(out, "toy")
dataset.write_miniature(folder, train=8, test=1, domains=["night"], progress=False)
toy = folder / "train"
source = datasets.FolderDataset(toy / "images", toy / "labels", CITYSCAPES)

# %% [markdown]
# Two shards, a third call that finds everything done, and one after a file was lost:

# %%
config = transfer.domain_config("night", "photometric")
place = Path(out, "shards")
shutil.rmtree(place, ignore_errors=True)
arguments = (None, toy / "images", toy / "labels", place, config, CITYSCAPES)
reports = {}
for i in (0, 1):
    report = transfer_folder(*arguments, shard=(i, 2), progress=False)
    reports[f"--shard {i}/2"] = report
reports["without --shard"] = transfer_folder(*arguments, progress=False)
(place / "images" / f"{source.keys[3]}.png").unlink()
reports["after one file was lost"] = transfer_folder(*arguments, progress=False)
table = pd.DataFrame({name: vars(report) for name, report in reports.items()})
table.T[["total", "done", "skipped"]]

# %% [markdown]
# The same holds for everything: a killed training run resumes from its last saved state, a finished job is not run
# again, and the same `make reproduce` command is always the right way to continue.
#
# ## Slurm
#
# `make reproduce PROFILE=paper DATA=path CLUSTER=slurm` sends every job to the queue. The resources that each job
# requests are in `workflow/profiles/slurm/config.yaml`; rules that compute also request one GPU.

# %%
limits = pd.DataFrame(reproduce.slurm_limits()).T
names = {"runtime": "minutes", "mem_mb": "memory (MB)", "cpus_per_task": "CPUs"}
limits.rename(columns=names)

# %% [markdown]
# Check two things before you send it. A job that exceeds its minutes is killed and sent again once; it then resumes
# from its last state. And with one CPU, a training run alternates between reading its images and feeding the card: if
# the nodes have more CPUs, add the lines `adapt:cpus_per_task=4` and `source_only:cpus_per_task=4` to the file. Which
# rate the minutes assume is in [A4](A4_accounting.ipynb).

# %% [markdown]
# ## The settings, beside the published ones
#
# The published values come from the authors' program and from the arguments at the beginning of their logs; ours are
# read from the code.

# %%
ours, recipe = transfer.domain_config("night"), adaptation.recipe("paper")
epoch = adaptation.epoch_length(cityscapes.CITYSCAPES.parts[0].count, recipe)
settings = [
    ("steps of the grid", 20, ours.num_inference_steps),
    ("guidance", 9.0, ours.guidance_scale),
    ("eta", 1.0, ours.eta),
    ("shorter side (pixels)", 512, ours.short_side),
    ("added to the prompt", ", best quality", ours.prompt_suffix),
    ("negative prompt", "lower quality, worst quality", ours.negative_prompt),
]
strengths = {"night": 0.90, "snow": 0.65, "rain": 0.65, "fog": 0.60, "game": 0.60}
for name, value in strengths.items():
    strength = transfer.domain_config(name).strength
    settings.append((f"strength, {name}", value, strength))

# %% [markdown]
# And those of the training:

# %%
settings += [
    ("epochs", 100, recipe.steps // epoch),
    ("batch size", 4, recipe.batch_size),
    ("crop (pixels)", (384, 768), recipe.crop),
    ("optimizer", "sgd", recipe.optimizer),
    ("learning rate", 1e-3, recipe.learning_rate),
    ("learning rate, encoder", 1e-3, recipe.learning_rate * recipe.body_factor),
    ("weight decay", 1e-4, recipe.weight_decay),
    ("learning rate falls once per", "epoch", recipe.schedule),
    ("weight of the similarity", 0.1, recipe.similarity_weight),
    ("jitter", 0.5, recipe.jitter),
]
table = pd.DataFrame(settings, columns=["setting", "published", "ours"])
assert (table["published"] == table["ours"]).all()
table = table.astype(str).set_index("setting")[["ours"]]
table.rename(columns={"ours": "published, and ours"})

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
# **1. Predict:** you run one network and one seed in place of three each. By what factor does the number of `adapt` jobs
# fall, and by what factor the transfers?
#
# <details><summary>Solution</summary>
#
# The trainings fall by nine. The transfers stay, because all networks and seeds share the images.
# ```python
# adapted = [name for name in grid["variants"] if ROWS[name].adapted]
# whole = len(adapted) * len(domains) * len(networks) * len(seeds)
# print(f"adapt: {whole} -> {len(adapted) * len(domains)}")
# print(f"transfer: {jobs['transfer']} -> {jobs['transfer']}")
# ```
# Start with this: it shows whether everything works, for a ninth of the price.
# </details>
#
# **2. Break:** transfer into a folder that holds images made with other settings.
#
# <details><summary>Solution</summary>
#
# ```python
# other = transfer.domain_config("night", "photometric", seed=1)
# try:
#     transfer_folder(*arguments[:4], other, CITYSCAPES, progress=False)
# except ValueError as error:
#     print(str(error).partition("another")[2])
# ```
# It refuses and names what differs. A folder never holds a mixture.
# </details>

# %% [markdown]
# ## Recap
#
# Type the cheap commands first. Put your card's own speed in the place of ours. Kill and resume runs as you like.
# Everything that differs from the published program has a name.

# %%
metrics = {
    "jobs": jobs, "transfers": images, "hours": needs["hours of all"].to_dict(),
}  # fmt: skip
took = time.perf_counter() - start
_ = runs.save_metrics(out, "paper_scale", {"profile": "paper"}, metrics, took)

# %% [markdown]
# **Next:** [A4 Accounting](A4_accounting.ipynb) for how the hours were calculated, or [A3 Tables](A3_tables.ipynb) for
# the results of the runs.
#
# **References.** The paper, Sections 3 and 4 · the authors' program and training logs, github.com/azuma164/ZoDi
# (published settings and training times) · J. Mölder et al., *Sustainable data analysis with Snakemake*, F1000Research
# 2021 · A. Yoo et al., *SLURM*, JSSPP 2003.
