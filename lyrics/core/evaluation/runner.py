"""``evaluate``: a model over benchmarks, into a folder: predictions, scores, the worst cases. A second run does only what is missing.

    OUT/scores.json, OUT/table.md            of every benchmark that OUT holds
    OUT/NAME/run.json                        what the answers are of: model, benchmark, split
    OUT/NAME/predictions.jsonl               one line per sample (``lyrics.core.evaluation.predictions``)
    OUT/NAME/scores.json, OUT/NAME/worst.html
    OUT/NAME/evidence.svg                    where answers have boxes and it is known what is there

Everything that can be wrong is looked at before the model answers anything and before a file is written: the data set's files, the
predictions that are there, whether a split exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.contracts import Benchmark, LimitsAnswers, ShowsImages
from lyrics.core.errors import ImageError, LyricsError, SampleError, StorageError
from lyrics.core.evaluation import predictions
from lyrics.core.evaluation.benchmark import MAX_NEW_TOKENS, Answerer, Judges, Prediction, Verdict
from lyrics.core.evaluation.curves import precision_recall_svg
from lyrics.core.evaluation.gallery import gallery
from lyrics.core.evaluation.predictions import Line
from lyrics.core.evaluation.report import SCORES, write_report
from lyrics.core.json_reading import read_json_object
from lyrics.core.types import Sample

RUN = "run.json"
WORST = "worst.html"
EVIDENCE = "evidence.svg"
Shard = tuple[int, int]


@dataclass(frozen=True)
class Result:
    """Scores of one benchmark over ``samples`` samples. ``limit`` is the number that was asked for, None for the whole benchmark."""

    name: str
    samples: int
    limit: int | None
    scores: Mapping[str, float]
    notes: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        scores = {name: round(value, 4) for name, value in self.scores.items()}
        return {"samples": self.samples, "limit": self.limit, "scores": scores, "notes": list(self.notes)} | (
            {"details": dict(self.details)} if self.details else {}
        )


@dataclass(frozen=True)
class BenchmarkRun:
    """One benchmark with its samples and the answers that are there. ``samples[i]`` has ``ids[i]``, and ``prompts`` are by id."""

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
        """Rows without an answer that are a process's own."""
        index, count = shard
        return [row for row in range(index, len(self.samples), count) if self.ids[row] not in self.lines]


def open_run(
    name: str, benchmark: Benchmark, out: Path, *, limit: int | None = None, about: Mapping[str, str] | None = None
) -> BenchmarkRun:
    """What there is to do for one benchmark. Writes nothing.

    Args:
        name: of the benchmark's folder in ``out``.
        limit: only so many samples, the first.
        about: what the answers are of (``model``, ``split``); it must be that of the answers that are there.

    Raises ``DatasetError`` and ``SampleError`` for files that are not there or broken, ``LyricsError`` for predictions that do not fit.
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


def _agreed(folder: Path, about: Mapping[str, str]) -> dict[str, str]:
    """What is known of the answers that are there, and of those to come."""
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

    ``progress`` is called with (samples answered, samples of the share). Raises ``ImageError``, ``SampleError`` or ``StorageError``
    naming a picture that cannot be used: a score over the other samples would be of another benchmark. What was answered before it is kept.
    """
    missing = run.missing(shard)
    total = len(range(shard[0], len(run.samples), shard[1]))
    done = total - len(missing)
    progress(done, total)
    file = predictions.file_of(run.folder, shard)
    tokens = run.benchmark.max_new_tokens if isinstance(run.benchmark, LimitsAnswers) else MAX_NEW_TOKENS
    for start in range(0, len(missing), batch):
        rows = missing[start : start + batch]
        pictures = [picture_of(run.benchmark, run.samples[row]) for row in rows]
        prompts = [run.prompts[run.ids[row]] for row in rows]
        answers = model.generate(pictures, prompts, max_new_tokens=tokens)
        if len(answers) != len(rows):
            raise LyricsError(f"{run.name}: the model gave {len(answers)} answers to {len(rows)} questions.")
        if not (run.folder / RUN).is_file():
            _write_json(run.folder / RUN, dict(run.about))
        texts = [
            predictions.as_json(run.ids[row], prompt, one)
            for row, prompt, one in zip(rows, prompts, answers, strict=True)
        ]
        predictions.append(file, texts)
        for row, prompt, one in zip(rows, prompts, answers, strict=True):
            run.lines[run.ids[row]] = Line(run.ids[row], prompt, Prediction.of(one), str(file))
        done += len(rows)
        progress(done, total)


def picture_of(benchmark: Benchmark, sample: Sample) -> Any:
    """What ``generate`` is shown: a picture, or None for a sample of text alone."""
    if sample.image is None:
        return None
    if not isinstance(benchmark, ShowsImages):
        return sample.image
    try:
        found = benchmark.picture(sample)
    except (ImageError, SampleError):
        raise
    except OSError as error:
        raise StorageError(f"{sample.source}: the picture {sample.image} cannot be read: {error}.") from error
    # Pillow's name for where an open picture came from; stored objects are found by it.
    if isinstance(found, Image.Image):
        found.filename = sample.image  # type: ignore[attr-defined]
    return found


def score(run: BenchmarkRun) -> tuple[Result, Verdict]:
    """Scores of a benchmark whose samples are all answered. Writes nothing; raises what the benchmark's judge raises."""
    assert not run.missing(), "evaluate has checked"
    verdict = judged(run.benchmark, [run.lines[id].prediction for id in run.ids], run.samples)
    notes = list(verdict.notes)
    if run.limit is not None and len(run.samples) == run.limit:
        notes.append(f"The first {run.limit} samples only: not comparable with a score of the whole benchmark.")
    return Result(run.name, len(run.samples), run.limit, verdict.scores, tuple(notes), verdict.details), verdict


def write(run: BenchmarkRun, result: Result, verdict: Verdict) -> None:
    """The folder's ``scores.json``, ``worst.html`` and ``evidence.svg``, and one ``predictions.jsonl`` of those of several processes."""
    predictions.merge(run.folder)
    _write_json(run.folder / SCORES, {**run.about, **result.to_json()})
    if verdict.marks:
        shows = isinstance(run.benchmark, ShowsImages)
        picture = (lambda sample: picture_of(run.benchmark, sample)) if shows else None
        lines = [run.lines[id] for id in run.ids]
        page = gallery(run.name, result.scores, run.samples, lines, verdict.marks, picture)
        predictions.write_whole(run.folder / WORST, page)
    evidence = result.details.get("evidence")
    if isinstance(evidence, Mapping) and (points := evidence.get("points")):
        title = f"{run.name}: real boxes by the refiner's evidence"
        predictions.write_whole(run.folder / EVIDENCE, precision_recall_svg(points, title))


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    predictions.write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def judged(benchmark: Benchmark, said: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
    """By the benchmark's ``judge``, or by ``score`` of the answers' texts."""
    if isinstance(benchmark, Judges):
        verdict = benchmark.judge(said, samples)
        assert not verdict.marks or len(verdict.marks) == len(samples)
        return verdict
    return Verdict(dict(benchmark.score([one.text for one in said], samples)))


def evaluate(
    model: Answerer | Callable[[], Answerer] | None,
    benchmarks: Mapping[str, Benchmark],
    out: Path,
    *,
    batch: int = 8,
    limit: int | None = None,
    shard: Shard = (0, 1),
    about: Mapping[str, Mapping[str, str]] | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Result]:
    """Evaluate a model, and write everything to the folder ``out`` (see above).

    Args:
        model: what answers; or a function that gives it, called only if something is missing; or None to score the answers that are there.
        benchmarks: by the name of their folder in ``out``.
        batch: samples that are answered together.
        limit: only so many samples of each benchmark, the first.
        shard: (i, n): this process answers rows i, i + n, ... and scores nothing. Once all n have finished, a run without it merges and
            scores.
        about: for each benchmark, what its answers are of, such as ``{"model": ..., "split": ...}``; answers of anything else are refused.
        progress: called with (name, samples answered, samples in all).

    Returns a result for each benchmark; none from a process of several. Raises ``LyricsError`` and its kinds, as ``open_run``, ``answer``
    and ``score`` do; with more than one benchmark, all are looked at before the first is answered.
    """
    index, count = shard
    if not 0 <= index < count:
        raise LyricsError(f"shard {index} of {count}: shards are counted from 0 to {count - 1}.")
    known = about or {}
    runs = [open_run(name, one, out, limit=limit, about=known.get(name)) for name, one in benchmarks.items()]
    if model is not None and any(run.missing(shard) for run in runs):
        answerer = model if hasattr(model, "generate") else model()
        for run in runs:
            answer(run, answerer, batch=batch, shard=shard, progress=_named(progress, run.name))
    if count > 1:
        return []
    _check_complete(runs)
    scored = [score(run) for run in runs]
    for run, (result, verdict) in zip(runs, scored, strict=True):
        write(run, result, verdict)
    write_report(out)
    return [result for result, _ in scored]


def _check_complete(runs: Sequence[BenchmarkRun]) -> None:
    """Before any score is written."""
    for run in runs:
        if missing := run.missing():
            raise LyricsError(
                f"{run.folder}: {len(missing)} of {len(run.samples)} predictions are missing, the first is {run.ids[missing[0]]!r}. "
                "Run the same command without --rescore; processes with --shard must all have finished."
            )


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)
