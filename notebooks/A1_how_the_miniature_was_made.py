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
# # A1 · How the miniature was made
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/A1_how_the_miniature_was_made.ipynb)
#
# **In one sentence.** A renderer draws streets whose labels, depth and weather are known exactly, and a small latent
# diffusion model with a ControlNet is trained on them from scratch, on a CPU, in Stable Diffusion's file format.
#
# **What you will learn:** what a scene is made of before the weather is added · what the VAE keeps and what it loses
# · why the model predicts $v$ and why its noise schedule ends in pure noise · how to retrain it, fully or as a toy.
#
# **Level:** advanced. **What you need:** [03 Layout-to-image](03_layout_to_image.ipynb).
#
# **How long it takes:** half an hour to read; a minute or two to run on two CPU cores, with a toy training of a few
# steps.
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
# The renderer is `zodi.miniature.scenes` with `zodi.miniature.weather`, the training is `zodi.miniature.pretrain`.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from diffusers import DDIMScheduler
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output
from pandas.io.formats.style import Styler
from PIL import Image

# %% [markdown]
# And the modules of the course:
# %%
from zodi import diffusion, sampling, transfer
from zodi.domains import DOMAINS, PROMPT_SUFFIX
from zodi.labels import CITYSCAPES
from zodi.miniature import pretrain, scenes, weather
from zodi.studies import findings, quality, tables
from zodi.support import plots, runs
from zodi.support.files import read_json

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
model: str = "mini"  # "mini", or a checkpoint's folder with its log and sample sheet
scene_seed: int = 200_003  # number of the scene that is taken apart
scene_count: int = 24  # scenes of the toy training
steps: int = 40  # steps of the toy training, for the VAE and for the diffusion model
tries: str = "records/tries.csv"  # what was tried, and what it changed
measured: str = "../results/quality"  # folder that `make quality` wrote
record: str = "records/quality"  # our own measurement, shown where there is no other
out: str = "../results/course/miniature"  # folder of this notebook's results

# %% [markdown]
# ## A street in layers
#
# A scene is drawn from far to near into several layers at once: the colour of every surface (*albedo*), its class, its
# distance, what gives off light at night, and *up*, how much snow would stay on it. The weather comes later.

# %%
layers = scenes.build(scene_seed)
label_picture = CITYSCAPES.colorize(layers.label)
pictures = {
    "albedo": layers.albedo,
    "label": label_picture,
    "log depth": np.log(layers.depth),
    "lights": layers.lights,
    "up": layers.up,
}
three = list(pictures.values())[:3], list(pictures.values())[3:]
figure = plots.image_grid(three, titles=list(pictures), width=11.8)
plots.label_legend(figure, [layers.label], CITYSCAPES)
plots.show(
    figure,
    "The layers of one scene, before any weather. Bright in *log depth* is far, bright "
    "in *up* holds snow. You should see no light and no shadow yet.",
)

# %% [markdown]
# A *shader* lights the layers. It may use depth and lights, which a photograph does not contain. This is why the true
# target images are the truth, and why the photometric baseline, which sees only pixels, cannot reproduce them.

# %%
domains = {
    name: weather.shade(layers, name, scene_seed) for name in pretrain.PRETRAIN_DOMAINS
}
images = list(domains.values())
plots.show(
    plots.image_grid([images[:3], images[3:]], titles=list(domains), width=11.8),
    f"The same layers in {len(domains)} domains. You should see one street with every "
    "object in its place, in other light and weather.",
)

# %% [markdown]
# Take fog as an example. Light from a surface of albedo $A$ at depth $d$ is dimmed, and a grey veil $V$ takes its
# place (Koschmieder's law):
#
# $$ I = A' \, \tau + V (1 - \tau), \qquad \tau = e^{-d / \text{visibility}} , $$
#
# where $A'$ is a muted $A$. If the image follows the law, what fog leaves of the contrast must fall exponentially with
# depth. We measure contrast as the standard deviation of the grey values at about the same depth.

# %%
near = layers.depth < 80
grey = pd.DataFrame({name: domains[name].mean(2)[near] for name in ("clear", "fog")})
bins = 10 * (layers.depth[near] // 10) + 5
contrast = grey.groupby(bins).std().dropna().rename_axis("depth").reset_index()
left = 100 * contrast["fog"] / contrast["clear"]
assert left.iloc[-1] < left.iloc[0]
ys = ["clear", "fog"]
plots.show(
    plots.curve(contrast, "depth", ys, "depth (m)", "contrast (grey levels)"),
    "Contrast of the scene against depth. You should see that the far parts melt into "
    f"the veil: of clear weather's contrast, fog leaves {left.iloc[0]:.0f} % at "
    f"{contrast['depth'].iloc[0]:.0f} m and {left.iloc[-1]:.0f} % at "
    f"{contrast['depth'].iloc[-1]:.0f} m.",
)

# %% [markdown]
# ## The VAE: what fits into a latent
#
# Diffusion works on latents $z_0 = E(x)$, a quarter of the image's width and height, with a few channels. What the
# decoder cannot restore, no transfer can: $D(E(x))$ is the best possible image.

# %%
mini = diffusion.load(model)
x = torch.from_numpy(np.stack(images))
z0 = diffusion.encode(mini, x)
round_trip = diffusion.decode(mini, z0).numpy()
shapes = {"image": str(tuple(x.shape[1:])), "latent": str(tuple(z0.shape[1:]))}
pd.Series(shapes, name="shape").to_frame()

# %% [markdown]
# We measure the loss as the peak signal-to-noise ratio, in decibels:
#
# $$ \text{PSNR} = 10 \log_{10} \frac{255^2}{\text{MSE}(x, D(E(x)))} . $$

# %%
mse = ((np.stack(images).astype(float) - round_trip) ** 2).mean((1, 2, 3))
psnr = dict(zip(domains, 10 * np.log10(255**2 / mse), strict=True))
highest, lowest = max(psnr, key=psnr.get), min(psnr, key=psnr.get)
plots.show(
    plots.domain_bars(psnr, "PSNR (dB)"),
    "Round trip of one scene through the VAE, domain by domain. You should see that "
    f"{highest} survives it best and {lowest} worst.",
)

# %% [markdown]
# A single number hides where the loss is. Look at edges and thin objects.

# %%
z = z0[0, 0]
channel = (255 * (z - z.min()) / (z.max() - z.min())).byte().numpy()
error = np.abs(images[0].astype(int) - round_trip[0])
enlarged = error.clip(0, 63).astype(np.uint8) * 4
edge = np.zeros(layers.label.shape, bool)
edge[1:] |= layers.label[1:] != layers.label[:-1]
edge[:, 1:] |= layers.label[:, 1:] != layers.label[:, :-1]
times = error[edge].mean() / error[~edge].mean()
titles = ["D(E(x))", "difference from x, 4 times", "one channel of E(x)"]
plots.show(
    plots.image_grid([[round_trip[0], enlarged, channel]], titles, width=11.8),
    "The clear image after the round trip, its difference from the one above, and one "
    f"of the latent's {len(z0[0])} channels. You should see the outlines in the "
    f"difference: between two classes it is {times:.1f} times as large as elsewhere.",
)

# %% [markdown]
# ## A schedule that ends in noise
#
# At time $t$ the network sees $z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$. In Stable
# Diffusion's schedule some of the image is still left at $t = 999$. What is left contains the mean brightness, and a
# model trained in this way does not learn to generate it: night stays bright. The miniature's schedule is rescaled to
# *zero terminal SNR*: at the last time the signal-to-noise ratio is zero.

# %%
paper = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
products = {
    "Stable Diffusion": paper.alphas_cumprod,
    "miniature": mini.scheduler.alphas_cumprod,
}
frame = pd.DataFrame({name: ac.sqrt().numpy() for name, ac in products.items()})
frame = frame.rename_axis("t").reset_index()
ends = ", ".join(f"{name} {ac[-1].sqrt():.3f}" for name, ac in products.items())
signal = "signal $\\sqrt{\\bar\\alpha_t}$"
plots.show(
    plots.curve(frame, "t", list(products), "time t", signal),
    "Share of the image that is left at time t. You should see which curve reaches "
    f"zero; at t = 999 there is left: {ends}.",
)

# %% [markdown]
# Where no signal is left, "predict the noise" is a trivial task: the input *is* the noise. So the network predicts
#
# $$ v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, z_0
# \qquad\Longrightarrow\qquad z_0 = \sqrt{\bar\alpha_t}\, z_t - \sqrt{1 - \bar\alpha_t}\, v , $$
#
# that is, the noise where the image is clean, and the image where there is only noise. We check both equations:

# %%
ac = mini.scheduler.alphas_cumprod[700]
eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
z_t = ac.sqrt() * z0 + (1 - ac).sqrt() * eps
v = ac.sqrt() * eps - (1 - ac).sqrt() * z0
assert torch.allclose(ac.sqrt() * z_t - (1 - ac).sqrt() * v, z0, atol=1e-5)
times = torch.tensor([700] * len(z0))
assert torch.allclose(v, mini.scheduler.get_velocity(z0, eps, times), atol=1e-5)

# %% [markdown]
# ## The training that was run
#
# UNet, ControlNet and text encoder were trained together, with an exponential moving average of the weights; the prompt
# and the layout were dropped at random, so that guidance works. The log and the settings come with the weights
# (`diffusion_log.csv`, `pretrain_settings.json`). The miniature was trained in several pieces, each from the checkpoint
# before it, with other latents or more noise. Where the curves jump, a new piece begins. Losses before and after a jump
# belong to different tasks and cannot be compared.

# %%
folder = diffusion.MINI_FOLDER if model == "mini" else Path(model)
log = pd.read_csv(folder / "diffusion_log.csv")
losses = [f"val_{name}" for name in pretrain.PRETRAIN_DOMAINS]
least, most = (
    log[losses].iloc[-1].agg(end).split("_")[1] for end in ("idxmin", "idxmax")
)
plots.show(
    plots.curve(log, "step", losses, "optimisation step", "validation loss of v"),
    "Validation loss on held-out scenes, averaged weights; "
    f"{log['seconds'].iloc[-1] / 60:.0f} minutes of training. You should see that the "
    f"model finds {least} easiest and {most} hardest.",
)

# %% [markdown]
# The loss of a diffusion model says little about its pictures. The sample sheet was drawn at the end of the training,
# from scenes that the model never saw. The README of the repository shows the shipped weights' sheet in its full size.

# %%
with Image.open(folder / "samples.png") as file:
    size = (640, round(640 * file.height / file.width))
    sheet = file.convert("RGB").resize(size, Image.Resampling.LANCZOS)
plots.show(
    plots.image_grid([[np.asarray(sheet)]], width=6.5),
    "Sample sheet of the training, held-out scenes. The nearer a picture is to the "
    "last column, the truth, the better. You should find the cars of every row in one "
    "place.",
)

# %% [markdown]
# ## Is it good? Measured, not guessed
#
# The renderer knows the true target image of every scene, so the transfer can be graded. `make quality` asks three
# questions about scenes that no network has seen. Does the image look like the domain (brightness, colours, a
# classifier)? Is the layout still there (a *judge*, a segmenter trained on all true domains, compared with the source
# labels)? Is it useful (adaptation)? If the whole measurement exists, the table shows the goals, which were set
# before measuring, and the results.

# %%
measured_here = (Path(measured) / "verdicts.csv").exists()
results = quality.read_results(measured if measured_here else record)
LEFT = [{"selector": "th, td", "props": "text-align: left; white-space: normal"}]


def wrapped(frame: pd.DataFrame) -> Styler:
    """A table with long texts, wrapped and without its index."""
    return Styler(frame, cell_ids=False).hide(axis="index").set_table_styles(LEFT)


if "verdicts" in results:
    display(wrapped(results["verdicts"]))

# %% [markdown]
# First the images themselves: their brightness compared with the truth's, the distance between the colour histograms,
# and how many of them the classifier assigns to the prompted domain.

# %%
zodi = results["images"].query("row == 'stochastic_inversion'").set_index("domain")
columns = {
    "luminance_error": "luminance, ZoDi − truth (grey levels)",
    "histogram_distance": "histogram distance (grey levels)",
    "classified": "classifier agrees (%)",
    "judge_share": "judge's mIoU (% of the truth's)",
}
zodi[list(columns)].rename(columns=columns).rename_axis(None).round(1)

# %% [markdown]
# Where does the layout suffer? The judge reads photometric images, ZoDi's images, and the true target images after a
# round trip through the VAE, which no diffusion on its latents can be expected to surpass.

# %%
rows = {
    "photometric": "photometric",
    "stochastic_inversion": "ZoDi",
    "truth_round_trip": "truth, VAE round trip",
}
shares = results["images"].pivot(index="domain", columns="row", values="judge_share")
shares = shares.loc[zodi.index, list(rows)].rename(columns=rows)
shares = shares.rename_axis(index=None, columns=None)
above = shares.index[shares["ZoDi"] > shares["photometric"]]
plots.show(
    plots.class_bars(shares, "judge's mIoU, % of the truth's"),
    "How much of the true images' mIoU the judge reaches on other images of the same "
    "scenes. You should see ZoDi keep more of the layout than photometric in "
    f"{len(above)} of {len(shares)} domains ({', '.join(above)}).",
)

# %% [markdown]
# And how useful are the images for adaptation? 0 % is a network that saw only the source, 100 % one that was trained on
# true target images of other scenes ([A3](A3_tables.ipynb) has the runs behind it).

# %%
closed = results["gap_closed"].set_index("row").T
dots = closed.rename_axis("domain").melt(ignore_index=False, value_name="closed")
size = (9, 0.32 * len(closed.columns) + 0.8)
figure, ax = plt.subplots(figsize=size, layout="constrained")
look = {"jitter": False, "size": 7, "palette": plots.DOMAIN_COLORS, "ax": ax}
sns.stripplot(dots.reset_index(), x="closed", y="row", hue="domain", **look)
ax.axvline(0, color="0.3", linewidth=0.8)
ax.grid(axis="y")
ax.set(xlabel="gap closed (%)", ylabel="")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
means = closed.mean().sort_values(ascending=False)
plots.show(
    figure,
    "Share of the way from source only to the oracle; a dot is a domain. You should "
    f"see the dots of “{means.index[0]}” furthest to the right on average, at "
    f"{means.iloc[0]:.0f} %; ZoDi's are at {means[tables.label('zodi')]:.0f} %.",
)

# %% [markdown]
# ## What is missed, and why
#
# **Layout.** Is the layout lost through the change of weather or through the redrawing? The images of the row *clear
# prompt* are redrawn in their original weather, so they differ from the source only through the redrawing. The
# judge's mIoU as a share of the source's:

# %%
steps_of = {
    "source": "source",
    "vae_round_trip": "encoded and decoded",
    "clear_prompt": "redrawn in clear weather",
}
judged = results["images"].groupby("row")["judge"].mean()[list(steps_of)]
share = (100 * judged / judged["source"]).rename("judge's mIoU, % of the source's")
share.rename(steps_of).rename_axis(None).round(0).to_frame()

# %% [markdown]
# In one sentence:

# %%
lost = {
    "encoding and decoding": 100 - share["vae_round_trip"],
    "drawing anew": share["vae_round_trip"] - share["clear_prompt"],
}
worst = shares["ZoDi"].idxmin()
costs = ", ".join(f"{what} costs {part:.0f} %" for what, part in lost.items())
Markdown(
    f"Of the judge's mIoU, {costs}: most is lost by **{max(lost, key=lost.get)}**. "
    f"Among the domains {worst} loses most: {shares.loc[worst, 'ZoDi']:.0f} % are left."
)

# %% [markdown]
# Thin objects of a few pixels go first; [04](04_transferring_a_data_set.ipynb) measures it class by class. Where a true
# image is already hard to read, the same loss is a larger share.
#
# **Three methods, three pictures?** *ControlNet only* starts from pure noise and keeps nothing of the source's latent,
# SDEdit adds noise to it, ZoDi inverts it. The less noise a transfer needs, the more they should differ: in the sample
# sheet, compare the colour of the cars and of the road. Does the difference matter for the adaptation? The verdicts
# above say so, paired by seed.
#
# **How much noise does a domain need?** Too little, and the model keeps the clear sky. We can ask it why: we give it a
# clear image with the noise of time $t$, the prompt and the layout, and look at its guess of the image,
# $\hat z_0 = (z_t - \sqrt{1 - \bar\alpha_t}\, \hat\epsilon) / \sqrt{\bar\alpha_t}$. What the guess is made of:

# %%
scheduler = sampling.paper_scheduler(mini.scheduler)
z_0 = diffusion.encode(mini, torch.from_numpy(domains["clear"])[None])
noise = torch.randn(z_0.shape, generator=runs.generator_for("clear", 0))
drawn = (label_picture, layers.label.shape, "cityscapes")
layout = transfer.prepare_layout(*drawn)[None]

# %% [markdown]
# And the guess:


# %%
@torch.inference_mode()
def guess(name: str, t: int) -> np.ndarray:
    """What the model takes the clear image for at time t, asked for a domain."""
    z_t = sampling.add_noise(z_0, noise, t, scheduler)
    embeds = diffusion.embed(mini, [DOMAINS[name].prompt + PROMPT_SUFFIX])
    prediction = sampling.predictor(mini.unet, mini.controlnet, embeds, layout)(z_t, t)
    eps_hat = sampling.predicted_noise(prediction, z_t, t, scheduler)
    alpha_bar = scheduler.alphas_cumprod[t].item()
    z_0_hat = (z_t - (1 - alpha_bar) ** 0.5 * eps_hat) / alpha_bar**0.5
    return diffusion.decode(mini, z_0_hat)[0].numpy()


# %% [markdown]
# How far has the guess moved from clear weather to the domain, in brightness? 0 % is the source, 100 % the truth. Game
# is left out, because what changes there is colours and outlines more than brightness.

# %%
bright = {name: quality.luminance([image]) for name, image in domains.items()}


def moved(name: str, t: int) -> float:
    """How far the guess has moved to a domain at time t, percent of the way."""
    way = bright[name] - bright["clear"]
    return 100 * (quality.luminance([guess(name, t)]) - bright["clear"]) / way


names, times = ("night", "snow", "rain", "fog"), list(range(350, 951, 100))
way = pd.DataFrame({name: [moved(name, t) for t in times] for name in names}, times)

# %% [markdown]
# One curve per domain. The *strength* decides at what time a transfer begins ([03](03_layout_to_image.ipynb)):

# %%
used = ", ".join(f"{name} {mini.defaults.strengths[name]:.2f}" for name in names)
seen = {name: way.index[way[name] >= 50] for name in names}
first = [f"{name} at t = {ts[0]}" for name, ts in seen.items() if len(ts)]
plots.show(
    plots.curve(
        way.rename_axis("t").reset_index(),
        "t",
        names,
        "time t",
        "way to the domain (%)",
    ),
    "How far the model's guess has moved, by the time at which it is asked. You should "
    f"see it pass half of the way for {', '.join(first) or 'no domain'}. The strengths "
    f"of the package: {used}.",
)

# %% [markdown]
# Why not earlier? The noise is independent from latent to latent, so it averages out, and the *mean* of a frame is
# known long before anything else. How far apart are the means of clear weather and night, compared with the noise of
# the mean?

# %%
t = 650
alpha_bar, count = scheduler.alphas_cumprod[t].item(), z_0[0, 0].numel()
clear, night = (
    diffusion.encode(mini, torch.from_numpy(domains[name])[None]).mean((0, 2, 3))
    for name in ("clear", "night")
)
apart = alpha_bar**0.5 * (clear - night).abs().max().item()
of_one = (1 - alpha_bar) ** 0.5
of_mean = of_one / count**0.5
Markdown(
    f"At t = {t} a single latent is noise of {of_one:.2f}. The mean of {count} of them "
    f"is noise of {of_mean:.3f}, and clear weather and night lie {apart:.2f} apart, "
    f"{apart / of_mean:.0f} times as much."
)

# %% [markdown]
# If the prompt never contradicts that mean in training, the model does not need to learn which of the two to believe.
# *Coarse noise* in pretraining, one value per channel and a grid of 3 x 6, hides the mean (`pretrain`, setting
# `coarse_noise`), so the model has to rely on the prompt. The attempts below show what it changed, and what it did not:
# contrasts also say that a street is clear, and a better model reads them.

# %%
trained = read_json(folder / "pretrain_settings.json")
print(f"coarse noise of this checkpoint: {trained['coarse_noise']}")

# %% [markdown]
# **Against plain changes.** Where does a rule that needs no diffusion do better?

# %%
names = {tables.label(name): findings.called(name) for name in quality.PLAIN_BASELINES}
plain = [label for label in names if label in closed]
beaten = closed.index[closed[plain].max(axis=1) >= closed[tables.label("zodi")]]
places = findings.listed([findings.where(name) for name in beaten]) or "nowhere"
Markdown(
    f"The best of {findings.listed([names[label] for label in plain])} is as good as "
    f"ZoDi or better **{places}**. A rule made by hand "
    "can be right if its author has seen the target."
)

# %% [markdown]
# ## What was tried
#
# Every attempt that mattered, with its reason and what it changed. The numbers were measured on held-out pretraining
# scenes (training logs; `python -m zodi.studies try strength=0.75 --model FOLDER --results FOLDER`; for the round
# trips a throw-away script that graded $D(E(x))$ of true images as `make quality` does in its row *truth_round_trip*;
# for samples per second a stopwatch around one step of `zodi.miniature.pretrain`).

# %%
wrapped(pd.read_csv(tries))

# %% [markdown]
# ## Retrain a toy
#
# `python -m zodi.miniature pretrain` trains everything; this takes hours and can be stopped and resumed at any time.
# Here is the same code with a few scenes and steps, without its progress bars.

# %%
config = pretrain.PretrainConfig(
    scene_count=scene_count,
    held_out=scene_count // 3,
    segmenter_steps=steps,
    vae_steps=steps,
    steps=steps,
    batch_size=8,
)
toy_folder = Path(out) / "toy"
with capture_output():
    pretrain.pretrain(config, toy_folder, toy_folder / "weights")
toy = diffusion.load(toy_folder / "weights" / "mini")

# %% [markdown]
# What has it learned in so short a time? We ask both models for the same night image. A diffusion model that has only
# begun to train draws mush in the mean colour of its data; everything that you recognise in the other picture comes
# from training.

# %%
scene, nights = domains["clear"], []
for checkpoint in (toy, mini):
    settings = transfer.domain_config("night", defaults=checkpoint.defaults)
    given = ([scene], [label_picture], ["scene"], settings)
    nights += transfer.transfer_images(checkpoint, *given)
few, many = (picture.std((0, 1)).mean() for picture in nights)
names = ["source", f"after {steps} steps", "shipped weights"]
plots.show(
    plots.image_grid([[scene, *nights]], names, width=11.8),
    f"The same transfer by a toy after {steps} steps of each training and by the "
    "shipped weights. You should recognise the street only in the last: the grey "
    f"levels vary by {few:.0f} in the toy's picture and by {many:.0f} there.",
)

# %% [markdown]
# ## Pitfalls
#
# - **Texture.** Noise in asphalt and facades uses up the VAE's capacity and teaches the network nothing: keep it low.
# - **Zero-initialised ControlNets.** They protect a pretrained UNet. When everything is new, they only delay learning
#   the layout.
# - **Judging early.** Mean colours and brightness are learned last; a sample sheet of the first minutes is always grey.
# - **Guidance.** A small model needs little of it; the paper's value for Stable Diffusion oversaturates its colours.

# %% [markdown]
# ## Try it
#
# **1. Predict:** which of the six domains has the lowest PSNR in the round trip, and why? Then look at the bars.
#
# <details><summary>Solution</summary>
#
# ```python
# min(psnr, key=psnr.get)
# ```
# Errors are counted in absolute grey values, so a dark or a veiled image cannot be far off, while saturated colours
# with hard outlines can.
# </details>
#
# **2. Modify:** add rain to the night. Which layers would a shader need?
#
# <details><summary>Solution</summary>
#
# A shader is a function of the layers and a random generator. This one darkens and adds reflections in one go:
# ```python
# rng = np.random.default_rng(0)
# wet_night = 0.5 * weather.night(layers, rng) + 0.3 * weather.rain(layers, rng)
# picture = (np.clip(wet_night, 0, 1) * 255).astype(np.uint8)
# plots.show(plots.image_grid([[picture]], width=4), "Rain at night.")
# ```
# </details>
#
# **3. Break:** give the decoder latents at another scale, `diffusion.decode(mini, 2 * z0)`. What is the scale for?
#
# <details><summary>Solution</summary>
#
# ```python
# wrong = list(diffusion.decode(mini, 2 * z0).numpy()[:3])
# plots.show(plots.image_grid([wrong], width=11.8), "Latents twice as large.")
# ```
# The scaling factor gives the latents unit variance, like the noise. At another scale the same $\bar\alpha_t$ would
# mean a different mixture of image and noise.
# </details>

# %% [markdown]
# ## Recap
#
# Layers make scenes, shaders make the true images, a VAE makes them small, and a diffusion model learns to draw them
# from a sentence and a layout. Everything is seeded. The training of the shipped weights was stopped by the clock, so a
# miniature that you train is like ours and not its copy.

# %%
metrics = {"psnr": psnr, "training_log": log.iloc[-1].to_dict()}
settings = {
    "model": model,
    "scene_seed": scene_seed,
    "scene_count": scene_count,
    "steps": steps,
}
_ = runs.save_metrics(out, "miniature", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [A2 Running at paper scale](A2_paper_scale.ipynb), or back to [00 Start here](00_start_here.ipynb).
#
# **References.** S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*, WACV 2024 ·
# T. Salimans, J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models* (v-prediction), ICLR 2022 ·
# L. Zhang et al., *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023 · H. Koschmieder, *Theorie
# der horizontalen Sichtweite*, 1924.
