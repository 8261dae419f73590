"""``scenes``: what the embedded model and any other makes of drawn scenes of which everything is known.

Five of the data set's tasks take turns, so that the first samples are of all of them. What is not there counts by
itself: questions with a false premise and expressions that nothing matches, which a model answers rightly by saying so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lyrics.core.answers import SUPPORT_IOU
from lyrics.core.contracts import BuildContext, Dataset
from lyrics.core.data.build import build_dataset
from lyrics.core.data.templates import IF_FOUND, Task
from lyrics.core.errors import MissingRequirementError
from lyrics.core.evaluation import judges
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.metrics.exact import exact_match
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.evaluation.metrics.support import support_at, support_curve
from lyrics.core.evaluation.pointing import Real, evidence_scores
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.core.geometry import Box
from lyrics.core.types import Sample
from lyrics.plugins.benchmarks import ScenesBenchmarkOptions
from lyrics.plugins.benchmarks._data import DISTRIBUTION
from lyrics.plugins.benchmarks.denial import denies
from lyrics.plugins.benchmarks.fine_scenes import FineScenesBenchmark, fine_scenes

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

TASKS: tuple[Task, ...] = ("caption", "vqa", "text-vqa", "rec", "multi-choice")
#: An expression that may match nothing is asked for as one that may.
_PROMPTS = {task: IF_FOUND if task == "rec" else PROMPTS[task] for task in TASKS}
_ABSENT = "absent"
_TAG = re.compile(
    r"\b(red|orange|yellow|green|cyan|blue|purple|gray) "
    r"(circle|square|triangle|star|cross|ring|diamond|heart)(?:s|es)?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScenesBenchmark:
    """Keeps the ``benchmark`` contract, with images and judge (``lyrics.core.evaluation.benchmark``)."""

    data: Mapping[Task, Dataset]
    scenes: int
    max_new_tokens: int = 96

    def samples(self) -> Iterator[Sample]:
        for row in range(self.scenes):
            for task in TASKS:
                sample = self.data[task][row]
                yield replace(sample, extra={**sample.extra, "sample_id": f"{sample.image} {task}"})

    def picture(self, sample: Sample) -> PILImage:
        return self.data["caption"].picture(sample)

    def prompt(self, sample: Sample) -> str:
        return prompt_of(sample, _PROMPTS[sample.extra["task"]])

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        """Scores of each task are named ``TASK: SCORE``. Marks are from 0 to 1, whatever the task."""
        scores: dict[str, float] = {}
        notes: list[str] = []
        marks = [0.0] * len(samples)
        points = [0.0] * len(samples)
        for task, judge in _JUDGES.items():
            rows = [row for row, sample in enumerate(samples) if _part(sample) == task]
            if not rows:
                continue
            verdict = judge([predictions[row] for row in rows], [samples[row] for row in rows])
            scores |= {f"{task}: {name}": value for name, value in verdict.scores.items()}
            notes += [f"{task}: {note}" for note in verdict.notes]
            for row, mark, worth in zip(rows, verdict.marks, verdict.values, strict=True):
                marks[row], points[row] = mark, worth
        pointing, warnings = _pointing(predictions, samples)
        evidence, curve = evidence_scores(predictions, [_named(sample) for sample in samples])
        return Verdict(
            {**scores, **pointing, **evidence}, tuple(marks), tuple(notes), {**warnings, **curve}, tuple(points)
        )

    def group(self, sample: Sample) -> str:
        """The task; of questions the type; and what is not there by itself."""
        part = _part(sample)
        return str(sample.extra["question_types"][0]) if part in ("vqa", "text-vqa") else part


def _part(sample: Sample) -> str:
    """The part of the scores that a sample counts in: its task, or ``not there``."""
    if sample.extra.get("absent") or _ABSENT in sample.extra.get("question_types", ()):
        return "not there"
    return str(sample.extra["task"])


def _captions(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
    """Of the colors and shapes that a caption names together, which are there (precision), and which of those there it
    names (recall).
    """
    right = said_in_all = true_in_all = 0
    marks = []
    for one, sample in zip(predictions, samples, strict=True):
        said = {f"{color} {shape}".lower() for color, shape in _TAG.findall(one.answer)}
        true = {f"{thing['colour']} {thing['shape']}" for thing in sample.extra["things"]}
        right, said_in_all, true_in_all = right + len(said & true), said_in_all + len(said), true_in_all + len(true)
        marks.append(2 * len(said & true) / (len(said) + len(true)))
    scores = {
        "named things that are there": 100 * right / said_in_all if said_in_all else 0.0,
        "things there that are named": 100 * right / true_in_all,
    }
    try:
        verdict = judges.captions(predictions, samples)
    except MissingRequirementError as error:
        return Verdict(scores, tuple(marks), (str(error),))
    return Verdict({**scores, **verdict.scores}, tuple(marks), verdict.notes)


def _questions(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
    """Exact match, for each type of question, too; "There is no word." is matched by any denial."""
    marks = tuple(
        float(denies(one.answer) if denies(answer) and len(answer.split()) > 1 else exact_match(one.answer, [answer]))
        for one, answer in ((one, sample.turns[0].answer) for one, sample in zip(predictions, samples, strict=True))
    )
    types = [sample.extra["question_types"][0] for sample in samples]
    name = "exact match"
    return Verdict({name: 100 * judges.mean(marks), **judges.by_group(name, marks, types)}, marks)


def _not_there(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
    """Answers that say so and point at nothing."""
    marks = tuple(float(denies(one.answer) and not one.objects) for one in predictions)
    asked = ["expressions" if sample.extra["task"] == "rec" else "questions" for sample in samples]
    return Verdict({"said so": 100 * judges.mean(marks), **judges.by_group("said so", marks, asked)}, marks)


def _pointing(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> tuple[dict[str, float], dict[str, Any]]:
    """Of all boxes in answers, whatever was asked: how many are of nothing that is there, and whether missing support
    tells.
    """
    overlaps, real = [], []
    for one, sample in zip(predictions, samples, strict=True):
        there = [Box(*row["box_norm"]) for row in (*sample.extra["things"], *sample.extra["words"])]
        for found in one.objects:
            overlaps.append(found.iou)
            real.append(any(box_is_right(found.box_norm, box) for box in there))
    if not real:
        return {}, {}
    scores: dict[str, float] = {
        "pointing: boxes": len(real),
        "pointing: boxes of nothing": 100 * judges.mean([float(not true) for true in real]),
    }
    at_half = support_at(SUPPORT_IOU, overlaps, real)
    for name, value in (("precision", at_half.precision), ("recall", at_half.recall)):
        if value is not None:
            scores[f"pointing: not supported means nothing there, {name}"] = 100 * value
    return scores, {"support": [asdict(point) for point in support_curve(overlaps, real)]}


def _named(sample: Sample) -> list[Real]:
    """What is there, under each name that it may have: an expression that means it, its color and shape, a word as it
    is written.
    """
    objects = [Real(one.tag, one.box_norm) for one in sample.objects]
    things = [Real(f"{one['colour']} {one['shape']}", Box(*one["box_norm"])) for one in sample.extra["things"]]
    return [*objects, *things, *(Real(word["text"], Box(*word["box_norm"])) for word in sample.extra["words"])]


_JUDGES = {
    "caption": _captions,
    "vqa": _questions,
    "text-vqa": _questions,
    "rec": judges.rec,
    "multi-choice": judges.options,
    "not there": _not_there,
}


def scenes(options: ScenesBenchmarkOptions, context: BuildContext) -> ScenesBenchmark | FineScenesBenchmark:
    """See ``ScenesBenchmarkOptions``."""
    if options.attributes == "fine":
        return fine_scenes(options, context)
    shared = options.model_dump()
    data = {task: build_dataset(f"{DISTRIBUTION}/scenes", {**shared, "task": task}) for task in TASKS}
    return ScenesBenchmark(data, options.scenes)
