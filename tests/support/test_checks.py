"""Checks of classes, labels, losses, weights and logits: what is refused is named, what is right passes."""

import math

import pytest
import torch
from torch import nn

from zodi.support import checks

VOID = 255


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (("a", "b"), ("a", "b"), ""),
        (("a", "b"), ["a", "b"], ""),
        (2, ("a", "b"), ""),
        (2, 2, ""),
        (("a", "b"), ("b", "a"), r"one has 2 classes \(a, b\), other has 2 classes \(b, a\)"),
        (("a", "b"), ("a", "b", "c"), r"2 classes \(a, b\), other has 3 classes \(a, b, c\)"),
        (19, ("a", "b"), r"19 classes, other has 2 classes \(a, b\)"),
        (19, 11, "19 classes, other has 11 classes"),
    ],
)
def test_classes_are_compared_by_name_else_by_number(first, second, refused):
    if not refused:
        return checks.check_classes("one", first, "other", second)
    with pytest.raises(ValueError, match=refused):
        checks.check_classes("one", first, "other", second)


def test_labels_beyond_the_last_class_are_named():
    checks.check_labels(torch.tensor([[0, 2], [VOID, 1]]), 3, VOID, "a.png")
    with pytest.raises(ValueError, match=r"a.png: found the class 3, expected 0 .. 2 or 255 \(void\)"):
        checks.check_labels(torch.tensor([[0, 3], [VOID, 1]]), 3, VOID, "a.png")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["ce_source", "ce_synth", "similarity", "loss"])
def test_a_term_that_is_no_number_is_named(name, value):
    terms = {"ce_source": 1.0, "ce_synth": 2.0, "similarity": 0.5, "loss": 2.95}
    labels = {part: torch.zeros(2, 4, 4) for part in ("ce_source", "ce_synth")}
    checks.check_loss(terms, labels, VOID, "step 7")
    with pytest.raises(ValueError, match=rf"step 7: found {name} = {value}.*lower learning rate.*bf16.*labels"):
        checks.check_loss(terms | {name: value}, labels, VOID, "step 7")


def test_a_batch_of_nothing_but_void_is_called_that():
    labels = {"ce_source": torch.zeros(2, 4, 4), "ce_synth": torch.full((2, 4, 4), VOID)}
    with pytest.raises(ValueError, match="step 7: found ce_synth = nan, because every pixel of the batch is void"):
        checks.check_loss({"ce_source": 1.0, "ce_synth": math.nan, "loss": math.nan}, labels, VOID, "step 7")


def test_weights_and_logits_that_are_no_numbers_are_named():
    network = nn.Linear(2, 2)
    checks.check_weights(network, "step 1")
    with torch.no_grad():
        network.bias[1] = math.inf
    with pytest.raises(ValueError, match="step 1: found bias = inf"):
        checks.check_weights(network, "step 1")
    logits = torch.zeros(2, 3, 4, 4)
    checks.check_logits(logits, network, ["a", "b"])
    logits[1, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="network 'Linear': found logits for b"):
        checks.check_logits(logits, network, ["a", "b"])
