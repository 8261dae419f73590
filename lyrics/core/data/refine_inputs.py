"""What ``lyrics refine`` is given: images, folders, lists, tar shards, parquet files, and object stores.

Each input is gone through as often as wanted and never listed as a whole.

=========================  ============================================  =============================================
input                      holds                                         an image's name
=========================  ============================================  =============================================
a file, a folder           images                                        its path
``LIST.txt``               a path or an address on each line             as written there
``SHARD.tar``              webdataset samples, with an index beside it   ``SHARD.tar/ROW/MEMBER``
``TABLE.parquet``          a column of paths, addresses or bytes         the path; of bytes ``TABLE.parquet/ROW``
``s3://BUCKET/KEY``        an image, or a folder of them (fsspec)        its address
=========================  ============================================  =============================================
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.arrow import import_arrow
from lyrics.core.clean_text import reason_of
from lyrics.core.data.pictures import decode_picture
from lyrics.core.data.readers.tar import MAX_SAMPLE_BYTES, TarRecords
from lyrics.core.errors import DatasetError, ImageError, LyricsError, MissingRequirementError, SampleError, did_you_mean
from lyrics.core.files import name_for_messages, open_file
from lyrics.core.refining.inputs import SUFFIXES, FilePicture, InputPicture, pictures_inside

#: Object stores and file systems whose addresses are followed; web pages are not: fetch them first.
PROTOCOLS = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "obs", "hdfs", "webhdfs"),
    *("memory", "file", "local"),
)
#: Columns of a parquet file that hold images, in the order in which they are looked for.
COLUMNS = ("image", "path", "image_path", "file_name", "filename", "file", "bytes", "jpg", "png", "webp")
_RETRY_DELAYS_S = (0.5, 2.0, 8.0)


class RefineInputs:
    """The images of several inputs, one after the other.

    Args:
        given: paths and addresses, as in the table above.
        leave_out: a folder that is not searched.
        column: of parquet files; the first of ``COLUMNS`` that there is unless given.

    Raises:
        ImageError: an input does not exist.
        DatasetError: a tar has no index, or a parquet file is damaged or has no column of images.
        MissingRequirementError: an input needs a package that is not installed.
    """

    def __init__(self, given: Sequence[str], *, leave_out: Path | None = None, column: str | None = None) -> None:
        self.inputs: list[Iterable[InputPicture]] = [_input(one, leave_out, column) for one in given]

    def __iter__(self) -> Iterator[InputPicture]:
        for one in self.inputs:
            yield from one


def _input(given: str, leave_out: Path | None, column: str | None) -> Iterable[InputPicture]:
    if is_address(given):
        return _Remote(given)
    path = Path(given)
    if os.path.isdir(path):
        return _Folder(path, leave_out)
    if not os.path.lexists(path):
        raise ImageError(f"{name_for_messages(given)}: no such file or folder.", "missing")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _List(path)
    if suffix == ".tar":
        return _Tar(path)
    if suffix == ".parquet":
        return _Parquet(path, column)
    return [FilePicture(path)]


@dataclass(frozen=True)
class _Folder:
    path: Path
    leave_out: Path | None

    def __iter__(self) -> Iterator[InputPicture]:
        return map(FilePicture, pictures_inside(self.path, self.leave_out))


def picture_at(where: str) -> InputPicture:
    """Return the image at a path or an address."""
    return _RemotePicture(where) if is_address(where) else FilePicture(Path(where))


@dataclass(frozen=True)
class _List:
    """A text file with a path or an address on each line; blank lines are passed over."""

    path: Path

    def __iter__(self) -> Iterator[InputPicture]:
        try:
            with open_file(self.path) as file:
                for line in file:
                    if where := os.fsdecode(line.strip(b"\r\n")).removeprefix("\ufeff"):
                        yield picture_at(where)
        except OSError as error:
            raise DatasetError(f"{name_for_messages(self.path)}: cannot be read: {error.strerror or error}.") from error


class _Tar:
    """The samples of a tar shard; each is read when its name is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, TarRecords([path])

    def __iter__(self) -> Iterator[InputPicture]:
        return (_TarPicture(self.path, self.records, row) for row in range(len(self.records)))


@dataclass
class _TarPicture:
    path: Path
    records: TarRecords
    row: int

    @property
    def key(self) -> str:
        return f"{self.path}/{self.row}"

    @cached_property
    def _record(self) -> dict[str, Any] | ImageError:
        name = f"{name_for_messages(self.path)}, sample {self.row}"
        try:
            record = self.records[self.row]
        except SampleError as error:
            return ImageError(str(error), "corrupt")
        except OSError as error:
            return ImageError(f"{name}: cannot be read: {error.strerror or error}.", "unreadable")
        return record if record["image"] is not None else ImageError(f"{name}: no image; {record['why']}.", "missing")

    @property
    def name(self) -> str:
        found = self._record
        return self.key if isinstance(found, ImageError) else str(self.path.parent / found["image"])

    def open(self) -> Image.Image:
        found = self._record
        if isinstance(found, ImageError):
            raise found
        try:
            return self.records.read(found["image"])
        except SampleError as error:
            raise ImageError(str(error), "corrupt") from None


class _Parquet:
    """A column of a parquet file: paths and addresses, bytes, or records ``{"bytes", "path"}`` as datasets has them."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        arrow = import_arrow()
        name = name_for_messages(path)
        try:
            with arrow.parquet.ParquetFile(path) as file:
                columns = {field.name: field.type for field in file.schema_arrow}
                self.groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (arrow.ArrowException, OSError) as error:
            raise DatasetError(f"{name}: is not a parquet file, or is damaged: {reason_of(error)}.") from error
        if column is not None and column not in columns:
            raise DatasetError(f"{name}: has no column {column!r}.{did_you_mean(column, columns)}")
        found = column or next((one for one in COLUMNS if one in columns), None)
        if found is None:
            raise DatasetError(
                f"{name}: none of its columns is called like one of images ({', '.join(COLUMNS)}); name one with "
                f"--column; there are {', '.join(columns)}."
            )
        self.column, kind, types = found, columns[found], arrow.types
        self.of_paths = types.is_string(kind) or types.is_large_string(kind)
        binary = types.is_binary(kind) or types.is_large_binary(kind)
        record = types.is_struct(kind) and {"bytes", "path"} >= {kind.field(n).name for n in range(kind.num_fields)}
        if not (self.of_paths or binary or record):
            raise DatasetError(f"{name}: column {found!r} is of {kind}, not of paths or of the bytes of images.")
        self._group: tuple[int, list[Any]] | None = None

    def __iter__(self) -> Iterator[InputPicture]:
        start = 0
        for group, rows in enumerate(self.groups):
            for row in range(rows):
                if not self.of_paths:
                    yield _ParquetPicture(self, start + row, group, row)
                elif where := self.value(group, row):
                    yield picture_at(where)
                else:
                    yield _ParquetPicture(self, start + row, group, row)
            start += rows

    def value(self, group: int, row: int) -> Any:
        """The value in a row of a row group; a group is read as a whole and kept until another is wanted."""
        arrow = import_arrow()
        kept = self._group
        if kept is None or kept[0] != group:
            self._group = None  # before the next is there, too
            try:
                with arrow.parquet.ParquetFile(self.path) as file:
                    table = file.read_row_group(group, columns=[self.column], use_threads=False)
            except (arrow.ArrowException, OSError) as error:
                raise DatasetError(
                    f"{name_for_messages(self.path)}, row group {group}: cannot be read: {reason_of(error)}."
                ) from error
            kept = self._group = (group, table.column(0).to_pylist())
        return kept[1][row]


@dataclass(frozen=True)
class _ParquetPicture:
    table: _Parquet
    number: int
    group: int
    row: int

    @property
    def key(self) -> str:
        return f"{self.table.path}/{self.number}"

    name = key

    def open(self) -> Image.Image:
        name = f"{name_for_messages(self.table.path)}, row {self.number}"
        try:
            value = self.table.value(self.group, self.row)
        except DatasetError as error:
            raise ImageError(str(error), "corrupt") from None
        if isinstance(value, dict):
            if not value.get("bytes") and value.get("path"):
                return picture_at(value["path"]).open()
            value = value.get("bytes")
        if not value:
            raise ImageError(f"{name}: holds no image.", "empty")
        return decode_picture(value, name)


# --- object stores ---


def is_address(where: str) -> bool:
    """Return whether an input is an address such as ``s3://bucket/key``, not a path."""
    return "://" in where and where.partition("://")[0].replace("+", "").isalnum() and not os.path.lexists(where)


def _file_system(where: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises ``ImageError`` for an address that is not followed, ``MissingRequirementError`` for a store whose package is
    not installed.
    """
    protocol = where.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise ImageError(
            f"{name_for_messages(where)}: addresses that begin with {protocol}:// are not followed, but those of "
            f"{', '.join(PROTOCOLS)}; fetch it first.",
            "missing",
        )
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(where)
    except ImportError as error:
        raise MissingRequirementError(f"{protocol}:// needs a package that is not installed: {error}") from None
    return system, path


class _Remote:
    """An image or a folder in an object store; the names of one folder are held at a time, and those above it."""

    def __init__(self, where: str) -> None:
        system, path = _file_system(where)
        try:
            self.is_folder = bool(system.isdir(path))
            there = self.is_folder or bool(system.exists(path))
        except Exception as error:  # a store may raise anything: no rights, no network, no such region
            raise DatasetError(f"{where}: cannot be read: {type(error).__name__}: {error}.") from error
        if not there:
            raise ImageError(f"{where}: no such file or folder.", "missing")
        self.where = where

    def __iter__(self) -> Iterator[InputPicture]:
        if not self.is_folder:
            yield _RemotePicture(self.where)
            return
        system, path = _file_system(self.where)
        levels = [iter([(path, True)])]
        while levels:
            current, is_folder = next(levels[-1], ("", False))
            if not current:
                levels.pop()
            elif is_folder:
                try:
                    listed = system.ls(current, detail=True)
                except Exception as error:
                    raise DatasetError(f"{self.where}: {current}: cannot be listed: {error}.") from error
                names = ((one["name"], one["type"] == "directory") for one in listed if one["name"] != current)
                levels.append(iter(sorted(name for name in names if name[1] or name[0].lower().endswith(SUFFIXES))))
            else:
                yield _RemotePicture(system.unstrip_protocol(current))


@dataclass(frozen=True)
class _RemotePicture:
    where: str

    @property
    def name(self) -> str:
        return self.where

    key = name

    def open(self) -> Image.Image:
        return decode_picture(self._bytes(), name_for_messages(self.where))

    def _bytes(self) -> bytes:
        """The file's bytes. What may pass, a store's refusal, is tried again after a while."""
        name = name_for_messages(self.where)
        for delay_s in (*_RETRY_DELAYS_S, None):
            try:
                system, path = _file_system(self.where)
                with system.open(path, "rb") as file:
                    data: bytes = file.read(MAX_SAMPLE_BYTES + 1)
                if len(data) > MAX_SAMPLE_BYTES:
                    raise ImageError(f"{name}: more than {MAX_SAMPLE_BYTES:,} bytes.", "large")
                return data
            except LyricsError:
                raise
            except FileNotFoundError:
                raise ImageError(f"{name}: no such file.", "missing") from None
            except (IsADirectoryError, PermissionError) as error:
                raise ImageError(f"{name}: cannot be read: {error}.", "unreadable") from None
            except Exception as error:  # a store may raise anything
                if delay_s is None or (isinstance(error, OSError) and error.errno == errno.EINVAL):
                    raise ImageError(f"{name}: cannot be read: {type(error).__name__}: {error}.", "unreadable") from (
                        error
                    )
                time.sleep(delay_s)
        raise AssertionError("the last try returns or raises")
