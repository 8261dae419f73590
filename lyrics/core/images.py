"""Opening a picture safely: formats limited, size checked before decoding, upright, three channels.

The picture that comes out is what every frame and every reported box refers to.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lyrics.core.errors import ImageError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: Checked on the header, before a single pixel is decoded. Below the number at which Pillow itself warns.
MAX_PIXELS = 80_000_000
# First bytes of what people keep beside pictures, so that the message can say what the file is.
_OTHER_FORMATS = (
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"SIMPLE  =", "a FITS file"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)

#: A path, a PIL image, or an array as ``lyrics.core.image_arrays`` describes: numpy [H,W,C] or torch [C,H,W], uint8 or
#: floats from 0 to 1.
ImageLike = Union[str, "os.PathLike[str]", Image.Image, "npt.NDArray[Any]", "torch.Tensor"]


def is_array(source: object) -> bool:
    """Whether an image is given as a numpy array or a torch tensor."""
    # A tensor can be there only where torch has been imported.
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def picture_name(source: ImageLike) -> str:
    """What a picture is called: its path; of an open picture the file it came from, or nothing. The experts ``cached`` find it by this."""
    if isinstance(source, Image.Image) or is_array(source):
        return str(getattr(source, "filename", ""))
    return os.fspath(source)  # type: ignore[arg-type]


def open_image(source: ImageLike) -> Image.Image:
    """The picture as RGB, turned upright by its EXIF orientation; transparent pixels become white.

    Args:
        source: a path, a PIL image, a numpy array [H,W], [H,W,1], [H,W,3] or [H,W,4], or a torch tensor [H,W], [1,H,W],
            [3,H,W] or [4,H,W]; arrays and tensors hold uint8 from 0 to 255, or floats from 0 to 1.

    Raises ``ImageError`` naming the file, with its ``kind``: missing, of another format than ``FORMATS``, larger than ``MAX_PIXELS``,
    empty, truncated or corrupt.
    """
    if is_array(source):
        from lyrics.core.image_arrays import image_of_array

        source = image_of_array(source)  # type: ignore[arg-type]
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image")
    path = Path(source)  # type: ignore[arg-type]
    try:
        with path.open("rb") as file:
            return _decoded(file, str(path))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.", "missing") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not a picture.", "folder") from None
    except PermissionError:
        raise ImageError(f"{path}: may not be read by this user.", "unreadable") from None
    except (OSError, ValueError) as error:  # a name that no file can have, a link to itself, a disk that fails
        raise ImageError(f"{path}: cannot be opened: {error}.", "unreadable") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """As ``open_image``, from the bytes of a file; ``name`` is what messages call it."""
    return _decoded(io.BytesIO(data), name)


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        file.seek(0)
        raise _unidentified(file.read(32), name) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels.", "large") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error) as error:
        # Pillow reports damaged files by any of these.
        kind = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "corrupt"
        raise ImageError(f"{name}: is {kind}: {error}.", kind) from error


def _unidentified(start: bytes, name: str) -> ImageError:
    """What a file is that no decoder wanted."""
    readable = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read"
    if not start:
        return ImageError(f"{name}: is empty.", "empty")
    for magic, what in _OTHER_FORMATS:
        if start.lower().startswith(magic.lower()):
            return ImageError(f"{name}: is {what}, whatever it is called; {readable}.", "format")
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM")):
        return ImageError(f"{name}: is corrupt: its header is damaged or cut off.", "corrupt")
    return ImageError(f"{name}: is not a picture of a known format; {readable}.", "format")


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are read.", "large")
    if width == 0 or height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels: nothing to see.", "empty")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        # Pillow's own conversion clips 16-bit values at 255; keep the high byte instead.
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        canvas = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(canvas, upright)
    return upright.convert("RGB")
