"""Latent diffusion models: load, save and describe VAE, UNet, ControlNet, text encoder, tokenizer and scheduler.

A checkpoint is a folder in diffusers' format (one subfolder a part, safetensors), on disk or on the hub; the miniature
and Stable Diffusion 1.5 are read by the same code. `transfer_defaults.json` beside the parts holds the settings that
a checkpoint was made for; without it the paper's settings for Stable Diffusion apply.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from zodi.runs import atomic_path, read_json, write_json

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
STABLE_DIFFUSION_SIZE = "about 4.3 GB"
CONTROLNET_SEG = "lllyasviel/control_v11p_sd15_seg"
CONTROLNET_SEG_SIZE = "about 1.4 GB"
MINI_FOLDER = Path(__file__).parent / "weights" / "mini"
DEFAULTS_FILE = "transfer_defaults.json"
MODULES = ("vae", "unet", "controlnet", "text_encoder")
_VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
# The state of the repository that the code was written for; other repositories are taken as they are today.
_REVISIONS = {STABLE_DIFFUSION: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"}
# Without the half-precision and pickled copies that lie beside them.
_HUB_FILES = [
    "*.json",
    "*/*.json",
    "tokenizer/*",
    "diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


@dataclass(frozen=True)
class TransferDefaults:
    """Transfer settings that belong to a checkpoint; the values here are the paper's for Stable Diffusion 1.5.

    Attributes:
        guidance_scale: classifier-free guidance weight, 1 = none.
        num_inference_steps: steps of the whole DDIM grid.
        short_side: pixels that the shorter image side is resized to.
        multiple: pixels; both sides are rounded to multiples of it (VAE times UNet downsampling).
        palette: colours that layouts are drawn with, "cityscapes" or "ade20k".
        strengths: strengths of domains in place of the paper's, 0 .. 1.
    """

    guidance_scale: float = 9.0
    num_inference_steps: int = 20
    short_side: int = 512
    multiple: int = 64
    palette: str = "cityscapes"
    strengths: dict[str, float] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What every transfer with the checkpoint shares: all but the strengths."""
        return {name: value for name, value in asdict(self).items() if name != "strengths"}


@dataclass(frozen=True)
class DiffusionModel:
    """The parts of a latent diffusion model with a layout ControlNet, ready for inference.

    Attributes:
        name: "mini", the hub id or the name of the folder; goes into manifests and tables.
        vae: images in -1 .. 1 <-> latents.
        unet: denoiser; what it predicts is ruled by `scheduler.config.prediction_type`.
        controlnet: reads the layout image, 0 .. 1 RGB at image resolution; None for an InstructPix2Pix checkpoint.
        text_encoder, tokenizer: prompt -> (L, D) embeddings.
        scheduler: noise schedule (its betas and prediction type).
        defaults: settings that the checkpoint was made for.
        compiled: whether the networks go through torch.compile, which takes a minute for every new batch size.
    """

    name: str
    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    defaults: TransferDefaults = TransferDefaults()
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.unet.dtype


# ---------------------------------------------------------------- load and save


def load(
    model: str | Path = "mini",
    *,
    controlnet: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    compile: bool = False,
    local_files_only: bool = True,
) -> DiffusionModel:
    """Load a checkpoint for inference; safetensors only, no code from the checkpoint runs.

    Args:
        model: "mini" (shipped with this package), a folder in diffusers' format, or a hub id.
        controlnet: folder, hub id or single .safetensors file of the ControlNet, the file in diffusers' names and of
            the shape that the UNet asks for. None = the checkpoint's own `controlnet/` subfolder when it has one, else
            the ControlNet that the paper uses (`CONTROLNET_SEG`).
        device: where the weights go.
        dtype: type of the weights; float32 on CPU, bfloat16 or float16 are faster where the hardware has them.
        variant: of the UNet's weights, "non_ema" for those that the authors used; None = the averaged ones.
        compile: run the networks through torch.compile: minutes at the start, faster afterwards on a GPU.
        local_files_only: True = never download, use what is on this machine.

    Raises:
        FileNotFoundError: if a part is missing; says what to get, how large it is and where to put it.
        ValueError: if a part is not of a class that this code knows.
    """
    folder = _locate(model, STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE, local_files_only, variant)
    if controlnet is None and (folder / "controlnet").is_dir():
        controlnet_folder = folder / "controlnet"
    elif controlnet is None and _sees_an_image(folder):
        controlnet_folder = None
    elif str(controlnet).endswith(".safetensors"):
        controlnet_folder = Path(controlnet)
    else:
        controlnet_folder = _locate(controlnet or CONTROLNET_SEG, CONTROLNET_SEG, CONTROLNET_SEG_SIZE, local_files_only)

    only_safe = {"use_safetensors": True, "local_files_only": True}
    try:
        with _no_progress_bar():
            vae = _vae_class(folder).from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **only_safe)
            unet = UNet2DConditionModel.from_pretrained(
                folder, subfolder="unet", torch_dtype=dtype, variant=variant, **only_safe
            )
            control = None
            if controlnet_folder is not None and controlnet_folder.suffix == ".safetensors":
                control = _controlnet_of_file(controlnet_folder, unet, dtype)
            elif controlnet_folder is not None:
                control = ControlNetModel.from_pretrained(controlnet_folder, torch_dtype=dtype, **only_safe)
            text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **only_safe)
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"diffusion model {str(model)!r} is incomplete. Expected the subfolders unet/, vae/, text_encoder/ (each "
            f"with config.json and safetensors weights), tokenizer/ and scheduler/. Copy it again. Cause: {error}"
        ) from error

    for module in filter(None, (vae, unet, control, text_encoder)):
        module.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    if isinstance(vae, AutoencoderKL):
        # One image at a time: at Stable Diffusion's size a batch would take more memory than all networks.
        vae.enable_slicing()
    is_local = folder == MINI_FOLDER or Path(model).is_dir()
    name = ("mini" if folder == MINI_FOLDER else folder.resolve().name) if is_local else str(model)
    loaded = DiffusionModel(name, vae, unet, control, text_encoder, tokenizer, scheduler, _read_defaults(folder))
    return compiled(loaded) if compile else loaded


def compiled(model: DiffusionModel) -> DiffusionModel:
    """The model with all that runs for images put through torch.compile when it is first called."""
    for module in filter(None, (model.unet, model.controlnet, model.vae.encoder, model.vae.decoder)):
        module.compile(dynamic=False)
    return replace(model, compiled=True)


def save(model: DiffusionModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder that `load` and diffusers' own pipelines read; all of it or nothing.

    Args:
        model: what to write.
        folder: a folder that is there already is replaced.
        dtype: type of the stored weights, for example torch.float16 to halve the size; None = as they are.
    """
    # The pipeline classes take seconds to import and only saving needs them.
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionInstructPix2PixPipeline

    parts = _modules(model) | {"tokenizer": model.tokenizer, "scheduler": model.scheduler}
    pipeline_class = (
        StableDiffusionInstructPix2PixPipeline if model.controlnet is None else StableDiffusionControlNetPipeline
    )
    pipeline = pipeline_class(
        **parts,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with atomic_path(folder) as temporary:
        with _no_progress_bar():
            pipeline.save_pretrained(temporary, safe_serialization=True)
        if dtype is not None:
            for file in temporary.rglob("*.safetensors"):
                weights = {name: value.to(dtype) for name, value in load_file(file).items()}
                save_file(weights, file, metadata={"format": "pt"})
        if isinstance(model.vae, AutoencoderTiny):
            # AutoencoderTiny stores an entry that its own constructor does not take and warns about when it loads.
            config = read_json(temporary / "vae" / "config.json")
            del config["block_out_channels"]
            write_json(temporary / "vae" / "config.json", config)
        write_json(temporary / DEFAULTS_FILE, model.defaults)


def _modules(model: DiffusionModel) -> dict[str, torch.nn.Module]:
    """The networks that a model has."""
    return {part: getattr(model, part) for part in MODULES if getattr(model, part) is not None}


def _locate(
    model: str | Path, paper_id: str, paper_size: str, local_files_only: bool, variant: str | None = None
) -> Path:
    """The folder of a model on this machine, downloaded from the hub if it is a hub id and that is allowed."""
    if str(model) == "mini":
        if not (MINI_FOLDER / "model_index.json").exists():
            raise FileNotFoundError(
                f"{MINI_FOLDER}: the miniature's weights are not there. They come with the package: install it again, "
                "or train them with `python -m zodi pretrain`."
            )
        return MINI_FOLDER
    if Path(model).is_dir():
        return Path(model)
    if isinstance(model, Path) or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{model}: no such folder. Expected 'mini', a folder in diffusers' format (unet/, vae/, text_encoder/, "
            f"tokenizer/, scheduler/) or a hub id such as {paper_id}."
        )
    try:
        return snapshot(model, local_files_only, variant)
    except OSError as error:
        raise FileNotFoundError(
            f"{model!r} is not on this machine. The paper uses {paper_id} ({paper_size}). Download it once with "
            "--download (in Python: local_files_only=False), which puts it into the hub's cache (HF_HOME), or copy its "
            f"folder to any place and give that path instead. Cause: {error}"
        ) from error


def snapshot(repository: str, local_files_only: bool = True, variant: str | None = None) -> Path:
    """The folder of a repository of the hub with the files that `load` reads, at the revision that it reads.

    Raises:
        OSError: if it is not on this machine and may not, or cannot, be downloaded.
    """
    files = [*_HUB_FILES, *([f"unet/*.{variant}.safetensors"] if variant else [])]
    revision = _REVISIONS.get(repository)
    return Path(
        snapshot_download(repository, revision=revision, local_files_only=local_files_only, allow_patterns=files)
    )


def _controlnet_of_file(file: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """The ControlNet of a single file; its settings are those of the UNet that it was made for."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the weights of a ControlNet as .safetensors")
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    try:
        controlnet.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ValueError(
            f"{file}: does not fit the UNet; expected names and shapes of {CONTROLNET_SEG}. Cause: {error}"
        ) from error
    return controlnet.to(dtype)


def _vae_class(folder: Path) -> type[AutoencoderKL] | type[AutoencoderTiny]:
    name = read_json(folder / "vae" / "config.json")["_class_name"]
    if name not in _VAE_CLASSES:
        raise ValueError(f"{folder / 'vae'}: found a {name}, expected one of {list(_VAE_CLASSES)}")
    return _VAE_CLASSES[name]


def _sees_an_image(folder: Path) -> bool:
    """Whether the UNet takes an image beside the noise, as InstructPix2Pix's does; such a model has no ControlNet."""
    channels = [read_json(folder / part / "config.json") for part in ("unet", "vae") if (folder / part).is_dir()]
    return len(channels) == 2 and channels[0]["in_channels"] == 2 * channels[1]["latent_channels"]


def _read_defaults(folder: Path) -> TransferDefaults:
    file = folder / DEFAULTS_FILE
    return TransferDefaults(**read_json(file)) if file.exists() else TransferDefaults()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading and saving print one bar a part, which tells nothing and fills a notebook."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


# ---------------------------------------------------------------- images <-> latents, prompts -> embeddings


@torch.inference_mode()
def encode(model: DiffusionModel, images: Tensor) -> Tensor:
    """Scaled latents of images; the VAE's mean, without sampling, so that the result is deterministic.

    Args:
        model: its VAE is used.
        images: (B, H, W, 3), uint8 0 .. 255 or float 0 .. 1; H and W multiples of the VAE's downsampling.

    Returns:
        float32 (B, C, h, w) on the model's device, of about unit variance.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images: found shape {tuple(images.shape)}, expected (B, H, W, 3)")
    scale = 127.5 if images.dtype == torch.uint8 else 0.5
    x = images.to(model.device).permute(0, 3, 1, 2).float().div(scale).sub(1)
    x = x.to(model.dtype).contiguous(memory_format=torch.channels_last)
    encoded = model.vae.encode(x)
    latents = encoded.latents if isinstance(model.vae, AutoencoderTiny) else encoded.latent_dist.mode()
    return latents.float() * model.vae.config.scaling_factor


@torch.inference_mode()
def decode(model: DiffusionModel, latents: Tensor) -> Tensor:
    """Images of scaled latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU."""
    x = (latents / model.vae.config.scaling_factor).to(model.device, model.dtype)
    images = model.vae.decode(x.contiguous(memory_format=torch.channels_last)).sample
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


@torch.inference_mode()
def embed(model: DiffusionModel, prompts: list[str]) -> Tensor:
    """Text embeddings of B prompts, (B, L, D), padded to the tokenizer's length; longer ones are cut with a warning."""
    length = model.tokenizer.model_max_length
    for prompt in prompts:
        found = len(model.tokenizer.tokenize(prompt)) + 2  # start and end
        if found > length:
            warnings.warn(f"prompt {prompt!r} has {found} tokens; only the first {length} are used", stacklevel=2)
    tokens = model.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model.text_encoder(tokens.input_ids.to(model.device)).last_hidden_state


# ---------------------------------------------------------------- what a model is


def describe(model: DiffusionModel) -> pd.DataFrame:
    """One row a part: class, number of parameters, megabytes in memory."""
    rows = []
    for part, module in _modules(model).items():
        parameters = list(module.parameters())
        rows.append(
            {
                "part": part,
                "class": type(module).__name__,
                "parameters": sum(p.numel() for p in parameters),
                "MB": round(sum(p.numel() * p.element_size() for p in parameters) / 1e6, 1),
            }
        )
    return pd.DataFrame(rows)


def fingerprint(model: DiffusionModel) -> str:
    """12 hex digits that tell two checkpoints apart, whatever their names: schedule, and the start of every weight."""
    schedule = {key: value for key, value in model.scheduler.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(schedule, sort_keys=True).encode())
    for part, module in _modules(model).items():
        for name, value in module.state_dict().items():
            # Training changes every tensor, so a few values of each are enough and cost nothing on large models.
            digest.update(f"{part}.{name}{tuple(value.shape)}".encode())
            digest.update(value.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
