"""The refiner over any number of images, in one pass that holds a few at a time: ``objects.jsonl``, drawings,
and other formats made of them; a second run does only what is missing.

A line of ``objects.jsonl`` is written when its image is finished, after its drawing, so a run that was killed loses
at most one batch. Whatever goes wrong with one file is a line in ``skipped.jsonl`` and never stops the run.
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from PIL import Image

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.files import name_for_messages
from lyrics.core.lease import Lease
from lyrics.core.pictures.images import MAX_PIXELS
from lyrics.core.pictures.model_inputs import ModelImages
from lyrics.core.refining.features import FeatureOptions, FeatureWriter
from lyrics.core.refining.formats import COCO_FILE, FORMATS, batched, check_formats, write_formats
from lyrics.core.refining.index import KeySet, key_of
from lyrics.core.refining.inputs import SUFFIXES, FilePicture, InputPicture, find_images
from lyrics.core.refining.refiner import RefinerOutput, VisualRefiner
from lyrics.core.refining.rows import (
    DRAWN_FOLDER,
    OBJECTS_FILE,
    SKIPPED_FILE,
    drawing_key,
    file_name_for,
    finished_rows,
    read_refinements,
    read_skipped,
    row_line,
    skipped_line,
    written_whole,
)
from lyrics.core.refining.shards import MERGED_FILE, Shard
from lyrics.core.registry.registry import describe

__all__ = [
    "COCO_FILE",
    "DRAWN_FOLDER",
    "FORMATS",
    "GIVE_UP_AFTER",
    "OBJECTS_FILE",
    "SKIPPED_FILE",
    "SUFFIXES",
    "RefineSummary",
    "find_images",
    "read_refinements",
    "refine_files",
]

#: So many failures of the experts, before anything was ever refined, are the experts' fault and not the images'.
GIVE_UP_AFTER = 16
# No side of a JPEG may be longer.
_LONGEST_JPEG = 65_500

T = TypeVar("T")


@dataclass(frozen=True)
class RefineSummary:
    """What a run did.

    ``done_before`` counts images that an earlier run had finished, ``objects`` those of all rows. ``reasons`` says
    how many files were skipped for each kind of error, the commonest first; ``skipped_file`` names all of them.
    ``features_bytes`` is the size of the features of all rows.
    """

    refined: int
    done_before: int
    reasons: dict[str, int]
    objects: int
    seconds: float
    skipped_file: Path
    features_bytes: int = 0

    @property
    def skipped(self) -> dict[str, ImageError]:
        """Every file that was skipped, with its error; read from ``skipped_file``."""
        return dict(read_skipped(self.skipped_file))


@dataclass
class _Lot:
    """Images that go through the experts together: each open, or with what is wrong with it.

    ``prepared`` is what the experts read of those that are open, or the error of making it. ``ends_batch`` counts the
    images of the batch that ends with this lot, 0 where it goes on; ``passed`` those that were found finished before.
    """

    entries: list[tuple[InputPicture, Image.Image | ImageError]]
    prepared: ModelImages | Exception | None = None
    ends_batch: int = 0
    passed: int = 0

    @property
    def opened(self) -> list[tuple[InputPicture, Image.Image]]:
        return [(one, found) for one, found in self.entries if isinstance(found, Image.Image)]


@dataclass(frozen=True)
class _Finished:
    """An image's row and drawing, ready to be written."""

    line: bytes
    objects: int
    drawn: str | None
    drawing: bytes


def refine_files(
    refiner: VisualRefiner,
    pictures: Iterable[Path | InputPicture],
    out: Path,
    *,
    batch_size: int = 8,
    draw: bool = True,
    phrases: Sequence[str] | None = None,
    redo: bool = False,
    formats: Iterable[str] = FORMATS,
    shard: Shard | None = None,
    features: FeatureOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RefineSummary:
    """Refine ``pictures`` into the folder ``out``, which is made if need be.

    Every image ends in one of two files: ``objects.jsonl``, or ``skipped.jsonl`` with the reason. Images that fail
    in a batch are tried one by one, so that only those that fail alone are skipped. While the experts look at some
    images, the next are opened and resized in another thread.

    Args:
        refiner: any ``VisualRefiner``.
        pictures: paths, or images wherever they are kept. Gone through twice: counted, then refined. One that ``out``
            already holds, or that comes twice, is not done again.
        out: holds ``objects.jsonl`` (one image a line), ``skipped.jsonl``, ``drawn/``, and the files of ``formats``.
        batch_size: images that go through the experts together.
        draw: write ``drawn/NAME.jpg`` with boxes, masks and labels; the row's ``drawn`` says which.
        phrases: what to look for in every image, in place of the tagger's tags.
        redo: drop the rows of ``out`` that another refiner made, and do their images again.
        formats: made of all rows at the end: any of ``jsonl`` (which is always there), ``coco``, ``parquet``, ``yolo``.
        shard: do its images alone, into a folder of its own in ``out`` (``Shard.folder``); drawings go to ``out``.
            Formats are made when the shards are merged.
        features: keep the experts' local tokens, too, in ``features.bin`` beside the rows, for training without the
            experts (``lyrics.core.refining.features``).
        progress: called with (images finished, images in all).

    Raises:
        LyricsError: ``out`` holds rows of another refiner or of other phrases, and not ``redo``; another process is
            refining into it; ``objects.jsonl`` is there but not readable; or the experts fail on everything.
        UnknownNameError: a format does not exist.
        OSError: ``out`` cannot be written.
    """
    wanted = check_formats(formats)
    own = out if shard is None else shard.folder(out)
    own.mkdir(parents=True, exist_ok=True)
    with Lease(own, "refining into"):
        if shard is None:
            (out / MERGED_FILE).unlink(missing_ok=True)  # rows come to it that no merging knows of
        else:
            shard.begin(out)
        run = _Run(refiner, own, out / DRAWN_FOLDER, draw, phrases, redo, shard, features)
        summary = run.over(pictures, batch_size, progress)
        if shard is None:
            write_formats(out, wanted)
        else:
            shard.finish(out, run.digest, sum(summary.reasons.values()))
        return summary


class _Run:
    """One run into a folder that is ours alone."""

    def __init__(
        self,
        refiner: VisualRefiner,
        out: Path,
        drawn: Path,
        draw: bool,
        phrases: Sequence[str] | None,
        redo: bool,
        shard: Shard | None,
        features: FeatureOptions | None,
    ) -> None:
        self.start = time.perf_counter()
        self.refiner, self.out, self.drawn, self.draw, self.phrases = refiner, out, drawn, draw, phrases
        self.shard = shard
        self.digest = refiner.digest(phrases)
        if features is not None:  # rows without them, or with others, are those of another refiner
            self.digest = hashlib.sha256(f"{self.digest} features {features.top}".encode()).hexdigest()[:16]
        self.finished = finished_rows(out / OBJECTS_FILE, self.digest, redo)
        self.features = None
        if features is not None:
            self.features = FeatureWriter(out, refiner, features, self.finished.features_end, self.digest)
        self.ever_worked = len(self.finished.pictures) > 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.first_failure: ImageError | None = None
        self.refined = self.done_before = self.passed = 0

    def over(
        self, pictures: Iterable[Path | InputPicture], batch_size: int, progress: Callable[[int, int], None]
    ) -> RefineSummary:
        total = sum(1 for _ in self._ours(pictures))
        done = 0
        progress(done, total)
        aside = self.out / f".{SKIPPED_FILE}.tmp"
        with ExitStack() as stack:
            skipped = stack.enter_context(aside.open("wb"))
            stack.callback(os.replace, aside, self.out / SKIPPED_FILE)
            stack.callback(skipped.flush)
            if self.features is not None:
                stack.enter_context(closing(self.features))
            lines = stack.enter_context((self.out / OBJECTS_FILE).open("ab"))
            lots = stack.enter_context(closing(ahead(self._lots(self._waiting(pictures), batch_size))))
            for lot in lots:
                self._write(lot, lines, skipped)
                done += lot.ends_batch + lot.passed
                if lot.ends_batch:
                    progress(done, total)
        done += self.passed  # after the last lot
        if self.passed:
            progress(done, total)
        reasons = dict(self.reasons.most_common())
        seconds = time.perf_counter() - self.start
        return RefineSummary(
            self.refined,
            self.done_before,
            reasons,
            self.finished.objects,
            seconds,
            self.out / SKIPPED_FILE,
            0 if self.features is None else self.features.end,
        )

    def _ours(self, pictures: Iterable[Path | InputPicture]) -> Iterator[InputPicture]:
        for one in pictures:
            picture = FilePicture(Path(one)) if isinstance(one, str | os.PathLike) else one
            if self.shard is None or self.shard.holds(picture.key):
                yield picture

    def _waiting(self, pictures: Iterable[Path | InputPicture]) -> Iterator[InputPicture]:
        """Those that are neither finished nor came before in this run; the others are counted."""
        seen = KeySet()
        for picture in self._ours(pictures):
            key = key_of(picture.name)
            if key not in self.finished.pictures and key not in seen:
                seen.add(key)
                yield picture
            else:
                self.passed += 1
                self.done_before += key not in seen

    def _lots(self, pictures: Iterable[InputPicture], batch_size: int) -> Iterator[_Lot]:
        """Batches of images, opened and prepared, in several lots where they are large."""
        for batch in batched(pictures, batch_size):
            lot, pixels = _Lot([]), 0
            for picture in batch:
                found = _opened(picture)
                if isinstance(found, Image.Image):
                    if pixels and pixels + found.width * found.height > MAX_PIXELS:
                        yield self._prepared(lot)
                        lot, pixels = _Lot([]), 0
                    pixels += found.width * found.height
                lot.entries.append((picture, found))
            lot.ends_batch, lot.passed, self.passed = len(batch), self.passed, 0
            yield self._prepared(lot)

    def _prepared(self, lot: _Lot) -> _Lot:
        if opened := lot.opened:
            try:
                lot.prepared = self.refiner.prepare([found for _, found in opened], [one.name for one, _ in opened])
            except Exception as error:  # each is tried by itself
                lot.prepared = error.with_traceback(None)
        return lot

    def _write(self, lot: _Lot, lines: IO[bytes], skipped: IO[bytes]) -> None:
        refined = iter(self._refined(lot.opened, lot.prepared))
        finished = []
        for picture, found in lot.entries:
            try:
                if isinstance(found, ImageError):
                    raise found
                seen = next(refined)
                if isinstance(seen, ImageError):
                    raise seen
                finished.append(self._finish(picture, found, *seen))
            except ImageError as error:
                self.reasons[error.kind] += 1
                if error.kind == "expert":
                    self.first_failure = self.first_failure or error
                skipped.write(skipped_line(picture.name, error))
        self.refined += len(finished)
        self._give_up_if_nothing_works()
        # A row says that all of its image is done, so its drawing comes first.
        for one in finished:
            self.finished.objects += one.objects
            if one.drawn is not None:
                self.drawn.mkdir(exist_ok=True)
                with written_whole(self.drawn / one.drawn) as file:
                    file.write(one.drawing)
        if finished:
            if self.features is not None:
                self.features.sync()
            lines.writelines(one.line for one in finished)
            lines.flush()
            os.fsync(lines.fileno())
        skipped.flush()

    def _refined(
        self, opened: Sequence[tuple[InputPicture, Image.Image]], prepared: ModelImages | Exception | None
    ) -> Iterator[tuple[RefinerOutput, int] | ImageError]:
        """What is seen in each image, as a batch and its number in it, or why nothing is."""
        if prepared is None:
            return
        failure: Exception | None = None
        try:
            if isinstance(prepared, Exception):
                raise prepared
            phrases = None if self.phrases is None else [self.phrases] * len(opened)
            found = self.refiner.refine(self.refiner.placed(prepared), phrases)
            assert len(found.refinements) == len(opened)
        except Exception as error:  # an expert may raise anything
            failure = error.with_traceback(None)  # its frames hold the batch's tensors
        if failure is None:
            yield from ((found, index) for index in range(len(opened)))
        elif len(opened) > 1:
            for one in opened:
                yield from self._refined([one], self._prepared(_Lot([one])).prepared)
        else:
            reason = str(failure) if isinstance(failure, LyricsError) else f"an expert failed: {describe(failure)}"
            if (name := name_for_messages(opened[0][0].name)) not in reason:
                reason = f"{name}: {reason}"
            yield ImageError(reason, "expert")

    def _finish(self, picture: InputPicture, image: Image.Image, output: RefinerOutput, index: int) -> _Finished:
        """Raises ``ImageError`` for an image whose row or drawing cannot be made."""
        refinement = output.refinements[index]
        name = name_for_messages(picture.name)
        drawn, drawing = None, b""
        if self.draw:
            try:
                format = "JPEG" if max(image.size) <= _LONGEST_JPEG else "PNG"
                file = io.BytesIO()
                refinement.draw(image).save(file, format, **({"quality": 90} if format == "JPEG" else {}))
                drawing = file.getvalue()
            except Exception as error:
                raise ImageError(f"{name}: its drawing failed: {describe(error)}", "drawing") from error
            # Shards do not know of each other's drawings, so that theirs have names of their own in any case.
            taken = self.finished.drawings if self.shard is None else None
            drawn = file_name_for(picture.name, ".jpg" if format == "JPEG" else ".png", taken)
        try:
            row: dict[str, Any] = refinement.to_json() | {"refiner": self.digest}
            row |= {"drawn": drawn} if drawn is not None else {}
            line = row_line(row)
        except Exception as error:
            raise ImageError(
                f"{name}: an expert gave what cannot be written as JSON: {describe(error)}", "expert"
            ) from error
        if self.features is not None:
            line = row_line(row | {"features": self.features.add(output, index)})
        if drawn is not None:
            self.finished.drawings.add(drawing_key(drawn))
        return _Finished(line, len(refinement.objects), drawn, drawing)

    def _give_up_if_nothing_works(self) -> None:
        failed = self.reasons["expert"]
        if self.refined == 0 and not self.ever_worked and failed >= GIVE_UP_AFTER:
            raise LyricsError(
                f"the experts failed on each of the first {failed} images, so that the refiner seems to be "
                f"broken. The first failure: {self.first_failure}"
            )


def _opened(picture: InputPicture) -> Image.Image | ImageError:
    try:
        return picture.open()
    except ImageError as error:
        return error.with_traceback(None)


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same items; the next one is made in another thread while the last is worked on."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield cast(T, item)
