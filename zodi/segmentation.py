"""Segmentation networks: any architecture and encoder of segmentation_models_pytorch and the paper's own, by name.

Each returns its logits and its deepest encoder features, which the similarity term of the adaptation compares;
`OwnNetwork` makes any other network do so.
"""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from zodi.paper_networks import PAPER_NETWORKS
from zodi.runs import atomic_path, read_json, write_json

DEFAULT_NETWORK = "DeepLabV3Plus/tu-resnet10t"
MINI_SEGMENTER_FILE = Path(__file__).parent / "weights" / "segmenter_mini.safetensors"
# Without the encoder's last stage and with a narrow decoder: as good on the miniature's small images, twice as fast.
_DEFAULT_ARGUMENTS = {"encoder_depth": 4, "decoder_channels": 64}
HEAD = "segmentation_head."
# The ImageNet weights that the paper starts from; smp's "imagenet" of the first is another training.
_PAPER_WEIGHTS = {"resnet50": ResNet50_Weights.IMAGENET1K_V2, "resnet101": ResNet101_Weights.IMAGENET1K_V1}

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


class OwnNetwork(nn.Module):
    """Any segmentation network, made to return its deepest features beside its logits, as adaptation needs them.

    Args:
        model: images float (B, 3, H, W) from `normalise`, H and W multiples of 32 -> logits (B, C, H, W).
        features: name of the part of `model` whose output (B, D, h, w) the similarity term compares, as
            `model.named_modules()` has it; usually the last one of the encoder.
        head: name of the part that is new and shall learn at the full learning rate, while the pretrained rest learns
            at `body_factor` times as much; None = everything learns at the full rate.

    Raises:
        ValueError: if the model has no part of such a name; names those that it has.
    """

    def __init__(self, model: nn.Module, features: str, head: str | None = None) -> None:
        super().__init__()
        parts = [name for name, _ in model.named_modules() if name]
        self.name = type(model).__name__
        for name in (features, *([head] if head else [])):
            if name not in parts:
                raise ValueError(f"{self.name} has no part {name!r}; expected one of {parts}")
        self.model, self._features, self._head = model, features, head

    @property
    def head(self) -> nn.Module | None:
        """The part that learns at the full learning rate; None if all do."""
        return self.model.get_submodule(self._head) if self._head else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and the output of the part `features`."""
        kept: list[Tensor] = []
        part = self.model.get_submodule(self._features)
        hook = part.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            logits = self.model(x)
        finally:
            hook.remove()
        return logits, kept[-1]


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
            _load_paper_weights(network, encoder)
    elif weights is not None:
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
    _set_weights(network, _read_weights(file), str(file))


def _set_weights(network: SegmentationNetwork, weights: dict[str, Tensor], origin: str) -> None:
    """Put weights into encoder, and decoder if they have one; all of them must fit."""
    expected = body_state(network)
    if not any(name.startswith("decoder.") for name in weights):
        expected = {name: value for name, value in expected.items() if name.startswith("encoder.")}
    # Older files of torchvision have no counters of batches, which nothing here reads.
    expected = {k: v for k, v in expected.items() if k in weights or not k.endswith("num_batches_tracked")}
    wrong = sorted(
        name for name in expected.keys() | weights.keys()
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    )  # fmt: skip
    if wrong:
        raise ValueError(
            f"{origin}: {len(wrong)} tensors do not fit {network.config.name!r}, for example {wrong[:3]}; "
            "use the network that the weights were made for, or weights=None."
        )
    network.model.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected}, strict=False)


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Weights of a file; a torchvision ResNet's are named as parts of the encoder, without its classifier."""
    if file.suffix not in (".pth", ".pt"):
        return load_file(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: holds more than tensors; expected .safetensors or torchvision's .pth") from error
    return _as_encoder(weights)


def _as_encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder.{name}": value for name, value in weights.items() if not name.startswith("fc.")}


def _load_paper_weights(network: SegmentationNetwork, encoder: str) -> None:
    if encoder not in _PAPER_WEIGHTS:
        raise ValueError(f"encoder {encoder!r}: the paper's ImageNet weights are those of {list(_PAPER_WEIGHTS)}")
    source = _PAPER_WEIGHTS[encoder]
    try:
        weights = source.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(
            f"{encoder}: the ImageNet weights ({source.meta['_file_size']:.0f} MB) could not be downloaded ({error}). "
            f"Get {source.url} elsewhere and give the file as weights."
        ) from error
    _set_weights(network, _as_encoder(weights), str(source))


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
    network = build_network(**config.pop("arguments"), **config)
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()
