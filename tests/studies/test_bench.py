"""The benchmark compares two ways to the same latents, and refuses what it cannot measure."""

import subprocess

import numpy as np
import pytest
import tiny
import torch

from zodi import adaptation
from zodi.diffusion import decode, embed, encode
from zodi.studies import bench
from zodi.transfer import domain_config, prepare_layout, transfer_latents


@pytest.mark.parametrize("make", [tiny.mini, tiny.stable_diffusion])
def test_the_authors_loop_and_ours_give_the_same_image(make):
    model = make()
    settings = domain_config("night", defaults=model.defaults, num_inference_steps=4)
    rng = np.random.default_rng(0)
    image, layout = rng.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    theirs = bench.authors_loop(model, image, layout, settings)

    z0 = encode(model, torch.from_numpy(image)[None])
    generator = torch.Generator().manual_seed(settings.seed)
    noise = [torch.randn(z0.shape, generator=generator) for _ in range(int(settings.strength * 4) + 1)]
    negative, prompt = embed(model, [settings.negative_prompt, settings.prompt + settings.prompt_suffix])[:, None]
    ours = transfer_latents(
        model.unet, model.controlnet, z0, prompt, negative, prepare_layout(layout, (32, 64), settings.palette)[None],
        strength=settings.strength, num_inference_steps=4, guidance_scale=settings.guidance_scale, noise=noise,
        scheduler=model.scheduler,
    )  # fmt: skip
    difference = theirs.astype(int) - decode(model, ours)[0].numpy()
    assert np.abs(difference).max() <= 1


def test_a_run_reports_both_ways_the_machine_and_its_share(monkeypatch):
    monkeypatch.setattr(bench, "_model", lambda config, device, dtype: tiny.mini())
    monkeypatch.setattr(bench, "cpu_images_per_second", lambda config: bench._time_ours(config, "cpu"))
    result = bench.run(bench.BenchConfig(images=2, authors_images=1, batch_size=2), "cpu")
    assert result["speedup"] == pytest.approx(
        result["images_per_second"] / result["authors_images_per_second"], rel=0.01
    )
    assert result["tflop_per_image"] > 0 and 0 < result["share_of_matmul"] < 1
    assert result["machine"]["cpus"] >= 1 and result["settings"].batch_size == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "sdxl"}, "model 'sdxl'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"images": 3, "batch_size": 2}, "multiple of batch_size=2"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench.BenchConfig(**wrong)


def test_stable_diffusion_needs_a_gpu():
    with pytest.raises(ValueError, match="run this on a GPU"):
        bench.run(bench.BenchConfig("stable_diffusion"), "cpu")


def test_a_training_is_timed_with_and_without_reading():
    changes = {"crop": (96, 192), "batch_size": 2}
    config = bench.TrainingBenchConfig(("PaperDeepLabV3Plus/resnet50",), steps=1, warm_up=1, images=2, changes=changes)
    rows = bench.run_training(config, "cpu")["trainings"]
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        steps, tflop = row["steps_per_second"], row["tflop_per_step"]
        assert row["tflops"] == pytest.approx(steps * tflop, rel=0.1, abs=0.01) and steps > 0
        assert row["workers"] == 0 and row["hours_of_the_papers_training"] == pytest.approx(
            adaptation.recipe("paper").steps / 3600 / row["steps_per_second_with_reading"], rel=0.05
        )


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)


def test_the_main_job_is_timed_on_a_fresh_clone(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "Makefile").write_text("reproduce:\n\ttest ! -e uncommitted && sleep 1.2 && touch $(PROOF)\n")
    git(tmp_path, "add", "Makefile")
    git(tmp_path, "commit", "--quiet", "-m", "a job")
    (tmp_path / "uncommitted").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROOF", str(tmp_path / "proof"))
        result = bench.whole_main_job(tmp_path)
    assert (tmp_path / "proof").exists()
    assert 0 < result["minutes"] <= 0.1 and result["cores"] >= 1 and "processor" in result["machine"]
    (tmp_path / "Makefile").write_text("reproduce:\n\techo no way; exit 3\n")
    git(tmp_path, "commit", "--quiet", "-am", "it fails")
    with pytest.raises(ValueError, match=r"make .* failed on a fresh clone: .*no way"):
        bench.whole_main_job(tmp_path)
