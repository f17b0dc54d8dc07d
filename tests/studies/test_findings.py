"""Sentences on tables say what the runs say. All numbers here are made up: a win, a tie, a loss, too few seeds."""

import pandas as pd
import pytest

from zodi.studies import findings, tables
from zodi.studies.findings import BETTER, TIED, UNDECIDED, WORSE

NETWORK = "DeepLabV3Plus/tu-resnet10t"


def record(scores):
    """A tidy frame from {variant: {domain: mIoU by seed}}; rows that serve every domain are tested on all."""
    rows = [
        (variant, "" if variant in ("source_only", "weather", "redrawn") else domain, NETWORK, seed, 100, domain, iou)
        for variant, domains in scores.items()
        for domain, values in domains.items()
        for seed, iou in enumerate(values)
    ]
    frame = pd.DataFrame(rows, columns=[*tables.RUN, "images_seen", "test_domain", "iou"])
    return frame.assign(**{"class": tables.MEAN})[tables.COLUMNS]


@pytest.fixture
def runs():
    """ZoDi wins over source only, ties with photometric at night and loses to it in snow."""
    return record({
        "source_only": {"night": [7, 8, 9], "snow": [30, 31, 32]},
        "photometric": {"night": [22, 25, 22], "snow": [36, 37.1, 38]},
        "zodi": {"night": [23, 23, 24], "snow": [34, 35, 36]},
        "oracle": {"night": [27, 28, 29], "snow": [40, 41, 42]},
    })  # fmt: skip


def verdicts(runs, variant="zodi"):
    found = findings.compare(runs, variant)
    return {(line["other"], line["domain"]): line["verdict"] for _, line in found.iterrows()}


def test_a_win_a_tie_and_a_loss(runs):
    found = verdicts(runs)
    assert found["source_only", "night"] == found["source_only", "snow"] == BETTER
    assert found["photometric", "night"] == TIED
    assert found["photometric", "snow"] == found["oracle", "night"] == WORSE
    line = findings.compare(runs).set_index(["other", "domain"]).loc["photometric", "snow"]
    # Differences -2, -2.1, -2: a standard deviation of 0.0577 over three pairs.
    assert line["points"] == pytest.approx(-2.033, abs=1e-3)
    assert (line["error"], line["pairs"]) == (pytest.approx(0.0333, abs=1e-3), 3)


def test_the_paragraph_says_it(runs):
    text = findings.paragraph(runs)
    assert text.startswith(
        "Best without target images, in points over source only ± standard error: at night ZoDi (+15.3 ± 0.3), level "
        "with photometric; in snow photometric (+6.0 ± 0.0)."
    )
    assert "the oracle, ZoDi closes 77 % at night and 40 % in snow." in text
    assert (
        "ZoDi loses to photometric in snow (-2.0 ± 0.0); it ties, within two standard errors, with photometric" in text
    )
    assert text.endswith("(at night). It is better in 2 of 4 comparisons.")


def test_a_clear_winner_ties_with_nobody():
    text = findings.paragraph(record({"source_only": {"fog": [10, 11, 12]}, "zodi": {"fog": [20, 21, 22.5]}}))
    assert "in fog ZoDi (+10.2 ± 0.2)." in text and "level" not in text
    assert "ZoDi loses to no other row. It is better in 1 of 1 comparisons." in text and "gap" not in text


def test_source_only_may_be_the_best_and_a_share_below_zero():
    scores = {"source_only": {"game": [30, 31, 32]}, "zodi": {"game": [20, 21.5, 22]}, "oracle": {"game": [40, 41, 42]}}
    text = findings.paragraph(record(scores))
    assert "standard error: in the game source only itself." in text
    assert "ZoDi loses to source only in the game (-9.8 ± 0.2)" in text
    assert "closes -98 % in the game (below zero: it is worse than source only)." in text


def test_one_seed_decides_nothing():
    runs = record({"source_only": {"rain": [10]}, "photometric": {"rain": [15]}, "zodi": {"rain": [20]}})
    assert set(verdicts(runs).values()) == {UNDECIDED}
    text = findings.paragraph(runs)
    assert "in rain ZoDi (+10.0), level with source only and photometric" in text
    assert "one seed says nothing about source only (in rain) and photometric (in rain)." in text


def test_seeds_are_paired_and_without_pairs_means_are_compared(runs):
    # Seed by seed the difference is the same, though the rows themselves spread widely.
    spread = record({"source_only": {"night": [0, 10, 20]}, "zodi": {"night": [1, 11, 21.2]}})
    assert verdicts(spread)["source_only", "night"] == BETTER
    apart = spread.copy()
    apart.loc[apart["variant"] == "zodi", "seed"] += 10
    line = findings.compare(apart).iloc[0]
    assert (line["pairs"], line["verdict"]) == (0, TIED)
    assert line["error"] == pytest.approx((100 / 3 + spread.iloc[3:]["iou"].var() / 3) ** 0.5)
    more = pd.concat([runs, record({"zodi": {"night": [0, 0, 0, 99]}}).iloc[3:]])
    assert findings.compare(more).equals(findings.compare(runs)), "a seed that only one row has does not count"


def test_rows_that_are_not_there_are_not_missed(runs):
    few = runs[runs["variant"] != "source_only"]
    assert "at night ZoDi, level with photometric; in snow photometric." in findings.best_sentence(few)
    assert findings.gap_sentence(few) == ""
    assert findings.standing(runs, "sdedit") == "There are no runs of SDEdit to compare."
    assert findings.compare(runs, "sdedit").empty
    assert findings.best_sentence(runs[runs["variant"] == "oracle"]) == "There are no runs to compare."


def test_equal_rows_tie():
    same = record({"source_only": {"night": [5, 6]}, "zodi": {"night": [5, 6]}})
    assert verdicts(same)["source_only", "night"] == TIED
    constant = record({"source_only": {"night": [5, 6]}, "zodi": {"night": [6, 7]}})
    assert verdicts(constant)["source_only", "night"] == BETTER


def test_lists_read_as_english():
    assert [findings.listed(list(text)) for text in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert [findings.where(name) for name in ("night", "snow", "game")] == ["at night", "in snow", "in the game"]


def test_labels_with_commas_do_not_divide_a_list():
    assert [findings.called(name) for name in ("zodi", "zodi_no_similarity")] == ["ZoDi", "“ZoDi, no similarity”"]


def test_one_row_against_another(runs):
    assert findings.against(runs, "photometric") == (
        "Against photometric, ZoDi ties at night (+0.3 ± 1.2); it is worse in snow (-2.0 ± 0.0)."
    )
    assert findings.against(runs, "source_only").startswith(
        "Against source only, ZoDi is better at night (+15.3 ± 0.3)"
    )
    assert findings.against(runs, "sdedit") == ""
    one = record({"source_only": {"rain": [10]}, "zodi": {"rain": [20]}})
    assert "ZoDi has too few seeds to tell in rain (+10.0)" in findings.against(one, "source_only")


def test_the_table_of_differences_names_ties_and_what_is_missing(runs):
    table = findings.comparison_table(pd.concat([runs, record({"sdedit": {"night": [10]}})]))
    assert list(table.index) == ["source only", "photometric", "SDEdit", "oracle (true target images)"]
    assert table.loc["photometric"].tolist() == ["+0.3 ± 1.2 (tie)", "-2.0 ± 0.0"]
    assert table.loc["SDEdit"].tolist() == ["+13.3 (?)", "-"]
    assert findings.comparison_table(runs[runs["variant"] == "oracle"]).empty


def test_the_strongest_plain_augmentation():
    scores = {"weather": {"night": [10, 10], "snow": [20, 20]}, "augmix": {"night": [18, 18], "snow": [19, 19]}}
    # The oracle's runs say which domains are targets.
    runs = record(scores | {"oracle": {"night": [30], "snow": [30]}})
    runs.loc[runs["variant"] == "augmix", "domain"] = ""
    assert findings.strongest(runs) == "augmix" and findings.strongest(runs, ["weather"]) == "weather"
    assert findings.strongest(runs, ["zodi"]) == ""


def test_what_it_costs_at_home(runs):
    assert findings.home_sentence(runs) == ""
    clear = record(
        {"source_only": {"clear": [58, 59, 60]}, "zodi": {"night": [50, 51, 52.3], "snow": [58, 59.2, 60.1]}}
    )
    clear["test_domain"] = "clear"
    assert findings.home_sentence(clear) == (
        "On clear images, in points against source only, ZoDi loses when adapted to night (-7.9 ± 0.1); "
        "it ties when adapted to snow (+0.1 ± 0.1)."
    )
