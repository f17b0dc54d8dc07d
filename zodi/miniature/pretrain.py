"""Training the miniature from scratch: scenes -> VAE -> latents -> UNet + ControlNet + text encoder -> checkpoint.

Every stage leaves a file behind and continues where it stopped; batch number `step` depends only on `(seed, step)`, so
an interrupted run sees the same batches as an uninterrupted one. The parts are stock diffusers classes and the result
is a diffusers folder, so that `zodi.diffusion.load` reads it like Stable Diffusion.
"""

import json
import math
import shutil
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zodi.datasets import Sample
from zodi.diffusion import MINI_FOLDER, DiffusionModel, TransferDefaults, embed, load, save
from zodi.domains import DOMAINS, NEGATIVE_PROMPT, PROMPT_SUFFIX, SOURCE
from zodi.evaluation import confusion, miou
from zodi.labels import CITYSCAPES, IGNORE_INDEX
from zodi.miniature import scenes
from zodi.miniature.optimise import OPTIMIZERS, restore_averaged, train
from zodi.miniature.samples import sample_sheet
from zodi.miniature.weather import SHADERS
from zodi.sampling import add_noise, denoise, paper_scheduler, predictor, visited_timesteps
from zodi.segmentation import DEFAULT_NETWORK, MINI_SEGMENTER_FILE, body_state, build_network, normalise
from zodi.support.checkpoints import placed
from zodi.support.files import atomic_path, read_json, to_plain, write_json
from zodi.support.plots import png
from zodi.support.runs import best_dtype, check_device, image_format
from zodi.support.tensors import read_tensors

PRETRAIN_DOMAINS = tuple(SHADERS)
FACTOR = 4
MAX_TOKENS = 24
SETTINGS_FILE = "pretrain_settings.json"
START = "start"
STAGES = ("diffusion", "segmenter")
WEIGHTS_FOLDER = MINI_FOLDER.parent
SHEET_FILE = "samples.png"
# A longer training run may continue a shorter one; any other setting would make it a different run.
MAY_CHANGE = ("vae_steps", "steps", "minutes", "decoder_steps", "segmenter_steps")
# The decoder's training: how many images are drawn in one batch, and how far back they go.
DRAWN_TOGETHER, DRAWN_STRENGTHS = 8, (0.3, 0.8)
# Chosen on pretraining scenes (`python -m zodi.studies try`); the paper's 9 is for Stable Diffusion and oversaturates
# the miniature's colours. Night and fog go further back than the paper does: their light differs most from a clear
# day's.
DEFAULTS = TransferDefaults(
    guidance_scale=2.0,
    num_inference_steps=12,
    short_side=96,
    multiple=16,
    strengths={"night": 0.75, "snow": 0.6, "rain": 0.6, "fog": 0.75, "game": 0.6},
)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one pretraining.

    Attributes:
        scene_count: scenes of `scenes.PRETRAIN_SEEDS`, each rendered in six domains.
        height, width: pixels, multiples of 16.
        held_out: the last scenes, kept for the validation loss and the sample sheet.
        vae_steps: optimisation steps of the VAE; 0 with `start_from` = keep its VAE unchanged.
        vae_batch_size, vae_crop: crops per step, and their height in pixels; they are twice as wide.
        vae_edges, vae_perceptual: weights of `_edge_loss` and `_perceptual_loss` besides the reconstruction.
        vae_learning_rate, learning_rate: peak values of AdamW.
        latent_channels: channels of the latents.
        steps: optimisation steps of UNet, ControlNet and text encoder together.
        minutes: 0, or how long these steps may take over all sessions; `steps` is then ignored.
        batch_size: frames per step.
        optimizer: "adamw", or "muon" for the matrices inside the networks with AdamW for the rest.
        coarse_noise: standard deviation of the smooth noise that is added to independent noise, 0 .. 1; see `_noise`.
        decoder_steps: optimisation steps of the decoder alone, on latents that the finished model draws; 0 = none.
        decoder_learning_rate: peak value of AdamW.
        drawn: how many pretraining images are drawn again for it.
        prompt_dropout, layout_dropout: share of samples that see the negative prompt, or no layout, 0 .. 1.
        segmenter_steps, segmenter_batch_size, segmenter_learning_rate: training of the segmentation network that all
            rows of the tables start from.
        ema_decay: decay of the exponential moving average of the weights.
        bf16: bfloat16 autocast; None = where the device supports it, see `zodi.support.runs.best_dtype`.
        compile: `torch.compile` UNet and ControlNet; on two CPU cores it takes three minutes and gains 4 %.
        seed: determines weights, batches and noise.
        start_from: checkpoint folder whose networks are trained further, with new optimizers; with another number of
            `latent_channels` all weights that fit are reused. "" = everything from scratch.
    """

    scene_count: int = 20_000
    height: int = 96
    width: int = 192
    held_out: int = 60
    vae_steps: int = 3000
    vae_batch_size: int = 8
    vae_crop: int = 64
    vae_edges: float = 1.0
    vae_perceptual: float = 0.05
    vae_learning_rate: float = 2e-3
    latent_channels: int = 8
    steps: int = 50_000
    minutes: float = 0
    batch_size: int = 16
    optimizer: str = "muon"
    coarse_noise: float = 0.3
    learning_rate: float = 5e-4
    decoder_steps: int = 0
    decoder_learning_rate: float = 4e-4
    drawn: int = 1600
    prompt_dropout: float = 0.1
    layout_dropout: float = 0.05
    segmenter_steps: int = 4000
    segmenter_batch_size: int = 8
    segmenter_learning_rate: float = 2e-3
    ema_decay: float = 0.999
    bf16: bool | None = None
    compile: bool = False
    seed: int = 0
    start_from: str = ""

    def __post_init__(self) -> None:
        if self.decoder_steps and self.drawn < DRAWN_TOGETHER:
            raise ValueError(
                f"drawn={self.drawn}: expected at least {DRAWN_TOGETHER} images for the decoder's training"
            )
        if not 0 < self.held_out < self.scene_count:
            raise ValueError(
                f"held_out={self.held_out}: expected between 1 and scene_count - 1 = {self.scene_count - 1}"
            )
        if self.scene_count > len(scenes.PRETRAIN_SEEDS):
            raise ValueError(f"scene_count={self.scene_count}: expected at most {len(scenes.PRETRAIN_SEEDS)}")
        if self.height % 16 or self.width % 16:
            raise ValueError(f"size {self.height}x{self.width}: expected multiples of 16")
        if self.vae_crop > self.height or 2 * self.vae_crop > self.width or self.vae_crop % 16:
            raise ValueError(
                f"vae_crop={self.vae_crop}: expected a multiple of 16, so that crops {self.vae_crop} pixels high and "
                f"{2 * self.vae_crop} wide fit inside {self.height}x{self.width}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if not 0 <= self.coarse_noise < 1 or self.minutes < 0:
            raise ValueError(
                f"coarse_noise={self.coarse_noise} and minutes={self.minutes}: expected 0 <= coarse_noise < 1 and "
                "minutes >= 0"
            )


# ---------------------------------------------------------------- data


def render_cache(config: PretrainConfig, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Render the pretraining scenes once.

    Returns:
        images: uint8 (N, 6, H, W, 3), memory-mapped, in the order of `PRETRAIN_DOMAINS`.
        labels: uint8 (N, H, W), train ids.
    """
    count, height, width = config.scene_count, config.height, config.width
    images_file, labels_file = out / "images.npy", out / "labels.npy"
    if not labels_file.exists():
        with atomic_path(images_file) as temporary:
            shape = (count, len(PRETRAIN_DOMAINS), height, width, 3)
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            labels = np.empty((count, height, width), np.uint8)
            rendered = scenes.render_many(scenes.PRETRAIN_SEEDS[:count], height, width)
            for index, (image, label) in enumerate(rendered):
                images[index], labels[index] = image, label
            images.flush()
        with atomic_path(labels_file) as temporary, temporary.open("wb") as file:
            np.save(file, labels)
    return np.load(images_file, mmap_mode="r"), np.load(labels_file)


def _to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in -1 .. 1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _palette(device: torch.device) -> Tensor:
    """Colours float32 (256, 3) in 0 .. 1 of all values of a label map; black for void."""
    return torch.from_numpy(CITYSCAPES.colorize(np.arange(256))).to(device).float().div_(255)


def _layout(labels: Tensor, palette: Tensor) -> Tensor:
    """Train ids uint8 (B, H, W) -> layout images float32 (B, 3, H, W) in 0 .. 1, channels last."""
    return palette[labels.long()].permute(0, 3, 1, 2)


def _autocast(config: PretrainConfig, device: torch.device) -> AbstractContextManager:
    enabled = best_dtype(device) == torch.bfloat16 if config.bf16 is None else config.bf16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _take_over(module: nn.Module, trained: nn.Module) -> None:
    """Copy the weights of a trained module; a tensor with more channels keeps its own values in the new ones."""
    state = module.state_dict()
    for name, value in trained.state_dict().items():
        state[name][tuple(slice(size) for size in value.shape)] = value
    module.load_state_dict(state)


# ---------------------------------------------------------------- VAE


def build_vae(latent_channels: int) -> AutoencoderTiny:
    """`AutoencoderTiny` with latents at a quarter of the size."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=latent_channels,
    )


def _dark_adapted(x: Tensor) -> Tensor:
    """Brightness as the eye perceives it, so that dark images count too: -1 .. 1 -> about 0.1 .. 1."""
    return (x.clamp(-1, 1) / 2 + 0.52).sqrt()


def _reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(y, x) + F.mse_loss(y, x) + F.l1_loss(_dark_adapted(y), _dark_adapted(x))


def _edge_loss(x: Tensor, y: Tensor) -> Tensor:
    """How much the amount of edges differs in windows of 8 pixels.

    A decoder that is only right on average draws what it is not sure of, such as a raindrop or a distant pole, too
    softly. Here it may draw it slightly out of place, but not leave it out.
    """
    pairs = zip(_edges(x), _edges(y), strict=True)
    return sum((F.l1_loss(of_y, of_x) for of_x, of_y in pairs), start=x.new_zeros(()))


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of horizontal and of vertical neighbours in the windows, in perceived brightness."""
    luminance = (_dark_adapted(x) * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    across, down = (luminance.diff(dim=dim).abs() for dim in (3, 2))
    return F.avg_pool2d(across, 8, 4), F.avg_pool2d(down, 8, 4)


def _perceptual_loss(encoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How much images differ in the eyes of a network that knows streets: L1 distance of normalised features.

    The idea is that of Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric* (CVPR
    2018); the encoder is that of the miniature's segmentation network, which has seen clear weather only.
    """
    terms = []
    for of_x, of_y in zip(_features(encoder, x), _features(encoder, y), strict=True):
        size = of_x.square().mean(1, keepdim=True).sqrt() + 0.1 * of_x.square().mean().sqrt()
        terms.append(((of_x - of_y) / size).abs().mean())
    return torch.stack(terms).mean()


def _street_encoder(device: torch.device) -> nn.Module:
    """The encoder of `_perceptual_loss`."""
    encoder = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini").model.encoder
    return encoder.to(device).eval().requires_grad_(False)


def _weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """What `train` expects: the weighted sum as `loss`, and the terms for the log."""
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return {"loss": loss} | {name: term.detach() for name, term in terms.items()}


def _features(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """Features at a half, a quarter and an eighth of the size."""
    return encoder(normalise(x.clamp(-1, 1) / 2 + 0.5))[1:4]


def _crops(config: PretrainConfig, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """(scene, domain, top, left) of a batch of the VAE's crops; pixels, multiples of `FACTOR`."""
    rows, columns = (config.height - config.vae_crop) // FACTOR + 1, (config.width - 2 * config.vae_crop) // FACTOR + 1
    train_count, domains = config.scene_count - config.held_out, len(PRETRAIN_DOMAINS)
    limits = np.tile([train_count, domains, rows, columns], (config.vae_batch_size, 1))
    return [(s, d, FACTOR * top, FACTOR * left) for s, d, top, left in rng.integers(limits)]


def _cut(images: np.ndarray, crops: list[tuple[int, int, int, int]], size: int) -> Tensor:
    """float32 (B, 3, size, 2 size) in -1 .. 1."""
    parts = [images[scene, domain, top : top + size, left : left + 2 * size] for scene, domain, top, left in crops]
    return _to_float(np.stack(parts))


def _held_out_images(config: PretrainConfig, images: np.ndarray) -> Tensor:
    """Eight held-out scenes in all domains, float32 (48, 3, H, W)."""
    first = config.scene_count - config.held_out
    return _to_float(images[first : first + 8].reshape(-1, *images.shape[2:]))


@torch.inference_mode()
def _psnr(vae: AutoencoderTiny, held_out: Tensor) -> dict[str, float]:
    """Mean PSNR of the round trip, dB, by domain."""
    parts = [part.to(vae.device) for part in held_out.split(12)]
    y = torch.cat([vae.decode(vae.encode(part).latents).sample.cpu() for part in parts])
    mse = (y - held_out).div(2).square().mean((1, 2, 3)).view(-1, len(PRETRAIN_DOMAINS))
    psnr = -10 * mse.log10().mean(0)
    scores = {f"psnr_{name}": value.item() for name, value in zip(PRETRAIN_DOMAINS, psnr, strict=True)}
    return scores | {"psnr_mean": psnr.mean().item()}


def train_vae(config: PretrainConfig, images: np.ndarray, out: Path, device: torch.device) -> AutoencoderTiny:
    """Train the VAE on random crops of all domains; sets `scaling_factor` so that latents have unit variance.

    A VAE that is trained further keeps its `scaling_factor`, which the diffusion model was trained with.
    """
    torch.manual_seed(config.seed)
    encoder = _street_encoder(device)
    vae, earlier = build_vae(config.latent_channels), []
    if config.start_from:
        start = load(out / START).vae
        _take_over(vae, start)
        earlier = pd.read_csv(out / START / "vae_log.csv").to_dict("records")
    vae.to(device, memory_format=image_format(device))
    held_out = _held_out_images(config, images)

    def loss_of(step: int) -> dict[str, Tensor]:
        x = _cut(images, _crops(config, np.random.default_rng([config.seed, step])), config.vae_crop).to(device)
        x = x.contiguous(memory_format=image_format(device))
        with _autocast(config, device):
            z = vae.encode(x).latents
            noise = torch.randn(z.shape, generator=_generator(config, step)).to(device)
            y = vae.decode(z + 0.03 * noise).sample
        y = y.float()
        terms = {"reconstruction": _reconstruction_loss(x, y), "edges": _edge_loss(x, y)}
        terms |= {"perceptual": _perceptual_loss(encoder, x, y), "z2": z.float().square().mean()}
        weights = {"reconstruction": 1, "edges": config.vae_edges, "perceptual": config.vae_perceptual, "z2": 1e-3}
        return _weighted(terms, weights)

    modules, validate = nn.ModuleDict({"vae": vae}), partial(_psnr, vae, held_out)
    train(
        "vae",
        modules,
        loss_of,
        validate,
        config.vae_steps,
        config.vae_learning_rate,
        out,
        500,
        config.ema_decay,
        earlier,
    )
    if config.start_from and start.config.latent_channels == config.latent_channels:
        scaling_factor = start.config.scaling_factor
    else:
        with torch.inference_mode():
            std = torch.cat([vae.encode(part.to(device)).latents for part in held_out.split(12)]).std().item()
        scaling_factor = 1 / std
    vae.register_to_config(scaling_factor=scaling_factor)
    return vae.requires_grad_(False)


@torch.inference_mode()
def cache_latents(
    config: PretrainConfig, vae: AutoencoderTiny, images: np.ndarray, out: Path, device: torch.device
) -> Tensor:
    """Scaled latents of all images, bfloat16 (N, 6, C, H/4, W/4) in main memory, computed once."""
    file = out / "latents.safetensors"
    if not file.exists():
        latents = []
        vae.to(device, memory_format=image_format(device))
        for part in tqdm(images, "latents", unit="scene"):
            x = _to_float(part).to(device).contiguous(memory_format=image_format(device))
            with _autocast(config, device):
                z = vae.encode(x).latents
            latents.append((z * vae.config.scaling_factor).bfloat16().cpu().contiguous())
        with atomic_path(file) as temporary:
            save_file({"latents": torch.stack(latents)}, temporary)
    return read_tensors(file, "delete it to make it again")["latents"]


# ---------------------------------------------------------------- UNet, ControlNet, text encoder


def _bpe(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Join neighbouring pieces as byte pair encoding does: always the pair whose merge comes first in `merges`."""
    rank = {pair: index for index, pair in enumerate(merges)}
    while any(pair in rank for pair in pairwise(pieces)):
        best = min(pairwise(pieces), key=lambda pair: rank.get(pair, math.inf))
        at = list(pairwise(pieces)).index(best)
        pieces = [*pieces[:at], "".join(best), *pieces[at + 2 :]]
    return pieces


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of our prompts; it spells all other words in bytes."""
    texts = [NEGATIVE_PROMPT, PROMPT_SUFFIX] + [domain.prompt for domain in DOMAINS.values()]
    words = sorted({word for text in texts for word in text.replace(",", " ").split()})
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in words:
        # A merge of an earlier word may apply inside this one, so only what it leaves separate needs merges of its own.
        pieces = _bpe([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            tokens.append("".join(merges[-1]))
            pieces = _bpe(pieces, merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def build_diffusion(seed: int, tokenizer: CLIPTokenizer, latent_channels: int) -> nn.ModuleDict:
    """UNet, ControlNet and text encoder with random weights."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=(24, 48),
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    # Zero-initialised outputs protect a pretrained UNet; here everything is new, and zeros would only delay the
    # layout's effect.
    outputs = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [*outputs, controlnet.controlnet_cond_embedding.conv_out]:
        nn.init.xavier_uniform_(convolution.weight, gain=0.5)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return nn.ModuleDict({"unet": unet, "controlnet": controlnet, "text_encoder": text_encoder})


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with v-prediction and zero terminal SNR, so that night can get dark."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )


def _generator(config: PretrainConfig, step: int) -> torch.Generator:
    """The random numbers of a step: drawn on the CPU, so that they are the same on every device."""
    return torch.Generator().manual_seed(config.seed * 10**9 + step)


def _noise(shape: Sequence[int], coarse_noise: float, generator: torch.Generator) -> Tensor:
    """Standard normal noise (B, C, h, w), plus noise of standard deviation `coarse_noise` that is smooth in space.

    A frame has more than a thousand latents, so their mean survives independent noise up to the last time steps: it
    shows whether the frame is bright or grey, and the prompt is not needed. Smooth noise, half of it one value per
    channel and half of it a grid of 3 x 6, hides that, and the prompt matters earlier (*offset noise*, N. Guttenberg,
    2023). At inference the noise is independent, as in the paper.
    """
    noise = torch.randn(shape, generator=generator)
    if coarse_noise:
        offset, grid = (torch.randn(*shape[:2], *size, generator=generator) for size in ((1, 1), (3, 6)))
        noise += coarse_noise / math.sqrt(2) * (offset + F.interpolate(grid, shape[2:], mode="bilinear"))
    return noise


@dataclass(frozen=True)
class Frames:
    """Everything that training the diffusion model reads, on its device.

    Attributes:
        latents: bfloat16 (N, 6, C, h, w), scaled.
        labels: uint8 (N, H, W), train ids.
        prompts: token ids int64 (14, L): every domain's prompt, without and with the suffix; the negative prompt; "".
        palette: float32 (256, 3), 0 .. 1.
    """

    latents: Tensor
    labels: Tensor
    prompts: Tensor
    palette: Tensor


@dataclass(frozen=True)
class Batch:
    """z and noise float32 (B, C, h, w), layout float32 (B, 3, H, W); int64 (B,): rows of the prompts, times t."""

    z: Tensor
    noise: Tensor
    layout: Tensor
    prompts: Tensor
    t: Tensor


def put_on_device(latents: Tensor, labels: np.ndarray, tokenizer: CLIPTokenizer, device: torch.device) -> Frames:
    """Latents, label maps and token ids, once for the whole training."""
    texts = [DOMAINS[name].prompt + suffix for name in PRETRAIN_DOMAINS for suffix in ("", PROMPT_SUFFIX)]
    texts += [NEGATIVE_PROMPT, ""]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Frames(latents.to(device), torch.from_numpy(labels).to(device), ids.to(device), _palette(device))


def draw_batch(step: int, frames: Frames, config: PretrainConfig) -> Batch:
    """Batch number `step`: it depends only on the seed and the step, and is the same on every device."""
    generator, count, domains = _generator(config, step), config.batch_size, len(PRETRAIN_DOMAINS)
    device = frames.latents.device
    scene = torch.randint(config.scene_count - config.held_out, (count,), generator=generator)
    domain = torch.randint(domains, (count,), generator=generator)
    dropped, suffixed, has_layout, place = torch.rand(4, count, generator=generator)
    own, negative = 2 * domain + (suffixed < 0.8), 2 * domains
    other = torch.where(dropped < 0.8 * config.prompt_dropout, negative, negative + 1)
    prompts = torch.where(dropped < config.prompt_dropout, other, own)
    # One timestep from each of `count` equal parts: less noise in the loss than independent draws.
    t = ((torch.arange(count) + place) / count * 1000).long()
    noise = _noise((count, *frames.latents.shape[2:]), config.coarse_noise, generator)
    scene, domain, keep = scene.to(device), domain.to(device), (has_layout >= config.layout_dropout).to(device)
    return Batch(
        frames.latents[scene, domain].float().contiguous(memory_format=image_format(device)),
        noise.to(device).contiguous(memory_format=image_format(device)),
        _layout(frames.labels[scene], frames.palette) * keep[:, None, None, None],
        prompts.to(device),
        t.to(device),
    )


def train_diffusion(
    config: PretrainConfig, latents: Tensor, labels: np.ndarray, out: Path, device: torch.device
) -> tuple[nn.ModuleDict, CLIPTokenizer, DDIMScheduler]:
    """Train UNet, ControlNet and text encoder together by v-prediction on whole frames."""
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    modules, earlier = build_diffusion(config.seed, tokenizer, config.latent_channels), []
    if config.start_from:
        start = load(out / START)
        for name, module in modules.items():
            _take_over(module, getattr(start, name))
        earlier = pd.read_csv(out / START / "diffusion_log.csv").to_dict("records")
    modules.to(device, memory_format=image_format(device))
    frames = put_on_device(latents, labels, tokenizer, device)
    unet, controlnet, text_encoder = modules["unet"], modules["controlnet"], modules["text_encoder"]

    def predict_v(z_t: Tensor, t: Tensor, embeds: Tensor, layout: Tensor) -> Tensor:
        down, mid = controlnet(z_t, t, embeds, controlnet_cond=layout, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(z_t, t, embeds, **residuals, return_dict=False)[0]

    predict = torch.compile(predict_v) if config.compile else predict_v

    def v_loss(batch: Batch) -> Tensor:
        """Mean squared error of v = sqrt(ac) eps - sqrt(1 - ac) z0, one value per sample."""
        z_t = scheduler.add_noise(batch.z, batch.noise, batch.t)
        v = scheduler.get_velocity(batch.z, batch.noise, batch.t)
        with _autocast(config, device):
            # There are few texts: each is embedded once, however large the batch is.
            embeds = text_encoder(frames.prompts).last_hidden_state[batch.prompts]
            v_hat = predict(z_t, batch.t, embeds, batch.layout)
        return (v_hat.float() - v).square().mean((1, 2, 3))

    @torch.inference_mode()
    def validate() -> dict[str, float]:
        generator = torch.Generator().manual_seed(config.seed)
        first = config.scene_count - config.held_out
        held_out = slice(first, first + 16)
        layout = _layout(frames.labels[held_out], frames.palette)
        t = torch.linspace(30, 970, len(layout)).long().to(device)
        scores = {}
        for index, domain in enumerate(PRETRAIN_DOMAINS):
            z = frames.latents[held_out, index].float()
            noise = torch.randn(z.shape, generator=generator).to(device)
            batch = Batch(z, noise, layout, torch.full_like(t, 2 * index + 1), t)
            scores[f"val_{domain}"] = v_loss(batch).mean().item()
        return scores | {"val_mean": float(np.mean(list(scores.values())))}

    train(
        "diffusion",
        modules,
        lambda step: {"loss": v_loss(draw_batch(step, frames, config)).mean()},
        validate,
        config.steps,
        config.learning_rate,
        out,
        250,
        config.ema_decay,
        earlier,
        config.minutes,
        config.optimizer,
    )
    return modules, tokenizer, scheduler


# ---------------------------------------------------------------- the decoder, on what the model draws


@torch.inference_mode()
def draw_again(
    config: PretrainConfig, model: DiffusionModel, latents: Tensor, labels: np.ndarray, out: Path, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Latents that the model draws from its own pretraining images: noised, then denoised with their prompt and layout.

    Nothing is transferred: each image is drawn in its own domain, so the image itself is the truth for what was drawn.

    Returns:
        Drawn latents, scaled, bfloat16 (N, C, h, w), computed once; scenes and domains, int64 (N, 2).
    """
    generator = torch.Generator().manual_seed(config.seed)
    batches = config.drawn // DRAWN_TOGETHER
    scene = torch.randint(config.scene_count - config.held_out, (batches, DRAWN_TOGETHER), generator=generator)
    domain = torch.arange(batches) % len(PRETRAIN_DOMAINS)
    low, high = DRAWN_STRENGTHS
    strengths = low + (high - low) * torch.rand(batches, generator=generator)
    places = torch.stack([scene.flatten(), domain.repeat_interleave(DRAWN_TOGETHER)], dim=1)
    file = out / "drawn.safetensors"
    if not file.exists():
        scheduler, palette, drawn = paper_scheduler(model.scheduler), _palette(device), []
        for index in tqdm(range(batches), "draw again", unit="batch"):
            visited = visited_timesteps(strengths[index].item(), DEFAULTS.num_inference_steps, scheduler)
            z_0 = latents[scene[index], domain[index]].float()
            noise = [torch.randn(z_0.shape, generator=generator).to(device) for _ in range(len(visited) + 1)]
            prompt = DOMAINS[PRETRAIN_DOMAINS[domain[index]]].prompt + PROMPT_SUFFIX
            embeds = embed(model, [prompt]).expand(DRAWN_TOGETHER, -1, -1)
            layout = _layout(torch.from_numpy(labels[scene[index].numpy()]).to(device), palette)
            predict = predictor(model.unet, model.controlnet, embeds, layout)
            with _autocast(config, device):
                z_t = add_noise(z_0.to(device), noise[0], visited[0], scheduler)
                drawn.append(denoise(predict, z_t, visited, noise[1:], scheduler, 1.0).bfloat16().cpu())
        with atomic_path(file) as temporary:
            save_file({"latents": torch.cat(drawn)}, temporary)
    return read_tensors(file, "delete it to make it again")["latents"], places


def forget_decoder_of_another_model(out: Path) -> None:
    """Delete what was drawn, and what was learnt from it, before the diffusion model was trained further."""
    file, now = out / "drawn_from.json", int(pd.read_csv(out / "diffusion_log.csv")["step"].iloc[-1])
    if not file.exists() or read_json(file) != now:
        for name in ("drawn.safetensors", "decoder_state.pt", "decoder_log.csv"):
            (out / name).unlink(missing_ok=True)
        write_json(file, now)


def train_decoder(
    config: PretrainConfig, vae: AutoencoderTiny, drawn: tuple[Tensor, Tensor], latents: Tensor, images: np.ndarray,
    out: Path, device: torch.device,
) -> None:  # fmt: skip
    """Train the decoder alone: half of each batch is drawn latents, half the encoder's latents of the same images.

    A small model draws softer latents than the encoder gives, without raindrops and flakes. The loss on edges makes the
    decoder put them back.
    """
    vae.to(device, memory_format=image_format(device)).requires_grad_(False)
    vae.decoder.requires_grad_(True)
    encoder = _street_encoder(device)
    held_out = _held_out_images(config, images)
    z_drawn, places = drawn
    half = max(1, config.vae_batch_size // 2)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.integers(len(places), size=half)
        (_, _, top, left), *_ = _crops(config, rng)
        height, width = config.vae_crop, 2 * config.vae_crop
        scene, domain = places[chosen].T
        z = torch.cat([z_drawn[chosen], latents[scene, domain]])
        z = z[:, :, top // FACTOR : (top + height) // FACTOR, left // FACTOR : (left + width) // FACTOR]
        whole = _to_float(np.stack([images[s, d] for s, d in places[chosen].tolist()]))
        x = whole[:, :, top : top + height, left : left + width].repeat(2, 1, 1, 1).to(device)
        with _autocast(config, device):
            y = vae.decode(z.to(device).float() / vae.config.scaling_factor).sample.float()
        terms = {"reconstruction": _reconstruction_loss(x, y), "edges": _edge_loss(x, y)}
        terms["perceptual"] = _perceptual_loss(encoder, x, y)
        weights = {"reconstruction": 1, "edges": 2 * config.vae_edges, "perceptual": config.vae_perceptual}
        return _weighted(terms, weights)

    train(
        "decoder",
        nn.ModuleDict({"decoder": vae.decoder}),
        loss_of,
        partial(_psnr, vae, held_out),
        config.decoder_steps,
        config.decoder_learning_rate,
        out,
        500,
        config.ema_decay,
    )


# ---------------------------------------------------------------- segmentation network


def train_segmenter(
    config: PretrainConfig, images: np.ndarray, labels: np.ndarray, out: Path, device: torch.device
) -> nn.Module:
    """Train a segmenter on the pretraining scenes in clear weather; it stands in for ImageNet weights.

    The paper starts from ImageNet weights, which know images in general. Every row of the miniature's tables starts
    from this encoder and decoder instead, with a new head; they have seen clear weather only.
    """
    torch.manual_seed(config.seed)
    network = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, weights=None).to(device)
    train_count = config.scene_count - config.held_out
    clear = PRETRAIN_DOMAINS.index(SOURCE)
    h, w = config.height * 2 // 3 // 32 * 32, config.width * 2 // 3 // 32 * 32

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([config.seed, step])
        x, y = [], []
        for _ in range(config.segmenter_batch_size):
            scene, flip = rng.integers(train_count), -1 if rng.random() < 0.5 else 1
            top, left = rng.integers(config.height - h + 1), rng.integers(config.width - w + 1)
            x.append(images[scene, clear, top : top + h, left : left + w][:, ::flip])
            y.append(labels[scene, top : top + h, left : left + w][:, ::flip])
        logits, _ = network(normalise(torch.from_numpy(np.stack(x)).to(device)))
        truth = torch.from_numpy(np.stack(y)).long().to(device)
        return {"loss": F.cross_entropy(logits, truth, ignore_index=IGNORE_INDEX)}

    def validate() -> dict[str, float]:
        held_out = range(train_count, config.scene_count)
        samples = [Sample(np.array(images[scene, clear]), labels[scene], str(scene)) for scene in held_out]
        return {"miou_mean": 100 * miou(confusion(network, samples, CITYSCAPES.num_classes))}

    modules = nn.ModuleDict({"network": network})
    train(
        "segmenter",
        modules,
        loss_of,
        validate,
        config.segmenter_steps,
        config.segmenter_learning_rate,
        out,
        250,
        config.ema_decay,
    )
    return network


def export_segmenter(network: nn.Module, config: PretrainConfig, out: Path, file: Path) -> None:
    """Write encoder and decoder as float16 safetensors with the settings in its header; the log goes beside it."""
    weights = {name: value.half().cpu().contiguous() for name, value in body_state(network).items()}
    with atomic_path(file) as temporary:
        save_file(weights, temporary, metadata={"settings": json.dumps(to_plain(config))})
    shutil.copyfile(out / "segmenter_log.csv", file.with_suffix(".csv"))


# ---------------------------------------------------------------- checkpoint


def keeps_vae(config: PretrainConfig, out: Path) -> bool:
    """Whether the VAE of the checkpoint that the training starts from is kept unchanged.

    Raises:
        ValueError: if it should be kept but has another number of latent channels.
    """
    if not config.start_from or config.vae_steps:
        return False
    found = read_json(out / START / "vae" / "config.json")["latent_channels"]
    if found != config.latent_channels:
        raise ValueError(
            f"{config.start_from}: its VAE has {found} latent channels, expected latent_channels="
            f"{config.latent_channels}; train the VAE further (--vae-steps 2000), or ask for {found} channels"
        )
    return True


def assemble(config: PretrainConfig, out: Path) -> DiffusionModel:
    """The model with the averaged weights of the training runs in `out`, finished or not."""
    tokenizer = build_tokenizer()
    if keeps_vae(config, out):
        vae = load(out / START).vae
    else:
        vae = build_vae(config.latent_channels)
        restore_averaged("vae", nn.ModuleDict({"vae": vae}), out)
        vae.register_to_config(scaling_factor=read_json(out / "scaling_factor.json"))
    if (out / "decoder_state.pt").exists():
        restore_averaged("decoder", nn.ModuleDict({"decoder": vae.decoder}), out)
    modules = build_diffusion(config.seed, tokenizer, config.latent_channels)
    restore_averaged("diffusion", modules, out)
    parts = {name: modules[name] for name in ("unet", "controlnet", "text_encoder")}
    return DiffusionModel("mini", vae, **parts, tokenizer=tokenizer, scheduler=build_scheduler(), defaults=DEFAULTS)


def export(config: PretrainConfig, out: Path, folder: Path) -> None:
    """Write the checkpoint in float16 with its settings, training logs and sample sheet."""
    settings = to_plain(config)
    if config.start_from:
        settings["started_from"] = read_json(out / START / SETTINGS_FILE)
    model = assemble(config, out)
    with atomic_path(folder) as temporary:
        save(model, temporary, torch.float16)
        write_json(temporary / SETTINGS_FILE, settings)
        for name in ("vae_log.csv", "diffusion_log.csv", "decoder_log.csv"):
            logs = [file for file in (out / name, out / START / name) if file.exists()]
            if logs:
                shutil.copyfile(logs[0], temporary / name)
        # From the stored weights, as users get them, and from a scene that no training run of this size has seen.
        sheet = sample_sheet(load(temporary), scenes.PRETRAIN_SEEDS[-1], config.height, config.width)
        (temporary / SHEET_FILE).write_bytes(png(sheet))
        plt.close(sheet)


def check_settings(config: PretrainConfig, out: Path) -> None:
    """Record the settings in `out`; refuse to continue with others.

    Raises:
        ValueError: if `out` holds a training run with other settings; names them.
    """
    file = out / SETTINGS_FILE
    if file.exists():
        new, old = to_plain(config), read_json(file)
        differing = [f"{key}: {old.get(key)} -> {new[key]}" for key in new if new[key] != old.get(key)]
        refused = [text for text in differing if not text.startswith(MAY_CHANGE)]
        if refused:
            raise ValueError(
                f"{out} holds a training run with other settings ({'; '.join(refused)}); choose another --out"
            )
    write_json(file, config)


def pretrain(
    config: PretrainConfig, out: Path, weights: Path, stages: Collection[str] = STAGES, device: str = "auto"
) -> None:
    """The scenes, then the stages asked for.

    Args:
        config: the settings.
        out: folder of caches, states and logs; a run that was stopped continues from them.
        weights: where the results go.
        stages: "diffusion" = VAE, latents, UNet + ControlNet + text encoder, the decoder again, checkpoint
            `weights`/mini; "segmenter" = the segmentation network that all rows of the tables start from.
        device: where to train, see `zodi.support.runs.check_device`.
    """
    where = check_device(device)
    out.mkdir(parents=True, exist_ok=True)
    check_settings(config, out)
    images, labels = render_cache(config, out)
    if "diffusion" in stages:
        if config.start_from and not (out / START).exists():
            # A copy, because the result may be written over it.
            with atomic_path(out / START) as temporary:
                shutil.copytree(config.start_from, temporary)
        if keeps_vae(config, out):
            vae = load(out / START).vae
        else:
            vae = train_vae(config, images, out, where)
            write_json(out / "scaling_factor.json", vae.config.scaling_factor)
        latents = cache_latents(config, vae, images, out, where)
        train_diffusion(config, latents, labels, out, where)
        if config.decoder_steps:
            forget_decoder_of_another_model(out)
            model = assemble(config, out)
            for network in model.networks().values():
                placed(network, where)
            drawn = draw_again(config, model, latents, labels, out, where)
            train_decoder(config, vae, drawn, latents, images, out, where)
        export(config, out, weights / MINI_FOLDER.name)
    if "segmenter" in stages:
        network = train_segmenter(config, images, labels, out, where)
        export_segmenter(network, config, out, weights / MINI_SEGMENTER_FILE.name)
