"""``report.html``: a run at a glance, in one file that needs nothing else.

It has curves, the last evaluation, and what was trained on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import LyricsError
from lyrics.core.json_reading import parse_json, read_text
from lyrics.core.reports.plots import curve
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.runfolder import RunFolder

_EXAMPLES = 6
_THUMBNAIL = 160
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    "figure{display:inline-block;margin:0 1.5rem 1rem 0}figcaption{font-weight:600}svg text{font:11px "
    "sans-serif;fill:#555}"
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
        "steps": f"{step:,} of {config.optimization.steps:,}",
        "global batch": f"{config.optimization.global_batch:,}",
        "peak learning rate": f"{config.optimization.learning_rate:g}",
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
    text = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(folder.path.name)}</title>"
        f"<style>{_STYLE}</style>"
    )
    folder.report_file.write_text(text + "\n".join(parts) + "</html>\n", encoding="utf-8")


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _figure(name: str, points: Sequence[tuple[int, float]]) -> str:
    return f"<figure><figcaption>{escape(name)}</figcaption>{curve(points)}</figure>"


def _held_out(folder: RunFolder) -> str:
    rows = []
    for text in read_text(folder.examples / "examples.jsonl").splitlines():
        line = parse_json(text)
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
