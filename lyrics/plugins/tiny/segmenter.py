"""``tiny-segmenter``: the mask and a token of whatever a box holds.

The image's features are computed once. A grid of samples over each box, and a margin around it, takes both those
features and the pixels themselves, so that edges stay sharp; a small network turns the samples into a mask.

Shapes: B images, K boxes, R samples along each side of a box, C channels, D = C + 4 width of a token, h and w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box, Frame
from lyrics.core.grid_sample import grid_sample
from lyrics.core.masks import Mask
from lyrics.core.types import ImageBatch, Preprocessing, SegmenterOutput
from lyrics.plugins.tiny import TinySegmenterOptions
from lyrics.plugins.tiny.backbone import ConvTrunk, Downsample, ResidualBlock
from lyrics.plugins.tiny.boxes import to_centre_size
from lyrics.plugins.tiny.knows_scenes import KnowsScenes
from lyrics.plugins.tiny.trained_weights import materialize

#: Samples reach beyond the box by this share of its sides at each edge: a detected box may cut off a tip.
MARGIN = 0.125
#: Boxes whose samples are in memory at once.
CHUNK = 128


def regions(frame: Frame, boxes: Sequence[Box]) -> npt.NDArray[np.float64]:
    """Boxes with their margin, xyxy in pixels of the canvas [K,4]; they may reach beyond it."""
    boxes_px_K4 = frame.boxes_to_canvas([box.as_tuple() for box in boxes])
    margin_K4 = np.tile(MARGIN * (boxes_px_K4[:, 2:] - boxes_px_K4[:, :2]), 2)
    return boxes_px_K4 + margin_K4 * np.array([-1, -1, 1, 1])


def sample_points(regions_px_K4: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """The (x, y) in pixels of the canvas of ``size`` x ``size`` samples per region, [K,R,R,2]: centres of equal parts,
    row by row.
    """
    places_R = (np.arange(size) + 0.5) / size
    corner_K2, side_K2 = regions_px_K4[:, :2], regions_px_K4[:, 2:] - regions_px_K4[:, :2]
    x_KR, y_KR = (corner_K2[:, axis, None] + side_K2[:, axis, None] * places_R for axis in (0, 1))
    shape = (len(regions_px_K4), size, size)
    return np.stack([np.broadcast_to(x_KR[:, None, :], shape), np.broadcast_to(y_KR[:, :, None], shape)], axis=-1)


def sample(
    values_CHW: torch.Tensor, points_KRR2: npt.NDArray[np.float64], size_px: tuple[float, float]
) -> torch.Tensor:
    """Bilinear samples [K,C,R,R] of a map that spans ``size_px`` (width, height) pixels; zero outside of it."""
    grid = torch.from_numpy(points_KRR2 / np.array(size_px) * 2 - 1)
    sampled_CKR = grid_sample(values_CHW[None], grid.flatten(0, 1)[None])[0]
    return sampled_CKR.unflatten(1, grid.shape[:2]).transpose(0, 1)


def pasted(logits_RR: torch.Tensor, region_px_4: npt.NDArray[np.float64], frame: Frame) -> Mask:
    """A region's mask logits as a mask of the original image: bilinear, inside where above 0, nothing outside the
    region.
    """
    width, height = frame.original_size
    # Zero-area boxes carry single points through the frame.
    columns_W = frame.boxes_to_canvas(_points((np.arange(width) + 0.5) / width, 0))[:, 0]
    rows_H = frame.boxes_to_canvas(_points(0, (np.arange(height) + 0.5) / height))[:, 1]
    x1, y1, x2, y2 = region_px_4
    inside_W = np.flatnonzero((columns_W >= x1) & (columns_W < x2))
    inside_H = np.flatnonzero((rows_H >= y1) & (rows_H < y2))
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    if inside_W.size and inside_H.size:
        x_hw, y_hw = np.meshgrid((columns_W[inside_W] - x1) / (x2 - x1), (rows_H[inside_H] - y1) / (y2 - y1))
        grid = torch.from_numpy(np.stack([x_hw, y_hw], axis=-1) * 2 - 1)
        logits_hw = grid_sample(logits_RR[None, None], grid[None], padding_mode="border")[0, 0]
        mask_HW[np.ix_(inside_H, inside_W)] = (logits_hw > 0).numpy()
    return Mask.from_array(mask_HW)


def _points(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    x_N, y_N = np.broadcast_arrays(x, y)
    return np.stack([x_N, y_N, x_N, y_N], axis=-1).astype(np.float64)


class LookEncoder(nn.Module):
    """What a masked part looks like, made of its pixels alone: what lies outside of the mask is blank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(Downsample(6, 24), Downsample(24, 64), ResidualBlock(64), ResidualBlock(64))
        self.out = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, pixels_K3RR: torch.Tensor, logits_Krr: torch.Tensor) -> torch.Tensor:
        """Pixels of each region, and mask logits of it on a grid half as fine, whose gradient stops here
        -> [K,width].
        """
        # A little inside of the mask: on its edge pixels are mixed with what is around.
        inside_K1rr = (2 * (logits_Krr.detach()[:, None] - 1)).sigmoid()
        inside_K1RR = F.interpolate(inside_K1rr, scale_factor=2, mode="bilinear")
        line_R = torch.linspace(-1, 1, pixels_K3RR.shape[-1], device=pixels_K3RR.device, dtype=pixels_K3RR.dtype)
        places_2RR = torch.stack(torch.meshgrid(line_R, line_R, indexing="xy"))
        places_K2RR = places_2RR.expand(len(pixels_K3RR), -1, -1, -1)
        shown_K6RR = torch.cat([pixels_K3RR * inside_K1RR, inside_K1RR, places_K2RR], dim=1)
        states_KCss = self.stages(shown_K6RR.contiguous(memory_format=torch.channels_last))
        weights_K1ss = F.adaptive_avg_pool2d(inside_K1rr, states_KCss.shape[-1])
        states_KC = (states_KCss * weights_K1ss).sum((2, 3)) / weights_K1ss.sum((2, 3)).clamp(min=1e-6)
        looks: torch.Tensor = self.out(states_KC)
        return looks


class TinySegmenter(KnowsScenes, nn.Module):
    """Images and boxes -> masks of the original images, and a token per box.

    Local tokens [B,K,width + 4]: the image's features averaged over the mask, and the box (center x, center y, width,
    height; normalized in the original image). With ``look_width`` it is so many channels in place of ``width``, which a
    network of its own makes of the pixels inside the mask and of nothing else.
    """

    #: A token ends in its box.
    tokens_end_in_boxes: Literal[True] = True

    def __init__(self, options: TinySegmenterOptions) -> None:
        super().__init__()
        self.feature_dim = options.feature_dim
        self.preprocessing = Preprocessing(
            resize="longest",
            size=options.image_size,
            pad_to=options.image_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        self.roi_size = options.roi_size
        width = options.width
        self.trunk = ConvTrunk((width // 2, width), (0, options.blocks))
        self.entry = nn.Conv2d(width + 3, width // 2, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width // 2) for _ in range(3))
        self.exit = nn.Conv2d(width // 2, 1, 1)
        self.look = None if options.look_width is None else LookEncoder(options.look_width)

    def predict(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits [K,R,R] over the boxes' ``regions`` and looks [K,C], K counting the batch's boxes image by image.

        Training reads this.
        """
        pixel_mask_BHW = images.pixel_mask_BHW
        features_BChw, _ = self.trunk(images.pixels_BCHW, pixel_mask_BHW)
        pixels_BCHW = images.pixels_BCHW * pixel_mask_BHW[:, None]
        # Empty, but part of the graph: a batch without boxes can be trained on.
        nothing = features_BChw.flatten()[:0]
        logits = [nothing.reshape(0, self.roi_size, self.roi_size)]
        looks = [nothing.reshape(0, self.feature_dim - 4)]
        for pixels_CHW, features_Chw, frame, wanted in zip(
            pixels_BCHW, features_BChw, images.frames, boxes, strict=True
        ):
            for chunk in _chunks(wanted):
                points_KRR2 = sample_points(regions(frame, chunk), self.roi_size)
                pixels_KCRR = sample(pixels_CHW, points_KRR2, (pixels_CHW.shape[2], pixels_CHW.shape[1]))
                stride = self.trunk.stride
                cells_px = (features_Chw.shape[2] * stride, features_Chw.shape[1] * stride)
                features_KCRR = sample(features_Chw, points_KRR2, cells_px)
                samples_KCRR = torch.cat([features_KCRR, pixels_KCRR], dim=1)
                hidden_KCRR = self.entry(samples_KCRR.contiguous(memory_format=torch.channels_last))
                for block in self.blocks:
                    hidden_KCRR = block(hidden_KCRR)
                logits_KRR = self.exit(F.gelu(hidden_KCRR)).squeeze(1)
                logits.append(logits_KRR)
                if self.look is None:
                    weights_K1RR = logits_KRR.sigmoid()[:, None]
                    looks.append((features_KCRR * weights_K1RR).sum((2, 3)) / weights_K1RR.sum((2, 3)).clamp(min=1e-6))
                else:
                    points = sample_points(regions(frame, chunk), 2 * self.roi_size)
                    fine = sample(pixels_CHW, points, (pixels_CHW.shape[2], pixels_CHW.shape[1]))
                    looks.append(self.look(fine, logits_KRR))
        return torch.cat(logits), torch.cat(looks)

    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        """``boxes[i]`` are in image i's original; masks and tokens come in their order."""
        assert len(boxes) == len(images), "one list of boxes per image"
        logits_KRR, looks_KC = self.predict(images, boxes)
        counts = [len(wanted) for wanted in boxes]
        tokens_BKD = looks_KC.new_zeros(len(boxes), max(counts, default=0), self.feature_dim)
        mask_BK = torch.zeros(tokens_BKD.shape[:2], dtype=torch.bool, device=tokens_BKD.device)
        masks: list[tuple[Mask, ...]] = []
        for index, (frame, wanted, found_KC, found_KRR) in enumerate(
            zip(
                images.frames,
                boxes,
                looks_KC.split(counts),
                logits_KRR.detach().float().cpu().split(counts),
                strict=True,
            )
        ):
            boxes_norm_K4 = looks_KC.new_tensor([box.as_tuple() for box in wanted]).reshape(-1, 4)
            tokens_BKD[index, : len(wanted)] = torch.cat([found_KC, to_centre_size(boxes_norm_K4)], dim=-1)
            mask_BK[index, : len(wanted)] = True
            regions_px_K4 = regions(frame, wanted)
            masks.append(
                tuple(pasted(found, region, frame) for found, region in zip(found_KRR, regions_px_K4, strict=True))
            )
        return SegmenterOutput(masks=tuple(masks), tokens_BKD=tokens_BKD, mask_BK=mask_BK)


def _chunks(boxes: Sequence[Box]) -> Iterator[list[Box]]:
    remaining = iter(boxes)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


def build(options: TinySegmenterOptions, context: BuildContext) -> TinySegmenter:
    """The component. Raises ``WeightsError`` where trained weights are asked for and do not fit the options."""
    module = TinySegmenter(options)
    materialize(module, "tiny-segmenter", options, context)
    return module
