"""How good are estimates, and what they have in common: agreement with the truth, regret, a correction from elsewhere.

All of it takes networks whose truth is known; `zodi.estimation` itself never looks at a target image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from torch import nn

from zodi.datasets import FolderDataset
from zodi.estimation import estimate_from
from zodi.evaluation import image_confusions


@dataclass(frozen=True)
class Calibration:
    """The line truth = intercept + slope * estimate, and the quantiles of what it misses, points of mIoU."""

    slope: float
    intercept: float
    miss_low: float
    miss_high: float

    def __call__(self, estimate: np.ndarray) -> np.ndarray:
        """Corrected estimates, percent."""
        return self.intercept + self.slope * estimate


def calibrate(estimate: np.ndarray, truth: np.ndarray, level: float = 0.95) -> Calibration:
    """Learn the correction from networks whose truth is known.

    Args:
        estimate, truth: percent, one a network and domain.
        level: of the interval.

    Raises:
        ValueError: for fewer than three networks.
    """
    if len(estimate) < 3:
        raise ValueError(f"{len(estimate)} networks: a line takes at least 3")
    slope, intercept = np.polyfit(estimate, truth, 1)
    missed = truth - (intercept + slope * estimate)
    low, high = np.quantile(missed, [(1 - level) / 2, (1 + level) / 2])
    return Calibration(float(slope), float(intercept), float(low), float(high))


def leave_one_domain_out(frame: pd.DataFrame) -> pd.DataFrame:
    """Correct every domain by the line that all other domains teach.

    Args:
        frame: columns `domain`, `estimate`, `truth`, percent.

    Returns:
        The frame with `calibrated`, `calibrated_low` and `calibrated_high`.

    Raises:
        ValueError: if there is only one domain.
    """
    if frame["domain"].nunique() < 2:
        raise ValueError("one domain: there are no others to learn the correction from")
    parts = []
    for domain, part in frame.groupby("domain", sort=False):
        others = frame[frame["domain"] != domain]
        line = calibrate(others["estimate"].to_numpy(), others["truth"].to_numpy())
        value = line(part["estimate"].to_numpy())
        parts.append(
            part.assign(calibrated=value, calibrated_low=value + line.miss_low, calibrated_high=value + line.miss_high)
        )
    return pd.concat(parts).loc[frame.index]


# ---------------------------------------------------------------- how good are estimates?


def agreement(estimate: pd.Series, truth: pd.Series) -> dict[str, float]:
    """Pearson's, Spearman's and Kendall's correlation of estimates with the truth, and `mae` in their unit.

    A constant estimate has no correlation: NaN.
    """
    constant = estimate.nunique() < 2 or truth.nunique() < 2
    tests = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    found = {name: float("nan") if constant else float(test(estimate, truth)[0]) for name, test in tests.items()}
    return found | {"mae": float((estimate - truth).abs().mean())}


def regret(score: pd.Series, truth: pd.Series) -> float:
    """What is lost by taking the candidate with the best score instead of the best one; the unit of the truth.

    Of several equal scores the first counts. NaN if no candidate has a score.
    """
    return float(truth.max() - truth.loc[score.idxmax()]) if score.notna().any() else float("nan")


def select(
    candidates: Mapping[str, nn.Module], generated: Sequence[FolderDataset], names: Sequence[str]
) -> pd.DataFrame:
    """Choose between networks, for example trained with other strengths or prompts, without target images.

    All are judged on the same generated images; with several sets of them, say of all strengths in question, none is
    favoured for having been trained on its own generator's.

    Args:
        candidates: networks by name.
        generated: transfers of the same held-out images, with the same keys.
        names: of the classes.

    Returns:
        Index name, best first: `miou`, `low`, `high`, and `chosen`, true for one.

    Raises:
        ValueError: if there is no candidate, or the transfers are of different images.
    """
    if not candidates or len({tuple(part.keys) for part in generated}) != 1:
        raise ValueError("select needs at least one candidate, and transfers of one set of images")
    rows: dict[str, dict[str, Any]] = {}
    for name, network in candidates.items():
        found = estimate_from(np.stack([image_confusions(network, part, len(names)) for part in generated]), names)
        rows[name] = {"miou": found.miou, "low": found.low, "high": found.high}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("miou", ascending=False, kind="stable")
    return table.assign(chosen=[True] + [False] * (len(table) - 1))
