"""One list of images shared out over processes that know nothing of each other, and their rows brought together.

An image belongs to the shard that a hash of its name says. Each shard has a folder of its own,
``shards/00003-of-00064`` in the folder of all, with its rows and a marker ``done.json`` that is written last.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.files import name_for_messages
from lyrics.core.json_reading import parse_json, read_json_object
from lyrics.core.lease import Lease
from lyrics.core.refining.formats import check_formats, write_formats
from lyrics.core.refining.refinement import name_from_json
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, read_rows, row_line, written_whole

SHARDS_FOLDER = "shards"
DONE_FILE = "done.json"
#: Says in a folder that its rows were merged, and so may be merged again.
MERGED_FILE = "merged.json"
#: What is sorted in memory at a time, and how many sorted files are open at a time.
_BYTES_AT_ONCE, _FILES_AT_ONCE = 32 * 2**20, 64


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``, counted from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``3/64``. Raises ``SpecError`` for anything that is no shard."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise SpecError(f"--shard {text}: is a number and how many there are, counted from 0: 0/64 to 63/64.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, name: str) -> bool:
        """Return whether the image of that name is this shard's; depends on the name and the count alone."""
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    def folder(self, out: Path) -> Path:
        return out / SHARDS_FOLDER / f"{self.index:05}-of-{self.count:05}"

    def begin(self, out: Path) -> None:
        """Take back the marker. Raises ``LyricsError`` where ``out`` is shared out in another number of shards."""
        other = next((count for count in _counts(out) if count != self.count), None)
        if other is not None:
            raise LyricsError(
                f"{name_for_messages(out)}: is shared out in {other} shards, not in {self.count}; give another --out."
            )
        (self.folder(out) / DONE_FILE).unlink(missing_ok=True)

    def finish(self, out: Path, refiner: str, skipped: int) -> None:
        """Say that all of this shard's images are done or skipped."""
        with written_whole(self.folder(out) / DONE_FILE) as file:
            file.write(row_line({"shard": str(self), "refiner": refiner, "skipped": skipped}))


def _counts(out: Path) -> list[int]:
    """Into how many shards a folder is shared out; more than one number where somebody mixed them."""
    names = os.listdir(out / SHARDS_FOLDER) if (out / SHARDS_FOLDER).is_dir() else []
    return sorted({int(found[1]) for name in names if (found := re.fullmatch(r"\d+-of-(\d+)", name))})


def finished_shards(out: Path) -> list[Path]:
    """Return the folders of all shards of a folder, in order.

    Raises ``LyricsError`` naming those that are missing or not done, or are of different refiners.
    """
    counts = _counts(out)
    where = name_for_messages(out)
    if not counts:
        raise LyricsError(
            f"{where}: has no shards; 'lyrics refine ... --shard 0/8 --out {where}' makes the first of 8."
        )
    folders = [Shard(index, counts[0]).folder(out) for index in range(counts[0])]
    missing = [index for index, folder in enumerate(folders) if not (folder / DONE_FILE).is_file()]
    if missing or len(counts) > 1:
        listed = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        raise LyricsError(
            f"{where}: of {counts[0]} shards {len(missing)} are not done ({listed}); run them again with --shard."
            if missing
            else f"{where}: holds shards of {' and of '.join(map(str, counts))}; they are not of one run."
        )
    refiners = {str(read_json_object(folder / DONE_FILE).get("refiner")) for folder in folders}
    if len(refiners) > 1:
        raise LyricsError(
            f"{where}: its shards are of different refiners, weights or phrases ({', '.join(sorted(refiners))}); "
            "run those that differ again with --redo."
        )
    return folders


@dataclass(frozen=True)
class MergeSummary:
    """What was merged: shards, rows of ``objects.jsonl``, images skipped, and the files that were written."""

    shards: int
    rows: int
    skipped: int
    files: tuple[Path, ...]


def merge_shards(out: Path, formats: Iterable[str]) -> MergeSummary:
    """Bring the rows of all shards together in ``out``, sorted by the images' paths, and write them in ``formats``.

    The result does not depend on the number of shards, nor on how often they died. Holds a few thousand rows at a time;
    needs as much room on the disk again while it sorts.

    Raises:
        LyricsError: a shard is not done, is damaged or of another refiner; or ``out`` has rows that were not merged.
        UnknownNameError: a format does not exist.
        OSError: ``out`` cannot be written.
    """
    wanted = check_formats(formats)
    folders = finished_shards(out)
    with Lease(out, "merging into"):
        return merge_rows(out, folders, wanted)


def merge_rows(out: Path, folders: list[Path], formats: Iterable[str]) -> MergeSummary:
    """``merge_shards`` of folders that are finished, into a folder that is ours alone."""
    if (out / OBJECTS_FILE).exists() and not (out / MERGED_FILE).exists():
        raise LyricsError(
            f"{name_for_messages(out / OBJECTS_FILE)}: was made by a run without --shard; move it away before merging."
        )
    with written_whole(out / MERGED_FILE) as file:
        file.write(row_line({"folders": [str(folder.relative_to(out)) for folder in folders]}))
    counts: dict[str, int] = {}
    for name in (OBJECTS_FILE, SKIPPED_FILE):
        with written_whole(out / name) as file, tempfile.TemporaryDirectory(dir=out, prefix=".sorting-") as aside:
            rows = itertools.chain.from_iterable(_lines(folder / name) for folder in folders)
            counts[name] = _write_sorted(rows, file, Path(aside))
    files = [out / OBJECTS_FILE, out / SKIPPED_FILE, *write_formats(out, formats)]
    return MergeSummary(len(folders), counts[OBJECTS_FILE], counts[SKIPPED_FILE], tuple(files))


def _lines(path: Path) -> Iterator[bytes]:
    for _, row in read_rows(path):
        # Features stay with their shard, where training finds them.
        yield row_line({key: value for key, value in row.items() if key != "features"})


def _write_sorted(lines: Iterator[bytes], file: IO[bytes], aside: Path) -> int:
    """Write lines sorted by their images' paths, as folders are listed; return how many there are.

    As much as memory may hold is sorted at a time and laid ``aside``; the sorted files are then merged.
    """
    numbers = itertools.count()
    runs: list[Path] = []
    total = 0
    with ExitStack() as stack:

        def lay_aside(sorted_lines: Iterable[bytes]) -> Path:
            path = aside / str(next(numbers))
            with path.open("wb") as run:
                run.writelines(sorted_lines)
            return path

        def merged(paths: list[Path]) -> Iterator[bytes]:
            opened = [stack.enter_context(path.open("rb")) for path in paths]
            yield from heapq.merge(*opened, key=_path_of)
            for one, path in zip(opened, paths, strict=True):
                one.close()
                path.unlink()

        while chunk := _some(lines):
            total += len(chunk)
            chunk.sort(key=_path_of)
            runs.append(lay_aside(chunk))
            if len(runs) == _FILES_AT_ONCE:
                runs = [lay_aside(merged(runs))]
        file.writelines(merged(runs))
    return total


def _some(lines: Iterator[bytes]) -> list[bytes]:
    """The next lines, as many as are sorted in memory."""
    found, size = [], 0
    for line in lines:
        found.append(line)
        size += len(line)
        if size >= _BYTES_AT_ONCE:
            break
    return found


def _path_of(line: bytes) -> tuple[str, ...]:
    return PurePath(name_from_json(parse_json(line))).parts
