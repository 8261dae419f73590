"""Captions: COCO, NoCaps, Flickr30K (Table 2)."""

from __future__ import annotations

from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.evaluation import judges
from lyrics.core.evaluation.benchmark import DatasetBenchmark
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.plugins.benchmarks import _data


def coco(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Karpathy's test split (5,000 images) unless another is asked for."""
    return _captions("coco", options)


def nocaps(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the validation split (4,500 images); the captions of the test split are on a server."""
    return _captions("nocaps", options)


def flickr30k(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Karpathy's test split: 1,000 images."""
    return _captions("flickr30k", options)


def _captions(name: str, options: Any) -> DatasetBenchmark:
    ask = partial(prompt_of, template=PROMPTS["caption"])
    return DatasetBenchmark(_data.of(name, options), ask, judges.captions)
