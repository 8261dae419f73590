"""Images of requests: data URLs, read within a server's limits."""

from __future__ import annotations

import base64
import binascii
import re

from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.core.pictures.images import check_header, decode_image
from lyrics.workflows.serve.limits import Budget, Limits

#: The media type, anything else that is stated, and where the data begin.
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]{0,40}/?[\w.+-]{0,40})(?P<more>(?:;[^;,]{0,100}){0,8}),", re.IGNORECASE)
#: An image in memory, as Pillow holds it.
_BYTES_PER_PIXEL = 4


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def data_of(url: str, name: str) -> bytes:
    """Return the bytes that a data URL holds. Raises ``ImageError``; ``name`` is what messages call it."""
    head = _DATA_URL.match(url, 0, 1200)
    if head is None or ";base64" not in head["more"].lower():
        raise ImageError(f"{name}: is no data URL with base64; write data:image/png;base64,...", "format")
    if not head["type"].lower().startswith("image/"):
        raise ImageError(f"{name}: its media type is {head['type'] or 'missing'}, which is no image's.", "format")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{name}: is not valid base64.", "corrupt") from None


def read_image(data: bytes, name: str, limits: Limits, budget: Budget) -> tuple[Image.Image, int]:
    """Return an image, upright and in RGB, and the bytes of ``budget`` that it holds until somebody gives them back.

    Its size is checked on its header, before a pixel is decoded. Raises ``ImageError``, and what ``Budget`` raises.
    """
    width, height = check_header(data, name)
    pixels = width * height
    if pixels > limits.image_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {limits.image_pixels:,} are read.", "large")
    held = _BYTES_PER_PIXEL * pixels
    budget.take(held)
    try:
        return decode_image(data, name), held
    except BaseException:
        budget.give(held)
        raise
