"""How large are the generators? Their networks at the published sizes, without weights, counted part by part.

The settings are those of the published checkpoints; T5 is the encoder of T5-XXL. ControlNets are what diffusers makes
of the denoiser for a new training; published ones may be larger or smaller. Only weights are counted: the activations
between the layers come on top, and grow with the image and the batch.
"""

from collections.abc import Callable

import pandas as pd
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from zodi import diffusion
from zodi.support.checkpoints import quietly

# Memory of common graphics cards.
CARDS_GB = (8, 12, 16, 24, 32, 48, 80)


def _vae(latent_channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
        use_quant_conv=latent_channels == 4,
        use_post_quant_conv=latent_channels == 4,
    )


def _clip_l(kind: type = CLIPTextModel) -> nn.Module:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return kind(CLIPTextConfig(**sizes, projection_dim=768))


def _clip_g() -> nn.Module:
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=1280))


def _t5_xxl() -> nn.Module:
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes))


def _stable_diffusion() -> dict[str, nn.Module]:
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
    )
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return {"vae": _vae(), "unet": unet, "controlnet": controlnet, "text_encoder": _clip_l()}


def _sdxl() -> dict[str, nn.Module]:
    unet = UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    texts = {"text_encoder": _clip_l(), "text_encoder_2": _clip_g()}
    return {"vae": _vae(), "unet": unet, "controlnet": controlnet, **texts}


def _stable_diffusion_3(layers: int, **more: object) -> dict[str, nn.Module]:
    """The number of layers is also the number of attention heads, of 64 values each."""
    transformer = SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=layers,
        attention_head_dim=64,
        caption_projection_dim=64 * layers,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
        **more,
    )
    controlnet = SD3ControlNetModel.from_transformer(transformer, load_weights_from_transformer=False)
    clips = {"text_encoder": _clip_l(CLIPTextModelWithProjection), "text_encoder_2": _clip_g()}
    return {"vae": _vae(16), "transformer": transformer, "controlnet": controlnet, **clips, "text_encoder_3": _t5_xxl()}


def _flux() -> dict[str, nn.Module]:
    # Written out: what is left to the defaults would become the ControlNet's own defaults too.
    transformer = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
    controlnet = FluxControlNetModel.from_transformer(transformer, load_weights_from_transformer=False)
    texts = {"text_encoder": _clip_l(), "text_encoder_2": _t5_xxl()}
    return {"vae": _vae(16), "transformer": transformer, "controlnet": controlnet, **texts}


GENERATORS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "Stable Diffusion 1.5": _stable_diffusion,
    "Stable Diffusion XL": _sdxl,
    "Stable Diffusion 3 medium": lambda: _stable_diffusion_3(24),
    "Stable Diffusion 3.5 large": lambda: _stable_diffusion_3(38, qk_norm="rms_norm"),
    "FLUX.1 dev": _flux,
}


def parameters() -> pd.DataFrame:
    """Parameters of every part: one row per generator, one column per part, the miniature first; NaN = no such part."""
    counts = {"miniature": diffusion.examine("mini").parts.set_index("part")["parameters"].to_dict()}
    for name, make in GENERATORS.items():
        with torch.device("meta"), quietly():
            parts = make()
        counts[name] = {part: sum(p.numel() for p in network.parameters()) for part, network in parts.items()}
    table = pd.DataFrame.from_dict(counts, orient="index")
    texts = [column for column in table if column.startswith("text_encoder")]
    return table[["vae", "unet", "transformer", "controlnet", *sorted(texts)]]


def memory() -> pd.DataFrame:
    """Gigabytes of the weights of every generator, and the smallest common card that holds them in 16 bits.

    Columns: denoiser, controlnet, texts, vae and together, in GB at 16 bits; together_float32; card, GB, NaN = none.
    """
    counts = parameters().fillna(0)
    texts = [column for column in counts if column.startswith("text_encoder")]
    table = pd.DataFrame(
        {
            "denoiser": counts["unet"] + counts["transformer"],
            "controlnet": counts["controlnet"],
            "texts": counts[texts].sum(axis=1),
            "vae": counts["vae"],
        }
    )
    table["together"] = table.sum(axis=1)
    table *= 2e-9
    table["together_float32"] = 2 * table["together"]
    table["card"] = [
        min((card for card in CARDS_GB if card > size), default=float("nan")) for size in table["together"]
    ]
    return table
