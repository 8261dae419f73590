"""Two stages of a model at its smallest, and an evaluation on a few plain scenes, which have five tasks each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lyrics.core.evaluation.build import build_benchmark
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.workflows.ablations.runs import Evaluating, Stages
from tests.core.small import small
from tests.plugins.benchmarks.conftest import REGISTRY

LOSSES = ("itc", "itm", "icg", "msp")


def config(stage: str, steps: int = 2, **changes: Any) -> TrainConfig:
    """A few steps of two scenes each; ``a__b`` in a keyword stands for ``a.b``."""
    spec = small(
        objectives={name: name for name in LOSSES},
        refiner__max_objects=2,
        query_transformer__options__max_positions=128,
        language_model__options__max_positions=512,
    )
    task = "caption" if stage == "pretrain" else "mixed"
    scenes = {"use": "scenes", "options": {"task": task, "scenes": 4, "attributes": "plain"}}
    base = {
        "stage": stage,
        "out": "elsewhere",
        "device": "cpu",
        "model": {"spec": spec.model_dump(mode="json"), "weights": "random"},
        "data": {"sets": {"scenes": scenes}, "augmentation": None, "workers": 0},
        "optimization": {"steps": steps, "global_batch": 2, "learning_rate": 1e-3},
        "logging": {"trackers": []},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


def stages(**changes: Any) -> Stages:
    return Stages(config("pretrain"), config("instruct", **changes))


@contextlib.contextmanager
def no_bars() -> Iterator[Any]:
    yield lambda name, done, total: None


def scenes(count: int = 2, tokens: int = 2) -> Any:
    found = build_benchmark("scenes", {"scenes": count, "attributes": "plain"}, registry=REGISTRY)
    object.__setattr__(found, "max_new_tokens", tokens)
    return found


def evaluating(count: int = 1, **changes: Any) -> Evaluating:
    """Of the first scenes, one of each task."""
    about = {"scenes-test": {"benchmark": "scenes", "split": "test"}}
    return Evaluating({"scenes-test": scenes(count)}, about, no_bars, **{"batch": 5, **changes})


def written(folder: Path) -> dict[str, float]:
    """When each file below a folder was last changed."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
