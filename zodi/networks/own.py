"""A network of your own in the shape that adaptation needs: logits, and the deepest features beside them."""

from torch import Tensor, nn


class OwnNetwork(nn.Module):
    """Any segmentation network, made to return its deepest features beside its logits, as adaptation needs them.

    Args:
        model: images float (B, 3, H, W) from `normalise`, H and W multiples of 32 -> logits (B, C, H, W).
        features: name of the part of `model` whose output (B, D, h, w) the similarity term compares, as
            `model.named_modules()` has it; usually the last one of the encoder.
        head: name of the part that is new and should learn at the full learning rate, while the pretrained rest learns
            at `body_factor` times that rate; None = everything learns at the full rate.

    Raises:
        ValueError: if the model has no part with such a name; names those that it has.
    """

    def __init__(self, model: nn.Module, features: str, head: str | None = None) -> None:
        super().__init__()
        parts = [name for name, _ in model.named_modules() if name]
        self.name = type(model).__name__
        for name in (features, *([head] if head else [])):
            if name not in parts:
                raise ValueError(f"{self.name} has no part {name!r}; expected one of {parts}")
        self.model, self._features, self._head = model, features, head

    @property
    def head(self) -> nn.Module | None:
        """The part that learns at the full learning rate; None if all do."""
        return self.model.get_submodule(self._head) if self._head else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and the output of the part `features`."""
        kept: list[Tensor] = []
        part = self.model.get_submodule(self._features)
        hook = part.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            logits = self.model(x)
        finally:
            hook.remove()
        return logits, kept[-1]
