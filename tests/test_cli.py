"""The command line: quick help, the stages, exit codes and messages."""

import argparse
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import zodi
import zodi.__main__ as stages
import zodi.studies.__main__ as studies
from zodi import diffusion
from zodi.__main__ import main
from zodi.labels import CAMVID
from zodi.miniature.__main__ import main as miniature_main
from zodi.segmentation import build_network, save_network
from zodi.support import options, runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny checkpoint folder in the miniature's format."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    diffusion.save(tiny.mini(), folder)
    return folder


@pytest.fixture
def transfer(checkpoint, tmp_path):
    """Calls `transfer` on a small folder: (options) -> exit code."""
    images, labels = tiny.write_dataset(tmp_path)

    def call(*options: str) -> int:
        required = ("--images", images, "--labels", labels, "--out", tmp_path / "out", "--model", checkpoint)
        return main(["transfer", *map(str, required), "--steps", "2", *options])

    return call


def test_help_is_quick_and_lists_the_commands():
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from zodi.__main__ import main; main(['--help'])"
    )
    folder = Path(zodi.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    for command in ("transfer", "import", "adapt", "evaluate", "estimate", "redraw", "info"):
        assert f"    {command} " in result.stdout
    assert result.stdout.strip().endswith("False"), "--help must not load torch"


@pytest.mark.parametrize("command", ["transfer", "import", "adapt", "evaluate", "estimate", "redraw", "info"])
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"usage: python -m zodi {command}" in capsys.readouterr().out


def test_transfer_to_a_domain_and_again(transfer, tmp_path, capsys):
    assert transfer("--domain", "night") == 0
    printed = capsys.readouterr().out
    assert "3 done, 0 were there already, 0 failed" in printed and "driving at night" in printed
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert (settings["strength"], settings["num_inference_steps"], settings["guidance_scale"]) == (0.9, 2, 2.0)
    assert transfer("--domain", "night") == 0
    assert "0 done, 3 were there" in capsys.readouterr().out


def test_transfer_with_a_prompt_of_ones_own(transfer, tmp_path):
    assert transfer("--prompt", "in a storm", "--strength", "0.5", "--seed", "7", "--limit", "1") == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert (settings["prompt"], settings["strength"], settings["seed"]) == ("in a storm", 0.5, 7)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_a_bad_file_gives_exit_code_1(transfer, tmp_path, capsys):
    (tmp_path / "labels" / "frame1.png").unlink()
    assert transfer("--prompt", "night") == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1 and "frame1.png: no label map" in captured.err
    assert "2 done" in captured.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --domain or --prompt"),
        (["--domain", "night", "--method", "magic"], "method 'magic'"),
        (["--prompt", "x", "--strength", "2"], "strength=2.0"),
        (["--prompt", "x", "--model", "nobody/no-such-model"], "not on this machine"),
        (["--prompt", "x", "--images", "nowhere"], "nowhere: no such folder"),
        (["--prompt", "x", "--steps", "20", "--strength", "0.04"], "takes no step"),
        (["--domain", "night", "--steps", "20", "--strength", "0.04"], "takes no step"),
        (["--prompt", "x", "--device", "gpu"], "device 'gpu': cannot be used"),
        (["--domain", "fog", "--method", "photometric", "--device", "gpu"], "device 'gpu': cannot be used"),
    ],
)
def test_user_errors_give_one_line_and_exit_code_2(transfer, capsys, options, message):
    assert transfer(*options) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_no_step_is_what_one_asks_for_by_the_methods_name(transfer):
    assert transfer("--domain", "night", "--strength", "0.04", "--method", "vae_round_trip") == 0


@pytest.mark.parametrize(("strength", "warned"), [("0.6", True), ("0.9", False)])
def test_a_weak_strength_is_warned_of_once(tmp_path, capsys, strength, warned):
    diffusion.save(replace(tiny.mini(), defaults=replace(tiny.MINI_DEFAULTS, strengths={"night": 0.9})), tmp_path / "m")
    images, labels = tiny.write_dataset(tmp_path)
    command = ["--images", images, "--labels", labels, "--out", tmp_path / "out", "--model", tmp_path / "m"]
    options = ["--prompt", "in a storm", "--steps", "5", "--strength", strength]
    assert main(["transfer", *map(str, command), *options]) == 0
    assert capsys.readouterr().err.count(f"warning: strength {strength}") == warned


def test_an_image_whose_source_is_gone_is_said_to_be_set_aside(transfer, tmp_path, capsys):
    assert transfer("--domain", "night") == 0
    (tmp_path / "images" / "frame1.png").unlink()
    with pytest.warns(UserWarning, match="frame1"):
        assert transfer("--domain", "night") == 0
    assert f"moved to {tmp_path / 'out' / 'stale'}: 1 images" in capsys.readouterr().out


def test_a_run_that_fails_leaves_no_metrics_of_the_one_before(transfer, tmp_path):
    metrics = tmp_path / "out" / "metrics.json"
    assert transfer("--domain", "night") == 0 and metrics.exists()
    assert transfer("--domain", "night", "--limit", "1") == 0 and metrics.exists(), "a part replaces nothing"
    (tmp_path / "labels" / "frame1.png").unlink()
    with pytest.warns(UserWarning, match="frame1"):
        assert transfer("--domain", "night") == 1
    assert not metrics.exists()


def test_other_settings_are_refused(transfer, capsys):
    assert transfer("--domain", "snow") == 0
    assert transfer("--domain", "snow", "--seed", "1") == 2
    assert "seed: 0 there, 1 asked for" in capsys.readouterr().err


def test_photometric_needs_neither_model_nor_labels(tmp_path):
    images, _ = tiny.write_dataset(tmp_path)
    options = ["--images", str(images), "--out", str(tmp_path / "out"), "--domain", "fog", "--method", "photometric"]
    assert main(["transfer", *options, "--model", "nobody/no-such-model"]) == 0


@pytest.mark.parametrize("text", ["4/4", "1", "a/b"])
def test_shards_are_checked(transfer, text, capsys):
    with pytest.raises(SystemExit):
        transfer("--prompt", "x", "--shard", text)
    assert "expected I/N" in capsys.readouterr().err


def test_render_adapt_evaluate(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    sizes = ["--train", "4", "--test", "2", "--domains", "night", "--height", "64", "--width", "128"]
    assert miniature_main(["render", "--out", str(data), *sizes]) == 0
    photometric = ["--domain", "night", "--method", "photometric", "--out", str(tmp_path / "synth")]
    assert main(["transfer", "--images", str(data / "train" / "images"), *photometric]) == 0
    run = ["adapt", "--data", str(data), "--variant", "photometric", "--domain", "night", "--steps", "1"]
    small = ["--network", "Unet/resnet18", "--out", str(out)]
    assert main([*run, *small]) == 2
    assert "needs --synth" in capsys.readouterr().err
    assert main([*run, *small, "--synth", str(tmp_path / "synth")]) == 0
    metrics = json.loads((out / "metrics.json").read_text())["metrics"]
    assert set(metrics["miou"]) == {"clear", "night"} and metrics["images_seen"] == 8
    evaluate = ["evaluate", "--network", str(out / "network"), "--data", str(data)]
    assert main([*evaluate, "--out", str(tmp_path / "scores")]) == 0
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]["miou"]
    assert again == pytest.approx(metrics["miou"], abs=1e-3)
    assert main([*evaluate, "--domains", "desert"]) == 2


@pytest.mark.parametrize("module", [stages, studies])
def test_the_best_device_and_type_are_the_default(module):
    found = {}
    for name, command in module.COMMANDS.items():
        parser = argparse.ArgumentParser()
        command.add_options(parser)
        found[name] = {key for key in ("device", "dtype") if parser.get_default(key) == "auto"}
    both = {"device", "dtype"}
    expected = {
        stages: {
            "transfer": both,
            "redraw": both,
            "import": {"device"},
            "adapt": {"device"},
            "evaluate": {"device"},
            "estimate": both,
            "info": set(),
        },
        studies: {
            "candidate": {"device"},
            "images": both,
            "quality": set(),
            "estimates": set(),
            "redrawn": both,
            "try": both,
            "bench": set(),
        },
    }
    assert found == expected[module]


def test_the_choices_of_a_type_are_those_that_are_known():
    assert ("auto", *runs.DTYPES) == options.DTYPES


def test_auto_is_resolved_before_it_is_printed_and_recorded(transfer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    monkeypatch.setattr(runs, "native_bfloat16", lambda: True)
    assert transfer("--domain", "night") == 0
    assert "device cpu, bfloat16" in capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["environment"]["device"] == "cpu, bfloat16"
    # As on another machine, which should not mix its results in.
    monkeypatch.setattr(runs, "native_bfloat16", lambda: False)
    assert transfer("--domain", "night") == 2
    assert "dtype: 'torch.bfloat16' there, 'torch.float32' asked for" in capsys.readouterr().err
    assert transfer("--domain", "night", "--dtype", "bfloat16") == 0
    assert "0 done, 3 were there" in capsys.readouterr().out


def test_info(checkpoint, capsys):
    assert main(["info", "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for expected in ("driving in snow", "UNet2DConditionModel", "ControlNetModel", "guidance_scale", "'torch': "):
        assert expected in printed


def test_images_keep_their_sizes(transfer, tmp_path):
    assert transfer("--domain", "game", "--method", "vae_round_trip") == 0
    with Image.open(tmp_path / "out" / "images" / "frame0.png") as image:
        assert image.size == (32, 16)


# ---------------------------------------------------------------- what is trained, evaluated and estimated


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, a transfer of them, and a network that was trained on both."""
    root = tmp_path_factory.mktemp("world")
    sizes = ["--train", "4", "--test", "2", "--domains", "night", "--height", "64", "--width", "128"]
    assert miniature_main(["render", "--out", str(root / "data"), *sizes]) == 0
    images = ["--images", str(root / "data" / "train" / "images"), "--out", str(root / "synth")]
    assert main(["transfer", *images, "--domain", "night", "--method", "photometric"]) == 0
    assert main(adapt(root, root / "run")) == 0
    return root


def adapt(root, out, synth="synth", *options):
    small = ["--variant", "photometric", "--domain", "night", "--steps", "1", "--network", "Unet/resnet18"]
    places = {"--data": root / "data", "--synth": root / synth, "--out": out}
    return ["adapt", *small, *(str(text) for place in places.items() for text in place), *options]


def evaluate(root, out, *options):
    return [
        "evaluate",
        "--network",
        str(root / "run/network"),
        "--data",
        str(root / "data"),
        "--out",
        str(out),
        *options,
    ]


def estimate(root, out, *options):
    places = {"--images": root / "data/test/clear/images", "--labels": root / "data/test/clear/labels", "--out": out}
    given = ["estimate", "--network", str(root / "run" / "network"), "--domain", "fog", "--method", "photometric"]
    return [*given, *(str(text) for place in places.items() for text in place), *options]


@pytest.mark.parametrize("command", [adapt, evaluate, estimate])
def test_a_device_that_is_not_there_is_one_line(world, tmp_path, capsys, command):
    options = ("--device", "gpu")
    assert main(command(world, tmp_path / "out", *(("synth",) if command is adapt else ()), *options)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: device 'gpu': cannot be used") and not (tmp_path / "out").exists()
    assert main(command(world, tmp_path / "out", *(("synth",) if command is adapt else ()), "--device", "cpu")) == 0


def nan_network(root, target):
    shutil.copytree(root / "run" / "network", target)
    weights = load_file(target / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("command", [evaluate, estimate])
def test_a_network_of_nan_gives_no_number(world, tmp_path, capsys, command):
    network = nan_network(world, tmp_path / "network")
    assert main(command(world, tmp_path / "out")) == 0 and (tmp_path / "out" / "metrics.json").exists()
    capsys.readouterr()
    assert main([*command(world, tmp_path / "out"), "--network", str(network)]) == 2
    assert "error: network 'Unet/resnet18': found logits for" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists(), "that of the run before does not stand"


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("command", [evaluate, estimate])
def test_a_network_of_other_classes_is_refused(world, tmp_path, capsys, command, keeps):
    network = build_network("Unet/resnet18", CAMVID.num_classes)
    network.label_set = CAMVID if keeps else None
    save_network(network, tmp_path / "network")
    assert main([*command(world, tmp_path / "out"), "--network", str(tmp_path / "network")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has 11 classes" in error and "the data has 19 classes (road" in error
    assert not list((tmp_path / "out").rglob("metrics.json"))


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seeds_are_refused_by_name(world, tmp_path, capsys, seeds):
    assert main(estimate(world, tmp_path, "--seeds", seeds)) == 2
    assert f"error: --seeds {seeds}: expected at least 1" in capsys.readouterr().err


def test_a_training_that_diverges_leaves_neither_metrics_nor_network(world, tmp_path, capsys):
    assert main(adapt(world, tmp_path)) == 0 and (tmp_path / "metrics.json").exists()
    shutil.rmtree(tmp_path / "network")
    assert main(adapt(world, tmp_path, "synth", "--steps", "3", "--learning-rate", "1e30")) == 2
    assert "the training diverged" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "network").exists()


def test_a_command_that_cannot_start_keeps_what_is_there(world, tmp_path, capsys):
    assert main(adapt(world, tmp_path)) == 0
    for wrong in (["--tests", "desert"], ["--variant", "mystery"], ["--synth", str(tmp_path / "nowhere")]):
        assert main([*adapt(world, tmp_path), *wrong]) == 2
        assert (tmp_path / "metrics.json").exists()


def leftover_of_a_kill(folder):
    (folder / "images" / ".1a2b3c4d.partial").mkdir()
    shutil.copy(sorted((folder / "images").glob("*.png"))[0], folder / "images" / ".1a2b3c4d.partial" / "x.png")


def truncated(folder):
    file = sorted((folder / "images").glob("*.png"))[1]
    file.write_bytes(file.read_bytes()[:-20])


def without_its_line(folder):
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]))


@pytest.mark.parametrize(("damage", "left_out"), [(leftover_of_a_kill, 0), (truncated, 1), (without_its_line, 1)])
def test_a_training_takes_only_what_the_transfer_vouches_for(world, tmp_path, damage, left_out):
    shutil.copytree(world / "synth", tmp_path / "synth")
    damage(tmp_path / "synth")
    command = [*adapt(world, tmp_path / "run"), "--synth", str(tmp_path / "synth")]
    expected = pytest.warns(UserWarning, match=f"left out {left_out} of 4 images") if left_out else nullcontext()
    with expected:
        assert main(command) == 0


def test_a_folder_without_a_manifest_is_used_as_it_is(world, tmp_path):
    shutil.copytree(world / "synth" / "images", tmp_path / "own" / "images")
    assert main([*adapt(world, tmp_path / "run"), "--synth", str(tmp_path / "own")]) == 0


@pytest.mark.parametrize("command", [adapt, evaluate, estimate])
def test_a_device_is_printed_and_recorded(world, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    monkeypatch.setattr(runs, "native_bfloat16", lambda: False)
    assert main(command(world, tmp_path)) in (0, 1)
    assert "device cpu, float32" in capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["environment"]["device"] == "cpu, float32" and "auto" not in record["settings"].values()


def test_an_estimate_compares_two_networks_on_the_same_images(world, tmp_path, capsys):
    network = str(world / "run" / "network")
    assert main(estimate(world, tmp_path, "--against", network)) in (0, 1)
    assert "estimated difference +0.0 points: undecided (sampling only" in capsys.readouterr().out
    against = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["against"]
    assert against["difference"] == 0 and not against["decided"]


def test_an_estimate_on_images_that_are_there_says_the_same(world, tmp_path, capsys):
    assert main(estimate(world, tmp_path / "made")) in (0, 1)
    made = json.loads((tmp_path / "made" / "metrics.json").read_text())["metrics"]
    labels, network = str(world / "data/test/clear/labels"), str(world / "run" / "network")
    there = ["estimate", "--network", network, "--labels", labels, "--out", str(tmp_path / "out")]
    folders = [str(tmp_path / "made" / f"seed{seed}") for seed in (0, 1)]
    assert main([*there, "--generated", *folders]) in (0, 1)
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert (again["miou"], again["low"], again["high"]) == (made["miou"], made["low"], made["high"])
    capsys.readouterr()
    for given in ([], ["--generated", folders[0], "--images", labels, "--domain", "fog"]):
        assert main([*there, *given]) == 2
        assert "give --images and --domain" in capsys.readouterr().err
    next((tmp_path / "made" / "seed1" / "images").glob("*.png")).unlink()
    assert main([*there, "--generated", *folders]) == 2
    assert "expected transfers of the same images" in capsys.readouterr().err


def test_an_estimate_takes_only_what_the_transfer_vouches_for(world, tmp_path):
    assert main(estimate(world, tmp_path)) == 0
    leftover_of_a_kill(tmp_path / "seed0")
    truncated(tmp_path / "seed1")
    assert main(estimate(world, tmp_path)) in (0, 1)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics["miou"] is not None
