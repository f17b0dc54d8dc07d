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
# # 10 · Generators and networks of today: what may take their place?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/10_generators_and_networks.ipynb)
#
# **In one sentence.** The paper used Stable Diffusion 1.5 and two ResNets; the method needs five things from a
# generator and two from a network, and any model that provides them can take their place.
#
# **What you will learn:** the interface between the method and a generator · stochastic inversion on the straight
# path of *flow matching*, derived and tested where the exact answer is known · what runs on which graphics card ·
# networks by name · images made by another program · the transfer in the opposite direction.
#
# **Level:** advanced. **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb) and
# [05 Adaptation](05_adaptation.ipynb).
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
# The generators are in `zodi.generators`, the networks in `zodi.networks`.

# %%
import shutil
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from IPython.display import Markdown
from IPython.utils.capture import capture_output

# %% [markdown]
# And the modules of the course:
# %%
from zodi import (
    adaptation,
    datasets,
    diffusion,
    evaluation,
    sampling,
    segmentation,
    transfer,
)
from zodi.generators.schedules import StraightPath, few_step_scheduler
from zodi.labels import IGNORE_INDEX
from zodi.miniature import dataset
from zodi.studies import sizes
from zodi.support import plots, runs
from zodi.tools import importing, redrawing
from zodi.transfer_folder import transfer_folder

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters.

# %% tags=["parameters"]
data: str = "../results/course/data"  # the data set; rendered there when it is missing
domain: str = "night"  # target domain of the last two sections
steps: int = 120  # length of the training of the reference network
limit: int = 24  # images that are imported, and redrawn
points: int = 4000  # points of the toy problem
out: str = "../results/course/generators"  # folder of this notebook's results

# %% [markdown]
# ## Five questions to a generator
#
# The method encodes images, embeds prompts, predicts, follows a schedule, and decodes. It need not know which model
# does the work. A *schedule* says how much image and how much noise a latent contains, and what a prediction means:
#
# $$ z_t = \alpha_t z_0 + \sigma_t \epsilon, \qquad
# \text{prediction} \;\Rightarrow\; (\hat\epsilon, \hat z_0) . $$
#
# `examine` answers the questions for a checkpoint without loading its weights; `python -m zodi info --model FOLDER`
# prints the same.

# %%
found = diffusion.examine("mini")
pd.Series({"family": found.family} | found.will_do, name=found.name).to_frame()

# %% [markdown]
# ## Straight paths
#
# Stable Diffusion 3 and FLUX are trained by *flow matching*: image and noise are joined by a straight line, and the
# network predicts the velocity along it,
#
# $$ z_t = (1 - t)\, z_0 + t\, \epsilon, \qquad v = \frac{d z_t}{dt} = \epsilon - z_0 . $$
#
# Substitute the first equation into the second to eliminate either unknown:
#
# $$ \hat\epsilon = z_t + (1 - t)\, \hat v, \qquad \hat z_0 = z_t - t\, \hat v . $$
#
# *Stochastic inversion* needs only these two. The step from $t$ down to $s$, with fresh noise $\epsilon'$, is the
# paper's step with different letters:
#
# $$ z_s = (1 - s)\, \hat z_0 + \sqrt{s^2 - \varsigma^2}\, \hat\epsilon + \varsigma\, \epsilon', \qquad
# \varsigma = \eta\, s \sqrt{1 - \Big(\frac{(1 - t)\, s}{(1 - s)\, t}\Big)^2} . $$
#
# Noise of variance $s^2 - \varsigma^2$ and noise of variance $\varsigma^2$ add up to noise of variance $s^2$,
# whatever $\eta$ is. So at every time the distribution stays as the path prescribes. Is this true of the code? For a
# toy problem the best possible network is a formula. Let the images of a domain be points in the plane, from two
# Gaussian blobs of standard deviation $\rho$ around $\mu_1$ and $\mu_2$. Then $z_t$ comes from blob $k$ with
# probability $r_k(z_t)$, and
#
# $$ \hat z_0 = \sum_k r_k \Big( \mu_k + \frac{(1 - t) \rho^2}{(1 - t)^2 \rho^2 + t^2}\, (z_t - (1 - t) \mu_k) \Big),
# \qquad \hat v = (z_t - \hat z_0) / t . $$

# %%
RHO = 0.25
CENTRES = {
    "clear": [[-2.0, 1.0], [2.0, 1.0]],
    "night": [[-2.0, -1.0], [2.0, -1.0]],
}


def exact_velocity(name: str) -> sampling.Predict:
    """Velocity of the best network for a domain's blobs; z float64 (B, 2, 1, 1)."""
    mu = torch.tensor(CENTRES[name], dtype=torch.float64)

    def predict(z: torch.Tensor, t: float) -> torch.Tensor:
        z_t = z[:, None, :, 0, 0]
        variance = (1 - t) ** 2 * RHO**2 + t**2
        missed = z_t - (1 - t) * mu
        r = (-missed.square().sum(2) / (2 * variance)).softmax(1)
        z_0 = (r[..., None] * (mu + (1 - t) * RHO**2 / variance * missed)).sum(1)
        return (z - z_0[..., None, None]) / t

    return predict


# %% [markdown]
# The blobs themselves, and noise of their shape:


# %%
def blobs(name: str, generator: torch.Generator) -> torch.Tensor:
    """Points of a domain, float64 (points, 2, 1, 1)."""
    mu = torch.tensor(CENTRES[name], dtype=torch.float64)
    which = torch.randint(2, (points,), generator=generator)
    return mu[which, :, None, None] + RHO * normal(generator)


def normal(generator: torch.Generator) -> torch.Tensor:
    """Noise, float64 (points, 2, 1, 1)."""
    return torch.randn(points, 2, 1, 1, generator=generator, dtype=torch.float64)


# %% [markdown]
# First we start from pure noise. At every time the samples should have the variance that the path prescribes, with
# and without fresh noise.

# %%
generator = torch.Generator().manual_seed(0)
schedule = StraightPath(FlowMatchEulerDiscreteScheduler())
times = sampling.visited_timesteps(1.0, 40, schedule)
truth = blobs("night", generator)
rows = []
for eta in (0.0, 0.5, 1.0):
    noise = [normal(generator) for _ in range(41)]

    def note(step: int, t: float, z: torch.Tensor, eta: float = eta) -> None:
        s = schedule.after(t)
        expected = ((1 - s) ** 2 * truth.var(0) + s**2).sum()
        rows.append({"eta": eta, "t": s, "ratio": (z.var(0).sum() / expected).item()})

    start_from, *rest = noise
    velocity = exact_velocity("night")
    sampling.denoise(velocity, start_from, times, rest, schedule, eta, note)
ratios = pd.DataFrame(rows).pivot(index="t", columns="eta", values="ratio")

# %% [markdown]
# All three lines should stay near 1, and come nearer with more samples (`points`).

# %%
figure, ax = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
for eta, color in zip(ratios, ("0.6", "C0", "C1"), strict=True):
    ax.plot(ratios.index, ratios[eta], color=color, label=f"η = {eta:g}")
ax.axhline(1, color="0.3", linewidth=0.8)
ax.set(xlabel="time t", ylabel="variance, measured / prescribed", ylim=(0.9, 1.1))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
worst = (ratios - 1).abs().max()
plots.show(
    figure,
    f"Variance of {points} samples on their way from noise to points, over what the "
    "path prescribes. You should see three lines near 1; they are off by at most "
    f"{100 * worst.max():.0f} %.",
)

# %% [markdown]
# Now the transfer. Points of *clear* go back to time $t$, the noise is rebuilt from the prediction of the *night*
# model, and then the points are denoised. The two extremes are known in advance: at strength 0 nothing happens, and
# at strength 1 nothing of the source is left.

# %%
source = blobs("clear", generator)
strengths, moved = (0.0, 0.4, 0.6, 0.8, 1.0), {}
for strength in strengths:
    noise = [normal(generator) for _ in range(41)]
    visited = sampling.visited_timesteps(strength, 40, schedule)
    predict = exact_velocity("night")
    if not visited:
        moved[strength] = source
        continue
    both = (predict, predict)
    sampler = sampling.Sampler(*both, schedule, visited, visited[0], noise)
    moved[strength] = sampling.stochastic_inversion(sampler, source)
assert torch.equal(moved[0.0], source)

# %% [markdown]
# Two things are to be seen: how far the points have gone, and whether they are still on the side where they began.

# %%
size = {"figsize": (11, 2.6), "layout": "constrained"}
figure, axes = plt.subplots(1, len(strengths), sharex=True, sharey=True, **size)
on_left = source[:, 0, 0, 0] < 0
for ax, (strength, z) in zip(axes, moved.items(), strict=True):
    for side, color in ((on_left, "C0"), (~on_left, "C1")):
        ax.scatter(*z[side, :, 0, 0].T[:, ::8], s=2, color=color)
    ax.set_title(f"strength {strength:g}")
figure.supxlabel("first coordinate", fontsize="medium")
axes[0].set_ylabel("second coordinate")
plots.show(
    figure,
    "Points of clear (above) on their way to night (below); the colour is the side on "
    "which they began. You should see the clouds go down from left to right, and the "
    "colours mix at the end.",
)

# %% [markdown]
# The same in numbers, in percent: how much of the way to night the points have gone, and how many are still on the side
# where they began.

# %%
kept, there = {}, {}
for strength, z in moved.items():
    kept[strength] = 100 * ((z[:, 0, 0, 0] < 0) == on_left).double().mean().item()
    way = (source - truth)[:, 1].mean().item()
    there[strength] = 100 * (source - z)[:, 1].mean().item() / way
# What the caption above says: the clouds go down, and the colours mix.
assert there[0.0] == 0 < there[0.4] < there[1.0] and kept[1.0] < kept[0.4]
lines = {"of the way to night": there, "still on their side": kept}
pd.DataFrame(lines).T.rename_axis(columns="strength").round(0)

# %% [markdown]
# This is the trade-off of the whole method in one picture. With little noise the points keep their side and do not go
# all the way; with a lot of noise they become night and forget where they came from. In between, both goals can be met.

# %%
between = max((s for s in strengths if 0 < s < 1), key=lambda s: min(kept[s], there[s]))
Markdown(
    f"Best of both is strength {between:g}: {there[between]:.0f} % of the way, "
    f"{kept[between]:.0f} % on their side. At strength 1 {kept[1.0]:.0f} % are on "
    "their side; chance is 50 %."
)

# %% [markdown]
# ## What runs where
#
# The same code loads Stable Diffusion 1.x and 2.x, SDXL with a ControlNet or a *union* ControlNet, Stable Diffusion
# 3.x and FLUX.1, from a folder or by hub id. How large are they? We build their networks at the published sizes,
# without weights, and count the parameters.

# %%
names = {"together": "16 bits", "together_float32": "32 bits", "card": "smallest card"}
table = sizes.memory().rename(columns=names)
text = table.map("{:.1f}".format)
text["smallest card"] = table["smallest card"].map("{:.0f}".format).replace("nan", "-")
text.rename_axis(index="gigabytes of weights")

# %% [markdown]
# The table counts weights only; the activations come on top and grow with the image. **We have not run these
# models**: none of the large weights could be reached from the machine on which this was executed. Every family is
# tested on tiny random checkpoints of the same classes: loading, batches, resuming, types, missing parts.
#
# *Few steps.* Weights such as LCM-LoRA or Hyper-SD (`--lora`) let Stable Diffusion draw in 4 to 8 steps. They were
# trained at the end of a step and not at its beginning, so the grid of times is different:

# %%
paper, few = sampling.paper_scheduler(), few_step_scheduler(diffusion.load().scheduler)
for scheduler in (paper, few):
    scheduler.set_timesteps(4)
grids = {"the paper's grid, 4 steps": paper.timesteps, "few steps": few.timesteps}
pd.DataFrame(grids).T.rename_axis(columns="step")

# %% [markdown]
# ## Two questions to a network
#
# Adaptation needs the logits and the deepest features. Networks of `segmentation_models_pytorch` are chosen by name,
# with convolutional encoders, hierarchical transformers, or plain ones such as DINOv2 and DINOv3; those of
# `transformers` (SegFormer, Mask2Former) by folder or hub id,
# `hf:nvidia/segformer-b0-finetuned-cityscapes-1024-1024`. Mask2Former is trained with its own loss, which matches its
# masks to the segments of the label map; all others are trained with cross-entropy. The weights here are random;
# `weights="imagenet"` loads trained ones.

# %%
NETWORKS = ("DeepLabV3Plus/tu-resnet10t", "DeepLabV3Plus/resnet50", "Segformer/mit_b0",
            "UPerNet/tu-convnext_atto", "DPT/tu-vit_tiny_patch16_224")  # fmt: skip
x, lines = torch.randn(1, 3, 96, 192, generator=torch.Generator().manual_seed(0)), {}
for name in NETWORKS:
    network = segmentation.build_network(name, 19).eval()
    with torch.inference_mode():
        logits, features = network(x)
        begin = time.perf_counter()
        for _ in range(3):
            network(x)
    lines[name] = {
        "million parameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "logits": " x ".join(map(str, logits.shape[1:])),
        "deepest features": " x ".join(map(str, features.shape[1:])),
        "ms per image here": 1000 * (time.perf_counter() - begin) / 3,
    }
pd.DataFrame.from_dict(lines, orient="index").round(1)

# %% [markdown]
# Transformers need a different recipe from the paper's: AdamW, a learning rate that decreases towards the input, and
# a warm-up. It is called `transformer` and changes the following:

# %%
recipes = pd.DataFrame({
    name: vars(adaptation.recipe(name, network="Segformer/mit_b0"))
    for name in ("paper", "transformer")
})  # fmt: skip
recipes[recipes["paper"] != recipes["transformer"]].astype(str)

# %% [markdown]
# ## Images that another program made
#
# Whoever made the images, FLUX Kontext, Qwen-Image-Edit, Cosmos-Transfer or a colleague, the labels are those of the
# source. `import` matches the images by name, checks their sizes, and lets a network that was trained on the source
# look for the labels again. Here photometric images stand in for the other program; four of them are shifted by 40
# pixels, as if the layout had been lost.

# %%
root = dataset.prepare(data)
train = datasets.open_split(root, "train")
config = adaptation.recipe("mini", "source_only", steps=steps)
with capture_output():
    reference, _ = adaptation.train(config, train, None, None)
usual = vars(adaptation.recipe("mini", "source_only"))
print({name: value for name, value in vars(config).items() if value != usual[name]})

# %% [markdown]
# The images of the other program, and copies of the source images that it was given:

# %%
shutil.rmtree(out, ignore_errors=True)
images, labels = root / "train" / "images", root / "train" / "labels"
theirs, label_set = Path(out) / "theirs", train.label_set
settings = transfer.domain_config("fog", "photometric")
made = Path(out) / "made"
given = (None, images, labels, made, settings, label_set)
transfer_folder(*given, limit=limit, progress=False)
few_sources = Path(out) / "source"
for folder in (theirs, few_sources):
    folder.mkdir(parents=True)
shifted = train.keys[: min(4, limit)]
for key in train.keys[:limit]:
    image = datasets.read_image(made / "images" / f"{key}.png")
    image = np.roll(image, 40, axis=1) if key in shifted else image
    plt.imsave(theirs / f"{key}_fog.png", image)
    shutil.copyfile(images / f"{key}.png", few_sources / f"{key}.png")

# %% [markdown]
# Now the import, and the audit by the reference network:

# %%
named = importing.ImportConfig("{key}_fog", origin="photometric fog")
taken = Path(out) / "imported"
given = (theirs, few_sources, labels, taken, label_set, named)
report = importing.import_folder(*given, progress=False)
print(f"{report.done} of {report.total} taken over")
given = (taken, few_sources, labels, label_set, reference)
audit = importing.audit(*given, mask=True, progress=False)
print(audit)

# %% [markdown]
# Image by image. Where the layout is wrong, more labels should be lost:

# %%
lost = audit.images["lost"]
figure, ax = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
colors = ["C3" if key in shifted else "0.6" for key in lost.index]
ax.bar(range(len(lost)), lost, color=colors)
ax.set(xlabel="imported image", ylabel="pixels that lost\ntheir label (%)")
rest = lost.drop(shifted)
apart = len(rest) > 0 and lost[shifted].min() > rest.max()
plots.show(
    figure,
    f"The shifted images (red) against the others: {lost[shifted].mean():.0f} % and "
    f"{rest.mean():.0f} % on average. You should see that the two groups "
    + ("do not overlap." if apart else "overlap."),
)

# %% [markdown]
# With `mask` the lost pixels become void in the label maps of the imported images, and `adapt --synth` reads these
# label maps.

# %%
masked = datasets.synthesized(taken, labels, label_set)
titles = ["source", "imported", "labels", "labels with mask"]
tiles, names, void = [], [], []
for key, what in zip([shifted[0], *rest.index[:1]], ("shifted", "other"), strict=False):
    before, after = train[train.keys.index(key)], masked[masked.keys.index(key)]
    maps = [label_set.colorize(sample.label) for sample in (before, after)]
    tiles += [[before.image, after.image], maps]
    names += [f"{what} image: {title}" for title in titles]
    void.append(100 * (after.label == IGNORE_INDEX).mean())
plots.show(
    plots.image_grid(tiles, titles=names, width=7.8),
    "A shifted image, and one that kept its layout. You should see void (black) where "
    "the mask took the label away: "
    + " and ".join(f"{share:.0f} %" for share in void) + " of the pixels.",
)  # fmt: skip

# %% [markdown]
# ## The other way round
#
# Why not leave the network as it is and redraw what it sees? A photograph of the target goes through the transfer
# with the prompt of the *source*, and the unchanged network segments the result. The layout is the network's own
# prediction, or there is none. The method reads no labels; here they are used only for scoring.

# %%
mini = diffusion.load()
photographs, place = Path(out) / "photographs", root / "test" / domain
test = datasets.open_split(root, f"test/{domain}")
photographs.mkdir()
for key in test.keys[:limit]:
    shutil.copyfile(place / "images" / f"{key}.png", photographs / f"{key}.png")
scores, shown = {}, {"photograph": photographs}
titles = {"predicted": "redrawn, layout as predicted", "none": "redrawn without layout"}
for layout in redrawing.LAYOUTS:
    made = Path(out) / f"redrawn_{layout}"
    given = (reference, photographs, made, mini, label_set, layout)
    redrawing.redraw_target(*given, progress=False)
    shown[titles[layout]] = made / redrawing.REDRAWN_FOLDER / "images"

# %% [markdown]
# The unchanged network segments all of them:

# %%
for name, folder in shown.items():
    part = datasets.FolderDataset(folder, place / "labels", label_set)
    result = evaluation.evaluate(reference, part, label_set, batch_size=10)
    scores[name] = result["miou"]

# %% [markdown]
# Two of the photographs:

# %%
folders = list(shown.values())
files = [[folder / f"{key}.png" for folder in folders] for key in test.keys[:2]]
rows = [[datasets.read_image(file) for file in line] for line in files]
numbers = ", ".join(f"{name} {score:.1f} %" for name, score in scores.items())
grey = [np.mean([row[k] for row in rows]) for k in range(len(folders))]
lighter = "lighter" if min(grey[1:]) > grey[0] else "not all lighter"
plots.show(
    plots.image_grid(rows, list(shown), width=11.8),
    f"Photographs of {domain}, and what the transfer makes of them. You should see "
    f"that the redrawn ones are {lighter} (grey values of {grey[0]:.0f} against "
    f"{', '.join(f'{value:.0f}' for value in grey[1:])}); look for what the "
    f"photographs do not have. mIoU of the unchanged network: {numbers}.",
)

# %% [markdown]
# Did it help?

# %%
before, *after = scores.values()
best = max(after)
verb = "gains" if best > before else "loses"
Markdown(
    f"The better of the two {verb} **{abs(best - before):.1f} points** on {limit} "
    "images, with one network. [A3](A3_tables.ipynb) has several seeds. It costs a "
    "transfer per photograph at test time, where adaptation costs one training."
)

# %% [markdown]
# ## Pitfalls
#
# - **Taking a strength from one family to another.** On a straight path that is moved towards noise, strength 0.65 is a
#   later time than in Stable Diffusion 1.5. Look at pictures first.
# - **Too many steps with few-step weights, or guidance.** They were distilled for a few steps and replace guidance.
# - **Reading the audit as truth.** The reference has not seen the new domain either: compare with what it loses on
#   images whose layout you trust.
# - **Another cut of the scene.** Programs that crop or pad move every pixel away from its label; `import` refuses them.
#
# ## Try it
#
# **1. Predict:** at which strength does a straight path of 40 steps take no step at all? And why is this not a bug?
#
# <details><summary>Solution</summary>
#
# Below 1/40: the last int(strength * steps) steps are taken, and here that number is zero.
# ```python
# for low in (0.02, 0.03):
#     print(low, sampling.visited_timesteps(low, 40, schedule))
# ```
# </details>
#
# **2. Modify:** move the blobs of night nearer to those of clear. What happens to the best strength?
#
# <details><summary>Solution</summary>
#
# It gets lower: less has to change, so less noise is enough.
# ```python
# CENTRES["night"] = [[-2.0, 0.2], [2.0, 0.2]]
# noise = [normal(generator) for _ in range(41)]
# visited = sampling.visited_timesteps(0.3, 40, schedule)
# both = (exact_velocity("night"), exact_velocity("night"))
# sampler = sampling.Sampler(*both, schedule, visited, visited[0], noise)
# print(sampling.stochastic_inversion(sampler, source)[:, 1].mean())
# ```
# </details>
#
# **3. Break:** where a pyramid is needed, ask for a network that has features of only one size.
#
# <details><summary>Solution</summary>
#
# The error says which architecture fits.
# ```python
# try:
#     segmentation.build_network("UPerNet/tu-vit_tiny_patch16_224", 19)
# except ValueError as error:
#     print(error)
# ```
# </details>

# %% [markdown]
# ## Recap
#
# Any model that can encode, embed, predict, follow a schedule and decode can draw, whether it was trained by
# diffusion or by flow matching. Any network that returns logits and deepest features can be adapted. Images from
# other programs can be used like ours if their labels still hold, and this can be checked. Everything large was
# tested only at small size; run it on your card, and trust your own numbers.

# %%
metrics = {"scores": scores, "audit": audit.images.mean().to_dict()}
metrics |= {"kept": kept, "there": there}
settings = {"data": data, "domain": domain, "steps": steps, "limit": limit}
_ = runs.save_metrics(out, "generators", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [11 Stable Diffusion on a graphics card](11_stable_diffusion.ipynb). The appendix: [A1 How the miniature was
# made](A1_how_the_miniature_was_made.ipynb), [A2 Running at paper scale](A2_paper_scale.ipynb),
# [A3 Tables](A3_tables.ipynb), which is best read before 06, and [A4 Accounting](A4_accounting.ipynb).
#
# **References.** Y. Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023 · X. Liu et al., *Flow Straight
# and Fast*, ICLR 2023 · P. Esser et al., *Scaling Rectified Flow Transformers*, ICML 2024 · J. Song et al., *Denoising
# Diffusion Implicit Models*, ICLR 2021 · E. Xie et al., *SegFormer*, NeurIPS 2021 · B. Cheng et al., *Masked-attention
# Mask Transformer*, CVPR 2022 · J. Gao et al., *Back to the Source*, CVPR 2023.
