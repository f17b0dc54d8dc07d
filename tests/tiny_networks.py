"""Tiny random checkpoints of transformers' segmentation networks, saved as the real ones are."""

from pathlib import Path

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from zodi.labels import CITYSCAPES

SEGFORMER = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 2],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 2],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 10,
}


def segformer(names: tuple[str, ...] = CITYSCAPES.names) -> SegformerForSemanticSegmentation:
    """SegFormer with random weights for these classes."""
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER, id2label=dict(enumerate(names)))).eval()


def mask2former(names: tuple[str, ...] = CITYSCAPES.names) -> Mask2FormerForUniversalSegmentation:
    """Mask2Former on a Swin transformer with random weights for these classes."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN), **MASK2FORMER, id2label=dict(enumerate(names)))
    model = Mask2FormerForUniversalSegmentation(config).eval()
    # Queries with small random weights are alike, and every pixel would have the same class.
    transformer = model.model.transformer_module
    masks = transformer.decoder.mask_predictor.mask_embedder
    for layer in (module for module in masks.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.normal_(transformer.queries_features.weight, std=1.0)
    torch.nn.init.normal_(model.class_predictor.weight, std=0.3)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write a checkpoint in safetensors."""
    model.save_pretrained(folder)
    return folder
