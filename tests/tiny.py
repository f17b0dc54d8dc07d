"""Tiny random checkpoints of the classes that the real ones have, and small folders of images, for the tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from zodi.diffusion import DiffusionModel, TransferDefaults
from zodi.generators.flux import Flux
from zodi.generators.sdxl import StableDiffusionXL
from zodi.generators.stable_diffusion_3 import StableDiffusion3
from zodi.support.checkpoints import quietly

MINI_DEFAULTS = TransferDefaults(guidance_scale=2.0, num_inference_steps=20, short_side=16, multiple=16)


def tokenizer(length: int = 32) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word letter by letter."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def scheduler(prediction_type: str = "epsilon", zero_snr: bool = False) -> DDIMScheduler:
    """Stable Diffusion's schedule; with `zero_snr` the miniature's."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )


def unet(in_channels: int = 4) -> UNet2DConditionModel:
    """A UNet of two levels with random weights."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def networks(conditioning_channels: tuple[int, ...]) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """UNet and ControlNet with random weights; every part of the ControlNet has an effect."""
    network = unet()
    controlnet = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=conditioning_channels)
    outputs = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [*outputs, controlnet.controlnet_cond_embedding.conv_out]:
        nn.init.normal_(convolution.weight, std=0.2)
    return network.eval().requires_grad_(False), controlnet.eval().requires_grad_(False)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder of one layer."""
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def mini(seed: int = 0) -> DiffusionModel:
    """The miniature's format: AutoencoderTiny with downsampling 4, v-prediction, zero terminal SNR."""
    torch.manual_seed(seed)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=1.5,
    )
    tokens = tokenizer()
    parts = (vae.eval().requires_grad_(False), *networks((4, 8, 8)), text_encoder(tokens), tokens)
    return DiffusionModel("tiny-mini", *parts, scheduler("v_prediction", zero_snr=True), MINI_DEFAULTS)


def stable_diffusion(seed: int = 0) -> DiffusionModel:
    """Stable Diffusion 1.5's format: AutoencoderKL with downsampling 8, epsilon prediction."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    tokens = tokenizer()
    parts = (vae.eval().requires_grad_(False), *networks((4, 8, 8, 8)), text_encoder(tokens), tokens)
    return DiffusionModel("tiny-sd", *parts, scheduler())


def instruct_pix2pix(seed: int = 0) -> DiffusionModel:
    """InstructPix2Pix's format: Stable Diffusion's with a UNet that sees an image, and no ControlNet."""
    model = stable_diffusion(seed)
    return replace(model, name="tiny-ip2p", unet=unet(8).eval().requires_grad_(False), controlnet=None)


# ---------------------------------------------------------------- other families

FAMILIES = ("sdxl", "sdxl_union", "stable_diffusion_3", "flux")
SMALL = {"num_inference_steps": 4, "short_side": 32, "multiple": 32}


def noisy(network: nn.Module, std: float = 0.2) -> nn.Module:
    """The network with random numbers where a new ControlNet has zeros: every part has an effect."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=std)
    return network.eval().requires_grad_(False)


def autoencoder(latent_channels: int = 4, **config: object) -> AutoencoderKL:
    """Downsampling 8. The spread of its latents is nearly nothing, so that to sample from it is to take the mean."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **config,
    )
    with torch.no_grad():
        vae.encoder.conv_out.weight[latent_channels:] = 0
        vae.encoder.conv_out.bias[latent_channels:] = -30
    return vae.eval().requires_grad_(False)


def clip(tokens: CLIPTokenizer, width: int = 16, kind: type = CLIPTextModelWithProjection) -> nn.Module:
    """A CLIP text encoder of two layers, with a vector for the whole prompt."""
    settings = text_encoder(tokens).config.to_dict() | {"hidden_size": width, "num_hidden_layers": 2}
    return kind(CLIPTextConfig(**settings | {"projection_dim": 16})).eval().requires_grad_(False)


def t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    """A T5 encoder of one layer, width 32, and a tokenizer that spells every word letter by letter."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    tokens = T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=len(tokens), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval().requires_grad_(False), tokens


def sdxl(seed: int = 0, union: bool = False) -> StableDiffusionXL:
    """Stable Diffusion XL's format: two text encoders, and a UNet that is told the size of the image."""
    torch.manual_seed(seed)
    tokens, tokens_2 = tokenizer(), tokenizer()
    network = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16 + 24,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    shared = {
        name: network.config[name]
        for name in (
            "block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups",
            "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
            "down_block_types",
        )
    }  # fmt: skip
    shared["conditioning_embedding_out_channels"] = (4, 8, 8, 8)
    if union:
        channels = {"num_trans_channel": 8, "num_proj_channel": 8, "num_trans_head": 2}
        controlnet = ControlNetUnionModel(**shared, **channels)
        for parameter in (controlnet.task_embedding, controlnet.control_add_embedding.linear_1.weight):
            nn.init.normal_(parameter)
    else:
        controlnet = ControlNetModel(**shared)
    return StableDiffusionXL(
        name="tiny-sdxl-union" if union else "tiny-sdxl",
        vae=autoencoder(scaling_factor=0.13),
        unet=network.eval().requires_grad_(False),
        controlnet=noisy(controlnet),
        text_encoder=clip(tokens, 16, CLIPTextModel),
        tokenizer=tokens,
        text_encoder_2=clip(tokens_2, 24),
        tokenizer_2=tokens_2,
        scheduler=scheduler(),
        defaults=TransferDefaults(guidance_scale=5.0, palette="ade20k", **SMALL),
        control_kind=5 if union else None,
    )


def sdxl_union(seed: int = 0) -> StableDiffusionXL:
    """`sdxl` with a ControlNet that reads several kinds of map."""
    return sdxl(seed, union=True)


def stable_diffusion_3(seed: int = 0, with_t5: bool = True) -> StableDiffusion3:
    """Stable Diffusion 3's format: three text encoders, a transformer, flow matching."""
    torch.manual_seed(seed)
    shared = {
        "sample_size": 8,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 16,
        "num_layers": 2,
    }
    tokens, tokens_2 = tokenizer(), tokenizer()
    encoder_3, tokens_3 = t5() if with_t5 else (None, None)
    return StableDiffusion3(
        name="tiny-sd3",
        vae=autoencoder(16, scaling_factor=1.5, shift_factor=0.06),
        transformer=noisy(SD3Transformer2DModel(**shared)),
        controlnet=noisy(SD3ControlNetModel(**shared | {"num_layers": 1})),
        text_encoder=clip(tokens, 8),
        tokenizer=tokens,
        text_encoder_2=clip(tokens_2, 16),
        tokenizer_2=tokens_2,
        text_encoder_3=encoder_3,
        tokenizer_3=tokens_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        defaults=TransferDefaults(guidance_scale=4.0, **SMALL),
    )


def flux(seed: int = 0, guidance_embeds: bool = True, num_mode: int | None = None) -> Flux:
    """FLUX.1's format: a transformer that takes the guidance weight as an input, flow matching."""
    torch.manual_seed(seed)
    shared = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    tokens = tokenizer()
    encoder_2, tokens_2 = t5()
    with quietly():
        controlnet = noisy(FluxControlNetModel(**shared, num_mode=num_mode))
    return Flux(
        name="tiny-flux",
        vae=autoencoder(4, scaling_factor=0.36, shift_factor=0.1),
        transformer=noisy(FluxTransformer2DModel(**shared, guidance_embeds=guidance_embeds)),
        controlnet=controlnet,
        text_encoder=clip(tokens, 16, CLIPTextModel),
        tokenizer=tokens,
        text_encoder_2=encoder_2,
        tokenizer_2=tokens_2,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        defaults=TransferDefaults(guidance_scale=3.5 if guidance_embeds else 1.0, **SMALL),
        control_kind=None if num_mode is None else 0,
    )


def write_dataset(root: Path, count: int = 3, height: int = 16, width: int = 32) -> tuple[Path, Path]:
    """Folders of random images and label maps with keys frame0, frame1, ..."""
    rng = np.random.default_rng(0)
    images, labels = root / "images", root / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for index in range(count):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(images / f"frame{index}.png")
        label = rng.integers(0, 19, (height, width), dtype=np.uint8)
        label[0, 0] = 255
        Image.fromarray(label).save(labels / f"frame{index}.png")
    return images, labels
