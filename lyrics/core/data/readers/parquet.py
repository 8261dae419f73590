"""Parquet files, through pyarrow: one row at a time, the row groups it was found in kept for the next."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from lyrics.core.arrow import import_arrow
from lyrics.core.clean_text import reason_of
from lyrics.core.data.readers.files import ReadOnDemand
from lyrics.core.errors import DatasetError, SampleError

#: As many as the sampler has shards open at a time.
_KEPT_ROW_GROUPS = 32


@dataclass
class ParquetRecords(ReadOnDemand):
    """The rows of parquet files as dictionaries of plain values.

    A row group is read as a whole, so ``shard_sizes`` are those of the row groups. Raises ``MissingRequirementError``
    without pyarrow, and ``DatasetError`` for a file that is not parquet or has columns other than numbers, text, bytes,
    times, and lists and mappings of them.
    """

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        import_arrow()

    @cached_property
    def _groups(self) -> list[tuple[int, int, int]]:
        """For each row group the number of its file, its own number in it, and its rows."""
        return [
            (number, group, rows) for number, path in enumerate(self.paths) for group, rows in enumerate(_sizes(path))
        ]

    @property
    def shard_sizes(self) -> list[int]:
        return [rows for _, _, rows in self._groups]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.shard_sizes))

    @cached_property
    def _tables(self) -> OrderedDict[int, Any]:
        return OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the row group, and of the row in it."""
        group = bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def where(self, index: int) -> tuple[Path, str]:
        group, row = self._place(index)
        number, within, _ = self._groups[group]
        return self.paths[number], f"row group {within}, row {row}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, row = self._place(index)
        tables = self._tables
        if group not in tables:
            tables[group] = self._table(index, group)
            while len(tables) > _KEPT_ROW_GROUPS:
                tables.popitem(last=False)
        tables.move_to_end(group)
        record: dict[str, Any] = tables[group].slice(row, 1).to_pylist()[0]
        return record

    def _table(self, index: int, group: int) -> Any:
        pyarrow = import_arrow()
        number, within, _ = self._groups[group]
        try:
            with pyarrow.parquet.ParquetFile(self.paths[number]) as file:
                return file.read_row_group(within, use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            _let_through(error)
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: cannot be read: {reason_of(error)}.", "record") from error


def _sizes(path: Path) -> list[int]:
    """Rows of each row group."""
    pyarrow = import_arrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for column in file.schema_arrow:
                _check_type(path, column.name, column.type, pyarrow.types)
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        _let_through(error)
        raise DatasetError(f"{path}: is not a parquet file: {reason_of(error)}.") from error


def _let_through(error: BaseException) -> None:
    """Arrow raises ``OSError`` for damaged data too.

    Only the system's own errors have a number, and those are not the data's fault.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _check_type(path: Path, column: str, kind: Any, types: Any) -> None:
    """Types that plugins of Arrow define could run code of their own; none of the sets has them."""
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        _check_type(path, column, kind.value_type, types)
    elif types.is_struct(kind):
        for index in range(kind.num_fields):
            _check_type(path, column, kind.field(index).type, types)
    elif types.is_dictionary(kind):
        _check_type(path, column, kind.value_type, types)
    elif not (types.is_primitive(kind) or types.is_null(kind) or _is_text(kind, types)):
        raise DatasetError(f"{path}: column {column!r} is of type {kind}, which is not read.")


def _is_text(kind: Any, types: Any) -> bool:
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )
