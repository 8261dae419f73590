"""``evaluate``: a model over benchmarks, into a folder: predictions, scores, the worst cases.

A second run does only what is missing.

    OUT/scores.json, OUT/table.md            of every benchmark that OUT holds
    OUT/NAME/run.json                        what the answers are of: model, benchmark, split
    OUT/NAME/predictions.jsonl               one line per sample (``lyrics.core.evaluation.predictions``)
    OUT/NAME/scores.json, OUT/NAME/worst.html
    OUT/NAME/evidence.svg                    where answers have boxes and it is known what is there
    OUT/NAME/risk.svg                        where it is known how sure the language model was: risk against coverage
    OUT/NAME/conditions.md, .json, .html, .svg   of several conditions (``lyrics.core.conditions``) what each costs
    OUT/NAME/conditions/CONDITION/           the answers under one of them: predictions, scores, worst cases

Everything that can be wrong is looked at before the model answers anything and before a file is written: the data set's
files, the predictions that are there, whether a split exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lyrics.core.abstaining import Abstaining
from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.contracts import Benchmark, ShowsImages
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation import comparison, predictions, selective
from lyrics.core.evaluation.answering import (
    BenchmarkRun,
    Shard,
    answer,
    open_run,
    picture_of,
    under,
    withholding,
    write_json,
)
from lyrics.core.evaluation.benchmark import Answerer, Judges, Prediction, Verdict
from lyrics.core.evaluation.curves import precision_recall_svg
from lyrics.core.evaluation.gallery import gallery
from lyrics.core.evaluation.report import SCORES, write_report
from lyrics.core.reports.plots import chart
from lyrics.core.types import Sample

WORST = "worst.html"
EVIDENCE = "evidence.svg"
RISK = "risk.svg"


@dataclass(frozen=True)
class Result:
    """Scores of one benchmark over ``samples`` samples.

    ``limit`` is the number that was asked for, None for the whole benchmark.
    """

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


def score(run: BenchmarkRun, abstaining: Abstaining | None = None) -> tuple[Result, Verdict]:
    """Scores of a benchmark whose samples are all answered. Writes nothing; raises what the benchmark's judge raises.

    Where answers have a confidence, ``details["confidence"]`` is their risk against coverage. ``abstaining`` scores
    "I cannot see that." in place of what it withholds.
    """
    assert not run.missing(), "evaluate has checked"
    said = [run.lines[id].prediction for id in run.ids]
    verdict = judged(run.benchmark, said, run.samples)
    details = dict(verdict.details)
    if selective.has_risk(said, verdict):
        details["confidence"] = selective.details(selective.curve_of(said, verdict.values))
    scores = dict(verdict.scores)
    if abstaining is not None:
        hidden = selective.withheld(said, abstaining)
        given = [selective.as_abstention(one) if gone else one for one, gone in zip(said, hidden, strict=True)]
        extra = selective.abstaining_scores(hidden, verdict.values)
        verdict = judged(run.benchmark, given, run.samples)
        scores = {**verdict.scores, **extra}
        details = {**details, **verdict.details, "abstaining": {"threshold": abstaining.threshold}}
    notes = list(verdict.notes)
    if run.limit is not None and len(run.samples) == run.limit:
        notes.append(f"The first {run.limit} samples only: not comparable with a score of the whole benchmark.")
    return Result(run.name, len(run.samples), run.limit, scores, tuple(notes), details), verdict


def write(run: BenchmarkRun, result: Result, verdict: Verdict) -> None:
    """Write ``scores.json``, ``worst.html`` and ``evidence.svg`` into the folder.

    The ``predictions.jsonl`` of several processes become one.
    """
    predictions.merge(run.folder)
    write_json(run.folder / SCORES, {**run.about, **result.to_json()})
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
    if isinstance(confidence := result.details.get("confidence"), Mapping):
        predictions.write_whole(run.folder / RISK, chart([selective.panel(run.name, confidence)]))


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
    conditions: Sequence[Condition] = (),
    abstaining: Abstaining | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Result]:
    """Evaluate a model, and write everything to the folder ``out`` (see above).

    Args:
        model: what answers; or a function that gives it, called only if something is missing; or None to score the
            answers that are there.
        benchmarks: by the name of their folder in ``out``.
        batch: samples that are answered together.
        limit: only so many samples of each benchmark, the first.
        shard: (i, n): this process answers rows i, i + n, ... and scores nothing. Once all n have finished, a run
            without it merges and scores.
        about: for each benchmark, what its answers are of, such as ``{"model": ..., "split": ...}``; answers of
            anything else are refused.
        conditions: under which the same samples are answered as well; each image is looked at once for all that
            change its soft tokens alone. The results are without any; what the conditions cost is their
            ``details["conditions"]``.
        abstaining: which answers are scored as "I cannot see that."; predictions keep what was said.
        progress: called with (name, samples answered, samples in all).

    Returns a result for each benchmark; none from a process of several. Raises ``LyricsError`` and its kinds, as
    ``open_run``, ``answer`` and ``score`` do; with more than one benchmark, all are looked at before the first is
    answered.
    """
    _check_shard(shard)
    known = about or {}
    runs = [open_run(name, one, out, limit=limit, about=known.get(name)) for name, one in benchmarks.items()]
    others = [one for one in dict.fromkeys(conditions) if not one.changes_nothing]
    per_run = [
        {CLEAR: run} | {one: under(run, one, run.folder / comparison.NAME / one.name) for one in others} for run in runs
    ]
    every = [each for one in per_run for each in one.values()]
    if model is not None and any(run.missing(shard) for run in every):
        answerer = model if hasattr(model, "generate") else model()
        if others:
            _answer_under(per_run, answerer, batch, shard, progress)
        else:
            for run in runs:
                answer(run, answerer, batch=batch, shard=shard, progress=_named(progress, run.name))
    if shard[1] > 1:
        return []
    _check_complete(every)
    scored = [{one: score(run, abstaining) for one, run in each.items()} for each in per_run]
    if abstaining is not None:
        per_run = [{one: withholding(run, abstaining) for one, run in each.items()} for each in per_run]
    compared = [_compared(each, found) for each, found in zip(per_run, scored, strict=True)] if others else []
    for each, found in zip(per_run, scored, strict=True):
        for one, run in each.items():
            write(run, *found[one])
    for costs in compared:
        comparison.write(costs)
    write_report(out)
    return [found[CLEAR][0] for found in scored]


def evaluate_under(
    condition: Condition,
    model: Answerer | Callable[[], Answerer],
    benchmarks: Mapping[str, Benchmark],
    out: Path,
    *,
    batch: int = 8,
    limit: int | None = None,
    about: Mapping[str, Mapping[str, str]] | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Result]:
    """Evaluate under one condition alone, as if it were a model of its own.

    Answers are in the folders of ``out``.
    """
    known = about or {}
    opened = [open_run(name, one, out, limit=limit, about=known.get(name)) for name, one in benchmarks.items()]
    runs = [under(run, condition, run.folder) for run in opened]
    if any(run.missing() for run in runs):
        answerer = model if hasattr(model, "generate") else model()
        _answer_under([{condition: run} for run in runs], answerer, batch, (0, 1), progress)
    scored = [score(run) for run in runs]
    for run, (result, verdict) in zip(runs, scored, strict=True):
        write(run, result, verdict)
    write_report(out)
    return [result for result, _ in scored]


def _answer_under(
    runs: Sequence[Mapping[Condition, BenchmarkRun]],
    answerer: Any,
    batch: int,
    shard: Shard,
    progress: Callable[[str, int, int], None],
) -> None:
    # Here and not above: what is scored again needs no torch.
    from lyrics.core.evaluation.looking import answer_under, asking, exchanges

    model = asking(answerer)
    model.check(dict.fromkeys(condition for each in runs for condition in each))
    partners = [exchanges(each, model) for each in runs]
    for each, whose in zip(runs, partners, strict=True):
        name = next(iter(each.values())).name

        def told(condition: Condition, done: int, total: int, name: str = name) -> None:
            progress(name if condition == CLEAR else f"{name}, {condition.name}", done, total)

        answer_under(each, whose, model, batch=batch, shard=shard, progress=told)


def _compared(
    runs: Mapping[Condition, BenchmarkRun], scored: dict[Condition, tuple[Result, Verdict]]
) -> comparison.ConditionReport:
    """Return what each condition costs; it becomes part of the result without one, too."""
    found = comparison.compare(runs, {one: verdict for one, (_, verdict) in scored.items()})
    result, verdict = scored[CLEAR]
    details = {**result.details, "conditions": comparison.as_json(found)["conditions"]}
    scored[CLEAR] = (replace(result, details=details), verdict)
    return found


def _check_shard(shard: Shard) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise LyricsError(f"shard {index} of {count}: shards are counted from 0 to {count - 1}.")


def _check_complete(runs: Sequence[BenchmarkRun]) -> None:
    """Before any score is written."""
    for run in runs:
        if missing := run.missing():
            raise LyricsError(
                f"{run.folder}: {len(missing)} of {len(run.samples)} predictions are missing, the first is "
                f"{run.ids[missing[0]]!r}. Run the same command without --rescore; processes with --shard "
                "must all have finished."
            )


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)
