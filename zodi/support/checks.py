"""Checks that stop a run whose results would be silently wrong: classes that differ, values that are not finite."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

DIVERGED = "the training diverged: choose a lower learning rate, do without bf16, and check the labels"


def check_classes(one: str, first: Sequence[str] | int, other: str, second: Sequence[str] | int) -> None:
    """Refuse classes that are not the same: by name and order where both have names, else by number.

    Args:
        one, other: whose they are, for the message.
        first, second: their names, or how many they are where no names are known.

    Raises:
        ValueError: naming both.
    """
    counts = [found if isinstance(found, int) else len(found) for found in (first, second)]
    named = not isinstance(first, int) and not isinstance(second, int)
    if counts[0] != counts[1] or (named and tuple(first) != tuple(second)):
        shown = [
            f"{count} classes" + ("" if isinstance(found, int) else f" ({', '.join(found)})")
            for count, found in zip(counts, (first, second), strict=True)
        ]
        raise ValueError(
            f"{one} has {shown[0]}, {other} has {shown[1]}, expected the same; use ones that match, or train a "
            "network on these classes"
        )


def check_network(network: nn.Module, classes: Sequence[str] | int) -> None:
    """Refuse data whose classes are not those a network was trained on, as far as its `label_set` or `config` tells.

    Args:
        network: the network.
        classes: the data's, see `check_classes`.

    Raises:
        ValueError: naming both.
    """
    label_set = getattr(network, "label_set", None)
    own = label_set.names if label_set else getattr(getattr(network, "config", None), "num_classes", classes)
    check_classes(network_name(network), own, "the data", classes)


def network_name(network: nn.Module) -> str:
    """What messages call a network: the name in its settings or, if it has none, its class."""
    return f"network {getattr(getattr(network, 'config', None), 'name', type(network).__name__)!r}"


def check_labels(labels: Tensor, num_classes: int, void: int, source: str) -> None:
    """Refuse class indices int (H, W) that are neither 0 .. `num_classes` - 1 nor `void`; names `source`."""
    wrong = labels[(labels != void) & (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"{source}: found the class {int(wrong[0])}, expected 0 .. {num_classes - 1} or {void} (void)")


def check_finite(values: Mapping[str, float], where: str, advice: str = DIVERGED) -> None:
    """Refuse values that are infinite or not a number.

    Args:
        values: by name.
        where: when they were found, for example "step 3".
        advice: what to do.

    Raises:
        ValueError: naming the first one.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{where}: found {name} = {value}, expected a finite number; {advice}")


def check_loss(terms: Mapping[str, float], labels: Mapping[str, Tensor], void: int, where: str) -> None:
    """Refuse a loss with a term that is not a finite number.

    Args:
        terms: of the loss, by name.
        labels: class indices that a term is computed from, by the term's name.
        void: the index that means no class.
        where: for example "step 3".

    Raises:
        ValueError: naming the term; says so if every pixel that it was computed from is void.
    """
    for name, found in labels.items():
        if not math.isfinite(terms[name]) and (found == void).all():
            raise ValueError(
                f"{where}: found {name} = {terms[name]}, because every pixel of the batch is void; check the labels "
                "and their label set, or choose a larger crop or batch"
            )
    check_finite(terms, where)


def check_weights(network: nn.Module, where: str) -> None:
    """Refuse a network with a weight that is infinite or not a number; raises ValueError naming the first one."""
    for name, value in network.named_parameters():
        if not value.isfinite().all():
            check_finite({name: value[~value.isfinite()][0].item()}, where)


def check_logits(logits: Tensor, network: nn.Module, keys: Sequence[str] = ()) -> None:
    """Refuse logits (B, C, H, W) that are infinite or not a number; names the network and, from `keys`, the image."""
    finite = logits.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        image = keys[finite.index(False)] if keys else "an image"
        raise ValueError(
            f"{network_name(network)}: found logits for {image} that are infinite or not a number, expected finite "
            "ones; its weights are damaged or its training diverged: train it again, with a lower learning rate"
        )
