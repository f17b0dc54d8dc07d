"""Weights that a segmentation network starts from: files, and the ImageNet weights of the paper."""

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from zodi.support.tensors import read_state, read_tensors

HEAD = "segmentation_head."
# smp's "imagenet" weights of the first come from another training run.
_PAPER_WEIGHTS = {"resnet50": ResNet50_Weights.IMAGENET1K_V2, "resnet101": ResNet101_Weights.IMAGENET1K_V1}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file, or of torchvision's .pth file of a ResNet, named as parts of the encoder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or a .pth file holds more than tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such weights. Make them with `python -m zodi.miniature pretrain` or choose weights=None"
        )
    advice = "give a .safetensors file or torchvision's .pth, or copy it again"
    if file.suffix not in (".pth", ".pt"):
        return read_tensors(file, advice)
    weights = read_state(file, advice)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{file}: found no tensors by name; {advice}")
    return as_encoder(weights)


def weights_of_body(model: nn.Module) -> dict[str, Tensor]:
    """State of encoder and decoder, all but the head."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}


def set_weights(model: nn.Module, weights: dict[str, Tensor], name: str, origin: str) -> None:
    """Put weights into the encoder, and into the decoder if they include one.

    Args:
        model: has an `encoder`, a `decoder` and a `segmentation_head`; the head stays as it is.
        weights: from `read_weights`.
        name: of the network, for the message.
        origin: of the weights, for the message.

    Raises:
        ValueError: if not all of them fit.
    """
    expected = weights_of_body(model)
    if not any(name.startswith("decoder.") for name in weights):
        expected = {name: value for name, value in expected.items() if name.startswith("encoder.")}
    # Older files of torchvision have no batch counters, which nothing here reads.
    expected = {k: v for k, v in expected.items() if k in weights or not k.endswith("num_batches_tracked")}
    wrong = sorted(
        name for name in expected.keys() | weights.keys()
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    )  # fmt: skip
    if wrong:
        raise ValueError(
            f"{origin}: {len(wrong)} tensors do not fit {name!r}, for example {wrong[:3]}; "
            "use the network that the weights were made for, or weights=None."
        )
    model.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected}, strict=False)


def as_encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's weights under the names of an encoder, without the classifier."""
    return {f"encoder.{name}": value for name, value in weights.items() if not name.startswith("fc.")}


def paper_weights(encoder: str) -> dict[str, Tensor]:
    """The ImageNet weights that the paper starts from, named as parts of the encoder; downloaded by torchvision.

    Raises:
        ValueError: for an encoder that the paper does not use.
        FileNotFoundError: if they cannot be downloaded; says where they are.
    """
    if encoder not in _PAPER_WEIGHTS:
        raise ValueError(f"encoder {encoder!r}: the paper's ImageNet weights are for {list(_PAPER_WEIGHTS)}")
    source = _PAPER_WEIGHTS[encoder]
    try:
        weights = source.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(
            f"{encoder}: the ImageNet weights ({source.meta['_file_size']:.0f} MB) could not be downloaded ({error}). "
            f"Get {source.url} elsewhere and give the file as weights."
        ) from error
    return as_encoder(weights)
