"""Read JSON and other small text files that somebody else wrote.

Every way in which one can be wrong is one clear error.

Nothing else in the package parses JSON; a test walks the source for it. Imports no torch.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lyrics.core.errors import LyricsError

#: The largest file that is no data set: specifications, indices of shards, logs, tables of classes.
MAX_BYTES = 256 * 2**20

#: Makes the error to raise out of a message: an error class, or a function where its constructor takes more.
MakeError = Callable[[str], Exception]


def read_json(
    path: str | os.PathLike[str],
    error: MakeError = LyricsError,
    *,
    max_bytes: int | None = MAX_BYTES,
    advice: str = "",
) -> Any:
    """Return the data of a JSON file.

    Args:
        path: a regular file, or a link to one. UTF-8, with or without a byte-order mark.
        error: makes the error to raise out of its message, which names the file.
        max_bytes: the size from which a file is refused before it is read; None for data sets, which may be of any
            size.
        advice: a sentence for the end of the message.

    Raises:
        Exception: what ``error`` makes: there is no such file, it is no regular file, it is too large, or it is not
            JSON.
    """
    return parse_json(read_bytes(path, error, max_bytes=max_bytes, advice=advice), str(path), error, advice=advice)


def read_json_object(
    path: str | os.PathLike[str], error: MakeError = LyricsError, *, advice: str = ""
) -> dict[str, Any]:
    """Return the data of a JSON file that holds an object ({...}). Arguments and errors as ``read_json``."""
    data = read_json(path, error, advice=advice)
    if not isinstance(data, dict):
        raise error(_message(str(path), "should hold a JSON object, {...}.", advice))
    return data


def parse_json(
    data: bytes | str,
    where: str = "",
    error: MakeError = LyricsError,
    *,
    advice: str = "",
    unique_keys: bool = False,
) -> Any:
    """Return the data of JSON text.

    Args:
        data: the text, or its bytes in UTF-8. A byte-order mark at the beginning is passed over.
        where: what the message begins with, such as a path and a line.
        error: makes the error to raise out of its message.
        advice: a sentence for the end of the message.
        unique_keys: whether a key that an object has twice is an error.

    Raises:
        Exception: what ``error`` makes: the text is not JSON, not UTF-8, or nested too deeply. The text is never
            quoted.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique if unique_keys else None)
    except json.JSONDecodeError as problem:
        what = f"is not JSON: {problem.msg} at line {problem.lineno} column {problem.colno}."
    except UnicodeDecodeError as problem:
        what = f"is not UTF-8 text at byte {problem.start}."
    except RecursionError:
        what = "is nested too deeply to be data."
    except _GivenTwice as problem:
        what = f"the key {problem} is given twice."
    except ValueError:  # an integer of thousands of digits
        what = "is not JSON that can be read: it holds a number of too many digits."
    raise error(_message(where, what, advice))


def read_text(
    path: str | os.PathLike[str],
    error: MakeError = LyricsError,
    *,
    max_bytes: int | None = MAX_BYTES,
    advice: str = "",
) -> str:
    """Return the text of a UTF-8 file, without a byte-order mark. Arguments and errors as ``read_json``."""
    data = read_bytes(path, error, max_bytes=max_bytes, advice=advice)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        what = f"cannot be read: not UTF-8 text at byte {problem.start}."
    raise error(_message(str(path), what, advice))


def read_bytes(
    path: str | os.PathLike[str],
    error: MakeError = LyricsError,
    *,
    max_bytes: int | None = MAX_BYTES,
    advice: str = "",
) -> bytes:
    """Return the bytes of a regular file.

    A pipe or a device, which could wait or run on for ever, is refused before it is opened.

    Arguments and errors as ``read_json``.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            what = "cannot be read: Is a directory."
        elif not stat.S_ISREG(found.st_mode):
            what = "cannot be read: it is a pipe, a socket or a device, not a file."
        elif max_bytes is not None and found.st_size > max_bytes:
            what = f"cannot be read: it has {found.st_size:,} bytes; at most {max_bytes:,} are read."
        else:
            return Path(path).read_bytes()
    except OSError as problem:
        what = f"cannot be read: {problem.strerror or problem}."
    except ValueError:
        what = "cannot be read: a file's name holds no null byte."
    raise error(_message(str(path), what, advice))


class _GivenTwice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _GivenTwice(repr(key) if len(key) <= 60 else f"{key[:57]!r}...")
        seen[key] = value
    return seen


def _message(where: str, what: str, advice: str) -> str:
    return f"{where}: {what} {advice}".strip() if where else f"{what} {advice}".strip()
