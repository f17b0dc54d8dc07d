"""Networks of segmentation_models_pytorch: convolutional and hierarchical encoders, and plain vision transformers.

"Segformer/mit_b0" .. "mit_b5" is SegFormer, "UPerNet/tu-ENCODER" takes any encoder of timm with features at four sizes,
"DPT/tu-ENCODER" the plain vision transformers, including DINOv2 and DINOv3.
"""

import segmentation_models_pytorch as smp
from timm.models import is_model_in_modules
from torch import Tensor, nn

# Families of timm that can be told to take images of any size.
_ANY_SIZE = ["vision_transformer", "eva"]


def create(architecture: str, encoder: str, outputs: int, pretrained: bool, **arguments: object) -> nn.Module:
    """A model of segmentation_models_pytorch with `encoder`, `decoder` and `segmentation_head`.

    A plain vision transformer takes images of any size, its position embedding interpolated. DPT scales features by
    powers of two, so that a patch of 14 pixels, DINOv2's, becomes one of 16; timm resamples pretrained filters
    (Beyer et al., FlexiViT, CVPR 2023).

    Args:
        architecture, encoder: names, see `zodi.segmentation.build_network`.
        outputs: of the head, per pixel.
        pretrained: get the encoder's weights from the hub.
        arguments: passed to the architecture.

    Raises:
        ValueError: if the encoder does not suit the architecture; the library raises other errors too.
    """
    transformer = encoder.removeprefix("tu-")
    if is_model_in_modules(transformer.partition(".")[0], _ANY_SIZE):
        if architecture.lower() != "dpt":
            raise ValueError("a plain vision transformer has features of one size only; choose DPT")
        arguments = {"dynamic_img_size": True} | arguments
        if "patch14" in transformer:
            arguments = {"patch_size": 16} | arguments
    # For timm's encoders, the weights are part of the name.
    weights = (True if encoder.startswith("tu-") else "imagenet") if pretrained else None
    return smp.create_model(architecture, encoder, encoder_weights=weights, classes=outputs, **arguments)


def logits_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C, H, W) and the deepest encoder features (B, D, h, w) of a model from `create` or a similar one.

    Raises:
        ValueError: if the encoder takes images of another size only.
    """
    try:
        features = model.encoder(x)
    except AssertionError as error:
        raise ValueError(
            f"encoder {type(model.encoder).__name__}: cannot take images of {x.shape[2]} x {x.shape[3]} pixels "
            f"({error}); it was built for one size. Build it for yours (img_size=(H, W)) or choose another encoder"
        ) from error
    # The features of a plain vision transformer come with tokens for the whole image.
    features, *tokens = features if isinstance(features, tuple) else (features,)
    return model.segmentation_head(model.decoder(features, *tokens)), features[-1]
