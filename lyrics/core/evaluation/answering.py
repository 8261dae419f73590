"""What there is to answer for one benchmark, and answers on the disk, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.abstaining import Abstaining
from lyrics.core.answers import Answer
from lyrics.core.conditions import Condition
from lyrics.core.contracts import Benchmark, LimitsAnswers, ShowsImages
from lyrics.core.errors import ImageError, LyricsError, SampleError, StorageError
from lyrics.core.evaluation import predictions
from lyrics.core.evaluation.benchmark import MAX_NEW_TOKENS, Answerer, Prediction
from lyrics.core.evaluation.predictions import Line
from lyrics.core.evaluation.selective import as_abstention
from lyrics.core.json_reading import read_json_object
from lyrics.core.types import Sample

RUN = "run.json"
Shard = tuple[int, int]


@dataclass(frozen=True)
class BenchmarkRun:
    """One benchmark with its samples and the answers that are there.

    ``samples[i]`` has ``ids[i]``, and ``prompts`` are by id.
    """

    name: str
    benchmark: Benchmark
    folder: Path
    about: Mapping[str, str]
    limit: int | None
    samples: tuple[Sample, ...]
    ids: tuple[str, ...]
    prompts: Mapping[str, str]
    lines: dict[str, Line]

    def missing(self, shard: Shard = (0, 1)) -> list[int]:
        """Return rows without an answer that are a process's own."""
        index, count = shard
        return [row for row in range(index, len(self.samples), count) if self.ids[row] not in self.lines]


def open_run(
    name: str, benchmark: Benchmark, out: Path, *, limit: int | None = None, about: Mapping[str, str] | None = None
) -> BenchmarkRun:
    """Return what there is to do for one benchmark. Writes nothing.

    Args:
        name: of the benchmark's folder in ``out``.
        limit: only so many samples, the first.
        about: what the answers are of (``model``, ``split``); it must be that of the answers that are there.

    Raises ``DatasetError`` and ``SampleError`` for files that are not there or broken, ``LyricsError`` for predictions
    that do not fit.
    """
    folder = out / name
    about = _agreed(folder, about or {})
    try:
        samples = tuple(islice(benchmark.samples(), limit))
    except OSError as error:
        raise StorageError(f"{name}: its files cannot be read: {error}.") from error
    if not samples:
        raise LyricsError(f"{name}: the benchmark has no samples.")
    ids = tuple(predictions.sample_id(row, sample) for row, sample in enumerate(samples))
    prompts = {id: benchmark.prompt(sample) for id, sample in zip(ids, samples, strict=True)}
    lines = predictions.read_predictions(folder, prompts, all_samples=limit is None)
    return BenchmarkRun(name, benchmark, folder, about, limit, samples, ids, prompts, lines)


def under(run: BenchmarkRun, condition: Condition, folder: Path) -> BenchmarkRun:
    """Return the same samples under a condition, their answers in a folder of its own.

    Writes nothing; raises as ``open_run``.
    """
    named = condition.name
    if condition.soft == "shuffled":
        # Who gets whose soft tokens depends on who is there.
        named += f", exchanged among {len(run.samples)} samples"
    about = _agreed(folder, {**run.about, "condition": named})
    lines = predictions.read_predictions(folder, run.prompts, all_samples=run.limit is None)
    return replace(run, folder=folder, about=about, lines=lines)


def withholding(run: BenchmarkRun, abstaining: Abstaining) -> BenchmarkRun:
    """Return the same answers with an abstention for each that is withheld.

    Raises ``SpecError`` as ``Abstaining.withholds``.
    """
    lines = {}
    for id, line in run.lines.items():
        said = line.prediction
        gone = abstaining.withholds(said.seen, said.confidence)
        lines[id] = replace(line, prediction=as_abstention(said)) if gone else line
    return replace(run, lines=lines)


def _agreed(folder: Path, about: Mapping[str, str]) -> dict[str, str]:
    """Return what is known of the answers that are there, and of those to come."""
    path = folder / RUN
    if not path.is_file():
        return dict(about)
    there = read_json_object(path, LyricsError, advice="Write to another folder.")
    for key in sorted(there.keys() & about.keys()):
        if there[key] != about[key]:
            raise LyricsError(
                f"{path}: the answers there are of {key} {there[key]!r}, not {about[key]!r}. Write to another folder."
            )
    return {**there, **about}


def answer(
    run: BenchmarkRun,
    model: Answerer,
    *,
    batch: int = 8,
    shard: Shard = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Have the model answer what is missing of a process's share; lines are on the disk batch by batch.

    ``progress`` is called with (samples answered, samples of the share). Raises ``ImageError``, ``SampleError`` or
    ``StorageError`` naming an image that cannot be used: a score over the other samples would be of another benchmark.
    What was answered before it is kept.
    """
    missing = run.missing(shard)
    total = len(range(shard[0], len(run.samples), shard[1]))
    done = total - len(missing)
    progress(done, total)
    tokens = run.benchmark.max_new_tokens if isinstance(run.benchmark, LimitsAnswers) else MAX_NEW_TOKENS
    for start in range(0, len(missing), batch):
        rows = missing[start : start + batch]
        pictures = [picture_of(run.benchmark, run.samples[row]) for row in rows]
        prompts = [run.prompts[run.ids[row]] for row in rows]
        answers = model.generate(pictures, prompts, max_new_tokens=tokens)
        put_down(run, rows, answers, shard)
        done += len(rows)
        progress(done, total)


def put_down(run: BenchmarkRun, rows: Sequence[int], answers: Sequence[Answer], shard: Shard) -> None:
    """Answers to some rows, on the disk and in the run.

    Raises ``LyricsError`` where there are more or fewer answers than rows.
    """
    if len(answers) != len(rows):
        raise LyricsError(f"{run.name}: the model gave {len(answers)} answers to {len(rows)} questions.")
    if not (run.folder / RUN).is_file():
        write_json(run.folder / RUN, dict(run.about))
    file = predictions.file_of(run.folder, shard)
    ids = [run.ids[row] for row in rows]
    texts = [predictions.as_json(id, run.prompts[id], one) for id, one in zip(ids, answers, strict=True)]
    predictions.append(file, texts)
    for id, one in zip(ids, answers, strict=True):
        run.lines[id] = Line(id, run.prompts[id], Prediction.of(one), str(file))


def picture_of(benchmark: Benchmark, sample: Sample) -> Any:
    """Return what ``generate`` is shown: an image, or None for a sample of text alone."""
    if sample.image is None:
        return None
    if not isinstance(benchmark, ShowsImages):
        return sample.image
    try:
        found = benchmark.picture(sample)
    except (ImageError, SampleError):
        raise
    except OSError as error:
        raise StorageError(f"{sample.source}: the image {sample.image} cannot be read: {error}.") from error
    # Pillow's name for where an open image came from; stored objects are found by it.
    if isinstance(found, Image.Image):
        found.filename = sample.image  # type: ignore[attr-defined]
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """A file as a whole."""
    predictions.write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
