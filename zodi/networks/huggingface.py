"""Segmentation networks of transformers, by folder or hub id: logits at the size of the image, and deepest features.

SegFormer (Xie et al., NeurIPS 2021) gives logits at a quarter of the size, which are interpolated. Mask2Former (Cheng
et al., CVPR 2022) gives N masks m_i(h, w), 0 .. 1, and for each the probabilities p_i(c) of C classes and of no class.
Its semantic map is

    argmax_c s(c, h, w),    s(c, h, w) = sum_i p_i(c) m_i(h, w)

(Cheng et al., MaskFormer, NeurIPS 2021, Section 3.4). We return log s as logits: the same map, and a softmax of them is
s over its sum, so that cross-entropy and confidence mean what they mean elsewhere. Mask2Former's own loss, which
matches masks, is not used.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn import functional as F

from zodi.support.files import one_line, read_json

PREFIX = "hf:"
CHECKPOINT = "checkpoint"
# Class in transformers -> the parts that depend on the classes, and so are new for other classes.
_HEADS = {
    "SegformerForSemanticSegmentation": ("decode_head.classifier.",),
    "Mask2FormerForUniversalSegmentation": ("class_predictor.", "criterion."),
}
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
# What images are normalised with before a network sees them; see `zodi.segmentation.normalise`.
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Below any score that matters; keeps the logarithm finite.
_SMALLEST_SCORE = 1e-6


class HuggingFaceModel(nn.Module):
    """A model of transformers whose forward pass returns logits and deepest features.

    Args:
        model: of one of the supported classes.
        normalisation: mean and standard deviation per channel that the model's images are normalised with.
    """

    def __init__(self, model: nn.Module, normalisation: tuple[list[float], list[float]] = _IMAGENET) -> None:
        super().__init__()
        self.model = model
        self._masks = hasattr(model, "class_predictor")
        mean, std, our_mean, our_std = (torch.tensor(values)[:, None, None] for values in (*normalisation, *_IMAGENET))
        # x std' + mean' is the image; the model expects (image - mean) / std.
        self.register_buffer("_scale", our_std / std, persistent=False)
        self.register_buffer("_shift", (our_mean - mean) / std, persistent=False)

    @property
    def encoder(self) -> nn.Module:
        """The encoder (backbone)."""
        return self.model.model.pixel_level_module.encoder if self._masks else self.model.segformer

    @property
    def segmentation_head(self) -> nn.Module:
        """What follows the features and depends on the classes: SegFormer's decoder, Mask2Former's classifier."""
        return self.model.class_predictor if self._masks else self.model.decode_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and features (B, D, h, w) of images float (B, 3, H, W) from `normalise`."""
        output = self.model(pixel_values=x * self._scale + self._shift, output_hidden_states=not self._masks)
        if not self._masks:
            return _resized(output.logits, x), output.hidden_states[-1]
        classes = output.class_queries_logits.softmax(2)[..., :-1]
        masks = _resized(output.masks_queries_logits, x).sigmoid()
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        return scores.clamp(min=_SMALLEST_SCORE).log(), output.encoder_last_hidden_state


def _resized(values: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(values, like.shape[2:], mode="bilinear", align_corners=False)


def is_checkpoint(folder: str | Path) -> bool:
    """Whether this is "hf:" and a name, or a folder that transformers has written."""
    here = Path(folder)
    return str(folder).startswith(PREFIX) or (
        (here / "config.json").is_file() and not (here / "network.json").is_file()
    )


def locate(name: str, local_files_only: bool = True) -> Path:
    """The folder of "hf:" and a folder or a hub id, on this machine; nothing is downloaded unasked.

    Raises:
        FileNotFoundError: if it is not there; says what to get and where to put it.
    """
    place = name.removeprefix(PREFIX)
    if Path(place).expanduser().is_dir():
        return Path(place).expanduser()
    cause = "no such folder"
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(place, local_files_only=local_files_only, allow_patterns=_FILES))
        except (OSError, ValueError) as error:
            cause = one_line(error)
    raise FileNotFoundError(
        f"{name}: not on this machine. Expected {PREFIX} and a folder with config.json and model.safetensors, or a hub "
        f"id that is in the hub's cache (HF_HOME): get it once with `hf download {place}`, or copy its folder to any "
        f"place and give {PREFIX}FOLDER. Cause: {cause}"
    )


def class_names(name: str) -> tuple[str, ...]:
    """The classes of a checkpoint, in the order of its outputs, as `id2label` in its config.json has them.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if there are no names; without them nobody knows what an output means.
    """
    file = locate(name) / "config.json"
    try:
        names = [
            str(label) for _, label in sorted(_read_config(file)["id2label"].items(), key=lambda item: int(item[0]))
        ]
    except (KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: found no id2label ({error!r}); write the names of its classes there") from error
    if all(re.fullmatch(r"LABEL_\d+", label) for label in names):
        raise ValueError(f"{file}: id2label has no names, only {names[0]}, ...; write the names of its classes there")
    return tuple(names)


def build(
    name: str,
    outputs: int,
    weights: str | None,
    config: dict[str, Any] | None = None,
    normalisation: tuple[list[float], list[float]] = _IMAGENET,
) -> tuple[HuggingFaceModel, dict[str, Any]]:
    """A model by name.

    Args:
        name: "hf:" and a folder or a hub id.
        outputs: number of classes; where the checkpoint has another number, the parts that depend on it are new.
        weights: None = random, "checkpoint" = the checkpoint's.
        config, normalisation: what this function returned for a model that is now built again, without its folder.

    Returns:
        The model, and the arguments with which it can be built again without its folder.

    Raises:
        FileNotFoundError: if the folder or its weights are missing.
        ValueError: for a model of another class, or weights that do not fit.
    """
    import transformers

    if weights not in (None, CHECKPOINT):
        raise ValueError(f"network {name!r}, weights {str(weights)!r}: expected {CHECKPOINT!r} or None")
    folder = locate(name) if config is None else None
    if folder is not None:
        config, normalisation = _read_config(folder / "config.json"), _normalisation(folder)
    (architecture, *_) = config.get("architectures") or ["no class"]
    if architecture not in _HEADS:
        raise ValueError(f"network {name!r}: found a {architecture}, expected one of {list(_HEADS)}")
    kind = getattr(transformers, architecture)
    settings = kind.config_class.from_dict(config)
    other_classes = settings.num_labels != outputs
    if other_classes:
        settings.num_labels = outputs
    model = _read_model(kind, settings, folder, other_classes) if weights else kind(settings)
    kept = json.loads(settings.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    kept.pop("_name_or_path", None)
    return HuggingFaceModel(model, normalisation), {"config": kept, "normalisation": normalisation}


def _read_model(kind: type, config: Any, folder: Path, other_classes: bool) -> nn.Module:
    """All the checkpoint's weights except, where the classes are others, those that depend on them."""
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder}: no weights, expected model.safetensors; other formats may run code and are not read. Get that "
            "file, or load the model in transformers once and save it with save_pretrained"
        )
    options = {"local_files_only": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    try:
        model, info = kind.from_pretrained(folder, config=config, output_loading_info=True, **options)
    except Exception as error:  # of any type: the libraries raise their own
        raise ValueError(f"{folder}: cannot be read ({one_line(error)}); copy it again") from error
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    new = _HEADS[kind.__name__] if other_classes else ()
    wrong = sorted(key for key in missing if not key.startswith(new)) if new else sorted(missing)
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} tensors are missing or of another shape than its config.json says, for example "
            f"{wrong[:3]}; copy it again"
        )
    return model.float().train()


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a folder that save_pretrained of transformers wrote")
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found no settings of a model; copy it again")
    return found


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """What the checkpoint's images are normalised with; ImageNet's values where it does not say."""
    file = folder / "preprocessor_config.json"
    found = _read_config(file) if file.is_file() else {}
    return tuple(found.get(key, default) for key, default in zip(("image_mean", "image_std"), _IMAGENET, strict=True))
