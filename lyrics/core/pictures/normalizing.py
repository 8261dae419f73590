"""Pixels from bytes to what an expert reads, on the device that they are needed on: a quarter of the bytes travels.

Letters: B images, C color channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lyrics.core.types import ImageBatch
from lyrics.kernels.upload import to_device_soon


def normalized(batch: ImageBatch) -> ImageBatch:
    """Return the batch with float32 pixels as its expert reads them: scaled, normalized, zero where there is padding.

    Equal to what the processor makes on the host, to the rounding of float32. Nothing is waited for. A batch that is
    normalized is returned as it is.
    """
    how = batch.to_normalize
    if how is None:
        return batch
    pixels_BCHW = batch.pixels_BCHW.contiguous().to(torch.float32).div_(255.0)
    for channel, (mean, std) in enumerate(zip(how.mean, how.std, strict=True)):
        pixels_BCHW[:, channel].sub_(mean).div_(std)
    height, width = pixels_BCHW.shape[2:]
    sizes = [frame.size for frame in batch.frames]
    if any(size != (width, height) for size in sizes):
        device = pixels_BCHW.device
        size_2B = to_device_soon(torch.tensor(sizes, dtype=torch.int64).T.contiguous(), device)
        across_BW = torch.arange(width, device=device) >= size_2B[0][:, None]
        down_BH = torch.arange(height, device=device) >= size_2B[1][:, None]
        pixels_BCHW.masked_fill_((down_BH[:, :, None] | across_BW[:, None, :])[:, None], 0.0)
    return replace(batch, pixels_BCHW=pixels_BCHW, to_normalize=None)
