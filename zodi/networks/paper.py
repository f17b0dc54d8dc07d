"""The paper's segmentation networks that segmentation_models_pytorch lacks: decoders on a plain ResNet.

DeepLabV3+ here keeps the ResNet at output stride 32 without dilation; RefineNet is the full one with 3x3 convolutions
throughout and no batch normalisation after the encoder. Structure and parameter counts are those of the networks in the
authors' program (azuma164/ZoDi); where an initialisation is not known, the docstring says what ours is.
"""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHANNELS = 256
_DEEPEST_CHANNELS = 512


class EncoderDecoder(nn.Module):
    """Encoder, decoder and head under the names that smp's own models have."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = segmentation_head


# ---------------------------------------------------------------- DeepLabV3+


def _conv_bn_relu(inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _ASPP(nn.Module):
    """Atrous spatial pyramid pooling with plain convolutions (Chen et al. 2017), dropout 0.5 at the end."""

    def __init__(self, inputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        branches = [_conv_bn_relu(inputs, _CHANNELS, 1)]
        branches += [_conv_bn_relu(inputs, _CHANNELS, 3, rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv_bn_relu(inputs, _CHANNELS, 1))
        self.project = _conv_bn_relu((len(branches) + 1) * _CHANNELS, _CHANNELS, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        parts.append(self.pooled(x).expand(-1, -1, *x.shape[2:]))
        return self.dropout(self.project(torch.cat(parts, 1)))


class _DeepLabDecoder(nn.Module):
    """ASPP on the deepest features, joined with a projection of those at a quarter of the size."""

    def __init__(self, encoder_channels: list[int]) -> None:
        super().__init__()
        self.aspp = _ASPP(encoder_channels[-1], rates=(6, 12, 18))
        self.low_level = _conv_bn_relu(encoder_channels[2], 48, 1)
        self.fuse = _conv_bn_relu(_CHANNELS + 48, _CHANNELS, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.low_level(features[2])
        deep = F.interpolate(self.aspp(features[-1]), low.shape[2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([low, deep], 1))


def paper_deeplabv3plus(encoder: str, classes: int) -> EncoderDecoder:
    """DeepLabV3+ as the paper trains it: 39.76 M parameters with ResNet-50 and 20 outputs, 41.6 GMAC at 384 x 768.

    Args:
        encoder: a ResNet of smp without dilation, "resnet50" or "resnet101" in the paper.
        classes: outputs per pixel.
    """
    backbone = smp.encoders.get_encoder(encoder, weights=None)
    decoder = _DeepLabDecoder(backbone.out_channels)
    upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    head = nn.Sequential(nn.Conv2d(_CHANNELS, classes, 1), upsample)
    for part in (decoder, head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return EncoderDecoder(backbone, decoder, head)


# ---------------------------------------------------------------- RefineNet


def _conv3x3(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))) (Lin et al. 2017, Figure 3b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv3x3(channels, channels, bias=True)
        self.second = _conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class _ChainedResidualPooling(nn.Module):
    """x plus a chain of four 5x5 poolings with a convolution each (Lin et al. 2017, Figure 3d)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([_conv3x3(channels, channels) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        total = path = F.relu(x)
        for convolution in self.convolutions:
            path = convolution(F.max_pool2d(path, 5, stride=1, padding=2))
            total = total + path
        return total


class _RefineBlock(nn.Module):
    """Adapts the encoder's features of one size and joins them with those of the block below, if there is one."""

    def __init__(self, inputs: int, channels: int, deeper_channels: int | None) -> None:
        super().__init__()
        self.reduce = _conv3x3(inputs, channels)
        self.adapt = nn.Sequential(_ResidualConvUnit(channels), _ResidualConvUnit(channels))
        self.fuse = self.fuse_deeper = None
        if deeper_channels is not None:
            self.fuse, self.fuse_deeper = _conv3x3(channels, channels), _conv3x3(deeper_channels, channels)
        self.pool = _ChainedResidualPooling(channels)
        # One unit of its own and two that the paper counts as part of the next block's input.
        self.output = nn.Sequential(*[_ResidualConvUnit(channels) for _ in range(3)])

    def forward(self, features: Tensor, deeper: Tensor | None) -> Tensor:
        x = self.adapt(self.reduce(features))
        if deeper is not None:
            size = x.shape[2:]
            x = self.fuse(x) + F.interpolate(self.fuse_deeper(deeper), size, mode="bilinear", align_corners=True)
        return self.output(self.pool(x))


class _RefineNetDecoder(nn.Module):
    """Four blocks from the deepest features up; dropout on the inputs of the two deepest."""

    def __init__(self, encoder_channels: list[int]) -> None:
        super().__init__()
        widths = [_DEEPEST_CHANNELS, _CHANNELS, _CHANNELS, _CHANNELS]
        deeper = [None, *widths[:-1]]
        inputs = encoder_channels[:1:-1]
        self.blocks = nn.ModuleList([_RefineBlock(*shape) for shape in zip(inputs, widths, deeper, strict=True)])
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: list[Tensor]) -> Tensor:
        inputs = features[:1:-1]
        x = None
        for index, (block, part) in enumerate(zip(self.blocks, inputs, strict=True)):
            x = block(self.dropout(part) if index < 2 else part, x)
        return x


def paper_refinenet(encoder: str, classes: int) -> EncoderDecoder:
    """RefineNet as the paper trains it: 99.06 M parameters with ResNet-50 and 20 outputs, 286.6 GMAC at 384 x 768.

    The classifier runs at full resolution: only then does the number of operations agree. Convolutions of decoder and
    head start from a normal distribution with standard deviation 0.01, which is our choice.

    Args:
        encoder: a ResNet of smp, "resnet50" in the paper.
        classes: outputs per pixel.
    """
    backbone = smp.encoders.get_encoder(encoder, weights=None)
    decoder = _RefineNetDecoder(backbone.out_channels)
    upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
    head = nn.Sequential(upsample, nn.Dropout(0.5), _conv3x3(_CHANNELS, classes, bias=True))
    for part in (decoder, head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return EncoderDecoder(backbone, decoder, head)


PAPER_NETWORKS = {"PaperDeepLabV3Plus": paper_deeplabv3plus, "PaperRefineNet": paper_refinenet}
