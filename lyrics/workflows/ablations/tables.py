"""What an ablation found, as ``NAME.md``, ``NAME.json`` and ``NAME.svg``: a row per variant, seed and score.

Means with their spread.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lyrics.core.evaluation.predictions import write_whole
from lyrics.core.evaluation.runner import Result
from lyrics.core.reports.plots import Bars, Lines, Panel, Point, chart

#: (the benchmark's name, its split or an empty string for any, variant) -> what the paper reports.
Published = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class ScoreRow:
    """One score of one variant.

    ``reading`` is None where there is one way to read the ablation, ``seed`` where nothing is drawn.
    """

    variant: str
    reading: str | None
    seed: int | None
    benchmark: str
    score: str
    value: float
    samples: int


@dataclass(frozen=True)
class Curve:
    """A number measured again and again while a variant was trained: (step, value) pairs."""

    variant: str
    seed: int
    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Ablation:
    """What was found.

    Args:
        name: of the files, such as ``table-5``.
        title: of the page.
        rows: in the order in which variants and scores are shown.
        facts: what holds for all of it: steps, seeds, samples.
        notes: what a reader must know.
        published: the paper's figures.
        about: of each benchmark's folder, its ``benchmark`` and ``split``.
        x, x_name: where variants lie on an axis, and what it counts; without them variants are bars.
        curves: of the training runs.
    """

    name: str
    title: str
    rows: Sequence[ScoreRow]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    published: Published = field(default_factory=dict)
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    x: Mapping[str, float] = field(default_factory=dict)
    x_name: str = ""
    curves: Sequence[Curve] = ()

    def variants(self, reading: str | None) -> list[str]:
        return list(dict.fromkeys(row.variant for row in self.rows if row.reading == reading))

    def readings(self) -> list[str | None]:
        return list(dict.fromkeys(row.reading for row in self.rows))


def rows_of(variant: str, reading: str | None, seed: int | None, results: Sequence[Result]) -> list[ScoreRow]:
    """Return a row for each score of each benchmark."""
    return [
        ScoreRow(variant, reading, seed, result.name, score, value, result.samples)
        for result in results
        for score, value in result.scores.items()
    ]


def samples_of(rows: Sequence[ScoreRow]) -> dict[str, int]:
    """Return samples by benchmark."""
    return {row.benchmark: row.samples for row in rows}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the standard deviation of the sample (divided by n - 1); None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def cells(ablation: Ablation, reading: str | None) -> Iterator[tuple[str, int, str, dict[str, list[float]]]]:
    """Yield (benchmark, samples, score, values by variant) for every score of a reading.

    Scores are in the order of their first row.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    samples: dict[str, int] = {}
    for row in ablation.rows:
        if row.reading == reading:
            found.setdefault((row.benchmark, row.score), {}).setdefault(row.variant, []).append(row.value)
            samples.setdefault(row.benchmark, row.samples)
    # A score that only later variants have (an answer must have boxes for some) stands with its benchmark all the same.
    names = list(dict.fromkeys(benchmark for benchmark, _ in found))
    for (benchmark, score), values in sorted(found.items(), key=lambda item: names.index(item[0][0])):
        yield benchmark, samples[benchmark], score, values


def shown(values: Sequence[float], seeds: int) -> str:
    """Return ``12.50 +/- 0.30``; with the number of values where some seed has none."""
    if not values:
        return "-"
    if all(isinstance(value, int) for value in values) and len(values) == 1:
        return f"{values[0]:,}"
    mean, spread = mean_and_spread(values)
    text = f"{mean:.2f}" if spread is None else f"{mean:.2f} +/- {spread:.2f}"
    return text if len(values) == seeds else f"{text} ({len(values)} of {seeds} seeds)"


def table(ablation: Ablation, reading: str | None) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows as text; the paper's figures stand below the first score of their benchmark."""
    variants = ablation.variants(reading)
    seeds = {
        variant: len({row.seed for row in ablation.rows if (row.variant, row.reading) == (variant, reading)})
        for variant in variants
    }
    lines: list[list[str]] = []
    told: set[str] = set()
    for benchmark, samples, score, values in cells(ablation, reading):
        found = [shown(values.get(variant, ()), seeds[variant]) for variant in variants]
        lines.append([benchmark, f"{samples:,}", score, *found])
        if benchmark not in told:
            told.add(benchmark)
            paper = [_published(ablation, benchmark, variant) for variant in variants]
            if any(value is not None for value in paper):
                lines.append([benchmark, "", "(the paper)", *("-" if one is None else f"{one:g}" for one in paper)])
    return ["benchmark", "samples", "score", *variants], lines


def _published(ablation: Ablation, folder: str, variant: str) -> float | None:
    about = ablation.about.get(folder, {})
    name, split = about.get("benchmark", folder).rpartition("/")[2], about.get("split", "")
    return ablation.published.get((name, split, variant), ablation.published.get((name, "", variant)))


def markdown(ablation: Ablation, command: str) -> str:
    """Return the page: what was done, a table for each reading, notes."""
    parts = [f"# {ablation.title}", "", f"`{command}`", "", "| | |", "|---|---|"]
    parts += [f"| {name} | {value} |" for name, value in ablation.facts.items()]
    for reading in ablation.readings():
        columns, lines = table(ablation, reading)
        parts += ["", f"## Reading: {reading}" if reading else "## Scores", ""]
        parts += [_line(columns), "|" + "---|" * len(columns), *(_line(line) for line in lines)]
    if ablation.notes:
        parts += ["", *(f"- {note}" for note in ablation.notes)]
    return "\n".join(parts) + "\n"


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def as_json(ablation: Ablation, command: str) -> dict[str, Any]:
    """Return the same for a program.

    ``rows`` and ``curves`` as above, ``facts``, ``notes``, and the paper's figures.
    """
    paper = [
        {"benchmark": folder, "variant": variant, "value": value}
        for folder in dict.fromkeys(row.benchmark for row in ablation.rows)
        for variant in dict.fromkeys(row.variant for row in ablation.rows)
        if (value := _published(ablation, folder, variant)) is not None
    ]
    found: dict[str, Any] = {
        "title": ablation.title,
        "command": command,
        "facts": dict(ablation.facts),
        "notes": list(ablation.notes),
        "rows": [asdict(row) for row in ablation.rows],
        "published": paper,
    }
    if ablation.x:
        found[ablation.x_name] = dict(ablation.x)
    if ablation.curves:
        found["curves"] = [{**asdict(one), "points": [list(point) for point in one.points]} for one in ablation.curves]
    return found


def panels(ablation: Ablation) -> list[Panel]:
    """Return a panel for the main scores of every benchmark.

    They are the first share of each of its parts (what stands before a colon).
    """
    found: list[Panel] = []
    for reading in ablation.readings():
        drawn: set[tuple[str, str]] = set()
        for benchmark, _, score, values in cells(ablation, reading):
            part = score.partition(": ")[0] if ": " in score else ""
            counts = all(isinstance(value, int) for each in values.values() for value in each)
            if counts or (benchmark, part) in drawn:
                continue
            drawn.add((benchmark, part))
            title = ", ".join(filter(None, (reading, benchmark, score)))
            points = {
                name: Point(ablation.x.get(name, 0.0), *_drawn(values[name]))
                for name in ablation.variants(reading)
                if name in values
            }
            if ablation.x:
                found.append(Lines(title, {score: sorted(points.values(), key=lambda one: one.x)}, ablation.x_name))
            else:
                found.append(Bars(title, points))
    return [*found, *_curves(ablation.curves)]


def _drawn(values: Sequence[float]) -> tuple[float, float]:
    mean, spread = mean_and_spread(values)
    return mean, spread or 0.0


def _curves(curves: Sequence[Curve]) -> Iterator[Lines]:
    for name in dict.fromkeys(one.name for one in curves):
        by_variant: dict[str, dict[int, list[float]]] = {}
        for one in curves:
            if one.name == name:
                for step, value in one.points:
                    by_variant.setdefault(one.variant, {}).setdefault(step, []).append(value)
        lines = {
            variant: [Point(step, *_drawn(values)) for step, values in sorted(steps.items())]
            for variant, steps in by_variant.items()
        }
        yield Lines(f"held-out: {name}", lines, "steps")


def write(ablation: Ablation, out: Path, command: str) -> None:
    """The three files in ``out``. Raises ``LyricsError`` where they cannot be written."""
    write_whole(out / f"{ablation.name}.md", markdown(ablation, command))
    write_whole(out / f"{ablation.name}.json", json.dumps(as_json(ablation, command), indent=2) + "\n")
    write_whole(out / f"{ablation.name}.svg", chart(panels(ablation)))
