"""Segmentation networks: any architecture and encoder of segmentation_models_pytorch, by name.

Each returns its logits and its deepest encoder features, which the similarity term of the adaptation compares.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zodi.runs import atomic_path, read_json, write_json

DEFAULT_NETWORK = "DeepLabV3Plus/tu-resnet10t"
MINI_SEGMENTER_FILE = Path(__file__).parent / "weights" / "segmenter_mini.safetensors"
# Without the encoder's last stage and with a narrow decoder: as good on the miniature's small images, twice as fast.
_DEFAULT_ARGUMENTS = {"encoder_depth": 4, "decoder_channels": 64}
HEAD = "segmentation_head."

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class NetworkConfig:
    """What `build_network` needs to make the same network again."""

    name: str
    num_classes: int
    arguments: dict[str, Any] = field(default_factory=dict)


class SegmentationNetwork(nn.Module):
    """An smp model whose forward pass also returns the deepest encoder features."""

    def __init__(self, model: nn.Module, config: NetworkConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    @property
    def encoder(self) -> nn.Module:
        """The encoder (backbone)."""
        return self.model.encoder

    @property
    def head(self) -> nn.Module:
        """The last layer, from decoder features to one logit a class."""
        return self.model.segmentation_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features.

        Args:
            x: float (B, 3, H, W) from `normalise`; H and W multiples of 32.

        Returns:
            logits (B, C, H, W), and the deepest encoder features (B, D, h, w).
        """
        features = self.model.encoder(x)
        logits = self.model.segmentation_head(self.model.decoder(features))
        return logits, features[-1]


def build_network(
    name: str, num_classes: int, weights: str | Path | None = None, **arguments: Any
) -> SegmentationNetwork:
    """A segmentation network.

    Args:
        name: "Architecture/encoder" as segmentation_models_pytorch calls them, e.g. "DeepLabV3Plus/resnet50".
        num_classes: C, outputs a pixel.
        weights: None = random; "mini" = encoder and decoder pretrained on the miniature's clear scenes (only
            `DEFAULT_NETWORK`); "imagenet" = the encoder's, downloaded by smp; or a safetensors file with the state of
            the encoder, and of the decoder if it shall have one. The head is always new.
        arguments: passed to the architecture of smp.

    Raises:
        ValueError: for an unknown architecture or encoder, or weights that do not fit.
        FileNotFoundError: if the weights file is missing.
    """
    architecture, _, encoder = name.partition("/")
    if not encoder or architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        known = sorted(model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values())
        raise ValueError(f"network {name!r}: expected ARCHITECTURE/ENCODER with an architecture of {known}")
    if name == DEFAULT_NETWORK:
        arguments = _DEFAULT_ARGUMENTS | arguments
    smp_weights = "imagenet" if weights == "imagenet" else None
    try:
        model = smp.create_model(architecture, encoder, encoder_weights=smp_weights, classes=num_classes, **arguments)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"network {name!r}: segmentation_models_pytorch cannot build it ({error})") from error
    network = SegmentationNetwork(model, NetworkConfig(name, num_classes, arguments))
    if weights not in (None, "imagenet"):
        _load_weights(network, MINI_SEGMENTER_FILE if weights == "mini" else Path(weights))
    return network


def body_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    """State of encoder and decoder, all but the head, which belongs to a label set."""
    return {name: value for name, value in network.model.state_dict().items() if not name.startswith(HEAD)}


def _load_weights(network: SegmentationNetwork, file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such weights. Make them with `python -m zodi pretrain` or choose weights=None"
        )
    weights, expected = load_file(file), body_state(network)
    if not any(name.startswith("decoder.") for name in weights):
        expected = {name: value for name, value in expected.items() if name.startswith("encoder.")}
    wrong = sorted(
        name for name in expected.keys() | weights.keys()
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    )  # fmt: skip
    if wrong:
        raise ValueError(
            f"{file}: {len(wrong)} tensors do not fit {network.config.name!r}, for example {wrong[:3]}; "
            "use the network that the weights were made for, or weights=None."
        )
    network.model.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected}, strict=False)


def normalise(images: Tensor) -> Tensor:
    """Images uint8 (B, H, W, 3) or float 0 .. 1 (B, 3, H, W) -> float32 (B, 3, H, W), ImageNet's mean 0 and std 1."""
    x = images.permute(0, 3, 1, 2).float() / 255 if images.dtype == torch.uint8 else images
    mean, std = IMAGENET_MEAN.to(x.device), IMAGENET_STD.to(x.device)
    return (x - mean[:, None, None]) / std[:, None, None]


def save_network(network: SegmentationNetwork, folder: str | Path) -> None:
    """Write weights and the settings needed to build the network again; all or nothing."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        write_json(temporary / "network.json", asdict(network.config))


def load_network(folder: str | Path) -> SegmentationNetwork:
    """Read what `save_network` wrote; in evaluation mode.

    Raises:
        FileNotFoundError: if the folder holds no network.
    """
    config = read_json(Path(folder) / "network.json")
    network = build_network(config["name"], config["num_classes"], **config["arguments"])
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()
