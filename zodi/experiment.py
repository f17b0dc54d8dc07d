"""One training run of the tables, from the data set folder to the record: what a row trains on and what is kept.

Everything that trains a row calls `training_sets` and `train_row`: the command line, notebooks 01 and 05, the studies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from zodi import adaptation
from zodi.adaptation import AdaptationConfig
from zodi.datasets import AnyDataset, FolderDataset, dataset_info, open_split, pack, synthesized
from zodi.evaluation import evaluate, image_confusions
from zodi.rows import Row
from zodi.support.results import vouched_keys

# The share of synthesized images that a row of faithful images leaves out.
LEFT_OUT = 0.2


@dataclass(frozen=True)
class TrainingSets:
    """What a row trains on.

    Attributes:
        row: the row.
        domain: target domain; "" for rows that serve every domain.
        first: labelled images that every batch has.
        second: their synthesized images, the true target images, or themselves, to be augmented; None = `first` alone.
    """

    row: Row
    domain: str
    first: AnyDataset
    second: AnyDataset | None

    def packed(self) -> "TrainingSets":
        """The same sets as decoded copies, which many worker processes share."""
        second = None if self.second is None else pack(self.second)
        return TrainingSets(self.row, self.domain, pack(self.first), second)


@dataclass(frozen=True)
class Trained:
    """A trained row: its network in evaluation mode, the loss terms of every step, and the record for the tables."""

    network: nn.Module
    history: pd.DataFrame
    record: dict[str, Any]


def training_sets(
    row: Row,
    data: str | Path,
    domain: str = "",
    synth: str | Path | None = None,
    reference: nn.Module | None = None,
) -> TrainingSets:
    """Open what a row trains on.

    Args:
        row: from `zodi.rows`.
        data: data set folder.
        domain: target domain; "" for rows that serve every domain.
        synth: folder that the transfer of `train/images` wrote, for rows with synthesized images.
        reference: network that finds the layout in good images of the domain, for rows of faithful images.

    Raises:
        ValueError: if the row needs something that is not given, or has no use for what is given.
        FileNotFoundError: if a folder is missing or empty.
    """
    needs = {
        "domain": (row.adapted, domain, "the target domain"),
        "synth": (row.method is not None, synth, "the folder that `python -m zodi transfer` wrote"),
        "reference": (row.faithful_only, reference, "a network that finds the layout in good images of the domain"),
    }
    for name, (needed, given, meaning) in needs.items():
        if needed and not given:
            raise ValueError(f"variant {row.name!r} needs --{name}, {meaning}")
        if given and not needed:
            raise ValueError(f"variant {row.name!r} has no use for --{name}; leave it out or choose another variant")
    source = open_split(data, "train")
    if not row.adapted:
        return TrainingSets(row, "", source, source if row.augmentation else None)
    if row.true_target:
        second = open_split(data, f"train_{domain}")
    else:
        second = synthesized(synth, Path(data) / "train" / "labels", source.label_set)
        second = second.only(vouched_keys(synth, second.keys))
    if row.faithful_only:
        second = most_faithful(second, reference)
    return TrainingSets(row, domain, source, second) if row.source else TrainingSets(row, domain, second, None)


def most_faithful(synth: FolderDataset, reference: nn.Module, batch_size: int = 10) -> FolderDataset:
    """Synthesized images without the share `LEFT_OUT` whose labels the reference network finds least."""
    # Loads the libraries of the diffusion model, which no other row needs.
    from zodi.estimation import faithful_keys, fidelity

    found = image_confusions(reference, synth, synth.label_set.num_classes, batch_size)
    threshold = float(np.quantile(fidelity(found), LEFT_OUT))
    return synth.only(faithful_keys(synth, found, threshold))


def train_row(
    sets: TrainingSets,
    config: AdaptationConfig,
    out: str | Path | None,
    callback: Callable[[int, nn.Module], None] | None = None,
    progress: bool = False,
    device: str = "cpu",
    workers: int = 0,
) -> Trained:
    """Train a row of the tables.

    Args:
        sets: from `training_sets`.
        config: from `zodi.adaptation.recipe`, for the same row.
        out, callback, progress, device, workers: see `zodi.adaptation.train`; with workers, the data are packed first.

    Returns:
        Network, history, and the record: `variant`, `domain`, `network`, `seed`, `images_seen` (images that went
        through the network), `loss` (mean of the last ten steps), and where it has one, its `own_loss`.
    """
    sets = sets.packed() if workers else sets
    network, history = adaptation.train(
        config, sets.first, sets.second, out, callback, progress=progress, device=device, workers=workers
    )
    record = {
        "variant": sets.row.name,
        "domain": sets.domain,
        "network": config.network,
        "seed": config.seed,
        "images_seen": config.steps * config.batch_size * sets.row.images_per_sample,
        "loss": float(history["loss"].tail(10).mean()),
    }
    return Trained(network, history, record | adaptation.own_loss(network))


def scores_by_domain(
    network: nn.Module, data: str | Path, domains: Sequence[str] | None = None, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """`zodi.evaluation.evaluate` of a network on the sets of `test_sets`; `progress` shows one bar per domain."""
    tests = test_sets(data, domains)
    return {name: evaluate(network, test, test.label_set, progress=progress) for name, test in tests.items()}


def test_sets(data: str | Path, domains: Sequence[str] | None) -> dict[str, FolderDataset]:
    """Test images of a data set folder by domain, None = all of its domains; ValueError for a domain that it lacks."""
    known = dataset_info(data)["domains"]
    unknown = [domain for domain in domains or [] if domain not in known]
    if unknown:
        raise ValueError(f"{data}: no test images of {unknown}; expected some of {known}")
    return {domain: open_split(data, f"test/{domain}") for domain in domains or known}
