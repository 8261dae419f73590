"""The ledger of bad samples: a JSON line for each, written by any number of processes.

It can be read back, so that a later run knows them beforehand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lyrics.core.errors import DatasetError
from lyrics.core.json_reading import parse_json


@dataclass(frozen=True)
class BadSample:
    """Why a row could not be used.

    Args:
        data_set, row: which one.
        source: the sample's own name for itself, or an empty string where it could not even be read.
        kind: one word, as ``ImageError`` and ``SampleError`` have it.
        error: the exception's type and message.
        sha256: of the bytes, where they were read.
    """

    data_set: str
    row: int
    source: str
    kind: str
    error: str
    sha256: str | None = None


class Ledger:
    """Appends to a file; a row is written once per process, however often it is met."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._written: set[tuple[str, int]] = set()

    def add(self, bad: BadSample) -> None:
        """Raise ``OSError`` when the file cannot be written."""
        if (bad.data_set, bad.row) in self._written:
            return
        line = json.dumps(asdict(bad), ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several processes do not mix.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode("utf-8", "backslashreplace"))
        finally:
            os.close(file)
        self._written.add((bad.data_set, bad.row))


def read_ledger(path: str | os.PathLike[str]) -> list[BadSample]:
    """Return every row of a ledger once, sorted by data set and row; an empty list where there is no file.

    A last line without its end, as a killed process leaves it, is passed over. Raises ``DatasetError`` naming the line
    for any other that is not an entry.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    found: dict[tuple[str, int], BadSample] = {}
    *lines, _ = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            bad = BadSample(**parse_json(line))
            found.setdefault((str(bad.data_set), int(bad.row)), bad)
        except (TypeError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path}, line {number}: not an entry of a ledger of bad samples: {error}") from None
    return [found[key] for key in sorted(found)]


def known_bad(path: str | os.PathLike[str]) -> Mapping[str, frozenset[int]]:
    """Return rows per data set that a ledger lists.

    ``SampleStream`` replaces them without reading them again.
    """
    rows: dict[str, set[int]] = {}
    for bad in read_ledger(path):
        rows.setdefault(bad.data_set, set()).add(bad.row)
    return {name: frozenset(found) for name, found in rows.items()}
