"""The loop that trains the miniature's networks: it can be stopped at any instant and continues where it was.

AdamW or Muon, warm-up and decay, an exponential moving average of the weights, a log that is written as it grows.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from zodi.support.checks import check_finite
from zodi.support.files import atomic_path
from zodi.support.tensors import read_state

SAVE_SECONDS = 60
STATE_ADVICE = "delete it to train the stage from the start"
OPTIMIZERS = ("adamw", "muon")
# The last part of a training run, in which the learning rate falls; until then the run may be made longer.
DECAY = 0.25
# Muon is for the matrices inside; AdamW trains inputs, outputs and embeddings.
_EDGES = re.compile(r"conv_in|conv_out|time_embedding|embeddings|controlnet_cond_embedding|^text_encoder|^vae|^network")


def _as_matrix(weight: Tensor, like: Tensor) -> Tensor:
    """A weight (out, in, ...) as (out, rest), the rest in the memory order of `like`."""
    ordered = weight if like.is_contiguous() else weight.movedim(1, -1)
    return ordered.reshape(len(weight), -1)


class Optimizer:
    """AdamW for all parameters, or Muon for the matrices inside the networks and AdamW for the rest.

    `torch.optim.Muon` takes matrices only; a convolution's kernel is one if its height, width and inputs are rows of it
    (K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024). Its steps are scaled to the size
    of AdamW's (`match_rms_adamw`), so that both share one learning rate.
    """

    def __init__(self, modules: nn.ModuleDict, kind: str) -> None:
        named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
        muon = kind == "muon"
        self.inner = [p for name, p in named if muon and p.ndim > 1 and not _EDGES.search(name)]
        inner = {id(p) for p in self.inner}
        rest = [p for _, p in named if id(p) not in inner]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        ]
        self.matrices = [nn.Parameter(_as_matrix(p.detach(), p)) for p in self.inner]
        if any(m.data_ptr() != p.data_ptr() for m, p in zip(self.matrices, self.inner, strict=True)):
            raise ValueError("Muon: found weights with gaps in memory, expected them contiguous or channels last")
        if self.matrices:
            self.parts.append(
                torch.optim.Muon(self.matrices, lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, lr: float) -> None:
        """One step down the gradients, which are then cleared."""
        for matrix, parameter in zip(self.matrices, self.inner, strict=True):
            matrix.grad = _as_matrix(parameter.grad, parameter)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        for parameter in self.inner:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up over 200 steps, constant, then down to 2 % in the last `DECAY` of the training; `progress` is 0 .. 1."""
    return min(1, (step + 1) / 200) * (0.02 + 0.98 * min(1, (1 - progress) / DECAY))


def train(
    name: str,
    modules: nn.ModuleDict,
    loss_of: Callable[[int], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    steps: int,
    learning_rate: float,
    out: Path,
    validate_every: int,
    ema_decay: float,
    earlier: Sequence[dict[str, float]] = (),
    minutes: float = 0,
    optimizer: str = "adamw",
) -> None:
    """Optimise modules; they end with the averaged weights, in evaluation mode.

    With `minutes` the learning rate follows the clock, so that two such runs differ; with `steps` they are equal,
    resumed or not.

    Args:
        name: of the training run; its state goes to `out/NAME_state.pt` every `SAVE_SECONDS` seconds, from where it
            continues, and its log to `out/NAME_log.csv`.
        modules: what is trained, on its device.
        loss_of: the terms of step number 0, 1, ...; `loss` is minimised.
        validate: scores for the log, computed with the averaged weights every `validate_every` steps and at the end.
        steps: length of the run; ignored if `minutes` is given.
        learning_rate: its peak, see `learning_rate_factor`.
        out: folder of state and log.
        validate_every: steps.
        ema_decay: decay of the exponential moving average of the weights, 0 .. 1.
        earlier: log of the run that this one continues; steps and seconds are counted on from it.
        minutes: 0, or how long it may take over all sessions.
        optimizer: one of `OPTIMIZERS`.

    Raises:
        ValueError: if the state is damaged, or the training diverges; names the step.
    """
    state_file, log_file = out / f"{name}_state.pt", out / f"{name}_log.csv"
    parameters = [p for p in modules.parameters() if p.requires_grad]
    descent, ema = Optimizer(modules, optimizer), EMAModel(parameters, decay=ema_decay, foreach=True)
    log: list[dict[str, float]] = list(earlier)
    steps_before, seconds_before = (log[-1]["step"], log[-1]["seconds"]) if log else (0, 0.0)
    done, seconds = 0, 0.0
    if state_file.exists():
        state = read_state(state_file, STATE_ADVICE, parameters[0].device)
        modules.load_state_dict(state["modules"])
        descent.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        done, log, seconds = state["step"], state["log"], state["seconds"]

    modules.train()
    running: list[dict[str, float]] = []
    begin = saved = time.monotonic()
    before = seconds
    bar = tqdm(desc=name, total=None if minutes else steps, initial=done, unit="step")
    while (progress := seconds / (60 * minutes) if minutes else done / steps) < 1:
        losses = loss_of(done)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        descent.step(learning_rate * learning_rate_factor(done, progress))
        ema.step(parameters)
        running.append({key: value.item() for key, value in losses.items()})
        done += 1
        bar.update()
        check_finite(running[-1], f"{name}, step {done}")
        now = time.monotonic()
        seconds = before + now - begin
        is_last = seconds >= 60 * minutes if minutes else done == steps
        if done % validate_every == 0 or is_last:
            ema.store(parameters)
            ema.copy_to(parameters)
            modules.eval()
            measured = validate()
            modules.train()
            ema.restore(parameters)
            means = pd.DataFrame(running).mean().to_dict()
            total = {"step": steps_before + done, "seconds": round(seconds_before + seconds, 1)}
            log.append(total | means | measured)
            running.clear()
            bar.set_postfix({key: f"{value:.4f}" for key, value in measured.items() if key.endswith("mean")})
            with atomic_path(log_file) as temporary:
                pd.DataFrame(log).to_csv(temporary, index=False, float_format="%.5g")
        if now - saved >= SAVE_SECONDS or is_last:
            saved = now
            state = {"modules": modules.state_dict(), "optimizer": descent.state_dict(), "ema": ema.state_dict()}
            with atomic_path(state_file) as temporary:
                torch.save(state | {"step": done, "log": log, "seconds": seconds}, temporary)
    bar.close()
    ema.copy_to(parameters)
    modules.eval()


def restore_averaged(name: str, modules: nn.ModuleDict, out: Path) -> None:
    """Put the averaged weights of a training run, finished or not, into `modules`."""
    state_file = out / f"{name}_state.pt"
    if not state_file.exists():
        raise FileNotFoundError(
            f"{state_file}: no such file; train the stage {name!r} first (python -m zodi.miniature pretrain)"
        )
    state = read_state(state_file, STATE_ADVICE)
    modules.load_state_dict(state["modules"])
    parameters = [p for p in modules.parameters() if p.requires_grad]
    ema = EMAModel(parameters)
    ema.load_state_dict(state["ema"])
    ema.copy_to(parameters)
    modules.eval()
