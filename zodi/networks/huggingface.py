"""Segmentation networks of transformers, by folder or hub id: logits at the size of the image, and deepest features.

SegFormer (Xie et al., NeurIPS 2021) gives logits at a quarter of the size, which are interpolated. Mask2Former (Cheng
et al., CVPR 2022) gives N masks m_i(h, w), 0 .. 1, and for each the probabilities p_i(c) of C classes and of no class.
Its semantic map is

    argmax_c s(c, h, w),    s(c, h, w) = sum_i p_i(c) m_i(h, w)

(Cheng et al., MaskFormer, NeurIPS 2021, Section 3.4). We return log s as logits: the same map, and a softmax of them is
s over its sum, so that confidence means what it means elsewhere. It is not trained with the cross-entropy of that map
but with its own loss, see `Mask2Former.segmentation_loss`.
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
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
# What images are normalised with before a network sees them; see `zodi.segmentation.normalise`.
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Below any score that matters; keeps the logarithm finite.
_SMALLEST_SCORE = 1e-6
# Of a checkpoint's config.json: what its loss depends on, beside the weight of "no object".
_LOSS_SETTINGS = (
    "class_weight",
    "mask_weight",
    "dice_weight",
    "train_num_points",
    "oversample_ratio",
    "importance_sample_ratio",
)


class HuggingFaceModel(nn.Module):
    """A model of transformers whose forward pass returns logits and deepest features.

    Args:
        model: of the class in transformers that the subclass is for.
        normalisation: mean and standard deviation per channel that the model's images are normalised with.
    """

    def __init__(self, model: nn.Module, normalisation: tuple[list[float], list[float]] = _IMAGENET) -> None:
        super().__init__()
        self.model = model
        mean, std, our_mean, our_std = (torch.tensor(values)[:, None, None] for values in (*normalisation, *_IMAGENET))
        # x std' + mean' is the image; the model expects (image - mean) / std.
        self.register_buffer("_scale", our_std / std, persistent=False)
        self.register_buffer("_shift", (our_mean - mean) / std, persistent=False)

    def _inputs(self, x: Tensor) -> Tensor:
        """Images from `normalise`, normalised as the model expects."""
        return x * self._scale + self._shift


class Segformer(HuggingFaceModel):
    """SegFormer; trained with cross-entropy."""

    @property
    def encoder(self) -> nn.Module:
        """The encoder (backbone)."""
        return self.model.segformer

    @property
    def segmentation_head(self) -> nn.Module:
        """What follows the features and depends on the classes: the decoder."""
        return self.model.decode_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and features (B, D, h, w) of images float (B, 3, H, W) from `normalise`."""
        output = self.model(pixel_values=self._inputs(x), output_hidden_states=True)
        return _resized(output.logits, x), output.hidden_states[-1]


class Mask2Former(HuggingFaceModel):
    """Mask2Former; trained with its own loss."""

    @property
    def encoder(self) -> nn.Module:
        """The encoder (backbone)."""
        return self.model.model.pixel_level_module.encoder

    @property
    def segmentation_head(self) -> nn.Module:
        """What follows the features and depends on the classes: the classifier of the queries."""
        return self.model.class_predictor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and features (B, D, h, w) of images float (B, 3, H, W) from `normalise`."""
        output = self.model(pixel_values=self._inputs(x))
        classes = output.class_queries_logits.softmax(2)[..., :-1]
        masks = _resized(output.masks_queries_logits, x).sigmoid()
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        return scores.clamp(min=_SMALLEST_SCORE).log(), output.encoder_last_hidden_state

    @property
    def loss_settings(self) -> dict[str, Any]:
        """What the loss is and depends on: a training prints it, and does not resume one that differs in it."""
        settings = {name: getattr(self.model.config, name) for name in _LOSS_SETTINGS}
        # Not that of config.json, which a checkpoint's own buffer replaces.
        no_object_weight = round(float(self.model.criterion.empty_weight[-1]), 6)
        return {"loss": "Mask2Former's own"} | settings | {"no_object_weight": no_object_weight}

    def segmentation_loss(self, x: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        """Mask2Former's own loss, as transformers computes it, and the deepest features (Cheng et al., CVPR 2022).

        The outputs of every decoder layer are matched to the segments of the label map, one for each class in the
        image. Cross-entropy of the classes, and binary cross-entropy and dice of the masks at sampled points, are
        summed with the weights of the checkpoint's config.json. We divide by the sum of all weights, so that the loss
        is of the order of a cross-entropy and the weight of the similarity term means about what it means elsewhere.

        Ignored pixels are in no segment. They count as background of each mask, as in Mask2Former's own training on
        semantic maps; cross-entropy would leave them out. An image in which every pixel is ignored is left out, while
        Mask2Former's own training would teach all queries that it shows nothing.

        Points are drawn from torch's global generator.

        Args:
            x: images float (B, 3, H, W) from `normalise`.
            labels: int64 (B, H, W), 0 .. C - 1 or `ignore_index`.
            ignore_index: marks the pixels that are ignored.

        Returns:
            The loss, float32, scalar, NaN if every pixel of the batch is ignored, as cross-entropy is; and the features
            (B, D, h, w).
        """
        output = self.model(pixel_values=self._inputs(x), output_auxiliary_logits=True)
        found = [segments(label, ignore_index) for label in labels]
        kept = [index for index, (classes, _) in enumerate(found) if len(classes)]
        features = output.encoder_last_hidden_state
        if not kept:
            return output.class_queries_logits.sum().float() * torch.nan, features
        layers = [
            {name: layer[name][kept].float() for name in ("masks_queries_logits", "class_queries_logits")}
            for layer in (*output.auxiliary_logits, output)
        ]
        with torch.autocast(x.device.type, enabled=False):
            terms = self.model.get_loss_dict(
                **layers[-1],
                mask_labels=[found[index][1] for index in kept],
                class_labels=[found[index][0] for index in kept],
                auxiliary_predictions=layers[:-1],
            )
            return self.model.get_loss(terms) / (len(layers) * sum(self.model.weight_dict.values())), features


# Class in transformers -> ours, and the parts that depend on the classes, and so are new for other classes.
_CLASSES = {
    "SegformerForSemanticSegmentation": (Segformer, ("decode_head.classifier.",)),
    "Mask2FormerForUniversalSegmentation": (Mask2Former, ("class_predictor.", "criterion.")),
}


def segments(label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The classes in a label map int (H, W), int64 (N,) rising, and where each is, float32 (N, H, W), 0 or 1."""
    classes = label.unique()
    classes = classes[classes != ignore_index]
    return classes, (label == classes[:, None, None]).float()


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
    if architecture not in _CLASSES:
        raise ValueError(f"network {name!r}: found a {architecture}, expected one of {list(_CLASSES)}")
    kind = getattr(transformers, architecture)
    settings = kind.config_class.from_dict(config)
    other_classes = settings.num_labels != outputs
    if other_classes:
        settings.num_labels = outputs
    model = _read_model(kind, settings, folder, other_classes) if weights else kind(settings)
    kept = json.loads(settings.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    kept.pop("_name_or_path", None)
    wrapper, _ = _CLASSES[architecture]
    return wrapper(model, normalisation), {"config": kept, "normalisation": normalisation}


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
    new = _CLASSES[kind.__name__][1] if other_classes else ()
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
