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
# network is trained to predict, and at which times that is hard · one DDIM step by hand, then the whole loop · how a
# prompt steers it: *guidance* · the effect of the number of steps and of fresh noise.
#
# **What you need:** some PyTorch, and the problem from [01 The domain gap](01_domain_gap.ipynb). No knowledge of
# diffusion.
#
# **How long it takes:** an hour to read, a minute or two to run on two CPU cores.

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
# `zodi.diffusion` loads a model and converts images to latents and back. `zodi.sampling` draws; here its loop is
# written out line by line.

# %%
import time
from functools import partial

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from zodi import diffusion, sampling, transfer
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, SOURCE, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support import explore, plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
domain: str = "snow"  # what the scenes are drawn as, one of the renderer's domains
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps from noise to image
scene_count: int = 3  # scenes that a number is averaged over
seed: int = 0  # rules all noise
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
embeds = {name: diffusion.embed(mini, [DOMAINS[name].prompt + PROMPT_SUFFIX]) for name in (SOURCE, *TARGETS)}
negative_embeds = diffusion.embed(mini, [NEGATIVE_PROMPT])

# %% [markdown]
# The same scenes as images, for later: in clear weather, as input, and in the target domain, for comparison.

# %%
clear = np.stack([scenes.render(scene_seed, SOURCE).image for scene_seed in scene_seeds])
truth = np.stack([scenes.render(scene_seed, domain).image for scene_seed in scene_seeds])
z0 = diffusion.encode(mini, torch.from_numpy(clear))

# %% [markdown]
# One noise, one layout, two sentences. We keep the intermediate result after every step. Everything that happens
# inside the call is written out below.

# %%
generator = torch.Generator().manual_seed(seed)
noise = [torch.randn(z0.shape, generator=generator) for _ in range(num_inference_steps + 1)]
films = {name: [noise[0][:1]] for name in (domain, "night" if domain != "night" else "snow")}
for name, film in films.items():
    transfer.transfer_latents(
        mini.unet, mini.controlnet, torch.zeros_like(z0[:1]), embeds[name], negative_embeds, control[:1],
        strength=1.0, num_inference_steps=num_inference_steps, guidance_scale=mini.defaults.guidance_scale,
        noise=[n[:1] for n in noise], scheduler=mini.scheduler, method="controlnet_only", callback=lambda step, t, z, film=film: film.append(z),
    )  # fmt: skip

# %% [markdown]
# We have kept *latents*; the model's decoder turns them into pictures.

# %%
shown = np.linspace(0, num_inference_steps, 4).round().astype(int)
rows = [[layouts[0], *diffusion.decode(mini, torch.cat([film[i] for i in shown])).numpy()] for film in films.values()]
plots.show(
    plots.image_grid(rows, ["layout", "noise", *(f"after {i} steps" for i in shown[1:])], list(films), width=8),
    "From noise to a street. Both rows begin with the same noise and have the same layout; only the sentence differs: "
    + " and ".join(f"“{DOMAINS[name].prompt}”" for name in films) + ".",
)  # fmt: skip

# %% [markdown]
# ## Latents: a smaller place to work in
#
# Diffusion on pixels is slow. A *VAE* has learnt to compress an image $x$ into a small array, the latent $z_0 =
# E(x)$, and to expand it again, $D(z_0) \approx x$. It was trained before the diffusion model and is not changed
# afterwards. The latents are scaled to about unit variance over all images, because noise of unit variance will be
# added to them.

# %% tags=["nbval-check-output"]
pd.Series(
    {
        "image": f"{clear[0].shape}, {clear[0].size} numbers",
        "latent": f"{tuple(z0[0].shape)}, {z0[0].numel()} numbers",
    },
    name="shape",
).to_frame()

# %% [markdown]
# What does the compression cost? We encode and decode without any diffusion:

# %%
round_trips = diffusion.decode(mini, z0).numpy()
errors = np.abs(clear.astype(int) - round_trips).mean(-1)
pictures = [clear[0], round_trips[0], (4 * errors[0]).clip(0, 255).astype(np.uint8)]
plots.show(
    plots.image_grid([pictures], ["x", "D(E(x))", "difference, 4 times"]),
    f"One image, its round trip and what was lost, mean {errors[0].mean():.1f} of 255 grey levels.",
)

# %% [markdown]
# The difference shows the outlines of the objects in the scene. One pixel of the latent stands for a square of the
# image, and whatever is thinner than that square is lost first. The label maps let us measure this class by class:

# %%
lost = {name: errors[labels == i].mean() for i, name in enumerate(CITYSCAPES.names) if (labels == i).sum() > 100}
lost = pd.Series(lost).sort_values(ascending=False)
plots.show(
    plots.class_bars(lost.to_frame(), "mean absolute error (grey levels, 0 to 255)"),
    f"What the round trip loses, by class, over {scene_count} scenes: most in {lost.index[0]}, least in {lost.index[-1]}. "
    "No model that works on these latents can draw better than this.",
)

# %% [markdown]
# ## Forward: adding noise
#
# Time $t$ runs from 0 (image) to 999 (noise). Each tick keeps most of the latent and adds a little Gaussian noise:
# $z_t = \sqrt{1 - \beta_t}\, z_{t-1} + \sqrt{\beta_t}\, \epsilon_t$. Sums of Gaussians are Gaussian, so all ticks up
# to $t$ can be combined into one jump, with $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$:
#
# $$ z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal N(0, 1) . $$
#
# This half needs no network. In the code $\bar\alpha$ is `ac`.

# %%
ac = mini.scheduler.alphas_cumprod
assert torch.allclose(ac, (1 - mini.scheduler.betas).cumprod(0), atol=1e-6)


def add_noise(z, eps, t):
    """Latents at time t."""
    return ac[t].sqrt() * z + (1 - ac[t]).sqrt() * eps


assert torch.allclose(add_noise(z0, noise[0], 600), mini.scheduler.add_noise(z0, noise[0], torch.tensor([600])))

# %% [markdown]
# These two weights are all there is to a *noise schedule*. Their squares add up to one, so the variance stays the
# same. The *signal-to-noise ratio* $\bar\alpha_t / (1 - \bar\alpha_t)$ expresses the same thing on one scale, in
# decibels: at 0 dB there is as much image as noise.

# %%
t_axis = np.arange(1000)
snr = 10 * np.log10((ac / (1 - ac)).numpy()[:-1])
equal = int(np.abs(snr).argmin())
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
left.plot(t_axis, ac.sqrt(), label="image, $\\sqrt{\\bar\\alpha_t}$")
left.plot(t_axis, (1 - ac).sqrt(), label="noise, $\\sqrt{1 - \\bar\\alpha_t}$")
left.set(xlabel="time t", ylabel="weight (1)")
left.legend()
right.plot(t_axis[:-1], snr)
right.axvline(equal, color="0.6", linewidth=0.8)
right.set(xlabel="time t", ylabel="signal-to-noise ratio (dB)")
plots.show(
    figure,
    f"The schedule. At t = {equal} image and noise weigh the same; at t = 999 the weight of the image is "
    f"{ac[-1].sqrt():.3f}.",
)

# %% [markdown]
# How much of the image is left at each time? The decoder shows it.

# %%
times = [100, 300, 500, 700, 900]
noised = torch.cat([add_noise(z0[:1], noise[0][:1], t) for t in times])
plots.show(
    plots.image_grid([list(diffusion.decode(mini, noised).numpy())], [f"t = {t}" for t in times], width=8),
    "Decoded latents at five times. Detail goes first, the coarse arrangement of light and dark last.",
)

# %% [markdown]
# ## What the network predicts
#
# The network, a *UNet*, looks at $z_t$, at $t$ and at the prompt, and should say which part is image and which is
# noise. It may answer with the noise $\epsilon$, as Stable Diffusion does, or with the *velocity*
#
# $$ v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, z_0 , $$
#
# as ours does. In terms of an angle with $\cos\varphi = \sqrt{\bar\alpha_t}$ and $\sin\varphi = \sqrt{1 -
# \bar\alpha_t}$, the pair $(z_t, v)$ is the pair $(z_0, \epsilon)$ rotated by $\varphi$. Rotating it back gives both
# answers at once:
#
# $$ \hat z_0 = \sqrt{\bar\alpha_t}\, z_t - \sqrt{1 - \bar\alpha_t}\, v, \qquad
# \hat\epsilon = \sqrt{1 - \bar\alpha_t}\, z_t + \sqrt{\bar\alpha_t}\, v . $$


# %%
def split(z, v, t):
    """The clean latent and the noise that velocity v stands for."""
    return ac[t].sqrt() * z - (1 - ac[t]).sqrt() * v, (1 - ac[t]).sqrt() * z + ac[t].sqrt() * v


true_v = ac[700].sqrt() * noise[0] - (1 - ac[700]).sqrt() * z0
image_part, noise_part = split(add_noise(z0, noise[0], 700), true_v, 700)
assert torch.allclose(image_part, z0, atol=1e-5) and torch.allclose(noise_part, noise[0], atol=1e-5)

# %% [markdown]
# At $t = 0$ the velocity is the noise; at $t = 999$ it is the image with a minus sign. The network always has to
# predict the part that is hidden. ([A1](A1_how_the_miniature_was_made.ipynb) explains why this matters at night.) The
# next cell computes the network's answer; the ControlNet passes what it has read from the layout to the UNet.


# %%
@torch.inference_mode()
def velocity(z, t, prompt, layout=control):
    """What the network takes for v in the latents z at time t."""
    prompt, layout = prompt.expand(len(z), -1, -1), layout[: len(z)]
    down, mid = mini.controlnet(z, t, prompt, controlnet_cond=layout, return_dict=False)
    return mini.unet(z, t, prompt, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


# %% [markdown]
# ## What it was trained to do
#
# Training is regression. Take an image, draw a time and some noise, mix them, ask the network, and compare:
#
# $$ L = \mathbb E_{z_0, \epsilon, t}\, \lVert v_\theta(z_t, t, \text{prompt}, \text{layout}) - v \rVert^2 . $$
#
# The next cell is a complete training step of a diffusion model, apart from `loss.backward()` and the optimizer.


# %%
def training_loss(z, eps, t, prompt, layout):
    """Mean squared error of the velocity at time t."""
    v = ac[t].sqrt() * eps - (1 - ac[t]).sqrt() * z
    return (velocity(add_noise(z, eps, t), t, prompt, layout) - v).square().mean().item()


t = torch.randint(1000, (), generator=generator).item()
f"loss at t = {t}: {training_loss(z0, noise[0], t, embeds[SOURCE], control):.3f}"

# %% [markdown]
# Training averages over all times. Here we look at each time separately. At which times is the question hard, and how
# much do the prompt and the layout help there? During training each of them was sometimes left out (the prompt
# replaced by the negative one, the layout by black), so the network can also answer without them.

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
    {name: [training_loss(z_domain, noise[0], t, *given) for t in grid] for name, given in inputs.items()}, index=grid
)
plots.show(
    plots.curve(losses.rename_axis("t").reset_index(), "t", list(inputs), "time t", "mean squared error of v (1)"),
    f"Training loss over time, {scene_count} scenes that the network has not seen. "
    "On the left it must name fine noise, on the right it must make up the image.",
)

# %% [markdown]
# As long as the image shows through the noise, it reveals its own weather: the lines with and without the prompt
# coincide. Close to pure noise only the prompt says what the weather is, and without it the loss rises sharply. The
# layout helps at all times, most of all where nothing of the image is left. This is why the first steps of the
# drawing decide the light, and why the prompt can change it.
#
# Predicting the noise instead amounts to training the same network with a different loss: an error $\delta$ in $v$ is
# an error $\sqrt{\bar\alpha_t}\,\delta$ in $\hat\epsilon$ and $-\sqrt{1 - \bar\alpha_t}\,\delta$ in $\hat z_0$. So
# near pure noise, where $\bar\alpha_t$ vanishes, the noise is easy to predict and the image is hard; near the image
# it is the other way round.

# %%
z_t = add_noise(z0, noise[0], 700)
guess, guessed_noise = split(z_t, velocity(z_t, 700, embeds[SOURCE]), 700)
in_v = training_loss(z0, noise[0], 700, embeds[SOURCE], control)
assert np.isclose((guessed_noise - noise[0]).square().mean(), ac[700] * in_v, rtol=1e-3)
assert np.isclose((guess - z0).square().mean(), (1 - ac[700]) * in_v, rtol=1e-3)

# %% [markdown]
# ## One guess is not enough
#
# If the network can predict the clean latent at any time, why not ask once and be done? The reason is the loss. Many
# images could be hidden under the same noise, and the answer with the smallest *squared* error is their mean.


# %%
def detail(images):
    """Mean absolute difference of neighbouring grey values: small for a blurred image."""
    grey = np.asarray(images, float).mean(-1)
    return (np.abs(np.diff(grey, axis=-1)).mean() + np.abs(np.diff(grey, axis=-2)).mean()) / 2


guesses = [split(z, velocity(z, t, embeds[SOURCE]), t)[0] for z, t in zip(noised[:, None], times, strict=True)]
guessed = list(diffusion.decode(mini, torch.cat(guesses)).numpy())
share = [100 * detail(image) / detail(round_trips[0]) for image in guessed]
plots.show(
    plots.image_grid([guessed], [f"from t = {t}" for t in times]),
    "One guess from each of the noisy latents above. Detail, as a share of the image's: "
    + ", ".join(f"{s:.0f} %" for s in share) + ". The later the time, the more is averaged away.",
)  # fmt: skip

# %% [markdown]
# ## A step by hand
#
# So we walk instead of jumping: trust the guess a little, go to a time $p$ slightly below $t$, and ask again. A
# *DDIM* step splits the latent into image and noise and mixes them again with less noise:
#
# $$ z_p = \sqrt{\bar\alpha_p}\, \hat z_0 + \sqrt{1 - \bar\alpha_p - \sigma^2}\, \hat\epsilon + \sigma n, \qquad
# \sigma = \eta \sqrt{\tfrac{1 - \bar\alpha_p}{1 - \bar\alpha_t}} \sqrt{1 - \tfrac{\bar\alpha_t}{\bar\alpha_p}} . $$
#
# It is the equation of the forward process, with the guesses in place of the truth. $\eta$ says how much of the
# predicted noise is replaced by fresh noise $n$: none at 0 (DDIM), and at 1 as much as in the original, slower DDPM.


# %%
def ddim_step(z, v, t, p, n, eta=1.0):
    """From time t down to p: the next latents, and the clean ones that the network believes in."""
    clean, eps = split(z, v, t)
    sigma = eta * ((1 - ac[p]) / (1 - ac[t])).sqrt() * (1 - ac[t] / ac[p]).sqrt()
    return ac[p].sqrt() * clean + (1 - ac[p] - sigma**2).clamp(min=0).sqrt() * eps + sigma * n, clean


# %% [markdown]
# The library `diffusers` takes the same step:

# %%
scheduler = sampling.paper_scheduler(mini.scheduler)
scheduler.set_timesteps(num_inference_steps)
step_length = 1000 // num_inference_steps
t = 1 + (num_inference_steps - 1) * step_length
v = velocity(noise[0], t, embeds[domain])
for eta in (0.0, 1.0):
    by_hand, _ = ddim_step(noise[0], v, t, t - step_length, noise[1], eta)
    theirs = scheduler.step(v, t, noise[0], eta=eta, variance_noise=noise[1]).prev_sample
    assert torch.allclose(by_hand, theirs, atol=1e-4)

# %% [markdown]
# ## The loop
#
# $N$ steps visit the times $1 + k \lfloor 1000 / N \rfloor$ in descending order and end at 0. That is all there is to
# sampling: noise in, latents out. `model` is any function that returns a velocity.


# %%
def sample(model, noise, times, eta=1.0):
    """Latents drawn from noise[0] with noise[1:] as fresh noise, and the clean latents believed in on the way."""
    z, *fresh = noise
    beliefs = []
    for t, p, n in zip(times, [*times[1:], 0], fresh, strict=True):
        z, clean = ddim_step(z, model(z, t), t, p, n, eta)
        beliefs.append(clean)
    return z, beliefs


def visited(steps):
    """The times of a walk of so many steps, downwards."""
    return [1 + k * (1000 // steps) for k in range(steps)][::-1]


# %% [markdown]
# We compare with the module, using the same noise:

# %%
drawn, beliefs = sample(partial(velocity, prompt=embeds[domain]), noise, visited(num_inference_steps))
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z0, embeds[domain], None, control, strength=1.0, guidance_scale=1.0,
    num_inference_steps=num_inference_steps, noise=noise, scheduler=mini.scheduler, method="controlnet_only",
)  # fmt: skip
assert torch.allclose(drawn, reference, atol=1e-3 * drawn.abs().max().item())

# %% [markdown]
# Watch how the network's guess of the clean image changes on the way.

# %%
true_round_trips = diffusion.decode(mini, z_domain).numpy()
chosen = np.linspace(0, num_inference_steps - 1, 5).round().astype(int)
film = list(diffusion.decode(mini, torch.cat([beliefs[i][:1] for i in chosen])).numpy())
plots.show(
    plots.image_grid([film], [f"at t = {visited(num_inference_steps)[i]}" for i in chosen]),
    f"The guesses of the clean image at five of {num_inference_steps} times. First the light, then the large things, last "
    f"the edges: detail rises from {100 * detail(film[0]) / detail(true_round_trips[0]):.0f} % to "
    f"{100 * detail(film[-1]) / detail(true_round_trips[0]):.0f} % of the true scene's.",
)

# %% [markdown]
# ## Guidance: more of what the prompt says
#
# A network that is given a prompt may still half ignore it. *Classifier-free guidance* asks twice, once with the
# prompt and once with a *negative* prompt, and multiplies the difference by the guidance scale $g$:
#
# $$ v = v_\theta(z, t, \text{negative}) + g\, \big( v_\theta(z, t, \text{prompt}) - v_\theta(z, t, \text{negative}) \big) . $$
#
# At $g = 1$ the negative prompt cancels out; above 1, every step costs two evaluations.


# %%
def guided(z, t, prompt, scale):
    """Velocity away from the negative prompt, towards the prompt."""
    negative = velocity(z, t, negative_embeds)
    return negative + scale * (velocity(z, t, prompt) - negative)


drawing = partial(guided, prompt=embeds[domain], scale=mini.defaults.guidance_scale)
drawn, _ = sample(drawing, noise, visited(num_inference_steps))
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z0, embeds[domain], negative_embeds, control, strength=1.0, noise=noise,
    guidance_scale=mini.defaults.guidance_scale, num_inference_steps=num_inference_steps, scheduler=mini.scheduler,
    method="controlnet_only",
)  # fmt: skip
assert torch.allclose(drawn, reference, atol=1e-3 * drawn.abs().max().item())

# %% [markdown]
# How much guidance is good? We draw from the same noise at increasing scales, for two prompts. The number to watch is
# the colourfulness: the mean difference between the largest and the smallest of red, green and blue.


# %%
def colourfulness(image):
    """Mean difference of the largest and the smallest colour value of a pixel."""
    return np.ptp(image.astype(float), axis=-1).mean()


scales = [1, 2, 4, 8, 12]
rows = []
for name in (SOURCE, domain):
    models = [partial(guided, prompt=embeds[name], scale=scale) for scale in scales]
    latents = [sample(m, [n[:1] for n in noise], visited(num_inference_steps))[0] for m in models]
    rows.append(list(diffusion.decode(mini, torch.cat(latents)).numpy()))
colours = [100 * colourfulness(image) / colourfulness(clear[0]) for image in rows[0]]
plots.show(
    plots.image_grid(rows, [f"g = {scale}" for scale in scales], (SOURCE, domain), width=8),
    f"Guidance scale from 1 to 12. Colourfulness in the row {SOURCE}, as a share of the true scene's: "
    + ", ".join(f"{c:.0f} %" for c in colours) + ".",
)  # fmt: skip

# %% [markdown]
# Too little guidance leaves the picture pale; too much oversaturates it. The best scale depends on the network, not
# on the method: this checkpoint comes with its own (`defaults.guidance_scale`), and the paper uses 9 with Stable
# Diffusion.

# %% [markdown]
# ## Fresh noise or none
#
# With $\eta = 0$ the initial noise decides everything. With $\eta = 1$ each step adds new noise, so one start can
# lead to many results.

# %%
start_noise = noise[0][:1]
fresh = [[torch.randn(start_noise.shape, generator=generator) for _ in noise[1:]] for _ in range(2)]
ends = [sample(drawing, [start_noise, *n], visited(num_inference_steps), eta)[0] for n in fresh for eta in (1.0, 0.0)]
assert torch.equal(ends[1], ends[3])

# %% [markdown]
# What stays the same in all of them? Whatever the layout fixes.

# %%
one, without, other, _ = diffusion.decode(mini, torch.cat(ends)).numpy()
apart = np.abs(one.astype(int) - other).mean()
plots.show(
    plots.image_grid([[one, other, without, truth[0]]], ["η = 1", "η = 1, other fresh noise", "η = 0", "true scene"]),
    f"The three drawings begin with the same noise. The two with fresh noise are {apart:.1f} grey levels apart; without it, "
    "every run gives the third.",
)

# %% [markdown]
# ## How many steps?
#
# Every step costs the same, so the time is proportional to the number of steps. What do we gain from more of them? We
# draw all scenes with between a third and almost three times our usual number of steps, with and without fresh noise.

# %%
counts = sorted({max(2, num_inference_steps * k // 3) for k in (1, 2, 4, 8)})
drawings, seconds = {}, {}
for count in counts:
    fresh = [noise[0], *(torch.randn(z0.shape, generator=generator) for _ in range(count))]
    for eta in (1.0, 0.0):
        # Time of the processor, so that other programs on the machine do not count.
        begin = time.process_time()
        drawings[eta, count] = diffusion.decode(mini, sample(drawing, fresh, visited(count), eta)[0]).numpy()
        seconds[eta, count] = (time.process_time() - begin) / scene_count
rows = [[drawings[eta, count][0] for count in counts] for eta in (1.0, 0.0)]
plots.show(
    plots.image_grid(rows, [f"{n} steps, from t = {visited(n)[0]}" for n in counts], ["η = 1", "η = 0"], width=8),
    "The same scene with few and with many steps. A step takes "
    f"{1000 * sum(seconds.values()) / sum(2 * counts):.0f} ms of one core for a picture.",
)

# %% [markdown]
# In numbers, over all scenes and compared with the true ones: how far off is the brightness, how far off is the
# picture, and how much detail is there?

# %%
quality = pd.DataFrame(
    {
        "eta": eta,
        "steps": count,
        "seconds": seconds[eta, count],
        "brightness": images.mean() - true_round_trips.mean(),
        "distance": np.abs(images.astype(int) - true_round_trips).mean(),
        "detail": 100 * detail(images) / detail(true_round_trips),
    }
    for (eta, count), images in drawings.items()
)

# %% [markdown]
# Quality against time; each point is one number of steps.

# %%
panels = {"brightness": "brightness error (grey levels)", "distance": "distance (grey levels)", "detail": "detail (%)"}
figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
for ax, (name, ylabel) in zip(axes, panels.items(), strict=True):
    for eta, part in quality.groupby("eta"):
        ax.plot(part["seconds"], part[name], marker=".", label=f"η = {eta:g}")
    ax.set(xlabel="CPU time of a picture (s)", ylabel=ylabel)
axes[0].legend()
plots.show(
    figure,
    f"Drawings of {scene_count} scenes with {', '.join(map(str, counts))} steps, compared with the true scenes: error of the "
    "mean brightness, mean absolute difference, and detail as a share of the truth's.",
)

# %% [markdown]
# From eight steps on, the brightness is right and the distance no longer changes; further steps only add detail.
# Without fresh noise there is more detail; with fresh noise the picture is a little closer to the truth. Four steps
# are too dark, for a reason that can be repaired: look at the time at which they start, then at the second pitfall.

# %% [markdown]
# ## Draw your own
#
# All settings of this notebook in one place. The layout is on the left, the model's drawing from noise in the middle,
# and the renderer's true image on the right.


# %%
def draw(scene, prompt, steps, guidance, eta, noise_seed):
    """One drawing of the explorer; of the image that is handed over only the size is used."""
    rendered = scenes.render(scene, prompt)
    layout = CITYSCAPES.colorize(rendered.label)
    changes = {"num_inference_steps": steps, "guidance_scale": guidance, "eta": eta, "seed": noise_seed}
    config = transfer.domain_config(prompt, "controlnet_only", mini.defaults, **changes)
    (image,) = transfer.transfer_images(mini, [np.zeros_like(layout)], [layout], ["drawing"], config)
    return np.hstack([layout, image, rendered.image])


# %% [markdown]
# Keep the layout and change the noise. What changes with it, and what stays fixed?

# %%
slider = {"continuous_update": False}
explore.Explorer(
    draw,
    {
        "scene": widgets.IntSlider(scene_seeds[0], scene_seeds[0], scene_seeds[0] + 50, description="layout", **slider),
        "prompt": widgets.Dropdown(options=(SOURCE, *TARGETS), description="prompt"),
        "steps": widgets.Dropdown(options=counts[:3], value=counts[min(1, len(counts) - 1)], description="steps"),
        "guidance": widgets.FloatSlider(
            mini.defaults.guidance_scale, min=1, max=12, step=0.5, description="guidance", **slider
        ),
        "eta": widgets.FloatSlider(1, min=0, max=1, step=0.25, description="η", **slider),
        "noise_seed": widgets.IntSlider(0, 0, 20, description="noise", **slider),
    },
    alt=f"Layout, drawing from noise and true scene, prompt “{DOMAINS[SOURCE].prompt}”.",
)

# %% [markdown]
# ## Pitfalls
#
# - **Time is not a step.** $t$ counts up to 999 whatever the number of steps, and the network only sees $t$.
# - **Too much noise at the start.** The paper's times begin below 999 (at 751 with four steps), yet sampling starts
#   from pure noise, while at that time the network expects some of the image to remain. The fewer the steps, the
#   larger the mismatch; exercise 2 repairs it.
# - **Velocity taken for noise.** The two have the same shape, so there is no error message; exercise 3 shows the
#   result. The checkpoint says which of the two it predicts, in `scheduler.config.prediction_type`.
# - **A forgotten scaling factor.** Unscaled latents have the wrong variance for the schedule. `diffusion.encode` and
#   `diffusion.decode` take care of it.

# %% [markdown]
# ## Try it
#
# **1. Predict:** draw in a *single* step from $t = 999$. What will it look like? Then look.
#
# <details><summary>Solution</summary>
#
# ```python
# plain = partial(velocity, prompt=embeds[domain])
# single = diffusion.decode(mini, sample(plain, noise[:2], [999])[0])[0].numpy()
# plots.show(plots.image_grid([[layouts[0], single, truth[0]]], ["layout", "one step", "truth"]), "A single guess.")
# ```
# It is the mean of all images that fit the prompt and the layout. The light and the large areas are right; everything
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
# five = [torch.randn(z0.shape, generator=generator) for _ in range(5)]
# pair = {name: diffusion.decode(mini, sample(drawing, five, times)[0]).numpy() for name, times in walks.items()}
# off = [f"{name}: {np.abs(images.astype(int) - true_round_trips).mean():.1f}" for name, images in pair.items()]
# plots.show(plots.image_grid([[images[0] for images in pair.values()]], off), "Distance to the true scenes.")
# ```
# It takes the same time and gives a better picture: what the network is told about the noise is now true. The
# distance is even smaller than that of many steps in the figure. S. Lin et al. call the two choices *leading* and
# *trailing*; the paper's program uses the first, and so do we.
# </details>
#
# **3. Break:** give the sampler the noise where it expects the velocity. What does it draw?
#
# <details><summary>Solution</summary>
#
# ```python
# def confused(z, t):
#     return split(z, drawing(z, t), t)[1]
#
#
# wrong = diffusion.decode(mini, sample(confused, noise, visited(num_inference_steps))[0])[0].numpy()
# plots.show(plots.image_grid([[wrong, truth[0]]], ["velocity taken for noise", "true scene"]), "No error, no street.")
# ```
# </details>

# %% [markdown]
# ## Recap
#
# The encoder makes images small. Adding noise is one line and needs no network. The network has learnt to predict
# what is hidden, image or noise. One guess is a blur; many small steps give an image. Guidance exaggerates what the
# prompt changes. The image began as noise and contained nothing of any photograph. How to keep a given photograph is
# the next question.

# %%
metrics = {
    "domain": domain,
    "round_trip_error": errors.mean(),
    "loss": losses.rename_axis("t").reset_index().to_dict("records"),
    "colourfulness_by_guidance": dict(zip(map(str, scales), colours, strict=True)),
    "steps": quality.to_dict("records"),
}
settings = {"model": model, "num_inference_steps": num_inference_steps, "scene_count": scene_count, "seed": seed}
_ = runs.save_metrics(out, "diffusion", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [03 Layout-to-image](03_layout_to_image.ipynb): the same walk, but starting from an image that we want to
# keep.
#
# **References.** The paper, Section 3 (diffusion models) · J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion
# Probabilistic Models*, NeurIPS 2020 · J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 ·
# J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance*, 2022 · T. Salimans, J. Ho, *Progressive Distillation for
# Fast Sampling of Diffusion Models* (v-prediction), ICLR 2022 · R. Rombach et al., *High-Resolution Image Synthesis
# with Latent Diffusion Models*, CVPR 2022 · S. Lin et al., *Common Diffusion Noise Schedules and Sample Steps are
# Flawed*, WACV 2024.
