"""Run a few optimizer steps of both stages, to show that training works here.

The recipes are those of ``lyrics-tiny`` at a small batch.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lyrics.core.json_reading import parse_json, read_text

STEPS, BATCH = 6, 8


def few_steps() -> dict[str, list[Mapping[str, float]]]:
    """Stage 1 with a new query transformer, then stage 2 from there with a new language model.

    The losses of every step, by stage; the runs are not kept.

    New, because a few steps of what is trained would show how its batches differ, and not how it learns.
    """
    from lyrics.core.runs.config import load_config
    from lyrics.core.training.assemble import run

    found: dict[str, list[Mapping[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, recipe in enumerate(("tiny-stage1", "tiny-stage2"), 1):
            out = Path(folder) / recipe
            settings: dict[str, Any] = {
                "out": str(out),
                "optimization.steps": STEPS,
                "optimization.global_batch": BATCH,
                "data.workers": 0,  # processes would take longer to start than they save
                "evaluation.every_steps": None,
                "logging.trackers": [],
            }
            if number == 2:
                settings["model.start_from"] = str(Path(folder) / "tiny-stage1")
                settings["model.spec.language_model.options.checkpoint"] = None
                settings["model.spec.language_model.options.adaptation"] = "full"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*random weights")  # which is meant
                run(load_config(recipe, settings))
            lines = read_text(out / "log.jsonl").splitlines()
            found[f"stage {number}"] = [parse_json(line)["losses"] for line in lines]
    return found
