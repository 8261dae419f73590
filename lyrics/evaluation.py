"""The pieces of an evaluation: benchmarks, the runner, and what other toolkits need.

``lyrics.evaluate`` runs all of it.

Names are loaded when they are first used; importing this module imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lyrics.core.evaluation.alignment import alignment as alignment
    from lyrics.core.evaluation.benchmark import DatasetBenchmark as DatasetBenchmark
    from lyrics.core.evaluation.build import build_benchmark as build_benchmark
    from lyrics.core.evaluation.metrics.anls import anls as anls
    from lyrics.core.evaluation.metrics.exact import exact_match as exact_match
    from lyrics.core.evaluation.metrics.rec import box_is_right as box_is_right
    from lyrics.core.evaluation.metrics.relaxed import relaxed_match as relaxed_match
    from lyrics.core.evaluation.metrics.vqa import vqa_accuracy as vqa_accuracy
    from lyrics.core.evaluation.metrics.yes_no import mme_scores as mme_scores
    from lyrics.core.evaluation.metrics.yes_no import yes_no_scores as yes_no_scores
    from lyrics.core.evaluation.runner import Result as Result
    from lyrics.core.evaluation.runner import evaluate as evaluate
    from lyrics.core.evaluation.toolkits import rewritten as rewritten
    from lyrics.core.evaluation.toolkits import words_of as words_of

# Public name -> the module that defines it.
_HOMES = {
    "DatasetBenchmark": "lyrics.core.evaluation.benchmark",
    "Result": "lyrics.core.evaluation.runner",
    "alignment": "lyrics.core.evaluation.alignment",
    "anls": "lyrics.core.evaluation.metrics.anls",
    "box_is_right": "lyrics.core.evaluation.metrics.rec",
    "build_benchmark": "lyrics.core.evaluation.build",
    "evaluate": "lyrics.core.evaluation.runner",
    "exact_match": "lyrics.core.evaluation.metrics.exact",
    "mme_scores": "lyrics.core.evaluation.metrics.yes_no",
    "relaxed_match": "lyrics.core.evaluation.metrics.relaxed",
    "rewritten": "lyrics.core.evaluation.toolkits",
    "vqa_accuracy": "lyrics.core.evaluation.metrics.vqa",
    "words_of": "lyrics.core.evaluation.toolkits",
    "yes_no_scores": "lyrics.core.evaluation.metrics.yes_no",
}

__all__ = [
    "DatasetBenchmark",
    "Result",
    "alignment",
    "anls",
    "box_is_right",
    "build_benchmark",
    "evaluate",
    "exact_match",
    "mme_scores",
    "relaxed_match",
    "rewritten",
    "vqa_accuracy",
    "words_of",
    "yes_no_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lyrics.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
