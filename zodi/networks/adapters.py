"""LoRA: a frozen encoder that learns through small matrices beside its own, for encoders too large to train whole."""

from torch import nn


def add_lora(encoder: nn.Module, rank: int, name: str) -> None:
    """Freeze an encoder and give each of its linear layers an adapter (Hu et al., LoRA, ICLR 2022).

    A layer W becomes W + B A with A (rank, inputs) random and B (outputs, rank) zero, so that nothing changes at first;
    only A and B learn. The factor alpha / rank of the paper is 1.

    Args:
        encoder: changed in place.
        rank: of the adapters, at least 1.
        name: of the network, for the message.

    Raises:
        ValueError: if the encoder has no linear layers, or batch normalisation, whose statistics would not be frozen.
    """
    layers = [path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not layers or any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        found = "batch normalisation" if layers else "no linear layers"
        raise ValueError(
            f"lora_rank={rank}: found {found} in the encoder of {name!r}, expected linear layers and layer "
            "norms, as in transformers; choose such a network, or lora_rank=0"
        )
    # Loads transformers, which no other network needs.
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), encoder)
