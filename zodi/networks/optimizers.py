"""Optimizers with a learning rate for every part of a network: the head, the body, or layer by layer of the encoder."""

import re
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

# Parameters of more than one dimension that are not a layer's weights.
_EMBEDDINGS = ("pos_embed", "cls_token", "reg_token", "position_embeddings", "relative_position_bias_table")


class Rates(Protocol):
    """The settings of an optimizer, see `zodi.adaptation.AdaptationConfig`."""

    steps: int
    optimizer: str
    learning_rate: float
    learning_rate_floor: float
    body_factor: float
    layer_decay: float | None
    warmup: float
    weight_decay: float


def build_optimizer(network: nn.Module, config: Rates) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 or AdamW for all parameters that are not frozen.

    Args:
        network: its `head` learns at the full rate; without one, everything does.
        config: the settings.

    Returns:
        The optimizer. `factor` of a group is its learning rate as a multiple of the head's.

    Raises:
        ValueError: if there is a `layer_decay` but no encoder made of blocks.
    """
    if config.layer_decay is None:
        groups = _head_and_body(network, config.body_factor)
    else:
        groups = _layer_by_layer(network, config.body_factor, config.layer_decay, config.weight_decay)
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def learning_rate_at(step: int, steps_per_epoch: int, config: Rates) -> float:
    """The head's learning rate: a linear warm-up times polynomial decay of power 0.9.

    Args:
        step: number of the step, from 0.
        steps_per_epoch: steps from one decrease of the rate to the next; 1 = it decreases at every step.
        config: the settings.
    """
    rise = min(1.0, (step + 1) / max(1, round(config.warmup * config.steps)))
    done = step // steps_per_epoch * steps_per_epoch
    return rise * max(config.learning_rate * (1 - done / config.steps) ** 0.9, config.learning_rate_floor)


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _head_and_body(network: nn.Module, body_factor: float) -> list[dict[str, Any]]:
    own_head = getattr(network, "head", None)
    # A network without a named head learns at the full rate everywhere.
    head = list((network if own_head is None else own_head).parameters())
    body = [parameter for parameter in network.parameters() if all(parameter is not own for own in head)]
    parts = ((head, 1.0), (body, body_factor))
    return [{"params": _trainable(part), "factor": factor} for part, factor in parts]


def _layer_by_layer(
    network: nn.Module, body_factor: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """As transformers are trained (Bao et al., BEiT, ICLR 2022): decoder and head at the full rate, the encoder's last
    block at `body_factor`, each block before it at `layer_decay` times the next one's; biases, norms and embeddings
    without weight decay.
    """
    encoder = getattr(network, "encoder", None)
    if encoder is None:
        raise ValueError("layer_decay: the network names no encoder; choose a network by name, or layer_decay=None")
    layers = encoder_layers(encoder)
    last = max(layers.values())
    factors = {
        id(parameter): body_factor * layer_decay ** (last - layers[name])
        for name, parameter in encoder.named_parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith(_EMBEDDINGS)
            key = (factors.get(id(parameter), 1.0), 0.0 if plain else weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in sorted(groups.items(), reverse=True)
    ]


def encoder_layers(encoder: nn.Module) -> dict[str, int]:
    """The layer of every parameter, 1 for the first block; what is between blocks belongs to the one before, or is 0.

    A block is the innermost numbered part that is called block or layer, such as `blocks.3` or `layers.0.blocks.1`.

    Raises:
        ValueError: if the encoder has no such parts.
    """
    found: dict[str, int] = {}
    layers: dict[str, int] = {}
    for name, _ in encoder.named_parameters():
        block = re.match(r"(?:.*[._])?(?:blocks?|layers?)\d*(?:\.\d+)+(?=\.)", name)
        if block:
            found.setdefault(block[0], len(found) + 1)
        layers[name] = found[block[0]] if block else len(found)
    if not found:
        raise ValueError(f"layer_decay: found no blocks in {type(encoder).__name__}; choose layer_decay=None")
    return layers
