"""Images of requests: data URLs within limits, and memory that is given back."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.workflows.serve.images import data_of, read_image
from lyrics.workflows.serve.limits import Budget, Limits, QueueFullError, TooLargeError
from tests.core.small import drawn


def png(width: int = 96, height: int = 64) -> bytes:
    out = io.BytesIO()
    drawn(width, height).save(out, "PNG")
    return out.getvalue()


def url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


def bomb(side: int) -> bytes:
    """A PNG that says it has so many pixels a side, and has none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "head", ["data:image/png;base64,", "DATA:image/JPEG;charset=x;BASE64,", "data:image/*;base64,"]
)
def test_data_urls(head: str) -> None:
    """What the type says is not looked at: the bytes say it themselves."""
    if "*" in head:
        with pytest.raises(ImageError):
            data_of(url(b"abc", head), "image")
    else:
        assert data_of(url(b"abc", head), "image") == b"abc"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("data:", "is no data URL with base64"),
        ("data:,abc", "is no data URL with base64"),
        ("data:image/png,abc", "is no data URL with base64"),
        ("data:;base64,AAAA", "media type is missing"),
        ("data:text/html;base64,AAAA", "media type is text/html"),
        ("data:application/pdf;base64,AAAA", "no image's"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,AA=A", "not valid base64"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "not valid base64"),
        ("data:image/png;base64,AA AA", "not valid base64"),
        ("data:image/png" + ";a=b" * 5000 + ";base64,AAAA", "is no data URL with base64"),
    ],
)
def test_what_is_no_data_url(written: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        data_of(written, "messages.0.content, image 1")


def test_an_image_holds_memory_until_it_is_given_back() -> None:
    budget = Budget(100_000)
    image, held = read_image(png(), "image", Limits(), budget)
    assert (image.size, image.mode, held, budget.used) == ((96, 64), "RGB", 4 * 96 * 64, held)
    read_image(png(), "image", Limits(), budget)
    read_image(png(), "image", Limits(), budget)
    read_image(png(), "image", Limits(), budget)
    with pytest.raises(QueueFullError):
        read_image(png(), "image", Limits(), budget)
    budget.give(held)
    read_image(png(), "image", Limits(), budget)
    with pytest.raises(TooLargeError):
        read_image(png(400, 400), "image", Limits(), budget)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"GIF89a", "corrupt"),
        (b"<svg onload=alert(1)>", "format"),
        (b"%PDF-1.7", "format"),
        (b"II*\0aaaaaaaa", "format"),
        (png()[:-30], "truncated"),
        (bomb(5_000), "large"),
        (bomb(30_000), "large"),
        (bomb(4_000), "truncated"),
    ],
    ids=range(9),
)
def test_what_cannot_be_read_holds_nothing(data: bytes, kind: str, recwarn: pytest.WarningsRecorder) -> None:
    budget = Budget(2**30)
    with pytest.raises(ImageError) as caught:
        read_image(data, "image", Limits(), budget)
    assert (caught.value.kind, budget.used) == (kind, 0)
    assert " object at 0x" not in str(caught.value)


def test_an_image_that_lies_on_its_side_stands_upright() -> None:
    lying = Image.new("RGB", (30, 20), "red")
    exif = lying.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    lying.save(out, "JPEG", exif=exif)
    image, held = read_image(out.getvalue(), "image", Limits(), Budget(2**30))
    assert (image.size, held) == ((20, 30), 4 * 30 * 20)
