"""Open files that other people named: no FIFO is waited for, and names of any bytes can be shown and written."""

from __future__ import annotations

import os
import stat
from typing import IO

_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Without it, opening a FIFO waits until somebody writes into it.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class SpecialFileError(OSError):
    """The path names a FIFO, a socket or a device, not a file."""


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading in binary mode.

    Raises:
        SpecialFileError: the path names a FIFO, a socket or a device. It is not opened, and never waited for.
        OSError, ValueError: as ``open``.
    """
    _refuse_special(os.stat(path).st_mode)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE))  # noqa: SIM115
    try:
        # It may have been replaced in between.
        _refuse_special(os.fstat(file.fileno()).st_mode)
    except SpecialFileError:
        file.close()
        raise
    return file


def _refuse_special(mode: int) -> None:
    for is_kind, what in _SPECIAL:
        if is_kind(mode):
            raise SpecialFileError(f"is {what}, not a file")


def is_text(name: str) -> bool:
    """Return whether a file's name is text.

    On POSIX any bytes are a name; Python holds those that are no UTF-8 as lone surrogates.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name_as_text(name: str) -> str:
    r"""Return a file's name as valid text: bytes that are no UTF-8 become ``\xff``. Other names come back unchanged."""
    return name if is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def name_for_messages(name: str | os.PathLike[str]) -> str:
    r"""Return a file's name on one line for a person: line breaks and other control characters are escaped, too."""
    text = name_as_text(os.fspath(name))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
