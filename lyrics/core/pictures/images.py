"""Opening an image safely: formats limited, size checked before decoding, memory bounded, upright, three channels.

The image that comes out is what every frame and every reported box refers to. Of an animation the first frame is read.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from lyrics.core.errors import ImageError
from lyrics.core.files import SpecialFileError, name_for_messages, open_file

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

_logger = logging.getLogger(__name__)
Found = TypeVar("Found")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
#: Checked on the header, before a single pixel is decoded. Below the number at which Pillow itself warns.
MAX_PIXELS = 80_000_000
#: Memory that opening may take beyond the image itself, which Pillow holds in four bytes per pixel.
MAX_EXTRA_BYTES = 256 * 2**20
# Up to this size an image is converted as a whole, which takes up to three copies of it; a larger one in strips of
# this many pixels.
_WHOLE_PIXELS = 16_000_000
_STRIP_PIXELS = 1_000_000
# First bytes of what people keep beside images, so that the message can say what the file is.
_OTHER_FORMATS = (
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

#: A path, a PIL image, or an array as ``lyrics.core.pictures.arrays`` describes: numpy [H,W,C] or torch [C,H,W], uint8
#: or floats from 0 to 1.
ImageLike = Union[str, "os.PathLike[str]", Image.Image, "npt.NDArray[Any]", "torch.Tensor"]


def is_array(source: object) -> bool:
    """Return whether an image is given as a numpy array or a torch tensor."""
    # A tensor can be there only where torch has been imported.
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


_ORIENTATION = 0x0112  # EXIF 2.32
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_name(source: ImageLike) -> str:
    """Return what an image is called: its path; of an open image the file it came from, or nothing.

    The experts ``cached`` find it by this.
    """
    if isinstance(source, Image.Image) or is_array(source):
        return str(getattr(source, "filename", ""))
    return os.fspath(source)  # type: ignore[arg-type]


def open_image(source: ImageLike) -> Image.Image:
    """Return the image as RGB, turned upright by its EXIF orientation; transparent pixels become white.

    Of an animation (GIF, WEBP, PNG) the first frame is read. EXIF data that cannot be read are passed over, which is
    logged: the image is taken as it is stored. Opening a file takes at most ``MAX_EXTRA_BYTES`` beyond the image that
    is returned. An image that is given open is returned itself where there is nothing to change.

    Args:
        source: a path, a PIL image, a numpy array [H,W], [H,W,1], [H,W,3] or [H,W,4], or a torch tensor [H,W], [1,H,W],
            [3,H,W] or [4,H,W]; arrays and tensors hold uint8 from 0 to 255, or floats from 0 to 1.

    Raises:
        ImageError: the file cannot be used. The message names it; ``kind`` says why: missing, a folder, a FIFO or
            device, of another format than ``FORMATS``, larger than ``MAX_PIXELS``, empty, truncated or corrupt.
    """
    if is_array(source):
        from lyrics.core.pictures.arrays import image_of_array

        source = image_of_array(source)  # type: ignore[arg-type]
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image")
    path = Path(source)  # type: ignore[arg-type]
    name = name_for_messages(path)
    try:
        with open_file(path) as file:
            return _decoded(file, name)
    except ImageError:
        raise
    except FileNotFoundError:
        what = "is a link to a file that is not there" if path.is_symlink() else "no such file"
        raise ImageError(f"{name}: {what}.", "missing") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder, not an image.", "folder") from None
    except PermissionError:
        raise ImageError(f"{name}: may not be read by this user.", "unreadable") from None
    except SpecialFileError as error:
        raise ImageError(f"{name}: {error}.", "special") from None
    except (OSError, ValueError) as error:  # a name that no file can have, a link to itself, a disk that fails
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name}: cannot be opened: {reason}.", "unreadable") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """As ``open_image``, from the bytes of a file; ``name`` is what messages call it."""
    return _decoded(io.BytesIO(data), name)


def check_header(data: bytes, name: str) -> tuple[int, int]:
    """Return an image's width and height in pixels as its header says, before a pixel is decoded; it may lie on its
    side.

    Raises ``ImageError`` as ``decode_image`` for what the header tells.
    """
    return _opened(io.BytesIO(data), name, lambda image: image.size)


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    def decode(image: Image.Image) -> Image.Image:
        _check_extra_memory(image, name)
        return _upright_rgb(image, name, may_close=True)

    return _opened(file, name, decode)


def _opened(file: IO[bytes], name: str, read: Callable[[Image.Image], Found]) -> Found:
    try:
        with Image.open(file, formats=FORMATS) as image:
            return read(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        file.seek(0)
        raise _unidentified(file.read(32), name) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels.", "large") from None
    except MemoryError:
        raise ImageError(f"{name}: does not fit into memory.", "large") from None
    except Exception as error:  # Pillow's decoders report damaged files by whatever a damaged number led to
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name}: cannot be read: {error.strerror}.", "unreadable") from error
        kind = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "corrupt"
        raise ImageError(f"{name}: is {kind}: {error}.", kind) from error


def _unidentified(start: bytes, name: str) -> ImageError:
    """Return what a file is that no decoder wanted."""
    readable = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read"
    if not start:
        return ImageError(f"{name}: is empty.", "empty")
    for magic, what in _OTHER_FORMATS:
        if start.lower().startswith(magic.lower()):
            return ImageError(f"{name}: is {what}, whatever it is called; {readable}.", "format")
    if start[4:8] == b"ftyp":
        return ImageError(f"{name}: is a HEIC, an AVIF or a video, whatever it is called; {readable}.", "format")
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8")):
        return ImageError(f"{name}: is corrupt: its header is damaged or cut off.", "corrupt")
    return ImageError(f"{name}: is not an image of a known format; {readable}.", "format")


def _upright_rgb(image: Image.Image, name: str, *, may_close: bool = False) -> Image.Image:
    """``may_close``: nobody else needs ``image``, so that its memory can be given back on the way."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are read.", "large")
    if width == 0 or height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels: nothing to see.", "empty")
    image.load()  # first, so that what is wrong with the pixels is not taken for a fault of the EXIF data
    turn = _UPRIGHT.get(exif_orientation(image, name))
    if type(image) is Image.Image and image.mode == "RGB" and turn is None and not image.has_transparency_data:
        return image
    if width * height > _WHOLE_PIXELS:
        return _in_strips(image, turn, may_close)
    upright = _flat_rgb(image)
    upright = upright if turn is None else upright.transpose(turn)
    # What the file said of itself holds no longer: its orientation, a transparent color.
    upright.info = {}
    return upright


def exif_orientation(image: Image.Image, name: str) -> int:
    """Return the orientation, 1 to 8 as EXIF counts.

    It is 1, upright, where nothing else is said, or nothing that can be read.

    ``name`` is what the image is called in the log.
    """
    try:
        written = image.getexif().get(_ORIENTATION)
        return written if isinstance(written, int) and written in _UPRIGHT else 1
    except Exception as error:  # a damaged block ends in any of a dozen exceptions
        _logger.warning("%s: its EXIF data are damaged (%s); the image is read as it is stored.", name, error)
        return 1


def _flat_rgb(image: Image.Image) -> Image.Image:
    """Return a copy of three channels, 8 bits each, on white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips 16-bit values at 255; keep the high byte instead.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def _in_strips(image: Image.Image, turn: Image.Transpose | None, may_close: bool) -> Image.Image:
    """As ``_flat_rgb`` and a turn, without a second image in memory: three bytes per pixel stand in between the two."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    pixels_HWC = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels_HWC[top : top + rows] = np.asarray(_flat_rgb(strip))
    if may_close:
        image.close()
    upright_HWC = _turned(pixels_HWC, turn)
    height, width = upright_HWC.shape[:2]
    upright = Image.new("RGB", (width, height))
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        upright.paste(Image.fromarray(np.ascontiguousarray(upright_HWC[top : top + rows])), (0, top))
    return upright


def _turned(pixels_HWC: npt.NDArray[np.uint8], turn: Image.Transpose | None) -> npt.NDArray[np.uint8]:
    """Return a view, as ``Image.transpose``."""
    if turn is None:
        return pixels_HWC
    if turn in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    ):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if turn in (
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_180,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    ):
        pixels_HWC = pixels_HWC[::-1]
    if turn in (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def _check_extra_memory(image: Image.Image, name: str) -> None:
    """Refuse on the header what its decoder alone would need more than ``MAX_EXTRA_BYTES`` for."""
    width, height = image.size
    if image.format == "WEBP":
        needed, why = 12 * width * height, "the decoder of WEBP holds three copies more of an image"
    elif image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        # (id, horizontal samples, vertical samples, table) of each channel; a coefficient takes two bytes.
        layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]
        most = max(across for _, across, _, _ in layers) * max(down for _, _, down, _ in layers)
        samples = sum(across * down for _, across, down, _ in layers) / most
        needed, why = int(2 * samples * width * height), "a progressive JPEG is decoded as a whole; save it as baseline"
    else:
        return
    if needed > MAX_EXTRA_BYTES:
        raise ImageError(
            f"{name}: {width} x {height} pixels would take {needed / 2**20:.0f} MiB beyond the image itself, more than "
            f"the {MAX_EXTRA_BYTES // 2**20} that opening may take: {why}.",
            "large",
        )
