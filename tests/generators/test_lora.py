"""Low-rank weights for few steps: added exactly, told apart, and refused in one line where they do not fit."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from zodi import diffusion
from zodi.generators.interface import Generator
from zodi.generators.schedules import FewStepSchedule, StraightPath
from zodi.labels import CITYSCAPES
from zodi.support.checkpoints import quietly
from zodi.transfer import domain_config, transfer_images
from zodi.transfer_folder import run_settings, transfer_folder

FAMILIES = ("mini", "stable_diffusion", "sdxl", "stable_diffusion_3", "flux")
TARGETS = ("to_q", "to_k")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Generator:
    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("models") / "m"
    diffusion.save(model, where)
    return where


def write_lora(model: Generator, folder: Path, seed: int = 0) -> Path:
    """Random low-rank weights for a model, as diffusers saves them."""
    torch.manual_seed(seed)
    network = type(model.denoiser).from_config(model.denoiser.config)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False))
    weights = {f"{model.DENOISER}_lora_layers": get_peft_model_state_dict(network)}
    with quietly():
        getattr(diffusers, model.PIPELINE).save_lora_weights(folder, **weights)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory) -> Path:
    return write_lora(model, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_low_rank_weights_are_added_exactly(model, folder, lora, scale):
    loaded, low_rank = diffusion.load(folder, lora=lora, lora_scale=scale), load_file(lora)
    before, after = model.denoiser.state_dict(), loaded.denoiser.state_dict()
    changed = set()
    for name, down in low_rank.items():
        if name.endswith("lora_A.weight"):
            place = name.removeprefix(f"{model.DENOISER}.").replace("lora_A.", "")
            expected = before[place] + scale * low_rank[name.replace("lora_A", "lora_B")] @ down
            assert torch.allclose(after[place], expected, atol=1e-5) and not torch.equal(after[place], before[place])
            changed.add(place)
    assert changed and before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - changed)
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())


def test_they_are_told_apart_and_named_in_the_settings(model, folder, lora, tmp_path):
    other = write_lora(model, tmp_path, seed=1)
    loaded = [
        diffusion.load(folder),
        diffusion.load(folder, lora=lora),
        diffusion.load(folder, lora=lora, lora_scale=0.5),
        diffusion.load(folder, lora=other),
    ]
    assert len({*map(diffusion.fingerprint, loaded)}) == 4
    again = diffusion.load(folder, lora=lora.parent)
    assert diffusion.fingerprint(again) == diffusion.fingerprint(loaded[1]), "a folder means the file in it"
    config = domain_config("night", defaults=loaded[1].defaults)
    assert run_settings(loaded[2], config, CITYSCAPES)["lora"] == "pytorch_lora_weights.safetensors x 0.5"
    assert "lora" not in run_settings(loaded[0], config, CITYSCAPES)


@pytest.mark.parametrize("steps", [4, 8])
def test_transfers_in_few_steps(model, folder, lora, tmp_path, steps):
    loaded = diffusion.load(folder, lora=lora)
    assert loaded.defaults.num_inference_steps == 8
    assert loaded.defaults.guidance_scale == (3.5 if model.family == "FLUX.1" else 1.0)
    is_flow = isinstance(loaded.schedule(torch.zeros(1, 4, 4, 8)), StraightPath)
    assert is_flow or isinstance(loaded.schedule(torch.zeros(1, 4, 4, 8)), FewStepSchedule)
    tiny.write_dataset(tmp_path, 2, 32, 64)
    config = domain_config("night", defaults=loaded.defaults, num_inference_steps=steps, strength=0.75)
    arguments = (tmp_path / "images", tmp_path / "labels", tmp_path / "out", config, CITYSCAPES)
    calls = []
    handle = loaded.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    assert transfer_folder(loaded, *arguments, progress=False).done == 2
    handle.remove()
    assert len(calls) == 0.75 * steps + 1, "the steps, and one call to invert"
    with pytest.raises(ValueError, match=r"another transfer \(.*model_fingerprint"):
        transfer_folder(diffusion.load(folder), *arguments, progress=False)


def test_an_image_alone_is_the_image_in_a_batch(folder, lora):
    loaded = diffusion.load(folder, lora=lora)
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8))
    config = domain_config("night", defaults=loaded.defaults)
    together = transfer_images(loaded, images, images, ["a", "b"], config)
    (alone,) = transfer_images(loaded, images[1:], images[1:], ["b"], config)
    assert np.abs(alone.astype(int) - together[1]).max() <= 1


def test_half_precision(folder, lora):
    loaded = diffusion.load(folder, lora=lora, dtype="bfloat16")
    assert {value.dtype for value in loaded.denoiser.state_dict().values()} == {torch.bfloat16}


# ---------------------------------------------------------------- Stable Diffusion only


@pytest.fixture
def plain(tmp_path) -> tuple[Path, Path]:
    model = tiny.stable_diffusion()
    diffusion.save(model, tmp_path / "m")
    return tmp_path / "m", write_lora(model, tmp_path / "lora")


def test_the_names_of_other_programs(plain, tmp_path):
    folder, lora = plain
    renamed = {}
    for name, value in load_file(lora).items():
        module, _, kind = name.removeprefix("unet.").rpartition(".lora_")
        module = "lora_unet_" + module.replace(".", "_")
        renamed[f"{module}.lora_{'down' if kind[0] == 'A' else 'up'}.weight"] = value.contiguous()
        renamed[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(renamed, tmp_path / "kohya.safetensors")
    one, other = (
        diffusion.load(folder, lora=lora, lora_scale=0.5),
        diffusion.load(folder, lora=tmp_path / "kohya.safetensors"),
    )
    for name, value in one.unet.state_dict().items():
        assert torch.allclose(value, other.unet.state_dict()[name], atol=1e-6), "alpha 1 of rank 2 is a scale of 1/2"


def test_what_does_not_fit_is_one_line(plain, tmp_path):
    folder, lora = plain
    xl = write_lora(tiny.sdxl(), tmp_path / "xl")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-8])
    for file in (xl, tmp_path / "x.safetensors", tmp_path / "cut.safetensors"):
        with pytest.raises(
            ValueError, match=rf"{file.name}: not low-rank weights for the UNet2DConditionModel"
        ) as caught:
            diffusion.load(folder, lora=file)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_where_they_may_lie(plain, tmp_path):
    folder, lora = plain
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / f"{name}.safetensors").write_bytes(lora.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"two: found \['a.safetensors', 'b.safetensors'\], expected"):
        diffusion.load(folder, lora=tmp_path / "two")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder\. Expected low-rank weights"):
        diffusion.load(folder, lora=tmp_path / "nowhere")
    for hub_id in ("nobody/no-such-lora", "nobody/no-such-lora/file.safetensors"):
        with pytest.raises(FileNotFoundError, match=rf"'{hub_id}' is not on this machine\. .*--download"):
            diffusion.load(folder, lora=hub_id)
