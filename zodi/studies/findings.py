"""What a table of mIoU says, in words: which row is best in each domain, and where a row loses to or ties with others.

Differences are taken seed by seed where two rows have at least two seeds of a network in common, else between their
means. A difference below two of its standard errors is a tie. Sentences are made from the runs, so that they change
with them and say what came out, whatever it is.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from zodi.rows import ROWS
from zodi.studies.table_rows import table_rows
from zodi.studies.tables import MEAN, gap_closed, label, on_target

TIE = 2.0  # standard errors
BETTER, TIED, WORSE, UNDECIDED = "better", "tied", "worse", "undecided"
# Rows whose augmentation knows no domain: what anybody would try first.
PLAIN = tuple(name for name, row in ROWS.items() if row.augmentation)
WHERE = {"night": "at night", "game": "in the game", "dusk": "at dusk"}


def where(domain: str) -> str:
    """A domain as a sentence names it: "in snow", "at night"."""
    return WHERE.get(domain, f"in {domain}")


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def called(variant: str) -> str:
    """A row's label as a sentence has it: in quotation marks where its commas would divide a list."""
    text = label(variant)
    return f"“{text}”" if "," in text or "(" in text else text


def difference(first: pd.Series, second: pd.Series) -> tuple[float, float, int]:
    """Mean difference of two rows in one domain, and how sure it is.

    Args:
        first: mIoU, percent, indexed by network and seed.
        second: that which is subtracted.

    Returns:
        The difference and its standard error, points, and the number of pairs; 0 pairs where the means were compared.
        The error is nan where one of the rows has one seed.
    """
    shared = first.index.intersection(second.index)
    if len(shared) >= 2:
        pairs = first[shared] - second[shared]
        return float(pairs.mean()), float(pairs.std() / np.sqrt(len(pairs))), len(pairs)
    error = np.sqrt(first.var() / len(first) + second.var() / len(second))
    return float(first.mean() - second.mean()), float(error), 0


def verdict(points: float, error: float) -> str:
    """Whether a difference is a gain, a loss, a tie, or, without an error, undecided."""
    if pd.isna(error):
        return UNDECIDED
    # Two rows that never differ have no error; they tie.
    if points == 0 or abs(points) < TIE * error:
        return TIED
    return BETTER if points > 0 else WORSE


def compare(runs: pd.DataFrame, variant: str = "zodi") -> pd.DataFrame:
    """One row against every other one in every domain that both were tested on.

    Args:
        runs: tidy frame of `zodi.studies.tables.collect`.
        variant: the row.

    Returns:
        Columns other (variant), domain, points (of `variant` over the other), error, pairs and verdict; empty where
        the row was not run.
    """
    scores = _scores(runs)
    lines = []
    for (other, domain), second in scores.items():
        if other != variant and (variant, domain) in scores:
            points, error, pairs = difference(scores[variant, domain], second)
            lines.append((other, domain, points, error, pairs, verdict(points, error)))
    return pd.DataFrame(lines, columns=["other", "domain", "points", "error", "pairs", "verdict"])


def best(runs: pd.DataFrame) -> pd.DataFrame:
    """The row without target images that has the highest mean in each domain.

    Returns:
        Columns domain, variant, points and error (over source only; nan without such runs), and `level`, a tuple of the
        rows that tie with it or of which nothing can be said.
    """
    scores = _scores(runs)
    lines = []
    for domain in dict.fromkeys(domain for _, domain in scores):
        means = {name: part.mean() for (name, at), part in scores.items() if at == domain and not _is_oracle(name)}
        if not means:
            continue
        first = max(means, key=means.get)
        others = {name: difference(scores[first, domain], scores[name, domain]) for name in means if name != first}
        level = tuple(name for name, (points, error, _) in others.items() if verdict(points, error) != BETTER)
        points, error, _ = others.get("source_only", (float("nan"), float("nan"), 0))
        lines.append((domain, first, points, error, level))
    return pd.DataFrame(lines, columns=["domain", "variant", "points", "error", "level"])


def _scores(runs: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """mIoU on the target by network and seed, for every row and domain, in the order of the tables."""
    groups = on_target(runs).groupby(["variant", "domain"], sort=False)
    return {key: part.set_index(["network", "seed"])["iou"] for key, part in groups}


def _is_oracle(variant: str) -> bool:
    rows = table_rows()
    return variant in rows and rows[variant].true_target


def amount(points: float, error: float) -> str:
    """`+1.2 ± 0.3`, with its sign; without the error where there is none."""
    return f"{points:+.1f}" if pd.isna(error) else f"{points:+.1f} ± {error:.1f}"


def comparison_table(runs: pd.DataFrame, variant: str = "zodi") -> pd.DataFrame:
    """What a row is better by than each other row: index row, a column per domain, cells `+1.2 ± 0.3` in points.

    The error is the standard error; a tie and what one seed cannot decide are named in the cell, "-" is no run.
    """
    found = compare(runs, variant)
    notes = {TIED: " (tie)", UNDECIDED: " (?)"}
    found["cell"] = [
        amount(points, error) + notes.get(kind, "")
        for points, error, kind in zip(found["points"], found["error"], found["verdict"], strict=True)
    ]
    found["row"] = found["other"].map(label)
    rows, domains = (list(dict.fromkeys(found[name])) for name in ("row", "domain"))
    table = found.pivot(index="row", columns="domain", values="cell").reindex(index=rows, columns=domains)
    return table.fillna("-").rename_axis(columns=None)


def strongest(runs: pd.DataFrame, variants: Sequence[str] = PLAIN) -> str:
    """Of some rows that one with the highest mIoU, averaged over domains; "" if none was run."""
    means: dict[str, list[float]] = {}
    for (name, _), part in _scores(runs).items():
        if name in variants:
            means.setdefault(name, []).append(part.mean())
    return max(means, key=lambda name: np.mean(means[name]), default="")


def against(runs: pd.DataFrame, other: str, variant: str = "zodi") -> str:
    """One sentence on a row and one other: where it is better, where they tie, where it is worse; "" without runs."""
    found = compare(runs, variant)
    found = found[found["other"] == other]
    words = {
        BETTER: "is better",
        TIED: "ties",
        WORSE: "is worse",
        UNDECIDED: "has too few seeds to tell",
    }
    parts = []
    for kind, text in words.items():
        lines = [
            f"{where(line['domain'])} ({amount(line['points'], line['error'])})"
            for _, line in found[found["verdict"] == kind].iterrows()
        ]
        parts += [f"{text} {listed(lines)}"] if lines else []
    return f"Against {called(other)}, {called(variant)} {'; it '.join(parts)}." if parts else ""


def home_sentence(runs: pd.DataFrame, variant: str = "zodi", home: str = "clear") -> str:
    """What adaptation costs at home: a row minus source only on the source's domain, by the domain adapted to.

    "" if one of the two was not run.
    """
    tested = runs[(runs["test_domain"] == home) & (runs["class"] == MEAN)].set_index(["network", "seed"])
    reference = tested.loc[tested["variant"] == "source_only", "iou"]
    adapted = tested[tested["variant"] == variant]
    if reference.empty or adapted.empty:
        return ""
    kinds: dict[str, list[str]] = {}
    for domain, part in adapted.groupby("domain", sort=False):
        points, error, _ = difference(part["iou"], reference)
        kinds.setdefault(verdict(points, error), []).append(f"{domain} ({amount(points, error)})")
    words = {WORSE: "loses when adapted to", BETTER: "gains when adapted to", TIED: "ties when adapted to"}
    words |= {UNDECIDED: "has one seed, which says nothing, when adapted to"}
    parts = [f"{text} {listed(kinds[kind])}" for kind, text in words.items() if kind in kinds]
    return f"On {home} images, in points against source only, {called(variant)} {'; it '.join(parts)}."


def best_sentence(runs: pd.DataFrame) -> str:
    """Which row is best in each domain, by how many points over source only, and which rows are level with it."""
    parts = []
    for _, line in best(runs).iterrows():
        if line["variant"] == "source_only":
            text = f"{where(line['domain'])} source only itself"
        else:
            over = "" if pd.isna(line["points"]) else f" ({amount(line['points'], line['error'])})"
            text = f"{where(line['domain'])} {called(line['variant'])}{over}"
        level = [called(name) for name in line["level"]]
        parts.append(text + (f", level with {listed(level)}" if level else ""))
    if not parts:
        return "There are no runs to compare."
    return f"Best without target images, in points over source only ± standard error: {'; '.join(parts)}."


def standing(runs: pd.DataFrame, variant: str = "zodi") -> str:
    """Where a row loses to others and where it ties; the oracle, which trains on target images, does not count.

    Returns:
        Two sentences, or one where no such row was run.
    """
    found = compare(runs, variant)
    found = found[~found["other"].map(_is_oracle)]
    if found.empty:
        return f"There are no runs of {called(variant)} to compare."
    lost = [
        f"{called(line['other'])} {where(line['domain'])} ({amount(line['points'], line['error'])})"
        for _, line in found[found["verdict"] == WORSE].iterrows()
    ]
    first = f"loses to {listed(lost)}" if lost else "loses to no other row"
    sentences = [f"{called(variant)} {first}{_those(found, TIED, '; it ties, within two standard errors, with ')}"]
    won = int((found["verdict"] == BETTER).sum())
    rest = f"It is better in {won} of {len(found)} comparisons"
    sentences.append(rest + _those(found, UNDECIDED, "; one seed says nothing about "))
    return ". ".join(sentences) + "."


def _those(found: pd.DataFrame, kind: str, words: str) -> str:
    """`words` and the rows of one verdict with their domains; "" if there is none."""
    groups = found[found["verdict"] == kind].groupby("other", sort=False)["domain"]
    named = [f"{called(other)} ({listed([where(domain) for domain in domains])})" for other, domains in groups]
    return words + listed(named) if named else ""


def gap_sentence(runs: pd.DataFrame, variant: str = "zodi") -> str:
    """How much of the way from source only to the oracle a row goes in each domain; "" where one end was not run."""
    closed = gap_closed(runs)
    if closed.empty or label(variant) not in closed.index:
        return ""
    shares = closed.loc[label(variant)].dropna()
    parts = [f"{share:.0f} % {where(domain)}" for domain, share in shares.items()]
    below = " (below zero: it is worse than source only)" if (shares < 0).any() else ""
    sentence = f"Of the gap between source only and the oracle, {called(variant)} closes {listed(parts)}{below}."
    return sentence if parts else ""


def paragraph(runs: pd.DataFrame, variant: str = "zodi") -> str:
    """All that a table of rows and domains says: the best rows, the gap, where `variant` loses and ties."""
    return " ".join(filter(None, (best_sentence(runs), gap_sentence(runs, variant), standing(runs, variant))))
