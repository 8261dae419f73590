"""JSON, JSON lines, and tables of tab-separated columns."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from lyrics.core.data.readers.files import ReadOnDemand, read_json
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.json_reading import parse_json


def listed(data: Any, key: str | None = None) -> list[Any]:
    """The records of a parsed file: a list, or the list under ``key``. Raises ``DatasetError`` for anything else."""
    rows = data
    if key is not None:
        rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        expected = "a list of records" if key is None else f"a mapping with a list under {key!r}"
        raise DatasetError(f"is not {expected} but {_shape(data)}.")
    return rows


def keyed(data: Any, name: str) -> list[dict[str, Any]]:
    """The records of a mapping {key: record}; each gets its key as ``name``. Raises ``DatasetError`` for anything else."""
    if not isinstance(data, dict) or not all(isinstance(row, dict) for row in data.values()):
        raise DatasetError(f"is not a mapping from keys to records but {_shape(data)}.")
    return [{**row, name: key} for key, row in data.items()]


def _shape(data: Any) -> str:
    return f"a mapping with {', '.join(list(map(str, data))[:6])}" if isinstance(data, dict) else type(data).__name__


@dataclass
class JsonRecords(ReadOnDemand):
    """The records of JSON files, parsed at first use and then held in memory.

    Args:
        paths: one file, or several whose records follow each other.
        rows: parsed file -> its records; filters and flattens where the format asks for it.
    """

    paths: Sequence[Path]
    rows: Callable[[Any], list[Any]] = listed

    @cached_property
    def _rows(self) -> tuple[list[Any], list[int]]:
        """All records, and the number of the first one of each file."""
        found: list[Any] = []
        starts = []
        for path in self.paths:
            starts.append(len(found))
            found += parsed(path, self.rows)
        return found, starts

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitem__(self, index: int) -> Any:
        return self._rows[0][index]

    def where(self, index: int) -> tuple[Path, str]:
        starts = self._rows[1]
        file = bisect_right(starts, index) - 1
        return self.paths[file], f"record {index - starts[file]}"


def parsed(path: Path, rows: Callable[[Any], Any]) -> Any:
    """``rows`` of the parsed file. What it raises becomes a ``DatasetError`` that names the file."""
    data = read_json(path)
    try:
        return rows(data)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except KeyError as error:
        raise DatasetError(f"{path}: a record has no key {error.args[0]!r}.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path}: is not as expected: {error}.") from error


@dataclass
class Lookup(ReadOnDemand):
    """Records of a JSON file by one of their keys, for sets whose samples are spread over two files.

    ``lookup[value]`` raises ``SampleError`` where no record has that value.
    """

    path: Path
    key: str
    rows: Callable[[Any], list[Any]] = listed

    @cached_property
    def _by_key(self) -> dict[Any, Any]:
        found: dict[Any, Any] = parsed(self.path, lambda data: {row[self.key]: row for row in self.rows(data)})
        return found

    def __getitem__(self, value: Any) -> Any:
        if value not in self._by_key:
            raise SampleError(f"{self.path} has no record with {self.key} {value!r}", "missing")
        return self._by_key[value]


@dataclass
class LineRecords(ReadOnDemand):
    """One record per line: JSON lines, or with ``columns`` a table of tab-separated columns without a header.

    At first use the files are read once to learn where their lines begin (8 bytes a line are kept); then a record is one read.
    Raises ``SampleError`` with file and line for a line that is not JSON or has another number of columns.
    """

    paths: Sequence[Path]
    columns: tuple[str, ...] = ()

    @cached_property
    def _offsets(self) -> list[array[int]]:
        return [_line_offsets(path) for path in self.paths]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.shard_sizes))

    @property
    def shard_sizes(self) -> list[int]:
        return [len(offsets) - 1 for offsets in self._offsets]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the file, and of the line in it."""
        file = bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def where(self, index: int) -> tuple[Path, str]:
        file, line = self._place(index)
        return self.paths[file], f"line {line + 1}"

    def __getitem__(self, index: int) -> Any:
        file, line = self._place(index)
        offsets = self._offsets[file]
        with self.paths[file].open("rb") as opened:
            opened.seek(offsets[line])
            data = opened.read(offsets[line + 1] - offsets[line])
        try:
            return self._record(data)
        except ValueError as error:
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: cannot be read: {error}.", "record") from None

    def _record(self, data: bytes) -> Any:
        if not self.columns:
            return parse_json(data)
        values = data.decode("utf-8").rstrip("\r\n").split("\t")
        if len(values) != len(self.columns):
            raise ValueError(
                f"{len(values)} columns where {len(self.columns)} ({', '.join(self.columns)}) are expected"
            )
        return dict(zip(self.columns, values, strict=True))


def _line_offsets(path: Path) -> array[int]:
    """Where each line begins, and at last where the last one ends. Blank lines at the end of the file do not count."""
    offsets = array("q", [0])
    position = end = filled = 0
    with path.open("rb") as opened:
        for line in opened:
            position += len(line)
            offsets.append(position)
            if not line.isspace():
                filled, end = len(offsets), position
    del offsets[max(filled, 1) :]
    assert offsets[-1] == end
    return offsets


def columns_of(data: Any, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records of a file that keeps each key's values in a list of its own; ``names`` maps the file's keys to the records'.

    Raises ``DatasetError`` when the lists differ in length.
    """
    lists = [listed(data, key) for key in names]
    if len({len(values) for values in lists}) > 1:
        sizes = ", ".join(f"{key} {len(values)}" for key, values in zip(names, lists, strict=True))
        raise DatasetError(f"its lists differ in length: {sizes}.")
    return [dict(zip(names.values(), row, strict=True)) for row in zip(*lists, strict=True)]


def records_of(paths: Iterable[Path]) -> JsonRecords | LineRecords:
    """The reader for files that may be either JSON (a list of records) or JSON lines, by their ending."""
    found = list(paths)
    return LineRecords(found) if found[0].suffix == ".jsonl" else JsonRecords(found)
