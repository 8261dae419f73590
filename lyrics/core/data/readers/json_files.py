"""JSON, JSON lines, and tables of tab-separated columns."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from lyrics.core.data.readers.files import ReadOnDemand, read_json
from lyrics.core.data.readers.row import Row, brief
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.json_reading import parse_json


class Found(NamedTuple):
    """What a sample is made of: the number of a record in its file, and of an item in it where it gives several."""

    record: Any
    number: int
    item: int = -1


@dataclass(frozen=True, slots=True)
class Fault:
    """Stands for a record that cannot be read, and says why.

    Who draws it gets a ``SampleError``: a bad record is one bad sample.
    """

    sentence: str


def listed(data: Any, key: str | None = None) -> list[Any]:
    """Return the records of a parsed file: a list, or the list under ``key``.

    Raises ``DatasetError`` for anything else.
    """
    rows = data
    if key is not None:
        rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        expected = "a list of records" if key is None else f"a mapping with a list under {key!r}"
        raise DatasetError(f"is not {expected} but {_shape(data)}.")
    return rows


def keyed(data: Any, name: str) -> list[Any]:
    """Return the records of a mapping {key: record}; each gets its key as ``name``.

    Raises ``DatasetError`` for anything else.
    """
    if not isinstance(data, dict):
        raise DatasetError(f"is not a mapping from keys to records but {_shape(data)}.")
    return [{**row, name: key} if isinstance(row, dict) else Fault(_no_mapping(key, row)) for key, row in data.items()]


def taken_apart(rows: Iterable[Any], apart: Callable[[Row], Iterable[Any]]) -> Iterator[Found]:
    """Yield the samples' records that ``apart`` takes out of each record: any number of them, none included.

    A record that it cannot take apart (it raises ``SampleError``) counts as one sample, and that is a bad one.
    """
    for number, row in enumerate(rows):
        if isinstance(row, Fault):
            yield Found(row, number)
            continue
        try:
            items = list(apart(Row(row)))
        except SampleError as error:
            yield Found(Fault(str(error)), number)
        else:
            yield from (Found(each, number, item) for item, each in enumerate(items))


def _no_mapping(key: Any, row: Any) -> str:
    return f"{brief(key)} is {brief(row)}, where a mapping of fields is expected."


def _shape(data: Any) -> str:
    return f"a mapping with {', '.join(list(map(str, data))[:6])}" if isinstance(data, dict) else type(data).__name__


@dataclass
class JsonRecords(ReadOnDemand):
    """The records of JSON files, parsed at first use and then held in memory.

    Args:
        paths: one file, or several whose records follow each other.
        rows: parsed file -> its records, plain or as ``Found``; filters and takes apart where the format asks for it.
        item: what a part of a record is called in messages; empty where each record is one sample at most.

    Raises ``SampleError`` for a record in whose place ``rows`` gave a ``Fault``.
    """

    paths: Sequence[Path]
    rows: Callable[[Any], Iterable[Any]] = listed
    item: str = ""

    @cached_property
    def _rows(self) -> tuple[list[Any], list[int], array[int], array[int]]:
        """All records; the number of each file's first; of each record its number in its file, and its item's."""
        found: list[Any] = []
        starts = []
        numbers, items = array("q"), array("q")
        for path in self.paths:
            starts.append(len(found))
            for number, row in enumerate(parsed(path, self.rows)):
                record, number, item = row if isinstance(row, Found) else Found(row, number)
                found.append(record)
                numbers.append(number)
                items.append(item)
        return found, starts, numbers, items

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitem__(self, index: int) -> Any:
        record = self._rows[0][index]
        if isinstance(record, Fault):
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: {record.sentence}", "record")
        return record

    def where(self, index: int) -> tuple[Path, str]:
        _, starts, numbers, items = self._rows
        path = self.paths[bisect_right(starts, index) - 1]
        item = f", {self.item} {items[index]}" if self.item and items[index] >= 0 else ""
        return path, f"record {numbers[index]}{item}"


def parsed(path: Path, rows: Callable[[Any], Any]) -> Any:
    """Return ``rows`` of the parsed file. What it raises becomes a ``DatasetError`` that names the file."""
    data = read_json(path)
    try:
        found = rows(data)
        return list(found) if isinstance(found, Iterator) else found
    except (DatasetError, SampleError) as error:
        raise DatasetError(f"{path}: {error}") from None
    except (TypeError, AttributeError, ValueError, LookupError) as error:
        raise DatasetError(f"{path}: is not as expected: {error}.") from error


class ByKey:
    """Records by one of their keys; ``by_key[value]`` raises ``SampleError`` where not exactly one has that value.

    Records that are equal count as one. Those without the key cannot be asked for; the message for a value that is
    missing names one.
    """

    def __init__(self, rows: Iterable[Any], key: str, *, called: str = "record") -> None:
        self.key, self.called = key, called
        self.found: dict[Any, Any] = {}
        self.doubled: set[Any] = set()
        self.lacking = ""
        for number, fields in enumerate(rows):
            row = Row(fields)
            try:
                value = row.identity(key)
            except SampleError as error:
                self.lacking = self.lacking or f"; of its {called} {number}, {error}"
                continue
            if value in self.found and self.found[value] != fields:
                self.doubled.add(value)
            self.found[value] = fields

    def __contains__(self, value: object) -> bool:
        try:
            return value in self.found
        except TypeError:  # a list or a mapping
            return False

    def __getitem__(self, value: Any) -> Any:
        if value not in self:
            raise SampleError(f"has no {self.called} with {self.key} {brief(value)}{self.lacking}", "missing")
        if value in self.doubled:
            raise SampleError(f"has more than one {self.called} with {self.key} {brief(value)}", "record")
        return self.found[value]


@dataclass
class Lookup(ReadOnDemand):
    """Records of a JSON file by one of their keys, for sets whose samples are spread over two files.

    ``lookup[value]`` is a ``Row`` that names the file; it raises ``SampleError`` where no record has that value, or
    several that differ.
    """

    path: Path
    key: str
    rows: Callable[[Any], list[Any]] = listed

    @cached_property
    def _by_key(self) -> ByKey:
        found: ByKey = parsed(self.path, lambda data: ByKey(self.rows(data), self.key))
        return found

    def __getitem__(self, value: Any) -> Row:
        try:
            return Row(self._by_key[value], f"{self.path.name}, {self.key} {brief(value)}")
        except SampleError as error:
            raise SampleError(f"{self.path} {error}", error.kind) from None


@dataclass(frozen=True)
class _Lines:
    """Where the lines of a file are.

    Args:
        starts: of each line that holds a record, and at last where the last one ends.
        skipped: pairs (number of a record, how many blank and header lines come before it), where that number changes.
        columns: in the order of the file.
    """

    starts: array[int]
    skipped: tuple[tuple[int, int], ...]
    columns: tuple[str, ...]

    def number(self, record: int) -> int:
        """Return the line of a record, from 1 on."""
        before = bisect_right(self.skipped, (record, sys.maxsize)) - 1
        return record + 1 + (self.skipped[before][1] if before >= 0 else 0)


@dataclass
class LineRecords(ReadOnDemand):
    """One record per line: JSON lines, or with ``columns`` a table of tab-separated columns.

    Blank lines are no records, nor is a first line that names the columns (in any order, which is then that of the
    file). At first use the files are read once to learn where their lines begin (8 bytes a line are kept); then a
    record is one read. Raises ``SampleError`` with file and line for a line that is not JSON or has another number of
    columns.
    """

    paths: Sequence[Path]
    columns: tuple[str, ...] = ()

    @cached_property
    def _files(self) -> list[_Lines]:
        return [_lines(path, self.columns) for path in self.paths]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.shard_sizes))

    @property
    def shard_sizes(self) -> list[int]:
        return [len(file.starts) - 1 for file in self._files]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the file, and of the record in it."""
        file = bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def where(self, index: int) -> tuple[Path, str]:
        file, record = self._place(index)
        return self.paths[file], f"line {self._files[file].number(record)}"

    def __getitem__(self, index: int) -> Any:
        file, record = self._place(index)
        lines = self._files[file]
        with self.paths[file].open("rb") as opened:
            opened.seek(lines.starts[record])
            data = opened.read(lines.starts[record + 1] - lines.starts[record])
        try:
            # What follows are blank lines.
            return _record(data.partition(b"\n")[0], lines.columns)
        except ValueError as error:
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: cannot be read: {error}.", "record") from None


def _record(line: bytes, columns: tuple[str, ...]) -> Any:
    if not columns:
        return parse_json(line)
    values = line.decode("utf-8").rstrip("\r").split("\t")
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} columns where {len(columns)} ({', '.join(columns)}) are expected")
    return dict(zip(columns, values, strict=True))


def _lines(path: Path, columns: tuple[str, ...]) -> _Lines:
    starts = array("q")
    skipped: list[tuple[int, int]] = []
    position = end = 0
    with path.open("rb") as opened:
        for number, line in enumerate(opened):
            start, position = position, position + len(line)
            if number == 0 and line.startswith(BOM_UTF8):
                start, line = start + len(BOM_UTF8), line[len(BOM_UTF8) :]
            if not line or line.isspace():
                continue
            if not starts and (header := _header(line, columns)):
                columns = header
                continue
            before = number - len(starts)
            if before != (skipped[-1][1] if skipped else 0):
                skipped.append((len(starts), before))
            starts.append(start)
            end = position
    starts.append(end)
    return _Lines(starts, tuple(skipped), columns)


def _header(line: bytes, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns in the order in which a first line names them; empty for a line that does not."""
    names = tuple(name.strip().lower() for name in line.decode("utf-8", "replace").split("\t"))
    return names if columns and sorted(names) == sorted(columns) else ()


def columns_of(data: Any, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the records of a file that keeps each key's values in a list of its own.

    ``names`` maps the file's keys to the records'.

    Raises ``DatasetError`` when the lists differ in length.
    """
    lists = [listed(data, key) for key in names]
    if len({len(values) for values in lists}) > 1:
        sizes = ", ".join(f"{key} {len(values)}" for key, values in zip(names, lists, strict=True))
        raise DatasetError(f"its lists differ in length: {sizes}.")
    return [dict(zip(names.values(), row, strict=True)) for row in zip(*lists, strict=True)]


def records_of(paths: Iterable[Path]) -> JsonRecords | LineRecords:
    """Return the reader for files that may be either JSON (a list of records) or JSON lines, by their ending."""
    found = list(paths)
    return LineRecords(found) if found[0].suffix == ".jsonl" else JsonRecords(found)
