"""Does the model look?

What is left of a benchmark's scores under each condition, group by group, and how many answers stay the same.

An answer *stays the same* where its text, boxes included, is letter for letter that of the model that sees everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.evaluation.answering import BenchmarkRun
from lyrics.core.evaluation.benchmark import Verdict, group_of, reference_text
from lyrics.core.evaluation.predictions import write_whole
from lyrics.core.reports import pages
from lyrics.core.reports.plots import Bars, Lines, Panel, Point, chart

NAME = "conditions"
ALL = "all"
#: Lines of a panel, and examples of a group on the page.
_LINES, _EXAMPLES = 4, 3
_TEMPLATE = Path(__file__).parent / "comparison.html"


@dataclass(frozen=True)
class Cell:
    """Of one group of samples under one condition.

    ``score`` is the mean worth of an answer times 100, None where the benchmark gives single answers no mark; ``same``
    the share of answers, times 100, that are as without the condition.
    """

    samples: int
    score: float | None
    same: float


@dataclass(frozen=True)
class ConditionReport:
    """One benchmark under several conditions, the clear one first.

    ``cells[condition][group]``; the first group is all samples.
    """

    name: str
    conditions: tuple[Condition, ...]
    cells: Mapping[Condition, Mapping[str, Cell]]
    scores: Mapping[Condition, Mapping[str, float]]
    runs: Mapping[Condition, BenchmarkRun]

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.cells[self.conditions[0]])

    def lost(self, condition: Condition, group: str) -> float | None:
        """Return points that a group loses under a condition; None without scores."""
        before, after = self.cells[self.conditions[0]][group].score, self.cells[condition][group].score
        return None if before is None or after is None else before - after


def compare(runs: Mapping[Condition, BenchmarkRun], verdicts: Mapping[Condition, Verdict]) -> ConditionReport:
    """Runs of the same samples, all answered and judged; one of them is under ``CLEAR``."""
    base = runs[CLEAR]
    rows_of: dict[str, list[int]] = {ALL: list(range(len(base.samples)))}
    for row, sample in enumerate(base.samples):
        if (group := group_of(base.benchmark, sample)) and group != ALL:
            rows_of.setdefault(group, []).append(row)
    names = [ALL, *sorted(rows_of.keys() - {ALL})]
    clear = _texts(base)
    cells = {}
    for condition, run in runs.items():
        same = [before == after for before, after in zip(clear, _texts(run), strict=True)]
        values = verdicts[condition].values
        cells[condition] = {
            name: Cell(
                len(rows_of[name]),
                100 * _mean([values[row] for row in rows_of[name]]) if values else None,
                100 * _mean([float(same[row]) for row in rows_of[name]]),
            )
            for name in names
        }
    order = (CLEAR, *(one for one in runs if one != CLEAR))
    return ConditionReport(base.name, order, cells, {one: verdicts[one].scores for one in order}, runs)


def _texts(run: BenchmarkRun) -> list[str]:
    return [run.lines[id].prediction.text.strip() for id in run.ids]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- what is written
# ---------------------------------------------------------------------------------------------------


def as_json(found: ConditionReport) -> dict[str, Any]:
    """For a program: per condition its settings, the benchmark's own scores, and every group."""
    return {
        "benchmark": found.name,
        "groups": list(found.groups),
        "conditions": [
            {
                "name": condition.name,
                "soft": condition.soft,
                "blur_px": condition.blur_px,
                "blur_parts": condition.blur_parts,
                "drop_tokens": condition.drop_tokens,
                "seed": condition.seed,
                "scores": {name: round(value, 4) for name, value in found.scores[condition].items()},
                "groups": {
                    group: {
                        "samples": cell.samples,
                        "score": _rounded(cell.score),
                        "lost": _rounded(found.lost(condition, group)),
                        "same": round(cell.same, 4),
                    }
                    for group, cell in found.cells[condition].items()
                },
            }
            for condition in found.conditions
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def table(found: ConditionReport) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows as text: the score under each condition, and the share of answers that stay the same."""
    return rows_of_json(as_json(found))


def rows_of_json(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """``table`` of what ``as_json`` wrote."""
    conditions = data["conditions"]
    columns = ["group", "samples", *(one["name"] for one in conditions)]
    rows = []
    for group in data["groups"]:
        cells = [one["groups"][group] for one in conditions]
        shown = ["-" if cell["score"] is None else f"{cell['score']:.1f}" for cell in cells]
        kept = ["", *(f" ({cell['same']:.0f} % same)" for cell in cells[1:])]
        rows.append([group, f"{cells[0]['samples']:,}", *map(str.__add__, shown, kept)])
    return columns, rows


def markdown(found: ConditionReport) -> str:
    columns, rows = table(found)
    lines = [f"# {found.name}: does the model look?", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(found))]) + "\n"


def notes(found: ConditionReport) -> list[str]:
    """Return what a reader of the table must know."""
    said = [
        "A score is the mean worth of an answer, from 0 to 100; in brackets the share of answers whose text stays the "
        "same, letter for letter."
    ]
    if found.cells[CLEAR][ALL].score is None:
        said.append(
            "This benchmark gives single answers no mark, so groups have no scores; its own are in conditions.json."
        )
    words = {
        "shuffled": "soft-shuffled: the soft tokens of another sample with another image; "
        "the spatial text in the prompt stays its own.",
        "zero": "soft-zero: soft tokens of zeros.",
        "noise": "soft-noise: Gaussian numbers with the mean and the standard deviation of the image's soft tokens.",
    }
    said += [text for soft, text in words.items() if any(one.soft == soft for one in found.conditions)]
    if any(one.blur_px for one in found.conditions):
        said.append(
            "blur-N: a Gaussian blur of N pixels of the original image (standard deviation), for all parts unless one "
            "is named."
        )
    if any(one.drop_tokens for one in found.conditions):
        said.append("drop-N: that share of each image's soft tokens, drawn at random, is missing from the prompt.")
    return said


def panels(found: ConditionReport) -> list[Panel]:
    """Return curves over blur and a panel of bars for each group.

    There is a curve for each of the parts that were blurred; the bars are of the other conditions.
    """
    drawn: list[Panel] = []
    plain = [one for one in found.conditions if one.soft == "own" and not one.drop_tokens]
    for parts in dict.fromkeys(one.blur_parts for one in plain if one.blur_px):
        blurred = sorted(
            {one for one in plain if one.blur_parts == parts or not one.blur_px}, key=lambda one: one.blur_px
        )
        whose = "" if parts == "both" else f", {parts} only"
        for title, what in (("score", _score), ("answers that stay the same, %", _same)):
            for some in _few(found.groups):
                lines = {
                    group: [
                        Point(one.blur_px, value) for one in blurred if (value := what(found, one, group)) is not None
                    ]
                    for group in some
                }
                drawn.append(Lines(f"{title}{whose}", lines, "blur in pixels"))
    others = [one for one in found.conditions if not one.blur_px]
    if len(others) > 1:
        for group in found.groups:
            bars = {one.name: _score(found, one, group) for one in others}
            drawn.append(
                Bars(f"{group}: score", {name: Point(0, value) for name, value in bars.items() if value is not None})
            )
    return drawn


def _few(groups: Sequence[str]) -> Iterator[Sequence[str]]:
    """The groups, a few at a time and evenly many."""
    count = -(-len(groups) // _LINES)
    size = -(-len(groups) // count)
    return (groups[start : start + size] for start in range(0, len(groups), size))


def _score(found: ConditionReport, condition: Condition, group: str) -> float | None:
    return found.cells[condition][group].score


def _same(found: ConditionReport, condition: Condition, group: str) -> float | None:
    return found.cells[condition][group].same


def page(found: ConditionReport) -> str:
    """Return an HTML page that loads nothing and runs nothing: the table, the curves, and answers side by side."""
    columns, rows = table(found)
    return pages.page(
        _TEMPLATE,
        title=f"{found.name}: does the model look?",
        columns=columns,
        rows=rows,
        notes=notes(found),
        chart=chart(panels(found)),
        examples=_examples(found),
    )


def _examples(found: ConditionReport) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """The first samples of each group with their answers; and which of these are others than without the condition."""
    base = found.runs[CLEAR]
    shown: dict[str, list[int]] = {}
    for row, sample in enumerate(base.samples):
        some = shown.setdefault(group_of(base.benchmark, sample), [])
        if len(some) < _EXAMPLES:
            some.append(row)
    columns = ["sample", "group", "asked", "right", *(one.name for one in found.conditions)]
    rows, changed = [], []
    for group, some in sorted(shown.items()):
        for row in some:
            id = base.ids[row]
            said = [found.runs[one].lines[id].prediction.text.strip() for one in found.conditions]
            rows.append([id, group, base.prompts[id], reference_text(base.samples[row]), *said])
            changed.append([False] * 4 + [one != said[0] for one in said])
    return columns, rows, changed


def write(found: ConditionReport) -> None:
    """``conditions.md``, ``.json``, ``.html`` and ``.svg`` in the benchmark's folder.

    Raises ``LyricsError`` as ``write_whole``.
    """
    folder: Path = found.runs[CLEAR].folder
    write_whole(folder / f"{NAME}.json", json.dumps(as_json(found), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{NAME}.md", markdown(found))
    write_whole(folder / f"{NAME}.html", page(found))
    write_whole(folder / f"{NAME}.svg", chart(panels(found)))
