"""``report.html``: a run at a glance, in one file that needs nothing else.

It has curves, the last evaluation, and what was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import LyricsError
from lyrics.core.json_reading import parse_json, read_text
from lyrics.core.reports import pages
from lyrics.core.reports.plots import curve
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.runfolder import RunFolder

_EXAMPLES = 6
_THUMBNAIL = 160
_TEMPLATE = Path(__file__).parent / "run.html"


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
    examples, unreadable = _examples(stream)
    text = pages.page(
        _TEMPLATE,
        title=folder.path.name,
        facts=facts,
        losses={name: curve(points) for name, points in curves.items()},
        evaluation={name: f"{points[-1][1]:.4g} (step {points[-1][0]})" for name, points in evaluations.items()},
        evaluation_curves={name: curve(points) for name, points in evaluations.items() if len(points) > 1},
        held_out=_held_out(folder),
        examples=examples,
        unreadable=unreadable,
    )
    folder.report_file.write_text(text, encoding="utf-8")


def _held_out(folder: RunFolder) -> list[dict[str, Any]]:
    """What the model made of held-out samples; empty where nobody asked it."""
    file = folder.examples / "examples.jsonl"
    rows = []
    for text in read_text(file).splitlines() if file.is_file() else ():
        line = parse_json(text)
        image = None
        if line["picture"] is not None:
            with Image.open(folder.examples / line["picture"]) as opened:
                image = pages.data_url(opened.convert("RGB"), 2 * _THUMBNAIL)
        texts = [line["question"], f"expected: {line['expected']}"]
        source = f"after step {line['step']:,}"
        rows.append({"image": image, "texts": texts, "found": line["found"], "source": source})
    return rows


def _examples(stream: SampleStream) -> tuple[list[dict[str, Any]], str | None]:
    """The first samples, or why they cannot be read."""
    rows = []
    for position in range(_EXAMPLES):
        try:
            example = stream[position]
        except LyricsError as error:
            return [], str(error)
        sample: Any = example.sample
        texts = [*sample.captions, *(f"{turn.instruction} -> {turn.answer}" for turn in sample.turns)]
        image = None if example.picture is None else pages.data_url(example.picture, _THUMBNAIL)
        rows.append({"image": image, "texts": texts[:4], "source": sample.source})
    return rows, None
