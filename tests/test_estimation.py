"""Estimates without target images: the statistics on cases whose answer is known, and the whole way on toy data."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from zodi import diffusion, estimation
from zodi.datasets import FolderDataset, open_split
from zodi.domains import DOMAINS, SOURCE
from zodi.evaluation import confusion, image_confusions, iou
from zodi.labels import CAMVID, CITYSCAPES, IGNORE_INDEX
from zodi.miniature.dataset import write_miniature
from zodi.segmentation import build_network, load_network, save_network
from zodi.studies import agreement, evidence
from zodi.support.bootstrap import bootstrap, resample_weights
from zodi.support.files import read_json, write_json
from zodi.transfer_folder import transfer_folder

NAMES = ("a", "b")


def simulated(rng, images, quality=0.8, pixels=200):
    """Confusion matrices of two classes, int (1, images, 2, 2); images differ in how hard they are."""
    right = np.clip(rng.normal(quality, 0.1, (images, 2)), 0.01, 0.99)
    correct = rng.binomial(pixels, right)
    matrices = np.zeros((1, images, 2, 2), int)
    matrices[0, :, [0, 1], [0, 1]] = correct.T
    matrices[0, :, [0, 1], [1, 0]] = pixels - correct.T
    return matrices


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 100 * iou(simulated(rng, 200_000)[0].sum(0)).mean()
    found = [estimation.estimate_from(simulated(rng, 50), NAMES) for _ in range(150)]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    assert 0.89 <= covered <= 0.99
    assert abs(np.mean([estimate.miou for estimate in found]) - truth) < 0.5


def test_interval_narrows_with_the_number_of_images():
    rng = np.random.default_rng(1)
    widths = [(e := estimation.estimate_from(simulated(rng, n), NAMES)).high - e.low for n in (40, 640)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_order_of_the_images_and_seed_of_the_resampling():
    matrices = simulated(np.random.default_rng(2), 30)
    shuffled = matrices[:, np.random.default_rng(3).permutation(30)]
    one, two = (estimation.estimate_from(m, NAMES) for m in (matrices, shuffled))
    assert (one.miou, one.low, one.high) == (two.miou, two.low, two.high)
    pd.testing.assert_frame_equal(one.classes, two.classes)
    assert estimation.estimate_from(matrices, NAMES, seed=1).low != one.low


def test_weights_are_numbers_of_copies():
    matrices = simulated(np.random.default_rng(4), 3)
    weights = np.array([[2, 0, 1], [1, 1, 1]], np.float32)
    found = bootstrap(matrices, weights)
    assert found[0] == pytest.approx(iou(2 * matrices[0, 0] + matrices[0, 2]))
    assert found[1] == pytest.approx(iou(matrices[0].sum(0)))


def test_resamples_draw_images_then_their_transfers():
    weights = resample_weights(5, seeds=3, resamples=2000, seed=0)
    assert weights.shape == (2000, 15) and (weights.sum(1) == 15).all()
    by_image = weights.reshape(2000, 3, 5).sum(1)
    assert (by_image % 3 == 0).all(), "an image comes with as many transfers as there are seeds"
    assert by_image.mean(0) == pytest.approx(3, rel=0.05)
    assert weights.mean(0) == pytest.approx(1, rel=0.08)


def test_noise_of_the_generator_widens_the_interval():
    rng = np.random.default_rng(5)
    same = simulated(rng, 40)
    steady = np.concatenate([same, same])
    noisy = np.concatenate([simulated(rng, 40, 0.5), simulated(rng, 40, 0.95)])
    steady, noisy = (estimation.estimate_from(m, NAMES) for m in (steady, noisy))
    assert steady.seeds == noisy.seeds == 2
    assert noisy.high - noisy.low > steady.high - steady.low


def test_rare_classes_are_named_and_not_averaged():
    matrices = np.zeros((1, 40, 3, 3), int)
    matrices[0, :, :2, :2] = simulated(np.random.default_rng(6), 40)[0]
    matrices[0, :4, 2, 0] = 5
    found = estimation.estimate_from(matrices, ("a", "b", "c"))
    assert found.rare == ["c"] and "too rare: c" in str(found)
    assert found.classes.loc["c", "images"] == 4 and found.classes.loc["c", "iou"] == 0
    assert found.miou == pytest.approx(found.classes.loc[["a", "b"], "iou"].mean())
    assert found.low < found.miou < found.high


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected \(S, N, 2, 2\)"):
        estimation.estimate_from(np.zeros((3, 2, 2), int), NAMES)
    with pytest.raises(ValueError, match="no class is seen"):
        estimation.estimate_from(np.zeros((1, 20, 2, 2), int), NAMES)


def test_fidelity_and_its_threshold():
    matrices = np.array([[[8, 2], [0, 10]], [[1, 9], [10, 0]]])
    assert estimation.fidelity(matrices) == pytest.approx([0.9, 0.05])
    threshold, accuracy = agreement.best_threshold(np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.3, 0.5]))
    assert threshold == pytest.approx(0.6) and accuracy == 1
    _, overlapping = agreement.best_threshold(np.array([0.9, 0.2]), np.array([0.1, 0.8]))
    assert overlapping == 0.75


def test_an_estimate_without_layout_abstains():
    good = simulated(np.random.default_rng(7), 20)
    lost = good[..., ::-1]
    kept = estimation.estimate_from(good, NAMES, reference=good)
    gone = estimation.estimate_from(good, NAMES, reference=lost)
    assert kept.reliable and kept.kept == 1 and kept.classes["fidelity"].min() > 50
    assert not gone.reliable and gone.kept == 0 and "no estimate" in str(gone)
    assert estimation.estimate_from(good, NAMES).reliable, "without a reference nothing is checked"


@pytest.mark.parametrize(("redrawn", "reliable"), [(39.0, True), (26.0, True), (24.0, False), (12.0, False)])
def test_an_estimate_abstains_where_a_redrawn_source_is_nearer_to_a_lost_layout(redrawn, reliable):
    found = estimation.estimate_from(simulated(np.random.default_rng(7), 20), NAMES)
    assert found.reliable and np.isnan(found.least_redrawn), "nothing is checked"
    found = dataclasses.replace(found, source=40.0, redrawn=redrawn, lost=10.0)
    assert found.least_redrawn == 25 and found.reliable == reliable
    refusal = (
        f"of the network's 40.0 points on the source images, redrawing them with their own prompt leaves {redrawn}"
    )
    assert (refusal in str(found)) != reliable


@pytest.mark.parametrize(("lost", "reliable"), [(35.0, True), (37.0, False), (40.0, False)])
def test_an_estimate_abstains_where_labels_of_other_scenes_do_as_well(lost, reliable):
    """So it is with label maps that do not belong to the images, from the first run on."""
    found = estimation.estimate_from(simulated(np.random.default_rng(7), 20), NAMES)
    found = dataclasses.replace(found, source=40.0, redrawn=40.0, lost=lost)
    assert found.reliable == found.sees_layout == reliable
    assert ("check that the labels belong to the images" in str(found)) != reliable


def test_calibration_learns_a_line_from_the_other_domains():
    rng = np.random.default_rng(8)
    estimate = pd.Series(rng.uniform(10, 60, 60))
    frame = pd.DataFrame({"domain": ["a", "b", "c"] * 20, "estimate": estimate, "truth": 5 + 0.8 * estimate})
    frame.loc[frame["domain"] == "c", "truth"] += 100
    found = agreement.leave_one_domain_out(frame)
    assert (found["domain"] == frame["domain"]).all()
    c = found[found["domain"] == "c"]
    assert c["calibrated"].to_numpy() == pytest.approx((5 + 0.8 * c["estimate"]).to_numpy())
    assert (found["calibrated_low"] <= found["calibrated"]).all()
    with pytest.raises(ValueError, match="one domain"):
        agreement.leave_one_domain_out(frame[frame["domain"] == "a"])
    with pytest.raises(ValueError, match="at least 3"):
        agreement.calibrate(np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def biased(rng, bias, trainings=12, noise=0.5):
    """Estimates of networks in domains whose generators take `bias` points each; the sampling interval is ±1 point."""
    lines = []
    for training in range(trainings):
        for domain, lost in bias.items():
            truth = rng.uniform(30, 60)
            value = truth - lost + rng.normal(0, noise)
            lines.append({"domain": domain, "training": training, "value": value, "truth": truth, "spread": 1.0})
    return pd.DataFrame(lines)


@pytest.mark.parametrize(
    ("method", "covered"), [(agreement.conformal, ["b", "d", "e"]), (agreement.new_domain, list("abcde"))]
)
def test_an_interval_that_knows_other_domains_covers_a_biased_generator_and_the_naive_one_does_not(method, covered):
    bias = {"a": 3.0, "b": -2.0, "c": 3.0, "d": 2.5, "e": 1.0}
    frame = biased(np.random.default_rng(0), bias)
    found = method(frame, "value", "spread")
    inside = found["truth"].between(found["interval_low"], found["interval_high"])
    assert (inside.groupby(found["domain"]).mean()[covered] >= 0.9).all()
    naive = (frame["truth"] - frame["value"]).abs() <= 1
    assert naive.groupby(frame["domain"]).mean()[["a", "b", "c", "d"]].max() < 0.3
    assert (found["interval_high"] - found["interval_low"]).mean() < 15


def test_a_domain_worse_than_all_known_ones_is_covered_by_the_spread_of_domains():
    rng, covered = np.random.default_rng(5), {agreement.conformal: [], agreement.new_domain: []}
    for _ in range(40):
        frame = biased(rng, dict(zip("abcde", rng.normal(0, 2, 5), strict=True)), trainings=6)
        for method, found in covered.items():
            line = method(frame, "value", "spread").iloc[:5]
            found.append(line["truth"].between(line["interval_low"], line["interval_high"]).mean())
    assert np.mean(covered[agreement.new_domain]) >= 0.93
    assert np.mean(covered[agreement.conformal]) < np.mean(covered[agreement.new_domain])


def test_simulated_coverage_of_new_domains():
    alike, apart = (1.0, 1.0), (4.0, 1.0)

    def coverage(factor, parts):
        return agreement.coverage_of_new_domains(factor, parts, domains=4, trainings=19)

    assert coverage(agreement.new_domain_factor, apart) >= 95
    assert coverage(agreement.conformal_factor, alike) >= 95 > coverage(agreement.conformal_factor, apart) + 3
    assert coverage(lambda *_: 0.0, alike) == 0 and coverage(lambda *_: np.inf, apart) == 100


def test_parts_of_errors_reckoned_by_hand():
    error, domain = pd.Series([1.0, 3.0, -3.0, -5.0]), pd.Series(["a", "a", "b", "b"])
    assert agreement.error_parts(error, domain) == pytest.approx((np.sqrt((4 + 16) / 2), np.sqrt(2)))
    assert agreement.conformal_factor(error, domain, 0.95) == 5


@pytest.mark.parametrize("method", [agreement.conformal, agreement.new_domain])
def test_an_interval_never_looks_at_its_own_domain_or_training(method):
    frame = biased(np.random.default_rng(1), {"a": 1.0, "b": 1.0, "c": 1.0}, trainings=4)
    before = method(frame, "value", "spread")
    mine = (frame["domain"] == "a") | (frame["training"] == 0)
    one = (frame["domain"] == "a") & (frame["training"] == 0)
    spoiled = frame.assign(truth=frame["truth"].where(~mine, 99.0))
    after = method(spoiled, "value", "spread")
    assert np.array_equal(before.loc[one, "half_width"], after.loc[one, "half_width"])
    assert (after.loc[~mine, "half_width"] > before.loc[~mine, "half_width"]).all(), "others do learn from it"
    with pytest.raises(ValueError, match="to learn"):
        method(frame[frame["domain"] == "a"], "value", "spread")


@pytest.mark.parametrize(("count", "level", "rank"), [(19, 0.95, 19), (39, 0.95, 38), (5, 0.95, 5), (9, 0.5, 5)])
def test_quantile_of_few_errors(count, level, rank):
    errors = np.random.default_rng(2).permutation(np.arange(1, count + 1))
    assert agreement.conformal_quantile(errors, level) == rank


def test_corrections_from_the_redrawn_source_on_a_case_reckoned_by_hand():
    classes = pd.DataFrame(
        {
            "variant": "zodi",
            "domain": "night",
            "class": ["road", "pole"],
            "estimate": [80.0, 10.0],
            "source": [90.0, 40.0],
            "clear_prompt": [90.0, 10.0],
            "vae_round_trip": [88.0, 38.0],
            "strength_70": [80.0, 40.0],
            "strength_90": 30.0,
            "masked": [90.0, 20.0],
            "truth": [82.0, 30.0],
        }
    )
    found = agreement.corrections(classes).iloc[0]
    assert found["variant"] == "zodi" and found["domain"] == "night" and found["truth"] == 56
    assert found["loss"] == 15 and found["raw"] == 45
    assert (found["additive"], found["half"], found["multiplicative"]) == (60, 52.5, 45 * 65 / 50)
    assert found["per_class"] == (80 + 10 * 2) / 2, "a ratio of 4 counts as 2"
    assert found["weighted"] == pytest.approx((80 + 10 * 0.25) / 1.25)
    assert found["round_trip"] == 47 and found["masked"] == 55 and np.isnan(found["masked_redrawn"])
    assert found["strengths"] == 45 and found["spread"] == pytest.approx(15), "45, 60 and 30"


def test_sign_accuracy_counts_pairs_that_differ():
    truth = np.array([50.0, 40.0, 39.5, 30.0])
    assert agreement.sign_accuracy(np.array([4.0, 3.0, 2.0, 1.0]), truth) == 100
    assert agreement.sign_accuracy(np.array([4.0, 2.0, 3.0, 1.0]), truth) == 100, "40 and 39.5 are as good as equal"
    assert agreement.sign_accuracy(np.array([1.0, 3.0, 2.0, 4.0]), truth) == 0
    assert agreement.sign_accuracy(np.zeros(4), truth) == 50
    assert np.isnan(agreement.sign_accuracy(np.array([1.0, 2.0]), np.array([1.0, 1.5])))


def test_agreement_and_regret_on_known_cases():
    truth = pd.Series([10.0, 20.0, 30.0, 40.0])
    swapped = pd.Series([10.0, 20.0, 40.0, 30.0])
    found = agreement.agreement(swapped, truth)
    assert found["pearson"] == pytest.approx(0.8) and found["spearman"] == pytest.approx(0.8)
    assert found["kendall"] == pytest.approx(4 / 6) and found["mae"] == 5
    assert np.isnan(agreement.agreement(pd.Series([1.0] * 4), truth)["pearson"])
    assert agreement.regret(swapped, truth) == 10
    assert agreement.regret(truth, truth) == 0
    assert np.isnan(agreement.regret(pd.Series([np.nan] * 4), truth))


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_image_has_no_interval(seeds):
    one = np.concatenate([simulated(np.random.default_rng(n), 1) for n in range(seeds)])
    found = estimation.estimate_from(one, NAMES)
    assert np.isnan([found.low, found.high]).all() and found.classes[["low", "high"]].isna().all(axis=None)
    assert np.isfinite(found.miou) and "no interval" in str(found) and "nan" not in str(found)


@pytest.mark.parametrize(("images", "warned"), [(2, True), (9, True), (10, False), (40, False)])
def test_few_images_are_warned_of(images, warned):
    text = str(estimation.estimate_from(simulated(np.random.default_rng(0), images), NAMES))
    assert "sampling only, at 95 %" in text and ("below 10 images" in text) == warned


@pytest.mark.parametrize(("images", "limit"), [(40, 10), (10, 10), (5, 5)])
def test_the_limit_of_rare_classes_is_the_one_that_was_applied(images, limit):
    matrices = np.zeros((1, images, 3, 3), int)
    matrices[0, :, :2, :2] = simulated(np.random.default_rng(6), images)[0]
    matrices[0, : limit - 1, 2, 0] = 5
    found = estimation.estimate_from(matrices, ("a", "b", "c"))
    assert found.rare == ["c"] and f"in fewer than {limit} images and so too rare: c" in str(found)
    matrices[0, :limit, 2, 0] = 5
    assert estimation.estimate_from(matrices, ("a", "b", "c")).rare == []
    with pytest.raises(ValueError, match=rf"{images} images: no class is seen in {limit} of them"):
        estimation.estimate_from(np.zeros((1, images, 2, 2), int), NAMES)


@pytest.mark.parametrize("seeds", [(), range(0), np.array([], int)])
def test_no_seeds_are_refused(seeds, tmp_path):
    with pytest.raises(ValueError, match="seeds: found none"):
        estimation.estimate(nn.Identity(), "images", "labels", "night", tmp_path, seeds=seeds)


@pytest.mark.parametrize("role", ["network", "reference"])
def test_networks_of_other_classes_are_refused_before_anything_is_transferred(role, tmp_path):
    networks = {"network": build_network("Unet/resnet18", 19), "reference": build_network("Unet/resnet18", 19)}
    networks[role].label_set = CAMVID
    with pytest.raises(ValueError, match=r"has 11 classes \(sky, .*, the data has 19 classes"):
        estimation.estimate(
            networks["network"], "images", "labels", "night", tmp_path / "out", reference=networks["reference"]
        )
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- which of two networks is better


def of_two_networks(rng, images=60, quality=(0.8, 0.76), bias=0.1, seeds=2):
    """Confusion matrices of two networks, int (2, S, N, 2, 2), on images whose generator takes `bias` from both."""
    easier = rng.normal(0, 0.1, (1, 1, images, 1))
    noise = rng.normal(0, 0.02, (1, seeds, images, 1))
    right = np.clip(np.reshape(quality, (2, 1, 1, 1)) - bias + easier + noise, 0.01, 0.99)
    correct = rng.binomial(400, np.broadcast_to(right, (2, seeds, images, 2)))
    matrices = np.zeros((2, seeds, images, 2, 2), int)
    matrices[..., [0, 1], [0, 1]] = correct
    matrices[..., [0, 1], [1, 0]] = 400 - correct
    return matrices


def test_a_difference_is_known_better_than_either_score():
    first, second = of_two_networks(np.random.default_rng(0))
    found = estimation.compare_from(first, second, NAMES)
    alone = [estimation.estimate_from(part, NAMES) for part in (first, second)]
    assert found.difference == pytest.approx(alone[0].miou - alone[1].miou)
    assert found.high - found.low < 0.3 * (alone[0].high - alone[0].low)
    assert found.decided and found.low > 0
    assert (found.images, found.seeds, found.level) == (60, 2, 0.95)


def test_interval_of_a_difference_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    many = of_two_networks(rng, 40_000, seeds=1)
    truth = 100 * (iou(many[0].sum((0, 1))).mean() - iou(many[1].sum((0, 1))).mean())
    found = [estimation.compare_from(*of_two_networks(rng, 40, seeds=1), NAMES) for _ in range(100)]
    assert 0.88 <= np.mean([one.low <= truth <= one.high for one in found]) <= 1


def test_a_comparison_turned_round_and_shuffled_says_the_same():
    first, second = of_two_networks(np.random.default_rng(2), images=20)
    order = np.random.default_rng(3).permutation(20)
    found = estimation.compare_from(first, second, NAMES)
    turned = estimation.compare_from(second, first, NAMES)
    shuffled = estimation.compare_from(first[:, order], second[:, order], NAMES)
    assert turned.difference == -found.difference
    assert (shuffled.low, shuffled.high) == (found.low, found.high)
    assert estimation.compare_from(first, first, NAMES).decided is False


def test_scores_of_other_images_are_not_compared():
    first, second = of_two_networks(np.random.default_rng(4), images=12)
    second[:, 3] += 1
    with pytest.raises(ValueError, match=r"image 3 has other labels .*1 of 12 images.* in the same order"):
        estimation.compare_from(first, second, NAMES)
    with pytest.raises(ValueError, match="from the same transfers"):
        estimation.compare_from(first, second[:, :11], NAMES)


def test_one_image_has_no_interval_of_a_difference():
    found = estimation.compare_from(*of_two_networks(np.random.default_rng(5), images=1), NAMES)
    assert np.isnan(found.low) and np.isnan(found.high) and not found.decided


# ---------------------------------------------------------------- what the generator does to scores

ERROR = estimation.GeneratorError("0123456789ab", 0.95, estimate=0.1, difference=1.5, domains=5, trainings=22)


def test_an_interval_without_known_errors_is_called_sampling_only():
    found = estimation.estimate_from(simulated(np.random.default_rng(6), 40), NAMES)
    assert "sampling only, at 95 %:" in str(found) and np.isnan(found.interval).all()
    difference = estimation.compare_from(*of_two_networks(np.random.default_rng(7)), NAMES)
    assert "sampling only" in str(difference)
    assert "images, 1 transfer of each" in str(dataclasses.replace(found, seeds=1))
    assert "1 image, 2 transfers of each" in str(dataclasses.replace(difference, images=1, seeds=2))


def test_known_errors_of_the_generator_widen_intervals():
    found = dataclasses.replace(estimation.estimate_from(simulated(np.random.default_rng(8), 40), NAMES), error=ERROR)
    assert np.isnan(found.interval).all() and "is a share of the score on the source, which is not known" in str(found)
    found = dataclasses.replace(found, source=40.0)
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(np.hypot((found.high - found.low) / 2, 4))
    assert "95 % interval" in str(found) and "sampling only" not in str(found)
    assert dataclasses.replace(found, miou=2.0, low=1.0, high=3.0).interval[0] == 0, "no mIoU is below 0"
    pair = estimation.compare_from(*of_two_networks(np.random.default_rng(9), quality=(0.8, 0.79)), NAMES)
    assert dataclasses.replace(pair, low=0.2, high=1.8, difference=1.0).decided
    assert not dataclasses.replace(pair, low=0.2, high=1.8, difference=1.0, error=ERROR).decided


def test_errors_belong_to_their_generator(tmp_path):
    model = diffusion.load()
    file = write_json(tmp_path / "error.json", dataclasses.replace(ERROR, generator=diffusion.fingerprint(model)))
    assert estimation.generator_error(model, file) == dataclasses.replace(ERROR, generator=diffusion.fingerprint(model))
    write_json(file, ERROR)
    assert estimation.generator_error(model, file) is None, "of another generator"
    assert estimation.generator_error(model, tmp_path / "none.json") is None
    for wrong in ({"generator": "x", "level": 2}, dataclasses.asdict(ERROR) | {"estimate": 7.1}):
        write_json(file, wrong)
        with pytest.raises(ValueError, match=r"error\.json: describes no generator's errors"):
            estimation.generator_error(model, file)


# ---------------------------------------------------------------- on images


class Constant(nn.Module):
    """Calls every pixel road; returns logits alone, as networks of other people do."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.tensor(float(index)))

    def forward(self, x):
        logits = torch.zeros(len(x), CITYSCAPES.num_classes, *x.shape[2:])
        logits[:, int(self.index)] = 1
        return logits


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder of a profile with candidates, at toy size; photometric changes stand in for the transfer."""
    root = tmp_path_factory.mktemp("estimation")
    write_miniature(root / "data", 4, 3, ["night", "fog"], 64, 128, progress=False, held_out=3)
    from zodi.transfer import domain_config

    for domain in ("night", "fog"):
        for part, seed in {"transfer": 0, "held_out": 0, "held_out_1": 1}.items():
            split = root / "data" / ("train" if part == "transfer" else "val")
            config = domain_config(domain, "photometric", seed=seed)
            out = root / part / domain / "photometric"
            transfer_folder(None, split / "images", split / "labels", out, config, CITYSCAPES, progress=False)
    return root


def test_matrices_of_images_add_up(results):
    dataset = open_split(results / "data", "val")
    road = CITYSCAPES.names.index("road")
    matrices = image_confusions(Constant(road), dataset, CITYSCAPES.num_classes, batch_size=2)
    assert matrices.shape == (3, CITYSCAPES.num_classes, CITYSCAPES.num_classes)
    assert np.array_equal(matrices.sum(0), confusion(Constant(road), dataset, CITYSCAPES.num_classes))
    assert np.array_equal(matrices[1], confusion(Constant(road), [dataset[1]], CITYSCAPES.num_classes))


def test_held_out_scenes_are_in_no_other_part(results):
    keys = {part: set(open_split(results / "data", part).keys) for part in ("train", "val", "test/night")}
    assert not keys["val"] & keys["train"] and not keys["val"] & keys["test/night"]


def test_estimate_transfers_and_resumes(results, tmp_path):
    val = results / "data" / "val"
    network = Constant(CITYSCAPES.names.index("road"))
    arguments = (network, val / "images", val / "labels", "night", tmp_path / "night")
    found = estimation.estimate(*arguments, seeds=(0, 1), progress=False)
    assert found.images == 3 and found.seeds == 2 and 0 < found.miou < 20
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("night/seed*/images/*.png")}
    assert len(written) == 6 and len(list(tmp_path.glob("night/redrawn/images/*.png"))) == 3
    assert found.redrawn == found.source and not found.sees_layout, "a network that sees only road sees it everywhere"
    prompt = read_json(tmp_path / "night" / "redrawn" / "settings.json")["settings"]["prompt"]
    assert prompt == DOMAINS[SOURCE].prompt
    half = (found.interval[1] - found.interval[0]) / 2
    assert found.source > 0 and half >= found.error.estimate * found.source, "the error of the shipped generator"
    again = estimation.estimate(*arguments, seeds=(0, 1), reference=network, check=False, progress=False)
    assert again.interval == found.interval and np.isnan(again.redrawn), "the check does not move the interval"
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert again.miou == found.miou and not again.reliable, "a network that sees only road finds no layout"
    with pytest.raises(ValueError, match=r"strength: .* there, 0.5 asked for"):
        estimation.estimate(*arguments, seeds=(0, 1), progress=False, strength=0.5)


def test_networks_are_compared_on_the_images_of_the_estimate(results, tmp_path):
    val = results / "data" / "val"
    road, train = (Constant(CITYSCAPES.names.index(name)) for name in ("road", "train"))
    arguments = (val / "images", val / "labels", "night", tmp_path / "night")
    alone = estimation.estimate(road, *arguments, seeds=(0,), progress=False)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("night/seed*/images/*.png")}
    found = estimation.compare(road, train, *arguments, seeds=(0,), progress=False)
    assert {file: file.stat().st_mtime_ns for file in written} == written and len(written) == 3
    assert found.difference == pytest.approx(alone.miou) and dataclasses.replace(found, error=None).decided
    assert found.error is not None and not found.decided, "a difference of few points, with the generator's error"
    with pytest.raises(ValueError, match="seeds: found none"):
        estimation.compare(road, train, *arguments, seeds=(), progress=False)


@pytest.mark.parametrize(
    ("domain", "changes", "known"),
    [
        ("night", {}, True),
        ("night", {"strength": 0.75}, True),
        ("night", {"strength": 0.6}, False),
        ("night", {"method": "photometric"}, False),
        ("driving at night", {}, False),
    ],
)
def test_errors_are_known_only_where_the_transfer_is_the_one_that_was_measured(domain, changes, known):
    assert (estimation.known_error(diffusion.load(), domain, changes) is not None) == known


def test_a_transfer_without_diffusion_is_not_checked(results, tmp_path):
    val, network = results / "data" / "val", Constant(CITYSCAPES.names.index("road"))
    places = (val / "images", val / "labels", "night", tmp_path)
    found = estimation.estimate(network, *places, seeds=(0,), progress=False, method="photometric")
    assert np.isnan(found.redrawn) and found.reliable and not (tmp_path / "redrawn").exists()


def test_select_takes_the_best_on_generated_images(results):
    names = CITYSCAPES.names
    generated = [
        open_split(results / "data", "val", images=results / part / "night" / "photometric" / "images")
        for part in ("held_out", "held_out_1")
    ]
    candidates = {name: Constant(names.index(name)) for name in ("train", "road")}
    chosen = agreement.select(candidates, generated, names)
    assert list(chosen.index) == ["road", "train"] and list(chosen["chosen"]) == [True, False]
    with pytest.raises(ValueError, match="at least one candidate"):
        agreement.select({}, generated, names)
    with pytest.raises(ValueError, match="one set of images"):
        agreement.select(candidates, [generated[0], generated[1].only(generated[1].keys[:1])], names)


def test_candidates_are_scored_at_four_steps_and_tabulated(results, tmp_path):
    network = "DeepLabV3Plus/tu-resnet10t"
    for domain in ("night", "fog"):
        redrawn = results / "held_out" / domain / agreement.REDRAWN
        redrawn.mkdir(exist_ok=True)
        (redrawn / "images").symlink_to(results / "held_out" / domain / "photometric" / "images")
    runs = [evidence.source_reference()]
    runs += [evidence.Candidate("oracle", domain, network, 0) for domain in ("night", "fog")]
    runs += [evidence.Candidate("photometric", "fog", network, 0)]
    for run in runs:
        file = evidence.run_candidate(run, results, "photometric", steps=4)
        assert read_json(file)["metrics"]["variant"] == run.variant
    frame = evidence.table(results)
    assert len(frame) == len(runs) * 4 * 2
    assert set(frame["step"]) == {1, 2, 3, 4}
    assert frame[["estimate", "source", "truth", "confidence", "atc"]].notna().all().all()
    assert (frame["low"] <= frame["high"]).all()
    frame = agreement.leave_one_domain_out(frame)
    scores = evidence.by_domain(frame)
    assert len(scores) == 2 * (len(evidence.SCORES) + len(evidence.PHOTOGRAPH_SCORES))
    assert (scores["models"] == 16).all() and set(scores["domain"]) == {"night", "fog"}
    last = evidence.last_steps(frame)
    assert len(last) == len(runs) * 2 and last["training"].nunique() == len(runs)
    assert last[list(evidence.PHOTOGRAPH_SCORES)].notna().all().all(), "photographs are scored at the last step"
    at_last_only = ["photo_mano", agreement.REDRAWN, agreement.LOST, *agreement.MASKS]
    assert frame.loc[frame["step"] < 4, at_last_only].isna().all().all()
    assert last[at_last_only].notna().all().all() and last[list(agreement.STRENGTHS)].isna().all().all()
    classes = evidence.class_table(results)
    means = classes.groupby(["variant", "adapted_to", "domain"])[["estimate", "source", "truth"]].mean()
    expected = last.set_index(["variant", "adapted_to", "domain"])[["estimate", "source", "truth"]].sort_index()
    assert np.allclose(means, expected)
    assert (scores["regret"] >= 0).all()
    covered = evidence.intervals(frame)
    assert list(covered.index) == ["night", "fog"] and covered["coverage"].between(0, 100).all()
    chosen = evidence.choices(frame)
    assert len(chosen) == len(runs) * 2 and (chosen[["last", *evidence.SCORES]] >= 0).all().all()
    evidence.write_record(results, tmp_path)
    read, _, origin = evidence.load(tmp_path / "nothing", tmp_path)
    pd.testing.assert_frame_equal(read, evidence.table(results), atol=1e-3, check_dtype=False)
    assert origin.startswith("our recorded candidates") and (tmp_path / evidence.CLASSES_FILE).exists()
    layout = evidence.layout_table(results)
    assert list(layout["domain"]) == ["night", "fog"] and layout["fidelity"].between(0, 100).all()


def test_pixels_count_that_were_never_found_or_are_found_still(results):
    images = open_split(results / "data", "val").only(open_split(results / "data", "val").keys[:1])
    label = images[0].label
    other = np.where(label == 0, 1, 0).astype(np.uint8)
    before, after = label.copy(), label.copy()
    before[:8], after[:8] = other[:8], other[:8]  # never found
    before[8:16], after[8:16] = label[8:16], other[8:16]  # lost
    before[16:24], after[16:24] = other[16:24], label[16:24]  # found only now
    masked = evidence.without_lost(images, [before], [after])[0]
    assert masked.key == images.keys[0] and (masked.label[8:16] == IGNORE_INDEX).all()
    assert np.array_equal(np.delete(masked.label, np.s_[8:16], 0), np.delete(label, np.s_[8:16], 0))


def test_faithful_images_are_chosen_by_the_oracle(results):
    network = "DeepLabV3Plus/tu-resnet10t"
    reference = evidence.reference_of("night").folder(results) / "network"
    save_network(build_network(network, CITYSCAPES.num_classes, "mini"), reference)
    images = results / "transfer" / "night" / "stochastic_inversion" / "images"
    images.parent.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        images.symlink_to(results / "transfer" / "night" / "photometric" / "images")
    sets = evidence.candidate_sets(evidence.Candidate("zodi_faithful", "night", network, 0), results)
    assert len(sets.first) == 4 and 1 <= len(sets.second) < 4
    everything = FolderDataset(images, results / "data" / "train" / "labels", CITYSCAPES)
    found = image_confusions(load_network(reference), everything, CITYSCAPES.num_classes)
    with pytest.raises(ValueError, match="choose a lower one"):
        estimation.faithful_keys(everything, found, 1.1)


def test_table_says_what_to_run(tmp_path, results):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text((results / "data" / "dataset.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"zodi\.studies candidate"):
        evidence.table(tmp_path)
