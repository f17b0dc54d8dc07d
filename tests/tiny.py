"""Tiny random checkpoints of the classes that the real ones have, and small folders of images, for the tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zodi.diffusion import DiffusionModel, TransferDefaults

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
