"""Files of tensors: read completely or refused in one line, and never executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zodi.support.files import one_line


def read_tensors(file: str | Path, advice: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        file: the file.
        advice: what to do with a damaged one.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or of another kind.
    """
    _check_there(file, advice)
    try:
        return load_file(file)
    except Exception as error:  # of any type: the library raises its own
        raise ValueError(
            f"{file}: cannot be read ({one_line(error)}), expected a whole safetensors file; {advice}"
        ) from error


def read_state(file: str | Path, advice: str, device: str | torch.device = "cpu") -> Any:
    """What `torch.save` wrote: tensors, numbers, strings, lists and dicts. Nothing else is loaded, nothing is executed.

    Args:
        file: the file.
        advice: what to do with a damaged one.
        device: where the tensors go.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or holds more than that.
    """
    _check_there(file, advice)
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # of any type: RuntimeError, EOFError, UnpicklingError, KeyError
        # torch's own advice, to load the file anyway, would execute what is in it.
        cause = one_line(error).partition(". ")[0]
        raise ValueError(f"{file}: is damaged or holds more than tensors ({cause}); {advice}") from error


def load_into(network: nn.Module, weights: Mapping[str, Tensor], file: str | Path, advice: str) -> None:
    """Give a network the weights of a file; raises ValueError if they are not exactly the network's."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{file}: found other weights than those of the network ({one_line(error)}); {advice}"
        ) from error


def resume(
    file: Path, fingerprint: str, network: nn.Module, optimizer: torch.optim.Optimizer, device: str | torch.device
) -> tuple[int, list[dict[str, float]]]:
    """Give network and optimizer the state that a training run with the same fingerprint has left.

    Args:
        file: what `torch.save` wrote: `fingerprint`, `network`, `optimizer`, `step`, `history`; need not exist.
        fingerprint: of the training's settings and data.
        network, optimizer: changed in place.
        device: where the tensors go.

    Returns:
        Steps done and their history; 0 and an empty list if there is no state, or only that of another training run.

    Raises:
        ValueError: if the file is damaged or not such a state.
    """
    if not file.exists():
        return 0, []
    advice = "delete it to train from the start"
    state = read_state(file, advice, device)
    if not isinstance(state, dict) or not {"fingerprint", "network", "optimizer", "step", "history"} <= state.keys():
        raise ValueError(f"{file}: found no training state; {advice}")
    if state["fingerprint"] != fingerprint:
        print(f"{file}: found a training run with other settings or data; starting from the beginning")
        return 0, []
    load_into(network, state["network"], file, advice)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: found another optimizer's state ({one_line(error)}); {advice}") from error
    return state["step"], state["history"]


def _check_there(file: str | Path, advice: str) -> None:
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; {advice}")
