"""A convolutional trunk in which an image's features depend on that image alone.

Images of different sizes share a batch padded on the right and at the bottom. Everything outside an image is set to
zero after every operation that could have written there, which is what a convolution pads with by itself, and
normalisation is over channels only, so neither the padding nor the other images of the batch reach a feature.

Shapes: B images, C channels, H and W pixels or cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B,C,H,W], each position by itself."""

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(features_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves the resolution, rounding up: a 3 x 3 convolution of stride 2."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.norm = ChannelNorm(channels_out)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.norm(self.convolution(features_BCHW)))


class ResidualBlock(nn.Module):
    """Depth-wise 5 x 5 convolution, then a two-layer perceptron at each position (the block of ConvNeXt, Liu et al.
    2022, figure 4).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        hidden_BHWC = self.norm(self.depthwise(features_BCHW).permute(0, 2, 3, 1))
        hidden_BHWC = self.project(F.gelu(self.expand(hidden_BHWC)))
        return features_BCHW + hidden_BHWC.permute(0, 3, 1, 2)


class ConvTrunk(nn.Module):
    """Stages that halve the resolution and then refine it.

    Args:
        widths: channels of each stage.
        blocks: residual blocks of each stage, as many numbers as ``widths``.

    The stride is ``2 ** len(widths)``; an image of ``w`` pixels has ``ceil(w / stride)`` cells.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        assert len(widths) == len(blocks)
        self.stride = 2 ** len(widths)
        self.downsamples = nn.ModuleList(Downsample(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width) for _ in range(count))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.norm = ChannelNorm(widths[-1])

    def forward(self, pixels_BCHW: torch.Tensor, pixel_mask_BHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B,3,H,W] and their bool mask [B,H,W] -> features [B,C,h,w], zero outside the image, and the bool
        mask [B,h,w].
        """
        mask_BHW = pixel_mask_BHW
        # Channels last: normalisation and perceptrons then read memory in order, and CPU training is several times
        # faster.
        features_BCHW = (pixels_BCHW * mask_BHW[:, None]).contiguous(memory_format=torch.channels_last)
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            mask_BHW = mask_BHW[:, ::2, ::2]
            features_BCHW = downsample(features_BCHW) * mask_BHW[:, None]
            for block in stage:  # type: ignore[attr-defined]
                features_BCHW = block(features_BCHW) * mask_BHW[:, None]
        return self.norm(features_BCHW) * mask_BHW[:, None], mask_BHW
