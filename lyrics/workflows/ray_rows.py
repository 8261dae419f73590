"""The parquet shards that ``lyrics refine --engine ray`` writes: which images have a row, their lines, and a count.

Each start writes into a folder of its own, ``rows/00003``. An image that was skipped is tried again by the next start,
as in a run without Ray, so that of skipped images the last start alone tells.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lyrics.core.errors import LyricsError
from lyrics.core.files import name_for_messages
from lyrics.core.refining.index import KeySet, key_of


def row_id(name: str, where: str) -> str:
    """Return the name of an image and where it is as text that any file can hold: a name may be any bytes."""
    return f"{os.fsencode(name).hex()} {os.fsencode(where).hex()}"


def name_and_place(row_id: str) -> tuple[str, str]:
    """Return what ``row_id`` was made of."""
    name, where = (os.fsdecode(bytes.fromhex(part)) for part in row_id.split())
    return name, where


@dataclass(frozen=True)
class RowShards:
    """The parquet shards in ``folder``.

    One that cannot be read is of a task that died: its rows come again.
    """

    folder: Path
    arrow: Any

    @property
    def starts(self) -> list[Path]:
        """The folders of all starts, in order."""
        return sorted(path for path in self.folder.iterdir() if path.name.isdecimal()) if self.folder.is_dir() else []

    def begin(self) -> Path:
        """Make the folder of another start, and return it."""
        starts = self.starts
        path = self.folder / f"{int(starts[-1].name) + 1 if starts else 0:05}"
        path.mkdir(parents=True)
        return path

    def _tables(self, folder: Path, *columns: str) -> Iterator[Any]:
        for path in sorted(folder.rglob("*.parquet")):
            try:
                yield self.arrow.parquet.read_table(path, columns=list(columns))
            except (self.arrow.ArrowException, OSError):
                continue

    def keys(self, *, last_start: bool = False) -> KeySet:
        """Keys of the images that were refined by any start; or of all that the last start refined or skipped."""
        found = KeySet()
        for folder in self.starts[-1:] if last_start else self.starts:
            for table in self._tables(folder, "id", "kind"):
                for one, kind in zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True):
                    if (last_start or not kind) and (key := key_of(name_and_place(one)[0])) not in found:
                        found.add(key)
        return found

    def refiner(self) -> str | None:
        """Return the digest of the refiner that made the rows, None where there are none.

        Raises ``LyricsError`` where several made them.
        """
        found: set[str] = set()
        for start in self.starts:
            for table in self._tables(start, "refiner"):
                found.update(table["refiner"].unique().to_pylist())
        if len(found) > 1:
            raise LyricsError(
                f"{name_for_messages(self.folder)}: holds rows of {len(found)} refiners ({', '.join(sorted(found))}): "
                "the weights are not the same on all machines, or were changed between two starts. Put them right, and "
                "give another --out."
            )
        return next(iter(found), None)

    def lines(self) -> Iterator[bytes]:
        """The lines of ``objects.jsonl``."""
        for start in self.starts:
            yield from self._lines(start, skipped=False)

    def skipped_lines(self) -> Iterator[bytes]:
        """The lines of ``skipped.jsonl``."""
        for start in self.starts[-1:]:
            yield from self._lines(start, skipped=True)

    def _lines(self, start: Path, *, skipped: bool) -> Iterator[bytes]:
        for table in self._tables(start, "kind", "line"):
            for kind, line in zip(table["kind"].to_pylist(), table["line"].to_pylist(), strict=True):
                if bool(kind) == skipped:
                    yield line.encode("utf-8")


class RowCounter:
    """Counts the rows of one start every two seconds, for a progress bar, as a context manager.

    ``done`` rows were there before; there will be ``total``.
    """

    def __init__(self, folder: Path, done: int, total: int, progress: Callable[[int, int], None], arrow: Any) -> None:
        self.folder, self.done, self.total, self.progress, self.arrow = folder, done, total, progress, arrow
        self._counts: dict[Path, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RowCounter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._count()

    def _watch(self) -> None:
        while not self._over.wait(2.0):
            self._count()

    def _count(self) -> None:
        for path in self.folder.rglob("*.parquet"):
            if path not in self._counts:
                with contextlib.suppress(self.arrow.ArrowException, OSError):  # is being written
                    self._counts[path] = self.arrow.parquet.read_metadata(path).num_rows
        self.progress(min(self.done + sum(self._counts.values()), self.total), self.total)
