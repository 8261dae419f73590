"""Files of twenty-two kinds, bad pictures and odd but good ones: none stops a run, each bad one is reported."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.core.pictures.images import MAX_PIXELS, open_image

PER_KIND = 10


def encode(format: str, seed: int, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, body: bytes = b"", *, crc: int | None = None) -> bytes:
    """A PNG with a header of any size, and whatever follows it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    check = zlib.crc32(header) if crc is None else crc
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", check) + body


def flip(data: bytes, seed: int, start: int) -> bytes:
    """Every twentieth byte from ``start`` on replaced by noise."""
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for index in range(start, len(changed), 20):
        changed[index] = int(rng.integers(0, 256))
    return bytes(changed)


# kind -> (file name, bytes by seed, ImageError.kind expected; several where the damage decides)
BAD: dict[str, tuple[str, Callable[[int], bytes], set[str]]] = {
    "nothing at all": ("x.jpg", lambda seed: b"", {"empty"}),
    "JPEG cut in its header": ("x.jpg", lambda seed: encode("JPEG", seed)[: 3 + seed], {"corrupt", "truncated"}),
    "JPEG cut in its data": ("x.jpg", lambda seed: encode("JPEG", seed)[: -200 - 20 * seed], {"truncated"}),
    "PNG cut in its data": ("x.png", lambda seed: encode("PNG", seed)[: 2000 + 100 * seed], {"truncated", "corrupt"}),
    "BMP cut in its data": ("x.bmp", lambda seed: encode("BMP", seed)[: 1000 + seed], {"truncated"}),
    "WEBP cut": ("x.webp", lambda seed: encode("WEBP", seed)[: 100 + seed], {"truncated", "corrupt"}),
    "wrong magic": ("x.png", lambda seed: b"\x00\x01\x02" + encode("PNG", seed)[3:], {"format"}),
    "PNG with a wrong checksum": ("x.png", lambda seed: png(8, 8, crc=seed), {"corrupt", "format"}),
    "PNG of zero width": ("x.png", lambda seed: png(0, seed + 1), {"corrupt", "empty", "truncated", "format"}),
    "PNG bomb": ("x.png", lambda seed: png(20_000, 20_000 + seed, _zeros(seed)), {"large"}),
    "a line of 80 million pixels": ("x.png", lambda seed: png(MAX_PIXELS + 1 + seed, 1, _zeros(seed)), {"large"}),
    "GIF cut": ("x.gif", lambda seed: encode("GIF", seed)[: 500 + 100 * seed], {"truncated", "corrupt"}),
    "HEIC called jpg": ("x.jpg", lambda seed: b"\0\0\0\x18ftypheic" + bytes(100 + seed), {"format"}),
    "TIFF called png": ("x.png", lambda seed: encode("TIFF", seed), {"format"}),
    "web page called jpg": ("x.jpg", lambda seed: b"<!DOCTYPE html><title>404</title>" * (seed + 1), {"format"}),
    "SVG called png": ("x.png", lambda seed: b"<svg xmlns='http://www.w3.org/2000/svg'/>" + b" " * seed, {"format"}),
    "noise": ("x.jpg", lambda seed: np.random.default_rng(seed).bytes(500), {"format"}),
}
GOOD: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "gray": ("x.png", lambda seed: encode("PNG", seed, "L")),
    "palette with transparency": ("x.png", lambda seed: encode("PNG", seed, "P", transparency=seed)),
    "CMYK": ("x.jpg", lambda seed: encode("JPEG", seed, "CMYK")),
    "GIF called jpg": ("x.jpg", lambda seed: encode("GIF", seed)),
    "progressive": ("x.jpg", lambda seed: encode("JPEG", seed, progressive=True)),
}


def _zeros(seed: int) -> bytes:
    data = zlib.compress(b"\0" * 100_000)
    chunk = b"IDAT" + data
    return struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_there_are_two_hundred_files_and_more() -> None:
    assert len(BAD) + len(GOOD) == 22
    assert (len(BAD) + len(GOOD)) * PER_KIND == 220


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_an_error_that_names_it(kind: str, tmp_path: Path) -> None:
    name, make, expected = BAD[kind]
    for seed in range(PER_KIND):
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(make(seed))
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert caught.value.kind in expected, f"{kind}: {caught.value.kind}: {caught.value}"
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", GOOD)
def test_an_odd_file_is_opened(kind: str, tmp_path: Path) -> None:
    name, make = GOOD[kind]
    for seed in range(PER_KIND):
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(make(seed))
        picture = open_image(path)
        assert (picture.mode, picture.size) == ("RGB", (64, 48))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_damage_anywhere_gives_a_picture_or_an_image_error(format: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    outcomes = []
    for seed in range(40):
        path.write_bytes(flip(encode(format, seed), seed, start=seed))
        try:
            outcomes.append(open_image(path).mode)
        except ImageError as error:
            outcomes.append("named" if str(path) in str(error) else str(error))
    assert set(outcomes) <= {"RGB", "named"}
    assert "named" in outcomes


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """Rejected on the header: the process does not grow by the picture's 1.2 GB."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20_000, 20_000, _zeros(0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        with pytest.raises(ImageError, match=r"at most 80,000,000 are read|more than 80,000,000"):
            open_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_exif_rotation_turns_the_picture_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), (255, 255, 255))
    picture.paste((255, 0, 0), (0, 0, 10, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    red, _, blue = upright.getpixel((10, 3))  # type: ignore[misc]
    assert red > 200, "left has become top"
    assert blue < 80


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    values = np.array([[0, 128 * 256, 255 * 256]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert [open_image(tmp_path / "deep.png").getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    picture.putpixel((1, 0), (10, 20, 30, 0))
    picture.save(tmp_path / "clear.png")
    opened = open_image(tmp_path / "clear.png")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "no.jpg", "missing"), (tmp_path, "folder")):
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert caught.value.kind == kind
        assert str(path) in str(caught.value)
