"""``report.html``: a run at a glance, in one file that needs nothing else: curves, the last evaluation, and what was trained on."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import LyricsError
from lyrics.core.training.config import TrainConfig
from lyrics.core.training.runfolder import RunFolder

_WIDTH, _HEIGHT, _LEFT = 420, 160, 52
#: Points of a curve; more are averaged in groups.
_POINTS = 400
_EXAMPLES = 6
_THUMBNAIL = 160
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    "figure{display:inline-block;margin:0 1.5rem 1rem 0}figcaption{font-weight:600}svg text{font:11px sans-serif;fill:#555}"
)


def write_report(folder: RunFolder, config: TrainConfig, stream: SampleStream, step: int) -> None:
    """Write ``folder.report_file`` from the run's log, after ``step`` finished steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    evaluations: dict[str, list[tuple[int, float]]] = {}
    speeds: list[float] = []
    skipped = 0
    for line in folder.log_lines():
        for name, value in line.get("losses", {}).items():
            curves.setdefault(name, []).append((line["step"], value))
        for name, value in line.get("evaluation", {}).items():
            evaluations.setdefault(name, []).append((line["step"], value))
        if "samples_per_s" in line:
            speeds.append(line["samples_per_s"])
        skipped += bool(line.get("skipped"))
    speed = sorted(speeds)[len(speeds) // 2] if speeds else 0.0
    facts = {
        "stage": config.stage,
        "steps": f"{step:,} of {config.optimisation.steps:,}",
        "global batch": f"{config.optimisation.global_batch:,}",
        "peak learning rate": f"{config.optimisation.learning_rate:g}",
        "seed": str(config.seed),
        "data": ", ".join(f"{name} ({slot.use})" for name, slot in config.data.sets.items()),
        "samples per second (median)": f"{speed:.1f}",
        "steps skipped": str(skipped),
        "samples that could not be read": str(folder.bad_samples()),
    }
    parts = [
        f"<h1>{escape(folder.path.name)}</h1>",
        _table(facts),
        "<h2>Losses</h2>",
        *(_figure(name, points) for name, points in curves.items()),
        "<h2>Evaluation</h2>",
    ]
    if evaluations:
        parts.append(
            _table({name: f"{points[-1][1]:.4g} (step {points[-1][0]})" for name, points in evaluations.items()})
        )
        parts += [_figure(name, points) for name, points in evaluations.items() if len(points) > 1]
    else:
        parts.append("<p>None was made.</p>")
    if (folder.examples / "examples.jsonl").is_file():
        parts += ["<h2>What the model makes of held-out samples</h2>", _held_out(folder)]
    parts += [
        "<h2>Training samples</h2>",
        "<p>The first samples of the run's order, before augmentation.</p>",
        _examples(stream),
    ]
    text = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(folder.path.name)}</title><style>{_STYLE}</style>"
    folder.report_file.write_text(text + "\n".join(parts) + "</html>\n", encoding="utf-8")


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _figure(name: str, points: Sequence[tuple[int, float]]) -> str:
    return f"<figure><figcaption>{escape(name)}</figcaption>{curve(points)}</figure>"


def curve(points: Sequence[tuple[int, float]]) -> str:
    """(step, value) pairs as an inline SVG; values that are not finite are left out."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return "<p>no finite value</p>"
    group = -(-len(finite) // _POINTS)
    means = [
        (part[-1][0], sum(value for _, value in part) / len(part))
        for part in (finite[start : start + group] for start in range(0, len(finite), group))
    ]
    first, last = means[0][0], means[-1][0]
    low, high = min(value for _, value in means), max(value for _, value in means)
    across, up = max(1, last - first), (high - low) or 1.0

    def at(step: int, value: float) -> str:
        x = _LEFT + (step - first) / across * (_WIDTH - _LEFT - 8)
        y = 8 + (high - value) / up * (_HEIGHT - 30)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(at(step, value) for step, value in means)
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}' role='img'>"
        f"<path d='M{_LEFT} 4V{_HEIGHT - 20}H{_WIDTH - 4}' fill='none' stroke='#bbb'/>"
        f"<polyline points='{line}' fill='none' stroke='#0072b2' stroke-width='1.5'/>"
        f"<text x='2' y='14'>{high:.4g}</text><text x='2' y='{_HEIGHT - 22}'>{low:.4g}</text>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 6}'>{first}</text>"
        f"<text x='{_WIDTH - 4}' y='{_HEIGHT - 6}' text-anchor='end'>{last}</text></svg>"
    )


def _held_out(folder: RunFolder) -> str:
    rows = []
    for text in (folder.examples / "examples.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        picture = ""
        if line["picture"] is not None:
            with Image.open(folder.examples / line["picture"]) as opened:
                picture = _picture(opened.convert("RGB"), 2 * _THUMBNAIL)
        words = f"{escape(line['question'])}<br>expected: {escape(line['expected'])}<br><b>{escape(line['found'])}</b>"
        rows.append(f"<tr><td>{picture}</td><td>{words}<br><small>after step {line['step']:,}</small></td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _examples(stream: SampleStream) -> str:
    rows = []
    for position in range(_EXAMPLES):
        try:
            example = stream[position]
        except LyricsError as error:
            return f"<p>They cannot be read: {escape(str(error))}</p>"
        sample: Any = example.sample
        texts = [*sample.captions, *(f"{turn.instruction} -> {turn.answer}" for turn in sample.turns)]
        picture = _picture(example.picture) if example.picture is not None else ""
        words = "<br>".join(escape(text) for text in texts[:4])
        rows.append(f"<tr><td>{picture}</td><td>{words}<br><small>{escape(sample.source)}</small></td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _picture(picture: Image.Image, side: int = _THUMBNAIL) -> str:
    small = picture.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'>"
