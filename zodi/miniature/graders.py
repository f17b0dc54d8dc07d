"""Two networks that grade transferred images, both trained on true renders of pretraining scenes in all six domains.

The judge is a segmentation network: the transfer has kept what the judge still recognises in a transferred image. The
classifier names the domain: what it calls night looks like night. Neither sees, in its training, a transferred image or
a scene on which transfers are graded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from zodi.datasets import Sample
from zodi.evaluation import confusion, miou
from zodi.labels import CITYSCAPES, IGNORE_INDEX
from zodi.miniature import scenes
from zodi.miniature.weather import SHADERS
from zodi.segmentation import DEFAULT_NETWORK, SegmentationNetwork, build_network, normalise
from zodi.support.checks import check_finite
from zodi.support.files import atomic_path, read_json, write_json
from zodi.support.runs import settings_hash
from zodi.support.tensors import load_into, read_tensors

DOMAIN_NAMES = tuple(SHADERS)
CLASSIFIER = "resnet10t"
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class GraderConfig:
    """Settings of the graders' training.

    Attributes:
        scene_count: the first scenes of `scenes.PRETRAIN_SEEDS`, each in six domains.
        height, width: pixels, multiples of 32.
        judge_steps, classifier_steps: optimisation steps.
        batch_size: images per step.
        crop: (height, width) that the judge is trained on, pixels, multiples of 32.
        learning_rate: peak of AdamW, with warm-up and cosine decay.
        seed: determines weights and batches.
    """

    scene_count: int = 1000
    height: int = 96
    width: int = 192
    judge_steps: int = 2500
    classifier_steps: int = 500
    batch_size: int = 8
    crop: tuple[int, int] = (64, 128)
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.scene_count <= len(scenes.PRETRAIN_SEEDS):
            raise ValueError(f"scene_count={self.scene_count}: expected 1 .. {len(scenes.PRETRAIN_SEEDS)}")
        if self.crop[0] > self.height or self.crop[1] > self.width:
            raise ValueError(f"crop={self.crop}: larger than the images, {self.height}x{self.width}")


@dataclass(frozen=True)
class Graders:
    """The judge, (B, 3, H, W) -> (logits (B, C, H, W), features), and the classifier, -> (B, 6) logits."""

    judge: SegmentationNetwork
    classifier: nn.Module


def build_graders(config: GraderConfig) -> Graders:
    """Both networks before their training: the judge from the pretrained body, the classifier from random weights."""
    torch.manual_seed(config.seed)
    judge = build_network(DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini")
    return Graders(judge, timm.create_model(CLASSIFIER, pretrained=False, num_classes=len(DOMAIN_NAMES)))


def load_or_train(config: GraderConfig, folder: Path, device: str | torch.device = "cpu") -> Graders:
    """The graders of `folder`, on a device; trained there first if it holds none with these settings.

    The training takes some minutes on 2 cores.
    """
    graders = build_graders(config)
    networks = {"judge": graders.judge, "classifier": graders.classifier}
    for network in networks.values():
        network.to(device)
    settings_file = folder / SETTINGS_FILE
    if not settings_file.exists() or read_json(settings_file)["hash"] != settings_hash(config):
        images, labels = _render(config)
        judge_loss = partial(_judge_loss, graders.judge, images, labels, config)
        classifier_loss = partial(_classifier_loss, graders.classifier, images, config)
        _fit("judge", graders.judge, judge_loss, config.judge_steps, config)
        _fit("classifier", graders.classifier, classifier_loss, config.classifier_steps, config)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, network in networks.items():
                weights = {key: value.contiguous() for key, value in network.state_dict().items()}
                save_file(weights, temporary / f"{name}.safetensors")
            write_json(temporary / SETTINGS_FILE, {"config": config, "hash": settings_hash(config)})
    for name, network in networks.items():
        advice = "delete the folder to train them again"
        file = folder / f"{name}.safetensors"
        load_into(network, read_tensors(file, advice), file, advice)
        network.eval().requires_grad_(False)
    return graders


@torch.inference_mode()
def classify(graders: Graders, images: list[np.ndarray], batch_size: int = 16) -> list[str]:
    """The domain that the classifier sees in each image uint8 (H, W, 3), all of the same size."""
    names: list[str] = []
    for first in range(0, len(images), batch_size):
        x = normalise(torch.from_numpy(np.stack(images[first : first + batch_size])).to(_device(graders.classifier)))
        names += [DOMAIN_NAMES[i] for i in graders.classifier(x).argmax(1).tolist()]
    return names


def judge_miou(graders: Graders, images: list[np.ndarray], labels: list[np.ndarray], batch_size: int = 10) -> float:
    """mIoU, percent, of the judge on images uint8 (H, W, 3), all of the same size, with label maps uint8 (H, W)."""
    samples = [Sample(image, label, "") for image, label in zip(images, labels, strict=True)]
    return 100 * miou(confusion(graders.judge, samples, CITYSCAPES.num_classes, batch_size))


# ---------------------------------------------------------------- training


def _render(config: GraderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 6, H, W, 3) and labels uint8 (N, H, W)."""
    pairs = list(scenes.render_many(scenes.PRETRAIN_SEEDS[: config.scene_count], config.height, config.width))
    return np.stack([images for images, _ in pairs]), np.stack([label for _, label in pairs])


def _judge_loss(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, config: GraderConfig, rng: np.random.Generator
) -> Tensor:
    h, w = config.crop
    x, y = [], []
    for _ in range(config.batch_size):
        scene, domain, flip = rng.integers(len(images)), rng.integers(len(DOMAIN_NAMES)), rng.choice([-1, 1])
        top, left = rng.integers(config.height - h + 1), rng.integers(config.width - w + 1)
        x.append(images[scene, domain, top : top + h, left : left + w][:, ::flip])
        y.append(labels[scene, top : top + h, left : left + w][:, ::flip])
    logits, _ = network(normalise(_half_blurred(np.stack(x), rng).to(_device(network))))
    truth = torch.from_numpy(np.stack(y)).to(logits.device).long()
    return F.cross_entropy(logits, truth, ignore_index=IGNORE_INDEX)


def _classifier_loss(network: nn.Module, images: np.ndarray, config: GraderConfig, rng: np.random.Generator) -> Tensor:
    scene = rng.integers(len(images), size=config.batch_size)
    domain = rng.integers(len(DOMAIN_NAMES), size=config.batch_size)
    logits = network(normalise(_half_blurred(images[scene, domain], rng).to(_device(network))))
    return F.cross_entropy(logits, torch.from_numpy(domain).to(logits.device))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _half_blurred(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Images uint8 (B, H, W, 3) -> float (B, 3, H, W), 0 .. 1; about half are blurred a little.

    A grader should look at shapes and light. Without blur it learns to expect the finest grain of the pixels, which no
    VAE of this size preserves, and misjudges soft images.
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    blurred = TF.gaussian_blur(x, [5, 5], [float(rng.uniform(0.3, 1.0))])
    return torch.where(torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None], blurred, x)


def _fit(
    name: str,
    network: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor],
    steps: int,
    config: GraderConfig,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-2, fused=True)
    network.train()
    for step in tqdm(range(steps), f"train the {name}", unit="step"):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
        loss = loss_of(np.random.default_rng([config.seed, step]))
        check_finite({"loss": loss.item()}, f"{name}, step {step + 1}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
