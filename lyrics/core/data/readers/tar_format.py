"""The tar format, as far as reading needs it: which members a file has, and where their bytes are.

Nothing is ever extracted: a member's name is text for messages, and its bytes are read by position. Written by hand
because the standard library's ``tarfile`` reads extended headers of any declared length into memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

BLOCK = 512
#: Extended headers hold a name or a size; a longer one is not that.
_MAX_EXTENDED = 64 * 1024
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_REGULAR = (b"0", b"\0", b"7")
_FOLDER = b"5"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_REFUSED = {
    b"1": "is a hard link",
    b"2": "is a symbolic link",
    b"3": "is a character device",
    b"4": "is a block device",
    b"6": "is a named pipe",
    b"S": "is a sparse file",
}


class TarError(ValueError):
    """The bytes are not a whole tar; the message says where."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its headers begin at ``start``, its ``size`` bytes at ``data``.

    A ``fault`` says why it must not be read.
    """

    name: str
    start: int
    data: int
    size: int
    fault: str = ""


def members(read: Callable[[int, int], bytes], end: int, *, closed: bool = True) -> Iterator[Member]:
    """Yield the members of a tar, in order, folders left out.

    Args:
        read: (position, count) -> bytes, fewer where the tar ends.
        end: its length.
        closed: whether it must end with a block of zeros, as a whole tar does.

    Raises ``TarError`` when it ends too early or a header is damaged.
    """
    position = start = 0
    name, size = "", None
    while True:
        header = read(position, BLOCK)
        if not closed and position >= end:
            return
        if len(header) < BLOCK:
            raise TarError(f"is truncated: it ends at byte {end} without the block that closes a tar")
        if not any(header):
            return
        _check(header, position)
        kind, data = header[156:157], position + BLOCK
        declared = _number(header[124:136], position)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if declared > _MAX_EXTENDED:
                raise TarError(f"has an extended header of {declared:,} bytes at byte {position}")
            extended = read(data, declared)
            if kind == _LONG_NAME:
                name = extended.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == _PAX:
                fields = _pax(extended, position)
                name, size = fields.get("path", name), int(fields["size"]) if "size" in fields else size
            position = data + _padded(declared)
            continue
        if size is None:
            size = declared
        name = name or _name(header)
        if kind != _FOLDER:
            if data + size > end:
                raise TarError(f"{name!r} declares {size:,} bytes at byte {data}, but the tar ends at byte {end}")
            fault = _fault_of_name(name)
            if kind not in _REGULAR:
                fault = _REFUSED.get(kind, f"is of the unknown kind {kind!r}")
            yield Member(name.removeprefix("./"), start, data, size, fault)
        start = position = data + _padded(size)
        name, size = "", None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check(header: bytes, position: int) -> None:
    """The sum over the header, its own field counted as spaces, must be as written."""
    if sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") != _number(header[148:156], position):
        raise TarError(f"is damaged: there is no valid header at byte {position}")


def _number(field: bytes, position: int) -> int:
    if field[0] == 0x80:  # GNU's form for what octal digits cannot hold
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise TarError(f"is damaged: the header at byte {position} has the number {field!r}")
    return int(digits[1] or b"0", 8)


def _name(header: bytes) -> str:
    name, prefix = (part.split(b"\0", 1)[0] for part in (header[:100], header[345:500]))
    # Only the POSIX form has the second part; GNU keeps times there.
    whole = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
    return whole.decode("utf-8", "replace")


def _pax(extended: bytes, position: int) -> dict[str, str]:
    """Records ``length key=value``, length counting the whole record with its newline."""
    fields = {}
    while extended:
        length, _, rest = extended.partition(b" ")
        count = int(length) if length.isdigit() and len(length) <= len(str(_MAX_EXTENDED)) else 0
        record = rest[: max(count - len(length) - 1, 0)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or count > len(extended):
            raise TarError(f"is damaged: the extended header at byte {position} cannot be read")
        fields[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
        extended = extended[count:]
    if not re.fullmatch("[0-9]{1,19}", fields.get("size", "0")):
        raise TarError(f"is damaged: the extended header at byte {position} has the size {fields['size']!r}")
    return fields


def _fault_of_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
        return "has a name that leads out of the folder"
    return "" if path.name else "has no name"
