import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from zodi.domains import TARGETS
from zodi.miniature.dataset import write_miniature
from zodi.miniature.graders import DOMAIN_NAMES, GraderConfig, build_graders, classify, judge_miou, load_or_train
from zodi.miniature.scenes import render, render_domains
from zodi.studies import quality
from zodi.studies.__main__ import main
from zodi.studies.quality import QualityConfig, grade, histogram_distance, luminance, measure, sharpness, verdicts
from zodi.support import runs
from zodi.support.files import read_json, write_json

TOY_GRADERS = GraderConfig(scene_count=3, judge_steps=2, classifier_steps=2)
TOY = QualityConfig(scenes=2, speed_images=1, graders=TOY_GRADERS)


@pytest.fixture(scope="module")
def graders(tmp_path_factory):
    return load_or_train(TOY_GRADERS, tmp_path_factory.mktemp("graders") / "graders")


def _flat(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def test_luminance_and_histogram_distance_of_flat_images():
    assert luminance([_flat(10), _flat(30)]) == pytest.approx(20)
    assert histogram_distance([_flat(10)], [_flat(10), _flat(10)]) == 0
    assert histogram_distance([_flat(10)], [_flat(50)]) == pytest.approx(40)
    # Half of the mass moves by 40.
    assert histogram_distance([_flat(10), _flat(10)], [_flat(10), _flat(50)]) == pytest.approx(20)


def test_sharpness_is_the_mean_step_between_neighbours():
    stripes = np.zeros((4, 6, 3), np.uint8)
    stripes[:, ::2] = 100
    assert sharpness([_flat(10)]) == 0
    assert sharpness([stripes]) == pytest.approx(100, abs=1)
    assert sharpness([stripes, _flat(10)]) == pytest.approx(50, abs=1)


def test_histogram_distance_does_not_ask_where_the_pixels_are():
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert histogram_distance([image], [image[::-1, ::-1]]) == 0


def test_scenes_of_all_domains_are_the_rendered_ones():
    images, label = render_domains(5, 32, 64)
    for image, domain in zip(images, DOMAIN_NAMES, strict=True):
        scene = render(5, domain, 32, 64)
        assert np.array_equal(image, scene.image) and np.array_equal(label, scene.label)


def test_graders_are_trained_once_and_anew_for_other_settings(tmp_path):
    first = load_or_train(TOY_GRADERS, tmp_path / "graders")
    written = (tmp_path / "graders" / "judge.safetensors").stat().st_mtime_ns
    again = load_or_train(TOY_GRADERS, tmp_path / "graders")
    assert (tmp_path / "graders" / "judge.safetensors").stat().st_mtime_ns == written
    image = render(1, "night").image
    assert classify(first, [image]) == classify(again, [image])
    load_or_train(GraderConfig(scene_count=3, judge_steps=1, classifier_steps=1), tmp_path / "graders")
    assert (tmp_path / "graders" / "judge.safetensors").stat().st_mtime_ns > written


def test_training_changes_both_graders(graders):
    before = build_graders(TOY_GRADERS)
    for name in ("judge", "classifier"):
        old, new = getattr(before, name).state_dict(), getattr(graders, name).state_dict()
        assert any(not old[key].equal(new[key]) for key in old)


def test_the_truth_is_graded_as_perfect_where_it_must_be(graders):
    scenes = [render(seed, "night") for seed in (1, 2)]
    images, labels = [scene.image for scene in scenes], [scene.label for scene in scenes]
    result = grade(graders, images, labels, images, "night")
    assert result["luminance_error"] == 0 and result["histogram_distance"] == 0
    assert result["judge"] == judge_miou(graders, images, labels)
    assert result["classified"] in (0, 50, 100)


@pytest.mark.parametrize("changes", [{"scenes": 0}, {"speed_images": 0}])
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        QualityConfig(**changes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the profile makes: data, a transfer a method, and the records of all trainings."""
    root = tmp_path_factory.mktemp("quality")
    write_miniature(root / "data", 3, 2, ["night"], progress=False)
    for method in quality.METHODS:
        shutil.copytree(root / "data" / "train_night" / "images", root / "transfer" / "night" / method / "images")
    for variant, score in GOOD.items():
        for seed in range(2):
            iou = score + seed * (1 + (variant == "zodi"))
            metrics = {"variant": variant, "domain": "" if variant == "source_only" else "night", "network": "net"}
            metrics |= {"seed": seed, "images_seen": 1, "miou": {"night": iou}, "iou": {"night": {"road": iou}}}
            write_json(root / "runs" / variant / f"seed{seed}" / "metrics.json", {"metrics": metrics})
    return root


def test_toy_measurement_writes_all_tables(results, monkeypatch):
    monkeypatch.setattr(quality, "cpu_images_per_second", lambda config: 2.0)
    images = quality.measure_images(TOY, results).set_index("row")
    assert set(images.index) == {*quality.METHODS, "source", "truth_round_trip", "truth"}
    assert images.loc["truth", "judge_share"] == 100 and images.loc["truth", "luminance_error"] == 0
    # These transfers are the truth.
    assert images.loc["sdedit", "histogram_distance"] == 0
    found = measure(TOY, results)
    assert list(found) == list(quality.RESULT_TABLES)
    assert found["verdicts"]["verdict"].isin(["met", "missed", "-"]).all()
    assert (
        found["verdicts"].set_index("measure").loc["transfer, images/s on this machine's cores", "measured"] == "2.00"
    )
    assert (results / "quality" / "verdicts.md").read_text().count("|") > 20
    assert len(read_json(results / "quality" / "metrics.json")["metrics"]["verdicts"]) == len(found["verdicts"])


def test_fewer_scenes_than_graded_are_an_error(results):
    with pytest.raises(ValueError, match="found 3 training scenes, expected at least scenes=4"):
        quality.measure_images(QualityConfig(scenes=4, graders=TOY_GRADERS), results)


def test_the_mean_speed_is_that_of_as_many_images_a_domain(monkeypatch):
    monkeypatch.setattr(quality, "cpu_images_per_second", lambda config: {"night": 1.0, "fog": 3.0}[config.domain])
    assert quality.images_per_second(TOY, ["night", "fog"]) == pytest.approx(1.5)


@pytest.mark.parametrize(("command", "called"), [("images", "measure_images"), ("try", "try_settings")])
def test_commands_say_and_use_what_auto_means(tmp_path, monkeypatch, capsys, command, called):
    found = {}

    def pretended(*arguments, device, dtype):
        found.update(device=device, dtype=dtype)
        return pd.DataFrame({"judge": [1.0]})

    monkeypatch.setattr(quality, called, pretended)
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    monkeypatch.setattr(runs, "native_bfloat16", lambda: True)
    grid = ["strength=0.6"] if command == "try" else []
    assert main([command, *grid, "--results", str(tmp_path)]) == 0
    assert found == {"device": "cpu", "dtype": torch.bfloat16}
    assert "device cpu, bfloat16" in capsys.readouterr().out.splitlines()


def test_settings_are_tried_on_scenes_that_nobody_has_seen(tmp_path):
    grid = {"strength": [0.2, 0.4], "num_inference_steps": [5]}
    frame = quality.try_settings(TOY, tmp_path, grid, ["night"], count=1, processes=1)
    assert frame["strength"].tolist() == [0.2, 0.4] and (frame["seconds"] > 0).all()
    assert (tmp_path / "tried.csv").exists()
    assert quality.tuning_scenes(1)[0] >= max(TOY_GRADERS.scene_count, 3000)


# ---------------------------------------------------------------- verdicts on made-up results


def _runs(scores: dict[str, float], domains=TARGETS) -> pd.DataFrame:
    """Three seeds a row; the rows' differences are the same in all seeds but for a hundredth."""
    lines = []
    for variant, score in scores.items():
        shared = variant in ("source_only", "vae_round_trip")
        for seed in range(3):
            for domain in domains:
                wobble = seed + 0.01 * seed * (variant == "zodi")
                lines.append((variant, "" if shared else domain, "net", seed, 1, domain, "mean", score + wobble))
    columns = ["variant", "domain", "network", "seed", "images_seen", "test_domain", "class", "iou"]
    return pd.DataFrame(lines, columns=columns)


def _images(**changes: float) -> pd.DataFrame:
    good = {
        "luminance": 40.0, "luminance_error": 1.0, "sharpness": 100.0, "classified": 100.0, "judge_share": 90.0,
    }  # fmt: skip
    rows = [{"domain": d, "row": r} | good for d in TARGETS for r in ("stochastic_inversion", "truth")]
    frame = pd.DataFrame(rows)
    for name, value in changes.items():
        frame.loc[(frame["row"] == "stochastic_inversion") & (frame["domain"] == "night"), name] = value
    return frame


GOOD = {
    "source_only": 10.0, "oracle": 36.0, "photometric": 20.0, "clear_prompt": 15.0, "vae_round_trip": 12.0,
    "sdedit": 30.0, "controlnet_only": 31.0, "zodi": 33.0, "zodi_no_similarity": 32.0,
}  # fmt: skip


STRENGTHS = dict.fromkeys(TARGETS, 0.7) | {"game": 0.8}


def _missed(
    images: pd.DataFrame, runs: pd.DataFrame, speed: float = 5.0, megabytes: float = 20.0, strengths=STRENGTHS
) -> list[str]:
    table = verdicts(images, runs, speed, megabytes, strengths)
    return table.loc[table["verdict"] == "missed", "measure"].tolist()


def test_a_good_checkpoint_meets_all_goals():
    assert _missed(_images(), _runs(GOOD)) == []


@pytest.mark.parametrize(
    ("images", "scores", "others", "count", "word"),
    [
        ({"luminance_error": 6.05}, {}, {}, 2, "luminance"),
        ({"sharpness": 79.0}, {}, {}, 1, "sharpness"),
        ({"sharpness": 116.0}, {}, {}, 1, "sharpness"),
        ({"luminance_error": -11.0}, {}, {}, 2, "luminance"),
        ({"classified": 97.0}, {}, {}, 1, "classifier"),
        ({"judge_share": 84.0}, {}, {}, 1, "layout"),
        ({}, {"photometric": 34.0}, {}, 1, "photometric"),
        ({}, {"sdedit": 33.01}, {}, 1, "SDEdit"),
        ({}, {"oracle": 80.0}, {}, 1, "gap"),
        ({}, {}, {"speed": 3.9}, 1, "images/s"),
        ({}, {}, {"megabytes": 46.0}, 1, "size"),
        ({}, {}, {"strengths": STRENGTHS | {"night": 0.8}}, 1, "strength"),
    ],
)
def test_every_goal_can_be_missed(images, scores, others, count, word):
    missed = _missed(_images(**images), _runs(GOOD | scores), **others)
    assert len(missed) == count and all(word in measure for measure in missed)


def test_a_gain_within_two_standard_errors_does_not_count():
    runs = _runs(GOOD | {"source_only": 33.0, "oracle": 34.0})
    runs.loc[(runs["variant"] == "zodi") & (runs["seed"] == 0), "iou"] += 0.5
    assert any("two standard errors" in measure for measure in _missed(_images(), runs))


def test_similarity_effect_is_the_paired_difference_with_its_standard_error():
    effect = quality.similarity_effect(_runs(GOOD))
    assert effect.loc["night", "mean"] == pytest.approx(1.01)
    assert effect.loc["night", "error"] == pytest.approx(0.01 / np.sqrt(3))
    assert effect.loc["night", "seeds"] == 3
