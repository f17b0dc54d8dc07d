"""On a graphics card: the same images as on a CPU, whatever the batch, and trainings that go on where they stopped."""

import numpy as np
import pytest
import tiny
import torch

from zodi import adaptation, datasets, diffusion, transfer
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.miniature.dataset import write_miniature
from zodi.support.results import read_manifest
from zodi.transfer_folder import transfer_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
COUNT = 4


@pytest.fixture(scope="module")
def street():
    """Scenes of the miniature: images, layouts, keys."""
    drawn = [scenes.render(seed, "clear", 96, 192) for seed in scenes.PRETRAIN_SEEDS[-COUNT:]]
    images, layouts = [s.image for s in drawn], [CITYSCAPES.colorize(s.label) for s in drawn]
    return images, layouts, [str(index) for index in range(COUNT)]


@pytest.fixture
def exact(monkeypatch):
    """Float32 convolutions as on a CPU; by default a card rounds their inputs to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(street, device="cuda", dtype=torch.float32, batch=COUNT):
    model = diffusion.load("mini", device=device, dtype=dtype)
    config = transfer.domain_config("night", defaults=model.defaults)
    parts = [slice(begin, begin + batch) for begin in range(0, COUNT, batch)]
    results = [transfer.transfer_images(model, *(column[part] for column in street), config) for part in parts]
    return np.concatenate(results).astype(int)


def test_latents_are_those_of_a_cpu(exact):
    torch.manual_seed(3)
    networks = tiny.networks((4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 4, 8), (2, 12, 16), (2, 12, 16), (2, 3, 16, 32)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    noise = [torch.randn(shapes[0], generator=generator) for _ in range(19)]
    settings = {"strength": 0.9, "noise": noise}
    expected = transfer.transfer_latents(*networks, *inputs, **settings)
    on_card = [network.cuda() for network in networks]
    found = transfer.transfer_latents(*on_card, *(tensor.cuda() for tensor in inputs), **settings).cpu()
    assert (found - expected).abs().max() / expected.abs().max() < 2e-4


def test_images_are_those_of_a_cpu(street, exact):
    assert np.abs(moved(street) - moved(street, "cpu")).max() <= 1


def test_the_batch_does_not_change_an_image(street, exact):
    assert np.abs(moved(street) - moved(street, batch=1)).max() <= 1


def test_bfloat16_stays_close(street):
    difference = np.abs(moved(street, dtype=torch.bfloat16) - moved(street, "cpu"))
    assert 0 < difference.mean() < 3


def test_shards_of_a_folder(tmp_path):
    root = write_miniature(tmp_path / "data", train=3, test=1, domains=["night"], progress=False)
    model = diffusion.load("mini", device="cuda", dtype=torch.bfloat16)
    config = transfer.domain_config("night", defaults=model.defaults, num_inference_steps=2)
    arguments = (model, root / "train" / "images", root / "train" / "labels", tmp_path / "out", config, CITYSCAPES)
    reports = [transfer_folder(*arguments, shard=(i, 2), progress=False) for i in (0, 1)]
    assert [report.done for report in reports] == [2, 1] and len(read_manifest(tmp_path / "out")) == 3


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_training_equals_one_that_ran_through(bf16, tmp_path):
    root = write_miniature(tmp_path / "data", train=8, test=1, domains=["night"], progress=False)
    source, night = datasets.open_split(root, "train"), datasets.open_split(root, "train_night")
    recipe = adaptation.recipe("mini", steps=6, batch_size=2, bf16=bf16)
    settings = {"save_every": 3, "device": "cuda", "workers": 2}
    _, whole = adaptation.train(recipe, source, night, tmp_path / "whole", **settings)

    def stop(step, network):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adaptation.train(recipe, source, night, tmp_path / "resumed", stop, **settings)
    _, resumed = adaptation.train(recipe, source, night, tmp_path / "resumed", **settings)
    assert len(resumed) == 6
    # Sums on a card have no fixed order, so the last digits differ.
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=2e-2)


def test_the_benchmark_of_the_trainings():
    from zodi.studies import bench

    changes = {"crop": (96, 192), "batch_size": 2}
    config = bench.TrainingBenchConfig(("PaperDeepLabV3Plus/resnet50",), steps=2, warm_up=1, images=4, changes=changes)
    rows = bench.run_training(config, "cuda")["trainings"]
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    assert all(row["peak_memory_gb"] > 0 and row["steps_per_second_with_reading"] > 0 for row in rows)
