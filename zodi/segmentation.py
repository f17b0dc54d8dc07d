"""Segmentation networks: any architecture and encoder of segmentation_models_pytorch and the paper's own, by name.

Each returns its logits and its deepest encoder features, which the similarity term of the adaptation compares;
`zodi.networks.own` makes any other network do so.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zodi.labels import LabelSet
from zodi.networks.paper import PAPER_NETWORKS
from zodi.networks.weights import paper_weights, read_weights, set_weights, weights_of_body
from zodi.support.checks import check_network
from zodi.support.files import atomic_path, one_line, read_json, write_json
from zodi.support.tensors import load_into, read_tensors

DEFAULT_NETWORK = "DeepLabV3Plus/tu-resnet10t"
MINI_SEGMENTER_FILE = Path(__file__).parent / "weights" / "segmenter_mini.safetensors"
# Without the encoder's last stage and with a narrow decoder: as good on the miniature's small images, twice as fast.
_DEFAULT_ARGUMENTS = {"encoder_depth": 4, "decoder_channels": 64}

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class NetworkConfig:
    """What `build_network` needs to make the same network again; the fields are its arguments."""

    name: str
    num_classes: int
    arguments: dict[str, Any] = field(default_factory=dict)
    void_output: bool = False


class SegmentationNetwork(nn.Module):
    """An smp model whose forward pass also returns the deepest encoder features."""

    def __init__(self, model: nn.Module, config: NetworkConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        # What it was trained on, if that is known.
        self.label_set: LabelSet | None = None

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
            logits (B, C, H, W), in training with one more for void if there is such an output, and the deepest encoder
            features (B, D, h, w).
        """
        features = self.model.encoder(x)
        logits = self.model.segmentation_head(self.model.decoder(features))
        if self.config.void_output and not self.training:
            logits = logits[:, :-1]
        return logits, features[-1]


def build_network(
    name: str, num_classes: int, weights: str | Path | None = None, void_output: bool = False, **arguments: Any
) -> SegmentationNetwork:
    """A segmentation network.

    Args:
        name: "Architecture/encoder" as segmentation_models_pytorch calls them, e.g. "DeepLabV3Plus/resnet50", or with
            one of `PAPER_NETWORKS` as architecture, e.g. "PaperRefineNet/resnet50".
        num_classes: C, outputs a pixel.
        weights: None = random; "mini" = encoder and decoder pretrained on the miniature's clear scenes (only
            `DEFAULT_NETWORK`); "imagenet" = the encoder's, downloaded by smp or, for the paper's networks, by
            torchvision; or a file: torchvision's .pth of a ResNet, or a safetensors file with the state of the
            encoder, and of the decoder if it shall have one. The head is always new.
        void_output: give the head one more output, for void, as the authors' networks have it. No label ever asks for
            it, so that training only pushes it down; it is left out in evaluation.
        arguments: passed to the architecture of smp.

    Raises:
        ValueError: for an unknown architecture or encoder, or weights that do not fit.
        FileNotFoundError: if the weights file is missing.
    """
    architecture, _, encoder = name.partition("/")
    if not encoder or (
        architecture not in PAPER_NETWORKS and architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING
    ):
        known = [*PAPER_NETWORKS, *sorted(model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values())]
        raise ValueError(f"network {name!r}: expected ARCHITECTURE/ENCODER with an architecture of {known}")
    if name == DEFAULT_NETWORK:
        arguments = _DEFAULT_ARGUMENTS | arguments
    outputs = num_classes + void_output
    try:
        if architecture in PAPER_NETWORKS:
            model = PAPER_NETWORKS[architecture](encoder, outputs, **arguments)
        else:
            own = "imagenet" if weights == "imagenet" else None
            model = smp.create_model(architecture, encoder, encoder_weights=own, classes=outputs, **arguments)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"network {name!r}: segmentation_models_pytorch cannot build it ({error})") from error
    network = SegmentationNetwork(model, NetworkConfig(name, num_classes, arguments, void_output))
    if weights == "imagenet":
        if architecture in PAPER_NETWORKS:
            set_weights(model, paper_weights(encoder), name, f"ImageNet weights of {encoder}")
    elif weights is not None:
        file = MINI_SEGMENTER_FILE if weights == "mini" else Path(weights)
        set_weights(model, read_weights(file), name, str(file))
    return network


def body_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    """State of encoder and decoder, all but the head, which belongs to a label set."""
    return weights_of_body(network.model)


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
        labels = network.label_set.to_dict() if network.label_set else None
        write_json(temporary / "network.json", asdict(network.config) | {"label_set": labels})


def load_network(folder: str | Path) -> SegmentationNetwork:
    """Read what `save_network` wrote; in evaluation mode.

    Raises:
        FileNotFoundError: if the folder holds no network.
        ValueError: if what it holds is damaged or something else; names the file.
    """
    file, weights = Path(folder) / "network.json", Path(folder) / "model.safetensors"
    found, advice = read_json(file), "train the network again"
    try:
        labels = found.pop("label_set", None)
        config = NetworkConfig(**found)
        network = build_network(config.name, config.num_classes, None, config.void_output, **config.arguments)
        network.label_set = LabelSet.from_dict(labels) if labels else None
        check_network(network, config.num_classes)
    except Exception as error:  # of any type: the values are whatever the file says
        raise ValueError(f"{file}: describes no network ({one_line(error)}); {advice}") from error
    load_into(network, read_tensors(weights, advice), weights, advice)
    return network.eval()
