"""The images that go into a run: files and folders, found one after the other and never listed as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from lyrics.core.errors import ImageError
from lyrics.core.files import name_for_messages
from lyrics.core.pictures.images import open_image

#: What is tried in a folder. A file is read by its content, and one that cannot be (a TIFF, say) is reported, not
#: passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl"),
)


class InputPicture(Protocol):
    """An image of a run, wherever it is kept.

    ``name`` tells it from all others and stands in its row; it may have to be read. ``key`` does too, and never has:
    it says which shard the image belongs to.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    def open(self) -> Image.Image:
        """Return it upright, as RGB. Raises ``ImageError`` naming it. May be called in another thread."""
        ...


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A file of this machine; its name is its path as given."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def key(self) -> str:
        return str(self.path)

    def open(self) -> Image.Image:
        """As ``open_image``, but it says of a folder why it is listed."""
        name = name_for_messages(self.path)
        if os.path.isdir(self.path):
            if self.path.is_symlink():
                raise ImageError(f"{name}: is a link to a folder, which is not followed.", "folder")
            if not os.access(self.path, os.R_OK | os.X_OK):
                raise ImageError(f"{name}: is a folder that may not be read by this user.", "unreadable")
            raise ImageError(f"{name}: is a folder, not an image.", "folder")
        return open_image(self.path)


def find_images(paths: Iterable[str | os.PathLike[str]], *, leave_out: Path | None = None) -> list[Path]:
    """Return files as given, and what is named like an image in given folders, at any depth, sorted; each once.

    What is named like an image need not be one: links, FIFOs, devices and folders are listed too, and so are folders
    that may not be read and links to folders (which are not followed). ``refine_files`` says of each what it is.
    ``leave_out`` is a folder that is not searched.

    Raises:
        ImageError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if os.path.isdir(given):
            found.update(dict.fromkeys(pictures_inside(given, leave_out)))
        elif os.path.lexists(given):
            found[given] = None
        else:
            raise ImageError(f"{name_for_messages(given)}: no such file or folder.", "missing")
    return list(found)


def pictures_inside(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """Yield what ``find_images`` finds in a folder, sorted. Only the names in one folder are held at a time, and
    those above it.
    """
    without = None if leave_out is None else os.path.realpath(leave_out)
    open_folders = [iter([(os.fspath(folder), False, True)])]
    while open_folders:
        current, is_named_so, is_folder = next(open_folders[-1], ("", False, False))
        if not current:
            open_folders.pop()
            continue
        inside: list[tuple[str, bool, bool]] | None = []
        if is_folder and (without is None or os.path.realpath(current) != without):
            inside = _entries(current)
        if is_named_so or inside is None:
            yield Path(current)
        if inside:
            open_folders.append(iter(inside))


def _entries(folder: str) -> list[tuple[str, bool, bool]] | None:
    """(path, named like an image or a link to a folder, a folder) of what matters in a folder, sorted; None where the
    system refuses.
    """
    found = []
    try:
        with os.scandir(folder) as scanned:
            for entry in scanned:
                is_folder = entry.is_dir(follow_symlinks=False)
                is_named_so = entry.name.lower().endswith(SUFFIXES)
                is_named_so = is_named_so or (entry.is_symlink() and os.path.isdir(entry.path))
                if is_folder or is_named_so:
                    found.append((entry.path, is_named_so, is_folder))
    except OSError:
        return None
    return sorted(found)
