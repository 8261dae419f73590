"""The refiner over files: ``objects.jsonl``, COCO annotations and drawn pictures; a second run does only what is
missing.

A line of ``objects.jsonl`` is written when its picture is finished, after its drawing, so a run that was killed loses
at most one batch. Whatever goes wrong with one file is a line in ``skipped.jsonl`` and never stops the run.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.files import is_text, name_as_text, name_for_messages, open_file
from lyrics.core.json_reading import parse_json
from lyrics.core.lease import Lease
from lyrics.core.pictures.images import MAX_PIXELS, open_image
from lyrics.core.refining.refinement import Refinement, name_from_json, name_to_json, to_coco
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.registry.registry import describe

OBJECTS_FILE = "objects.jsonl"
SKIPPED_FILE = "skipped.jsonl"
COCO_FILE = "annotations.coco.json"
DRAWN_FOLDER = "drawn"
#: What is tried in a folder. A file is read by its content, and one that cannot be (a TIFF, say) is reported, not
#: passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl"),
)
#: So many failures of the experts, before anything was ever refined, are the experts' fault and not the pictures'.
GIVE_UP_AFTER = 16
# No side of a JPEG may be longer.
_LONGEST_JPEG = 65_500


@dataclass(frozen=True)
class RefineSummary:
    """What a run did.

    ``skipped`` maps a file to its error; ``done_before`` counts pictures that an earlier run had finished.
    """

    refined: int
    done_before: int
    skipped: dict[str, ImageError]
    objects: int
    seconds: float

    @property
    def reasons(self) -> dict[str, int]:
        """How many files were skipped for each kind of error, the commonest first."""
        return dict(collections.Counter(error.kind for error in self.skipped.values()).most_common())


@dataclass(frozen=True)
class _Finished:
    """A picture's row and drawing, ready to be written."""

    name: str
    line: bytes
    drawn: str | None
    drawing: bytes


def find_pictures(paths: Iterable[str | os.PathLike[str]], *, leave_out: Path | None = None) -> list[Path]:
    """Return files as given, and what is named like an image in given folders, at any depth, sorted; each once.

    What is named like an image need not be one: links, FIFOs, devices and folders are listed too, and so are folders
    that may not be read and links to folders (which are not followed). ``refine_files`` says of each what it is.
    ``leave_out`` is a folder that is not searched.

    Raises:
        ImageError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if os.path.isdir(given):
            found.update(dict.fromkeys(sorted(_inside(given, leave_out))))
        elif os.path.lexists(given):
            found[given] = None
        else:
            raise ImageError(f"{name_for_messages(given)}: no such file or folder.", "missing")
    return list(found)


def _inside(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    without = None if leave_out is None else os.path.realpath(leave_out)
    waiting = [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        if without is not None and os.path.realpath(current) == without:
            continue
        try:
            with os.scandir(current) as scanned:
                entries = list(scanned)
        except OSError:
            yield Path(current)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            is_named_so = entry.name.lower().endswith(SUFFIXES)
            if is_named_so or (entry.is_symlink() and os.path.isdir(entry.path)):
                yield Path(entry.path)


def refine_files(
    refiner: VisualRefiner,
    pictures: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 8,
    draw: bool = True,
    phrases: Sequence[str] | None = None,
    redo: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RefineSummary:
    """Refine ``pictures`` into the folder ``out``, which is made if need be.

    Every picture ends in one of two files: ``objects.jsonl``, or ``skipped.jsonl`` with the reason. Pictures that fail
    in a batch are tried one by one, so that only those that fail alone are skipped.

    Args:
        refiner: any ``VisualRefiner``.
        pictures: paths; a picture that ``out`` already holds is not done again.
        out: holds ``objects.jsonl`` (one picture a line), ``annotations.coco.json``, ``skipped.jsonl`` and ``drawn/``.
        batch_size: pictures that go through the experts together.
        draw: write ``drawn/NAME.jpg`` with boxes, masks and labels; the row's ``drawn`` says which.
        phrases: what to look for in every picture, in place of the tagger's tags.
        redo: drop the rows of ``out`` that another refiner made, and do their pictures again.
        progress: called with (pictures finished, pictures in all).

    Raises:
        LyricsError: ``out`` holds rows of another refiner or of other phrases, and not ``redo``; another process is
            refining into it; ``objects.jsonl`` is there but not readable; or the experts fail on everything.
        OSError: ``out`` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with Lease(out, "refining into"):
        return _Run(refiner, out, draw, phrases, redo).over(pictures, batch_size, progress)


class _Run:
    """One run into a folder that is ours alone."""

    def __init__(
        self, refiner: VisualRefiner, out: Path, draw: bool, phrases: Sequence[str] | None, redo: bool
    ) -> None:
        self.start = time.perf_counter()
        self.refiner, self.out, self.draw, self.phrases = refiner, out, draw, phrases
        self.digest = refiner.digest(phrases)
        _cut_off_half_a_line(out / OBJECTS_FILE)
        rows = _earlier_rows(out / OBJECTS_FILE, self.digest, redo)
        self.names_before = {name_from_json(row) for row in rows}
        self.drawings = {str(row["drawn"]).casefold() for row in rows if row.get("drawn")}
        self.skipped: dict[str, ImageError] = {}
        self.refined = 0

    def over(self, pictures: Sequence[Path], batch_size: int, progress: Callable[[int, int], None]) -> RefineSummary:
        waiting = [path for path in pictures if str(path) not in self.names_before]
        done_before = done = len(pictures) - len(waiting)
        progress(done, len(pictures))
        try:
            with (self.out / OBJECTS_FILE).open("ab") as lines:
                for index in range(0, len(waiting), batch_size):
                    batch = waiting[index : index + batch_size]
                    for opened in self._opened(batch):
                        finished = list(self._finished(opened))
                        self.refined += len(finished)
                        self._give_up_if_nothing_works()
                        # A row says that all of its picture is done, so its drawing comes first.
                        for one in finished:
                            if one.drawn is not None:
                                (self.out / DRAWN_FOLDER).mkdir(exist_ok=True)
                                _write_whole(self.out / DRAWN_FOLDER / one.drawn, one.drawing)
                        lines.writelines(one.line for one in finished)
                        lines.flush()
                        os.fsync(lines.fileno())
                    done += len(batch)
                    progress(done, len(pictures))
        finally:
            _write_skipped(self.out / SKIPPED_FILE, self.skipped)
        everything = list(read_refinements(self.out / OBJECTS_FILE))
        _write_whole(self.out / COCO_FILE, json.dumps(to_coco(everything), ensure_ascii=False).encode("utf-8"))
        objects = sum(len(refinement.objects) for refinement in everything)
        return RefineSummary(self.refined, done_before, self.skipped, objects, time.perf_counter() - self.start)

    def _opened(self, batch: Sequence[Path]) -> Iterator[list[tuple[Path, Image.Image]]]:
        """The pictures of a batch that can be opened, in several lots where they are large."""
        lot: list[tuple[Path, Image.Image]] = []
        pixels = 0
        for path in batch:
            try:
                picture = _open(path)
            except ImageError as error:
                self.skipped[str(path)] = error
                continue
            if lot and pixels + picture.width * picture.height > MAX_PIXELS:
                yield lot
                lot, pixels = [], 0
            lot.append((path, picture))
            pixels += picture.width * picture.height
        if lot:
            yield lot

    def _finished(self, opened: Sequence[tuple[Path, Image.Image]]) -> Iterator[_Finished]:
        for path, picture, refinement in self._refine(opened):
            try:
                yield self._finish(path, picture, refinement)
            except ImageError as error:
                self.skipped[str(path)] = error

    def _refine(self, opened: Sequence[tuple[Path, Image.Image]]) -> Iterator[tuple[Path, Image.Image, Refinement]]:
        phrases = None if self.phrases is None else [self.phrases] * len(opened)
        failure: Exception | None = None
        try:
            found = self.refiner([picture for _, picture in opened], phrases, names=[str(path) for path, _ in opened])
            refined = list(zip(opened, found, strict=True))
        except Exception as error:  # an expert may raise anything
            failure = error.with_traceback(None)  # its frames hold the batch's tensors
        if failure is None:
            yield from ((path, picture, one) for (path, picture), one in refined)
        elif len(opened) > 1:
            for one in opened:
                yield from self._refine([one])
        else:
            (path, _) = opened[0]
            reason = str(failure) if isinstance(failure, LyricsError) else f"an expert failed: {describe(failure)}"
            if (name := name_for_messages(path)) not in reason:
                reason = f"{name}: {reason}"
            self.skipped[str(path)] = ImageError(reason, "expert")

    def _finish(self, path: Path, picture: Image.Image, refinement: Refinement) -> _Finished:
        """Raises ``ImageError`` for a picture whose row or drawing cannot be made."""
        name = name_for_messages(path)
        drawn, drawing = None, b""
        if self.draw:
            try:
                format = "JPEG" if max(picture.size) <= _LONGEST_JPEG else "PNG"
                file = io.BytesIO()
                refinement.draw(picture).save(file, format, **({"quality": 90} if format == "JPEG" else {}))
                drawing = file.getvalue()
            except Exception as error:
                raise ImageError(f"{name}: its drawing failed: {describe(error)}", "drawing") from error
            drawn = _drawing_name(path, ".jpg" if format == "JPEG" else ".png", self.drawings)
        try:
            row = refinement.to_json() | {"refiner": self.digest} | ({"drawn": drawn} if drawn is not None else {})
            line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        except Exception as error:
            raise ImageError(
                f"{name}: an expert gave what cannot be written as JSON: {describe(error)}", "expert"
            ) from error
        if drawn is not None:
            self.drawings.add(drawn.casefold())
        return _Finished(str(path), line, drawn, drawing)

    def _give_up_if_nothing_works(self) -> None:
        failed = [error for error in self.skipped.values() if error.kind == "expert"]
        if self.refined == 0 and not self.names_before and len(failed) >= GIVE_UP_AFTER:
            raise LyricsError(
                f"the experts failed on each of the first {len(failed)} pictures, so that the refiner seems to be "
                f"broken. The first failure: {failed[0]}"
            )


def read_refinements(file: str | os.PathLike[str]) -> Iterator[Refinement]:
    """Read the pictures of an ``objects.jsonl``. A last line that was cut off (a killed run) is left out.

    Raises ``LyricsError`` naming the file and the line that is not valid.
    """
    for where, row in _rows(Path(file)):
        try:
            yield Refinement.from_json(row)
        except LyricsError as error:
            raise LyricsError(f"{where}: {error}") from None


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, row) of every line that is not blank. Raises ``LyricsError``."""
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


def _cut_off_half_a_line(path: Path) -> None:
    """A line that a killed run could not finish is done again."""
    if not path.exists():
        return
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


def _earlier_rows(path: Path, digest: str, redo: bool) -> list[Mapping[str, Any]]:
    """Rows that this refiner made. Raises ``LyricsError`` where there are others, or drops those with ``redo``."""
    if not path.exists():
        return []
    ours: list[Mapping[str, Any]] = []
    others: collections.Counter[str] = collections.Counter()
    for where, row in _rows(path):
        if not isinstance(row, dict):
            raise LyricsError(f"{where}: not a line of objects.jsonl: {type(row).__name__}.")
        if row.get("refiner") == digest:
            ours.append({key: row[key] for key in ("image", "image_hex", "drawn") if key in row} if not redo else row)
        else:
            others[str(row.get("refiner", "unknown"))] += 1
    if others and redo:
        kept = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ours)
        _write_whole(path, kept.encode("utf-8"))
    elif others:
        made_by = ", ".join(f"{count} by {made}" for made, count in others.most_common(3))
        raise LyricsError(
            f"{name_for_messages(path)}: holds pictures that another refiner, other weights or other phrases made "
            f"({made_by}; this is {digest}); give another --out, or --redo to drop those rows and do their pictures "
            "again."
        )
    return ours


def _open(path: Path) -> Image.Image:
    """As ``open_image``, but it says of a folder why it is listed."""
    name = name_for_messages(path)
    if os.path.isdir(path):
        if path.is_symlink():
            raise ImageError(f"{name}: is a link to a folder, which is not followed.", "folder")
        if not os.access(path, os.R_OK | os.X_OK):
            raise ImageError(f"{name}: is a folder that may not be read by this user.", "unreadable")
        raise ImageError(f"{name}: is a folder, not a picture.", "folder")
    return open_image(path)


def _drawing_name(path: Path, suffix: str, taken: set[str]) -> str:
    """The last two folders and the file's name, joined; with a hash of the path where that is taken, too
    long or odd.
    """
    parts = (*path.parent.parts, path.stem)[-3:]
    base = "_".join(part for part in parts if part not in (path.anchor, "..", "."))
    is_plain = bool(base) and is_text(base) and base.isprintable() and len(base.encode("utf-8")) <= 200
    if is_plain and f"{base}{suffix}".casefold() not in taken:
        return f"{base}{suffix}"
    plain = "".join(letter if letter.isprintable() else "_" for letter in name_as_text(base))
    short = plain.encode("utf-8")[:160].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}{suffix}"


def _write_skipped(path: Path, skipped: Mapping[str, ImageError]) -> None:
    records = [name_to_json(name) | {"kind": error.kind, "reason": str(error)} for name, error in skipped.items()]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # A reason may quote a name, or what a stranger's expert said.
    _write_whole(path, text.encode("utf-8", "backslashreplace"))


def _write_whole(path: Path, data: bytes) -> None:
    """All or nothing: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    os.replace(aside, path)
