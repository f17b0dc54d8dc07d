"""Notebook 11 where its readers run it: on a T4 that is made up, with tiny checkpoints in Stable Diffusion's format."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from zodi import __main__ as commands
from zodi import diffusion, segmentation
from zodi.labels import CITYSCAPES, CITYSCAPES_IDS
from zodi.networks import hub

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "notebooks" / "11_stable_diffusion.py"
FAST = {"judge_scenes": 3, "judge_steps": 2, "domains": ["night", "driving at sunset"], "repository": str(ROOT)}


class Card(TorchFunctionMode):
    """What is asked of "cuda" is done by the processor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def here(value):
            is_card = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
            return torch.device("cpu") if is_card else value

        if function is torch.device:
            return function(*args, **kwargs or {})
        return function(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})


class Hub:
    """A hub with tiny checkpoints in place of the real ones, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        small = replace(tiny.MINI_DEFAULTS, num_inference_steps=4, short_side=64, multiple=16, guidance_scale=9.0)
        diffusion.save(replace(tiny.stable_diffusion(), defaults=small), folder / "sd")
        shutil.move(folder / "sd" / "controlnet", folder / "control")
        self.places = {hub.STABLE_DIFFUSION: folder / "sd", hub.CONTROLNET_SEG: folder / "control"}
        self.downloaded: list[str] = []

    def snapshot(self, repository: str, local_files_only: bool = True, variant: str | None = None) -> Path:
        if local_files_only and repository not in self.downloaded:
            raise FileNotFoundError(f"{repository} is not in the cache")
        if not local_files_only:
            self.downloaded.append(repository)
        return self.places[repository]


@pytest.fixture
def known_hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "snapshot", made.snapshot)
    return made


@pytest.fixture
def t4(monkeypatch) -> None:
    """A card with 16 GB that has no bfloat16."""
    for name, value in {
        "is_available": True,
        "get_device_capability": (7, 5),
        "get_device_name": "Tesla T4",
        "get_device_properties": SimpleNamespace(total_memory=15.8e9),
        "max_memory_allocated": 3.25e9,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    # Optimizers would ask the card whether they are being recorded.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: False)
    with Card():
        yield


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the notebook's cells with other parameters; returns its variables and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(**parameters) -> tuple[dict, str]:
        names: dict = {}
        said: list[str] = []
        given = FAST | {"out": str(tmp_path / "out")} | parameters
        monkeypatch.setattr("IPython.display.display", lambda *shown, **_: said.extend(map(text_of, shown)))
        monkeypatch.setattr("zodi.support.plots.display", lambda *shown, **_: said.extend(map(text_of, shown)))
        for cell in (cell for cell in jupytext.read(TWIN).cells if cell.cell_type == "code"):
            code = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("!", "%")))
            exec(compile(code, TWIN.name, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(given) <= set(names)
                names |= given
        return names, "\n".join(said) + capsys.readouterr().out

    return call


def text_of(shown: object) -> str:
    return getattr(shown, "data", None) if isinstance(getattr(shown, "data", None), str) else str(shown)


def test_what_is_committed_says_what_drew_it():
    notebook = json.loads(TWIN.with_suffix(".ipynb").read_text(encoding="utf-8"))
    texts = [
        "".join(output["data"].get("text/markdown", ""))
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    drawn = [text for text in texts if text.startswith("*Figure.*") and "What goes in" not in text]
    assert len(drawn) == 2 and all("Not run by us with Stable Diffusion" in text for text in drawn)


def test_on_a_t4_that_downloads(run, known_hub, t4):
    names, said = run(download=True)
    assert sorted(known_hub.downloaded) == sorted(known_hub.places), "each was fetched once"
    assert names["generator"].dtype == torch.float16 and type(names["generator"].vae).__name__ == "AutoencoderKL"
    assert names["image"].shape == (64, 128, 3), "the street has the size that the checkpoint works at"
    assert "at most 3.2 of 15.8 GB used (Tesla T4)" in said
    assert f"Drawn by {hub.STABLE_DIFFUSION}." in said and "Not run by us" not in said
    assert len(names["drawn"]) == 6 and all(picture.shape == (64, 128, 3) for picture in names["drawn"].values())
    assert len({picture.tobytes() for picture in names["drawn"].values()}) == 6
    # The judge looked at everything that was drawn, and at the truth where there is one.
    assert {*names["found"].index} == {*names["drawn"], ("night", "true")}
    assert names["found"].between(0, 100).all()
    assert json.loads((Path(names["out"]) / "metrics.json").read_text())["settings"]["model"] == hub.STABLE_DIFFUSION


def test_on_a_t4_nothing_is_downloaded_unasked(run, known_hub, t4):
    names, said = run(steps=2)
    assert known_hub.downloaded == [] and names["chosen"] == "mini"
    assert "Set `download = True`" in said and "Not run by us with Stable Diffusion" in said


def test_with_the_weights_there_is_nothing_to_set(run, known_hub, t4):
    known_hub.downloaded += known_hub.places
    names, _ = run()
    assert names["chosen"] == hub.STABLE_DIFFUSION and len(known_hub.downloaded) == 2


def test_without_a_card_nothing_is_downloaded(run, known_hub):
    names, said = run(download=True, steps=2)
    assert known_hub.downloaded == [] and names["chosen"] == "mini"
    assert "No graphics card was found" in said and "Not run by us with Stable Diffusion" in said
    assert names["image"].shape == (96, 192, 3)


def test_the_command_for_a_data_set_works(run, known_hub, t4, tmp_path):
    names, said = run(download=True)
    line = " ".join(names["command"])
    assert line in said.replace("\\\n    ", "")
    images, labels = tiny.write_dataset(tmp_path / "data")
    for word, folder in {"IMAGES": images, "LABELS": labels, "OUT": tmp_path / "made"}.items():
        line = line.replace(word, str(folder))
    arguments = shlex.split(line)
    assert arguments[:4] == ["python", "-m", "zodi", "transfer"] and commands.main(arguments[3:]) == 0
    settings = json.loads((tmp_path / "made" / "settings.json").read_text())["settings"]
    assert (settings["model"], settings["domain"], settings["strength"]) == (hub.STABLE_DIFFUSION, "night", 0.9)
    assert len(list((tmp_path / "made" / "images").glob("*.png"))) == 3


def test_a_photograph_with_its_own_reference(run, known_hub, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 160, 3), np.uint8)).save(tmp_path / "street.png")
    values = np.array([v[0] for v in CITYSCAPES_IDS.values], np.uint8)
    Image.fromarray(values[rng.integers(0, 19, (96, 160))]).save(tmp_path / "street_ids.png")
    network = segmentation.build_network(segmentation.DEFAULT_NETWORK, CITYSCAPES.num_classes, "mini")
    segmentation.save_network(network, tmp_path / "reference")
    files = {"photograph": str(tmp_path / "street.png"), "labels": str(tmp_path / "street_ids.png")}
    names, said = run(**files, label_set="cityscapes_ids", reference=str(tmp_path / "reference"), steps=2)
    assert names["image"].shape == (96, 160, 3) and {*names["found"].index} == {*names["drawn"]}
    assert "What goes in: 160 x 96 pixels" in said
    assert names["table"].shape == (2, 3), "of a photograph no true image is known"


def test_a_photograph_without_a_reference_is_not_audited(run, known_hub, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 160, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 19, (96, 160), np.uint8)).save(tmp_path / "b.png")
    names, said = run(photograph=str(tmp_path / "a.png"), labels=str(tmp_path / "b.png"), steps=2)
    assert names["audited"] is None and "give one as `reference`" in said
