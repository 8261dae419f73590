"""What a picture is once it is open: upright, RGB, and checked before it is decoded.

Damaged files: ``test_corrupt_images.py``.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lyrics.core.data.readers import PictureFolder
from lyrics.core.errors import ImageError
from lyrics.core.pictures import images
from lyrics.core.pictures.images import open_image
from tests.fresh import fresh

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


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif"])
def test_every_format_is_read_whatever_the_file_is_called(suffix: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), (200, 30, 40))
    picture.save(tmp_path / f"picture{suffix}")
    renamed = (tmp_path / f"picture{suffix}").rename(tmp_path / "picture.data")
    opened = open_image(str(renamed))
    assert opened.size == (20, 10)
    assert np.abs(np.asarray(opened, dtype=int) - (200, 30, 40)).max() < 6


def test_transparent_pixels_are_white() -> None:
    picture = Image.new("RGBA", (3, 1))
    for column, color in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128)]):
        picture.putpixel((column, 0), color)
    red, none, half = np.asarray(open_image(picture))[0].tolist()
    assert (red, none) == ([255, 0, 0], [255, 255, 255])
    assert half[0] == 255
    assert abs(half[1] - 127) <= 1


def test_transparent_color_of_a_palette_is_white() -> None:
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


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_first_frame_of_an_animation_is_read(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert np.asarray(open_image(tmp_path / f"moving.{suffix}"))[0, 0].tolist() == [255, 0, 0]


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


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "tiff", "truncated"])
def test_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture = Image.new("RGB", (64, 64), "red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    if kind == "folder":
        path.mkdir()
    elif kind == "tiff":
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


def samples() -> list[Image.Image]:
    """A picture of noise in every mode, the ways to be transparent included."""
    noise = np.random.default_rng(0).integers(0, 256, (11, 7, 4), dtype=np.uint8)
    color = Image.fromarray(noise, "RGBA")
    found = [color.convert(mode) for mode in ("RGB", "RGBA", "LA", "L", "1", "P", "CMYK", "YCbCr")]
    found.append(Image.fromarray(noise[..., 0].astype(np.uint16) * 257))
    for transparent in (3, bytes(range(256))):
        found.append(color.convert("P"))
        found[-1].info["transparency"] = transparent
    found.append(color.convert("RGB"))
    found[-1].info["transparency"] = tuple(noise[0, 0, :3].tolist())
    return found


@pytest.mark.parametrize("orientation", STORED)
def test_a_large_picture_read_in_strips_is_the_same(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for picture in samples():
        picture.info["exif"] = exif.tobytes()
        monkeypatch.setattr(images, "_WHOLE_PIXELS", 16_000_000)
        whole = open_image(picture)
        monkeypatch.setattr(images, "_WHOLE_PIXELS", 10)
        for strip in (5, 21, 1000):  # less than a row, some rows, all
            monkeypatch.setattr(images, "_STRIP_PIXELS", strip)
            in_strips = open_image(picture)
            assert (in_strips.mode, in_strips.size) == (whole.mode, whole.size), picture.mode
            assert in_strips.tobytes() == whole.tobytes(), picture.mode


def test_what_came_out_goes_in_again_unchanged(tmp_path: Path) -> None:
    """Else a picture that is opened twice on its way is turned twice, or stumbles over its EXIF data the
    second time.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png", exif=exif)
    once = open_image(tmp_path / "a.png")
    assert (once.size, once.info) == ((2, 4), {})
    assert open_image(once) is once


DAMAGED_EXIF = {
    "noise": b"Exif\0\0" + bytes(range(7, 120)),
    "cut off": b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
    "points beyond its end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "points at itself": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
    "an orientation of ninety": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x5a\0\0\0\0\0\0",
    "an orientation in words": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04left\0\0\0\0",
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", DAMAGED_EXIF)
def test_damaged_exif_leaves_the_picture_as_it_is_stored(damage: str, format: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 5), "red").save(tmp_path / "x", format, exif=DAMAGED_EXIF[damage])
    opened = open_image(tmp_path / "x")
    assert opened.size == (9, 5)
    assert open_image(opened).size == (9, 5)
    assert PictureFolder(tmp_path).size("x") == (9, 5), "a reader that looks at the header alone says the same"


def test_damaged_exif_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (9, 5), "red").save(tmp_path / "x.png", exif=DAMAGED_EXIF["noise"])
    open_image(tmp_path / "x.png")
    assert "x.png: its EXIF data are damaged" in caplog.text


def test_any_exception_of_a_decoder_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (9, 5)).save(tmp_path / "x.png")
    for raised, kind in (
        (KeyError(3), "corrupt"),
        (ZeroDivisionError(), "corrupt"),
        (MemoryError(), "large"),
        (OSError(5, "Input/output error"), "unreadable"),
    ):

        def load(*_: Any, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(ImageError, match=r"x\.png: ") as caught:
            open_image(tmp_path / "x.png")
        assert caught.value.kind == kind


def test_decoders_that_need_more_than_the_bound_are_refused_by_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (64, 48))
    picture.save(tmp_path / "a.webp")
    picture.save(tmp_path / "444.jpg", progressive=True, subsampling=0)  # 6 bytes a pixel
    picture.save(tmp_path / "420.jpg", progressive=True)  # 3
    picture.save(tmp_path / "base.jpg")
    for limit, refused in (
        (12, set()),
        (11, {"a.webp"}),
        (5, {"a.webp", "444.jpg"}),
        (2, {"a.webp", "444.jpg", "420.jpg"}),
    ):
        monkeypatch.setattr(images, "MAX_EXTRA_BYTES", limit * 64 * 48)
        found = set()
        for path in sorted(tmp_path.iterdir()):
            try:
                open_image(path)
            except ImageError as error:
                found.add(path.name if error.kind == "large" else error.kind)
        assert found == refused


#: Forms of a picture of 80 million pixels. "turned" and the transparent ones need a second copy, the others Pillow's
#: own alone.
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "rgba.png": ("RGBA", {"compress_level": 1}),
    "turned.jpg": ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    "gray.png": ("I;16", {"compress_level": 1}),
}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("name", LARGE)
def test_opening_takes_at_most_256_mb_beyond_the_picture(name: str, tmp_path: Path) -> None:
    """Measured by the system, in a process of its own: the peak of resident memory, above what it was before."""
    mode, options = LARGE[name]
    side = 8900
    Image.new(mode, (side, side)).save(tmp_path / name, **options)
    code = (
        "import re\nfrom lyrics.core.pictures.images import MAX_EXTRA_BYTES, open_image\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read()).group(1))\n"
        "before = peak()\npicture = open_image(sys.argv[1])\n"
        "extra = peak() - before - 4 * picture.width * picture.height\n"
        "assert picture.size == (8900, 8900)\nprint(extra, MAX_EXTRA_BYTES)\n"
    )
    done = fresh(code, str(tmp_path / name))
    assert done.returncode == 0, done.stderr
    extra, allowed = map(int, done.stdout.split())
    assert 0 < extra < allowed
