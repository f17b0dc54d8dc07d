"""What makes a run repeatable: atomic files, hashes of settings, seeds, and the metrics file that ends every stage."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

METRICS_FILE = "metrics.json"
RECORDED_PACKAGES = (
    "zodi",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "segmentation-models-pytorch",
    "timm",
    "kornia",
    "numpy",
    "pillow",
)


# ---------------------------------------------------------------- files


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write to a temporary name and rename onto `path` at the end, so that nobody ever sees a half-written result.

    Args:
        path: the file or folder to make; parents are created. An existing file or folder there is replaced.

    Yields:
        A path in the same folder (same file system, same suffix) that does not exist yet: write a file or make a
        folder there. If the block raises, it is deleted and `path` stays as it was.

    Raises:
        FileNotFoundError: if the block ends without having written anything.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    temporary = workspace / path.name
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"{path}: nothing was written to the temporary path {temporary}")
        if path.is_dir():
            # A folder cannot be renamed onto one that has content: move the old one out of the way first.
            path.rename(workspace / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; NaN becomes null because JSON has no NaN.

    Args:
        path: file to write; parents are created.
        value: dicts, lists, strings, numbers, None, dataclasses, paths, numpy scalars and arrays, torch tensors.

    Returns:
        The path written.
    """
    path = Path(path)
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON; names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the stage that writes it first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings, paths, numpy and torch values into what JSON has; NaN and infinity become None.

    Raises:
        TypeError: for anything else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return to_plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


# ---------------------------------------------------------------- settings and seeds


def settings_hash(settings: Any) -> str:
    """12 hexadecimal digits that are the same for the same settings, whatever the order of the keys."""
    canonical = json.dumps(to_plain(settings), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def generator_for(key: str, seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator that depends on `seed` and on a name only: an image's noise is the same in any batch or order.

    Args:
        key: what the randomness is for, for example the image's relative path.
        seed: the run's seed.
        device: where the generator draws; results differ between device types.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))
    return generator


def print_settings(settings: Any) -> None:
    """Print a dataclass or dict as aligned lines, one setting a line."""
    plain = to_plain(settings)
    width = max(map(len, plain), default=0)
    for name, value in plain.items():
        print(f"{name:<{width}}  {value}")


# ---------------------------------------------------------------- the machine


def best_device() -> str:
    """ "cuda" where there is a graphics card, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def native_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; elsewhere it is emulated, and far slower."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def worker_count(device: str) -> int:
    """Processes that shall read images: none beside a CPU, which has the training to do."""
    return min(8, os.cpu_count() or 1) if device == "cuda" else 0


# ---------------------------------------------------------------- records


def environment() -> dict[str, Any]:
    """What a result was computed with: Python, system, processor count, package versions, commit; no names or paths."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "commit": _commit(),
    }


def save_metrics(out: str | Path, stage: str, settings: Any, metrics: dict[str, Any], seconds: float) -> Path:
    """Write OUT/metrics.json, the one file that later stages and the workflow read; write it last.

    Args:
        out: the run's folder.
        stage: what ran, for example "source_only", "transfer", "adapt", "tables".
        settings: dataclass or dict of everything that decides the result.
        metrics: the results; NaN becomes null.
        seconds: wall time of the run.

    Returns:
        The path of the file.
    """
    record = {
        "stage": stage,
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "environment": environment(),
    }
    return write_json(Path(out) / METRICS_FILE, record)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this module is imported from; None when it is installed or git is missing."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None
