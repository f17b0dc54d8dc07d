"""What may be added to a checkpoint when it is loaded: ControlNets, weights for few steps, a variant of its weights.

Loads neither torch nor diffusers, because the command line makes its options from it.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Additions:
    """What is added to a checkpoint.

    Attributes:
        controlnet: folder, hub id or single .safetensors file of the ControlNet, the file with diffusers' names and the
            shapes that the UNet requires. None = the checkpoint's own `controlnet/` subfolder when it has one, else for
            Stable Diffusion the ControlNet that the paper uses.
        control_kind: number of the kind of map that the layout is, for a ControlNet that reads several ("union");
            None = segmentation, for SDXL.
        second_control: another ControlNet, for a second map per image (depth, edges); given like `controlnet`.
        second_weight: what the second one's residuals are multiplied by, at least 0; 1 = unchanged.
        second_kind: like `control_kind`, for the second one.
        lora: low-rank weights that let the denoiser draw in 4 to 8 steps (LCM-LoRA, Hyper-SD): a .safetensors file, its
            folder, a hub id, or a hub id followed by the file's name. The defaults become 8 steps without guidance.
        lora_scale: what these weights are multiplied by, normally 1.
        variant: of the UNet's weights, "non_ema" for those that the authors used; None = the averaged ones. Other parts
            use the variant where they have it: with "fp16" a folder with nothing but `*.fp16.safetensors` is read.
    """

    controlnet: str | Path | None = None
    control_kind: int | None = None
    second_control: str | Path | None = None
    second_weight: float = 1.0
    second_kind: int | None = None
    lora: str | Path | None = None
    lora_scale: float = 1.0
    variant: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a weight out of range."""
        if self.second_weight < 0:
            raise ValueError(f"second_weight={self.second_weight}: expected at least 0")
