"""Charts of what ``lyrics bench`` measured: rows -> SVG text. Draws with strings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lyrics.core.reports.plots import Bars, Panel, Point, chart


def attention_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds forward and backward of every implementation that was timed, a panel for each case; whiskers from 20
    to 80 %.
    """
    panels: dict[tuple[Any, ...], dict[str, Point]] = {}
    for row in rows:
        if row["status"] == "ok":
            case = tuple(row[name] for name in ("op", "batch", "lengths", "dtype", "dropout"))
            took = row["both_us"]
            panels.setdefault(case, {})[row["impl"]] = Point(0.0, took["median"], (took["high"] - took["low"]) / 2)
    return chart([Bars(_title(*case), bars) for case, bars in panels.items()])


def _title(op: str, batch: int, lengths: str, dtype: str, dropout: float) -> str:
    dropped = f", dropout {dropout:g}" if dropout else ""
    return f"{op}, us: batch {batch}, {lengths}, {dtype}{dropped}"


def host_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds of processor time by kind of work, the greatest first, without launches."""
    panels: list[Panel] = []
    for row in rows:
        own = {kind: took for kind, took in row["ms"].items() if not kind.startswith("launch")}
        bars = {kind: Point(0.0, took) for kind, took in sorted(own.items(), key=lambda item: -item[1])}
        panels.append(
            Bars(f"host, ms: batch {row['batch']}, {row['lengths']} lengths: {row['own_ms']:.1f} in all", bars)
        )
    return chart(panels)


def step_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds forward and backward, and activations kept, of every variant; two panels for each batch size, type and
    attention.
    """
    panels: list[Panel] = []
    timed = [row for row in rows if "status" not in row]
    for case in dict.fromkeys(_step_case(row) for row in timed):
        own = {f"{row['variant']} {row['lengths']}": row for row in timed if _step_case(row) == case}
        recipe, batch, dtype, attention = case
        where = f"{recipe}, batch {batch}, {dtype}" + ("" if attention == "auto" else f", {attention}")
        seconds = {name: _spread(row) for name, row in own.items()}
        kept = {name: Point(0.0, row["saved_bytes"] / 1e9) for name, row in own.items()}
        panels += [Bars(f"step, s: {where}", seconds), Bars(f"kept for backward, GB: {where}", kept)]
    return chart(panels)


def _step_case(row: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return row["recipe"], row["batch"], row["dtype"], row["attention"]


def _spread(row: Mapping[str, Any]) -> Point:
    turns = row["all_seconds"]["both"]
    return Point(0.0, row["seconds_forward_backward"], (max(turns) - min(turns)) / 2)
