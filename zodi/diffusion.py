"""Latent diffusion models: load, save and describe VAE, denoiser, ControlNet, text encoders, tokenizers and scheduler.

A checkpoint is a folder in diffusers' format (one subfolder per part, safetensors), on disk or on the hub; the
miniature and Stable Diffusion 1.5 are read by the same code. So are other families: what they have in common is in
`zodi.generators.interface`. `transfer_defaults.json` beside the parts holds the settings that a checkpoint was made
for; without it those of its family apply, for Stable Diffusion the paper's.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetUnionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig

from zodi.generators.additions import Additions
from zodi.generators.examine import Examination, parts_of, schedule_text
from zodi.generators.families import (
    check_made_for,
    check_parts,
    defaults_of,
    family_of,
    find_controlnet,
    kind_of_map,
    load_controlnet,
    load_parts,
)
from zodi.generators.interface import Control, Generator, TransferDefaults
from zodi.generators.lora import add_lora, few_step_defaults
from zodi.generators.stable_diffusion import DiffusionModel
from zodi.networks.hub import (
    CONTROLNET_SEG,
    MINI_FOLDER,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_SIZE,
    locate,
    locate_lora,
)
from zodi.support.checkpoints import (
    check_config,
    explained,
    fits,
    load_network,
    quietly,
    read_config,
    weights_digest,
)
from zodi.support.files import atomic_path, read_json, write_json
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
    "examine",
    "fingerprint",
    "load",
    "save",
]

DEFAULTS_FILE = "transfer_defaults.json"
# Entries of settings that do not change what a network computes.
_NOT_DECISIVE = ("architectures", "dtype", "transformers_version")
MODULES = (*DiffusionModel.PARTS,)


# ---------------------------------------------------------------- load and save


def load(
    model: str | Path = "mini",
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    compile: bool = False,
    local_files_only: bool = True,
    **added: Any,
) -> Generator:
    """Load a checkpoint for inference; safetensors only, no code from the checkpoint runs.

    Args:
        model: "mini" (shipped with this package), a folder in diffusers' format, or a hub id, of any of
            `zodi.generators.families.FAMILIES`.
        device: where the weights go; "auto" = `zodi.support.runs.best_device`.
        dtype: type of the weights, or its name; "auto" = the fastest on the device, `zodi.support.runs.best_dtype`.
        compile: run the networks through torch.compile: minutes at the start, faster afterwards on a GPU.
        local_files_only: True = never download, use what is on this machine.
        added: fields of `zodi.generators.additions.Additions`: ControlNets, weights for few steps, a variant.

    Raises:
        FileNotFoundError: if a part is missing; says what to get, how large it is and where to put it.
        ValueError: if a part is damaged, not made for the others or of a class unknown to this code, or this machine
            has no such device; names the file or the device.
    """
    device = check_device(device)
    dtype = check_dtype(dtype, device)
    plus = Additions(**added)
    found = _find(model, plus, local_files_only)
    folder, kind = found.folder, found.kind

    def network(cls: type, part: Path) -> torch.nn.Module:
        # Only the denoiser has to have the variant; the other parts need not.
        is_wanted = part.name in ("unet", "transformer") or any(part.glob(f"*.{plus.variant}*"))
        return load_network(cls, part, device, dtype, plus.variant if is_wanted else None)

    with quietly():
        parts = load_parts(kind, folder, network, dtype)
        denoiser = parts[kind.DENOISER]
        # A ControlNet that reads several kinds of map may read both maps.
        controls = {place: load_controlnet(kind, place, denoiser, network) for place in {*found.controls.values()}}
    first, second = (controls.get(found.controls.get(part)) for part in ("controlnet", "second_control"))
    kinds = _kinds(kind, [control and control.config for control in (first, second)], plus)
    if isinstance(parts["vae"], AutoencoderKL):
        # One image at a time: at Stable Diffusion's size a batch would take more memory than all networks.
        parts["vae"].enable_slicing()
    defaults, lora = _read_defaults(folder, defaults_of(kind, denoiser.config)), ""
    if plus.lora is not None:
        file = locate_lora(plus.lora, local_files_only)
        add_lora(kind, denoiser, file, plus.lora_scale)
        defaults, lora = few_step_defaults(kind, defaults), f"{file.name} x {plus.lora_scale:g}"
    loaded = kind(
        name=found.name,
        controlnet=first,
        defaults=defaults,
        control_kind=kinds[0],
        second=None if second is None else Control(second, plus.second_weight, kinds[1]),
        lora=lora,
        **parts,
    )
    return compiled(loaded) if compile else loaded


def examine(model: str | Path = "mini", *, local_files_only: bool = True, **added: Any) -> Examination:
    """What `load` with the same arguments would load and a transfer would do, without loading the weights.

    Raises:
        FileNotFoundError, ValueError: as `load`, as far as settings and headers tell.
    """
    plus = Additions(**added)
    found = _find(model, plus, local_files_only)
    folder, kind = found.folder, found.kind
    with explained(folder / kind.DENOISER):
        denoiser = read_config(folder / kind.DENOISER / "config.json")
    defaults = _read_defaults(folder, defaults_of(kind, denoiser))
    places = [found.controls.get(part) for part in ("controlnet", "second_control")]
    configs = [read_config(place / "config.json") if place and place.is_dir() else {} for place in places]
    for place, config in zip(places, configs, strict=True):
        check_made_for(place, config, denoiser)
    kinds = _kinds(kind, configs, plus)
    controls = {part: place for part, place in found.controls.items() if part == "controlnet" or place != places[0]}
    parts = parts_of(kind, folder, controls, plus.variant)
    few_steps = "none"
    if plus.lora is not None:
        few_steps = f"{locate_lora(plus.lora, local_files_only).name} x {plus.lora_scale:g}"
        defaults = few_step_defaults(kind, defaults)
    maps = ["the layout" if kinds[0] is None else f"the layout as kind {kinds[0]}"] if places[0] else []
    if places[1]:
        maps.append(f"a second map x {plus.second_weight:g}" + ("" if kinds[1] is None else f" as kind {kinds[1]}"))
    will_do = {
        "method": "stochastic_inversion (--method for others)" if maps else "instruct_pix2pix, without layout",
        "controls": " and ".join(maps) or "none",
        **schedule_text(kind, folder, plus.lora is not None),
        "working size": f"short side {defaults.short_side} pixels, sides multiples of {defaults.multiple}",
        "steps": f"{defaults.num_inference_steps} for the whole schedule, guidance weight {defaults.guidance_scale:g}",
        "strength": f"{math.ceil(1000 / defaults.num_inference_steps) / 1000:g} (one step) .. 1 (all steps)",
        "weights for few steps": few_steps,
    }
    return Examination(found.name, kind.family, defaults, will_do, parts)


class _Found(NamedTuple):
    """Where a checkpoint and its ControlNets (by part) are, its family, and its name."""

    folder: Path
    kind: type[Generator]
    name: str
    controls: dict[str, Path]


def _find(model: str | Path, plus: Additions, local_files_only: bool) -> _Found:
    folder = locate(model, STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE, local_files_only, plus.variant)
    kind = family_of(folder)
    check_parts(kind, folder)
    wanted = {"controlnet": plus.controlnet}
    if plus.controlnet is None and (folder / "controlnet").is_dir():
        wanted["controlnet"] = folder / "controlnet"
    elif plus.controlnet is None and _sees_an_image(folder):
        wanted = {}
    if plus.second_control is not None:
        if not wanted:
            raise ValueError(f"model {str(model)!r} takes no ControlNet, and so no second one either")
        wanted["second_control"] = plus.second_control
    is_local = folder == MINI_FOLDER or Path(model).is_dir()
    name = ("mini" if folder == MINI_FOLDER else folder.resolve().name) if is_local else str(model)
    return _Found(
        folder, kind, name, {part: find_controlnet(kind, place, local_files_only) for part, place in wanted.items()}
    )


def _kinds(kind: type[Generator], configs: list[Mapping[str, Any] | None], plus: Additions) -> list[int | None]:
    """`Control.kind` of both ControlNets."""
    given = ((plus.control_kind, kind.SEGMENTATION_KIND), (plus.second_kind, None))
    return [kind_of_map(kind, config or {}, *numbers) for config, numbers in zip(configs, given, strict=True)]


def compiled(model: Generator) -> Generator:
    """The model, with everything that runs on images put through torch.compile when it is first called."""
    second = model.second and model.second.network
    for module in filter(None, (model.denoiser, model.controlnet, second, model.vae.encoder, model.vae.decoder)):
        module.compile(dynamic=False)
    return replace(model, compiled=True)


def save(model: Generator, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder that `load` and diffusers' own pipelines read, completely or not at all.

    Args:
        model: what to write; a second ControlNet is a checkpoint of its own and not part of it.
        folder: a folder that is there already is replaced.
        dtype: type of the stored weights, for example torch.float16 to halve the size; None = as they are.
    """
    # The pipeline classes take seconds to import and only saving needs them.
    import diffusers

    names = (*model.PARTS, *model.TOKENIZERS, "scheduler")
    parts, pipeline = {name: getattr(model, name) for name in names}, model.PIPELINE
    if model.controlnet is None:
        del parts["controlnet"]
        pipeline = "StableDiffusionInstructPix2PixPipeline"
    elif isinstance(model.controlnet, ControlNetUnionModel):
        pipeline = "StableDiffusionXLControlNetUnionPipeline"
    if isinstance(model, DiffusionModel):
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, pipeline)(**parts)
    with atomic_path(folder) as temporary:
        with quietly():
            pipeline.save_pretrained(temporary, safe_serialization=True)
        if dtype is not None:
            for file in temporary.rglob("*.safetensors"):
                weights = {name: value.to(dtype) for name, value in load_file(file).items()}
                save_file(weights, file, metadata={"format": "pt"})
        # Where a part was on this machine is nobody's business; and AutoencoderTiny stores an entry that its own
        # constructor does not accept, and warns about it on loading.
        superfluous = {"_name_or_path"} | ({"block_out_channels"} if isinstance(model.vae, AutoencoderTiny) else set())
        for file in temporary.glob("*/config.json"):
            unwanted = superfluous if file.parent.name == "vae" else {"_name_or_path"}
            config = read_json(file)
            write_json(file, {name: value for name, value in config.items() if name not in unwanted})
        write_json(temporary / DEFAULTS_FILE, model.defaults)


def _sees_an_image(folder: Path) -> bool:
    """Whether the UNet takes an image beside the noise, as InstructPix2Pix's does; such a model has no ControlNet."""
    found = [read_config(folder / part / "config.json") for part in ("unet", "vae") if (folder / part).is_dir()]
    channels = [config.get(name) for config, name in zip(found, ("in_channels", "latent_channels"), strict=False)]
    return all(isinstance(number, int) for number in channels) and channels[:1] == [2 * n for n in channels[1:]]


def _read_defaults(folder: Path, otherwise: TransferDefaults) -> TransferDefaults:
    file = folder / DEFAULTS_FILE
    if not file.exists():
        return otherwise
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
        ValueError: for another shape, or if the VAE's output is not finite.
    """
    return model.encode(images)


def decode(model: Generator, latents: Tensor) -> Tensor:
    """Images of scaled latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU.

    Raises:
        ValueError: if the latents, or the VAE's images, are not finite.
    """
    return model.decode(latents)


def embed(model: Generator, prompts: list[str]) -> Tensor:
    """Text embeddings of B prompts, (B, L, D), padded to the tokenizer's length; longer ones are cut with a warning."""
    return model.embed(prompts).tokens


# ---------------------------------------------------------------- what a model is


def describe(model: Generator) -> "pd.DataFrame":
    """One row per part: class, number of parameters, megabytes in memory."""
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
    """12 hex digits that tell two checkpoints apart, whatever their names: made from every weight, setting and token.

    Weights as loaded are identified by their file, whatever their type in memory; others by their values.
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
    # What is set besides the files; nothing if all is at its default. Few-step weights bring another schedule.
    used = {"kind": model.control_kind, "few_steps": bool(model.lora)}
    used |= {"second_weight": model.second.weight, "second_kind": model.second.kind} if model.second else {}
    if any(used.values()):
        digest.update(json.dumps(used, sort_keys=True).encode())
    return digest.hexdigest()[:12]
