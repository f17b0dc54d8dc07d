"""Every family on tiny checkpoints of the real classes: equal to diffusers' pipelines, and independent of the batch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from zodi import diffusion
from zodi.generators.families import FAMILIES, family_of
from zodi.generators.flux import pack, unpack
from zodi.generators.interface import Control, Generator
from zodi.labels import CITYSCAPES
from zodi.sampling import SAMPLERS
from zodi.support.checkpoints import quietly
from zodi.transfer import domain_config, draw_latents, transfer_images
from zodi.transfer_folder import transfer_folder

SIZE = (32, 64)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request) -> Generator:
    """A tiny checkpoint of each family."""
    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """The checkpoint, saved as diffusers' own pipeline saves it."""
    where = tmp_path_factory.mktemp("models") / "checkpoint"
    diffusion.save(model, where)
    return where


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def pictures(count: int = 2, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    images = list(rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))
    return images, [CITYSCAPES.colorize(rng.integers(0, 19, SIZE, dtype=np.uint8)) for _ in range(count)]


def transfer(model: Generator, count: int = 2, **changes) -> list[np.ndarray]:
    images, layouts = pictures(count)
    config = domain_config("night", defaults=model.defaults, **changes)
    return transfer_images(model, images, layouts, [f"{index}" for index in range(count)], config)


# ---------------------------------------------------------------- load and save


def test_loading_by_path_gives_the_same_model(model, folder):
    loaded = diffusion.load(folder)
    assert type(loaded) is type(model) is family_of(folder)
    assert (loaded.name, loaded.defaults, loaded.control_kind) == ("checkpoint", model.defaults, model.control_kind)
    assert diffusion.fingerprint(loaded) == diffusion.fingerprint(model)
    assert list(diffusion.describe(loaded)["part"]) == list(model.PARTS)
    assert not any(p.requires_grad for network in loaded.networks().values() for p in network.parameters())
    # Loaded, the VAE takes images one by one.
    pairs = zip(transfer(loaded), transfer(model), strict=True)
    assert max(np.abs(one.astype(int) - other).max() for one, other in pairs) <= 1


def test_a_checkpoint_without_settings_has_those_of_its_family(folder, copy):
    (copy / diffusion.DEFAULTS_FILE).unlink()
    loaded = diffusion.load(copy)
    assert loaded.defaults == type(loaded).DEFAULTS and loaded.defaults.multiple % loaded.multiple == 0


def test_half_precision(model, folder):
    half = diffusion.load(folder, dtype="bfloat16")
    assert {network.dtype for network in half.networks().values()} == {torch.bfloat16}
    assert diffusion.fingerprint(half) == diffusion.fingerprint(model)
    for one, other in zip(transfer(half), transfer(model), strict=True):
        assert one.dtype == np.uint8 and np.abs(one.astype(int) - other).mean() < 12


def test_the_vae_of_sdxl_stays_in_float32_where_float16_is_too_small(tmp_path):
    diffusion.save(tiny.sdxl(), tmp_path / "m")
    half = diffusion.load(tmp_path / "m", dtype="float16")
    assert (half.dtype, half.vae.dtype) == (torch.float16, torch.float32)


def test_seeds_weights_and_kinds_of_map_have_fingerprints_of_their_own(model):
    others = [
        model,
        getattr(tiny, model.name.replace("tiny-", "").replace("-", "_").replace("sd3", "stable_diffusion_3"))(1),
    ]
    second = Control(model.controlnet, 0.5)
    others += [replace(model, second=second), replace(model, second=replace(second, weight=0.6))]
    others += [replace(model, control_kind=3), replace(model, lora="some")]
    assert len({*map(diffusion.fingerprint, others)}) == len(others)


def test_weights_in_several_files(tmp_path):
    model = tiny.flux()
    diffusion.save(model, tmp_path / "m")
    for part in ("transformer", "text_encoder_2"):
        shutil.rmtree(tmp_path / "m" / part)
        getattr(model, part).save_pretrained(tmp_path / "m" / part, max_shard_size="15KB")
        assert len(list((tmp_path / "m" / part).glob("*-0*.safetensors"))) > 1
    loaded = diffusion.load(tmp_path / "m")
    assert diffusion.fingerprint(loaded) == diffusion.fingerprint(model)
    assert np.array_equal(transfer(loaded, 1)[0], transfer(model, 1)[0])
    counts = diffusion.examine(tmp_path / "m").parts.set_index("part")["parameters"]
    assert counts["transformer"] == sum(p.numel() for p in model.transformer.parameters())
    next((tmp_path / "m" / "transformer").glob("*-0*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"m/transformer: the diffusion model is incomplete"):
        diffusion.load(tmp_path / "m")


@pytest.mark.parametrize("cls", FAMILIES, ids=lambda cls: cls.family)
def test_a_family_names_all_of_its_parts(cls):
    fields = set(cls.__dataclass_fields__)
    assert {*cls.PARTS, *cls.TOKENIZERS, *cls.OPTIONAL} <= fields and hasattr(diffusers, cls.PIPELINE)


# ---------------------------------------------------------------- what is missing or wrong


def test_a_missing_part_is_named_in_one_line(model, folder, copy):
    for part in (*model.PARTS, *model.TOKENIZERS, "scheduler"):
        shutil.move(copy / part, copy / "elsewhere")
        if part in model.OPTIONAL:
            diffusion.load(copy)
        else:
            message = "--controlnet" if part == "controlnet" else rf"copy/{part}: the diffusion model is incomplete"
            with pytest.raises(FileNotFoundError, match=message) as caught:
                diffusion.load(copy)
            assert model.family in str(caught.value) and "\n" not in str(caught.value)
        shutil.move(copy / "elsewhere", copy / part)
    assert diffusion.fingerprint(diffusion.load(copy)) == diffusion.fingerprint(model)


def test_missing_weights_and_damaged_settings_are_named(model, copy):
    for part in model.PARTS:
        (weights,) = (copy / part).glob("*.safetensors")
        whole = weights.read_bytes()
        weights.unlink()
        with pytest.raises(FileNotFoundError, match=rf"copy/{part}: the diffusion model is incomplete"):
            diffusion.load(copy)
        weights.write_bytes(whole[:-40])
        with pytest.raises((ValueError, OSError), match=rf"copy/{part}"):
            diffusion.load(copy)
        weights.write_bytes(whole)


def test_another_class_is_named(model, copy):
    (part,) = {"unet", "transformer"} & {*model.PARTS}
    file = copy / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "PixArtTransformer2DModel"}))
    with pytest.raises(ValueError, match=rf"copy/{part}: found a PixArtTransformer2DModel, expected \w+2D\w*Model"):
        diffusion.load(copy)


def test_a_controlnet_of_another_family_is_refused(model, folder, tmp_path):
    for name in tiny.FAMILIES:
        other = getattr(tiny, name)()
        if type(other) is type(model):
            continue
        other.controlnet.save_pretrained(tmp_path / name)
        expected = " or ".join(cls.__name__ for cls in model.PARTS["controlnet"])
        with pytest.raises(
            ValueError, match=rf"{name}: found a {type(other.controlnet).__name__}, expected {expected}"
        ):
            diffusion.load(folder, controlnet=tmp_path / name)


def test_a_controlnet_for_another_model_of_the_family_is_refused(tmp_path):
    diffusion.save(tiny.sdxl(), tmp_path / "sdxl")
    tiny.stable_diffusion().controlnet.save_pretrained(tmp_path / "sd")
    with pytest.raises(ValueError, match=r"sd: found cross_attention_dim = 16, expected the 40 of the model"):
        diffusion.load(tmp_path / "sdxl", controlnet=tmp_path / "sd")
    with pytest.raises(FileNotFoundError, match="no such file"):
        diffusion.load(tmp_path / "sdxl", controlnet=tmp_path / "none.safetensors")
    diffusion.save(tiny.flux(), tmp_path / "flux")
    with pytest.raises(ValueError, match=r"a single file; for FLUX\.1 give the ControlNet's folder"):
        diffusion.load(tmp_path / "flux", controlnet=tmp_path / "none.safetensors")


def test_a_scheduler_of_another_kind_is_refused(tmp_path):
    diffusion.save(tiny.flux(), tmp_path / "m")
    tiny.scheduler().save_pretrained(tmp_path / "m" / "scheduler")
    with pytest.raises(ValueError, match=r"found a DDIMScheduler, expected a FlowMatchEulerDiscreteScheduler"):
        diffusion.load(tmp_path / "m")


def test_a_union_controlnet_that_names_its_authors_class(tmp_path):
    diffusion.save(tiny.sdxl_union(), tmp_path / "m")
    file = tmp_path / "m" / "controlnet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "ControlNetModel_Union"}))
    loaded = diffusion.load(tmp_path / "m")
    assert type(loaded.controlnet).__name__ == "ControlNetUnionModel" and loaded.control_kind == 5
    assert diffusion.fingerprint(loaded) == diffusion.fingerprint(tiny.sdxl_union())


def test_sdxl_with_the_scheduler_that_it_is_published_with(tmp_path):
    model = tiny.sdxl()
    diffusion.save(model, tmp_path / "m")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler = diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1)
    euler.save_pretrained(tmp_path / "m" / "scheduler")
    loaded = diffusion.load(tmp_path / "m")
    assert torch.equal(loaded.scheduler.alphas_cumprod, model.scheduler.alphas_cumprod)
    assert np.array_equal(transfer(loaded, 1)[0], transfer(model, 1)[0])


def test_kinds_of_map(tmp_path):
    diffusion.save(tiny.sdxl_union(), tmp_path / "union")
    assert diffusion.load(tmp_path / "union").control_kind == 5, "segmentation"
    assert diffusion.load(tmp_path / "union", control_kind=1).control_kind == 1
    with pytest.raises(ValueError, match=r"kind of map 6: .*reads 6 kinds of map.*0 \.\. 5"):
        diffusion.load(tmp_path / "union", control_kind=6)
    diffusion.save(tiny.sdxl(), tmp_path / "plain")
    with pytest.raises(ValueError, match="kind of map 5: this ControlNet reads one kind of map only"):
        diffusion.load(tmp_path / "plain", control_kind=5)
    diffusion.save(tiny.flux(num_mode=3), tmp_path / "flux")
    with pytest.raises(ValueError, match=r"kind of map None: .*FLUX.*reads 3 kinds of map"):
        diffusion.load(tmp_path / "flux")
    one, other = (diffusion.load(tmp_path / "flux", control_kind=kind) for kind in (0, 2))
    assert not np.array_equal(transfer(one)[0], transfer(other)[0])


# ---------------------------------------------------------------- equal to the pipelines


def pipeline_of(model: Generator) -> diffusers.DiffusionPipeline:
    parts = {name: getattr(model, name) for name in (*model.PARTS, *model.TOKENIZERS, "scheduler")}
    name = "StableDiffusionXLControlNetUnionPipeline" if model.control_kind == 5 else model.PIPELINE
    with quietly():
        pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_equal_to_the_pipeline_of_diffusers(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    channels = model.vae.config.latent_channels
    noise = torch.randn(2, channels, SIZE[0] // 8, SIZE[1] // 8, generator=generator)
    layout = torch.rand(2, 3, *SIZE, generator=generator)
    prompts, schedule = model.embed(["foggy", "at night"]), model.schedule(noise)
    pipeline = pipeline_of(model)
    arguments = {
        "prompt": ["at night"] * 2, "num_inference_steps": 4, "guidance_scale": model.defaults.guidance_scale,
        "output_type": "latent", "height": SIZE[0], "width": SIZE[1],
    }  # fmt: skip
    is_flux = model.family == "FLUX.1"
    if not is_flux:
        arguments["negative_prompt"] = ["foggy"] * 2
    if model.family == "Stable Diffusion XL":
        pipeline.register_modules(scheduler=model.schedule(noise))
        pipeline.watermark = None
        arguments |= {"control_image": [layout], "control_mode": [5]} if model.control_kind else {"image": layout}
    else:
        arguments["control_image"] = 2 * layout - 1
    expected = pipeline(latents=pack(noise) if is_flux else noise, **arguments).images
    if is_flux:
        expected = unpack(expected, SIZE[0] // 16, SIZE[1] // 16)
    if model.family == "Stable Diffusion 3.x":
        # The pipeline's grid has its last time elsewhere; the networks are what is compared.
        grid = pipeline.scheduler.sigmas[:-1].double()
        monkeypatch.setattr(schedule, "set_timesteps", lambda count: setattr(schedule, "timesteps", grid))
    ours = draw_latents(
        model.predictor(noise, prompts.row(1), [layout], prompts.row(0), model.defaults.guidance_scale),
        model.predictor(noise, prompts.row(1), [layout]),
        torch.zeros_like(noise),
        schedule,
        strength=1.0,
        num_inference_steps=4,
        eta=0.0,
        noise=[noise] * 5,
        method="controlnet_only",
    )
    if is_flux:
        assert schedule.timesteps.numpy() == pytest.approx(pipeline.scheduler.sigmas[:-1].numpy())
    assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


def test_packing_is_that_of_diffusers():
    z = torch.randn(2, 4, 6, 10)
    theirs = diffusers.FluxPipeline._pack_latents(z, 2, 4, 6, 10)
    assert torch.equal(pack(z), theirs) and torch.equal(unpack(pack(z), 3, 5), z)


def test_encode_and_decode_are_inverse_but_for_the_vae(model):
    images = torch.from_numpy(np.stack(pictures()[0]))
    z = model.encode(images)
    raw = model.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    shift = model.vae.config.shift_factor or 0
    assert torch.allclose(z, (raw - shift) * model.vae.config.scaling_factor, atol=1e-5)
    decoded = model.vae.decode(raw).sample
    assert (model.decode(z).float() - (decoded.permute(0, 2, 3, 1) + 1).mul(127.5).clamp(0, 255)).abs().max() <= 1


# ---------------------------------------------------------------- transfers


@pytest.mark.parametrize("method", SAMPLERS)
def test_an_image_alone_is_the_image_in_a_batch(model, method):
    images, layouts = pictures(3)
    config = domain_config("night", method, defaults=model.defaults)
    together = transfer_images(model, images, layouts, ["a", "b", "c"], config)
    for index, key in ((2, "c"), (0, "a")):
        (alone,) = transfer_images(model, [images[index]], [layouts[index]], [key], config)
        assert np.abs(alone.astype(int) - together[index]).max() <= 1


def test_prompt_layout_strength_and_guidance_have_an_effect(model):
    base = transfer(model)[0]
    images, layouts = pictures()
    other_layout = transfer_images(
        model,
        images,
        [layout[::-1].copy() for layout in layouts],
        ["0", "1"],
        domain_config("night", defaults=model.defaults),
    )[0]
    changes = [{"prompt": "driving in snow"}, {"strength": 0.5}, {"guidance_scale": 2.0}, {"seed": 1}]
    others = [other_layout, *(transfer(model, **change)[0] for change in changes)]
    assert all(not np.array_equal(base, other) for other in others)


def test_strength_0_is_the_round_trip_through_the_vae(model):
    round_trip = transfer(model, method="vae_round_trip")
    assert all(np.array_equal(a, b) for a, b in zip(transfer(model, strength=0.0), round_trip, strict=True))


def test_strength_1_of_a_flow_does_not_look_at_the_image():
    for model in (tiny.stable_diffusion_3(), tiny.flux()):
        layouts = pictures()[1]
        config = domain_config("night", defaults=model.defaults, strength=1.0)
        one, other = (transfer_images(model, pictures(seed=seed)[0], layouts, ["a", "b"], config) for seed in (0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_folder_is_resumed_and_keeps_to_one_model(model, tmp_path):
    for name in ("whole", "resumed"):
        tiny.write_dataset(tmp_path / name, 4, *SIZE)
    config = domain_config("night", defaults=model.defaults)

    def run(name: str, used: Generator = model, **options):
        where = tmp_path / name
        arguments = (where / "images", where / "labels", where / "out", config, CITYSCAPES)
        return transfer_folder(used, *arguments, batch_size=2, progress=False, **options)

    assert run("whole").done == 4
    assert run("resumed", limit=2).done == 2
    report = run("resumed")
    assert (report.done, report.skipped) == (2, 2)
    files = [sorted((tmp_path / name / "out" / "images").iterdir()) for name in ("whole", "resumed")]
    assert len(files[0]) == 4
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
    with pytest.raises(ValueError, match="model_fingerprint"):
        run("resumed", replace(model, lora="another"))


def test_stable_diffusion_3_without_its_largest_text_encoder(tmp_path):
    model = tiny.stable_diffusion_3(with_t5=False)
    diffusion.save(model, tmp_path / "m")
    loaded = diffusion.load(tmp_path / "m")
    assert loaded.text_encoder_3 is None and diffusion.fingerprint(loaded) == diffusion.fingerprint(model)
    prompts = loaded.embed(["at night", ""])
    assert prompts.tokens.shape == (2, 32 + 256, 32) and not prompts.tokens[:, 32:].any()
    assert not np.array_equal(transfer(loaded)[0], transfer(tiny.stable_diffusion_3())[0])


def test_flux_takes_the_guidance_weight_as_an_input_or_in_a_second_branch(tmp_path):
    calls = []
    for distilled in (True, False):
        model = tiny.flux(guidance_embeds=distilled)
        handle = model.transformer.register_forward_pre_hook(
            lambda _, inputs: calls.append(len(inputs[0]))  # images a call
        )
        plain, guided = (transfer(model, guidance_scale=weight)[0] for weight in (1.0, 3.0))
        handle.remove()
        assert not np.array_equal(plain, guided)
        negative = transfer(model, guidance_scale=3.0, negative_prompt="a boat")[0]
        assert np.array_equal(guided, negative) == distilled
        assert max(calls) == (2 if distilled else 4)
    diffusion.save(tiny.flux(guidance_embeds=False), tmp_path / "schnell")
    (tmp_path / "schnell" / diffusion.DEFAULTS_FILE).unlink()
    defaults = diffusion.load(tmp_path / "schnell").defaults
    assert (defaults.guidance_scale, defaults.num_inference_steps) == (1.0, 4)


def other_controlnet(model: Generator, tmp_path: Path, **changes) -> Generator:
    """The model, loaded with a ControlNet of other settings."""
    config = {name: value for name, value in model.controlnet.config.items() if name[0] != "_"}
    with quietly():
        controlnet = tiny.noisy(type(model.controlnet)(**config | changes))
    diffusion.save(model, tmp_path / "m")
    controlnet.save_pretrained(tmp_path / "control")
    return diffusion.load(tmp_path / "m", controlnet=tmp_path / "control")


def layouts_count(model: Generator) -> bool:
    """Whether another layout gives another prediction."""
    side, maps = model.pixels_per_latent, torch.rand(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    z = torch.zeros(1, model.vae.config.latent_channels, SIZE[0] // side, SIZE[1] // side)
    prompt = model.embed(["at night"])
    one, other = (model.predictor(z, prompt, [layout])(z, 0.5) for layout in maps)
    return not torch.equal(one, other)


def test_a_flux_controlnet_that_reads_pixels(tmp_path):
    loaded = other_controlnet(tiny.flux(), tmp_path, conditioning_embedding_channels=4, patch_size=2)
    assert loaded.controlnet.input_hint_block is not None and layouts_count(loaded)
    assert [image.shape for image in transfer(loaded)] == [(*SIZE, 3)] * 2


def test_a_controlnet_of_stable_diffusion_3_5_reads_no_text_and_shares_positions(tmp_path):
    changes = {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False}
    loaded = other_controlnet(tiny.stable_diffusion_3(), tmp_path, **changes)
    assert loaded.controlnet.context_embedder is None and layouts_count(loaded)
    assert torch.equal(loaded.controlnet.pos_embed.proj.weight, loaded.transformer.pos_embed.proj.weight)
    assert [image.shape for image in transfer(loaded)] == [(*SIZE, 3)] * 2


def test_long_prompts_are_cut_with_a_warning(model):
    with pytest.warns(UserWarning, match="tokens; only the first 32 are used"):
        model.embed(["a" * 40])


def test_instruct_pix2pix_needs_its_own_checkpoint(model):
    with pytest.raises(ValueError, match=r"of the family .*expected an InstructPix2Pix checkpoint"):
        transfer(model, method="instruct_pix2pix")


# ---------------------------------------------------------------- two maps


@pytest.fixture(params=["mini", *tiny.FAMILIES])
def any_model(request) -> Generator:
    return getattr(tiny, request.param)()


def second_of(model: Generator, weight: float) -> Generator:
    kind = None if model.control_kind is None else 1
    return replace(model, second=Control(model.controlnet, weight, kind))


def test_a_second_map_adds_to_the_first(any_model):
    images, layouts = pictures()
    config = domain_config("night", defaults=any_model.defaults, num_inference_steps=4)
    edges = [np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)] * 2

    def run(model: Generator, *maps) -> np.ndarray:
        return np.stack(transfer_images(model, images, layouts, ["a", "b"], config, *maps)).astype(int)

    alone = run(any_model)
    assert np.abs(run(second_of(any_model, 0.0), edges) - alone).max() <= 1, "without weight it is not there"
    weak, strong = (run(second_of(any_model, weight), edges) for weight in (0.5, 1.0))
    assert not np.array_equal(weak, alone) and not np.array_equal(weak, strong)
    side = any_model.pixels_per_latent
    z, maps = torch.randn(1, any_model.vae.config.latent_channels, 32 // side, 64 // side), torch.rand(3, 1, 3, *SIZE)
    predictors = [
        second_of(any_model, 1.0).predictor(z, any_model.embed(["x"]), [maps[0], other]) for other in maps[1:]
    ]
    assert not torch.equal(*(predict(z, 1) for predict in predictors)), "what is on the map counts"
    with pytest.raises(ValueError, match=r"has 2 ControlNets, found 1 maps per image.*--second-maps"):
        run(second_of(any_model, 1.0))
    with pytest.raises(ValueError, match=r"has 1 ControlNets, found 2 maps per image"):
        run(any_model, edges)


def test_two_maps_from_a_folder(any_model, tmp_path):
    diffusion.save(any_model, tmp_path / "m")
    any_model.controlnet.save_pretrained(tmp_path / "edges")
    kind = {} if any_model.control_kind is None else {"second_kind": 3}
    loaded = diffusion.load(tmp_path / "m", second_control=tmp_path / "edges", second_weight=0.5, **kind)
    assert loaded.second.weight == 0.5 and loaded.second.kind == kind.get("second_kind")
    assert "second_control" in list(diffusion.describe(loaded)["part"])
    same = diffusion.load(tmp_path / "m", second_control=tmp_path / "m" / "controlnet", **kind)
    assert same.second.network is same.controlnet, "one network that reads both maps is there once"

    images, labels = tiny.write_dataset(tmp_path, 2, *SIZE)
    maps = tmp_path / "maps"
    maps.mkdir()
    for index in range(2):
        Image.fromarray(np.full(SIZE, 60 * index, np.uint8)).save(maps / f"frame{index}.png")
    config = domain_config("night", defaults=loaded.defaults, num_inference_steps=4)

    def run():
        return transfer_folder(
            loaded, images, labels, tmp_path / "out", config, CITYSCAPES, progress=False, second_maps=maps
        )

    assert run().done == 2 and run().skipped == 2
    with Image.open(tmp_path / "out" / "preview.png") as preview:
        assert preview.size == (4 * 320, 2 * 160)
    Image.fromarray(np.full(SIZE, 200, np.uint8)).save(maps / "frame1.png")
    assert (run().done, run().skipped) == (1, 2)
    (maps / "frame0.png").unlink()
    with pytest.warns(UserWarning, match="frame0"):
        assert "no second map, expected" in run().errors["frame0"]


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="second_weight=-1"):
        diffusion.load(second_control="mini", second_weight=-1)
