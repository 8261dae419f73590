"""Questions: VQAv2, OK-VQA, GQA, ScienceQA with images, VizWiz, and about written words TextVQA and OCR-VQA (Table
2).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.templates import Task
from lyrics.core.evaluation import judges
from lyrics.core.evaluation.benchmark import DatasetBenchmark, Judge
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.core.types import Sample
from lyrics.plugins.benchmarks import _data

_SHORT = 32


def vqav2(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the validation split; ``test-dev`` and ``test`` have their answers on a server."""
    return _questions("vqav2", options, judges.vqa(options.accuracy))


def ok_vqa(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the validation split, which is what is reported as its test set.

    The references are stems, as the official script has them.
    """
    return _questions("ok-vqa", options, judges.vqa(options.accuracy))


def gqa(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return ``testdev-balanced``: 12,578 questions."""
    return _questions("gqa", options, judges.exact)


def sciqa_img(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the problems of ScienceQA that have an image: 2,017 in the test split."""
    ask = partial(prompt_of, template=PROMPTS["multi-choice"])
    return DatasetBenchmark(_data.of("scienceqa", options), ask, judges.options, keep=_has_picture)


def _has_picture(sample: Sample) -> bool:
    return sample.image is not None


def vizwiz(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the validation split; the answers of the test split are on a server."""
    return _questions("vizwiz", options, judges.vqa(options.accuracy))


def textvqa(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the validation split: 5,000 questions."""
    return _questions("textvqa", options, judges.vqa(options.accuracy), "text-vqa")


def ocr_vqa(options: Any, context: BuildContext) -> DatasetBenchmark:
    """Return the test split."""
    return _questions("ocr-vqa", options, judges.exact, "text-vqa")


def _questions(name: str, options: Any, judge: Judge, task: Task = "vqa") -> DatasetBenchmark:
    ask = partial(prompt_of, template=PROMPTS[task])
    return DatasetBenchmark(_data.of(name, options), ask, judge, max_new_tokens=_SHORT)
