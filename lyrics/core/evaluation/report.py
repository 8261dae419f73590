"""``scores.json`` and ``table.md`` over every benchmark that a folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.predictions import write_whole
from lyrics.core.json_reading import read_json_object

SCORES = "scores.json"
TABLE = "table.md"


def read_scores(out: Path) -> dict[str, dict[str, Any]]:
    """By benchmark, in alphabetical order. Raises ``LyricsError`` naming a file that cannot be read."""
    found = {}
    for path in sorted(out.glob(f"*/{SCORES}")):
        found[path.parent.name] = read_json_object(path, LyricsError, advice="Remove it and score again.")
    return found


def write_report(out: Path) -> None:
    """Both files, of the scores that the folders hold."""
    found = read_scores(out)
    write_whole(out / SCORES, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    lines = ["| benchmark | samples | score | value |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows_of(found)]
    notes = [f"- {name}: {note}" for name, about in found.items() for note in about.get("notes", ())]
    write_whole(out / TABLE, "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n")


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (benchmark, samples, score, value) as text; counts without decimals."""
    for name, about in found.items():
        for score, value in about["scores"].items():
            yield name, f"{about['samples']:,}", score, f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
