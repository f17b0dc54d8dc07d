"""Which family a checkpoint belongs to, and its parts: all of them loaded, or one line that names what is missing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import nn

from zodi.generators.flux import Flux
from zodi.generators.interface import Generator, TransferDefaults
from zodi.generators.sdxl import StableDiffusionXL
from zodi.generators.stable_diffusion import DiffusionModel
from zodi.generators.stable_diffusion_3 import StableDiffusion3
from zodi.networks.hub import CONTROLNET_SEG, CONTROLNET_SEG_SIZE, locate
from zodi.support.checkpoints import check_config, explained, placed, read_config
from zodi.support.files import one_line

FAMILIES: tuple[type[Generator], ...] = (DiffusionModel, StableDiffusionXL, StableDiffusion3, Flux)
# Folder of a part, its class -> the network.
LoadNetwork = Callable[[type, Path], nn.Module]


def family_of(folder: Path) -> type[Generator]:
    """The family of a checkpoint, by the settings of its denoiser.

    Raises:
        ValueError: if it belongs to none of them, or its settings cannot be read; names the part.
    """
    if (folder / "transformer").is_dir():
        by_class = {cls.__name__: kind for kind in FAMILIES for cls in kind.PARTS.get("transformer", ())}
        return by_class[_class_name(folder / "transformer", list(by_class))]
    unet, index = folder / "unet" / "config.json", folder / "model_index.json"
    if not unet.is_file() and index.is_file():
        # The denoiser is missing; the pipeline that wrote the checkpoint says which it should be.
        written_by = str(read_config(index).get("_class_name"))
        return next(
            (
                kind
                for kind in FAMILIES[:0:-1]
                if written_by.startswith(kind.PIPELINE.removesuffix("ControlNetPipeline"))
            ),
            DiffusionModel,
        )
    # SDXL's UNet is of the same class, but is given a vector for the whole prompt and the size of the image.
    is_told_the_size = unet.is_file() and read_config(unet).get("addition_embed_type") == "text_time"
    return StableDiffusionXL if is_told_the_size else DiffusionModel


def check_parts(kind: type[Generator], folder: Path) -> None:
    """Raises FileNotFoundError if a checkpoint of the family lacks a part, ValueError if one is of another class."""
    expected = [*kind.PARTS, *kind.TOKENIZERS, "scheduler"]
    expected.remove("controlnet")
    for part in expected:
        if not (folder / part).is_dir() and part not in kind.OPTIONAL:
            raise FileNotFoundError(
                f"{folder / part}: the diffusion model is incomplete. A checkpoint of {kind.family} has the subfolders "
                f"{', '.join(f'{name}/' for name in expected)}; copy it again"
            )
        if part in kind.PARTS and (folder / part).is_dir():
            class_of(folder / part, kind.PARTS[part])
    flows = issubclass(kind.SCHEDULER, FlowMatchEulerDiscreteScheduler)
    file = folder / "scheduler" / "scheduler_config.json"
    if flows and file.is_file() and "FlowMatch" not in str(read_config(file).get("_class_name")):
        found = read_config(file).get("_class_name")
        raise ValueError(f"{file}: found a {found}, expected a {kind.SCHEDULER.__name__}; copy it again")


def class_of(part: Path, classes: tuple[type, ...]) -> type:
    """Whichever of the classes a part's settings name; the first where they name none.

    Raises:
        ValueError: if they name another.
    """
    by_name = {cls.__name__: cls for cls in classes}
    return by_name[_class_name(part, list(by_name))]


def _class_name(part: Path, names: list[str]) -> str:
    """The class that a part's settings name: diffusers writes one, transformers a list."""
    if not (part / "config.json").is_file():
        # A missing file is reported when the part is loaded.
        return names[0]
    config = read_config(part / "config.json")
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if "num_control_type" in config and ControlNetUnionModel.__name__ in names:
        # Published checkpoints name a class of their authors' program, which has become this one.
        found = ControlNetUnionModel.__name__
    if found is not None and found not in names:
        raise ValueError(f"{part}: found a {found}, expected {' or '.join(names)}")
    return found or names[0]


def load_parts(kind: type[Generator], folder: Path, network: LoadNetwork, dtype: torch.dtype) -> dict[str, Any]:
    """Every part of a checkpoint but the ControlNet, by the name of the family's field; optional ones may be None."""
    parts: dict[str, Any] = {}
    for part, classes in kind.PARTS.items():
        if part == "controlnet":
            continue
        here = folder / part
        parts[part] = network(class_of(here, classes), here) if here.is_dir() or part not in kind.OPTIONAL else None
    if kind is StableDiffusionXL and dtype == torch.float16 and parts["vae"].config.force_upcast:
        # Its values leave the range of float16.
        parts["vae"] = parts["vae"].float()
    for name, cls in kind.TOKENIZERS.items():
        parts[name] = None
        if (folder / name).is_dir() or name not in kind.OPTIONAL:
            with explained(folder / name):
                parts[name] = cls.from_pretrained(folder / name, local_files_only=True)
    with explained(folder / "scheduler"):
        check_config(kind.SCHEDULER, folder / "scheduler" / "scheduler_config.json")
        parts["scheduler"] = kind.SCHEDULER.from_pretrained(folder / "scheduler", local_files_only=True)
    return parts


def defaults_of(kind: type[Generator], denoiser: Mapping[str, Any]) -> TransferDefaults:
    """The settings for a checkpoint without its own: the family's or, if its denoiser says so, its fast version's."""
    if kind is Flux and not denoiser.get("guidance_embeds"):
        # FLUX.1 schnell: 1 to 4 steps without guidance.
        return replace(kind.DEFAULTS, guidance_scale=1.0, num_inference_steps=4)
    return kind.DEFAULTS


# ---------------------------------------------------------------- ControlNets


def find_controlnet(kind: type[Generator], controlnet: str | Path | None, local_files_only: bool) -> Path:
    """Folder or single file of a ControlNet; None = the paper's, for its family.

    Raises:
        FileNotFoundError: if it is not there; says what to get.
    """
    if str(controlnet).endswith(".safetensors"):
        return Path(controlnet)
    if controlnet is None and kind is not DiffusionModel:
        examples = f", for example {' or '.join(kind.CONTROLNETS)}" if kind.CONTROLNETS else ""
        raise FileNotFoundError(
            f"a model of {kind.family} without a subfolder controlnet/: give a ControlNet for this family by folder or "
            f"hub id (--controlnet){examples}"
        )
    return locate(controlnet or CONTROLNET_SEG, CONTROLNET_SEG, CONTROLNET_SEG_SIZE, local_files_only)


def load_controlnet(kind: type[Generator], place: Path, denoiser: nn.Module, network: LoadNetwork) -> nn.Module:
    """A ControlNet for a denoiser that is already loaded.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is damaged, or made for another family or denoiser.
    """
    if place.suffix == ".safetensors":
        if ControlNetModel not in kind.PARTS["controlnet"]:
            raise ValueError(f"{place}: a single file; for {kind.family} give the ControlNet's folder or hub id")
        return placed(_controlnet_of_file(place, denoiser), denoiser.device)
    control = network(class_of(place, kind.PARTS["controlnet"]), place)
    check_made_for(place, control.config, denoiser.config)
    if getattr(control.config, "use_pos_embed", True) is False:
        # It shares the transformer's.
        shared = control._get_pos_embed_from_transformer(denoiser)
        control.pos_embed = shared.to(denoiser.device, denoiser.dtype).requires_grad_(False)
    return control


def check_made_for(place: Path, control: Mapping[str, Any], denoiser: Mapping[str, Any]) -> None:
    """Raises ValueError if the settings of a ControlNet do not fit those of the denoiser."""
    for name in ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "in_channels"):
        found, expected = control.get(name), denoiser.get(name)
        # Stable Diffusion 3.5's ControlNets may read no text.
        if found is not None and expected is not None and found != expected:
            raise ValueError(
                f"{place}: found {name} = {found}, expected the {expected} of the model; choose a ControlNet that was "
                "made for it"
            )


def kind_of_map(
    kind: type[Generator], control: Mapping[str, Any], given: int | None, default: int | None
) -> int | None:
    """`Control.kind`: the given one, or the default, of a ControlNet that reads several kinds of map; else None.

    Args:
        kind: the family.
        control: settings of the ControlNet, empty if there is none.
        given, default: numbers, the first the user's.

    Raises:
        ValueError: if a number is missing, out of range, or given for a ControlNet that reads one kind of map.
    """
    count = control.get("num_control_type") or control.get("num_mode")
    chosen = default if given is None else given
    if count is None:
        if given is not None:
            raise ValueError(f"kind of map {given}: this ControlNet reads one kind of map only; leave it out")
        return None
    if chosen is None or not 0 <= chosen < count:
        raise ValueError(
            f"kind of map {chosen}: this ControlNet of {kind.family} reads {count} kinds of map; give the number of "
            f"yours, 0 .. {count - 1}, from its description (--control-kind, --second-kind)"
        )
    return chosen


def _controlnet_of_file(file: Path, unet: nn.Module) -> ControlNetModel:
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
    return controlnet.to(unet.dtype)
