"""What estimates may promise: every correction and interval is judged by leaving out whole domains and whole trainings.

The frames come from `zodi.studies.evidence`; a line is one training at its last step, in one domain. The truth is only
looked at where something is judged, and where other domains and other trainings teach the width of an interval.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from zodi import estimation
from zodi.studies import agreement, evidence
from zodi.studies.evidence import named
from zodi.support.generator_error import GeneratorError

LEVEL = 0.95
# Goals, set before measuring.
LEAST_COVERAGE, GREATEST_WIDTH = 90, 10
LEAST_SIGN_ACCURACY, LEAST_DIFFERENCE = 95, 1.0
LEAST_TRAININGS = 20
MOST_REFUSED = 10
# Ways to learn an interval from known domains, and what it is learnt in: the unit, and the column that it stands for.
INTERVALS = {
    "spread of the known domains": (agreement.new_domain, agreement.new_domain_factor),
    "worst known domain": (agreement.conformal, agreement.conformal_factor),
}
UNITS = {"in points": "points", "as a share of the source score": "source"}
# What the tool gives, see `with_intervals`.
GIVEN = "worst known domain, as a share of the source score"
# How corrections and intervals are called among the tries.
TRY = "estimate corrected:"
INTERVAL_TRY = "interval of the estimate:"
# Scores in the unit of mIoU, which may have an interval.
IN_POINTS = ("estimate", "source", "photometric")
# A correction may raise the mean error of a domain by so much, points.
TOLERANCE = 0.3


def corrected_errors(frame: pd.DataFrame, corrections: Sequence[str]) -> pd.DataFrame:
    """Mean absolute error, points: a line a correction, a column a domain, and whether it may be shipped.

    A correction is shipped if it lowers the error in all domains but one at most, and raises it nowhere by more than
    `TOLERANCE`.

    Args:
        frame: columns `domain`, `truth`, `raw` and the corrections, percent.
        corrections: columns that stand beside `raw`.
    """
    names = ["raw", *corrections]
    errors = frame[names].sub(frame["truth"], axis=0).abs().groupby(frame["domain"], sort=False).mean().T
    gain = errors.loc["raw"] - errors
    shipped = ((gain > 0).sum(axis=1) >= len(errors.columns) - 1) & (gain.min(axis=1) >= -TOLERANCE)
    return errors.assign(shipped=shipped).rename_axis(index="correction", columns=None)


def tries(errors: pd.DataFrame) -> pd.DataFrame:
    """The corrections as lines of `notebooks/records/tries.csv`: mean error over the domains before and after.

    Args:
        errors: from `corrected_errors`.
    """
    means = errors.drop(columns="shipped").mean(axis=1)
    lines = [
        {
            "try": f"{TRY} {name}",
            "why": agreement.CORRECTIONS[name],
            "measure": "mean error of the estimate, points",
            "before": means["raw"],
            "after": means[name],
            "kept": "yes" if name == best_correction(errors) else "no",
        }
        for name in errors.index.drop("raw")
    ]
    return pd.DataFrame(lines).round(2)


def best_correction(errors: pd.DataFrame) -> str:
    """Of the corrections that may be shipped the one with the smallest mean error, or "raw" if none may.

    Args:
        errors: from `corrected_errors`.
    """
    means = errors.drop(columns="shipped").mean(axis=1)[errors["shipped"]]
    return means.idxmin() if len(means) else "raw"


def as_given(last: pd.DataFrame, corrected: pd.DataFrame, correction: str) -> pd.DataFrame:
    """The last steps with `given`: what the tool says when it applies a correction.

    Args:
        last: from `zodi.studies.evidence.last_steps`.
        corrected: from `zodi.studies.agreement.corrections`.
        correction: its column.
    """
    given = named(corrected).set_index(["training", "domain"])[correction]
    return last.join(given.rename("given"), on=["training", "domain"], validate="one_to_one")


def summary(last: pd.DataFrame, value: str) -> pd.DataFrame:
    """Everything that is known of every score, a line per score and domain.

    Args:
        last: from `zodi.studies.evidence.last_steps`, with the column `value`.
        value: what the tool gives; it comes first, as "estimate".

    Returns:
        Index `score`, as readers see it, and `domain`; the columns of `zodi.studies.evidence.by_domain`, and for the
        scores that are in the unit of mIoU `coverage`, percent, and `width`, points, of their intervals.
    """
    last = last.assign(estimate=last[value])
    scores = evidence.by_domain(last).drop(columns="models").set_index(["score", "domain"])
    widths = {score: coverage(with_intervals(last, score)) for score in IN_POINTS if score in last}
    scores = scores.join(pd.concat(widths, names=["score", "domain"]))
    return scores.rename(index=evidence.scores_in(last), level="score").rename_axis(index=["score", "domain"])


def with_intervals(frame: pd.DataFrame, value: str = "estimate") -> pd.DataFrame:
    """The interval that the tool would give for every line, had it seen neither its domain nor its training.

    What is learnt elsewhere is a share of the score on the source: a network that scores more has more to lose. The
    part for sampling, which the tool adds, is not in it; the errors that it is learnt from contain one already.
    """
    return agreement.conformal(frame, value, "source", LEVEL)


def interval_tries(last: pd.DataFrame, value: str = "estimate") -> pd.DataFrame:
    """The ways to an interval, and which of them is kept: the narrowest that holds where it was measured and simulated.

    Args:
        last: from `zodi.studies.evidence.last_steps`.
        value: column of the estimates that the tool gives.

    Returns:
        Index `interval`; `least_coverage`: share of the truths inside in the worst domain, percent; `width`: mean,
        points; `width_of_best`: of the half of the networks with the higher source score; `new_domains`: how often it
        would hold in domains drawn at random, percent, simulated, with as many known domains and trainings as every
        interval here is learnt from; `further_apart`: the same if domains were half as far apart again;
        `width_of_many`: of the interval if very many domains were known, points; `kept`: true for one at most.
    """
    frame, lines = last.assign(points=1.0), {}
    known = (frame["domain"].nunique() - 1, frame["training"].nunique() - 1)
    best = frame["source"] >= frame["source"].median()
    for unit, spread in UNITS.items():
        b, s = agreement.error_parts((frame["truth"] - frame[value]) / frame[spread], frame["domain"])
        for name, (method, factor) in INTERVALS.items():
            found = method(frame, value, spread, LEVEL)
            simulated = functools.partial(agreement.coverage_of_new_domains, factor, level=LEVEL)
            lines[f"{name}, {unit}"] = {
                "least_coverage": coverage(found)["coverage"].min(),
                "width": coverage(found)["width"].mean(),
                "width_of_best": coverage(found[best])["width"].mean(),
                "new_domains": simulated((b, s), *known),
                "further_apart": simulated((1.5 * b, s), *known),
                "width_of_many": 2 * norm.ppf(0.5 + LEVEL / 2) * np.hypot(b, s) * frame[spread].mean(),
            }
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis(index="interval")
    holds = (table["least_coverage"] >= LEAST_COVERAGE) & (table["new_domains"] >= 100 * LEVEL)
    narrowest = table.loc[holds, "width"].idxmin() if holds.any() else None
    return table.assign(kept=table.index == narrowest)


def interval_lines(table: pd.DataFrame) -> pd.DataFrame:
    """The intervals as lines of `notebooks/records/tries.csv`, against the one that knows domains by their spread.

    Args:
        table: from `interval_tries`.
    """
    lines = [
        {
            "try": f"{INTERVAL_TRY} {name}",
            "why": f"truth inside: worst domain {row.least_coverage:.0f} %, simulated ones {row.new_domains:.0f} %",
            "measure": "mean width of the estimate's 95 % interval, points",
            "before": table["width"].iloc[0],
            "after": row.width,
            "kept": "yes" if row.kept else "no",
        }
        for name, row in zip(table.index, table.itertuples(), strict=True)
    ]
    return pd.DataFrame(lines).round(1)


def pairs(frame: pd.DataFrame, score: str = "estimate") -> pd.DataFrame:
    """All pairs of trainings in every domain: how much better the first is, by the score and in truth.

    Returns:
        `domain`, `training` (both names), `first`, `second`, `difference`, `truth`, points.
    """
    parts = []
    for domain, part in frame.groupby("domain", sort=False):
        first, second = np.triu_indices(len(part), 1)
        names, values, truth = (part[name].to_numpy() for name in ("training", score, "truth"))
        columns = {
            "domain": domain,
            "first": names[first],
            "second": names[second],
            "difference": values[first] - values[second],
            "truth": truth[first] - truth[second],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def pair_intervals(found: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """Intervals of differences, from pairs of other trainings in other domains.

    Args:
        found: from `pairs`.
        level: of the intervals.

    Returns:
        The frame with `half_width`, `interval_low` and `interval_high`, points.
    """
    error = found["truth"] - found["difference"]
    half = pd.Series(index=found.index, dtype=float)
    for (first, second), lines in found.groupby(["first", "second"]).groups.items():
        others = ~found[["first", "second"]].isin([first, second]).any(axis=1)
        for line in lines:
            known = others & (found["domain"] != found.loc[line, "domain"])
            half[line] = agreement.new_domain_factor(error[known], found.loc[known, "domain"], level)
    low, high = found["difference"] - half, found["difference"] + half
    return found.assign(half_width=half, interval_low=low, interval_high=high)


def coverage(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of the truths inside their intervals, percent, and the mean width, points, a line a domain."""
    inside = frame["truth"].between(frame["interval_low"], frame["interval_high"])
    measures = {"coverage": 100.0 * inside, "width": frame["interval_high"] - frame["interval_low"]}
    return pd.DataFrame(measures).groupby(frame["domain"], sort=False).mean()


def measured_error(frame: pd.DataFrame, generator: str) -> GeneratorError:
    """What the tool is given for the next domain: learnt from all domains and trainings.

    Args:
        frame: from `zodi.studies.evidence.last_steps`.
        generator: fingerprint of the checkpoint.
    """
    differences = pairs(frame)
    return GeneratorError(
        generator,
        LEVEL,
        agreement.conformal_factor((frame["truth"] - frame["estimate"]) / frame["source"], frame["domain"], LEVEL),
        agreement.new_domain_factor(differences["truth"] - differences["difference"], differences["domain"], LEVEL),
        frame["domain"].nunique(),
        frame["training"].nunique(),
    )


def abstentions(frame: pd.DataFrame) -> pd.DataFrame:
    """Would the tool have abstained, for the redrawn source, and if its layout had been lost?

    The rule is that of `zodi.estimation.Estimate.reliable`: no estimate where redrawing leaves a network nearer to what
    it scores with the labels of other images than to its score on the source, or where these two are nearly the same.
    It learns nothing from other networks.

    Args:
        frame: from `zodi.studies.evidence.last_steps`.

    Returns:
        A line per domain: mean `kept` of the score, and `kept_lost` with the labels of other images; `abstains` and
        `abstains_lost`: how many of the trainings; all percent. `margin`: the smallest part of the way from the lost
        layout to the source that is left, percent; 50 is the limit.
    """
    source, kept, lost = (frame[name] for name in ("source", agreement.REDRAWN, agreement.LOST))
    blind, least = estimation.blind_to_layout(source, lost), estimation.least_redrawn(source, lost)
    measures = {
        "kept": kept / source,
        "kept_lost": lost / source,
        "abstains": blind | (kept < least),
        "abstains_lost": blind | (lost < least),
    }
    by_domain = 100.0 * pd.DataFrame(measures).astype(float).groupby(frame["domain"], sort=False).mean()
    way = (kept - lost) / (source - lost)
    return by_domain.assign(margin=100.0 * way.groupby(frame["domain"], sort=False).min())


@dataclass(frozen=True)
class Judged:
    """What came of all candidates.

    Attributes:
        last: last steps, with the column `given`.
        errors: from `corrected_errors`.
        correction: the one that is applied; "raw" = none.
        verdicts: from `verdicts`.
    """

    last: pd.DataFrame
    errors: pd.DataFrame
    correction: str
    verdicts: pd.DataFrame


def judge(results: str | Path, record: str | Path) -> Judged:
    """Everything that is promised, judged on the candidates of `results`, or on the recorded ones.

    Raises:
        FileNotFoundError: if there is neither.
    """
    frame, _, _ = evidence.load(results, record)
    corrected = agreement.corrections(evidence.load_classes(results, record))
    errors = corrected_errors(corrected, list(agreement.CORRECTIONS))
    correction = best_correction(errors)
    last = as_given(evidence.last_steps(frame), corrected, correction)
    return Judged(last, errors, correction, verdicts(last, errors, correction, "given"))


# ---------------------------------------------------------------- the verdict


def verdicts(frame: pd.DataFrame, corrections: pd.DataFrame, shipped: str, value: str = "estimate") -> pd.DataFrame:
    """The table of goals.

    Args:
        frame: from `zodi.studies.evidence.last_steps`.
        corrections: from `corrected_errors`.
        shipped: the correction that the tool applies; "raw" = none.
        value: column of the estimates that the tool gives.

    Returns:
        Columns measure, goal, measured, verdict ("met", "missed" or "-" where there is nothing to reach).
    """
    domains = list(dict.fromkeys(frame["domain"]))
    trainings = frame["training"].nunique()
    alone, compared = coverage(with_intervals(frame, value)), coverage(pair_intervals(pairs(frame, value)))
    signs = {
        score: pd.Series({d: sign_accuracy_of(part, score) for d, part in frame.groupby("domain")})[domains]
        for score in (value, "photometric")
    }
    refused = abstentions(frame)
    better = [domain for domain in domains if signs[value][domain] > signs["photometric"][domain]]

    def listed(values: pd.Series, form: str = "{:.0f}") -> str:
        return ", ".join(f"{domain} {form.format(values[domain])}" for domain in domains)

    def covers(measure: str, found: pd.DataFrame) -> tuple[str, str, str, bool]:
        return (
            f"{measure}: truth inside the 95 % interval, %",
            f">= {LEAST_COVERAGE} in every domain",
            listed(found["coverage"]),
            bool((found["coverage"] >= LEAST_COVERAGE).all()),
        )

    lines = [
        ("trainings", f">= {LEAST_TRAININGS}", str(trainings), trainings >= LEAST_TRAININGS),
        covers("estimate", alone),
        (
            "estimate: mean width of the interval, points",
            f"<= {GREATEST_WIDTH}",
            f"{alone['width'].mean():.1f} ({listed(alone['width'], '{:.1f}')})",
            alone["width"].mean() <= GREATEST_WIDTH,
        ),
        covers("difference of two networks", compared),
        (
            "difference: mean width of the interval, points",
            "known",
            f"{compared['width'].mean():.1f} ({listed(compared['width'], '{:.1f}')})",
            None,
        ),
        (
            f"correction: mean error, points, raw -> {shipped}",
            f"lower in {len(domains) - 1} of {len(domains)} domains, nowhere {TOLERANCE} higher; or none is shipped",
            ", ".join(f"{d} {corrections[d]['raw']:.1f} -> {corrections[d][shipped]:.1f}" for d in domains),
            shipped == "raw" or bool(corrections["shipped"][shipped]),
        ),
        (
            "refused with labels of other images, and with their own, % of the estimates",
            f"100, and <= {MOST_REFUSED} in every domain",
            f"{listed(refused['abstains_lost'])}; {listed(refused['abstains'])}",
            bool((refused["abstains_lost"] == 100).all() and (refused["abstains"] <= MOST_REFUSED).all()),
        ),
        (
            f"which of two trainings is better (differences over {LEAST_DIFFERENCE:.0f} point), % right",
            f">= {LEAST_SIGN_ACCURACY} in every domain",
            listed(signs[value], "{:.1f}"),
            bool((signs[value] >= LEAST_SIGN_ACCURACY).all()),
        ),
        (
            "the same, against the photometric score",
            f"better in {len(domains)} of {len(domains)} domains",
            f"{len(better)} ({', '.join(better) or 'none'}); photometric: {listed(signs['photometric'], '{:.1f}')}",
            len(better) == len(domains),
        ),
    ]
    table = pd.DataFrame(lines, columns=["measure", "goal", "measured", "verdict"])
    return table.assign(verdict=[{True: "met", False: "missed", None: "-"}[v] for v in table["verdict"]])


def sign_accuracy_of(part: pd.DataFrame, score: str) -> float:
    """`zodi.studies.agreement.sign_accuracy` of a score in one domain, for differences that count, percent."""
    return agreement.sign_accuracy(part[score].to_numpy(), part["truth"].to_numpy(), LEAST_DIFFERENCE)
