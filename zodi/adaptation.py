"""Adaptation: training on source images and their synthesized images (the paper's Section 3.2).

With an image x_s, its synthesized image x_t, their common label map y, logits h(x) and deepest features f(x):

    loss = CE(h(x_s), y) + CE(h(x_t), y) - w * cos(GAP(f(x_s)), GAP(f(x_t))),    w = 0.1

The two images go through the network in two passes: one batch of both would mix the domains in batch normalisation
and change the gradient. A network with a loss of its own, such as Mask2Former, is trained with that in place of CE.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from zodi.datasets import AnyDataset, Sample
from zodi.labels import IGNORE_INDEX
from zodi.networks.build import auto_weights, weights_file
from zodi.networks.optimizers import build_optimizer, learning_rate_at
from zodi.rows import SIMILARITY_WEIGHT, get_row
from zodi.segmentation import DEFAULT_NETWORK, build_network, normalise
from zodi.support.checks import check_classes, check_loss, check_weights
from zodi.support.files import atomic_path, file_stamp, write_json
from zodi.support.runs import generator_for, print_settings, settings_hash
from zodi.support.tensors import resume

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("step", "epoch")


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of one training.

    Attributes:
        network: "Architecture/encoder" or "hf:FOLDER", see `zodi.segmentation.build_network`.
        weights: as there; "auto" = "mini" for the default network, the checkpoint's for "hf:", random for others.
        steps: optimisation steps.
        batch_size: images per step and domain.
        crop: (height, width) in pixels, multiples of 32, at most the images' size.
        freeze_norm: keep the statistics of batch normalisation as pretrained. Training sees each domain with its own
            statistics but testing uses one set for both, which costs more the further apart the domains and the fewer
            the steps. None = where encoder and decoder are pretrained ("mini").
        optimizer: "adamw", or "sgd" with momentum 0.9 as in the paper.
        learning_rate: of the head at the start; it falls as (1 - step / steps) ** 0.9.
        learning_rate_floor: what the learning rate never falls below.
        schedule: when the learning rate falls, at every "step" or, as in the paper, at every "epoch".
        body_factor: learning rate of the pretrained encoder and decoder, as a multiple of the head's.
        layer_decay: learning rate of an encoder's block as a multiple of the next block's, 0 .. 1. With it decoder and
            head learn at the full rate; biases, norms and embeddings have no weight decay. None = all blocks alike.
        warmup: share of the steps in which the learning rate rises from 0, 0 .. 1.
        weight_decay: of the optimizer.
        lora_rank: rank of the adapters beside a frozen encoder, see `zodi.networks.adapters`; 0 = train all of it.
        similarity_weight: w of the loss, >= 0.
        augmentation: how the second image of a pair is changed, differently at every step; "" = it is not, see
            `zodi.rows.Row`.
        jitter: half-width of the random factors on brightness, contrast and saturation, 0 .. 1.
        hue: half-width of the random hue shift, 0 .. 0.5, turns.
        void_output: see `zodi.segmentation.build_network`.
        bf16: bfloat16 autocast; worth it on a GPU. On a CPU it saves a fifth of a step, and only where the CPU computes
            in bfloat16: not worth results that depend on the processor.
        seed: determines initial weights, batches, crops, flips and jitter.
    """

    network: str = DEFAULT_NETWORK
    weights: str | None = "auto"
    steps: int = 200
    batch_size: int = 4
    crop: tuple[int, int] = (64, 128)
    freeze_norm: bool | None = None
    optimizer: str = "adamw"
    learning_rate: float = 3e-2
    learning_rate_floor: float = 0.0
    schedule: str = "step"
    body_factor: float = 0.03
    layer_decay: float | None = None
    warmup: float = 0.0
    weight_decay: float = 1e-4
    lora_rank: int = 0
    similarity_weight: float = SIMILARITY_WEIGHT
    augmentation: str = ""
    jitter: float = 0.4
    hue: float = 0.1
    void_output: bool = False
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(
                f"steps={self.steps}, batch_size={self.batch_size}: expected at least 1 and 2 (batch normalisation)"
            )
        if any(side % 32 or side < 32 for side in self.crop):
            raise ValueError(f"crop={self.crop}: expected multiples of 32")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: expected one of {OPTIMIZERS}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}: expected one of {SCHEDULES}")
        if self.learning_rate <= 0 or min(self.body_factor, self.weight_decay, self.similarity_weight) < 0:
            raise ValueError("learning_rate: expected > 0; body_factor, weight_decay, similarity_weight: expected >= 0")
        if not 0 <= self.warmup <= 1 or not 0 < (self.layer_decay or 1) <= 1 or self.lora_rank < 0:
            raise ValueError("warmup: expected 0 .. 1; layer_decay: expected None or 0 .. 1; lora_rank: expected >= 0")
        if not 0 <= self.jitter <= 1 or not 0 <= self.hue <= 0.5:
            raise ValueError(f"jitter={self.jitter}, hue={self.hue}: expected 0 .. 1 and 0 .. 0.5")

    def resolved(self) -> "AdaptationConfig":
        """The settings with "auto" weights and an unset `freeze_norm` replaced by what they mean for the network."""
        weights = auto_weights(self.network, self.weights)
        freeze_norm = weights == "mini" if self.freeze_norm is None else self.freeze_norm
        return replace(self, weights=weights, freeze_norm=freeze_norm)


# The paper's: 100 epochs of Cityscapes' 2975 images, 743 whole batches of 4 each; SGD; ImageNet weights.
PAPER_CONFIG = AdaptationConfig(
    network="PaperDeepLabV3Plus/resnet50",
    weights="imagenet",
    steps=100 * 743,
    batch_size=4,
    crop=(384, 768),
    freeze_norm=False,
    optimizer="sgd",
    learning_rate=1e-3,
    learning_rate_floor=1e-6,
    schedule="epoch",
    body_factor=1.0,
    weight_decay=1e-4,
    jitter=0.5,
    hue=0.3,
    void_output=True,
)
# As SegFormer was trained on Cityscapes (Xie et al., NeurIPS 2021), the head at ten times the encoder's rate; the decay
# over the encoder's blocks is BEiT's (Bao et al., ICLR 2022). As many images as in the paper.
TRANSFORMER_CONFIG = replace(
    PAPER_CONFIG,
    network="Segformer/mit_b5",
    optimizer="adamw",
    learning_rate=6e-4,
    learning_rate_floor=0.0,
    schedule="step",
    body_factor=0.1,
    layer_decay=0.9,
    warmup=0.02,
    weight_decay=0.01,
    void_output=False,
)
RECIPES = {"mini": AdaptationConfig(), "paper": PAPER_CONFIG, "transformer": TRANSFORMER_CONFIG}


def recipe(
    name: str, variant: str = "zodi", network: str | nn.Module | None = None, **changes: Any
) -> AdaptationConfig:
    """The settings with which a recipe trains a row of the tables; nothing in them is left unset.

    Args:
        name: a key of `RECIPES`.
        variant: a key of `zodi.rows.ROWS`; it determines the weight of the similarity term, augmentation and length.
        network: "Architecture/encoder", or a network of your own, which has its weights; None = the recipe's.
        changes: other values for fields of `AdaptationConfig`, of a row of ordinary length.

    Raises:
        ValueError: for an unknown recipe, variant or field, or values out of range.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: expected one of {list(RECIPES)}")
    row = get_row(variant)
    unknown = sorted(changes.keys() - {field.name for field in fields(AdaptationConfig)})
    if unknown:
        raise ValueError(f"unknown settings {unknown}; expected fields of AdaptationConfig")
    if "crop" in changes:
        # A list if it comes from a notebook's parameter.
        changes["crop"] = tuple(changes["crop"])
    if isinstance(network, nn.Module):
        changes |= {"network": own_name(network), "weights": None}
    elif network is not None:
        changes["network"] = network
    of_row = {"similarity_weight": row.similarity_weight, "augmentation": row.augmentation}
    config = replace(RECIPES[name], **of_row | changes)
    return replace(config, steps=config.steps * row.length).resolved()


def own_name(network: nn.Module) -> str:
    """What records call a network that was not built by name."""
    return getattr(network, "name", type(network).__name__)


# ---------------------------------------------------------------- loss


def similarity(features_source: Tensor, features_synth: Tensor) -> Tensor:
    """Mean over the batch of cos(GAP(f_s), GAP(f_t)); features (B, D, h, w), result scalar, -1 .. 1."""
    return F.cosine_similarity(features_source.mean((2, 3)), features_synth.mean((2, 3)), dim=1).mean()


def adaptation_loss(
    network: nn.Module,
    source: tuple[Tensor, Tensor],
    synth: tuple[Tensor, Tensor] | None,
    similarity_weight: float,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """The terms of the loss and their sum.

    Args:
        network: returns (logits, features). If it has a `segmentation_loss`, images, labels and `IGNORE_INDEX` ->
            (loss, features), that is called in its place, and its loss replaces cross-entropy.
        source: images float (B, 3, H, W), normalised, and labels int64 (B, H, W).
        synth: the same for the synthesized images; None = train on the source alone.
        similarity_weight: w.
        bf16: compute the passes in bfloat16.

    Returns:
        `ce_source`, `ce_synth` and `similarity` (where there is a synthesized image) and `loss`, scalars. The first two
        are the network's own loss where it has one.
    """

    def one_pass(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        own = getattr(network, "segmentation_loss", None)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            found, features = own(x, y, IGNORE_INDEX) if own else network(x)
        if bf16:
            found, features = found.float(), features.float()
        return found if own else F.cross_entropy(found, y, ignore_index=IGNORE_INDEX), features

    ce_source, features_source = one_pass(*source)
    if synth is None:
        return {"ce_source": ce_source, "loss": ce_source}
    ce_synth, features_synth = one_pass(*synth)
    cos = similarity(features_source, features_synth)
    loss = ce_source + ce_synth - similarity_weight * cos
    return {"ce_source": ce_source, "ce_synth": ce_synth, "similarity": cos, "loss": loss}


def optimisation_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    source: tuple[Tensor, Tensor],
    synth: tuple[Tensor, Tensor] | None,
    config: AdaptationConfig,
) -> dict[str, Tensor]:
    """One step down the gradient of `adaptation_loss`; returns its terms."""
    terms = adaptation_loss(network, source, synth, config.similarity_weight, config.bf16)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    optimizer.step()
    return terms


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class _Augmentation:
    """Where one sample is cut out, and whether it is mirrored: shared by the images of a pair."""

    top: float
    left: float
    flip: bool

    def cut(self, array: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
        height, width = array.shape[:2]
        top, left = round(self.top * (height - crop[0])), round(self.left * (width - crop[1]))
        part = array[top : top + crop[0], left : left + crop[1]]
        return part[:, ::-1] if self.flip else part


class Batch(NamedTuple):
    """What the workers read for a step.

    Attributes:
        images: uint8 (B, 3, h, w).
        labels: uint8 (B, h, w), train ids.
        jitter: float64 (B, 4), factors of brightness, contrast and saturation, and the shift of the hue.
    """

    images: Tensor
    labels: Tensor
    jitter: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """Images and labels on a device; the jitter, plain numbers in float64, stays on the CPU."""
        # On "mps" such a copy may read memory that is already used for something else (pytorch/pytorch#139550).
        non_blocking = torch.device(device).type == "cuda"
        images, labels = (part.to(device, non_blocking=non_blocking) for part in (self.images, self.labels))
        return Batch(images, labels, self.jitter)


def _batch(
    samples: list[Sample], cuts: list[_Augmentation], config: AdaptationConfig, rng: np.random.Generator
) -> Batch:
    images, labels, jitter = [], [], []
    for sample, cut in zip(samples, cuts, strict=True):
        images.append(np.ascontiguousarray(cut.cut(sample.image, config.crop).transpose(2, 0, 1)))
        labels.append(np.ascontiguousarray(cut.cut(sample.label, config.crop)))
        jitter.append([*rng.uniform(1 - config.jitter, 1 + config.jitter, 3), rng.uniform(-config.hue, config.hue)])
    return Batch(*(torch.from_numpy(np.stack(arrays)) for arrays in (images, labels, jitter)))


def augment(batch: Batch, config: AdaptationConfig) -> tuple[Tensor, Tensor]:
    """Random colours, on the batch's device: images float (B, 3, h, w), normalised, and labels int64."""
    images = []
    for image, (brightness, contrast, saturation, hue) in zip(batch.images, batch.jitter.tolist(), strict=True):
        image = TF.adjust_brightness(image.float() / 255, brightness)
        image = TF.adjust_contrast(image, contrast)
        image = TF.adjust_saturation(image, saturation)
        images.append(TF.adjust_hue(image, hue) if config.hue else image)
    return normalise(torch.stack(images)), batch.labels.long()


def epoch_length(count: int, config: AdaptationConfig) -> int:
    """Steps of an epoch over `count` images: whole batches; what is left over waits for the next shuffle."""
    return max(1, count // config.batch_size)


def _chosen(step: int, candidates: list[int], config: AdaptationConfig) -> list[int]:
    """The images of a step: every epoch visits all of them in an order of its own."""
    epoch, position = divmod(step, epoch_length(len(candidates), config))
    order = np.random.default_rng([config.seed, epoch]).permutation(candidates)
    return np.resize(order[position * config.batch_size :], config.batch_size).tolist()


def cut_batches(
    step: int,
    source: AnyDataset,
    synth: AnyDataset | None,
    pairs: dict[str, int] | None,
    config: AdaptationConfig,
) -> tuple[Batch, Batch | None]:
    """The batches of a step, before `augment`.

    They depend on `config.seed` and `step` only, so that a resumed run sees the same batches.

    Args:
        step: number of the step, from 0.
        source, synth: the data sets; `synth` None = source only.
        pairs: position in `synth` of every source key that has a twin; None = draw from both independently.
        config: batch size, crop, jitter and seed.

    Returns:
        The source's batch, and the same for the synthesized images or None; the images of a pair share crop and flip.
    """
    rng = np.random.default_rng([config.seed, step])
    candidates = [i for i, key in enumerate(source.keys) if not pairs or key in pairs]
    cuts = _cuts(config.batch_size, rng)
    samples = [source[i] for i in _chosen(step, candidates, config)]
    source_batch = _batch(samples, cuts, config, rng)
    if synth is None:
        return source_batch, None
    if pairs:
        partners = [synth[pairs[sample.key]] for sample in samples]
    else:
        partners = [synth[i] for i in _chosen(step, list(range(len(synth))), config)]
        cuts = _cuts(config.batch_size, rng)
    second = _batch(partners, cuts, config, rng)
    if config.augmentation:
        # Loads the library of augmentations, which few rows need.
        from zodi.support.augmentations import augmented

        generator = generator_for(f"augmentation of step {step}", config.seed)
        second = second._replace(images=augmented(second.images, config.augmentation, generator))
    return source_batch, second


def _cuts(count: int, rng: np.random.Generator) -> list[_Augmentation]:
    return [_Augmentation(*rng.random(2), rng.random() < 0.5) for _ in range(count)]


class _Batches(Dataset):
    """`cut_batches` by step, for the worker processes of a DataLoader."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __getitem__(self, step: int) -> tuple:
        return cut_batches(step, *self.arguments)


# ---------------------------------------------------------------- training


def own_loss(network: nn.Module) -> dict[str, Any]:
    """As `own_loss` what the loss is and depends on that takes cross-entropy's place; empty if none does."""
    if getattr(network, "segmentation_loss", None) is None:
        return {}
    return {"own_loss": getattr(network, "loss_settings", {"loss": "the network's own"})}


def train(
    config: AdaptationConfig,
    source: AnyDataset,
    synth: AnyDataset | None,
    out: str | Path | None,
    callback: Callable[[int, nn.Module], None] | None = None,
    save_every: int = 100,
    progress: bool = False,
    device: str | torch.device = "cpu",
    workers: int = 0,
    network: nn.Module | None = None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a segmentation network; resumes an interrupted run in `out` with the same settings and data.

    Args:
        config: the settings; those that are not the defaults are printed, all are saved as `out/settings.json`, with
            those of the network's own loss.
        source: labelled source images.
        synth: synthesized images, paired with the source by key. None = source only. Without common keys (an oracle on
            other scenes) both are drawn independently, which needs `similarity_weight` 0.
        out: folder for `training.pt` (the state, every `save_every` steps); None = keep nothing.
        callback: called with (steps done, network in evaluation mode) at the start and after every step.
        save_every: steps between saved states.
        progress: show a progress bar.
        device: where the network trains.
        workers: processes that read and cut the images; 0 = only this one. Does not change the result.
        network: a network of your own, trained in place of the one that `config` names: images float (B, 3, H, W) ->
            logits (B, C, H, W) and features (B, D, h, w), see `zodi.networks.own.OwnNetwork`. With a loss of its own,
            see `adaptation_loss`, it should say in `loss_settings`, a dict, what that loss is and depends on.

    Returns:
        The network of the last step in evaluation mode, and the loss terms, one row per step.

    Raises:
        ValueError: if pairs are needed and missing, classes differ, images are smaller than the crop, the state in
            `out` is damaged, or the training diverges: names the step and what to do, and does not save it.
        OSError: if the disk is full.
    """
    shapes = {}
    config = config.resolved()
    if network is not None:
        if config.network != own_name(network):
            # Made for a network by name, whose weights and frozen statistics are not this one's.
            config = replace(config, network=own_name(network), weights=None, freeze_norm=False)
        shapes = {"shapes": {name: list(value.shape) for name, value in network.state_dict().items()}}
    print_settings(config, AdaptationConfig().resolved())
    pairs = find_pairs(source, synth, config)
    for dataset in filter(None, (source, synth)):
        check_classes("the source", source.label_set.names, "the second data set", dataset.label_set.names)
        dataset.check_sizes(config.crop)

    # Not the bare seed, from which the pretrained weights started: their own head would come back as the "new" one.
    torch.manual_seed(generator_for("initial weights", config.seed).initial_seed())
    if network is None:
        lora = {"lora_rank": config.lora_rank} if config.lora_rank else {}
        classes = source.label_set.num_classes
        network = build_network(config.network, classes, config.weights, config.void_output, **lora)
    network.label_set = source.label_set
    other_loss = own_loss(network)
    print_settings(other_loss.get("own_loss", {}))
    is_cuda = torch.device(device).type == "cuda"
    # On a CPU, networks this small are slower with channels last; for "mps" see `zodi.support.runs.image_format`.
    network.to(device, memory_format=torch.channels_last if is_cuda else torch.contiguous_format)
    optimizer = build_optimizer(network, config)

    state_file = Path(out) / "training.pt" if out is not None else None
    start, history = 0, []
    if state_file is not None:
        initial = weights_file(config.network, config.weights)
        trained_on = {"source": source.fingerprint(), "synth": synth.fingerprint() if synth else None}
        trained_on |= {"initial": initial and file_stamp(initial)[:2]}
        fingerprint = settings_hash(asdict(config) | trained_on | shapes | other_loss)
        start, history = resume(state_file, fingerprint, network, optimizer, device)
        write_json(Path(out) / "settings.json", asdict(config) | other_loss)

    if callback is not None and start == 0:
        callback(0, network.eval())
    steps = range(start, config.steps)
    loaded = _Batches(source, synth, pairs, config)
    batches = DataLoader(loaded, None, sampler=steps, num_workers=workers, pin_memory=is_cuda)
    bar = tqdm(steps, "train", config.steps, initial=start, unit="step", disable=not progress)
    for step, (source_batch, synth_batch) in zip(bar, batches, strict=True):
        # Dropout draws from the global generator; seeding by step makes a resumed run equal to an uninterrupted one.
        torch.manual_seed(config.seed * 10**9 + step)
        network.train()
        if config.freeze_norm:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        steps_per_epoch = 1 if config.schedule == "step" else epoch_length(len(pairs or source), config)
        learning_rate = learning_rate_at(step, steps_per_epoch, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        on_device = [batch and augment(batch.to(device), config) for batch in (source_batch, synth_batch)]
        terms = optimisation_step(network, optimizer, *on_device, config)
        values = {name: value.item() for name, value in terms.items()}
        batches_of = {"ce_source": source_batch, "ce_synth": synth_batch}
        labels = {name: batch.labels for name, batch in batches_of.items() if batch}
        check_loss(values, labels, IGNORE_INDEX, f"step {step + 1}")
        history.append({"step": step + 1, **values, "learning_rate": learning_rate})
        to_save = (step + 1) % save_every == 0 or step + 1 == config.steps
        if to_save:
            check_weights(network, f"step {step + 1}")
        if callback is not None:
            callback(step + 1, network.eval())
        if state_file is not None and to_save:
            state = {"fingerprint": fingerprint, "step": step + 1, "history": history}
            state |= {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_path(state_file) as temporary:
                torch.save(state, temporary)
    return network.eval(), pd.DataFrame(history)


def find_pairs(source: AnyDataset, synth: AnyDataset | None, config: AdaptationConfig) -> dict[str, int] | None:
    """Position in `synth` of every source key that has a twin; None where there is no twin at all.

    Raises:
        ValueError: if pairs are needed for the similarity term, or second images to augment, and there is none.
    """
    if synth is None:
        if config.augmentation:
            raise ValueError(
                f"augmentation={config.augmentation!r}: it changes second images; give the source as synth"
            )
        return None
    positions = {key: index for index, key in enumerate(synth.keys)}
    pairs = {key: positions[key] for key in source.keys if key in positions}
    if not pairs and config.similarity_weight:
        raise ValueError(
            f"none of the {len(synth)} synthesized images has the name of a source image (for example "
            f"{synth.keys[0]!r} and {source.keys[0]!r}); the similarity term compares pairs. Set similarity_weight=0 "
            "for unpaired images."
        )
    return pairs or None
