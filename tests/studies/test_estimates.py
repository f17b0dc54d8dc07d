"""Promises of estimates, on scores whose errors are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from zodi.studies import estimates, evidence

RECORD = Path(__file__).parents[2] / "notebooks" / "records" / "estimation"
BIAS = {"night": 2.0, "snow": -1.5, "rain": 1.0, "fog": 2.0, "game": -1.0}


def frame_of(bias=BIAS, trainings=20, noise=0.4, seed=0):
    """Trainings whose estimates miss the truth by the bias of the domain and a little noise."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(25, 50, trainings)
    lines = [
        {"training": f"t{index}", "domain": domain, "truth": quality[index] + shift}
        for index in range(trainings)
        for domain, shift in zip(bias, rng.normal(0, 3, (len(bias))), strict=True)
    ]
    frame = pd.DataFrame(lines)
    missed = frame["domain"].map(bias) + rng.normal(0, noise, len(frame))
    photometric = frame["truth"] + rng.normal(0, 6, len(frame))
    loss = rng.uniform(1, 5, len(frame))
    return frame.assign(
        estimate=frame["truth"] - missed, photometric=photometric, source=50.0, clear_prompt=50 - loss, lost=15.0
    )


def test_intervals_cover_every_domain_that_was_left_out():
    found = estimates.coverage(estimates.with_intervals(frame_of()))
    assert list(found.index) == list(BIAS)
    assert (found["coverage"] >= 90).all() and found["width"].mean() < 12


def test_the_interval_that_is_kept_is_the_narrowest_that_holds():
    table = estimates.interval_tries(frame_of())
    assert table["kept"].sum() == 1 and len(table) == 4
    kept = table[table["kept"]].iloc[0]
    assert kept["least_coverage"] >= 90 and kept["new_domains"] >= 95
    holds = (table["least_coverage"] >= 90) & (table["new_domains"] >= 95)
    assert kept["width"] == table.loc[holds, "width"].min()


def test_no_interval_is_kept_if_none_holds():
    frame = frame_of()
    frame.loc[frame["domain"] == "game", "truth"] += 60
    assert not estimates.interval_tries(frame)["kept"].any()


def test_the_interval_that_the_tool_gives_is_the_one_that_the_record_keeps():
    last = evidence.last_steps(evidence.load("nowhere", RECORD)[0])
    table = estimates.interval_tries(last)
    given = estimates.coverage(estimates.with_intervals(last))
    assert table.index[table["kept"]].item() == estimates.GIVEN
    assert given["width"].mean() == pytest.approx(table.loc[estimates.GIVEN, "width"])


def test_differences_lose_the_bias_that_all_networks_share():
    frame = frame_of()
    alone = estimates.coverage(estimates.with_intervals(frame))
    pairs = estimates.pairs(frame)
    assert len(pairs) == 5 * 20 * 19 / 2
    compared = estimates.coverage(estimates.pair_intervals(pairs))
    assert (compared["coverage"] >= 90).all()
    assert (compared["width"] < alone["width"] / 1.5).all()
    worse = frame_of({domain: 2 * bias for domain, bias in BIAS.items()})
    assert (estimates.coverage(estimates.with_intervals(worse))["width"] > 1.5 * alone["width"]).all()
    again = estimates.coverage(estimates.pair_intervals(estimates.pairs(worse)))
    assert again["width"].to_numpy() == pytest.approx(compared["width"].to_numpy())


def test_the_interval_of_a_pair_learns_from_other_domains_and_other_trainings_only():
    pairs = estimates.pairs(frame_of(trainings=5))
    before = estimates.pair_intervals(pairs)
    line = (pairs["domain"] == "snow") & (pairs["first"] == "t0") & (pairs["second"] == "t1")
    mine = (pairs["domain"] == "snow") | pairs[["first", "second"]].isin(["t0", "t1"]).any(axis=1)
    after = estimates.pair_intervals(pairs.assign(truth=pairs["truth"].where(~mine, 70.0)))
    assert line.sum() == 1 and after.loc[line, "half_width"].item() == before.loc[line, "half_width"].item()
    assert (after.loc[~mine, "half_width"] > before.loc[~mine, "half_width"]).all()


def test_a_correction_is_shipped_only_if_it_harms_no_domain():
    frame = frame_of(noise=0.0)
    sign = np.sign(frame["domain"].map(BIAS))
    frame = frame.assign(
        raw=frame["estimate"],
        all_better=frame["estimate"] + 0.5 * sign,
        one_worse=frame["estimate"] + np.where(frame["domain"] == "fog", -0.4, 0.5 * sign),
        one_a_little_worse=frame["estimate"] + np.where(frame["domain"] == "fog", -0.2, 0.5 * sign),
        two_unchanged=frame["estimate"] + np.where(frame["domain"].isin(["fog", "rain"]), 0, 0.5 * sign),
    )
    table = estimates.corrected_errors(frame, ["all_better", "one_worse", "one_a_little_worse", "two_unchanged"])
    shipped = {"raw": False, "all_better": True, "one_worse": False, "one_a_little_worse": True, "two_unchanged": False}
    assert table["shipped"].to_dict() == shipped
    assert table.loc["raw", "fog"] == pytest.approx(2) and table.loc["all_better", "fog"] == pytest.approx(1.5)


def test_of_the_corrections_the_best_that_harms_nobody_is_kept_and_all_are_recorded():
    errors = pd.DataFrame(
        {"night": [4.0, 2.0, 1.0, 0.5], "fog": [4.0, 3.0, 2.0, 5.0], "shipped": [False, True, True, False]},
        index=["raw", "additive", "half", "weighted"],
    )
    assert estimates.best_correction(errors) == "half"
    lines = estimates.tries(errors).set_index("try")
    assert list(lines.index) == [f"{estimates.TRY} {name}" for name in ("additive", "half", "weighted")]
    assert lines["kept"].to_list() == ["no", "yes", "no"] and (lines["before"] == 4).all()
    assert lines["after"].to_list() == [2.5, 1.5, 2.75] and (lines["why"].str.len() > 10).all()
    assert estimates.best_correction(errors.assign(shipped=False)) == "raw"
    assert (estimates.tries(errors.assign(shipped=False))["kept"] == "no").all()


def test_what_is_given_is_found_by_training_and_domain():
    run = {"variant": "zodi", "adapted_to": "fog", "network": "n"}
    last = pd.DataFrame([run | {"seed": seed, "domain": "fog", "estimate": 30.0 + seed} for seed in (0, 1)])
    corrected = last.iloc[::-1].assign(half=last["estimate"] + 1)
    given = estimates.as_given(evidence.named(last), corrected, "half")
    assert given["given"].to_list() == [31.0, 32.0]


def test_what_the_tool_is_given_comes_from_all_domains():
    frame = frame_of()
    error = estimates.measured_error(frame, "0123456789ab")
    widths = estimates.coverage(estimates.with_intervals(frame))["width"] / 2
    assert widths.min() * 0.7 < error.estimate * 50 < widths.max() * 1.3, "a share of the score on the source"
    assert error.difference < error.estimate * 50
    assert (error.generator, error.domains, error.trainings) == ("0123456789ab", 5, 20)


def test_a_generator_that_loses_the_layout_is_refused():
    frame = frame_of()
    found = estimates.abstentions(frame)
    assert (found["abstains"] == 0).all() and (found["abstains_lost"] == 100).all() and (found["margin"] > 80).all()
    assert found["kept"].between(90, 98).all() and (found["kept_lost"] == 30).all()
    frame.loc[frame["domain"] == "game", "clear_prompt"] = 28.0
    found = estimates.abstentions(frame)
    assert found.loc["game", "abstains"] == 100 and (found.drop("game")["abstains"] == 0).all()
    assert found.loc["game", "margin"] == pytest.approx(100 * (28 - 15) / (50 - 15))


def test_verdicts_say_what_is_met_and_what_is_missed():
    frame = frame_of()
    corrections = estimates.corrected_errors(
        frame.assign(raw=frame["estimate"], worse=frame["estimate"] - 5), ["worse"]
    )
    table = estimates.verdicts(frame, corrections, "raw").set_index("measure")
    assert table["verdict"].iloc[0] == "met" and table["measured"].iloc[0] == "20"
    by_start = {name.split(":")[0]: verdict for name, verdict in table["verdict"].items() if "inside" in name}
    assert by_start == {"estimate": "met", "difference of two networks": "met"}
    assert (table.loc[[name for name in table.index if name.startswith("which of two")], "verdict"] == "met").all()
    worse = estimates.verdicts(frame, corrections, "worse").set_index("measure")
    assert worse.loc["correction: mean error, points, raw -> worse", "verdict"] == "missed"
    few = estimates.verdicts(frame_of(trainings=4, noise=8.0), corrections, "raw").set_index("measure")["verdict"]
    assert few["trainings"] == "missed" and few["estimate: mean width of the interval, points"] == "missed"
