"""Latent diffusion models: load, save and describe VAE, UNet, ControlNet, text encoder, tokenizer and scheduler.

A checkpoint is a folder in diffusers' format (one subfolder a part, safetensors), on disk or on the hub; the miniature
and Stable Diffusion 1.5 are read by the same code. `transfer_defaults.json` beside the parts holds the settings that
a checkpoint was made for; without it the paper's settings for Stable Diffusion apply.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedConfig

from zodi.generators.interface import Generator, TransferDefaults
from zodi.generators.stable_diffusion import DiffusionModel
from zodi.networks.hub import (
    CONTROLNET_SEG,
    CONTROLNET_SEG_SIZE,
    MINI_FOLDER,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_SIZE,
    locate,
)
from zodi.support.checkpoints import (
    check_config,
    explained,
    fits,
    load_network,
    placed,
    quietly,
    read_config,
    weights_digest,
)
from zodi.support.files import atomic_path, one_line, read_json, write_json
from zodi.support.runs import check_device, check_dtype

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONTROLNET_SEG",
    "DEFAULTS_FILE",
    "MINI_FOLDER",
    "MODULES",
    "STABLE_DIFFUSION",
    "DiffusionModel",
    "Generator",
    "TransferDefaults",
    "compiled",
    "decode",
    "describe",
    "embed",
    "encode",
    "fingerprint",
    "load",
    "save",
]

DEFAULTS_FILE = "transfer_defaults.json"
# Entries of settings that do not change what a network computes.
_NOT_DECISIVE = ("architectures", "dtype", "transformers_version")
MODULES = DiffusionModel.MODULES
_VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


# ---------------------------------------------------------------- load and save


def load(
    model: str | Path = "mini",
    *,
    controlnet: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
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
        device: where the weights go; "auto" = `zodi.support.runs.best_device`.
        dtype: type of the weights, or its name; "auto" = the fastest of the device, `zodi.support.runs.best_dtype`.
        variant: of the UNet's weights, "non_ema" for those that the authors used; None = the averaged ones. Other parts
            take the variant where they have it: with "fp16" a folder of nothing but `*.fp16.safetensors` is read.
        compile: run the networks through torch.compile: minutes at the start, faster afterwards on a GPU.
        local_files_only: True = never download, use what is on this machine.

    Raises:
        FileNotFoundError: if a part is missing; says what to get, how large it is and where to put it.
        ValueError: if a part is damaged, not made for the others or of a class that this code does not know, or this
            machine has no such device; names the file or the device.
    """
    device = check_device(device)
    dtype = check_dtype(dtype, device)
    folder = locate(model, STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE, local_files_only, variant)
    if controlnet is None and (folder / "controlnet").is_dir():
        controlnet_folder = folder / "controlnet"
    elif controlnet is None and _sees_an_image(folder):
        controlnet_folder = None
    elif str(controlnet).endswith(".safetensors"):
        controlnet_folder = Path(controlnet)
    else:
        controlnet_folder = locate(controlnet or CONTROLNET_SEG, CONTROLNET_SEG, CONTROLNET_SEG_SIZE, local_files_only)

    def network(kind: type, part: Path) -> torch.nn.Module:
        # A variant is the UNet's; the other parts need not have it.
        wanted = variant if kind is UNet2DConditionModel or any(part.glob(f"*.{variant}*")) else None
        return load_network(kind, part, device, dtype, wanted)

    with quietly():
        vae = network(_vae_class(folder), folder / "vae")
        unet = network(UNet2DConditionModel, folder / "unet")
        control = None
        if controlnet_folder is not None and controlnet_folder.suffix == ".safetensors":
            control = placed(_controlnet_of_file(controlnet_folder, unet, dtype), device)
        elif controlnet_folder is not None:
            control = network(ControlNetModel, controlnet_folder)
        text_encoder = network(CLIPTextModel, folder / "text_encoder")
        with explained(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with explained(folder / "scheduler"):
            check_config(DDIMScheduler, folder / "scheduler" / "scheduler_config.json")
            scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)

    if isinstance(vae, AutoencoderKL):
        # One image at a time: at Stable Diffusion's size a batch would take more memory than all networks.
        vae.enable_slicing()
    is_local = folder == MINI_FOLDER or Path(model).is_dir()
    name = ("mini" if folder == MINI_FOLDER else folder.resolve().name) if is_local else str(model)
    loaded = DiffusionModel(name, vae, unet, control, text_encoder, tokenizer, scheduler, _read_defaults(folder))
    return compiled(loaded) if compile else loaded


def compiled(model: Generator) -> Generator:
    """The model with all that runs for images put through torch.compile when it is first called."""
    second = model.second and model.second.network
    for module in filter(None, (model.denoiser, model.controlnet, second, model.vae.encoder, model.vae.decoder)):
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

    parts = model.networks() | {"tokenizer": model.tokenizer, "scheduler": model.scheduler}
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
        with quietly():
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


def _controlnet_of_file(file: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """The ControlNet of a single file; its settings are those of the UNet that it was made for."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the weights of a ControlNet as .safetensors")
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    with explained(file):
        weights = load_file(file)
        try:
            controlnet.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{file}: does not fit the UNet; expected names and shapes of {CONTROLNET_SEG}. Cause: "
                f"{one_line(error)}"
            ) from error
    return controlnet.to(dtype)


def _vae_class(folder: Path) -> type[AutoencoderKL] | type[AutoencoderTiny]:
    name = read_config(folder / "vae" / "config.json").get("_class_name")
    if name not in _VAE_CLASSES:
        raise ValueError(f"{folder / 'vae'}: found a {name}, expected one of {list(_VAE_CLASSES)}")
    return _VAE_CLASSES[name]


def _sees_an_image(folder: Path) -> bool:
    """Whether the UNet takes an image beside the noise, as InstructPix2Pix's does; such a model has no ControlNet."""
    found = [read_config(folder / part / "config.json") for part in ("unet", "vae") if (folder / part).is_dir()]
    channels = [config.get(name) for config, name in zip(found, ("in_channels", "latent_channels"), strict=False)]
    return all(isinstance(number, int) for number in channels) and channels[:1] == [2 * n for n in channels[1:]]


def _read_defaults(folder: Path) -> TransferDefaults:
    file = folder / DEFAULTS_FILE
    if not file.exists():
        return TransferDefaults()
    found, known = check_config(TransferDefaults, file), asdict(TransferDefaults())
    strengths = found.get("strengths", {})
    is_right = isinstance(strengths, dict) and all(fits(s, 0.0) and 0 <= s <= 1 for s in strengths.values())
    whole = all(isinstance(value, int) for name, value in found.items() if isinstance(known.get(name), int))
    if not (found.keys() <= known.keys() and None not in found.values() and is_right and whole):
        raise ValueError(f"{file}: found {found}, expected settings as in {known}, strengths 0 .. 1; copy it again")
    return TransferDefaults(**found)


# ---------------------------------------------------------------- images <-> latents, prompts -> embeddings


def encode(model: Generator, images: Tensor) -> Tensor:
    """Scaled latents of images; the VAE's mean, without sampling, so that the result is deterministic.

    Args:
        model: its VAE is used.
        images: (B, H, W, 3), uint8 0 .. 255 or float 0 .. 1; H and W multiples of the VAE's downsampling.

    Returns:
        float32 (B, C, h, w) on the model's device, of about unit variance.

    Raises:
        ValueError: for another shape, or if the VAE gives what is not a number.
    """
    return model.encode(images)


def decode(model: Generator, latents: Tensor) -> Tensor:
    """Images of scaled latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU.

    Raises:
        ValueError: if the latents, or the images that the VAE gives, are not numbers.
    """
    return model.decode(latents)


def embed(model: Generator, prompts: list[str]) -> Tensor:
    """Text embeddings of B prompts, (B, L, D), padded to the tokenizer's length; longer ones are cut with a warning."""
    return model.embed(prompts).tokens


# ---------------------------------------------------------------- what a model is


def describe(model: Generator) -> "pd.DataFrame":
    """One row a part: class, number of parameters, megabytes in memory."""
    import pandas as pd

    rows = []
    for part, module in model.networks().items():
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


def fingerprint(model: Generator) -> str:
    """12 hex digits that tell two checkpoints apart, whatever their names: every weight, setting and token.

    Weights as loaded count by their file, whatever type they have in memory; others by their values.
    """
    networks = model.networks()
    configs = {part: network.config for part, network in networks.items()} | {"schedule": model.scheduler.config}
    digest = hashlib.sha256()
    for name in model.TOKENIZERS:
        if (tokenizer := getattr(model, name)) is not None:
            # Padding and truncation are those of its last call.
            tokens = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
            tokens["length"] = tokenizer.model_max_length
            digest.update(json.dumps(tokens, sort_keys=True).encode())
    for part, config in configs.items():
        settings = config.to_dict() if isinstance(config, PreTrainedConfig) else config
        settings = {name: value for name, value in settings.items() if name[0] != "_" and name not in _NOT_DECISIVE}
        digest.update(f"{part}{json.dumps(settings, sort_keys=True)}".encode())
    for network in networks.values():
        digest.update(weights_digest(network).encode())
    # What other settings of the networks have no entry in their files; nothing where all are as they come.
    used = {"kind": model.control_kind, "lora": model.lora}
    used |= {"second_weight": model.second.weight, "second_kind": model.second.kind} if model.second else {}
    if any(used.values()):
        digest.update(json.dumps(used, sort_keys=True).encode())
    return digest.hexdigest()[:12]
