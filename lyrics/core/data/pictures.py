"""An image from a file of a data set: what the storage did is kept apart from what is wrong with the file.

And whether the boxes of a sample are of the image that is read: ``check_frame``.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from lyrics.core.errors import ImageError, SampleError
from lyrics.core.files import SpecialFileError, open_file
from lyrics.core.geometry import Size
from lyrics.core.language.mentions import mentioned
from lyrics.core.pictures.images import FORMATS, decode_image
from lyrics.core.types import Sample

# What the system says of one name; anything else is the storage's.
_OF_THE_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
MAX_BYTES = 256 * 2**20
_EXIF_ORIENTATION = 0x0112
# In ``Image.info``: the EXIF orientation of the file, from 1 (upright) to 8, by which the image has been turned.
_TURNED = "lyrics orientation"
_QUARTER_TURNS = (5, 6, 7, 8)
# Some of these stand in every file whose orientation Pillow would find. Looking for them is faster than parsing, and
# for a PNG far faster.
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"tiff:Orientation")


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Return the image in a file, upright, RGB.

    Raises ``ImageError`` when the file is missing or no usable image, with the sha256 of its bytes where they were
    read; ``OSError`` when the storage fails.
    """
    path = Path(path)
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path}: no such file.", "missing") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image.", "folder") from None
    except SpecialFileError as error:
        raise ImageError(f"{path}: {error}.", "special") from None
    except ValueError as error:
        raise ImageError(f"{path}: no file can have this name: {error}.", "missing") from None
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise ImageError(f"{path}: cannot be opened: {error.strerror}.", "unreadable") from None
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> Image.Image:
    """Return the image in a file's bytes, upright, RGB; ``name`` is what messages call it.

    Raises ``ImageError``, with the bytes' sha256.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ImageError(f"{name}: more than {MAX_BYTES:,} bytes.", "large")
        picture = decode_image(data, name)
    except ImageError as error:
        error.sha256 = hashlib.sha256(data).hexdigest()
        raise
    picture.info[_TURNED] = _orientation(data)
    return picture


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation that a file states; 1 where it states none, or none that can be read."""
    if not any(mark in data for mark in _EXIF_MARKS):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises whatever it likes; then nothing is turned
        return 1
    return found if found in range(2, 9) else 1


def check_frame(sample: Sample, picture: Image.Image) -> None:
    """Raise ``SampleError`` of kind ``size`` where the sample's boxes may lie elsewhere in the image that was read.

    Boxes are shares of the annotated image. They are right where that was this one: upright, and of the same shape at
    any scale. So

    - a sample without boxes, in its objects or in its texts, is never refused;
    - the annotated size must have the shape of the upright image, to within a pixel of rounding. Another shape is an
      image that was turned, cropped or padded after it was annotated;
    - where EXIF turns the image, the annotated size must say that upright was meant. It cannot where it is missing or
      square, nor where EXIF mirrors the image or turns it upside down, for the size is then the same either way.
    """
    fault = _fault(sample.annotated_size, picture.size, picture.info.get(_TURNED, 1))
    if fault and (sample.objects or any(mentioned(text) for text in _texts(sample))):
        raise SampleError(f"{sample.source}: {sample.image}: {fault}", "size")


def _fault(stated: Size | None, size: Size, turned: int) -> str:
    """Why boxes of an image of the ``stated`` size may lie elsewhere in one of ``size``; empty where they do not."""
    read, annotated = (f"{each[0]} x {each[1]}" if each is not None else "" for each in (size, stated))
    if turned == 1:
        if stated is None or same_shape(stated, size):
            return ""
        done = "turned" if same_shape((stated[1], stated[0]), size) else "cropped, padded or stretched"
        return (
            f"the annotations are of {annotated} pixels, but the image has {read}: it was {done} since, and boxes "
            "would lie elsewhere."
        )
    if turned in _QUARTER_TURNS and stated is not None:
        upright, stored = same_shape(stated, size), same_shape((stated[1], stated[0]), size)
        if upright and not stored:
            return ""
        if not upright:
            return (
                f"the annotations are of {annotated} pixels, but EXIF turns the image to {read}: boxes of the stored "
                "pixels would lie elsewhere. Store the image without EXIF orientation."
            )
    return (
        f"EXIF turns or mirrors the image (orientation {turned}), and the annotations do not say whether their boxes "
        "are of the upright one. Store it upright, without EXIF orientation."
    )


def same_shape(annotated: Size, read: Size) -> bool:
    """Return whether ``read`` is ``annotated`` at some scale, each side to within a pixel of rounding."""
    (low_x, high_x), (low_y, high_y) = (((r - 1) / a, (r + 1) / a) for a, r in zip(annotated, read, strict=True))
    return max(low_x, low_y) < min(high_x, high_y)


def _texts(sample: Sample) -> list[str]:
    return [*sample.captions, *(text for turn in sample.turns for text in (turn.instruction, turn.answer))]
