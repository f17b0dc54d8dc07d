"""The command line: quick help, the stages, exit codes and messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from PIL import Image

import zodi
from zodi import diffusion
from zodi.__main__ import main


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
        "import sys; from zodi.__main__ import _parser; print(_parser().format_help()); print('torch' in sys.modules)"
    )
    folder = Path(zodi.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    for command in ("render", "pretrain", "transfer", "adapt", "evaluate", "info"):
        assert f"    {command} " in result.stdout
    assert result.stdout.strip().endswith("False"), "--help must not load torch"


@pytest.mark.parametrize("command", ["render", "transfer", "adapt", "evaluate", "info"])
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"usage: python -m zodi {command}" in capsys.readouterr().out


def test_transfer_to_a_domain_and_again(transfer, tmp_path, capsys):
    assert transfer("--domain", "night") == 0
    printed = capsys.readouterr().out
    assert "3 done, 0 were there, 0 failed" in printed and "driving at night" in printed
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
    ],
)
def test_user_errors_give_one_line_and_exit_code_2(transfer, capsys, options, message):
    assert transfer(*options) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "Traceback" not in error


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
    assert main(["render", "--out", str(data), *sizes]) == 0
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


def test_info(checkpoint, capsys):
    assert main(["info", "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for expected in ("driving in snow", "UNet2DConditionModel", "ControlNetModel", "guidance_scale", "'torch': "):
        assert expected in printed


def test_images_keep_their_sizes(transfer, tmp_path):
    assert transfer("--domain", "game", "--method", "vae_round_trip") == 0
    with Image.open(tmp_path / "out" / "images" / "frame0.png") as image:
        assert image.size == (32, 16)
