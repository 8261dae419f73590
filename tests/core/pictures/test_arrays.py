"""Images as numpy arrays and torch tensors, of every shape and type that is read, and those that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.core.pictures.images import open_image, picture_name

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 13
OPAQUE = np.dstack([RGB, np.full((2, 3, 1), 255, np.uint8)])
TENSOR = torch.from_numpy(RGB.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "source",
    [
        RGB,
        RGB[:, ::-1][:, ::-1],
        OPAQUE,
        RGB / 255,
        (RGB / 255).astype(np.float32),
        TENSOR,
        TENSOR / 255,
        (TENSOR / 255).requires_grad_(),
        torch.from_numpy(OPAQUE.copy()).permute(2, 0, 1),
    ],
    ids=["rgb", "strides", "rgba", "float64", "float32", "tensor", "float tensor", "gradient", "rgba tensor"],
)
def test_color(source: Any) -> None:
    image = open_image(source)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.array_equal(np.asarray(image), RGB)
    assert picture_name(source) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    found = np.asarray(open_image((TENSOR / 255).to(dtype))).astype(int)
    assert np.abs(found - RGB).max() <= 1


def test_gray_and_opacity() -> None:
    gray = RGB[:, :, 0]
    for source in (
        gray,
        gray[:, :, None],
        gray / 255,
        torch.from_numpy(gray.copy()),
        torch.from_numpy(gray.copy())[None],
    ):
        assert np.array_equal(np.asarray(open_image(source)), np.dstack([gray] * 3))
    clear = np.dstack([RGB, np.zeros((2, 3, 1), np.uint8)])
    assert np.asarray(open_image(clear)).min() == 255, "what is transparent is white"


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (RGB.transpose(2, 1, 0)[:, :, :2], "format", r"array of shape \[3, 3, 2\].*; give array.transpose\(1, 2, 0\)"),
        (torch.zeros(8, 9, 3), "format", r"a torch tensor of shape \[8, 9, 3\].*; give tensor.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 9), "format", r"of shape \[2, 3, 8, 9\].*; give a batch as list\(tensor\)"),
        (RGB[None], "format", r"of shape \[1, 2, 3, 3\].*; give a batch as list\(array\)"),
        (np.zeros(5), "format", r"a numpy array of shape \[5\]; an image is"),
        (torch.tensor(1.0), "format", r"a torch tensor of shape \[\]; an image is"),
        (RGB.astype(np.int64), "format", "of type int64.*values are uint8 from 0 to 255, or floats from 0 to 1"),
        (TENSOR.bool(), "format", "a torch tensor of type bool"),
        (RGB.astype(float), "format", "floats from 0 to 221; they must lie from 0 to 1; divide by 255"),
        (RGB / 100, "format", r"floats from 0 to 2.21; they must lie from 0 to 1"),
        (RGB / 255 - 0.5, "format", "floats from -0.5"),
        (np.full((2, 2), np.nan), "format", "floats from nan to nan"),
        (np.zeros((0, 4, 3), np.uint8), "empty", "4 x 0 pixels: nothing to see"),
    ],
)
def test_what_is_refused(source: Any, kind: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert caught.value.kind == kind


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.core.pictures.images.MAX_PIXELS", 5)
    with pytest.raises(ImageError, match="3 x 2 pixels; at most 5"):
        open_image(RGB)
    assert isinstance(open_image(Image.fromarray(RGB[:1])), Image.Image)
