"""Charts of what ``lyrics bench`` measured: rows -> SVG text. Draws with strings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lyrics.core.plots import Bars, Panel, Point, chart


def attention_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds forward and backward of every implementation that was timed, a panel for each case; whiskers from 20 to 80 %."""
    panels: dict[tuple[Any, ...], dict[str, Point]] = {}
    for row in rows:
        # Triton's other configurations are in the file; a chart of them all could not be read.
        if row["status"] == "ok" and " " not in row["impl"]:
            case = tuple(row[name] for name in ("op", "batch", "lengths", "dtype", "dropout"))
            took = row["both_ms"]
            panels.setdefault(case, {})[row["impl"]] = Point(0.0, took["median"], (took["high"] - took["low"]) / 2)
    return chart([Bars(_title(*case), bars) for case, bars in panels.items()])


def _title(op: str, batch: int, lengths: str, dtype: str, dropout: float) -> str:
    dropped = f", dropout {dropout:g}" if dropout else ""
    return f"{op}, ms: batch {batch}, {lengths}, {dtype}{dropped}"


def step_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds forward and backward, and activations kept, of every variant; two panels for each batch size and type."""
    panels: list[Panel] = []
    for case in dict.fromkeys((row["batch"], row["dtype"]) for row in rows):
        own = {f"{row['variant']} {row['lengths']}": row for row in rows if (row["batch"], row["dtype"]) == case}
        where = f"batch {case[0]}, {case[1]}"
        seconds = {name: _spread(row) for name, row in own.items()}
        kept = {name: Point(0.0, row["saved_bytes"] / 1e9) for name, row in own.items()}
        panels += [Bars(f"step, s: {where}", seconds), Bars(f"kept for backward, GB: {where}", kept)]
    return chart(panels)


def _spread(row: Mapping[str, Any]) -> Point:
    turns = row["all_seconds"]["both"]
    return Point(0.0, row["seconds_forward_backward"], (max(turns) - min(turns)) / 2)
