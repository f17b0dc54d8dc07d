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
# **Level:** intermediate. **What you need:** [02 Diffusion in one hour](02_diffusion.ipynb): latents, $\alpha_t$ and
# $\sigma_t$, the DDIM step, guidance.
#
# **How long it takes:** an hour to read, two minutes to run on two CPU cores.
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
# `zodi.diffusion` loads a model and converts images to latents and back, `zodi.sampling` has a function for every
# method, and `zodi.transfer` calls them.

# %%
import time
from functools import partial

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from zodi import diffusion, sampling, transfer
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support import diagrams, explore, plots, runs
from zodi.support.gallery import brightened, gallery, sheet, show_scenes

plots.use_theme()
start = time.perf_counter()

# %% [markdown]
# The parameters. `make reproduce` fills in other values; with these, the notebook runs on its own.

# %% tags=["parameters"]
domain: str = "night"  # target domain, one of the renderer's
model: str = "mini"  # diffusion model: "mini", a local folder or a hub id
num_inference_steps: int = 12  # denoising steps on the full schedule
scene_count: int = 6  # scenes that a number is averaged over
seed: int = 0  # decides all noise
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
common = {"num_inference_steps": num_inference_steps, "seed": seed}
common["defaults"] = mini.defaults

# %% [markdown]
# The image, the layout and a prompt go in. The same street in different weather should come out, so that the label
# map stays true.


# %%
def redraw(
    count=1, method="stochastic_inversion", name=domain, given=layouts, **changes
):
    """The first scenes transferred to a domain, with these layouts and settings."""
    config = transfer.domain_config(name, method, **common | changes)
    inputs = (part[:count] for part in (images, given, keys))
    return transfer.transfer_images(mini, *inputs, config)


(ours,), true = redraw(), truths[0]
pictures = [images[0], layouts[0], ours, brightened(ours), true, brightened(true)]
names = ["transferred", "transferred, brightened", "truth", "truth, brightened"]
show_scenes(
    gallery(pictures, ["source image", "layout", *names]),
    f"Image, layout and “{DOMAINS[domain].prompt}” go in, the second row comes out; "
    "the truth stays hidden from the model. You should see one street, three times.",
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
diagrams.show(
    diagrams.unet_with_controlnet(),
    "The UNet (blue) and its ControlNet (grey), three levels as in the miniature. You "
    "should see that the ControlNet reaches the UNet only through convolutions marked "
    "0, which start at zero, so that it changes nothing until it is trained. The "
    "prompt enters by cross-attention, here at the lowest level and in the middle; "
    "Stable Diffusion 1.5 has a fourth level, and cross-attention at all but the "
    "lowest.",
)

# %% [markdown]
# In code, with $\alpha_t$ and $\sigma_t$ from 02. Whether the network answers with the noise or with the velocity depends
# on the checkpoint: the module's `split` takes the noise out of either, as in 02.

# %%
schedule = sampling.paper_scheduler(mini.scheduler)
alpha_bar = mini.scheduler.alphas_cumprod
alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
z_0 = diffusion.encode(mini, torch.from_numpy(images[0])[None])
prompt_embeds = diffusion.embed(mini, [DOMAINS[domain].prompt + PROMPT_SUFFIX])
negative_embeds = diffusion.embed(mini, [NEGATIVE_PROMPT])
size, palette = layouts[0].shape[:2], mini.defaults.palette
control = transfer.prepare_layout(layouts[0], size, palette)[None]


@torch.inference_mode()
def predict(z_t, t, embeds, layout=control):
    """eps_hat: the noise that the model sees in z_t at time t."""
    c, mid = mini.controlnet(z_t, t, embeds, controlnet_cond=layout, return_dict=False)
    added = {"down_block_additional_residuals": c, "mid_block_additional_residual": mid}
    answer = mini.unet(z_t, t, embeds, **added).sample
    eps_hat, _ = schedule.split(answer, z_t, t)
    return eps_hat


# %% [markdown]
# How many such outputs are there, and at which scales? Large arrays can say *where*, small ones *what*.

# %% tags=["nbval-check-output"]
with torch.inference_mode():
    found = mini.controlnet(z_0, 900, prompt_embeds, control, return_dict=False)
outputs = (*found[0], found[1])
sizes = pd.Series([f"{c.shape[2]} x {c.shape[3]}" for c in outputs])
sizes.value_counts(sort=False).rename_axis("rows x columns").rename(
    "outputs"
).to_frame()

# %% [markdown]
# How much does the layout contribute? We draw in clear weather, because night hides what we want to see: once from
# pure noise, where only the prompt and the layout are known, and once from the noised source. We try four layouts:
# the scene's own, none (black), that of another scene, and the scene's own in other colours. `palette` names the
# colours. A ControlNet understands only the colours that it was trained with: those of Cityscapes for the miniature,
# those of ADE20K for the public ControlNet for Stable Diffusion. (The authors' program gives it Cityscapes' colours
# nevertheless; with `palette="ade20k"` both can be tried.)

# %%
own, black = {"given": layouts}, {"given": [np.zeros_like(layouts[0])]}
cases = {
    "own layout": own,
    "no layout": black,
    "another scene's": {"given": layouts[1:]},
    "ADE20K's colours": {"palette": "ade20k"},
}
clear = {"name": "clear"}
from_noise = {"method": "controlnet_only", "strength": 1.0, **clear}
from_source = {"strength": DOMAINS["clear"].strength, **clear}
drawn = {
    name: [redraw(**start, **case)[0] for start in (from_noise, from_source)]
    for name, case in cases.items()
}

# %% [markdown]
# If the drawing follows the label map, its edges are where the classes change. One number measures this: how many
# times larger the differences between neighbouring pixels are on the borders between classes than elsewhere; 1 means
# that nothing of the layout is kept.


# %%
def border_contrast(image, label):
    """Mean step between horizontal neighbours on borders of classes, over the rest."""
    steps = np.abs(np.diff(image.mean(2), axis=1))
    border = label[:, 1:] != label[:, :-1]
    return steps[border].mean() / steps[~border].mean()


label, other_label = sources[0].label, sources[1].label
follows = {
    name: [border_contrast(image, label) for image in pair]
    for name, pair in drawn.items()
}

# %% [markdown]
# The drawings from pure noise, and the other scene's layout beside what it makes of this scene's image:

# %%
against = drawn["another scene's"][1]
pictures = [*(image for image, _ in drawn.values()), layouts[1], against]
titles = [*drawn, "the other scene's layout", "and drawn with it, from the source"]
show_scenes(
    gallery(pictures, titles),
    "Clear weather, drawn from pure noise with four layouts; below, another scene's "
    "layout, and what stochastic inversion draws with it from this scene's image. You "
    "should see a street every time: this one with its own layout, this one in wrong "
    "materials with ADE20K's colours, and another one otherwise. Contrast on the "
    "borders of this scene, from noise and from source: "
    + ", ".join(f"{name} {a:.1f} and {b:.1f}" for name, (a, b) in follows.items())
    + ".",
)  # fmt: skip

# %% [markdown]
# Is another scene's layout followed even against the image? And what do wrong colours cost, of which no error and no
# warning tells?

# %%
on_own, on_other = (border_contrast(against, x) for x in (label, other_label))
right, wrong = follows["own layout"][1], follows["ADE20K's colours"][1]
Markdown(
    "From this scene's image with the other scene's layout, the contrast is "
    f"**{on_other:.1f}** on the borders of the layout and **{on_own:.1f}** on those of "
    f"the image: the {'layout' if on_other > on_own else 'image'} wins. Wrong colours "
    f"change the contrast from {right:.1f} to {wrong:.1f}."
)

# %% [markdown]
# ## Stochastic inversion
#
# The layout says where a car is, but only the image says which car. The strength $s$ sets how far to go back:
# $t_\text{enc} = \lfloor 1000\, s \rfloor$. The heart of the method is three lines long. Add noise, ask for the
# noise, and rebuild the latent with the *answer*:
#
# $$ z_t = \alpha_t z_0 + \sigma_t \epsilon, \qquad
# \hat\epsilon = \epsilon_\theta(z_t, t, \text{prompt}, \text{layout}), \qquad
# \hat z_t = \alpha_t z_0 + \sigma_t \hat\epsilon . $$

# %%
strength = transfer.domain_config(domain, defaults=mini.defaults).strength
generator = torch.Generator().manual_seed(seed)
eps = torch.randn(z_0.shape, generator=generator)
t = t_enc = int(strength * 1000)

z_t = alpha[t] * z_0 + sigma[t] * eps
eps_hat = predict(z_t, t, prompt_embeds)
z_t_hat = alpha[t] * z_0 + sigma[t] * eps_hat

# %% [markdown]
# The module does exactly the same:

# %%
reference = transfer.stochastic_inversion(
    mini.unet, mini.controlnet, z_0, prompt_embeds, control,
    strength=strength, noise=eps, scheduler=mini.scheduler,
)  # fmt: skip
assert torch.allclose(z_t_hat, reference, atol=1e-4)

# %% [markdown]
# Why should that help? $\epsilon$ contains nothing of the scene, but $\hat\epsilon$ does: where the model cannot tell
# noise from image, part of the image has moved into it. With $\hat z_0$, the model's guess of the clean latent, the
# three lines reduce to one,
#
# $$ \hat z_t = z_t + \alpha_t\, (z_0 - \hat z_0) . $$
#
# Whatever the model could not guess from $z_t$, the prompt and the layout is added a second time.

# %%
z_0_hat = (z_t - sigma[t] * eps_hat) / alpha[t]
assert torch.allclose(z_t_hat, z_t + alpha[t] * (z_0 - z_0_hat), atol=1e-4)

# %% [markdown]
# And what did the model fail to guess? Look at the difference between the two noises, once where the transfer starts
# and once at half that time.

# %%
half = t_enc // 2
eps_half = predict(alpha[half] * z_0 + sigma[half] * eps, half, prompt_embeds)
maps = [z_0, 4 * (eps_hat - eps)]
pictures = [(((m[0, 0] / 3).clamp(-1, 1) + 1) * 127.5).byte().numpy() for m in maps]
share = [
    np.corrcoef((e - eps).flatten(), z_0.flatten())[0, 1] for e in (eps_half, eps_hat)
]
names = ["latent $z_0$", f"$4 (\\hat\\epsilon - \\epsilon)$, t = {t_enc}"]
show_scenes(
    gallery(pictures, names),
    "First latent channel, grey is zero. You should see the street in what has moved "
    f"into the noise. Its correlation with $z_0$, over all channels: {share[0]:.2f} at "
    f"t = {half}, {share[1]:.2f} at t = {t_enc}.",
)

# %% [markdown]
# What has moved includes everything that no layout names (windows, markings, the colour of a house), and the *daylight*
# too, as far as the guess is already dark.

# %% [markdown]
# ## The walk back
#
# From $\hat z_t$ on, we use the loop derived in [02](02_diffusion.ipynb): guided noise, a guess of the clean latent,
# a DDIM step with fresh noise, here with $\eta = 1$. Only the beginning is new. Of the $N$ times
# $1 + k \lfloor 1000 / N \rfloor$ we visit the lowest $\lfloor s N \rfloor$, with the strength $s$.

# %%
count, w = int(strength * num_inference_steps), mini.defaults.guidance_scale
grid = [1 + k * (1000 // num_inference_steps) for k in range(count)][::-1]
fresh = [torch.randn(z_0.shape, generator=generator) for _ in grid]
z = z_t_hat
for t, p, n in zip(grid, [*grid[1:], 0], fresh, strict=True):
    negative = predict(z, t, negative_embeds)
    eps_hat = negative + w * (predict(z, t, prompt_embeds) - negative)
    z_0_hat = (z - sigma[t] * eps_hat) / alpha[t]
    ratio = alpha[t] * sigma[p] / (alpha[p] * sigma[t])
    spread = sigma[p] * (1 - ratio**2).sqrt()
    rest = (sigma[p] ** 2 - spread**2).sqrt()
    z = alpha[p] * z_0_hat + rest * eps_hat + spread * n

# %% [markdown]
# `transfer_latents` does the same for a batch. With the same noise it gives the same latent:

# %%
reference = transfer.transfer_latents(
    mini.unet, mini.controlnet, z_0, prompt_embeds, negative_embeds, control,
    strength=strength, num_inference_steps=num_inference_steps, guidance_scale=w,
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
# Which of them keep the street, and which have reached the new domain? Look at the windows, the markings and the lamps.
# A dark domain is shown brightened, every picture in the same way.

# %%
NAMES = {
    "stochastic_inversion": "stochastic inversion (ZoDi)",
    "sdedit": "SDEdit",
    "ddim_inversion": "DDIM inversion",
    "controlnet_only": "ControlNet only",
    "photometric": "photometric",
    "vae_round_trip": "VAE round trip",
}
shown = list(NAMES)[:5]

# %% [markdown]
# The pictures, ZoDi's first and the truth last:

# %%
is_dark = truths[0].mean() < 60
pictures = [*(by_method[method][0] for method in shown), truths[0]]
show_scenes(
    gallery(
        [brightened(image) if is_dark else image for image in pictures],
        [*(NAMES[method] for method in shown), "truth"],
    ),
    f"One scene on its way to {domain}, strength {strength}"
    + (", all brightened" if is_dark else "")
    + ". You should see one street in six versions: the methods differ in what they "
    "take over from the source and in what they make up. The photometric change keeps "
    "all objects and lights no lamp.",
)  # fmt: skip

# %% [markdown]
# At a lower strength more of the source is left at the start, so the starting points differ more. Here is another
# domain, with its own strength:

# %%
second = "snow" if domain != "snow" else "game"
of_second = {method: redraw(scene_count, method, name=second) for method in shown[:4]}
second_strength = transfer.domain_config(second, defaults=mini.defaults).strength
houses = label == CITYSCAPES.names.index("building")
fronts = images[0].mean(2)[houses]
kept = {
    NAMES[method]: np.corrcoef(fronts, results[0].mean(2)[houses])[0, 1]
    for method, results in of_second.items()
}
show_scenes(
    gallery([results[0] for results in of_second.values()], list(kept)),
    f"The same scene on its way to {second}, strength {second_strength}. You should "
    "see how much of the house fronts is the source's. Correlation of their brightness "
    "with the source: "
    + ", ".join(f"{name} {value:.2f}" for name, value in kept.items())
    + ".",
)

# %% [markdown]
# How different are the methods? We subtract their images from ZoDi's, in both domains, over all scenes.


# %%
def distance(results, others):
    """Mean absolute difference of grey values, 0 to 255."""
    return np.abs(np.stack(results).astype(int) - np.stack(others)).mean()


both = {domain: by_method, second: of_second}
apart = pd.DataFrame({
    f"{name}, grey levels from ZoDi": {
        NAMES[m]: distance(results[m], results["stochastic_inversion"])
        for m in shown[1:4]
    }
    for name, results in both.items()
})  # fmt: skip
apart.round(1)

# %% [markdown]
# Another seed changes ZoDi's own image too. Only what is larger than that is the method's doing:

# %%
again = redraw(scene_count, seed=seed + 1)
by_chance = distance(again, by_method["stochastic_inversion"])
larger = apart.index[apart.iloc[:, 0] > by_chance]
Markdown(
    f"On the way to {domain}, another seed changes ZoDi's image by {by_chance:.1f} "
    "grey levels. Farther from it than that: "
    f"**{', '.join(larger) or 'no method'}**. With the same noise, "
    f"{apart.iloc[:, 0].idxmin()} is closest to ZoDi."
)

# %% [markdown]
# There are two distances worth measuring, from the *source* (is it still the same picture?) and from the *truth* (is it
# the right one?). Both are mean absolute differences of grey values, from 0 to 255; lower is closer. The third number
# is the contrast on borders, as above, which is best when it equals the truth's. All are means over our scenes.


# %% tags=["distances"]
def measure(results):
    """Distances and contrast on the borders of classes, means over scenes."""
    pairs = zip(results, sources, strict=True)
    kept = np.mean([border_contrast(image, scene.label) for image, scene in pairs])
    to = {"to the source": images, "to the truth": truths}
    return {k: distance(results, v) for k, v in to.items()} | {"on borders": kept}


measured = {NAMES[name]: measure(results) for name, results in by_method.items()}
table = pd.DataFrame(measured).T
table["CPU s per image"] = [seconds[name] for name in by_method]
table = table.sort_values("to the truth")
table.loc["truth"] = measure(truths)
table.style.format("{:.1f}", na_rep="").format("{:.2f}", subset=["on borders"])

# %% [markdown]
# What does the table say?

# %%
drawn_ones = table.loc[[NAMES[method] for method in shown[:4]]]
ideal = table.loc["truth", "on borders"]
sharp = (drawn_ones["on borders"] - ideal).abs().idxmin()
spread_of = np.ptp(drawn_ones["to the truth"])
Markdown(
    f"Of the four methods with diffusion, **{drawn_ones['to the truth'].idxmin()}** "
    f"comes closest to the truth, **{drawn_ones['to the source'].idxmin()}** stays "
    f"closest to the source, and **{sharp}** has the contrast on borders that is most "
    f"like the truth's. Their distances to the truth lie {spread_of:.1f} grey levels "
    "apart."
)

# %% [markdown]
# Read it with care. A method comes closer to the truth in grey values the less daylight it carries over from the
# source, which says nothing about its objects. Which images *train* best is another question.
# [05](05_adaptation.ipynb) asks it, and compares ZoDi with SDEdit, *ControlNet only* and the photometric change.
#
# ## Strength
#
# Low strength keeps the image and its domain; high strength changes the domain and may lose the scene. At which
# strength does the starting point matter? We compare stochastic inversion with SDEdit:

# %%
strengths = [0.3, 0.5, strength]
redrawn = {
    (method, s): by_method[method]
    if s == strength
    else redraw(scene_count, method, strength=s)
    for s in strengths
    for method in ("stochastic_inversion", "sdedit")
}
shown_here = [key for key in redrawn if key[1] != strength]
pictures = [redrawn[key][0] for key in shown_here]
show_scenes(
    gallery(pictures, [f"{NAMES[method]}, {s}" for method, s in shown_here]),
    f"One scene on its way to {domain} at two strengths below this checkpoint's own, "
    f"{strength}, which is shown above. You should see the source fade, faster with "
    f"SDEdit, and no {domain} yet.",
)

# %% [markdown]
# The same, averaged over all scenes:

# %%
lines = pd.DataFrame(
    [{"method": NAMES[m], "strength": s} | measure(r) for (m, s), r in redrawn.items()]
)
columns = ["to the source", "to the truth", "on borders"]
lines.set_index(["strength", "method"])[columns].round(1)

# %% [markdown]
# Is stochastic inversion always closer to the source?

# %%
source_gap = lines.pivot(index="strength", columns="method", values="to the source")
gain = source_gap[NAMES["sdedit"]] - source_gap[NAMES["stochastic_inversion"]]
Markdown(
    "Stochastic inversion is closer to the source than SDEdit at "
    f"**{(gain > 0).sum()} of {len(gain)}** strengths, most at strength "
    f"{gain.idxmax()}, by {gain.max():.1f} grey levels."
)

# %% [markdown]
# Why closer? It puts back what the model did not guess, daylight included. In the middle of the range the daylight and
# the prompt contradict each other, and the picture may look like another domain altogether.
#
# The paper gives each domain its own strength, found for Stable Diffusion; a checkpoint may come with others. The
# table shows both:

# %%
own = {name: transfer.domain_config(name, defaults=mini.defaults) for name in TARGETS}
pd.DataFrame({
    "the paper": {name: DOMAINS[name].strength for name in TARGETS},
    mini.name: {name: config.strength for name, config in own.items()},
}).T  # fmt: skip

# %% [markdown]
# ## The missing realignment
#
# We keep one oddity of the authors' program: the latent is noised at $t_\text{enc}$, but denoised as if it were at
# the next *lower* time of the grid. How much clean signal does the step assume, and how much is there?

# %%
published, aligned = by_method["stochastic_inversion"], redraw(scene_count, align=True)
results = {"as published": published, "aligned": aligned}
to_truth = {name: distance(result, truths) for name, result in results.items()}
brighter = np.stack(aligned).mean() - np.stack(published).mean()
pictures, titles = [published[1], aligned[1]], list(results)
show_scenes(
    gallery([brightened(image) if is_dark else image for image in pictures], titles),
    f"Encoded at t = {t_enc} (signal {alpha[t_enc]:.3f}), denoised from t = {grid[0]} "
    f"(signal {alpha[grid[0]]:.3f}); the aligned variant encodes where the denoising "
    f"starts. You should see images that are {abs(brighter):.1f} grey levels "
    f"{'brighter' if brighter > 0 else 'darker'}. "
    "Distance to the truth over all scenes: as published "
    f"{to_truth['as published']:.1f}, aligned {to_truth['aligned']:.1f}.",
)

# %% [markdown]
# The first step assumes that its latent is cleaner than it is, so what remains of the source looks weak in it and the
# prompt wins. The oddity acts like additional strength, so with it repaired the strength would have to be chosen again.

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
    # Per image, both runs are those of the comparison above.
    runs_of = {
        s: redraw(scene_count, noise=noise, seed=s) if noise == "paper" else done
        for s, done in ((seed, published), (seed + 1, again))
    }
    one, other = (np.stack(run).astype(float) for run in runs_of.values())
    effects[noise] = (one - other).mean(-1)
upper = np.triu_indices(scene_count, 1)
similar = {
    name: np.corrcoef(change.reshape(scene_count, -1))[upper].mean()
    for name, change in effects.items()
}

# %% [markdown]
# With the same noise, do the differences for *different* scenes resemble each other?

# %%
pictures = [(127.5 + 3 * d).clip(0, 255).astype(np.uint8) for d in effects["paper"][:2]]
show_scenes(
    gallery(pictures, ["scene 1, one noise for all", "scene 2, one noise for all"]),
    "What another seed changes in two scenes, three times as strong; grey is no "
    "change. You should find spots in the same places. Mean correlation between all "
    "scenes: "
    + ", ".join(f"{value:.2f} with noise “{name}”" for name, value in similar.items())
    + ".",
)  # fmt: skip

# %% [markdown]
# A network that learns from images with one noise sees one pattern again and again and may mistake it for a property of
# the domain.

# %% [markdown]
# ## Explore
#
# Every setting of this notebook in one place. First row: source and layout. Second row: the transferred image and the
# truth. Third row: its difference from the source and its difference from the truth.


# %%
def draw(scene, domain, method, strength, guidance):
    """One transfer in the explorer, with few steps so that it answers quickly."""
    source, truth = scenes.render(scene, "clear"), scenes.render(scene, domain).image
    layout = CITYSCAPES.colorize(source.label)
    changes = {"strength": strength, "guidance_scale": guidance}
    changes["num_inference_steps"] = min(8, num_inference_steps)
    config = transfer.domain_config(domain, method, **common | changes)
    inputs = [source.image], [layout], [str(scene)]
    (image,) = transfer.transfer_images(mini, *inputs, config)
    apart = [
        np.abs(image.astype(int) - x).astype(np.uint8) for x in (source.image, truth)
    ]
    far = [part.mean() for part in apart]
    text = f"to the source {far[0]:.1f}, to the truth {far[1]:.1f} grey levels"
    return sheet([[source.image, layout], [image, truth], apart]), text


# %% [markdown]
# Try a low strength at night, then the same strength with another method.

# %%
slider = partial(widgets.FloatSlider, continuous_update=False)
whole = partial(widgets.IntSlider, continuous_update=False)
choice, scene, methods = widgets.Dropdown, scene_seeds[0], list(NAMES)
explore.Explorer(
    draw,
    {
        "scene": whole(scene, scene, scene + 50, description="scene"),
        "domain": choice(options=TARGETS, value=domain, description="domain"),
        "method": choice(options=methods, description="method"),
        "strength": slider(strength, min=0, max=1, step=0.02, description="strength"),
        "guidance": slider(w, min=1, max=12, step=0.5, description="guidance"),
    },
    alt=f"Source, layout; transferred to {domain}, truth; two differences.",
)

# %% [markdown]
# You should see the difference to the source shrink, and that to the truth grow, as you lower the strength.
#
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
# pictures = [redraw(strength=s)[0] for s in (0.0, 1.0)]
# pictures += by_method["controlnet_only"][:1]
# names = ["strength 0", "strength 1", "ControlNet only"]
# show_scenes(gallery(pictures, names), "The extremes.")
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
# road = CITYSCAPES.colors[CITYSCAPES.names.index("road")]
# for name in ("car", "truck", "bus"):
#     edited[label == CITYSCAPES.names.index(name)] = road
# pictures = [
#     redraw(method=m, name="clear", given=[edited], strength=s)[0]
#     for m, s in (("controlnet_only", 1.0), ("stochastic_inversion", 0.5))
# ]
# names = ["source", "layout", "pure noise", "strength 0.5"]
# show_scenes(gallery([images[0], edited, *pictures], names), "An empty road.")
# ```
# From pure noise the road is empty, as the layout says. From the source at strength 0.5 image and layout contradict
# each other, and what is left of the cars shows how much the image still has to say.
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
#     config = transfer.domain_config(domain, **common, strength=s)
#     pictures += transfer.transfer_images(mini, flipped, layouts[:1], keys[:1], config)
# names = ["source, flipped", "layout", "strength 0.3", f"strength {strength}"]
# show_scenes(gallery([*flipped, layouts[0], *pictures], names), "Who wins?")
# for s, image in zip((0.3, strength), pictures):
#     print(s, [border_contrast(image, x) for x in (label[:, ::-1], label)])
# ```
# The numbers are the contrast on the image's own borders and on the layout's: whichever is larger has won. A network
# that learns from such pairs learns from false labels.
# </details>

# %% [markdown]
# ## Recap
#
# The layout enters through the ControlNet, the scene through the noise: add noise, ask for it, rebuild with the
# answer, denoise with prompt and layout. How much of the scene is left depends on the strength and on the method.

# %%
metrics = {
    "domain": domain,
    "by_method": table.to_dict("index"),
    "strength": lines.to_dict("records"),
    "border_contrast": follows,
    "to_truth": to_truth,
    "correlation_between_scenes": similar,
}
settings = {"model": model, "num_inference_steps": num_inference_steps}
settings |= {"scene_count": scene_count, "seed": seed}
_ = runs.save_metrics(
    out, "layout_to_image", settings, metrics, time.perf_counter() - start
)

# %% [markdown]
# ## Self-check
#
# Five questions without a computer.
#
# **1.** The ControlNet's last convolutions are initialised with zeros. What does the model draw before the ControlNet
# is trained?
#
# <details><summary>Answer</summary>
#
# What it drew without one: all $c_i$ are zero, so every $h_i$ stays as it was. Training can only move it away from
# there step by step.
# </details>
#
# **2.** Where does the colour of a house come from in *ControlNet only*, and where in stochastic inversion?
#
# <details><summary>Answer</summary>
#
# In *ControlNet only* from the noise and the prompt alone, since the layout says only that there is a building. In
# stochastic inversion also from the image: as far as the model could not guess the colour from $z_t$, it has moved into
# $\hat\epsilon$.
# </details>
#
# **3.** The model guesses $z_0$ perfectly from $z_t$. What is the difference between SDEdit and stochastic inversion
# then?
#
# <details><summary>Answer</summary>
#
# None: with $\hat z_0 = z_0$ the rebuilt latent is $\hat z_t = z_t$, and from there on both take the same steps.
# </details>
#
# **4.** Why does a transfer at a low strength keep the daylight, even with the night prompt at guidance scale 9?
#
# <details><summary>Answer</summary>
#
# At low $t$ the image shows through the noise and reveals its own weather, so the answers with and without the prompt
# hardly differ (see the loss over time in 02), and guidance multiplies a difference that is close to zero.
# </details>
#
# **5.** You train a ControlNet on layouts in Cityscapes' colours and use it with ADE20K's. What does the program report?
#
# <details><summary>Answer</summary>
#
# Nothing. Colours are numbers like any others; only a measurement such as the contrast on borders, or the fidelity in
# 04, shows that the layout is no longer understood.
# </details>
#
# **Next:** [04 Transferring a data set](04_transferring_a_data_set.ipynb): every training image is transferred once
# and written to disk.
#
# **References.** The paper, Section 3.1 (image transfer) · C. Meng et al., *SDEdit*, ICLR 2022 · J. Song, C. Meng, S.
# Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 · Y. Zhang et al., *Inversion-Based Style Transfer with
# Diffusion Models* (stochastic inversion), CVPR 2023 · L. Zhang et al., *Adding Conditional Control to Text-to-Image
# Diffusion Models*, ICCV 2023.
