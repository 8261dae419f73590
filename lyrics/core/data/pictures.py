"""A picture from a file of a data set: what the storage did is kept apart from what is wrong with the file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.core.images import decode_image

MAX_BYTES = 256 * 2**20


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, upright, RGB.

    Raises ``ImageError`` when the file is missing or no usable picture, with the sha256 of its bytes where they were read; ``OSError`` when
    the storage fails.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.", "missing") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not a picture.", "folder") from None
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The picture in a file's bytes, upright, RGB; ``name`` is what messages call it. Raises ``ImageError``, with the bytes' sha256."""
    try:
        if len(data) > MAX_BYTES:
            raise ImageError(f"{name}: more than {MAX_BYTES:,} bytes.", "large")
        return decode_image(data, name)
    except ImageError as error:
        error.sha256 = hashlib.sha256(data).hexdigest()
        raise
