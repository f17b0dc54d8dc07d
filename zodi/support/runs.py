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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def generator_for(key: str, seed: int) -> torch.Generator:
    """A random generator that depends on `seed` and on a name only: an image's noise is the same in any batch or order.

    It draws on the CPU, whose numbers are the same whatever device computes; what is drawn is moved afterwards.

    Args:
        key: what the randomness is for, for example the image's relative path.
        seed: the run's seed.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))
    return generator


def print_settings(settings: Any, defaults: Any = None) -> None:
    """Print a dataclass or dict as aligned lines, one setting per line.

    Args:
        settings: what to print.
        defaults: settings of the same kind; what is equal to them is only counted. None = print everything.
    """
    plain, usual = to_plain(settings), {} if defaults is None else to_plain(defaults)
    shown = {name: value for name, value in plain.items() if name not in usual or usual[name] != value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")
    if len(shown) < len(plain):
        print(f"as in the defaults: {len(plain) - len(shown)} more")


# ---------------------------------------------------------------- the machine


def best_device() -> str:
    """What "auto" means on this machine: "cuda" where there is a graphics card, else Apple's "mps", else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str | torch.device) -> torch.device:
    """The device, after it has been tried once; "auto" is `best_device`.

    Raises:
        ValueError: if this machine has none of that name; says which it has.
    """
    best = best_device()
    device = best if device == "auto" else device
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of any type: RuntimeError, AssertionError, ModuleNotFoundError
        usable = "cpu: torch finds no graphics card here" if best == "cpu" else f"auto, cpu or {best}"
        raise ValueError(
            f"device {str(device)!r}: cannot be used, expected {usable}. Cause: {one_line(error)}"
        ) from error
    return torch.device(device)


def best_dtype(device: str | torch.device) -> torch.dtype:
    """What "auto" means for networks that only predict: half precision wherever the device supports it.

    bfloat16 on processors and graphics cards that have it, float16 on older graphics cards (compute capability below
    8), float32 elsewhere. An "auto" device is `best_device`.
    """
    device = torch.device(best_device() if device == "auto" else device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and native_bfloat16() else torch.float32


def check_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The type with this name; "auto" is `best_dtype`.

    Raises:
        ValueError: if there is none of that name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return best_dtype(device)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def native_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; elsewhere it is emulated, and far slower."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def device_text(device: str | torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Where and in what type a run computes, as it is printed and recorded: "cuda, bfloat16"."""
    return f"{device}, {dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type, as options and settings have it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def announce(device: str | torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Print `device_text`, and return it for the record."""
    text = device_text(device, dtype)
    print(f"device {text}")
    return text


def image_format(device: str | torch.device) -> torch.memory_format:
    """Order in memory of images and of the networks that predict from them: channels last, for fast convolutions.

    Not on "mps", whose convolutions are wrong on parts of such tensors (pytorch/pytorch#180984).
    """
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def worker_count(device: str | torch.device) -> int:
    """How many processes should read images while a network trains on a device.

    None on a CPU, which is busy training, nor on "mps": on macOS every process imports all libraries again, which takes
    longer than it saves.
    """
    return min(8, os.cpu_count() or 1) if torch.device(device).type == "cuda" else 0


# ---------------------------------------------------------------- records


def environment(device: str | None = None) -> dict[str, Any]:
    """What a result was computed with: Python, system, processor count, package versions, commit; no names or paths.

    Args:
        device: what was computed on, from `device_text`; None where nothing was computed.
    """
    return {
        "device": device,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "gpu": _gpu(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "commit": _commit(),
    }


def save_metrics(
    out: str | Path, stage: str, settings: Any, metrics: dict[str, Any], seconds: float, device: str | None = None
) -> Path:
    """Write OUT/metrics.json, the one file that later stages and the workflow read; write it last.

    Args:
        out: the run's folder.
        stage: what ran, for example "source_only", "transfer", "adapt", "tables".
        settings: dataclass or dict of everything that decides the result.
        metrics: the results; NaN becomes null.
        seconds: wall time of the run.
        device: see `environment`.

    Returns:
        The path of the file.
    """
    record = {
        "stage": stage,
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "environment": environment(device),
    }
    return write_json(Path(out) / METRICS_FILE, record)


def remove_metrics(out: str | Path) -> None:
    """Delete the OUT/metrics.json of an earlier run, before a new one starts that will write it again or fail."""
    (Path(out) / METRICS_FILE).unlink(missing_ok=True)


def _gpu() -> str | None:
    """The name of `best_device`; None for a CPU."""
    best = best_device()
    return {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple mps", "cpu": lambda: None}[best]()


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
