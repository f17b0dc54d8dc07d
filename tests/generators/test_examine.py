"""`examine` and `info` say what a model is without loading it, in the words of `load` where something is wrong."""

import shutil

import pytest
import tiny
from safetensors.torch import save_file

from zodi import diffusion
from zodi.__main__ import main

ALL = ("mini", "stable_diffusion", *tiny.FAMILIES)


@pytest.fixture(scope="module", params=ALL)
def model(request):
    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    where = tmp_path_factory.mktemp("models") / "m"
    diffusion.save(model, where)
    return where


def test_it_is_what_the_loaded_model_is(folder, monkeypatch):
    loaded = diffusion.load(folder)
    monkeypatch.setattr(diffusion, "load_network", None)
    found = diffusion.examine(folder)
    assert (found.name, found.family, found.defaults) == (loaded.name, loaded.family, loaded.defaults)
    table = diffusion.describe(loaded).set_index("part")
    assert dict(zip(found.parts["part"], found.parts["class"], strict=True)) == dict(table["class"])
    for row in found.parts.itertuples():
        # Files hold fixed tables of positions too, and no tensor twice.
        stored = {value.data_ptr(): value.numel() for value in loaded.networks()[row.part].state_dict().values()}
        assert row.parameters == sum(stored.values())


def test_it_says_what_a_transfer_does(model, folder, tmp_path):
    found = diffusion.examine(folder)
    is_flow = "Flow" in type(model.scheduler).__name__
    assert ("velocity" in found.will_do["predicts"]) == is_flow
    assert ("straight path" in found.will_do["schedule"]) == is_flow
    assert found.will_do["controls"] == ("the layout as kind 5" if model.control_kind else "the layout")
    assert str(found.defaults.short_side) in found.will_do["working size"]
    kind = {} if model.control_kind is None else {"second_kind": 1}
    both = diffusion.examine(folder, second_control=folder / "controlnet", second_weight=0.5, **kind)
    assert "and a second map x 0.5" in both.will_do["controls"]
    assert list(both.parts["part"])[-1] == "controlnet", "one network that reads both maps counts once"
    shutil.copytree(folder / "controlnet", tmp_path / "another")
    both = diffusion.examine(folder, second_control=tmp_path / "another", **kind)
    assert list(both.parts["part"])[-2:] == ["controlnet", "second_control"]


def test_weights_for_few_steps_are_named(folder, tmp_path):
    save_file({}, tmp_path / "few.safetensors")
    found = diffusion.examine(folder, lora=tmp_path / "few.safetensors")
    assert found.will_do["weights for few steps"] == "few.safetensors x 1" and found.defaults.num_inference_steps == 8


def test_instruct_pix2pix_has_no_controls(tmp_path):
    diffusion.save(tiny.instruct_pix2pix(), tmp_path / "m")
    found = diffusion.examine(tmp_path / "m")
    assert found.will_do["controls"] == "none" and "instruct_pix2pix" in found.will_do["method"]
    with pytest.raises(ValueError, match="takes no ControlNet, and so no second one either"):
        diffusion.examine(tmp_path / "m", second_control="mini")


def test_info_prints_it_or_one_clear_error(model, folder, tmp_path, capsys):
    assert main(["info", "--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    for expected in (f"family {model.family}", "predicts", "strength", "MB_16_bit", diffusion.fingerprint(model)):
        assert expected in printed
    shutil.copytree(folder, tmp_path / "m")
    for part in (model.DENOISER, "vae", "text_encoder"):
        (weights,) = (tmp_path / "m" / part).glob("*.safetensors")
        weights.rename(tmp_path / "away")
        assert main(["info", "--model", str(tmp_path / "m")]) == 2
        error = capsys.readouterr().err.strip()
        assert f"m/{part}: the diffusion model is incomplete" in error and len(error.splitlines()) == 1
        (tmp_path / "away").rename(weights)
    shutil.rmtree(tmp_path / "m" / "scheduler")
    assert main(["info", "--model", str(tmp_path / "m")]) == 2
    assert "m/scheduler: the diffusion model is incomplete" in capsys.readouterr().err


def test_the_commands_take_a_second_control_and_weights_for_few_steps(tmp_path, capsys):
    model = tiny.mini()
    diffusion.save(model, tmp_path / "m")
    images, labels = tiny.write_dataset(tmp_path)
    command = ["transfer", "--images", images, "--labels", labels, "--model", tmp_path / "m", "--domain", "night"]
    command += ["--second-control", tmp_path / "m" / "controlnet", "--second-weight", "0.5", "--steps", "4"]
    assert main([*map(str, command), "--out", str(tmp_path / "a"), "--second-maps", str(images)]) == 0
    assert main([*map(str, command), "--out", str(tmp_path / "b")]) == 2
    assert "give a second map (--second-maps)" in capsys.readouterr().err
    lora = ["--images", str(images), "--out", str(tmp_path / "c"), "--lora", "none", "--domain", "fog"]
    assert main(["transfer", *lora]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
