"""Benchmarks on real public annotations, cut to a few photographs: a model that knows the truth has full marks, through
files and all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.answers import Answer, AnswerObject
from lyrics.core.evaluation.build import build_benchmark
from lyrics.core.evaluation.runner import evaluate
from tests.plugins.benchmarks.conftest import REGISTRY

MINI = Path(__file__).parents[3].parent / "shared" / "data" / "real-mini"
pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason=f"{MINI} is not there")
IMAGES = MINI / "images"
RAW = MINI / "raw"


class Oracle:
    """Answers each question of a benchmark from a list, in order."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)

    def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Answer]:
        assert all(picture.mode == "RGB" for picture in pictures)
        return [self.answers.pop(0) for _ in instructions]


def refcoco(folder: Path) -> Any:
    for kept in IMAGES.glob("coco_train*"):
        number = re.findall(r"\d{12}", kept.name)[0]
        (folder / "train2014").mkdir(exist_ok=True)
        (folder / "train2014" / f"COCO_train2014_{number}.jpg").symlink_to(kept)
    shutil.copyfile(RAW / "refcoco" / "refcoco_val.json", folder / "refcoco_val.json")
    return build_benchmark("refcoco", {"root": str(folder)}, registry=REGISTRY)


def test_referring_expressions(tmp_path: Path) -> None:
    benchmark = refcoco(tmp_path)
    samples = list(benchmark.samples())
    assert len(samples) > 2
    answers = []
    for number, sample in enumerate(samples):
        box = sample.objects[0].box_norm
        size = benchmark.picture(sample).size
        found = (AnswerObject("it", box, box.to_px(size), None, 0.0),) if number else ()
        answers.append(Answer("it", found, (), "it"))
    (result,) = evaluate(Oracle(answers), {"refcoco-val": benchmark}, tmp_path / "out")
    assert result.samples == len(samples)
    assert result.scores["accuracy (IoU >= 0.5)"] == pytest.approx(100 * (len(samples) - 1) / len(samples))
    assert result.scores["unparsed"] == 1
    page = (tmp_path / "out" / "refcoco-val" / "worst.html").read_text(encoding="utf-8")
    assert page.index(">0:") < page.index(">1:"), "the one without a box is the worst"


def test_questions(tmp_path: Path) -> None:
    for kept in IMAGES.glob("coco_val*"):
        number = re.findall(r"\d{12}", kept.name)[0]
        (tmp_path / "val2014").mkdir(exist_ok=True)
        (tmp_path / "val2014" / f"COCO_val2014_{number}.jpg").symlink_to(kept)
    for name in ("v2_OpenEnded_mscoco_questions.json", "v2_mscoco_annotations.json"):
        shutil.copyfile(RAW / "vqav2" / name, tmp_path / name)
    scores = {}
    for variant in ("official", "lavis", "evalai"):
        benchmark = build_benchmark("vqav2", {"root": str(tmp_path), "accuracy": variant}, registry=REGISTRY)
        samples = list(benchmark.samples())
        said = [sample.turns[0].answer for sample in samples]
        scores[variant] = benchmark.score(said, samples)[f"VQA accuracy ({variant})"]
        assert benchmark.score(["zebra crossing"] * len(samples), samples)[f"VQA accuracy ({variant})"] == 0.0
    # The most frequent answer is not always one that four annotators gave, so that even it is not all right.
    assert 60 < scores["official"] <= 100
    assert scores["official"] == pytest.approx(scores["evalai"], abs=5)
