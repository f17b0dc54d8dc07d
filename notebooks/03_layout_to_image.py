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
# # 03 · Layout-to-image: the same street at night
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/v0.1.0/notebooks/03_layout_to_image.ipynb)
#
# **In one sentence.** *Stochastic inversion* adds noise to the latent of an image, asks the diffusion model which
# noise was added, and starts redrawing from the model's answer, so that the new image keeps the old scene.
#
# **What you will learn:** what a ControlNet adds, and what happens without the layout, with a wrong one and with
# wrong colours · stochastic inversion in three lines · what pure noise, SDEdit, DDIM inversion and stochastic
# inversion keep of a scene, measured against the *true* target images · what the strength does · two oddities in the
# authors' program.
#
# **What you need:** [02 Diffusion in one hour](02_diffusion.ipynb): latents, $\bar\alpha_t$, the DDIM step, guidance.
#
# **How long it takes:** an hour to read, two minutes to run on two CPU cores.

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
# `zodi.diffusion` loads a model and converts images to latents and back, `zodi.sampling` has a function for every
# method, and `zodi.transfer` calls them.

# %%
import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch

from zodi import diffusion, transfer
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support import explore, plots, runs

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
domain: str = "night"  # target domain, one of the renderer's
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps on the full schedule
scene_count: int = 6  # scenes that a number is averaged over
seed: int = 0  # rules all noise
out: str = "../results/course/layout_to_image"  # folder of this notebook's results

# %% [markdown]
# ## The task
#
# We take a few scenes that the model has never seen. The renderer can draw each of them in every domain, so there is
# a *truth* to compare with, which no real data set offers.

# %%
mini = diffusion.load(model)
scene_seeds = scenes.TEST_SEEDS[3 : 3 + scene_count]
sources = [scenes.render(scene_seed, "clear") for scene_seed in scene_seeds]
images = [scene.image for scene in sources]
layouts = [CITYSCAPES.colorize(scene.label) for scene in sources]
truths = [scenes.render(scene_seed, domain).image for scene_seed in scene_seeds]
keys = [str(scene_seed) for scene_seed in scene_seeds]
common = {"defaults": mini.defaults, "num_inference_steps": num_inference_steps, "seed": seed}

# %% [markdown]
# The image, the layout and a prompt go in. The same street in different weather should come out, so that the label
# map stays true.


# %%
def redraw(count=1, method="stochastic_inversion", name=domain, given=layouts, **changes):
    """The first scenes transferred to the domain `name`, with the layouts `given` and other settings changed."""
    config = transfer.domain_config(name, method, **common | changes)
    return transfer.transfer_images(mini, images[:count], given[:count], keys[:count], config)


pictures = [images[0], layouts[0], redraw()[0], truths[0]]
plots.show(
    plots.image_grid([pictures], ["source image x", "layout", "transferred", "truth"]),
    f"Image, layout and “{DOMAINS[domain].prompt}” go in, the third picture comes out. The truth stays hidden from the model.",
)

# %% [markdown]
# ## What the ControlNet adds
#
# A sentence cannot say where the pavement ends. A *ControlNet* can: it is a copy of the UNet's first half that reads
# the layout as well as $z_t$. Its outputs $c_i$ are added to the features $h_i$ that the UNet passes from its first
# half to its second; nothing else changes:
#
# $$ h_i \leftarrow h_i + c_i(z_t, t, \text{prompt}, \text{layout}) . $$

# %%
ac = mini.scheduler.alphas_cumprod
z0 = diffusion.encode(mini, torch.from_numpy(images[0])[None])
prompt_embeds = diffusion.embed(mini, [DOMAINS[domain].prompt + PROMPT_SUFFIX])
negative_embeds = diffusion.embed(mini, [NEGATIVE_PROMPT])
control = transfer.prepare_layout(layouts[0], layouts[0].shape[:2], mini.defaults.palette)[None]


@torch.inference_mode()
def predict(z, t, embeds, layout=control):
    """Noise that the model sees in z at time t."""
    down, mid = mini.controlnet(z, t, embeds, controlnet_cond=layout, return_dict=False)
    v = mini.unet(z, t, embeds, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    return ac[t].sqrt() * v + (1 - ac[t]).sqrt() * z


# %% [markdown]
# How many such outputs are there, and at which scales? Large arrays can say *where*, small ones *what*.

# %% tags=["nbval-check-output"]
with torch.inference_mode():
    down, mid = mini.controlnet(z0, 900, prompt_embeds, controlnet_cond=control, return_dict=False)
sizes = pd.Series([f"{c.shape[2]} x {c.shape[3]}" for c in (*down, mid)])
sizes.value_counts(sort=False).rename_axis("rows x columns").rename("outputs").to_frame()

# %% [markdown]
# How much does the layout contribute? We draw in clear weather, because night hides what we want to see: once from
# pure noise, where only the prompt and the layout are known, and once from the noised source. We try four layouts:
# the scene's own, none (black), that of another scene, and the scene's own in other colours. `palette` names the
# colours. A ControlNet understands only the colours that it was trained with: those of Cityscapes for the miniature,
# those of ADE20K for the public ControlNet for Stable Diffusion. (The authors' program gives it Cityscapes' colours
# nevertheless; with `palette="ade20k"` both can be tried.)

# %%
black = np.zeros_like(layouts[0])
ade20k = transfer.prepare_layout(layouts[0], black.shape[:2], "ade20k").permute(1, 2, 0).mul(255).byte().numpy()
given = {"own layout": layouts[0], "no layout": black, "another scene's": layouts[1]}
rows = [[*given.values(), ade20k]]
for method, s in (("controlnet_only", 1.0), ("stochastic_inversion", DOMAINS["clear"].strength)):
    plain = [redraw(method=method, name="clear", given=[layout], strength=s)[0] for layout in given.values()]
    rows.append([*plain, redraw(method=method, name="clear", palette="ade20k", strength=s)[0]])

# %% [markdown]
# If the drawing follows the label map, its edges are where the classes change. One number measures this: how many
# times larger the differences between neighbouring pixels are on the borders between classes than elsewhere; 1 means
# that nothing of the layout is kept.


# %%
def border_contrast(image, label):
    """Mean difference of horizontal neighbours across borders of classes, divided by that within classes."""
    steps = np.abs(np.diff(image.mean(2), axis=1))
    border = label[:, 1:] != label[:, :-1]
    return steps[border].mean() / steps[~border].mean()


columns = [*given, "ADE20K's colours"]
follows = {name: [border_contrast(row[i], sources[0].label) for row in rows[1:]] for i, name in enumerate(columns)}
plots.show(
    plots.image_grid(rows, columns, ["layout", "from noise", "from source"]),
    "Clear weather, drawn from pure noise and by stochastic inversion from the source, with four layouts. Contrast on the "
    "borders of the scene's own label map, from noise and from source: "
    + ", ".join(f"{name} {a:.1f} and {b:.1f}" for name, (a, b) in follows.items()) + ".",
)  # fmt: skip

# %% [markdown]
# Without a layout there is no street, only its colours. The layout of another scene is followed, even against the
# image. And wrong colours are worse than they look: there is no error and no warning, and the pavement has become
# something else.

# %% [markdown]
# ## Stochastic inversion
#
# The layout says where a car is, but only the image says which car. The strength $s$ sets how far to go back:
# $t_\text{enc} = \lfloor 1000\, s \rfloor$. The heart of the method is three lines long. Add noise, ask for the
# noise, and rebuild the latent with the *answer*:
#
# $$ z_{t} = \sqrt{\bar\alpha_{t}}\, z_0 + \sqrt{1 - \bar\alpha_{t}}\, \epsilon, \qquad
# \hat\epsilon = \epsilon_\theta(z_t, t, \text{prompt}, \text{layout}), \qquad
# \hat z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \hat\epsilon . $$

# %%
strength = transfer.domain_config(domain, defaults=mini.defaults).strength
generator = torch.Generator().manual_seed(seed)
eps = torch.randn(z0.shape, generator=generator)
t_enc = int(strength * 1000)

z_t = ac[t_enc].sqrt() * z0 + (1 - ac[t_enc]).sqrt() * eps
eps_hat = predict(z_t, t_enc, prompt_embeds)
z_hat = ac[t_enc].sqrt() * z0 + (1 - ac[t_enc]).sqrt() * eps_hat

# %% [markdown]
# The module does exactly the same:

# %%
reference = transfer.stochastic_inversion(
    mini.unet, mini.controlnet, z0, prompt_embeds, control, strength=strength, noise=eps, scheduler=mini.scheduler
)
assert torch.allclose(z_hat, reference, atol=1e-4)

# %% [markdown]
# Why should that help? $\epsilon$ contains nothing of the scene, but $\hat\epsilon$ does: where the model cannot tell
# noise from image, part of the image has moved into it. With $\hat z_0$, the model's guess of the clean latent, the
# three lines reduce to one,
#
# $$ \hat z_t = z_t + \sqrt{\bar\alpha_t}\, (z_0 - \hat z_0) . $$
#
# Whatever the model could not guess from $z_t$, the prompt and the layout is added a second time.

# %%
guess = (z_t - (1 - ac[t_enc]).sqrt() * eps_hat) / ac[t_enc].sqrt()
assert torch.allclose(z_hat, z_t + ac[t_enc].sqrt() * (z0 - guess), atol=1e-4)

# %% [markdown]
# And what did the model fail to guess? Look at the difference between the two noises, once where the transfer starts
# and once at half that time.

# %%
half = t_enc // 2
eps_half = predict(ac[half].sqrt() * z0 + (1 - ac[half]).sqrt() * eps, half, prompt_embeds)
maps = [z0, eps, 4 * (eps_half - eps), 4 * (eps_hat - eps)]
pictures = [(((m[0, 0] / 3).clamp(-1, 1) + 1) * 127.5).byte().numpy() for m in maps]
correlation = [np.corrcoef((e - eps).flatten(), z0.flatten())[0, 1] for e in (eps_half, eps_hat)]
names = ["latent z_0", "noise eps", f"4 (eps_hat - eps), t = {half}", f"4 (eps_hat - eps), t = {t_enc}"]
plots.show(
    plots.image_grid([pictures], names),
    f"First latent channel, grey is zero. Correlation of the differences with the image's latent, all channels: "
    f"{correlation[0]:.2f} at t = {half}, {correlation[1]:.2f} at t = {t_enc}.",
)

# %% [markdown]
# Late in the schedule it is the whole picture, with everything that no layout names (windows, markings, the colour of
# a house), and with its *daylight* too, since the guess is already dark. Early in the schedule it is only the edges.

# %% [markdown]
# ## The walk back
#
# From $\hat z_t$ on, we use the loop derived in [02](02_diffusion.ipynb): guided noise, a guess of the clean latent,
# a DDIM step with fresh noise. Only the beginning is new. Of the $N$ times $1 + k \lfloor 1000 / N \rfloor$ we visit
# the lowest $\lfloor s N \rfloor$.

# %%
grid = [1 + k * (1000 // num_inference_steps) for k in range(int(strength * num_inference_steps))][::-1]
fresh = [torch.randn(z0.shape, generator=generator) for _ in grid]
z = z_hat
for t, p, n in zip(grid, [*grid[1:], 0], fresh, strict=True):
    negative = predict(z, t, negative_embeds)
    e = negative + mini.defaults.guidance_scale * (predict(z, t, prompt_embeds) - negative)
    clean = (z - (1 - ac[t]).sqrt() * e) / ac[t].sqrt()
    sigma = ((1 - ac[p]) / (1 - ac[t])).sqrt() * (1 - ac[t] / ac[p]).sqrt()
    z = ac[p].sqrt() * clean + (1 - ac[p] - sigma**2).sqrt() * e + sigma * n

# %% [markdown]
# `transfer_latents` does the same for a batch. With the same noise it gives the same latent:

# %%
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z0, prompt_embeds, negative_embeds, control,
    strength=strength, num_inference_steps=num_inference_steps, guidance_scale=mini.defaults.guidance_scale,
    noise=[eps, *fresh], scheduler=mini.scheduler,
)  # fmt: skip
assert torch.allclose(z, reference, atol=1e-3 * z.abs().max().item())

# %% [markdown]
# ## The choices, side by side
#
# What else could one start from? *ControlNet only*: pure noise. *SDEdit*: the noised latent $z_t$ itself. *DDIM
# inversion*: noise found by following the DDIM steps all the way up. All of them get the same prompt, layout and
# strength. The *VAE round trip* uses no diffusion, the *photometric* change no model at all.

# %%
by_method, seconds = {}, {}
for method in transfer.METHODS:
    if method != "instruct_pix2pix":  # which needs a checkpoint of its own
        # Time of the processor, so that other programs on the machine do not count.
        begin = time.process_time()
        by_method[method] = redraw(scene_count, method)
        seconds[method] = (time.process_time() - begin) / scene_count

# %% [markdown]
# Which of them keep the street, and which have reached the new domain? Look at the cars and at the edge of the
# pavement.

# %%
pictures = {name: result[0] for name, result in by_method.items()}
pictures |= {"source": images[0], "truth": truths[0], "layout": layouts[0]}
row = list(pictures.values())
plots.show(
    plots.image_grid([row[:3], row[3:6], row[6:]], titles=list(pictures)),
    f"One scene on its way to {domain} by every method, with its source, the true target image and the layout below.",
)

# %% [markdown]
# One scene may mislead, so the numbers are means over all our scenes. There are two distances, from the *source* (is
# it still the same picture?) and from the *truth* (is it the right one?). Both are mean absolute differences of grey
# values, from 0 to 255; lower is closer. The third number is the contrast on borders, as above, which is best when it
# equals the truth's.


# %% tags=["distances"]
def distance(results, others):
    """Mean absolute difference of grey values."""
    return np.abs(np.stack(results).astype(int) - np.stack(others)).mean()


def measure(results):
    """Distances and contrast on the borders of classes, means over scenes."""
    kept = np.mean([border_contrast(image, scene.label) for image, scene in zip(results, sources, strict=True)])
    return {"to the source": distance(results, images), "to the truth": distance(results, truths), "on borders": kept}


table = pd.DataFrame({name: measure(results) for name, results in by_method.items()}).T
table["CPU seconds an image"] = pd.Series(seconds)
table = table.sort_values("to the truth")
table.loc["truth"] = measure(truths)
table.style.format("{:.1f}", na_rep="").format("{:.2f}", subset=["on borders"])

# %% [markdown]
# Read the table with care. At this strength hardly anything of the source's latent is left at the start, so pure
# noise, SDEdit and stochastic inversion draw almost the same picture, and the less daylight a method carries over
# from the source, the closer it comes to the truth. DDIM inversion carries over most: windows and markings, and a
# grey light. The photometric change is dark everywhere, but no lamp is lit. Which images *train* best is another
# question; [05](05_adaptation.ipynb) asks it.

# %% [markdown]
# ## Strength
#
# Low strength keeps the image and its domain; high strength changes the domain and may lose the scene. At which
# strength does the starting point matter? We compare stochastic inversion with SDEdit:

# %%
strengths = [0.25, 0.5, 0.75, strength]
redrawn = {
    (method, s): redraw(scene_count, method, strength=s) if s != strength else by_method[method]
    for method in ("stochastic_inversion", "sdedit")
    for s in strengths
}
rows = [[redrawn[method, s][0] for s in strengths] for method in ("stochastic_inversion", "sdedit")]
plots.show(
    plots.image_grid(rows, [f"strength {s}" for s in strengths], ["stoch. inversion", "SDEdit"]),
    f"One scene on its way to {domain} at four strengths, the last one this checkpoint's own for {domain}.",
)

# %% [markdown]
# The same, averaged over all scenes:

# %%
lines = pd.DataFrame([{"method": m, "strength": s} | measure(results) for (m, s), results in redrawn.items()])
lines.pivot(index="strength", columns="method", values=["to the source", "to the truth", "on borders"]).round(1)

# %% [markdown]
# At every strength stochastic inversion stays closer to the source: it puts back what the model did not guess,
# daylight included. In the middle of the range the daylight and the prompt contradict each other, and the model
# answers with colours and outlines that belong to no domain. The tipping point is at a high strength, between the
# last two columns of the figure.

# %% [markdown]
# The paper gives each domain its own strength, found for Stable Diffusion; a checkpoint may come with others. The
# table shows both:

# %%
pd.DataFrame({
    "the paper": {name: DOMAINS[name].strength for name in TARGETS},
    mini.name: {name: transfer.domain_config(name, defaults=mini.defaults).strength for name in TARGETS},
}).T  # fmt: skip

# %% [markdown]
# ## The missing realignment
#
# We keep one oddity of the authors' program: the latent is noised at $t_\text{enc}$, but denoised as if it were at
# the next *lower* time of the grid. How much clean signal does the step assume, and how much is there?

# %%
aligned = redraw(scene_count, align=True)
results = {"as published": by_method["stochastic_inversion"], "aligned": aligned, "truth": truths}
to_truth = {name: distance(result, truths) for name, result in results.items()}
encoded, assumed = ac[t_enc].sqrt().item(), ac[grid[0]].sqrt().item()
plots.show(
    plots.image_grid([result[:4] for result in results.values()], [f"scene {key}" for key in keys[:4]], list(results)),
    f"Encoded at t = {t_enc} (signal {encoded:.3f}), denoised from t = {grid[0]} (signal {assumed:.3f}). The aligned variant "
    "encodes where the denoising starts. Distance to the truth over all scenes: "
    f"as published {to_truth['as published']:.1f}, aligned {to_truth['aligned']:.1f}.",
)

# %% [markdown]
# The first step assumes that its latent is cleaner than it is, so the daylight remaining in it looks weak and the
# prompt wins. The oddity acts like additional strength. In the aligned variant the remaining daylight outweighs the
# prompt in some scenes, and they stay bright; the strength would have to be chosen again.

# %% [markdown]
# ## One noise for all
#
# The second oddity: the authors' program resets the seed for every image, so all images get the *same* noise
# (`noise="paper"`). We seed by file name, which is still reproducible but different for every image
# (`noise="per_image"`). Is the difference visible? We transfer every scene twice, with two seeds, and subtract. What
# remains is what the noise has drawn.

# %%
effects = {}
for noise in ("paper", "per_image"):
    # The first of the per-image runs is the one of the comparison above.
    first = by_method["stochastic_inversion"] if noise == "per_image" else redraw(scene_count, noise=noise)
    second = redraw(scene_count, noise=noise, seed=seed + 1)
    effects[noise] = (np.stack(first).astype(float) - np.stack(second)).mean(-1)
similar = {name: np.corrcoef(d.reshape(scene_count, -1)) for name, d in effects.items()}
pairs = np.triu_indices(scene_count, 1)
similar = {name: matrix[pairs].mean() for name, matrix in similar.items()}

# %% [markdown]
# With the same noise, the differences for *different* scenes resemble each other.

# %%
rows = [[(127.5 + 3 * d).clip(0, 255).astype(np.uint8) for d in effects[name][:4]] for name in effects]
plots.show(
    plots.image_grid(rows, [f"scene {key}" for key in keys[:4]], list(effects)),
    "What another seed changes in four scenes, three times, grey is no change. Mean correlation between scenes: "
    + ", ".join(f"{value:.2f} with noise “{name}”" for name, value in similar.items()) + ".",
)  # fmt: skip

# %% [markdown]
# Lamps light up and go out in the same places in every scene. A network that learns from such images sees one pattern
# again and again and may mistake it for a property of the domain.

# %% [markdown]
# ## Explore
#
# Every setting of this notebook in one place. Above: source, layout, truth. Below: the transferred image, its
# difference from the source and its difference from the truth.


# %%
def draw(scene, domain, method, strength, guidance):
    """One transfer in the explorer, with few steps so that it answers quickly."""
    source, truth = scenes.render(scene, "clear"), scenes.render(scene, domain).image
    layout = CITYSCAPES.colorize(source.label)
    changes = common | {
        "strength": strength,
        "guidance_scale": guidance,
        "num_inference_steps": min(8, num_inference_steps),
    }
    config = transfer.domain_config(domain, method, **changes)
    (image,) = transfer.transfer_images(mini, [source.image], [layout], [str(scene)], config)
    apart = [np.abs(image.astype(int) - other).astype(np.uint8) for other in (source.image, truth)]
    picture = np.vstack([np.hstack([source.image, layout, truth]), np.hstack([image, *apart])])
    text = f"mean difference to the source {apart[0].mean():.1f}, to the truth {apart[1].mean():.1f} grey levels"
    return picture, text


# %% [markdown]
# Try a low strength at night, then the same strength with another method.

# %%
slider = {"continuous_update": False}
choices = [method for method in transfer.METHODS if method != "instruct_pix2pix"]
explore.Explorer(
    draw,
    {
        "scene": widgets.IntSlider(scene_seeds[0], scene_seeds[0], scene_seeds[0] + 50, description="scene", **slider),
        "domain": widgets.Dropdown(options=TARGETS, value=domain, description="domain"),
        "method": widgets.Dropdown(options=choices, description="inversion"),
        "strength": widgets.FloatSlider(strength, min=0, max=1, step=0.02, description="strength", **slider),
        "guidance": widgets.FloatSlider(
            mini.defaults.guidance_scale, min=1, max=12, step=0.5, description="guidance", **slider
        ),
    },
    alt=f"Source, layout and truth of a scene above; transferred to {domain}, difference to source and to truth below.",
)

# %% [markdown]
# ## Pitfalls
#
# - **Another palette.** A ControlNet that was trained with other colours sees a different street, and no error is
#   raised.
# - **Another guidance scale.** Large models can cope with the paper's value; in small ones it oversaturates the
#   colours. A checkpoint comes with its own default.
# - **Augmenting image or layout alone.** A crop or flip has to be applied to both; the last exercise shows which of
#   them wins otherwise.
# - **Judging by beauty.** It does not impress the network in 05. What counts is whether the labels stay true and
#   whether the domain is right.

# %% [markdown]
# ## Try it
#
# **1. Predict:** what does strength 0 return? Strength 1? Then check.
#
# <details><summary>Solution</summary>
#
# ```python
# pictures = [redraw(strength=0.0)[0], redraw(strength=1.0)[0], by_method["controlnet_only"][0]]
# plots.show(plots.image_grid([pictures], ["strength 0", "strength 1", "controlnet_only"]), "The extremes.")
# ```
# Strength 0 takes no step and returns the VAE round trip. Strength 1 encodes at $t = 999$, where the miniature has no
# signal left: $\hat\epsilon = \epsilon$, nothing of the image goes in, and the method equals *ControlNet only*, up to
# rounding.
# </details>
#
# **2. Modify:** clear the road. In clear weather, paint all cars, trucks and buses in the layout in the colour of the
# road and draw from pure noise, then from the source at strength 0.5. Which of the two follows the layout?
#
# <details><summary>Solution</summary>
#
# ```python
# edited = layouts[0].copy()
# for name in ("car", "truck", "bus"):
#     edited[sources[0].label == CITYSCAPES.names.index(name)] = CITYSCAPES.colors[CITYSCAPES.names.index("road")]
# pictures = [
#     redraw(method=m, name="clear", given=[edited], strength=s)[0]
#     for m, s in (("controlnet_only", 1.0), ("stochastic_inversion", 0.5))
# ]
# plots.show(plots.image_grid([[edited, *pictures]], ["layout", "pure noise", "strength 0.5"]), "An empty road.")
# ```
# Both. From pure noise the road is simply empty. From the source the cars dissolve too, apart from a smear: the
# colour of the houses and the crossing come from the image, but the layout decides what stands where.
# </details>
#
# **3. Break:** flip the source images from left to right, but not their layouts. Which of the two wins at strength
# 0.3, and which at the domain's own strength?
#
# <details><summary>Solution</summary>
#
# ```python
# flipped, pictures = [np.ascontiguousarray(images[0][:, ::-1])], []
# for s in (0.3, strength):
#     config = transfer.domain_config(domain, **common | {"strength": s})
#     pictures += transfer.transfer_images(mini, flipped, layouts[:1], keys[:1], config)
# row = [*flipped, *pictures, layouts[0]]
# plots.show(plots.image_grid([row], ["source, flipped", "0.3", f"{strength}", "layout"]), "Who wins?")
# ```
# At low strength the image wins, at high strength the layout. A network that learns from such pairs learns from false
# labels.
# </details>

# %% [markdown]
# ## Recap
#
# The layout enters through the ControlNet, the scene through the noise: add noise, ask for it, rebuild with the
# answer, denoise with prompt and layout. How much of the scene is left depends more on the strength than on the
# method.

# %%
metrics = {
    "domain": domain, "by_method": table.to_dict("index"), "strength": lines.to_dict("records"),
    "border_contrast": follows, "to_truth": to_truth, "correlation_between_scenes": similar,
}  # fmt: skip
settings = {"model": model, "num_inference_steps": num_inference_steps, "scene_count": scene_count, "seed": seed}
_ = runs.save_metrics(out, "layout_to_image", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [04 Transferring a data set](04_transferring_a_data_set.ipynb): every training image is transferred once
# and written to disk.
#
# **References.** The paper, Section 3.1 (image transfer) · C. Meng et al., *SDEdit*, ICLR 2022 · J. Song, C. Meng, S.
# Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 · Y. Zhang et al., *Inversion-Based Style Transfer with
# Diffusion Models* (stochastic inversion), CVPR 2023 · L. Zhang et al., *Adding Conditional Control to Text-to-Image
# Diffusion Models*, ICCV 2023.
