"""Referring expression comprehension: RefCOCO, RefCOCO+, RefCOCOg, eight splits in all (Table 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.evaluation import judges
from lyrics.core.evaluation.benchmark import DatasetBenchmark
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.plugins.benchmarks import _data

# An answer repeats the expression before its box.
_LONG = 128


def refcoco(options: Any, context: BuildContext) -> DatasetBenchmark:
    """UNC's ``val``, ``testA`` (people) and ``testB`` (anything else)."""
    return _expressions("refcoco", options)


def refcoco_plus(options: Any, context: BuildContext) -> DatasetBenchmark:
    """As RefCOCO; its expressions have no words of place."""
    return _expressions("refcoco-plus", options)


def refcocog(options: Any, context: BuildContext) -> DatasetBenchmark:
    """UMD's ``val`` and ``test``."""
    return _expressions("refcocog", options)


def _expressions(name: str, options: Any) -> DatasetBenchmark:
    ask = partial(prompt_of, template=PROMPTS["rec"])
    return DatasetBenchmark(_data.of(name, options), ask, judges.rec, max_new_tokens=_LONG)
