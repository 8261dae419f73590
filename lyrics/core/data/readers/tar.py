"""Webdataset shards: tars of ``KEY.jpg``, ``KEY.txt``, ``KEY.json``, read in place through an offset index.

``lyrics data index`` writes ``00000.tar.index`` beside ``00000.tar``, after it has read the whole tar once: a sample's
members follow each other, so that 16 bytes say where they are (position, length, CRC-32), and a sample is one read.
Images, ``txt`` and ``json`` are read; any other member (a pickle, say) is stepped over.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lyrics.core.data.readers.files import ReadOnDemand, is_there
from lyrics.core.data.readers.tar_format import Member, TarError, members
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.json_reading import parse_json

if TYPE_CHECKING:
    from PIL import Image

INDEX_SUFFIX = ".index"
#: A sample is read whole; one that is longer is not an image with its text.
MAX_SAMPLE_BYTES = 256 * 1024 * 1024
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
# What else people call images; these are not read, and that is said.
_OTHER_PICTURES = ("jpe", "jfif", "tif", "tiff", "heic", "heif", "avif", "jxl", "jp2", "svg")
_MAGIC = b"lyrics tar idx 1"
_HEADER = struct.Struct("<16sQQ")  # magic, length of the tar, samples
_ROW = struct.Struct("<QII")  # position, length, CRC-32 of a sample's members with their headers
_MAX_FAULTS = 20


def index_path(tar: Path) -> Path:
    return tar.with_name(tar.name + INDEX_SUFFIX)


def write_index(tar: Path) -> int:
    """Read a tar once and write its index beside it. Returns the number of samples.

    Raises ``DatasetError`` listing what is wrong with the tar: truncated, damaged, links, devices, names that lead
    elsewhere, a key or a member twice, a sample that is too long. Nothing is written then.
    """
    if not is_there(tar):
        raise DatasetError(f"{tar}: {_no_file(tar)}.")
    with tar.open("rb") as opened:
        rows = _rows(tar, opened)
    target = index_path(tar)
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, tar.stat().st_size, len(rows)))
        file.writelines(_ROW.pack(*row) for row in rows)
    os.replace(part, target)
    return len(rows)


def _rows(tar: Path, opened: IO[bytes]) -> list[tuple[int, int, int]]:
    end = os.fstat(opened.fileno()).st_size

    def read(position: int, count: int) -> bytes:
        opened.seek(position)
        return opened.read(count)

    faults: list[str] = []
    groups: dict[str, list[Member]] = {}
    last = ""
    try:
        for member in members(read, end):
            key, extension = split_name(member.name)
            if member.fault:
                faults.append(f"{member.name!r} {member.fault}")
            elif key.endswith("/") or not key:
                continue  # .DS_Store and its like
            elif key in groups and key != last:
                faults.append(f"the key {key!r} comes back with {member.name!r}: keys must be unique")
            elif any(split_name(other.name)[1] == extension for other in groups.get(key, ())):
                faults.append(f"{member.name!r} is there twice")
            else:
                groups.setdefault(key, []).append(member)
            last = key
    except TarError as error:
        faults.append(str(error))
    rows = []
    for key, group in groups.items():
        start, length = group[0].start, group[-1].data + group[-1].size - group[0].start
        if length > MAX_SAMPLE_BYTES:
            faults.append(f"the sample {key!r} has {length:,} bytes; at most {MAX_SAMPLE_BYTES:,} are read")
        elif not faults:
            rows.append((start, length, zlib.crc32(read(start, length))))
    if faults:
        more = f"\n  and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise DatasetError(f"{tar}: is not indexed:" + "".join(f"\n  {text}" for text in faults[:_MAX_FAULTS]) + more)
    return rows


def split_name(name: str) -> tuple[str, str]:
    """Return the key and extension, as webdataset splits them: at the first dot of the last part.

    ``a/b.seg.png`` -> ``a/b``, ``seg.png``.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


@dataclass
class TarRecords(ReadOnDemand):
    """Records ``{"key", "image", "txt", "json", "why"}`` of indexed tars; a member that is not there is None.

    ``image`` is ``TAR/ROW/MEMBER``, the key of ``read``. A sample has one image: where it has none that is read, or
    several, ``image`` is None and ``why`` says so. Opens each index once when it is made, and raises ``DatasetError``
    when one is missing, is of another tar, or has lost its tar.
    """

    paths: Sequence[Path]
    _sizes: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sizes = [_samples(path) for path in self.paths]
        # The sample read last, for `read` follows `__getitem__`. One slot, replaced at once: safe between threads.
        self._last: tuple[int, bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}

    @property
    def shard_sizes(self) -> list[int]:
        return self._sizes

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._sizes))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {path.name: number for number, path in enumerate(self.paths)}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the tar, and of the sample in it."""
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def where(self, index: int) -> tuple[Path, str]:
        shard, row = self._place(index)
        return self.paths[shard], f"sample {row}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = self._place(index)
        data, found = self._members(index)
        extensions = {split_name(member.name)[1]: member for member in found}
        texts = {
            name: _decoded(self.paths[shard], extensions[name], data) if name in extensions else None
            for name in ("txt", "json")
        }
        picture, why = _picture(found)
        image = f"{self.paths[shard].name}/{row}/{picture.name}" if picture is not None else None
        return {"key": split_name(found[0].name)[0], "image": image, **texts, "why": why}

    def read(self, key: str) -> Image.Image:
        """Return the image that ``image`` of a record names.

        Raises ``ImageError`` or ``SampleError`` naming tar and member.
        """
        from lyrics.core.data.pictures import decode_picture

        shard, _, rest = key.partition("/")
        row, _, name = rest.partition("/")
        number = self._numbers.get(shard)
        if number is None or not row.isdecimal() or int(row) >= self._sizes[number]:
            raise SampleError(f"{key!r} is no image of these shards", "missing")
        data, found = self._members(int(row) + (self._ends[number - 1] if number else 0))
        picture, _ = _picture(found)
        if picture is None or picture.name != name:
            raise SampleError(f"{self.paths[number]}: sample {row} has no image {name!r}", "member")
        return decode_picture(data[picture.data : picture.data + picture.size], f"{self.paths[number]}: {name}")

    def find(self, key: str) -> None:
        """Nothing to look for: a record names no image that its sample lacks."""

    def _members(self, index: int) -> tuple[bytes, list[Member]]:
        """Return a sample's bytes, and its members by their position in them."""
        last = self._last
        if last is None or last[0] != index:
            last = self._last = (index, self._bytes(index))
        data = last[1]
        try:
            found = members(lambda position, count: data[position : position + count], len(data), closed=False)
            return data, list(found)
        except TarError as error:
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: {error}; its index is not of this tar.", "member") from None

    def _bytes(self, index: int) -> bytes:
        shard, row = self._place(index)
        path = self.paths[shard]
        with index_path(path).open("rb") as opened:
            _, tar_bytes, _ = _HEADER.unpack(opened.read(_HEADER.size))
            opened.seek(_HEADER.size + row * _ROW.size)
            start, length, checksum = _ROW.unpack(opened.read(_ROW.size))
        if length > MAX_SAMPLE_BYTES or start + length > tar_bytes:
            raise SampleError(
                f"{path}, sample {row}: its index says {length:,} bytes from byte {start:,} on; it is damaged. "
                f"Run: lyrics data index {path}",
                "member",
            )
        with path.open("rb") as opened:
            opened.seek(start)
            data = opened.read(length)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise SampleError(
                f"{path}, sample {row}: its bytes have changed since the tar was indexed. If it was replaced on "
                f"purpose, run 'lyrics data index {path}' again.",
                "checksum",
                sha256=sha256(data).hexdigest(),
            )
        return data


def _picture(found: Sequence[Member]) -> tuple[Member | None, str]:
    """Return the one image among a sample's members, or None and why there is none."""
    plain = [member for member in found if split_name(member.name)[1] in _PICTURES]
    if len(plain) == 1:
        return plain[0], ""
    names = [member.name for member in found if _last_ending(member.name) in (*_PICTURES, *_OTHER_PICTURES)]
    if len(plain) > 1:
        return None, f"it has several: {_listed(names)}"
    dotted = [name for name in names if "." in split_name(name)[1]]
    if dotted:
        return (
            None,
            f"it has {_listed(dotted)}, but a key ends at the first dot: rename them to KEY.ENDING",
        )
    if names:
        return None, f"it has {_listed(names)}; {', '.join(_PICTURES)} are read"
    return None, f"its members are {_listed([member.name for member in found])}"


def _last_ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _decoded(path: Path, member: Member, data: bytes) -> Any:
    content = data[member.data : member.data + member.size]
    try:
        return parse_json(content) if member.name.lower().endswith(".json") else content.decode("utf-8-sig")
    except ValueError as error:
        raise SampleError(f"{path}: {member.name}: cannot be read: {error}.", "member") from None


def _samples(path: Path) -> int:
    """Return how many samples the index of a tar has."""
    index = index_path(path)
    if not is_there(path):
        indexed = f", but there is an index of it ({index.name})" if is_there(index) else ""
        raise DatasetError(f"{path}: {_no_file(path)}{indexed}.")
    if not is_there(index):
        raise DatasetError(f"{path}: has no index. Run: lyrics data index {path.parent}/*.tar")
    with index.open("rb") as opened:
        header = opened.read(_HEADER.size)
        size = os.fstat(opened.fileno()).st_size
    magic, tar_bytes, samples = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0)
    if magic != _MAGIC or size != _HEADER.size + samples * _ROW.size:
        raise DatasetError(f"{index}: is not an index, or is cut short. Run: lyrics data index {path}")
    if tar_bytes != path.stat().st_size:
        raise DatasetError(
            f"{path}: has {path.stat().st_size:,} bytes, but its index is of a tar of {tar_bytes:,}. "
            f"If it was replaced on purpose, run: lyrics data index {path}"
        )
    return int(samples)


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder, not a tar"
    return "is a pipe or a device, not a tar" if path.exists() else "no such file"


def shards_in(folder: Path) -> list[Path]:
    """Return the tars of a folder, those of which only the index is left included, so that their loss is noticed."""
    names = {path.name.removesuffix(INDEX_SUFFIX) for path in folder.iterdir()}
    shards = sorted(folder / name for name in names if name.endswith(".tar"))
    for shard in shards:
        if shard.exists() and not is_there(shard):
            raise DatasetError(
                f"{shard}: {_no_file(shard)}. Tars are read as they are: pack it again, or move it away."
            )
    return shards
