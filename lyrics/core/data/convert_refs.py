"""RefCOCO's ``refs(...).p`` to JSON: the one place where a data set's pickle is opened.

A pickle is a program, and these come from other people. So it is not read at run time but converted once, in a process
of its own, by an unpickler that knows numbers, text, lists, tuples and dictionaries and refuses every name that a
pickle asks to import.

    python -m lyrics.core.data.convert_refs 'refs(unc).p' 'refs(unc).json'
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lyrics.core.errors import DatasetError

_PLAIN = (str, int, float, bool, type(None))
#: Far above any published refs file, and so are the two bounds below.
_MAX_BYTES = 512 * 1024 * 1024
_MAX_VALUES = 50_000_000
_MAX_DEPTH = 10
_SECONDS = 600
_REFUSED = 3


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DatasetError(f"it asks to import {module}.{name}, which a file of plain records does not")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DatasetError("it refers to objects outside of itself")


def import_refs(source: Path, target: Path) -> int:
    """Convert in a process of its own. Returns the number of refs; raises ``DatasetError`` when the file is refused."""
    if not source.is_file():
        raise DatasetError(f"{source}: no such file.")
    command = [sys.executable, "-P", "-m", __name__, str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise DatasetError(f"{source}: was not read within {_SECONDS} seconds; it is not what it says it is.") from None
    if done.returncode == _REFUSED:
        raise DatasetError(done.stderr.strip())
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise DatasetError(f"{source}: the converter failed: {last}")
    return int(done.stdout)


def _convert(source: Path, target: Path) -> int:
    """Read, check and write. Runs in the converter's process."""
    if source.stat().st_size > _MAX_BYTES:
        raise DatasetError(f"{source}: has more than {_MAX_BYTES:,} bytes; refs files are smaller.")
    try:
        with source.open("rb") as opened:
            # Python 2 wrote them: latin-1 takes any byte, and the texts are ASCII.
            refs = _PlainUnpickler(opened, encoding="latin-1").load()
    except DatasetError as error:
        raise DatasetError(f"{source}: is refused: {error}.") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DatasetError(f"{source}: is not a pickle of refs: {type(error).__name__}: {error}.") from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and "sentences" in ref for ref in refs):
        raise DatasetError(f"{source}: is not a list of refs with sentences.")
    budget = iter(range(_MAX_VALUES))
    text = json.dumps([_plain(ref, source, budget) for ref in refs], allow_nan=False)
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
    return len(refs)


def _plain(value: Any, source: Path, budget: Iterator[int], depth: int = 0) -> Any:
    """Return the value with tuples as lists.

    Raises ``DatasetError`` for what JSON cannot hold, and when the budget is used up: a pickle of a few bytes can hold
    lists that multiply without end.
    """
    if next(budget, None) is None or depth > _MAX_DEPTH:
        raise DatasetError(f"{source}: holds too many values, or too deeply nested ones, to be refs.")
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, source, budget, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, source, budget, depth + 1) for key, item in value.items()}
    raise DatasetError(f"{source}: holds a {type(value).__name__}, which refs do not.")


if __name__ == "__main__":
    try:
        sys.stdout.write(str(_convert(Path(sys.argv[1]), Path(sys.argv[2]))))
    except DatasetError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_REFUSED)
