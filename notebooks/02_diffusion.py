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
# # 02 · Diffusion in one hour: a street out of noise
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/02_diffusion.ipynb)
#
# **In one sentence.** A network that has learnt to tell image from noise is given nothing but noise. Step by step we
# remove what it takes to be noise, and an image remains that nobody has seen before.
#
# **What you will learn:** why we work on *latents*, and what the VAE loses · adding noise in one line · what the
# network is trained to predict, and at which times that is hard · one DDIM step by hand, then the whole loop ·
# training a diffusion model of your own, from `loss.backward()` to samples · where the prompt comes in:
# *cross-attention* and *guidance* · the effect of the number of steps and of fresh noise.
#
# **Level:** intermediate. **What you need:** some PyTorch, and the problem from
# [01 The domain gap](01_domain_gap.ipynb); no knowledge of diffusion.
#
# **How long it takes:** an hour to read, two to three minutes to run on two CPU cores.
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
# The libraries that every diffusion model needs:

# %%
import time
from functools import partial
from itertools import pairwise

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

# %% [markdown]
# And the modules of the course: `zodi.diffusion` loads a model and converts images to latents and back,
# `zodi.sampling` draws. Here its loop is written out line by line, in the same symbols.
# %%
from zodi import diffusion, sampling, transfer
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, SOURCE, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support import explore, plots, runs
from zodi.support.gallery import gallery, sheet, show_scenes

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
domain: str = "snow"  # what the scenes are drawn as, one of the renderer's domains
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps from noise to image
scene_count: int = 3  # scenes that a number is averaged over
training_steps: int = 6000  # length of the training of your own diffusion model
seed: int = 0  # decides all noise
out: str = "../results/course/diffusion"  # folder of this notebook's results

# %% [markdown]
# ## The result first
#
# The model gets a sentence, a *layout* (which class is where) and noise, but no photograph and no rendered image. The
# part that reads the layout is called a ControlNet. Here it is a black box; [03](03_layout_to_image.ipynb) opens it.

# %%
mini = diffusion.load(model)
scene_seeds = scenes.TEST_SEEDS[3 : 3 + scene_count]
labels = np.stack([scenes.render(scene_seed).label for scene_seed in scene_seeds])
layouts = CITYSCAPES.colorize(labels)
# The ControlNet takes layouts as (B, 3, H, W) between 0 and 1.
control = torch.from_numpy(layouts).permute(0, 3, 1, 2).float() / 255
embeds = {
    name: diffusion.embed(mini, [DOMAINS[name].prompt + PROMPT_SUFFIX])
    for name in (SOURCE, *TARGETS)
}
negative_embeds = diffusion.embed(mini, [NEGATIVE_PROMPT])

# %% [markdown]
# The same scenes as images, for later: in clear weather, as input, and in the target domain, for comparison.

# %%
clear = np.stack([scenes.render(seed, SOURCE).image for seed in scene_seeds])
truth = np.stack([scenes.render(seed, domain).image for seed in scene_seeds])
z_0 = diffusion.encode(mini, torch.from_numpy(clear))

# %% [markdown]
# One noise, one layout, two sentences. We keep the intermediate result after every step. Everything that happens
# inside the call is written out below.

# %%
generator = torch.Generator().manual_seed(seed)
noise = [
    torch.randn(z_0.shape, generator=generator) for _ in range(num_inference_steps + 1)
]
from_noise = {
    "num_inference_steps": num_inference_steps,
    "scheduler": mini.scheduler,
    "method": "controlnet_only",
    "strength": 1.0,
}
films = {
    name: [noise[0][:1]] for name in (domain, "game" if domain != "game" else "snow")
}
for name, film in films.items():
    transfer.transfer_latents(
        mini.unet, mini.controlnet, torch.zeros_like(z_0[:1]), embeds[name],
        negative_embeds, control[:1], guidance_scale=mini.defaults.guidance_scale,
        noise=[n[:1] for n in noise], **from_noise,
        callback=lambda step, t, z, film=film: film.append(z),
    )  # fmt: skip

# %% [markdown]
# We have kept *latents*; the model's decoder turns them into pictures.

# %%
early = num_inference_steps // 2
latents = torch.cat([films[domain][early], *(film[-1] for film in films.values())])
pictures = [layouts[0], *diffusion.decode(mini, latents).numpy()]
titles = [f"“{DOMAINS[domain].prompt}”, after {early} steps"]
titles += [f"“{DOMAINS[name].prompt}”, at the end" for name in films]
show_scenes(
    gallery(pictures, ["layout", *titles]),
    "From noise to a street. Both pictures below have the same layout and began with "
    "the same noise; only the sentence differs. You should see one street in two kinds "
    "of weather, and above it a stage on the way.",
)

# %% [markdown]
# ## Latents: a smaller place to work in
#
# Diffusion on pixels is slow. A *VAE* has learnt to compress an image $x$ into a small array, the latent $z_0 =
# E(x)$, and to expand it again, $D(z_0) \approx x$. It was trained before the diffusion model and is not changed by
# it. The latents are scaled to about unit variance over all images, because noise of unit variance will be added to
# them.

# %% tags=["nbval-check-output"]
pd.Series(
    {
        "image": f"{clear[0].shape}, {clear[0].size} numbers",
        "latent": f"{tuple(z_0[0].shape)}, {z_0[0].numel()} numbers",
    },
    name="shape",
).to_frame()

# %% [markdown]
# What does the compression cost? We encode and decode without any diffusion:

# %%
round_trips = diffusion.decode(mini, z_0).numpy()
errors = np.abs(clear.astype(int) - round_trips).mean(-1)
pictures = [clear[0], round_trips[0], (4 * errors[0]).clip(0, 255).astype(np.uint8)]
show_scenes(
    gallery(pictures, ["x", "D(E(x))", "difference, 4 times"]),
    "An image, its round trip, and what was lost. You should see that the loss lies on "
    f"the outlines; on average it is {errors[0].mean():.1f} of 255 grey levels.",
)

# %% [markdown]
# One place of the latent stands for a square of the image, and whatever is thinner than that square is lost first. The
# label maps let us measure this class by class:

# %%
names = enumerate(CITYSCAPES.names)
lost = {
    name: errors[labels == i].mean() for i, name in names if (labels == i).sum() > 100
}
lost = pd.Series(lost).sort_values(ascending=False)
plots.show(
    plots.class_bars(lost.to_frame(), "mean absolute error (grey levels, 0 to 255)"),
    f"What the round trip loses, by class, over {scene_count} scenes. You should see "
    f"the most in {lost.index[0]}, the least in {lost.index[-1]}. No model that works "
    "on these latents can draw better than this.",
)

# %% [markdown]
# ## Forward: adding noise
#
# Time $t$ runs from 0 (image) to 999 (noise). Each tick keeps most of the latent and adds a little Gaussian noise
# $\epsilon_t$: $z_t = \sqrt{1 - \beta_t}\, z_{t-1} + \sqrt{\beta_t}\, \epsilon_t$. Sums of Gaussians are Gaussian, so
# all ticks up to $t$ can be combined into one jump:
#
# $$ z_t = \alpha_t z_0 + \sigma_t \epsilon, \qquad \epsilon \sim \mathcal N(0, 1), \qquad
# \alpha_t^2 = \bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad \sigma_t^2 = 1 - \bar\alpha_t . $$
#
# This half needs no network. In the code $\alpha_t$ is `alpha[t]` and $\sigma_t$ is `sigma[t]`.

# %%
alpha_bar = mini.scheduler.alphas_cumprod
alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
assert torch.allclose(alpha_bar, (1 - mini.scheduler.betas).cumprod(0), atol=1e-6)


def add_noise(z_0, eps, t):
    """Latents at time t."""
    return alpha[t] * z_0 + sigma[t] * eps


theirs = mini.scheduler.add_noise(z_0, noise[0], torch.tensor([600]))
assert torch.allclose(add_noise(z_0, noise[0], 600), theirs, atol=1e-6)

# %% [markdown]
# These two weights are all there is to a *noise schedule*. Their squares add up to one, so the variance stays the
# same. The *signal-to-noise ratio* $\alpha_t^2 / \sigma_t^2$ expresses the same thing on one scale, in decibels: at
# 0 dB there is as much image as noise.

# %%
t_axis = np.arange(1000)
snr = 20 * torch.log10(alpha / sigma)[:-1].numpy()
equal = int(np.abs(snr).argmin())
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
left.plot(t_axis, alpha, label="image, $\\alpha_t$")
left.plot(t_axis, sigma, label="noise, $\\sigma_t$")
left.set(xlabel="time t", ylabel="weight")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
right.plot(t_axis[:-1], snr, color="0.3")
right.axvline(equal, color="0.6", linewidth=0.8)
right.set(xlabel="time t", ylabel="signal-to-noise ratio (dB)")
plots.show(
    figure,
    "The schedule. You should see image give way to noise: both weigh the same at "
    f"t = {equal}, and at t = 999 the weight of the image is {alpha[-1]:.3f}.",
)

# %% [markdown]
# How much of the image is left at each time? The decoder shows it.

# %%
times = [100, 400, 700, 900]
noised = torch.cat([add_noise(z_0[:1], noise[0][:1], t) for t in times])
pictures = diffusion.decode(mini, noised[1:3]).numpy()
show_scenes(
    gallery(list(pictures), [f"t = {t}" for t in times[1:3]]),
    "Decoded latents at two times. You should see detail go first: at the earlier "
    "time the coarse arrangement of light and dark is left, at the later one hardly "
    "anything that an eye can find.",
)

# %% [markdown]
# ## What the network predicts
#
# The network, a *UNet*, looks at $z_t$, at $t$ and at the prompt, and should say which part is image and which is
# noise. It may answer with the noise $\epsilon$, as Stable Diffusion 1.5 does, or with the *velocity*
#
# $$ v = \alpha_t\, \epsilon - \sigma_t\, z_0 , $$
#
# as ours does. In terms of an angle with $\cos\varphi = \alpha_t$ and $\sin\varphi = \sigma_t$, the pair $(z_t, v)$ is
# the pair $(z_0, \epsilon)$ rotated by $\varphi$, and rotating it back gives both parts at once. The noise alone does
# so too, by solving $z_t = \alpha_t z_0 + \sigma_t \epsilon$ for $z_0$:
#
# | the network answers with | $\hat\epsilon$ | $\hat z_0$ |
# |---|---|---|
# | the velocity $v$ | $\sigma_t z_t + \alpha_t v$ | $\alpha_t z_t - \sigma_t v$ |
# | the noise $\epsilon$ | $\epsilon$ | $(z_t - \sigma_t \epsilon) / \alpha_t$ |
#
# Which of the two it is, a checkpoint's scheduler says. Everything below goes through these two functions, so it runs
# with either.

# %%
answers_with = mini.scheduler.config.prediction_type
assert answers_with in ("v_prediction", "epsilon"), answers_with


def target(z_0, eps, t):
    """What the network should answer."""
    return eps if answers_with == "epsilon" else alpha[t] * eps - sigma[t] * z_0


def split(answer, z_t, t):
    """The noise and the clean latents that an answer stands for: eps_hat, z_0_hat."""
    if answers_with == "epsilon":
        return answer, (z_t - sigma[t] * answer) / alpha[t]
    return sigma[t] * z_t + alpha[t] * answer, alpha[t] * z_t - sigma[t] * answer


# %% [markdown]
# With the true answer both parts come back, and the module splits in the same way:

# %%
z_t, right_answer = add_noise(z_0, noise[0], 700), target(z_0, noise[0], 700)
eps_hat, z_0_hat = split(right_answer, z_t, 700)
assert torch.allclose(eps_hat, noise[0], atol=1e-4)
assert torch.allclose(z_0_hat, z_0, atol=1e-4)
schedule = sampling.paper_scheduler(mini.scheduler)
theirs = schedule.split(right_answer, z_t, 700)
assert torch.allclose(eps_hat, theirs[0], atol=1e-4)
assert torch.allclose(z_0_hat, theirs[1], atol=1e-4)
answers_with

# %% [markdown]
# At $t = 0$ the velocity is the noise; at $t = 999$ it is the image with a minus sign. A network that predicts it always
# has to predict the part that is hidden. ([A1](A1_how_the_miniature_was_made.ipynb) explains why this matters at
# night.) The next cell computes the network's answer; the ControlNet passes what it has read from the layout to the
# UNet.


# %%
@torch.inference_mode()
def predict(z_t, t, prompt, layout=control):
    """What the network answers for the latents z_t at time t."""
    prompt, layout = prompt.expand(len(z_t), -1, -1), layout[: len(z_t)]
    down, mid = mini.controlnet(
        z_t, t, prompt, controlnet_cond=layout, return_dict=False
    )
    added = {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": mid,
    }
    return mini.unet(z_t, t, prompt, **added).sample


# %% [markdown]
# ## What it was trained to do
#
# Training is regression. Take an image, draw a time and some noise, mix them, ask the network for its answer
# $f_\theta$, and compare with the right one $f$, which is $v$ or $\epsilon$:
#
# $$ L = \mathbb E_{z_0, \epsilon, t}\, \lVert f_\theta(z_t, t, \text{prompt}, \text{layout}) - f \rVert^2 . $$
#
# The next cell is a complete training step of a diffusion model, apart from `loss.backward()` and the optimizer. They
# follow below, for a model of your own.


# %%
def training_loss(z_0, eps, t, prompt, layout):
    """Mean squared error of the answer at time t."""
    answer = predict(add_noise(z_0, eps, t), t, prompt, layout)
    return (answer - target(z_0, eps, t)).square().mean().item()


t = torch.randint(1000, (), generator=generator).item()
f"loss at t = {t}: {training_loss(z_0, noise[0], t, embeds[SOURCE], control):.3f}"

# %% [markdown]
# Training averages over all times. Here we look at each time separately. At which times is the question hard, and how
# much do the prompt and the layout help there? During the miniature's training each of them was sometimes left out (the
# prompt replaced by the negative one, the layout by black), so the network can also answer without them.

# %%
z_domain = diffusion.encode(mini, torch.from_numpy(truth))
grid = [10, 100, 200, 300, 400, 500, 600, 700, 800, 900, 960, 999]
black = torch.zeros_like(control)
inputs = {
    "prompt and layout": (embeds[domain], control),
    "layout only": (negative_embeds, control),
    "prompt only": (embeds[domain], black),
}
losses = pd.DataFrame(
    {
        name: [training_loss(z_domain, noise[0], t, *given) for t in grid]
        for name, given in inputs.items()
    },
    index=pd.Index(grid, name="t"),
)

# %% [markdown]
# What does leaving out the prompt or the layout cost, early and late?

# %%
factors = losses.div(losses["prompt and layout"], axis=0)
early, late = factors.loc[100], factors.iloc[-1]
plots.show(
    plots.curve(
        losses.reset_index(), "t", list(inputs), "time t", "mean squared error"
    ),
    f"Training loss over time, {scene_count} scenes that the network has not seen. You "
    f"should see that without the prompt the loss is {early['layout only']:.2f} times "
    f"as large at t = 100 and {late['layout only']:.1f} times at t = 999; without the "
    f"layout {early['prompt only']:.2f} and {late['prompt only']:.1f} times.",
)

# %% [markdown]
# As long as the image shows through the noise, it reveals its own weather. Close to pure noise only the prompt says
# what the weather is. This is why the first steps of the drawing decide the light, and why the prompt can change it.
#
# A network that predicts the noise instead has another loss, not another task: an error $\delta$ in $v$ is an error
# $\alpha_t\, \delta$ in $\hat\epsilon$ and $-\sigma_t\, \delta$ in $\hat z_0$. So near pure noise, where $\alpha_t$
# vanishes, the noise is easy to predict and the image is hard; near the image it is the other way round. Whatever the
# network answers with, the two errors are in the ratio $\sigma_t^2 / \alpha_t^2$:

# %%
z_t = add_noise(z_0, noise[0], 700)
eps_hat, z_0_hat = split(predict(z_t, 700, embeds[SOURCE]), z_t, 700)
in_noise = (eps_hat - noise[0]).square().mean()
in_image = (z_0_hat - z_0).square().mean()
assert np.isclose(in_image, (sigma[700] / alpha[700]) ** 2 * in_noise, rtol=1e-2)

# %% [markdown]
# ## One guess is not enough
#
# If the network can predict the clean latent at any time, why not ask once and be done? The reason is the loss. Many
# images could be hidden under the same noise, and the answer with the smallest *squared* error is their mean.


# %%
def detail(images):
    """Mean difference of neighbouring grey values: small for a blurred image."""
    grey = np.asarray(images, float).mean(-1)
    return sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (-1, -2)) / 2


guesses = [
    split(predict(z_t, t, embeds[SOURCE]), z_t, t)[1]
    for z_t, t in zip(noised[:, None], times, strict=True)
]
guessed = list(diffusion.decode(mini, torch.cat(guesses)).numpy())
share = [100 * detail(image) / detail(round_trips[0]) for image in guessed]
show_scenes(
    gallery(guessed[1:3], [f"one guess, from t = {t}" for t in times[1:3]]),
    "One guess from each of the noisy latents above. You should see that the network "
    "finds what the eye does not, and more averaged away at the later time. Detail, "
    "as a share of the image's: "
    + ", ".join(f"{s:.0f} % from t = {t}" for s, t in zip(share, times, strict=True))
    + ".",
)

# %% [markdown]
# ## A step by hand
#
# So we walk instead of jumping: trust the guess a little, go to a time $p$ slightly below $t$, and ask again. A
# *DDIM* step splits the latent into image and noise and mixes them again with less noise:
#
# $$ z_p = \alpha_p\, \hat z_0 + \sqrt{\sigma_p^2 - s^2}\, \hat\epsilon + s\, n, \qquad
# s = \eta\, \sigma_p \sqrt{1 - \Big( \frac{\alpha_t\, \sigma_p}{\alpha_p\, \sigma_t} \Big)^2} . $$
#
# It is the equation of the forward process, with the guesses in place of the truth. $\eta$ says how much of the
# predicted noise is replaced by fresh noise $n$: none at 0 (DDIM), and at 1 as much as in the original, slower DDPM.


# %%
def ddim_step(answer, z_t, t, p, n, eta=1.0):
    """From time t down to p: z_p, and the clean latents the network believes in."""
    eps_hat, z_0_hat = split(answer, z_t, t)
    s = eta * sigma[p] * (1 - (alpha[t] * sigma[p] / (alpha[p] * sigma[t])) ** 2).sqrt()
    rest = (sigma[p] ** 2 - s**2).clamp(min=0).sqrt()
    return alpha[p] * z_0_hat + rest * eps_hat + s * n, z_0_hat


# %% [markdown]
# The library `diffusers` takes the same step:

# %%
schedule.set_timesteps(num_inference_steps)
step_length = 1000 // num_inference_steps
t = 1 + (num_inference_steps - 1) * step_length
answer = predict(noise[0], t, embeds[domain])
for eta in (0.0, 1.0):
    by_hand, _ = ddim_step(answer, noise[0], t, t - step_length, noise[1], eta)
    theirs = schedule.step(answer, t, noise[0], eta=eta, variance_noise=noise[1])
    scale = by_hand.abs().max().item()
    assert torch.allclose(by_hand, theirs.prev_sample, atol=1e-4 * scale)

# %% [markdown]
# ## The loop
#
# $N$ steps visit the times $1 + k \lfloor 1000 / N \rfloor$ in descending order and end at 0. That is all there is to
# sampling: noise in, latents out. `network` is any function that answers for latents and a time.


# %%
def sample(network, noise, times, eta=1.0):
    """Latents drawn from noise[0] with fresh noise[1:], and the guesses on the way."""
    z, *fresh = noise
    beliefs = []
    for t, p, n in zip(times, [*times[1:], 0], fresh, strict=True):
        z, z_0_hat = ddim_step(network(z, t), z, t, p, n, eta)
        beliefs.append(z_0_hat)
    return z, beliefs


def visited(steps):
    """The times of a walk of so many steps, downwards."""
    return [1 + k * (1000 // steps) for k in range(steps)][::-1]


# %% [markdown]
# We compare with the module, using the same noise:


# %%
def close(z, reference):
    """Equal, but for rounding."""
    return torch.allclose(z, reference, atol=1e-3 * z.abs().max().item())


plain = partial(predict, prompt=embeds[domain])
drawn, beliefs = sample(plain, noise, visited(num_inference_steps))
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z_0, embeds[domain], None, control,
    guidance_scale=1.0, noise=noise, **from_noise,
)  # fmt: skip
assert close(drawn, reference)

# %% [markdown]
# Watch how the network's guess of the clean image changes on the way.

# %%
true_round_trips = diffusion.decode(mini, z_domain).numpy()
chosen = (0, num_inference_steps - 1)
latents = torch.cat([beliefs[i][:1] for i in chosen])
film = list(diffusion.decode(mini, latents).numpy())
gains = [100 * detail(image) / detail(true_round_trips[0]) for image in film]
show_scenes(
    gallery(film, [f"guess at t = {visited(num_inference_steps)[i]}" for i in chosen]),
    f"The first and the last of {num_inference_steps} guesses of the clean image. You "
    "should see the light and the large things in the first, the edges only in the "
    f"last: detail goes from {gains[0]:.0f} % to {gains[-1]:.0f} % of the true "
    "scene's.",
)

# %% [markdown]
# ## Train one yourself
#
# Nothing so far asked what $z$ is. An image of two pixels is a point in the plane, so a data set of such images can be
# drawn on paper. Ours has the shape of a car. Like the latents, the points are scaled to unit variance.

# %%
picture = Image.new("L", (240, 130))
pen = ImageDraw.Draw(picture)
pen.polygon([(45, 62), (80, 12), (160, 12), (200, 62)], fill=255)
pen.rounded_rectangle((20, 60, 220, 92), 8, fill=255)
pen.polygon([(65, 60), (88, 22), (112, 22), (112, 60)], fill=0)
pen.polygon([(122, 60), (122, 22), (152, 22), (180, 60)], fill=0)
for x in (62, 178):
    pen.ellipse((x - 29, 63, x + 29, 121), fill=0)
    pen.ellipse((x - 20, 72, x + 20, 112), fill=255)
car = torch.from_numpy(np.array(picture) > 0)
y_x = car.nonzero().float()
middle, spread = y_x.mean(0), y_x.std(0)
points = ((y_x - middle) / spread).flip(1)
f"{len(points):,} points, mean {points.mean():.2f}, variance {points.var():.2f}"

# %% [markdown]
# The network is small: it reads a point and a time, with sines and cosines of both so that it can tell neighbouring
# points apart, and answers with two numbers.


# %%
class PointNet(nn.Module):
    """Three hidden layers: z_t (B, 2) and t in, the answer (B, 2) out."""

    def __init__(self, width=128, frequencies=6):
        super().__init__()
        self.frequencies = np.pi / 4 * 2.0 ** torch.arange(frequencies)
        sizes = [3 * (1 + 2 * frequencies), width, width, width]
        pairs = pairwise(sizes)
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, z_t, t):
        time = torch.as_tensor(t).expand(len(z_t), 1) / 500 - 1
        x = torch.cat([z_t, time], dim=1)
        angles = (x[..., None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))


# %% [markdown]
# Sampling is the loop from above, word for word. How good are the samples? We count how many lie on the car.


# %%
@torch.inference_mode()
def draw_points(network, count=1200, steps=50):
    """Points from noise."""
    fresh = [torch.randn(count, 2, generator=generator) for _ in range(steps + 1)]
    return sample(network, fresh, visited(steps))[0]


def on_car(z):
    """Share of points that lie on the car, percent."""
    y, x = (z.flip(1) * spread + middle).round().long().unbind(1)
    inside = (y >= 0) & (y < car.shape[0]) & (x >= 0) & (x < car.shape[1])
    return 100 * car[y[inside], x[inside]].sum().item() / len(z)


# %% [markdown]
# And here is all of the training: draw images, times and noise, mix, ask, compare, `loss.backward()`, step. Now and
# then we look at what the network draws.

# %%
torch.manual_seed(seed)
network, drawings, begin = PointNet(), {}, time.perf_counter()
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, training_steps)
for step in range(training_steps + 1):
    if step in (0, training_steps // 60, training_steps // 10, training_steps):
        drawings[step] = draw_points(network)
    of_batch = torch.randint(len(points), (1024,), generator=generator)
    t = torch.randint(1000, (1024, 1), generator=generator)
    eps = torch.randn(1024, 2, generator=generator)
    answer = network(add_noise(points[of_batch], eps, t), t)
    loss = (answer - target(points[of_batch], eps, t)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    fall.step()
seconds = time.perf_counter() - begin

# %% [markdown]
# Does it work?

# %%
panels = {"noise": torch.randn(1200, 2, generator=generator)}
panels |= {f"after {step} steps": z for step, z in drawings.items()}
panels["data"] = points[torch.randint(len(points), (1200,), generator=generator)]
figure, axes = plt.subplots(2, 3, figsize=(8.2, 4.2), layout="constrained")
for ax, (name, z) in zip(axes.flat, panels.items(), strict=False):
    ax.plot(*z.T, ".", markersize=1.5, color="C0")
    ax.set(title=f"{name}: {on_car(z):.0f} % on it", xlim=(-3, 3), ylim=(2.5, -2.5))
    ax.set(xticks=[], yticks=[])
plots.show(
    figure,
    f"A diffusion model of your own, trained in {seconds:.0f} s on this machine. You "
    "should see a cloud become a car: of the points, "
    f"{on_car(panels['noise']):.0f} % lie on it in pure noise and "
    f"{on_car(drawings[training_steps]):.0f} % after {training_steps} steps.",
)

# %% [markdown]
# Everything larger differs in the network, which becomes a UNet, and in what it may read beside $z_t$ and $t$: the
# prompt and the layout. We come to the prompt now; the layout is the subject of [03](03_layout_to_image.ipynb).
#
# ## Where the prompt comes in: cross-attention
#
# A text encoder turns the prompt into one vector per token, $e_1, \dots, e_L$, padded to a fixed length. Inside the
# UNet, every place $i$ of a feature map $h$ asks a *query*, every token offers a *key* and a *value*, and the place
# takes a mean of the values, weighted by how well query and key agree:
#
# $$ q_i = W_q h_i, \quad k_j = W_k e_j, \quad u_j = W_u e_j, $$
#
# $$ a_{ij} = \operatorname{softmax}_j \frac{q_i^\top k_j}{\sqrt d}, \qquad h_i \leftarrow h_i + W_o \sum_j a_{ij} u_j . $$
#
# So the prompt reaches the picture place by place. We remember what the layers compute for one scene at $t = 700$:

# %%
blocks = {n: m for n, m in mini.unet.named_modules() if n.endswith("attn2")}
parts, seen, hooks = ("to_q", "to_k", "to_v"), {}, []


def remember(layer, key):
    """Keep what a layer gives for the first image."""
    keep = lambda module, inputs, output: seen.update({key: output[0]})  # noqa: E731
    hooks.append(layer.register_forward_hook(keep))


for name, block in blocks.items():
    remember(block, (name, "out"))
    for part in parts:
        remember(getattr(block, part), (name, part))
predict(add_noise(z_domain[:1], noise[0][:1], 700), 700, embeds[domain])
for hook in hooks:
    hook.remove()

# %% [markdown]
# By hand, with several *heads* that each attend on their own:


# %%
def heads(name, part):
    """A layer's output as (heads, places or tokens, d)."""
    return seen[name, part].unflatten(-1, (blocks[name].heads, -1)).transpose(0, 1)


a = {}
for name, block in blocks.items():
    q, k, u = (heads(name, part) for part in parts)
    a[name] = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    mixed = (a[name] @ u).transpose(0, 1).flatten(1)
    by_hand = block.to_out[0](mixed)
    assert close(by_hand, seen[name, "out"])
f"{len(a)} layers with cross-attention, {len(q)} heads, {k.shape[1]} tokens each"

# %% [markdown]
# Which tokens are read? The weights add up to one over the tokens; here is their mean over all places, heads and
# layers.

# %%
words = mini.tokenizer.tokenize(DOMAINS[domain].prompt + PROMPT_SUFFIX)
words = ["(start)", *(word.removesuffix("</w>") for word in words), "(end)"]
weights = torch.stack([w.mean((0, 1)) for w in a.values()]).mean(0).tolist()
bars = dict(zip(words, weights, strict=False)) | {
    "(padding)": sum(weights[len(words) :])
}
spelt = mini.tokenizer.tokenize(DOMAINS[domain].prompt)
before = len(spelt)  # tokens up to the one that names the domain, and (start)
knowing = sum(weights[before:])
frame = pd.DataFrame({"weight": [100 * value for value in bars.values()]}, index=bars)
plots.show(
    plots.class_bars(frame, "mean attention weight (%)"),
    f"Who is read. You should see “{max(bars, key=bars.get)}” with the most weight and "
    f"“{words[before]}” with {100 * weights[before]:.0f} %. Together with all that "
    f"follows it, “{words[before]}” has {100 * knowing:.0f} %.",
)

# %% [markdown]
# Why the tokens behind it? A text encoder like CLIP's is *causal*: every token's vector has read the words before it,
# and only those. So all vectors from the domain's name on, the padding included, know the weather, and those before it
# do not. *Where* in the picture is the knowing part read?


# %%
def place_map(w):
    """Weight of the tokens that know the domain, as an array of the latent's size."""
    height, width = z_0.shape[2:]
    scale = (height * width / w.shape[1]) ** 0.5
    size = (1, 1, round(height / scale), round(width / scale))
    known = w[..., before:].sum(-1).mean(0).reshape(size)
    return F.interpolate(known, size=labels.shape[1:])[0, 0]


known = torch.stack([place_map(w) for w in a.values()]).mean(0).numpy()

# %% [markdown]
# Beside the layout:

# %%
of_class = {
    name: 100 * known[labels[0] == i].mean()
    for i, name in enumerate(CITYSCAPES.names)
    if (labels[0] == i).sum() >= 200
}
most, least = max(of_class, key=of_class.get), min(of_class, key=of_class.get)
show_scenes(
    gallery([layouts[0], known], ["layout", "where the domain is read (white: most)"]),
    "Where the prompt is read, mean over all layers. You should see large squares, one "
    f"per place of the feature map. By class, {most} reads it most "
    f"({of_class[most]:.0f} % of the weight), {least} least ({of_class[least]:.0f} %).",
)

# %% [markdown]
# ## Guidance: more of what the prompt says
#
# A network that is given a prompt may still half ignore it. *Classifier-free guidance* asks twice, once with the
# prompt and once with a *negative* prompt, and multiplies the difference by the guidance scale $w$:
#
# $$ f = f_\theta(z_t, t, \text{negative}) + w\, \big( f_\theta(z_t, t, \text{prompt}) - f_\theta(z_t, t, \text{negative}) \big) . $$
#
# At $w = 1$ the negative prompt cancels out; above 1, every step costs two evaluations.


# %%
def guided(z_t, t, prompt, w):
    """An answer away from the negative prompt, towards the prompt."""
    negative = predict(z_t, t, negative_embeds)
    return negative + w * (predict(z_t, t, prompt) - negative)


own_scale = mini.defaults.guidance_scale
drawing = partial(guided, prompt=embeds[domain], w=own_scale)
drawn, _ = sample(drawing, noise, visited(num_inference_steps))
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z_0, embeds[domain], negative_embeds, control,
    guidance_scale=own_scale, noise=noise, **from_noise,
)  # fmt: skip
assert close(drawn, reference)

# %% [markdown]
# How much guidance is good? We draw from the same noise at increasing scales, in clear weather. The number to watch is
# the colourfulness: the mean difference between the largest and the smallest of red, green and blue.


# %%
def colourfulness(image):
    """Mean difference of the largest and the smallest colour value of a pixel."""
    return np.ptp(image.astype(float), axis=-1).mean()


scales, first = [1, 2, 4, 8], [n[:1] for n in noise]
pictures = []
for w in scales:
    with_w = partial(guided, prompt=embeds[SOURCE], w=w)
    latents, _ = sample(with_w, first, visited(num_inference_steps))
    pictures.append(diffusion.decode(mini, latents)[0].numpy())
colours = [100 * colourfulness(p) / colourfulness(clear[0]) for p in pictures]
show_scenes(
    gallery(pictures[::3], [f"{SOURCE}, w = {w}" for w in scales[::3]]),
    "The least and the most guidance of four scales. You should see other colours and "
    "harder edges. Colourfulness, as a share of the true scene's: "
    + ", ".join(f"{c:.0f} % at w = {w}" for c, w in zip(colours, scales, strict=True))
    + ".",
)

# %% [markdown]
# The best scale depends on the network, not on the method: this checkpoint comes with its own
# (`defaults.guidance_scale`), and the paper uses 9 with Stable Diffusion.
#
# ## Fresh noise or none
#
# With $\eta = 0$ the initial noise decides everything. With $\eta = 1$ each step adds new noise, so one start can
# lead to many results.

# %%
start_noise, shape = noise[0][:1], noise[0][:1].shape
fresh = [[torch.randn(shape, generator=generator) for _ in noise[1:]] for _ in range(2)]
walks = [([start_noise, *n], eta) for n in fresh for eta in (1.0, 0.0)]
ends = [sample(drawing, n, visited(num_inference_steps), eta)[0] for n, eta in walks]
assert torch.equal(ends[1], ends[3])

# %% [markdown]
# What stays the same in all of them?

# %%
one, without, other, _ = diffusion.decode(mini, torch.cat(ends)).numpy()
apart = [np.abs(one.astype(int) - image).mean() for image in (other, without)]
show_scenes(
    gallery([one, other], ["η = 1", "η = 1, other fresh noise"]),
    "Two drawings that begin with the same noise. You should see that what the layout "
    f"fixes stays, and the rest changes: they are {apart[0]:.1f} grey levels apart. "
    "Without fresh noise every run gives one and the same picture, "
    f"{apart[1]:.1f} grey levels from the first.",
)

# %% [markdown]
# ## How many steps?
#
# Every step costs the same, so the time is proportional to the number of steps. What do we gain from more of them? We
# draw all scenes with between a third and almost three times our usual number of steps, with and without fresh noise.

# %%
counts = sorted({max(2, num_inference_steps * k // 3) for k in (1, 2, 4, 8)})
by_steps, taken = {}, {}
for count in counts:
    fresh = [torch.randn(z_0.shape, generator=generator) for _ in range(count)]
    for eta in (1.0, 0.0):
        # Time of the processor, so that other programs on the machine do not count.
        begin = time.process_time()
        latents, _ = sample(drawing, [noise[0], *fresh], visited(count), eta)
        by_steps[eta, count] = diffusion.decode(mini, latents).numpy()
        taken[eta, count] = (time.process_time() - begin) / scene_count
ends = (counts[0], counts[-1])
pictures = [by_steps[1.0, count][0] for count in ends]
of_a_step = 1000 * sum(taken.values()) / sum(2 * counts)
show_scenes(
    gallery(pictures, [f"{n} steps, from t = {visited(n)[0]}" for n in ends]),
    "The same scene with the fewest and the most steps, η = 1. You should see it gain "
    f"detail. A step takes {of_a_step:.0f} ms of one core per picture.",
)

# %% [markdown]
# In numbers, over all scenes and compared with the true ones: how far off is the brightness, how far off is the
# picture, and how much detail is there?

# %%
quality = pd.DataFrame(
    {
        "eta": eta,
        "steps": count,
        "seconds": taken[eta, count],
        "brightness": images.mean() - true_round_trips.mean(),
        "distance": np.abs(images.astype(int) - true_round_trips).mean(),
        "detail": 100 * detail(images) / detail(true_round_trips),
    }
    for (eta, count), images in by_steps.items()
)

# %% [markdown]
# Quality against time; each point is one number of steps.


# %%
def figure_of(panels):
    """One panel per measure, over the time of a picture."""
    figure, axes = plt.subplots(1, 3, figsize=(8.8, 2.4), layout="constrained")
    for ax, (name, ylabel) in zip(axes, panels.items(), strict=True):
        for eta, part in quality.groupby("eta"):
            ax.plot(part["seconds"], part[name], marker=".", label=f"η = {eta:g}")
        ax.set(xlabel="CPU time per picture (s)", ylabel=ylabel)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


panels = {
    "brightness": "brightness error (grey levels)",
    "distance": "distance (grey levels)",
    "detail": "detail (%)",
}

# %% [markdown]
# And from the fewest to the most steps:

# %%
few, many = (quality.set_index(["steps", "eta"]).loc[n] for n in ends)
nearest = quality.groupby("steps")["distance"].mean().idxmin()
nearer = "with" if many["distance"][1.0] < many["distance"][0.0] else "without"
sharper = "with" if many["detail"][1.0] > many["detail"][0.0] else "without"
plots.show(
    figure_of(panels),
    f"Drawings of {scene_count} scenes with {', '.join(map(str, counts))} steps, "
    "compared with the true scenes. You should see the detail go from "
    f"{few['detail'].mean():.0f} % to {many['detail'].mean():.0f} %; the distance is "
    f"least at {nearest} steps, means over both η. With {ends[1]} steps the picture is "
    f"nearer to the truth {nearer} fresh noise, and has more detail {sharper} it.",
)

# %% [markdown]
# The fewest steps have a handicap that can be removed: look at the time at which they start, then at the second
# pitfall.
#
# ## Draw your own
#
# All settings of this notebook in one place. The layout is at the top, the model's drawing from noise in the middle, and
# the renderer's true image at the bottom.


# %%
def draw(scene, prompt, steps, guidance, eta, noise_seed):
    """One drawing; of the image that is handed over only the size is used."""
    rendered = scenes.render(scene, prompt)
    layout = CITYSCAPES.colorize(rendered.label)
    changes = {"num_inference_steps": steps, "guidance_scale": guidance, "eta": eta}
    config = transfer.domain_config(
        prompt, "controlnet_only", mini.defaults, **changes, seed=noise_seed
    )
    (image,) = transfer.transfer_images(
        mini, [np.zeros_like(layout)], [layout], ["drawing"], config
    )
    return sheet([[layout], [image], [rendered.image]])


# %% [markdown]
# Keep the layout and change the noise. What changes with it, and what stays fixed?

# %%
slider = partial(widgets.FloatSlider, continuous_update=False)
whole = partial(widgets.IntSlider, continuous_update=False)
choice, scene = widgets.Dropdown, scene_seeds[0]
explore.Explorer(
    draw,
    {
        "scene": whole(scene, scene, scene + 50, description="layout"),
        "prompt": choice(options=(SOURCE, *TARGETS), description="prompt"),
        "steps": choice(options=counts[:3], value=counts[:2][-1], description="steps"),
        "guidance": slider(own_scale, min=1, max=12, step=0.5, description="guidance"),
        "eta": slider(1, min=0, max=1, step=0.25, description="η"),
        "noise_seed": whole(0, 0, 20, description="noise"),
    },
    alt=f"Layout, drawing from noise, true scene; prompt “{DOMAINS[SOURCE].prompt}”.",
)

# %% [markdown]
# You should see the layout kept whatever the noise, and colours and windows change with it.
#
# ## Pitfalls
#
# - **Time is not a step.** $t$ counts up to 999 whatever the number of steps, and the network only sees $t$.
# - **Too much noise at the start.** The paper's times begin below 999 (at 751 with four steps), yet sampling starts
#   from pure noise, while at that time the network has been trained to find some of the image. The fewer the steps,
#   the larger the mismatch; exercise 2 repairs it.
# - **Velocity taken for noise.** The two have the same shape, so there is no error message; exercise 3 shows the
#   result. The checkpoint says which of the two it predicts, in `scheduler.config.prediction_type`.
# - **A forgotten scaling factor.** Unscaled latents have the wrong variance for the schedule. `diffusion.encode` and
#   `diffusion.decode` take care of it.
#
# ## Try it
#
# **1. Predict:** draw in a *single* step from $t = 999$. What will it look like? Then look.
#
# <details><summary>Solution</summary>
#
# ```python
# single = diffusion.decode(mini, sample(plain, noise[:2], [999])[0])[0].numpy()
# pictures, names = [layouts[0], single, truth[0]], ["layout", "one step", "truth"]
# show_scenes(gallery(pictures, names), "A single guess.")
# ```
# It is the mean of all images that fit the prompt and the layout. The light and the large areas are there; everything
# that can vary from image to image is blurred.
# </details>
#
# **2. Modify:** let four steps begin at 999, where there is only noise: 999, 749, 499, 249. Compare with
# `visited(4)`.
#
# <details><summary>Solution</summary>
#
# ```python
# walks = {"from 751": visited(4), "from 999": [999, 749, 499, 249]}
# five = [torch.randn(z_0.shape, generator=generator) for _ in range(5)]
# titles, pictures = [], []
# for name, walk in walks.items():
#     images = diffusion.decode(mini, sample(drawing, five, walk)[0]).numpy()
#     off = np.abs(images.astype(int) - true_round_trips).mean()
#     titles.append(f"{name}: {off:.1f} grey levels off")
#     pictures.append(images[0])
# show_scenes(gallery(pictures, titles), "Distance to the true scenes.")
# ```
# It takes the same time, and what the network is told about the noise is now true. The titles say what that is worth.
# S. Lin et al. call the two choices *leading* and *trailing*; the paper's program uses the first, and so do we.
# </details>
#
# **3. Break:** give the sampler the noise where it expects the velocity, or the velocity where it expects the noise.
# What does it draw?
#
# <details><summary>Solution</summary>
#
# ```python
# def confused(z_t, t):
#     eps_hat, z_0_hat = split(drawing(z_t, t), z_t, t)
#     v = alpha[t] * eps_hat - sigma[t] * z_0_hat
#     return v if answers_with == "epsilon" else eps_hat
#
#
# latents, _ = sample(confused, noise, visited(num_inference_steps))
# wrong = diffusion.decode(mini, latents)[0].numpy()
# pictures, names = [wrong, truth[0]], ["confused", "true scene"]
# show_scenes(gallery(pictures, names), "No error, no street.")
# ```
# </details>
#
# **4. Go on:** teach your own model another shape. Which details does it learn last?
#
# <details><summary>Solution</summary>
#
# Change the polygons of `picture` and run the section again. Thin parts and sharp corners come last: they differ from
# their surroundings only at small $t$, which few of the drawn times are, and the network has to bend most there.
# </details>

# %% [markdown]
# ## Recap
#
# The encoder makes images small. Adding noise is one line and needs no network. The network has learnt to predict
# what is hidden, image or noise. One guess is a blur; many small steps give an image. The prompt is read by
# cross-attention, and guidance exaggerates what it changes. The image began as noise and contained nothing of any
# photograph. How to keep a given photograph is the next question.

# %%
metrics = {
    "domain": domain,
    "round_trip_error": errors.mean(),
    "loss": losses.reset_index().to_dict("records"),
    "points_on_the_car": {str(step): on_car(z) for step, z in drawings.items()},
    "colourfulness_by_guidance": dict(zip(map(str, scales), colours, strict=True)),
    "steps": quality.to_dict("records"),
}
settings = {"model": model, "num_inference_steps": num_inference_steps}
settings |= {"scene_count": scene_count, "training_steps": training_steps, "seed": seed}
_ = runs.save_metrics(out, "diffusion", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [03 Layout-to-image](03_layout_to_image.ipynb): the same walk, but starting from an image that we want to
# keep.
#
# **References.** The paper, Section 3 (diffusion models) · J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion
# Probabilistic Models*, NeurIPS 2020 · J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 ·
# J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance*, 2022 · T. Salimans, J. Ho, *Progressive Distillation for
# Fast Sampling of Diffusion Models* (v-prediction), ICLR 2022 · A. Vaswani et al., *Attention Is All You Need*, NeurIPS
# 2017 · A. Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (CLIP), ICML 2021 ·
# R. Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022 · S. Lin et al., *Common
# Diffusion Noise Schedules and Sample Steps are Flawed*, WACV 2024.
