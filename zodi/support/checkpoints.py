"""Parts of checkpoints in the format of diffusers and transformers: loaded completely, or refused in one line.

Left to themselves, the libraries take a file of unrelated weights for a network yet to be trained and a string for a
truth value, and report damage in many different ways and over many lines. Networks loaded here are identified by their
content, not by their name.
"""

import hashlib
import inspect
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from zodi.support.files import cached_digest, file_stamp, one_line, read_json
from zodi.support.runs import image_format

# ---------------------------------------------------------------- load


def load_network(
    kind: type, folder: Path, device: str | torch.device, dtype: torch.dtype, variant: str | None = None
) -> torch.nn.Module:
    """A network for inference, with all its weights from the folder's safetensors.

    Args:
        kind: a model class of diffusers or transformers.
        folder: with `config.json` and weights.
        device: where the weights go.
        dtype: type of the weights in memory.
        variant: the weights of `*.VARIANT.safetensors`, for example "fp16"; None = the files without a variant.

    Raises:
        FileNotFoundError: if a file is missing or cannot be read.
        ValueError: if settings or weights are incomplete or do not fit together.
    """
    from_transformers = issubclass(kind, PreTrainedModel)
    stem = "model" if from_transformers else "diffusion_pytorch_model"
    file = folder / ".".join(filter(None, (stem, variant, "safetensors")))
    with explained(folder):
        check_config(kind, folder / "config.json")
        stamp = file_stamp(file) if file.is_file() else None
        network, found = kind.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if from_transformers else "torch_dtype": dtype},
        )
        missing = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if missing:
            raise ValueError(
                f"{file}: found no {missing[0]} of the right shape ({len(missing)} weights in all), expected the "
                f"weights of the {kind.__name__} that {folder / 'config.json'} describes; copy the folder again"
            )
        network = placed(network, device)
    if stamp is not None:
        network.loaded_from = (file, stamp, _versions(network))
    return network


def placed(network: torch.nn.Module, device: str | torch.device) -> torch.nn.Module:
    """The network, ready for inference, on the device."""
    return network.requires_grad_(False).eval().to(device, memory_format=image_format(device))


@contextmanager
def explained(part: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for a missing or damaged part of a checkpoint, file or folder, into one line.

    Raises:
        FileNotFoundError: instead of an OSError.
        ValueError: instead of anything else.
    """
    try:
        yield
    except OSError as error:
        variants = sorted({file.suffixes[-2][1:] for file in part.glob("*.*.safetensors")})
        advice = f"give variant={variants[0]!r}, which is there (--variant)" if variants else "copy it again"
        raise FileNotFoundError(
            f"{part}: the diffusion model is incomplete. Expected config.json and safetensors weights in the subfolder "
            f"of every network, and the files of tokenizers and scheduler; {advice}. Cause: {one_line(error)}"
        ) from error
    except Exception as error:
        if str(error).startswith(str(part)):
            raise
        raise ValueError(
            f"{part}: found files that cannot be loaded, expected a part of a diffusion model whose settings and "
            f"weights fit together; copy it again. Cause: {type(error).__name__}: {one_line(error)}"
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the progress bars, the long reports and the notes on their own code that the libraries print."""
    bars = transformers_logging.is_progress_bar_enabled()
    levels = [(logging, logging.get_verbosity()) for logging in (diffusers_logging, transformers_logging)]
    transformers_logging.disable_progress_bar()
    for logging, _ in levels:
        logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for logging, level in levels:
            logging.set_verbosity(level)


# ---------------------------------------------------------------- settings


def read_config(file: Path) -> dict[str, Any]:
    """The names and values of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it holds something else.
    """
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as JSON; copy it again. Cause: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found a {type(found).__name__}, expected names and values; copy it again")
    return found


def check_config(kind: type, file: Path) -> dict[str, Any]:
    """Refuse values whose type differs from the class's defaults: some would be accepted and change the result.

    Args:
        kind: the class that is made from the values.
        file: JSON; names that the class does not know are left for it to handle.

    Returns:
        What the file holds.

    Raises:
        ValueError: naming the file, the value and the default.
    """
    parameters = inspect.signature(kind).parameters
    found = read_config(file)
    for name, value in found.items():
        default = parameters[name].default if name in parameters else None
        if not fits(value, default):
            raise ValueError(f"{file}: found {name} = {value!r}, expected a value like {default!r}; copy it again")
    return found


def fits(value: Any, default: Any) -> bool:
    """Whether a value, or each of a list, is of the default's kind: true or false, a finite number, or a text."""
    if isinstance(value, list):
        return all(fits(item, default) for item in value)
    while isinstance(default, (list, tuple)) and default:
        default = default[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(default, (int, float)):
        return math.isfinite(value) and not isinstance(default, bool)
    return value is None or not isinstance(default, (bool, int, float, str)) or type(value) is type(default)


# ---------------------------------------------------------------- digests


def weights_digest(network: torch.nn.Module) -> str:
    """64 hex digits of all weights.

    A network made by `load_network` is identified by its file, whatever its type in memory, as long as neither the file
    nor the weights have changed since; any other network by the weights that it holds. A float32 network has the same
    digest either way.
    """
    file, stamp, versions = getattr(network, "loaded_from", (Path(), [], []))
    if file.is_file() and file_stamp(file) == stamp and _versions(network) == versions:
        return cached_digest(file, _digest_of_file)
    # The libraries do not write a tensor with two names twice.
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    return _digest(sorted((name, value) for name, value in network.state_dict().items() if name not in tied))


def _digest_of_file(file: Path) -> str:
    with safe_open(file, framework="pt") as weights:
        return _digest((name, weights.get_tensor(name)) for name in sorted(weights.keys()))


def _digest(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Digest of names, types, shapes and values, as they are in a file."""
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _versions(network: torch.nn.Module) -> list[int | None]:
    """Numbers that change when weights are changed in place, as by a training."""
    return [None if value.is_inference() else value._version for value in network.state_dict(keep_vars=True).values()]
