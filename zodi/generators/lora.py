"""Low-rank weights that let a denoiser draw in few steps (LCM-LoRA, Luo et al., 2023; Hyper-SD, Ren et al., 2024).

Such weights come in a small file beside a checkpoint: W + scale B A in place of a weight W. They are merged once, so
that a step costs what it did before. They change what the denoiser draws, and how fast, so their name goes into the
settings and the merged weights into the fingerprint.
"""

import warnings
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from zodi.generators.flux import Flux
from zodi.generators.interface import Generator, TransferDefaults
from zodi.support.checkpoints import quietly
from zodi.support.files import one_line

FEW_STEPS = 8


def few_step_defaults(kind: type[Generator], defaults: TransferDefaults) -> TransferDefaults:
    """Settings of a checkpoint with few-step weights, which were distilled with guidance and so replace it.

    FLUX.1 takes its guidance weight as an input, with which the known weights for it were trained.
    """
    guidance_scale = defaults.guidance_scale if kind is Flux else 1.0
    return replace(defaults, num_inference_steps=FEW_STEPS, guidance_scale=guidance_scale)


def add_lora(kind: type[Generator], denoiser: nn.Module, file: Path, scale: float) -> None:
    """Add low-rank weights to a denoiser, in place.

    Args:
        kind: family of the denoiser.
        denoiser: UNet or transformer.
        file: .safetensors, with the names of diffusers, peft or kohya.
        scale: what they are multiplied by; 1 unless their description says otherwise.

    Raises:
        ValueError: if they are damaged or made for another denoiser.
    """
    # The pipeline classes take seconds to import and only this needs them: each knows the names of its weights.
    import diffusers

    prefix = kind.DENOISER
    pipeline = getattr(diffusers, kind.PIPELINE)
    asked = {"unet_config": denoiser.config} if prefix == "unet" else {}
    asked |= {"return_alphas": True} if kind is Flux else {}
    before = {name: (value.shape, value.dtype) for name, value in denoiser.state_dict().items()}
    try:
        with quietly():
            found = pipeline.lora_state_dict(load_file(file), **asked)
            weights, alphas = found if isinstance(found, tuple) else (found, None)
            own = [name for name in weights if name.startswith(f"{prefix}.")]
            if not own:
                raise ValueError(f"found no weights of a {prefix}, but for example {next(iter(weights), 'nothing')!r}")
            denoiser.load_lora_adapter(weights, prefix=prefix, network_alphas=alphas)
            denoiser.fuse_lora(lora_scale=scale)
            denoiser.unload_lora()
    except Exception as error:  # of any type: the libraries raise many
        raise ValueError(
            f"{file}: not low-rank weights for the {type(denoiser).__name__} of this {kind.family} model; expected "
            f"those of an LCM-LoRA or Hyper-SD for the same family. Cause: {one_line(error)}"
        ) from error
    if before != {name: (value.shape, value.dtype) for name, value in denoiser.state_dict().items()}:
        raise ValueError(f"{file}: adds weights that cannot be merged into the {type(denoiser).__name__}")
    if len(own) < len(weights):
        warnings.warn(f"{file}: {len(weights) - len(own)} weights for other parts are not used", stacklevel=3)
    denoiser.requires_grad_(False)
    # Its weights are no longer those of its file.
    if hasattr(denoiser, "loaded_from"):
        del denoiser.loaded_from
