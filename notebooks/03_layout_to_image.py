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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zodi-companion/zodi/blob/main/notebooks/03_layout_to_image.ipynb)
#
# **In one sentence.** *Stochastic inversion* adds noise to the latent of an image, lets the diffusion model say which
# noise it believes was added, and starts the redrawing from that noise, so that the new image keeps the old scene.
#
# **What you will learn:** noise, denoise and guide in latent space, every equation beside its line of code · why the
# layout goes in too · what pure noise, SDEdit, DDIM inversion and stochastic inversion keep of a scene, with the *true*
# target image beside them · what the strength does · how to transfer a whole data set.
#
# **What you need:** [01 The domain gap](01_domain_gap.ipynb) for the problem, some PyTorch. No knowledge of diffusion.
#
# **How long it takes:** an hour to read, a few minutes to run on two CPU cores.

# %% [markdown]
# On Google Colab this cell installs the package; anywhere else it does nothing.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "zodi[course] @ git+https://github.com/zodi-companion/zodi@main"
    print("Installed. If Colab asks for it, restart the runtime before you go on.")

# %% [markdown]
# `zodi.diffusion` loads a model and moves between images and latents, `zodi.transfer` holds the algorithms.

# %%
import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch

from zodi import datasets, diffusion, plots, runs, scenes, transfer, transfer_folder
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, TARGETS
from zodi.labels import CITYSCAPES, get_label_set

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; these make the notebook run on its own.

# %% tags=["parameters"]
data: str = "../results/course/data"  # folder of the data set; rendered there when it is missing
domain: str = "night"  # target domain
method: str = "stochastic_inversion"  # one of transfer.METHODS, or "clear_prompt"
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps on the full schedule
limit: int = 8  # training images to transfer, 0 for all
seed: int = 0  # rules all noise
out: str = "../results/course/transfer"  # folder of this notebook's results

# %% [markdown]
# ## The pieces
#
# A latent diffusion model has a VAE (image $x$ to latent $z_0 = E(x)$ and back), a text encoder, a UNet that looks at a
# noisy latent, and here a *ControlNet*, a second encoder that looks at the layout and whispers to the UNet.

# %%
mini = diffusion.load(model)
scene_seed = scenes.TEST_SEEDS[3]
# Photographs may have a domain that the renderer lacks; the scene of this notebook then goes to night.
shown = domain if domain in TARGETS else "night"
source, truth = scenes.render(scene_seed, "clear"), scenes.render(scene_seed, shown).image
layout = CITYSCAPES.colorize(source.label)
plots.show(
    plots.image_grid([[source.image, layout, truth]], ["source image x", "layout", "truth, hidden from the model"]),
    "A scene that the model has never seen. Only the first two images and a prompt go in.",
)

# %% [markdown]
# Everything happens in latents. The prompt and its counterpart, the negative prompt, become embeddings; the layout
# becomes an image of values between 0 and 1.

# %%
ac = mini.scheduler.alphas_cumprod
z0 = diffusion.encode(mini, torch.from_numpy(source.image)[None])
prompt_embeds = diffusion.embed(mini, [DOMAINS[shown].prompt + PROMPT_SUFFIX])
negative_prompt_embeds = diffusion.embed(mini, [NEGATIVE_PROMPT])
control = torch.from_numpy(layout).permute(2, 0, 1)[None].float() / 255
strength = transfer.domain_config(shown, defaults=mini.defaults).strength

# %% [markdown]
# ## Forward: adding noise
#
# At time $t$ (0 to 999) a share of the latent is replaced by Gaussian noise $\epsilon \sim \mathcal N(0, 1)$:
#
# $$ z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon . $$
#
# $\bar\alpha_t$ falls from one to zero; in the code it is `ac`. A decoded $z_t$ shows what a given time still knows.

# %%
generator = torch.Generator().manual_seed(seed)
eps = torch.randn(z0.shape, generator=generator)
times = [0, 200, 400, 600, 800, 950]
noised = [diffusion.decode(mini, ac[t].sqrt() * z0 + (1 - ac[t]).sqrt() * eps)[0].numpy() for t in times]
plots.show(
    plots.image_grid([noised[:3], noised[3:]], titles=[f"t = {t}" for t in times], width=7),
    "Decoded latents at six times. Detail goes first, the coarse arrangement of light and dark last.",
)

# %% [markdown]
# ## What the network predicts
#
# The UNet looks at $z_t$ and says what it believes was added. Ours says it as a *velocity*
# $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\,z_0$ ([A1](A1_how_the_miniature_was_made.ipynb) tells
# why); solved for the noise,
#
# $$ \epsilon_\theta(z_t, t) = \sqrt{\bar\alpha_t}\, v_\theta + \sqrt{1 - \bar\alpha_t}\, z_t . $$
#
# The ControlNet's whispers are added inside the UNet.


# %%
@torch.inference_mode()
def predict(z, t, embeds):
    """Noise that the model sees in z at time t."""
    down, mid = mini.controlnet(z, t, embeds, controlnet_cond=control, return_dict=False)
    v = mini.unet(z, t, embeds, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    return ac[t].sqrt() * v + (1 - ac[t]).sqrt() * z


# %% [markdown]
# ## Stochastic inversion
#
# The strength $s$ says how far to go back: $t_\text{enc} = \lfloor 1000\, s \rfloor$. Three lines are the heart of the
# method. Add noise, ask for the noise, and rebuild the latent with the *answer*:
#
# $$ z_{t} = \sqrt{\bar\alpha_{t}}\, z_0 + \sqrt{1 - \bar\alpha_{t}}\, \epsilon, \qquad
# \hat\epsilon = \epsilon_\theta(z_t, t, \text{prompt}, \text{layout}), \qquad
# \hat z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \hat\epsilon . $$

# %%
t_enc = int(strength * 1000)
z_t = ac[t_enc].sqrt() * z0 + (1 - ac[t_enc]).sqrt() * eps
eps_hat = predict(z_t, t_enc, prompt_embeds)
z_hat = ac[t_enc].sqrt() * z0 + (1 - ac[t_enc]).sqrt() * eps_hat

# %% [markdown]
# These are the lines of the module, no more and no less:

# %%
reference = transfer.stochastic_inversion(
    mini.unet, mini.controlnet, z0, prompt_embeds, control, strength=strength, noise=eps, scheduler=mini.scheduler
)
assert torch.allclose(z_hat, reference, atol=1e-4)

# %% [markdown]
# Why should that help? $\epsilon$ knows nothing of the scene. $\hat\epsilon$ does: where the model could not tell noise
# from image, part of the image has moved into it. Look at what the two differ in.

# %%
maps = [eps[0, 0], eps_hat[0, 0], (eps_hat - eps)[0, 0]]
pictures = [(((m / 3).clamp(-1, 1) + 1) * 127.5).byte().numpy() for m in maps]
plots.show(
    plots.image_grid([pictures], ["noise eps", "prediction eps_hat", "eps_hat - eps"]),
    f"First latent channel at t = {t_enc}, grey is zero. Correlation of the difference with the image's latent: "
    f"{np.corrcoef((eps_hat - eps).flatten(), z0.flatten())[0, 1]:.2f}.",
)

# %% [markdown]
# ## Backward: denoising, with guidance
#
# From $\hat z_t$ we walk back over a coarse grid of times. *Guidance* exaggerates what the prompt changes: with the
# prediction for the prompt and the one for the negative prompt,
#
# $$ \epsilon = \epsilon_\theta(z, t, \text{negative}) + g\, \big( \epsilon_\theta(z, t, \text{prompt}) -
# \epsilon_\theta(z, t, \text{negative}) \big) . $$
#
# One DDIM step from $t$ to the next time $p$ estimates the clean latent, goes there, and adds a little fresh noise $n$:
#
# $$ \hat z_0 = \frac{z_t - \sqrt{1 - \bar\alpha_t}\, \epsilon}{\sqrt{\bar\alpha_t}}, \quad
# \sigma = \eta \sqrt{\tfrac{1 - \bar\alpha_p}{1 - \bar\alpha_t}} \sqrt{1 - \tfrac{\bar\alpha_t}{\bar\alpha_p}}, \quad
# z_p = \sqrt{\bar\alpha_p}\, \hat z_0 + \sqrt{1 - \bar\alpha_p - \sigma^2}\, \epsilon + \sigma n . $$


# %%
def ddim_step(z, t, p, guidance_scale, n, eta=1.0):
    """One step from time t down to p; n is fresh noise."""
    negative, positive = predict(z, t, negative_prompt_embeds), predict(z, t, prompt_embeds)
    e = negative + guidance_scale * (positive - negative)
    z0_hat = (z - (1 - ac[t]).sqrt() * e) / ac[t].sqrt()
    sigma = eta * ((1 - ac[p]) / (1 - ac[t])).sqrt() * (1 - ac[t] / ac[p]).sqrt()
    return ac[p].sqrt() * z0_hat + (1 - ac[p] - sigma**2).sqrt() * e + sigma * n, z0_hat


# %% [markdown]
# With $N$ steps the grid is $1 + k \lfloor 1000 / N \rfloor$ (the paper's 20 steps: 1, 51, 101, …); of it we walk the
# lowest $\lfloor s N \rfloor$ times, downwards. The pictures are the estimates $\hat z_0$ on the way, decoded.

# %%
grid = [1 + k * (1000 // num_inference_steps) for k in range(int(strength * num_inference_steps))][::-1]
fresh = [torch.randn(z0.shape, generator=generator) for _ in grid]
z, film = z_hat, []
for t, p, n in zip(grid, [*grid[1:], 0], fresh, strict=True):
    z, z0_hat = ddim_step(z, t, p, mini.defaults.guidance_scale, n)
    film.append(diffusion.decode(mini, z0_hat)[0].numpy())
chosen = np.linspace(0, len(film) - 1, 4).round().astype(int)
plots.show(
    plots.image_grid([[film[i] for i in chosen]], [f"t = {grid[i]}" for i in chosen]),
    f"The clean image that the model believes in, at four of {len(grid)} times. First the light, then the things.",
)

# %% [markdown]
# `transfer_latents` does the same for a batch. With the same noise it gives the same latent:

# %%
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z0, prompt_embeds, negative_prompt_embeds, control,
    strength=strength, num_inference_steps=num_inference_steps, guidance_scale=mini.defaults.guidance_scale,
    noise=[eps, *fresh], scheduler=mini.scheduler,
)  # fmt: skip
assert torch.allclose(z, reference, atol=1e-3 * z.abs().max().item())

# %% [markdown]
# ## The choices, side by side
#
# What else could one start from? *ControlNet only*: pure noise. *SDEdit*: the noised latent $z_t$ itself. *DDIM
# inversion*: noise found by walking the whole way up. All get the same prompt, layout and strength. The *VAE round
# trip* has no diffusion, the *photometric* change no model at all.

# %%
common = {"defaults": mini.defaults, "num_inference_steps": num_inference_steps, "seed": seed}


def redraw(name, method="stochastic_inversion", **changes):
    """The scene transferred to the domain `name`."""
    config = transfer.domain_config(name, method, **common | changes)
    return transfer.transfer_images(mini, [source.image], [layout], ["scene"], config)[0]


# InstructPix2Pix needs a checkpoint of its own.
by_method = {name: redraw(shown, name) for name in transfer.METHODS if name != "instruct_pix2pix"}

# %% [markdown]
# Which of them keep the street, and which are night? Look at the cars and at the pavement's edge.

# %%
pictures = by_method | {"source": source.image, "truth": truth, "layout": layout}
images = list(pictures.values())
plots.show(
    plots.image_grid([images[:3], images[3:6], images[6:]], titles=list(pictures)),
    f"One scene on its way to {shown} by every method, with its source, the true target image and the layout below.",
)

# %% [markdown]
# Two distances put a number on it: how far from the *source* (is it still the same picture?) and how far from the
# *truth* (is it the right one?), as mean absolute difference of grey values, 0 to 255. Lower is closer.

# %% tags=["distances"]
distance = pd.DataFrame(
    {
        "to the source": {name: np.abs(image.astype(int) - source.image).mean() for name, image in by_method.items()},
        "to the truth": {name: np.abs(image.astype(int) - truth).mean() for name, image in by_method.items()},
    }
)
distance.round(1).sort_values("to the truth")

# %% [markdown]
# ## Strength
#
# Little strength keeps the image and its domain; much strength changes the domain and may lose the scene. The paper
# gives each domain its own; a checkpoint may bring strengths of its own, as the miniature does. Here are all of them,
# precomputed; the explorer below only looks them up.

# %%
strengths = [0.2, 0.4, 0.6, 0.8, 0.95]
frames = {(name, s): redraw(name, strength=s) for name in TARGETS for s in strengths}
rows = [[frames[name, s] for s in strengths] for name in TARGETS]
plots.show(
    plots.image_grid(rows, [f"strength {s}" for s in strengths], TARGETS, width=7),
    "One scene, five prompts, five strengths. The paper's strengths, and this checkpoint's: "
    + ", ".join(
        f"{name} {DOMAINS[name].strength} and {transfer.domain_config(name, defaults=mini.defaults).strength}"
        for name in TARGETS
    ) + ".",
)  # fmt: skip

# %% [markdown]
# The **domain explorer** puts source, transferred and true image beside each other. Without a running kernel, the
# figure above shows the same frames.

# %%
truths = {name: scenes.render(scene_seed, name).image for name in TARGETS}
picture = widgets.Image(format="png", width=900)
domain_choice = widgets.ToggleButtons(options=TARGETS, value=TARGETS[0], description="domain")
strength_choice = widgets.SelectionSlider(options=strengths, value=strengths[3], description="strength")

# %% [markdown]
# Moving a control looks up a frame; nothing is computed, so it answers at once.


# %%
def update(_=None):
    """Show the frame of the chosen domain and strength."""
    frame = frames[domain_choice.value, strength_choice.value]
    picture.value = plots.encode_png(np.hstack([source.image, frame, truths[domain_choice.value]]))


update()
domain_choice.observe(update, "value")
strength_choice.observe(update, "value")
widgets.VBox([domain_choice, strength_choice, widgets.Label("source · transferred · truth"), picture])

# %% [markdown]
# ## The missing realignment
#
# One oddity of the authors' program, which we keep: the latent is noised at $t_\text{enc}$, but denoised as if it were
# at the first time of the grid *below*. How much clean signal does the step assume, and how much is there?

# %%
encoded, assumed = ac[t_enc].sqrt().item(), ac[grid[0]].sqrt().item()
pictures = [redraw(shown), redraw(shown, align=True), truth]
plots.show(
    plots.image_grid([pictures], ["as published", "aligned", "truth"]),
    f"Encoded at t = {t_enc} (signal {encoded:.3f}), denoised from t = {grid[0]} (signal {assumed:.3f}). "
    "The aligned variant encodes at the time at which the denoising starts.",
)

# %% [markdown]
# ## A whole data set
#
# Training needs every image of the training set, transferred once. `transfer_folder` writes them to disk with a
# manifest; stop it at any instant and start it again, and it goes on where it was. Two rows of our tables need no
# method of their own: *clear prompt* is stochastic inversion with the prompt for clear weather.

# %%
root = datasets.prepare(data)
label_set = get_label_set(datasets.dataset_info(root)["label_set"])
config = transfer.domain_config(domain, method, **common)
images, labels = root / "train" / "images", root / "train" / "labels"
report = transfer_folder.transfer_folder(
    mini, images, labels, out, config, label_set, limit=limit or None, progress=False
)
assert report.ok, report.errors

# %% [markdown]
# A look at the first of them. Go through the pairs with the layout in mind: does every label still name what is there?

# %%
pairs = datasets.FolderDataset(f"{out}/images", labels, label_set)
sources = datasets.open_split(root, "train")
keys = pairs.keys[:4]
by_key = {sample.key: sample for sample in (sources[i] for i in range(len(sources))) if sample.key in keys}
rows = [[by_key[key].image, label_set.colorize(by_key[key].label), pairs[i].image] for i, key in enumerate(keys)]
figure = plots.image_grid(rows, ["source", "layout", "transferred"], width=6.5)
plots.label_legend(figure, [by_key[key].label for key in keys], label_set)
plots.show(figure, f"Training images and their transfer ({method}, {domain}). The label map on disk serves both.")

# %% [markdown]
# ## Pitfalls
#
# - **Another guidance scale.** Large models bear the paper's value; small ones burn their colours with it. A checkpoint
#   brings its own default along.
# - **Forgetting the layout.** With the prompt alone the model may move a pavement, and the label there becomes a lie.
# - **One noise for all images.** The authors' program restarts the seed for every image, so all get the *same* noise
#   (`noise="paper"`). We seed by file name: still reproducible, but different for every image.
# - **Judging by beauty.** The network in 05 is not impressed by it. What counts is whether labels stay true and whether
#   the domain is right.

# %% [markdown]
# ## Try it
#
# **1. Predict:** what does strength 0 return? Strength 1? Then check.
#
# <details><summary>Solution</summary>
#
# ```python
# plots.show(plots.image_grid([[redraw(shown, strength=0.0), redraw(shown, strength=1.0), source.image]]), "Extremes.")
# ```
# Strength 0 takes no step: the VAE round trip. Strength 1 encodes at the last time of the schedule, where the miniature
# has no signal left; only the layout and $\hat\epsilon$ still know the scene.
# </details>
#
# **2. Modify:** take the layout away. Give the transfer a black layout and compare where objects end up.
#
# <details><summary>Solution</summary>
#
# ```python
# config = transfer.domain_config(shown, **common)
# (blind,) = transfer.transfer_images(mini, [source.image], [np.zeros_like(layout)], ["scene"], config)
# plots.show(plots.image_grid([[redraw(shown), blind, layout]], ["with", "without", "layout"]), "The layout's share.")
# ```
# </details>
#
# **3. Break:** set `guidance_scale` to 1 and to 12. What happens to the colours, and which network evaluations are
# saved at exactly 1?
#
# <details><summary>Solution</summary>
#
# ```python
# pictures = [redraw(shown, guidance_scale=g) for g in (1.0, 2.0, 12.0)]
# plots.show(plots.image_grid([pictures], ["1", "2", "12"]), "Guidance scale.")
# ```
# At 1 the two predictions need not be told apart, so the one for the negative prompt is skipped: half the work.
# </details>

# %% [markdown]
# ## Recap
#
# Noise, ask, rebuild with the answer, denoise with prompt and layout. The transferred images lie in a folder beside a
# manifest, under the names of their sources, so that every label map finds its second image.

# %%
metrics = {"domain": domain, "method": method, "images": len(pairs), "distance": distance.to_dict()}
settings = {"data": data, "model": model, "limit": limit, "config": config}
_ = runs.save_metrics(out, "transfer", settings, metrics, time.perf_counter() - start)

# %% [markdown]
# **Next:** [05 Adaptation](05_adaptation.ipynb): a network learns from both images of every pair.
#
# **References.** The paper, Section 3 (image transfer) · C. Meng et al., *SDEdit*, ICLR 2022 · J. Song, C. Meng,
# S. Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 · J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance*,
# 2022 · Y. Zhang et al., *Inversion-Based Style Transfer with Diffusion Models* (stochastic inversion), CVPR 2023 ·
# L. Zhang et al., *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023.
