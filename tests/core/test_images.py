"""What a picture is once it is open: upright, RGB, and checked before it is decoded. Damaged files: ``test_corrupt_images.py``."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lyrics.core import images
from lyrics.core.errors import ImageError
from lyrics.core.images import open_image

# The letter F, whose eight turns and reflections all differ.
F = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=np.uint8) * 255
# EXIF orientation -> how the stored pixels are made from the upright ones (EXIF 2.32, tag 0x0112).
STORED = {
    1: F,
    2: F[:, ::-1],
    3: F[::-1, ::-1],
    4: F[::-1],
    5: F.T,
    6: F.T[::-1],
    7: F.T[::-1, ::-1],
    8: F.T[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
def test_picture_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(STORED[orientation]).save(tmp_path / "f.png", exif=exif)
    opened = open_image(tmp_path / "f.png")
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened)[..., 0], F)
    with Image.open(tmp_path / "f.png") as stored:
        assert np.array_equal(np.asarray(open_image(stored))[..., 0], F), "a PIL image is turned like a file"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_every_format_is_read_whatever_the_file_is_called(suffix: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), (200, 30, 40))
    picture.save(tmp_path / f"picture{suffix}")
    renamed = (tmp_path / f"picture{suffix}").rename(tmp_path / "picture.data")
    opened = open_image(str(renamed))
    assert opened.size == (20, 10)
    assert np.abs(np.asarray(opened, dtype=int) - (200, 30, 40)).max() < 6


def test_transparent_pixels_are_white() -> None:
    picture = Image.new("RGBA", (3, 1))
    for column, colour in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128)]):
        picture.putpixel((column, 0), colour)
    red, none, half = np.asarray(open_image(picture))[0].tolist()
    assert (red, none) == ([255, 0, 0], [255, 255, 255])
    assert half[0] == 255
    assert abs(half[1] - 127) <= 1


def test_transparent_colour_of_a_palette_is_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    assert np.asarray(open_image(picture)).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_not_clipped(kind: Any, tmp_path: Path) -> None:
    values = np.array([[0, 255, 32768, 65535]], dtype=kind)
    opened = np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist()
    assert opened == [0, 0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "F", "HSV", "PA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    opened = open_image(
        Image.new("L", (4, 2), 255).convert("P").convert("PA") if mode == "PA" else Image.new(mode, (4, 2))
    )
    assert (opened.mode, opened.size) == ("RGB", (4, 2))


def test_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(open_image(tmp_path / "moving.webp"))[0, 0].tolist() == [255, 0, 0]


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (12_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_size_is_checked_before_a_pixel_is_decoded(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    (tmp_path / "bomb.png").write_bytes(header_only_png(*size))
    with pytest.raises(ImageError, match=r"bomb\.png: .*pixels") as caught:
        open_image(tmp_path / "bomb.png")
    assert caught.value.kind == "large"


def test_largest_size_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 12)
    assert open_image(Image.new("RGB", (4, 3))).size == (4, 3)
    with pytest.raises(ImageError, match=r"^image: 13 x 1 pixels; at most 12 are read"):
        open_image(Image.new("RGB", (13, 1)))


def test_limit_lies_below_the_one_at_which_pillow_warns() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert images.MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


def test_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="nothing to see"):
        open_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "gif", "tiff", "truncated"])
def test_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture = Image.new("RGB", (64, 64), "red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    if kind == "folder":
        path.mkdir()
    elif kind in ("gif", "tiff"):
        picture.save(path, kind)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"hello, world", "truncated": buffer.getvalue()[:-30]}[kind])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_opening_closes_the_file(tmp_path: Path) -> None:
    """Else a folder of photographs runs out of file descriptors."""
    import gc
    import warnings

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        open_image(tmp_path / "a.png")
        gc.collect()
