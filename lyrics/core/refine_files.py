"""The refiner over files: ``objects.jsonl``, COCO annotations and drawn pictures; a second run does only what is missing.

A line of ``objects.jsonl`` is written when its picture is finished, so a run that was killed loses at most one batch. Bad files get a line
in ``skipped.jsonl`` and never stop the run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.images import open_image
from lyrics.core.json_reading import parse_json
from lyrics.core.refinement import Refinement, to_coco
from lyrics.core.refiner import VisualRefiner

OBJECTS_FILE = "objects.jsonl"
SKIPPED_FILE = "skipped.jsonl"
COCO_FILE = "annotations.coco.json"
DRAWN_FOLDER = "drawn"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class RefineSummary:
    """What a run did. ``skipped`` maps a file to its error; ``done_before`` counts pictures that an earlier run had finished."""

    refined: int
    done_before: int
    skipped: dict[str, ImageError]
    objects: int
    seconds: float


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as given, and everything in given folders that is named like a picture, at any depth, sorted; each once.

    Raises ``ImageError`` for a path that does not exist.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if given.is_dir():
            inside = (path for path in sorted(given.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
            found.update(dict.fromkeys(inside))
        elif given.exists():
            found[given] = None
        else:
            raise ImageError(f"{given}: no such file or folder.", "missing")
    return list(found)


def refine_files(
    refiner: VisualRefiner,
    pictures: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 8,
    draw: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RefineSummary:
    """Refine ``pictures`` into the folder ``out``, which is made if need be.

    Args:
        refiner: any ``VisualRefiner``.
        pictures: paths; a picture that ``out`` already holds is not done again.
        out: holds ``objects.jsonl`` (one picture a line), ``annotations.coco.json``, ``skipped.jsonl`` and ``drawn/``.
        batch_size: pictures that go through the experts together.
        draw: write ``drawn/NAME.jpg`` with boxes, masks and labels.
        progress: called with (pictures finished, pictures in all).

    Raises:
        LyricsError: ``objects.jsonl`` is there but not readable.
    """
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    finished = {refinement.name for refinement in read_refinements(out / OBJECTS_FILE)} if _holds(out) else set()
    waiting = [path for path in pictures if str(path) not in finished]
    skipped: dict[str, ImageError] = {}
    refined = 0
    done = len(pictures) - len(waiting)
    progress(done, len(pictures))
    with (out / OBJECTS_FILE).open("a", encoding="utf-8") as lines:
        for batch in _batches(waiting, batch_size):
            opened: list[tuple[Path, Image.Image]] = []
            for path in batch:
                try:
                    opened.append((path, open_image(path)))
                except ImageError as error:
                    skipped[str(path)] = error
            results = _refine_batch(refiner, opened)
            for path, picture, refinement in results:
                lines.write(json.dumps(refinement.to_json(), ensure_ascii=False) + "\n")
                if draw:
                    _save_drawing(refinement, picture, out / DRAWN_FOLDER, path)
            lines.flush()
            os.fsync(lines.fileno())
            refined += len(results)
            done += len(batch)
            progress(done, len(pictures))
    _write_skipped(out / SKIPPED_FILE, skipped)
    everything = list(read_refinements(out / OBJECTS_FILE))
    _write_whole(out / COCO_FILE, json.dumps(to_coco(everything), ensure_ascii=False))
    objects = sum(len(refinement.objects) for refinement in everything)
    return RefineSummary(refined, len(pictures) - len(waiting), skipped, objects, time.perf_counter() - start)


def read_refinements(file: str | os.PathLike[str]) -> Iterator[Refinement]:
    """The pictures of an ``objects.jsonl``. A last line that was cut off (a killed run) is left out.

    Raises ``LyricsError`` naming the file and the line that is not valid.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LyricsError(f"{path}: cannot be read: {error}.") from None
    lines = text.split("\n")
    whole, rest = lines[:-1], lines[-1]
    for number, line in enumerate(whole, 1):
        yield _parse_line(line, f"{path}, line {number}")
    if rest.strip():
        try:
            yield _parse_line(rest, f"{path}, last line")
        except LyricsError:
            return


def _parse_line(line: str, where: str) -> Refinement:
    try:
        data = parse_json(line)
        return Refinement.from_json(data)
    except ValueError as error:  # json's errors and LyricsError alike
        raise LyricsError(f"{where}: {error}") from None


def _holds(out: Path) -> bool:
    """Whether an earlier run left results; a line that it could not finish is cut off first."""
    path = out / OBJECTS_FILE
    if not path.exists():
        return False
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
    return True


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for index in range(0, len(paths), size):
        yield paths[index : index + size]


def _refine_batch(
    refiner: VisualRefiner, opened: Sequence[tuple[Path, Image.Image]]
) -> list[tuple[Path, Image.Image, Refinement]]:
    if not opened:
        return []
    refinements = refiner([picture for _, picture in opened], names=[str(path) for path, _ in opened])
    return [(path, picture, refinement) for (path, picture), refinement in zip(opened, refinements, strict=True)]


def _save_drawing(refinement: Refinement, picture: Image.Image, folder: Path, path: Path) -> None:
    """``drawn/`` mirrors the pictures' own folders where names would collide, by the path's parts joined."""
    folder.mkdir(exist_ok=True)
    name = "_".join(part for part in path.with_suffix("").parts[-3:] if part not in ("/", "..", "."))
    refinement.draw(picture).save(folder / f"{name}.jpg", quality=90)


def _write_skipped(path: Path, skipped: dict[str, ImageError]) -> None:
    records = [{"image": name, "kind": error.kind, "reason": str(error)} for name, error in skipped.items()]
    _write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write_whole(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
