"""The files of a refined folder, row by row: read, gone on with after a kill, and written whole or not at all."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.files import is_text, name_as_text, name_for_messages, open_file
from lyrics.core.json_reading import parse_json
from lyrics.core.refining.index import KeySet, key_of
from lyrics.core.refining.refinement import Refinement, name_from_json, name_to_json

OBJECTS_FILE = "objects.jsonl"
SKIPPED_FILE = "skipped.jsonl"


def read_refinements(file: str | os.PathLike[str]) -> Iterator[Refinement]:
    """Read the images of an ``objects.jsonl``. A last line that was cut off (a killed run) is left out.

    Raises ``LyricsError`` naming the file and the line that is not valid.
    """
    for where, row in read_rows(Path(file)):
        yield refinement_of(row, where)


def refinement_of(row: Any, where: str) -> Refinement:
    """Return a row as a refinement. Raises ``LyricsError`` that begins with ``where``."""
    try:
        return Refinement.from_json(row)
    except LyricsError as error:
        raise LyricsError(f"{where}: {error}") from None


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file and line, row) of every line that is not blank. Raises ``LyricsError``."""
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield f"{path}, line {number}", parse_json(line, f"{path}, line {number}")
                except LyricsError:
                    if line.endswith(b"\n"):
                        raise
                    return
    except (OSError, ValueError) as error:
        if isinstance(error, LyricsError):
            raise
        raise LyricsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def read_skipped(path: Path) -> Iterator[tuple[str, ImageError]]:
    """Yield (name, error) of every line of a ``skipped.jsonl``; nothing where there is no such file."""
    if path.exists():
        for _, row in read_rows(path):
            yield name_from_json(row), ImageError(str(row["reason"]), str(row["kind"]))


def row_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as its line. Raises ``ValueError`` or ``TypeError`` for what JSON cannot hold."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def skipped_line(name: str, error: ImageError) -> bytes:
    """Return the line of ``skipped.jsonl`` for an image that cannot be used."""
    record = name_to_json(name) | {"kind": error.kind, "reason": str(error)}
    # A reason may quote a name, or what a stranger's expert said.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


@dataclass
class FinishedRows:
    """What an ``objects.jsonl`` holds: keys of its images and of their drawings, and how many objects.

    ``features_end`` is the length in bytes of the features that belong to its rows.
    """

    pictures: KeySet = field(default_factory=KeySet)
    drawings: KeySet = field(default_factory=KeySet)
    objects: int = 0
    features_end: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self.pictures.add(key_of(name_from_json(row)))
        if row.get("drawn"):
            self.drawings.add(drawing_key(str(row["drawn"])))
        self.objects += len(row.get("objects", ()))
        if "features" in row:
            self.features_end = row["features"]["at"] + row["features"]["bytes"]


def finished_rows(path: Path, digest: str, redo: bool) -> FinishedRows:
    """Return what a refiner has finished in an ``objects.jsonl``, after half a line at its end has been cut off.

    Rows that another refiner made are dropped with ``redo``. Raises ``LyricsError`` where there are any without it, and
    for a file that is none.
    """
    if not path.exists():
        return FinishedRows()
    if path.is_file():
        cut_off_half_a_line(path)
    found = FinishedRows()
    others: collections.Counter[str] = collections.Counter()
    for where, row in read_rows(path):
        if not isinstance(row, dict):
            raise LyricsError(f"{where}: not a line of objects.jsonl: {type(row).__name__}.")
        if row.get("refiner") != digest:
            others[str(row.get("refiner", "unknown"))] += 1
        else:
            found.add(row)
    if others and redo:
        with written_whole(path) as file:
            file.writelines(row_line(row) for _, row in read_rows(path) if row.get("refiner") == digest)
    elif others:
        made_by = ", ".join(f"{count} by {made}" for made, count in others.most_common(3))
        raise LyricsError(
            f"{name_for_messages(path)}: holds images that another refiner, other weights or other phrases made "
            f"({made_by}; this is {digest}); give another --out, or --redo to drop those rows and do their images "
            "again."
        )
    return found


def cut_off_half_a_line(path: Path) -> None:
    """Cut off a last line that a killed run could not finish; its image is done again."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        # Backwards, a piece at a time, to the end of the last whole line.
        while kept > 0:
            start = max(0, kept - 65536)
            file.seek(start)
            piece = file.read(kept - start)
            if (last := piece.rfind(b"\n")) >= 0:
                kept = start + last + 1
                break
            kept = start
        if kept != end:
            file.truncate(kept)


def drawing_key(drawn: str) -> bytes:
    """Return the key of a drawing's name. File systems that ignore case take ``A.jpg`` and ``a.jpg`` for one."""
    return key_of(name_as_text(drawn).casefold())


def file_name_for(name: str, suffix: str, taken: KeySet | None) -> str:
    """Return a name for a file that belongs to the image ``name``: the last two folders and the file's name, joined.

    With a hash of the name where that is taken, too long or odd; without ``taken`` always.
    """
    path = Path(name)
    parts = (*path.parent.parts, path.stem)[-3:]
    base = "_".join(part for part in parts if part not in (path.anchor, "..", "."))
    is_plain = bool(base) and is_text(base) and base.isprintable() and len(base.encode("utf-8")) <= 200
    if taken is not None and is_plain and drawing_key(f"{base}{suffix}") not in taken:
        return f"{base}{suffix}"
    plain = "".join(letter if letter.isprintable() else "_" for letter in name_as_text(base))
    short = plain.encode("utf-8")[:160].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}{suffix}"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place at the end: a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)
