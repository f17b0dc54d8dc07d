"""A segmentation model by name, with the weights that it starts from."""

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from zodi.networks import huggingface, library
from zodi.networks.adapters import add_lora
from zodi.networks.paper import PAPER_NETWORKS
from zodi.networks.weights import paper_weights, read_weights, set_weights
from zodi.support.files import one_line

DEFAULT_NETWORK = "DeepLabV3Plus/tu-resnet10t"
MINI_SEGMENTER_FILE = Path(__file__).parents[1] / "weights" / "segmenter_mini.safetensors"
# Without the encoder's last stage and with a narrow decoder: as good on the miniature's small images, twice as fast.
_DEFAULT_ARGUMENTS = {"encoder_depth": 4, "decoder_channels": 64}


def auto_weights(name: str, weights: str | None) -> str | None:
    """What "auto" stands for: the weights that a network of this name comes with, None = random ones."""
    if name.startswith(huggingface.PREFIX):
        # The weights that recipes name are for other networks.
        return huggingface.CHECKPOINT if weights in ("auto", "imagenet") else weights
    return ("mini" if name == DEFAULT_NETWORK else None) if weights == "auto" else weights


def weights_file(name: str, weights: str | Path | None) -> Path | None:
    """The file that a network starts from, if it is one on this machine."""
    if weights == huggingface.CHECKPOINT:
        return next(iter(sorted(huggingface.locate(name).glob("*.safetensors"))), None)
    file = MINI_SEGMENTER_FILE if weights == "mini" else Path(weights or "")
    return file if file.is_file() else None


def build_model(
    name: str, outputs: int, weights: str | Path | None, lora_rank: int = 0, **arguments: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with an `encoder` and a `segmentation_head`; see `zodi.segmentation.build_network`.

    Returns:
        The model, and the arguments with which it can be built again.
    """
    if name.startswith(huggingface.PREFIX):
        model, arguments = huggingface.build(name, outputs, weights, **arguments)
    else:
        if name == DEFAULT_NETWORK:
            arguments = _DEFAULT_ARGUMENTS | arguments
        model = _build_by_library(name, outputs, weights, arguments)
    if lora_rank:
        add_lora(model.encoder, lora_rank, name)
        arguments = arguments | {"lora_rank": lora_rank}
    return model, arguments


def _build_by_library(name: str, outputs: int, weights: str | Path | None, arguments: dict[str, Any]) -> nn.Module:
    architecture, _, encoder = name.partition("/")
    is_paper = architecture in PAPER_NETWORKS
    if not encoder or not (is_paper or architecture.lower() in smp.MODEL_ARCHITECTURES_MAPPING):
        known = [*PAPER_NETWORKS, *sorted(model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values())]
        raise ValueError(
            f"network {name!r}: expected ARCHITECTURE/ENCODER with an architecture of {known}, or hf:FOLDER"
        )
    try:
        if is_paper:
            model = PAPER_NETWORKS[architecture](encoder, outputs, **arguments)
        else:
            model = library.create(architecture, encoder, outputs, weights == "imagenet", **arguments)
    except OSError as error:
        raise FileNotFoundError(
            f"network {name!r}: the weights of its encoder are not on this machine and cannot be downloaded "
            f"({one_line(error)}). Get them once online (they stay in HF_HOME), or choose a file or weights=None"
        ) from error
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"network {name!r}: segmentation_models_pytorch cannot build it ({error})") from error
    if weights == "imagenet":
        if is_paper:
            set_weights(model, paper_weights(encoder), name, f"ImageNet weights of {encoder}")
    elif weights is not None:
        file = MINI_SEGMENTER_FILE if weights == "mini" else Path(weights)
        set_weights(model, read_weights(file), name, str(file))
    return model
