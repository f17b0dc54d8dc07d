"""What the method asks of a generator, and the settings that belong to a checkpoint."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from zodi.generators.schedules import Schedule, Time
from zodi.support.runs import image_format

# (latents z, time t) -> what the networks predict, float (B, C, h, w) like z.
Predict = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True)
class TransferDefaults:
    """Transfer settings that belong to a checkpoint; the values here are the paper's for Stable Diffusion 1.5.

    Attributes:
        guidance_scale: classifier-free guidance weight, 1 = none.
        num_inference_steps: steps of the whole DDIM grid.
        short_side: pixels that the shorter image side is resized to.
        multiple: pixels; both sides are rounded to multiples of it (VAE times UNet downsampling).
        palette: colours that layouts are drawn with, "cityscapes" or "ade20k".
        strengths: strengths of domains instead of the paper's, 0 .. 1.
    """

    guidance_scale: float = 9.0
    num_inference_steps: int = 20
    short_side: int = 512
    multiple: int = 64
    palette: str = "cityscapes"
    strengths: dict[str, float] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What every transfer with the checkpoint shares: all but the strengths."""
        return {name: value for name, value in asdict(self).items() if name != "strengths"}


PAPER_DEFAULTS = TransferDefaults()


@dataclass(frozen=True)
class Prompts:
    """Embeddings of B prompts.

    Attributes:
        tokens: (B, L, D), one vector per token.
        pooled: (B, P), one vector per prompt, for the families that take one; else None.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def row(self, index: int) -> "Prompts":
        """One prompt of them, B = 1."""
        rows = slice(index, index + 1)
        return Prompts(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def expanded(self, like: Tensor, dtype: torch.dtype) -> "Prompts":
        """One row for all, or one row each, on the device of `like`."""
        return Prompts(*(None if part is None else expand(part, like, dtype) for part in (self.tokens, self.pooled)))

    def followed_by(self, other: "Prompts") -> "Prompts":
        """Both in one batch, these first."""
        pooled = None if self.pooled is None else torch.cat([self.pooled, other.pooled])
        return Prompts(torch.cat([self.tokens, other.tokens]), pooled)


def expand(tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """One row for all, or one row each, on the device of `like`."""
    return tensor.expand(len(like), *tensor.shape[1:]).to(like.device, dtype)


@dataclass(frozen=True)
class Control:
    """A ControlNet.

    Attributes:
        network: of the class that the family takes.
        weight: what its residuals are multiplied by, at least 0.
        kind: number of the kind of map, for a network that reads several ("union"); None for one that reads one.
    """

    network: nn.Module
    weight: float = 1.0
    kind: int | None = None


@dataclass(frozen=True)
class Loaded:
    """What every generator has besides the parts of its checkpoint, given by name; see `Generator`."""

    _: KW_ONLY
    compiled: bool = False
    control_kind: int | None = None
    second: Control | None = None
    lora: str = ""


class Generator(Loaded, ABC):
    """A latent generative model with ControlNets, ready for inference. Families are frozen dataclasses.

    Attributes:
        family: what it is called in messages.
        name: "mini", the hub id or the name of the folder; goes into manifests and tables.
        vae: images in -1 .. 1 <-> latents.
        controlnet: reads the layout image, 0 .. 1 RGB at image resolution; None if there is none.
        scheduler: the checkpoint's.
        defaults: settings that the checkpoint was made for.
        compiled: whether the networks go through torch.compile, which takes a minute for every new batch size.
        control_kind: `Control.kind` of the ControlNet.
        second: another ControlNet, which reads a second map.
        lora: name of the few-step weights that were added to the denoiser; "" = none.
    """

    # What a checkpoint of the family consists of: networks and tokenizers by subfolder, with the classes they may have.
    family: ClassVar[str]
    PARTS: ClassVar[dict[str, tuple[type, ...]]]
    TOKENIZERS: ClassVar[dict[str, type]]
    # The part that predicts.
    DENOISER: ClassVar[str]
    # Parts, besides the ControlNet, that it may lack.
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    SCHEDULER: ClassVar[type]
    # The class of diffusers that writes it.
    PIPELINE: ClassVar[str]
    # Hub ids of ControlNets that read segmentation maps.
    CONTROLNETS: ClassVar[tuple[str, ...]] = ()
    # For a checkpoint that brings none of its own.
    DEFAULTS: ClassVar[TransferDefaults]
    # `Control.kind` of a layout, for a union ControlNet where the user names none.
    SEGMENTATION_KIND: ClassVar[int | None] = None

    name: str
    vae: AutoencoderKL | AutoencoderTiny
    controlnet: nn.Module | None
    scheduler: Any
    defaults: TransferDefaults

    # ------------------------------------------------------------ what a family defines

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Pixels: a working size must be a multiple of it to survive every downsampling."""

    @abstractmethod
    def embed(self, prompts: list[str]) -> Prompts:
        """Embeddings of prompts, padded to the tokenizer's length; longer ones are cut with a warning."""

    @abstractmethod
    def schedule(self, z: Tensor) -> Schedule:
        """A new schedule for latents of this size."""

    @abstractmethod
    def predictor(
        self,
        z: Tensor,
        prompt: Prompts,
        maps: Sequence[Tensor],
        negative: Prompts | None = None,
        guidance_scale: float = 1.0,
    ) -> Predict:
        """The networks as a function of latents and time, with guidance.

        Args:
            z: latents of the batch, for its size and device.
            prompt, negative: of one row or of B rows; the second is not needed without guidance.
            maps: (B or 1, 3, H, W) each, RGB 0 .. 1: the layout, and for a second ControlNet its map.
            guidance_scale: weight w; exactly 1 = none.
        """

    # ------------------------------------------------------------ the same for all

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        return getattr(self, self.DENOISER)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.denoiser.dtype

    def networks(self) -> dict[str, nn.Module]:
        """The networks that the model has, each once, by part."""
        parts = {part: getattr(self, part) for part in self.PARTS if getattr(self, part) is not None}
        is_another = self.second is not None and self.second.network is not self.controlnet
        return parts | {"second_control": self.second.network} if is_another else parts

    def controls(self, maps: Sequence[Tensor]) -> list[tuple[Control, Tensor]]:
        """Each ControlNet with its map.

        Raises:
            ValueError: if there are more or fewer maps than ControlNets.
        """
        found = [Control(self.controlnet, kind=self.control_kind), *([self.second] if self.second else [])]
        if len(maps) != len(found):
            raise ValueError(
                f"model {self.name!r} has {len(found)} ControlNets, found {len(maps)} maps per image; give a second "
                "map (--second-maps) with a second ControlNet (--second-control), and none without"
            )
        return list(zip(found, maps, strict=True))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents of images, see `zodi.diffusion.encode`."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images: found shape {tuple(images.shape)}, expected (B, H, W, 3)")
        scale = 127.5 if images.dtype == torch.uint8 else 0.5
        x = images.to(self.device).permute(0, 3, 1, 2).float().div(scale).sub(1)
        return finite(self.latents_of(x, self.shift), self, "VAE's encoder")

    def latents_of(self, x: Tensor, shift: float) -> Tensor:
        """Scaled latents of pixels -1 .. 1, (B, 3, H, W) -> float32 (B, C, h, w); the VAE's mean, without sampling."""
        x = x.to(self.vae.dtype).contiguous(memory_format=image_format(x.device))
        encoded = self.vae.encode(x)
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        latents = latents.float() - shift if shift else latents.float()
        return latents * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of scaled latents, see `zodi.diffusion.decode`."""
        x = finite(latents, self, "UNet, ControlNet or text encoder") / self.vae.config.scaling_factor
        x = (x + self.shift if self.shift else x).to(self.device, self.vae.dtype)
        x = x.contiguous(memory_format=image_format(x.device))
        images = finite(self.vae.decode(x).sample, self, "VAE's decoder").float()
        return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()

    @property
    def pixels_per_latent(self) -> int:
        """Downsampling of the VAE."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def shift(self) -> float:
        """Mean of the latents, for the VAEs that have one."""
        return (getattr(self.vae.config, "shift_factor", None) or 0.0) if isinstance(self.vae, AutoencoderKL) else 0.0


def finite(values: Tensor, model: Generator, network: str) -> Tensor:
    """The values, if all are finite numbers; otherwise the picture would be black, without a word."""
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise ValueError(
            f"model {model.name!r}: found {wrong} of {values.numel()} values from the {network} that are infinite or "
            f"not a number, expected none in {model.dtype}; use float32 (--dtype) or, where it is that, another "
            "checkpoint: this one is damaged"
        )
    return values


# ---------------------------------------------------------------- what several families need


def added_up(residuals: Sequence[Sequence[Tensor] | None]) -> list[Tensor] | None:
    """Residuals of several ControlNets, one for all; None for ControlNets that have none of this kind.

    Raises:
        ValueError: if they are for different blocks.
    """
    found = [blocks for blocks in residuals if blocks is not None]
    if len({len(blocks) for blocks in found}) > 1:
        raise ValueError(
            f"two ControlNets: found {[len(blocks) for blocks in found]} blocks, expected the same number; choose a "
            "second ControlNet of the same size"
        )
    return [torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)] or None


def embed_by_clip(encoder: nn.Module, tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """The last layer but one of a CLIP text encoder, (B, L, D), and its vector for the whole prompt, (B, P)."""
    ids = tokens_of(tokenizer, prompts, tokenizer.model_max_length, 2)
    found = encoder(ids.to(encoder.device), output_hidden_states=True)
    return found.hidden_states[-2], found[0]


def embed_by_t5(encoder: nn.Module, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    """A T5 encoder's last layer, (B, length, D)."""
    ids = tokens_of(tokenizer, prompts, length, 1)
    return encoder(ids.to(encoder.device)).last_hidden_state


def tokens_of(tokenizer: Any, prompts: list[str], length: int, added: int) -> Tensor:
    """Token numbers (B, length) of prompts, padded; longer ones are cut with a warning.

    Args:
        tokenizer: of transformers.
        prompts: B texts.
        length: tokens per prompt.
        added: tokens that every text gets in addition to its own: start and end.
    """
    for prompt in prompts:
        found = len(tokenizer.tokenize(prompt)) + added
        if found > length:
            warnings.warn(f"prompt {prompt!r} has {found} tokens; only the first {length} are used", stacklevel=4)
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
