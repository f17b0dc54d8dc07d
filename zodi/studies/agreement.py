"""How good are estimates, and what they have in common: agreement with the truth, regret, a correction from elsewhere.

All of it takes networks whose truth is known; `zodi.estimation` itself never looks at a target image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from torch import nn

from zodi.datasets import FolderDataset
from zodi.estimation import estimate_from
from zodi.evaluation import image_confusions

# Methods of the held-out images: redrawn as the source that they are, only encoded and decoded, with other strengths.
REDRAWN, ROUND_TRIP, STRENGTHS = "clear_prompt", "vae_round_trip", ("strength_70", "strength_90")
VARIATIONS = (REDRAWN, ROUND_TRIP, *STRENGTHS)
# Estimates without the pixels that a source-trained network no longer finds: in the transfer, or in the redrawn source.
MASKS = ("masked", "masked_redrawn")
# What `corrections` tries beside the raw estimate, and why it may help.
CORRECTIONS = {
    "additive": "what redrawing the source costs this network is the generator's doing",
    "half": "a part of that loss may be the source's alone",
    "multiplicative": "the generator may cost a share of the score, not points",
    "per_class": "the generator loses thin things and keeps the road",
    "weighted": "classes that the generator draws badly should count less",
    "round_trip": "the VAE alone may be what costs the score",
    "strengths": "errors of several strengths may average out",
    "masked": "pixels that lost their layout in the transfer should not count",
    "masked_redrawn": "the same, judged in the source's own weather",
}
# The redrawn source with the labels of other images: what a generator that loses the layout would be worth.
LOST = "lost"


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


# ---------------------------------------------------------------- corrections from the source's own images


def corrections(classes: pd.DataFrame) -> pd.DataFrame:
    """Estimates corrected by what redrawing the source as itself costs the same network; nothing looks at a target.

    With E_c, S_c, R_c and V_c the IoU of class c on the generated target, on the source, on the redrawn source and on
    what the VAE makes of the source, in percent:

    - `raw`: mean of E_c
    - `additive`: raw + mean S_c - mean R_c
    - `half`: raw + (mean S_c - mean R_c) / 2
    - `multiplicative`: raw * mean S_c / mean R_c
    - `per_class`: mean of min(100, E_c S_c / R_c), the ratio at most 2
    - `weighted`: mean of E_c with weights R_c / S_c, at most 1: classes that the generator draws badly count less
    - `round_trip`: raw + mean S_c - mean V_c
    - `strengths`: mean of E_c over the domain's own strength and `STRENGTHS`
    - `masked`, `masked_redrawn`: mean of E_c without the pixels of `MASKS`

    Args:
        classes: from `zodi.studies.evidence.class_table`.

    Returns:
        A line for each candidate and domain: the columns that name them, `loss` = mean S_c - mean R_c, `spread` = the
        standard deviation over strengths, the corrections, and `truth`. What was not scored is NaN.
    """
    scored = ("estimate", "source", "truth", *VARIATIONS, *MASKS)
    key = [name for name in classes.columns if name not in ("class", *scored)]
    classes = classes.reindex(columns=[*key, "class", *scored])
    rows = []
    for where, part in classes.groupby(key, sort=False):
        estimate, source, redrawn = (part[name].to_numpy() for name in ("estimate", "source", REDRAWN))
        ratio = source / np.maximum(redrawn, 1)
        weight = np.clip(redrawn / np.maximum(source, 1), 0, 1)
        raw, loss = estimate.mean(), source.mean() - redrawn.mean()
        at_strengths = [raw, *(part[name].mean() for name in STRENGTHS)]
        found = {
            "loss": loss,
            "spread": np.std(at_strengths, ddof=1),
            "raw": raw,
            "additive": raw + loss,
            "half": raw + loss / 2,
            "multiplicative": raw * source.mean() / max(redrawn.mean(), 1),
            "per_class": np.minimum(100, estimate * np.clip(ratio, 0, 2)).mean(),
            "weighted": (estimate * weight).sum() / max(weight.sum(), 1e-9),
            "round_trip": raw + source.mean() - part[ROUND_TRIP].mean(),
            "strengths": np.mean(at_strengths),
            **{name: part[name].mean() for name in MASKS},
            "truth": part["truth"].mean(),
        }
        rows.append(dict(zip(key, where, strict=True)) | found)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- intervals that know other domains


def conformal(frame: pd.DataFrame, value: str, spread: str, level: float = 0.95) -> pd.DataFrame:
    """Intervals whose width other domains and other trainings teach (split conformal prediction, by domain).

    A line is one training in one domain. Its interval comes from the errors abs(truth - value) / spread of all other
    trainings in all other domains: their quantile in each of these domains says how far one has to go there, and the
    largest of them counts, because nothing says that the next domain is kinder than the worst one known. The quantile
    is `conformal_quantile` (Vovk et al., *Algorithmic Learning in a Random World*, 2005). Nothing protects it from a
    domain that is worse than all known ones.

    Args:
        frame: columns `domain`, `training`, `truth`, `value` and `spread`, points of mIoU; spread > 0.
        value: column of the estimate.
        spread: column by which errors are standardised.
        level: of the interval, 0 .. 1.

    Returns:
        The frame with `half_width`, `interval_low` and `interval_high`, percent.

    Raises:
        ValueError: if there is only one domain or one training.
    """
    if frame["domain"].nunique() < 2 or frame["training"].nunique() < 2:
        raise ValueError("one domain or one training: there is no other to learn the width of an interval from")
    return _learnt_elsewhere(conformal_factor, frame, value, spread, level)


def conformal_factor(error: pd.Series, domain: pd.Series, level: float) -> float:
    """The largest of the domains' quantiles of `conformal`, from standardised errors and their domains."""
    return float(max(conformal_quantile(part.abs().to_numpy(), level) for _, part in error.groupby(domain)))


def new_domain(frame: pd.DataFrame, value: str, spread: str, level: float = 0.95) -> pd.DataFrame:
    """Intervals for a domain that nobody knows, from how much known domains differ (random effects).

    The standardised error e = (truth - value) / spread of training m in domain d is taken as b_d + u_dm: what the
    generator does to every score of a domain, and what is left. With K other domains, and b_d, s^2 estimated there from
    all other trainings, the error of a new one is within t_K sqrt(mean of b_d^2 + s^2), t_K the quantile of Student's
    distribution with K degrees of freedom: the prediction interval of Higgins et al., *A re-evaluation of
    random-effects meta-analysis* (2009), around zero, because estimates are not shifted.

    Args:
        frame, value, spread, level: see `conformal`.

    Returns:
        The frame with `half_width`, `interval_low` and `interval_high`, percent.

    Raises:
        ValueError: if there are fewer than three domains or trainings.
    """
    if frame["domain"].nunique() < 3 or frame["training"].nunique() < 3:
        raise ValueError("found fewer than three domains or trainings; expected at least two others to learn from")
    return _learnt_elsewhere(new_domain_factor, frame, value, spread, level)


def new_domain_factor(error: pd.Series, domain: pd.Series, level: float) -> float:
    """t_K sqrt(mean of b_d^2 + s^2) of `new_domain`, from standardised errors and their domains."""
    return float(stats.t.ppf(0.5 + level / 2, domain.nunique()) * np.hypot(*error_parts(error, domain)))


def error_parts(error: pd.Series, domain: pd.Series) -> tuple[float, float]:
    """Root mean square of the domains' own errors b_d, and s, the standard deviation of what is left of each error."""
    by_domain = error.groupby(domain)
    return float(np.sqrt((by_domain.mean() ** 2).mean())), float(np.sqrt(by_domain.var().mean()))


def _learnt_elsewhere(
    factor: Callable[[pd.Series, pd.Series, float], float], frame: pd.DataFrame, value: str, spread: str, level: float
) -> pd.DataFrame:
    """Intervals that `factor` makes for every line from the errors of other trainings in other domains; 0 .. 100."""
    error = (frame["truth"] - frame[value]) / frame[spread]
    factors = []
    for domain, training in zip(frame["domain"], frame["training"], strict=True):
        others = (frame["domain"] != domain) & (frame["training"] != training)
        factors.append(factor(error[others], frame.loc[others, "domain"], level))
    half = np.asarray(factors) * frame[spread]
    low, high = (frame[value] - half).clip(lower=0), (frame[value] + half).clip(upper=100)
    return frame.assign(half_width=half, interval_low=low, interval_high=high)


def coverage_of_new_domains(
    factor: Callable[[pd.Series, pd.Series, float], float],
    parts: tuple[float, float],
    domains: int,
    trainings: int,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> float:
    """How often an interval would hold in domains drawn at random, percent; simulated.

    Domains' own errors and what is left of them are drawn from normal distributions. The known ones give `factor` what
    it needs, one training in a new one is what it must cover.

    Args:
        factor: `conformal_factor` or `new_domain_factor`.
        parts: standard deviations of b_d and of u_dm, see `error_parts`.
        domains, trainings: how many are known.
        level: of the interval, 0 .. 1.
        draws: simulated worlds.
        seed: of the draws.
    """
    rng, held = np.random.default_rng(seed), 0
    domain = pd.Series(np.repeat(np.arange(domains), trainings))
    for _ in range(draws):
        b, u = rng.normal(0, parts[0], domains + 1), rng.normal(0, parts[1], domains * trainings + 1)
        half = factor(pd.Series(b[:-1][domain] + u[:-1]), domain, level)
        held += abs(b[-1] + u[-1]) <= half
    return 100 * held / draws


def conformal_quantile(errors: np.ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n errors, at most the largest."""
    rank = min(len(errors), int(np.ceil((len(errors) + 1) * level)))
    return float(np.sort(errors)[rank - 1])


def best_threshold(kept: np.ndarray, lost: np.ndarray) -> tuple[float, float]:
    """The value that tells images that kept their layout from those that lost it.

    Args:
        kept: `zodi.estimation.fidelity` of images with their own labels, any shape.
        lost: the same with labels that do not belong to them.

    Returns:
        The threshold, in the middle between the two neighbouring values, and the balanced accuracy, 0 .. 1.
    """
    values = np.unique(np.concatenate([kept.ravel(), lost.ravel()]))
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    accuracy = [((kept >= cut).mean() + (lost < cut).mean()) / 2 for cut in cuts]
    best = int(np.argmax(accuracy))
    return float(cuts[best]), float(accuracy[best])


# ---------------------------------------------------------------- which of two networks is better?


def sign_accuracy(score: np.ndarray, truth: np.ndarray, least: float = 1.0) -> float:
    """Share of pairs of networks that a score orders as the truth does, percent; a tie counts half.

    Args:
        score, truth: one value per network; higher is better.
        least: only pairs whose truth differs by more count, points.

    Returns:
        NaN if there is no such pair.
    """
    first, second = np.triu_indices(len(truth), 1)
    difference = truth[first] - truth[second]
    counted = np.abs(difference) > least
    if not counted.any():
        return float("nan")
    agreement_ = np.sign(score[first] - score[second]) * np.sign(difference)
    return float(100 * ((agreement_[counted] + 1) / 2).mean())


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
