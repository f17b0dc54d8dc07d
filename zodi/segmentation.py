"""Segmentation networks by name: segmentation_models_pytorch's, the paper's own, and those of transformers.

Each returns its logits and its deepest encoder features, which the similarity term of the adaptation compares;
`zodi.networks.own` makes any other network do so.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zodi.labels import LabelSet, label_set_by_names
from zodi.networks import huggingface, library
from zodi.networks.build import DEFAULT_NETWORK as DEFAULT_NETWORK
from zodi.networks.build import MINI_SEGMENTER_FILE as MINI_SEGMENTER_FILE
from zodi.networks.build import build_model
from zodi.networks.weights import weights_of_body
from zodi.support.checks import check_network
from zodi.support.files import atomic_path, one_line, read_json, write_json
from zodi.support.tensors import load_into, read_tensors

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
    """A model whose forward pass also returns the deepest encoder features."""

    def __init__(self, model: nn.Module, config: NetworkConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        # The label set it was trained on, if known.
        self.label_set: LabelSet | None = None

    @property
    def encoder(self) -> nn.Module:
        """The encoder (backbone)."""
        return self.model.encoder

    @property
    def head(self) -> nn.Module:
        """The last layer, from decoder features to one logit per class."""
        return self.model.segmentation_head

    @property
    def segmentation_loss(self) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
        """The model's own loss, see `zodi.networks.huggingface.Mask2Former`; None = cross-entropy of the logits."""
        return getattr(self.model, "segmentation_loss", None)

    @property
    def loss_settings(self) -> dict[str, Any]:
        """What that loss is and depends on; empty for cross-entropy."""
        return getattr(self.model, "loss_settings", {})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features.

        Args:
            x: float (B, 3, H, W) from `normalise`; H and W multiples of 32.

        Returns:
            logits (B, C, H, W), in training with one more channel for void if there is such an output, and the deepest
            encoder features (B, D, h, w).
        """
        own = isinstance(self.model, huggingface.HuggingFaceModel)
        logits, features = self.model(x) if own else library.logits_and_features(self.model, x)
        if self.config.void_output and not self.training:
            logits = logits[:, :-1]
        return logits, features


def build_network(
    name: str, num_classes: int, weights: str | Path | None = None, void_output: bool = False, **arguments: Any
) -> SegmentationNetwork:
    """A segmentation network.

    Args:
        name: "Architecture/encoder" as segmentation_models_pytorch calls them, e.g. "DeepLabV3Plus/resnet50", or with
            one of `zodi.networks.paper` as architecture, e.g. "PaperRefineNet/resnet50"; or "hf:" and a folder or hub
            id of transformers' SegFormer or Mask2Former, see `zodi.networks.huggingface`.
        num_classes: C, outputs per pixel.
        weights: None = random; "mini" = encoder and decoder pretrained on the miniature's clear scenes (only
            `DEFAULT_NETWORK`); "imagenet" = the encoder's, downloaded by smp (for "tu-..." those that timm has under
            this name) or, for the paper's networks, by torchvision; or a file: torchvision's .pth of a ResNet, or a
            safetensors file with the state of the encoder, and of the decoder if wanted. The head is new. "checkpoint"
            = those of "hf:...", except, where the number of classes differs, what depends on it.
        void_output: give the head one more output, for void, as the authors' networks have. No label ever calls for it,
            so training only pushes it down; it is left out in evaluation.
        arguments: passed to the architecture of smp; `lora_rank` > 0 freezes the encoder beside adapters of this rank,
            see `zodi.networks.adapters`.

    Raises:
        ValueError: for an unknown architecture or encoder, or weights that do not fit.
        FileNotFoundError: if the weights file is missing.
    """
    model, arguments = build_model(name, num_classes + void_output, weights, **arguments)
    return SegmentationNetwork(model, NetworkConfig(name, num_classes, arguments, void_output))


def body_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    """State of encoder and decoder, all but the head, which belongs to a label set."""
    return weights_of_body(network.model)


def normalise(images: Tensor) -> Tensor:
    """Images uint8 (B, H, W, 3) or float 0 .. 1 (B, 3, H, W) -> float32 (B, 3, H, W), ImageNet's mean 0 and std 1."""
    x = images.permute(0, 3, 1, 2).float() / 255 if images.dtype == torch.uint8 else images
    mean, std = IMAGENET_MEAN.to(x.device), IMAGENET_STD.to(x.device)
    return (x - mean[:, None, None]) / std[:, None, None]


def save_network(network: SegmentationNetwork, folder: str | Path) -> None:
    """Write weights and the settings needed to build the network again, completely or not at all."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        labels = network.label_set.to_dict() if network.label_set else None
        write_json(temporary / "network.json", asdict(network.config) | {"label_set": labels})


def load_network(folder: str | Path) -> SegmentationNetwork:
    """Read what `save_network` wrote, or a checkpoint of transformers (a folder, or "hf:" and a hub id), to evaluate.

    Raises:
        FileNotFoundError: if the folder holds no network.
        ValueError: if what it holds is damaged or something else; names the file.
    """
    if huggingface.is_checkpoint(folder):
        name = f"{huggingface.PREFIX}{str(folder).removeprefix(huggingface.PREFIX)}"
        names = huggingface.class_names(name)
        network = build_network(name, len(names), huggingface.CHECKPOINT)
        network.label_set = label_set_by_names(names, name)
        return network.eval()
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
