"""What a checkpoint is and what a transfer with it does, from settings and file headers, without the weights."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open

from zodi.generators.families import class_of
from zodi.generators.interface import Generator, TransferDefaults
from zodi.support.checkpoints import explained, read_config

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Examination:
    """What `zodi.diffusion.examine` finds.

    Attributes:
        name, family, defaults: as of the loaded model.
        will_do: what a transfer with it does, one entry per question.
        parts: one row per network: part, class, parameters, and the megabytes of its weights in either type.
    """

    name: str
    family: str
    defaults: TransferDefaults
    will_do: dict[str, Any]
    parts: "pd.DataFrame"


def parts_of(
    kind: type[Generator], folder: Path, controls: dict[str, Path], variant: str | None = None
) -> "pd.DataFrame":
    """One row per network of a checkpoint on disk, see `Examination`.

    Args:
        kind: the family.
        folder: the checkpoint.
        controls: folders or single files of ControlNets, by the name of the part.
        variant: of the weights, see `zodi.diffusion.load`.

    Raises:
        FileNotFoundError: if a part has no weights.
        ValueError: if a file cannot be read, or a part is of another class.
    """
    import pandas as pd

    places = {part: folder / part for part in kind.PARTS if part != "controlnet" and (folder / part).is_dir()}
    rows = []
    for part, place in (places | controls).items():
        classes = kind.PARTS.get(part, kind.PARTS["controlnet"])
        count = sum(_parameters(file) for file in _weights(place, variant))
        name = classes[0].__name__ if place.is_file() else class_of(place, classes).__name__
        rows.append({"part": part, "class": name, "parameters": count})
    table = pd.DataFrame(rows)
    return table.assign(MB_float32=(table.parameters * 4e-6).round(1), MB_16_bit=(table.parameters * 2e-6).round(1))


def schedule_text(kind: type[Generator], folder: Path, few_steps: bool) -> dict[str, str]:
    """What the denoiser predicts, and the times that a transfer visits."""
    with explained(folder / "scheduler"):
        config = read_config(folder / "scheduler" / "scheduler_config.json")
    if issubclass(kind.SCHEDULER, FlowMatchEulerDiscreteScheduler):
        moved = "that grows with the image" if config.get("use_dynamic_shifting") else f"{config.get('shift', 1.0):g}"
        return {
            "predicts": "the velocity v = eps - z_0",
            "schedule": f"straight path z_t = (1 - t) z_0 + t eps, steps with a shift {moved}",
        }
    meaning = {"epsilon": "the noise eps", "v_prediction": "v = alpha eps - sigma z_0", "sample": "the image z_0"}
    prediction = config.get("prediction_type", "epsilon")
    grid = "trailing, for few steps" if few_steps else "the paper's"
    return {
        "predicts": f"{meaning.get(prediction, 'something unknown here')} ({prediction})",
        "schedule": f"diffusion, DDIM steps, grid {grid}",
    }


def _weights(place: Path, variant: str | None) -> list[Path]:
    """Files of a network: the variant's where it has them, else those without one."""
    with explained(place):
        if place.is_file():
            return [place]
        stems = ("model", "diffusion_pytorch_model")
        for infix in ([f".{variant}"] if variant else []) + [""]:
            names = [name for stem in stems for name in (f"{stem}{infix}.safetensors", f"{stem}{infix}-0*.safetensors")]
            if files := [file for name in names for file in sorted(place.glob(name))]:
                return files
        raise FileNotFoundError(f"no {' or '.join(f'{stem}.safetensors' for stem in stems)} in {place}")


def _parameters(file: Path) -> int:
    with explained(file), safe_open(file, framework="pt") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - no dict
