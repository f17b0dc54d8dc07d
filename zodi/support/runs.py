"""What makes a run repeatable: hashes of settings, seeds, the machine, and the metrics file that ends every stage."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from zodi.support.files import one_line, to_plain, write_json

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


def check_device(device: str | torch.device) -> torch.device:
    """The device, tried once.

    Raises:
        ValueError: if this machine has none of that name; says which it has.
    """
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of any type: RuntimeError, AssertionError, ModuleNotFoundError
        usable = "cpu or cuda" if best_device() == "cuda" else "cpu: torch finds no graphics card here"
        raise ValueError(
            f"device {str(device)!r}: cannot be used, expected {usable}. Cause: {one_line(error)}"
        ) from error
    return torch.device(device)


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


def remove_metrics(out: str | Path) -> None:
    """Delete what an earlier run has left in OUT/metrics.json, before one starts that will write it anew or fail."""
    (Path(out) / METRICS_FILE).unlink(missing_ok=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this module is imported from; None when it is installed or git is missing."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None
