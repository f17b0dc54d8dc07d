"""From run folders to the tables of the paper: mean and spread over seeds of every row and domain.

A run is one `metrics.json` below `RESULTS/runs`. All tables are made from one tidy frame (`collect`), which can be
written to a CSV file and read back (`write_record`, `read_record`), so that a reader without runs sees ours.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from zodi.datasets import Sample, open_split, read_label
from zodi.domains import DOMAINS
from zodi.studies.table_rows import table_rows
from zodi.support.files import atomic_path, read_json

RUN = ["variant", "domain", "network", "seed"]
COLUMNS = [*RUN, "images_seen", "test_domain", "class", "iou"]
MEAN = "mean"
# Our name of a network -> its name in the published logs.
PUBLISHED_NETWORKS = {
    "PaperDeepLabV3Plus/resnet50": "DeepLabv3+-resnet50",
    "PaperDeepLabV3Plus/resnet101": "DeepLabv3+-resnet101",
    "PaperRefineNet/resnet50": "RefineNet-resnet50",
}
PUBLISHED = Path(__file__).parent / "published"
PUBLISHED_RULES = ("last", "at_best_source", "best_target")


def collect(results: Path | str) -> pd.DataFrame:
    """All runs below `results/runs` as one tidy frame, a line for every run, test domain and class.

    Args:
        results: results folder of a profile, for example `results/mini`.

    Returns:
        Columns `COLUMNS`; `domain` is the domain that the run was adapted to, "" for source-only rows; `class` is
        a class name or `MEAN` for the mIoU; `iou` is in percent. Classes absent from the truth are left out.

    Raises:
        ValueError: if a file lacks a key, a run is there twice, or runs of one row differ in the images they saw.
    """
    rows: list[dict] = []
    files: dict[tuple, Path] = {}
    for file in sorted(Path(results).glob("runs/**/metrics.json")):
        metrics = read_json(file).get("metrics", {})
        missing = [key for key in (*RUN, "images_seen", "miou", "iou") if key not in metrics]
        if missing:
            raise ValueError(
                f"{file}: found no {missing} under 'metrics'; expected the metrics of 01_domain_gap or 05_adaptation. "
                "Delete the file and run the workflow again."
            )
        run = tuple(metrics[key] for key in RUN)
        if run in files:
            raise ValueError(f"{file}: found the run {run} a second time, first in {files[run]}. Delete one of them.")
        files[run] = file
        fixed = {key: metrics[key] for key in (*RUN, "images_seen")}
        for test_domain, miou in metrics["miou"].items():
            ious = {MEAN: miou} | metrics["iou"][test_domain]
            rows += [fixed | {"test_domain": test_domain, "class": name, "iou": iou} for name, iou in ious.items()]
    runs = pd.DataFrame(rows, columns=COLUMNS).dropna(subset="iou").reset_index(drop=True)
    lengths = runs.groupby(["variant", "domain", "network"])["images_seen"].nunique()
    if (lengths > 1).any():
        raise ValueError(
            f"{results}: found runs of {lengths.idxmax()} that saw different numbers of images; expected one length "
            "for all seeds of a row. Delete the runs of the other length."
        )
    return runs


def write_record(runs: pd.DataFrame, file: Path | str) -> None:
    """Write the tidy frame to a CSV file, IoU with four decimals."""
    with atomic_path(file) as temporary:
        runs.to_csv(temporary, index=False, float_format="%.4f")


def read_record(file: Path | str) -> pd.DataFrame:
    """Read a file of `write_record`; raises ValueError if columns are missing."""
    runs = pd.read_csv(file, keep_default_na=False)
    missing = [column for column in COLUMNS if column not in runs]
    if missing:
        raise ValueError(f"{file}: found no columns {missing}; expected {COLUMNS}, as write_record writes them")
    return runs.astype({"iou": float})


def load_runs(results: Path | str, record: Path | str) -> tuple[pd.DataFrame, str]:
    """The runs of `results`, or those of `record` when there are none.

    Returns:
        The tidy frame and where it comes from, a phrase to print.

    Raises:
        FileNotFoundError: if there is neither a run nor a record.
    """
    runs = collect(results)
    if len(runs):
        return runs, f"the runs below {results}"
    if not Path(record).exists():
        raise FileNotFoundError(
            f"found no metrics.json below {results}/runs and no record {record}; expected one of them. "
            "Run `make reproduce` first."
        )
    return read_record(record), f"our recorded runs in {record} (there are none below {results})"


def label(variant: str) -> str:
    """Name of a row as tables and figures print it."""
    rows = table_rows()
    return rows[variant].label if variant in rows else variant


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of `table_rows`, then of `DOMAINS`; unknown names last."""

    def rank(column: pd.Series) -> pd.Series:
        order = {name: i for i, name in enumerate([*table_rows()] if column.name == "variant" else [*DOMAINS])}
        return column.map(lambda name: order.get(name, len(order)))

    keys = [key for key in ("variant", "domain", "test_domain") if key in frame]
    return frame.sort_values(keys, key=rank, kind="stable").reset_index(drop=True)


def on_target(runs: pd.DataFrame, classes: str | None = MEAN) -> pd.DataFrame:
    """Runs tested on the domain they were adapted to; source-only runs count for every domain.

    Args:
        runs: tidy frame.
        classes: the class to keep, `MEAN` for the mIoU, None for all single classes.

    Returns:
        Tidy frame in which `domain` is the test domain, and `row` the variant's name in tables.
    """
    tested = runs[(runs["domain"] == runs["test_domain"]) | (runs["domain"] == "")]
    adapted_to = runs.loc[runs["domain"] != "", "domain"].unique()
    if len(adapted_to):
        tested = tested[tested["test_domain"].isin(adapted_to)]
    tested = tested[tested["class"] != MEAN] if classes is None else tested[tested["class"] == classes]
    return _ordered(tested.assign(domain=tested["test_domain"], row=tested["variant"].map(label)))


def summary(tested: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds.

    Args:
        tested: frame of `on_target`, or any selection with one IoU a run, domain and class.

    Returns:
        One line a variant, network, domain and class, with `mean`, `std` (nan for one seed) in percent, and `seeds`.
    """
    groups = tested.groupby(["variant", "network", "domain", "class"], sort=False)["iou"]
    return _ordered(groups.agg(mean="mean", std="std", seeds="count").reset_index())


def plus_minus(mean: float, std: float) -> str:
    """`41.2 ± 0.5`; without the spread when there is one seed."""
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def main_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's kind of table: rows are variants, columns are target domains, cells are mIoU in percent.

    Returns:
        Strings `mean ± std`, `-` where there is no run, and the column `seeds` with their number ("2-3" when the
        domains differ). With several networks the index has two levels.
    """
    cells = summary(on_target(runs))
    cells["row"] = cells["variant"].map(label)
    cells["cell"] = [plus_minus(mean, std) for mean, std in zip(cells["mean"], cells["std"], strict=True)]
    index = ["network", "row"] if cells["network"].nunique() > 1 else ["row"]
    domains = [name for name in [*DOMAINS, *cells["domain"]] if name in set(cells["domain"])]
    table = cells.pivot(index=index, columns="domain", values="cell")
    table = table.reindex(cells.set_index(index).index.unique())[list(dict.fromkeys(domains))].fillna("-")
    seeds = cells.groupby(index, sort=False)["seeds"].agg(["min", "max"])
    table["seeds"] = [str(low) if low == high else f"{low}-{high}" for low, high in seeds.loc[table.index].to_numpy()]
    return table.rename_axis(columns=None)


def paired(runs: pd.DataFrame, reference: str = "source_only", classes: str | None = MEAN) -> pd.DataFrame:
    """Differences to a reference row, seed by seed.

    The runs of one seed share their initial weights, so that the spread of the difference tells whether a gain is
    there, not the spreads of the two rows.

    Args:
        runs: tidy frame.
        reference: the variant that is subtracted.
        classes: as in `on_target`.

    Returns:
        Frame of `on_target` with the column `gain`, points of IoU; runs without a partner of their seed are left out.
    """
    tested = on_target(runs, classes)
    keys = ["network", "domain", "class", "seed"]
    partner = tested.loc[tested["variant"] == reference, [*keys, "iou"]]
    pairs = tested[tested["variant"] != reference].merge(partner, on=keys, suffixes=("", "_reference"))
    return _ordered(pairs.assign(gain=pairs["iou"] - pairs["iou_reference"]))


def gains(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of the differences of `paired`.

    Returns:
        One line a variant, network, domain and class: `mean` and `std` of the gain in points, `seeds`, and `positive`,
        the number of seeds in which the variant is better than the reference.
    """
    groups = pairs.groupby(["variant", "network", "domain", "class"], sort=False)["gain"]
    differences = groups.agg(mean="mean", std="std", seeds="count", positive=lambda gain: int((gain > 0).sum()))
    return _ordered(differences.reset_index())


def statement(gain: pd.Series, reference: str) -> str:
    """One sentence on a line of `gains`: its size, its spread, and whether the seeds agree.

    Args:
        gain: a line of `gains`.
        reference: the variant that was subtracted.
    """
    seeds, positive = int(gain["seeds"]), int(gain["positive"])
    if seeds == 1:
        verdict = "one seed, which decides nothing"
    elif positive == seeds:
        verdict = f"better in all {seeds} seeds"
    elif positive == 0:
        verdict = f"better in none of {seeds} seeds"
    else:
        verdict = f"better in {positive} of {seeds} seeds: undecided"
    spread = "" if pd.isna(gain["std"]) else f" ± {gain['std']:.1f}"
    rows = f"{label(gain['variant'])} − {label(reference)}"
    return f"{gain['domain']}: {rows} = {gain['mean']:+.1f}{spread} points, {verdict}"


def gap_closed(runs: pd.DataFrame) -> pd.DataFrame:
    """Share of the way from source-only to the oracle that every variant goes, in percent of the mean mIoU.

    Returns:
        Rows are variants, columns domains; empty when source-only or the oracle was not run. A domain in which the
        oracle is not better than source-only has no gap to close and is nan. Networks count that have run both.
    """
    ends = {"source_only", "oracle"}
    whole = [name for name, part in runs.groupby("network") if ends <= {*part["variant"]}]
    if not whole:
        return pd.DataFrame()
    tested = on_target(runs[runs["network"].isin(whole)])
    means = summary(tested).pivot_table("mean", "variant", "domain", sort=False)
    gap = means.loc["oracle"] - means.loc["source_only"]
    closed = 100 * (means - means.loc["source_only"]) / gap.where(gap > 0)
    return closed.drop(index=["source_only", "oracle"]).rename(index=label).rename_axis(index="row", columns=None)


def read_predictions(
    results: Path | str, domain: str, variants: Sequence[str], limit: int = 3
) -> tuple[list[Sample], dict[str, list[np.ndarray]]]:
    """The first test images of a domain with what the networks of some rows saw in them, of the first seed each.

    Args:
        results: results folder of a profile, with `data/` and the runs' `predictions/DOMAIN/KEY.png`.
        domain: test domain; runs adapted to it and source-only runs count.
        variants: rows wanted, in this order.
        limit: number of images.

    Returns:
        The samples, and for every row that has predictions its label and their uint8 (H, W) class ids.
    """
    test = open_split(Path(results) / "data", f"test/{domain}")
    samples = [test[i] for i in range(min(limit, len(test)))]
    predictions = {}
    for variant in variants:
        for folder in sorted(Path(results).glob(f"runs/{variant}/**/predictions/{domain}")):
            files = [folder / f"{sample.key}.png" for sample in samples]
            if all(file.exists() for file in files):
                predictions[label(variant)] = [read_label(file, test.label_set) for file in files]
                break
    return samples, predictions


def published_logs() -> pd.DataFrame:
    """The authors' 47 published training logs, one line each.

    Returns:
        Columns domain, network, seed, epochs, the target mIoU of each of `PUBLISHED_RULES`, best_source (mIoU on the
        source's validation set), in percent, and `source`.
    """
    return pd.read_csv(PUBLISHED / "zodi_published_runs.csv").rename(columns={"model": "network"})


def published_rules(logs: pd.DataFrame) -> pd.DataFrame:
    """Target mIoU of the published logs, mean and std over seeds, for each rule of epoch choice.

    Args:
        logs: from `published_logs`.

    Returns:
        Columns domain, network, rule, mean, std (percent), seeds.
    """
    tidy = logs.melt(["domain", "network", "seed"], PUBLISHED_RULES, "rule", "iou")
    groups = tidy.groupby(["domain", "network", "rule"], sort=False)["iou"]
    return _ordered(groups.agg(mean="mean", std="std", seeds="count").reset_index())


def collect_epochs(results: Path | str) -> pd.DataFrame:
    """Which epoch each rule takes, in all runs below `results/runs` that scored their epochs.

    Returns:
        A line for every run and rule: `RUN`, rule, epoch, and the mIoU of that epoch on source, synthetic and target.
    """
    rows = []
    for file in sorted(Path(results).glob("runs/**/metrics.json")):
        metrics = read_json(file).get("metrics", {})
        rows += [{key: metrics[key] for key in RUN} | line for line in metrics.get("epochs", [])]
    return pd.DataFrame(rows, columns=[*RUN, "rule", "epoch", "source", "synthetic", "target"])


def epoch_regret(epochs: pd.DataFrame) -> pd.DataFrame:
    """What each rule of epoch choice loses against the best epoch on the target's labels.

    Args:
        epochs: from `collect_epochs`.

    Returns:
        Index row and domain, a column a rule: mean over the runs, points; empty if no run scored its epochs.
    """
    oracle = epochs.loc[epochs["rule"] == "best_target", [*RUN, "target"]].rename(columns={"target": "oracle"})
    lost = epochs.merge(oracle, on=RUN)
    lost = _ordered(lost.assign(regret=lost["oracle"] - lost["target"]))
    lost["row"] = lost["variant"].map(label)
    table = lost.pivot_table(index=["row", "domain"], columns="rule", values="regret", aggfunc="mean", sort=False)
    return table.rename_axis(columns=None)


def beside_published(epochs: pd.DataFrame, logs: pd.DataFrame) -> pd.DataFrame:
    """Target mIoU of ZoDi: published, reproduced, and their difference, for each rule.

    Args:
        epochs: from `collect_epochs`.
        logs: from `published_logs`.

    Returns:
        Index domain, network, rule; columns `published` and `reproduced` ("mean ± std" in percent, "-" where there is
        none), `difference` in points, and the numbers of seeds. Rules that the logs do not have are left out.
    """
    ours = epochs[(epochs["variant"] == "zodi") & epochs["network"].isin(PUBLISHED_NETWORKS)]
    ours = ours.assign(
        network=ours["network"].map(PUBLISHED_NETWORKS), rule=ours["rule"].replace({"best_source": "at_best_source"})
    )
    index = ["domain", "network", "rule"]
    statistics = {"mean": "mean", "std": "std", "seeds": "count"}
    reproduced = ours.groupby(index)["target"].agg(**statistics).add_suffix("_ours")
    table = published_rules(logs).set_index(index).join(reproduced)

    def cells(suffix: str) -> list[str]:
        pairs = zip(table[f"mean{suffix}"], table[f"std{suffix}"], strict=True)
        return ["-" if pd.isna(mean) else plus_minus(mean, std) for mean, std in pairs]

    return pd.DataFrame(
        {
            "published": cells(""),
            "reproduced": cells("_ours"),
            "difference": (table["mean_ours"] - table["mean"]).round(1),
            "seeds, published": table["seeds"],
            "seeds, reproduced": table["seeds_ours"].fillna(0).astype(int),
        },
        index=table.index,
    )


def published_peers() -> pd.DataFrame:
    """What other methods report on the same targets: mIoU in percent by domain, their protocol, and the source."""
    return pd.read_csv(PUBLISHED / "peers.csv")


def published_genval() -> pd.DataFrame:
    """GenVal's correlations of mIoU on generated and on real images, by generator and domain, and their source."""
    return pd.read_csv(PUBLISHED / "genval.csv")


def write_table(table: pd.DataFrame, stem: Path | str) -> list[Path]:
    """Write a table to `STEM.csv` and, rounded to two decimals, to `STEM.md`; returns the two paths."""
    stem = Path(stem)
    paths = [stem.with_suffix(".csv"), stem.with_suffix(".md")]
    several = isinstance(table.index, pd.MultiIndex)
    shown = (table.reset_index() if several else table).round(2)
    texts = [table.to_csv(), shown.to_markdown(index=not several, disable_numparse=True) + "\n"]
    for path, text in zip(paths, texts, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths
