"""The weights at the paper's scale: Stable Diffusion 1.5, ControlNet-seg, ResNet-50 and ResNet-101.

    python data_scripts/weights.py {instructions,download,check}

They go into the caches of the hub (HF_HOME) and of torch (TORCH_HOME), where `zodi` looks for them. Nothing is
downloaded that was not asked for, and only safetensors and plain state dicts are read.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum

from zodi.diffusion import CONTROLNET_SEG, CONTROLNET_SEG_SIZE, STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE, snapshot


@dataclass(frozen=True)
class Weights:
    """Something to download.

    Attributes:
        name: identifier.
        size: for people.
        find: the files on this machine, empty if they are not there.
        get: download them.
    """

    name: str
    size: str
    find: Callable[[], list[Path]]
    get: Callable[[], None]


def from_hub(name: str, size: str) -> Weights:
    """A repository of the hub, without what `zodi` does not read."""

    def find() -> list[Path]:
        try:
            return sorted(snapshot(name).rglob("*.safetensors"))
        except OSError:
            return []

    return Weights(name, size, find, lambda: print(snapshot(name, local_files_only=False)))


def from_torchvision(weights: WeightsEnum) -> Weights:
    """ImageNet weights of torchvision."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    return Weights(
        str(weights),
        f"{weights.meta['_file_size']:.0f} MB",
        lambda: [file] if file.exists() else [],
        lambda: weights.get_state_dict(progress=True, check_hash=True) and None,
    )


def all_weights() -> list[Weights]:
    """What PROFILE=paper needs."""
    return [
        from_hub(STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE),
        from_hub(CONTROLNET_SEG, CONTROLNET_SEG_SIZE),
        from_torchvision(ResNet50_Weights.IMAGENET1K_V2),
        from_torchvision(ResNet101_Weights.IMAGENET1K_V1),
    ]


def problem(file: Path) -> str | None:
    """What is wrong with a file of weights; None if it can be read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                opened.keys()
        else:
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        return f"{file}: cannot be read ({error}); delete it and download it again"
    return None


def main() -> int:
    """Command line; returns the exit code: 0 all there, 1 something is missing, 2 a download failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("instructions", "download", "check"))
    verb = parser.parse_args().verb
    missing = False
    for weights in all_weights():
        files = weights.find()
        if verb == "instructions":
            print(f"{weights.name} ({weights.size}): {'here' if files else 'python data_scripts/weights.py download'}")
        elif verb == "check":
            problems = [text for text in map(problem, files) if text]
            missing |= bool(problems) or not files
            print("\n".join([f"{weights.name} ({weights.size}): {'complete' if files else 'missing'}", *problems]))
        elif not files:
            try:
                weights.get()
            except OSError as error:
                print(f"error: {weights.name} ({weights.size}) could not be downloaded: {error}", file=sys.stderr)
                return 2
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
