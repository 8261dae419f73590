"""What the readers share: files that must be there, images in folders, and values that are read at first use."""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from lyrics.core import json_reading
from lyrics.core.data.readers.row import brief
from lyrics.core.errors import DatasetError, ImageError, SampleError, did_you_mean
from lyrics.core.pictures.images import FORMATS, MAX_PIXELS, exif_orientation

_PACKED = (".zip", ".gz", ".bz2", ".xz")
# What Pillow raises for a damaged header.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error)


class ReadOnDemand:
    """Base of objects whose ``cached_property``s are read from disk.

    Each process reads its own, and none travels to a loader worker.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }


@dataclass(frozen=True)
class Home:
    """The folder that holds the files of a data set; ``dataset`` is its row in docs/datasets.md."""

    dataset: str
    root: Path

    @classmethod
    def of(cls, dataset: str, root: str) -> Home:
        """Raise ``DatasetError`` when there is no such folder or file."""
        home = cls(dataset, Path(root).expanduser())
        if not home.root.exists():
            raise DatasetError(f"{home.root}: no such folder. {home.hint}")
        return home

    @property
    def hint(self) -> str:
        return f"Where to get {self.dataset} and how to lay it out: docs/datasets.md, row {self.dataset!r}."

    def find(self, pattern: str) -> list[Path]:
        """Return files under the folder that match, sorted; perhaps none.

        Raises ``DatasetError`` for a path outside of it.
        """
        try:
            return sorted(path for path in self.root.glob(pattern) if path.is_file())
        except (NotImplementedError, ValueError):
            raise DatasetError(f"{pattern!r} is not the path of a file below {self.root}. {self.hint}") from None

    def files(self, *patterns: str) -> list[Path]:
        """Return the files of the first pattern that matches any.

        Raises ``DatasetError`` naming what was looked for.
        """
        for pattern in patterns:
            if found := self.find(pattern):
                return found
        packed = [path for pattern in patterns for ending in _PACKED for path in self.find(pattern + ending)]
        if packed:
            raise DatasetError(
                f"{packed[0]}: is packed, and is not read so. Unpack it first; it is published like this."
            )
        there = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        raise DatasetError(
            f"{self.root}: has no file {' or '.join(patterns)}.{did_you_mean(patterns[0], there)} {self.hint}"
        )

    def file(self, *patterns: str) -> Path:
        """Return the first of ``files``."""
        return self.files(*patterns)[0]

    def pictures(self, images: str | None, *folders: str) -> PictureFolder:
        """Return the images in ``folders`` of this folder.

        They may also be in the folder ``images`` where the images lie apart, or directly in this one.

        ``images`` may also say how they are called there: see ``PictureFolder.called``.
        """
        base = Path(images).expanduser() if images is not None else self.root
        called = base.name if "*" in base.name else None
        base = base.parent if called else base
        if not base.is_dir():
            raise DatasetError(f"{base}: no such folder of images. {self.hint}")
        return PictureFolder(base, ("",) if called else (*folders, ""), called)


@dataclass(frozen=True)
class PictureFolder:
    """Images by the path that annotations give, looked for in several folders in turn.

    Args:
        root: the folder that holds the others.
        folders: below ``root``.
        called: what the files are called, where that is not as annotations have it: ``coco_val2017_*``. The star is
            the image's name after its last underscore, so ``000000000785.jpg`` and ``COCO_val2014_000000000785.jpg``
            are both ``coco_val2017_000000000785.jpg``.
    """

    root: Path
    folders: tuple[str, ...] = ("",)
    called: str | None = None

    def path(self, key: str) -> Path:
        """Return where the image is, or would be.

        Raises ``SampleError`` for a key that leads out of the folder or is no name of a file.
        """
        if not key or key.startswith("/") or ".." in PurePosixPath(key).parts or PureWindowsPath(key).drive:
            raise SampleError(f"{brief(key)} is not the path of an image inside {self.root}", "record")
        if self.called is not None:
            key = self.called.replace("*", PurePosixPath(key).name.rpartition("_")[2])
        candidates = [self.root / folder / key for folder in self.folders]
        try:
            found = next((path for path in candidates if is_there(path)), None)
        except ValueError:  # a zero byte, or half of a surrogate pair
            raise SampleError(f"{brief(key)} cannot be the name of a file", "record") from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise SampleError(f"{brief(key)} cannot be the name of a file: {error.strerror}", "record") from None
        # What is there but no file (a pipe, a link to nowhere) is refused as what it is, not as missing.
        return found or next((path for path in candidates if os.path.lexists(path)), candidates[0])

    def first(self, *keys: str) -> str:
        """Return the first key whose file is there, or else the first of all."""
        return next((key for key in keys if is_there(self.path(key))), keys[0])

    def find(self, key: str) -> None:
        """Look whether the file is there, without opening it. Raises ``ImageError`` of kind ``missing`` naming it."""
        path = self.path(key)
        if not is_there(path):
            raise ImageError(f"{path}: no such file.", "missing")

    def read(self, key: str) -> Image.Image:
        """Return the image, upright RGB. Raises ``ImageError`` naming the file."""
        from lyrics.core.data.pictures import read_picture

        return read_picture(self.path(key))

    def size(self, key: str) -> tuple[int, int]:
        """Return (width, height) of the upright image from the file's header; pixels are not decoded.

        Raises ``ImageError``.
        """
        path = self.path(key)
        if not is_there(path):
            raise ImageError(f"{path}: no such file.", "missing")
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                turned = exif_orientation(image, str(path)) in (5, 6, 7, 8)
        except UnidentifiedImageError:
            raise ImageError(f"{path}: is not an image of a known format.", "format") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels.", "large") from None
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the image's
            raise ImageError(f"{path}: is corrupt: {error}.", "corrupt") from error
        return (height, width) if turned else (width, height)


def is_there(path: Path) -> bool:
    """Return whether there is a file of that name; a pipe is none.

    Raises ``OSError`` or ``ValueError`` for bad names.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself


def read_json(path: Path) -> Any:
    """Return a whole JSON file of a data set, of any size.

    Raises ``DatasetError`` naming the file and the place in it.
    """
    return json_reading.read_json(path, DatasetError, max_bytes=None, advice="Was the download cut short?")
