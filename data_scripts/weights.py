"""The weights at the paper's scale: Stable Diffusion 1.5, ControlNet-seg, ResNet-50 and ResNet-101.

    python data_scripts/weights.py {instructions,download,check}

They go into the caches of the hub (HF_HOME) and of torch (TORCH_HOME), where `zodi` looks for them. Nothing is
downloaded unless asked for, and only safetensors and plain state dicts are read.
"""

import argparse
import hashlib
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import command
import torch
from safetensors import SafetensorError, safe_open
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum

from zodi.networks.hub import CONTROLNET_SEG, CONTROLNET_SEG_SIZE, STABLE_DIFFUSION, STABLE_DIFFUSION_SIZE, snapshot


@dataclass(frozen=True)
class Weights:
    """Something to download.

    Attributes:
        name: identifier.
        size: as people read it.
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
    """What is wrong with a file of weights; None if it has the checksum in its name, or else can be read."""
    # The hub's cache names a large file by its SHA-256; torchvision's names end with the first digits of it.
    published = re.search(r"^[0-9a-f]{64}$", file.resolve().name) or re.search(r"(?<=-)[0-9a-f]{8,64}$", file.stem)
    if published:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found.startswith(published[0]):
            return None
        return f"{file}: found SHA-256 {found}, expected one that starts with {published[0]}; download it again"
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                opened.keys()
        else:
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError) as error:
        return f"{file}: cannot be read ({error}); download it again"
    return None


def download(weights: Weights) -> None:
    """Download weights that are missing, and those with a damaged file.

    Raises:
        OSError: if that fails; names them.
    """
    files = weights.find()
    damaged = [(file, text) for file in files if (text := problem(file))]
    for file, text in damaged:
        print(f"{text.rpartition('; ')[0]}; fetching it again", flush=True)
        # In the hub's cache a name is a link, and what it points to would be used again.
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    if damaged or not files:
        try:
            weights.get()
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            raise OSError(f"{weights.name} ({weights.size}) could not be downloaded: {error}") from error


def main() -> int:
    """Command line; returns the exit code: 0 all there, 1 something is missing, 2 a download failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("instructions", "download", "check"))
    verb = parser.parse_args().verb
    missing = False
    for weights in all_weights():
        if verb == "download":
            download(weights)
            continue
        files = weights.find()
        if verb == "instructions":
            print(f"{weights.name} ({weights.size}): {'here' if files else 'python data_scripts/weights.py download'}")
            continue
        problems = [text for text in map(problem, files) if text]
        missing |= bool(problems) or not files
        state = "damaged" if problems else "complete" if files else "missing"
        print("\n".join([f"{weights.name} ({weights.size}): {state}", *problems]))
    return int(missing)


if __name__ == "__main__":
    sys.exit(command.run(main))
