"""Images that are arrays: numpy's [H,W,C] and torch's [C,H,W], as PIL images.

Shapes: C color channels, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lyrics.core.errors import ImageError

_SHAPES = "a numpy array [H,W], [H,W,1], [H,W,3] or [H,W,4], or a torch tensor [H,W], [1,H,W], [3,H,W] or [4,H,W]"


def image_of_array(source: npt.NDArray[np.generic] | torch.Tensor) -> Image.Image:
    """Return the image that an array holds, in gray, RGB or RGBA.

    Args:
        source: numpy [H,W], [H,W,1], [H,W,3] or [H,W,4]; torch [H,W], [1,H,W], [3,H,W] or [4,H,W], on any device.
            Values are uint8 from 0 to 255, or floats from 0 to 1. Channels are in the order red, green, blue, opacity.

    Raises:
        ImageError: another shape, another type, or values out of range.
    """
    if isinstance(source, torch.Tensor):
        name, shape = "torch tensor", tuple(source.shape)
        values = source.detach().cpu()
        # numpy has no bfloat16.
        array: npt.NDArray[np.generic] = (values.float() if values.is_floating_point() else values).numpy()
        if len(shape) == 3:
            hint = "; give tensor.permute(2, 0, 1)" if shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4) else ""
            if shape[0] not in (1, 3, 4):
                raise _wrong(name, f"of shape {list(shape)}", hint)
            array = array.transpose(1, 2, 0)
    else:
        name, shape, array = "numpy array", source.shape, source
        if len(shape) == 3 and shape[2] not in (1, 3, 4):
            hint = "; give array.transpose(1, 2, 0)" if shape[0] in (1, 3, 4) else ""
            raise _wrong(name, f"of shape {list(shape)}", hint)
    if len(shape) not in (2, 3):
        hint = f"; give a batch as list({name.split()[1]})" if len(shape) == 4 else ""
        raise _wrong(name, f"of shape {list(shape)}", hint)
    if array.size == 0:
        raise ImageError(f"image: {array.shape[1]} x {array.shape[0]} pixels: nothing to see.", "empty")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_bytes(array, name)))


def _bytes(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array  # type: ignore[return-value]
    if not np.issubdtype(array.dtype, np.floating):
        raise _wrong(name, f"of type {array.dtype}", "; values are uint8 from 0 to 255, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())  # type: ignore[arg-type]
    if not (low >= 0 and high <= 1):  # NaN is neither
        hint = "; divide by 255" if 1 < high <= 255 and low >= 0 else ""
        raise ImageError(
            f"image: a {name} of floats from {low:g} to {high:g}; they must lie from 0 to 1{hint}.", "format"
        )
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _wrong(name: str, what: str, hint: str) -> ImageError:
    return ImageError(f"image: a {name} {what}; an image is {_SHAPES}{hint}.", "format")
