"""``scenes`` with ``attributes: fine``: questions by what it takes to answer them, asked of twins.

Groups are scored apart: ``T``, what the text of tags and boxes tells; ``L``, the look of one thing; ``G``, that of the
whole; ``LT``, looks of things that the text finds; what is not there; referring expressions by text and by look;
choices; captions. Twins have the same text and are asked the same: a pair counts when both answers are right, which
whoever does not look never achieves in L, G and LT.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lyrics.core.contracts import BuildContext, Dataset
from lyrics.core.data.build import build_dataset
from lyrics.core.data.templates import IF_FOUND, Task
from lyrics.core.errors import MissingRequirementError
from lyrics.core.evaluation import judges
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.metrics.exact import exact_match
from lyrics.core.evaluation.metrics.options import chosen_option
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.core.language.codecs import parse
from lyrics.core.types import Sample
from lyrics.plugins.benchmarks import ScenesBenchmarkOptions
from lyrics.plugins.benchmarks._data import DISTRIBUTION
from lyrics.plugins.benchmarks.denial import denies

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True)
class ScenePart:
    """What every scene is asked once: the task of the data set and its questions. ``group`` names the scores."""

    group: str
    task: Task
    questions: tuple[str, ...] = ()


_TOLD = ("count", "existence", "relation", "position", "location", "naming")
PARTS = (
    ScenePart("T", "vqa", tuple(f"T {name}" for name in _TOLD)),
    ScenePart("L color and fill", "vqa", ("L color", "L fill")),
    ScenePart("L lean and outline", "vqa", ("L lean", "L outline")),
    ScenePart("L other", "vqa", ("L check", "L presence", "L which")),
    ScenePart("L word", "text-vqa"),
    ScenePart("G", "vqa", ("G",)),
    ScenePart("LT", "vqa", ("LT",)),
    ScenePart("absent", "vqa", ("T absent",)),
    ScenePart("REC by text", "rec", ("T",)),
    ScenePart("REC by look", "rec", ("L",)),
    ScenePart("multi-choice", "multi-choice"),
    ScenePart("caption", "caption"),
)
_ABSENT, _CAPTION = "absent", "caption"
_PROMPTS: Mapping[Task, str] = {**PROMPTS, "rec": IF_FOUND}
#: Their answers differ between twins.
_LOOKS = ("L", "G", "LT")
_OF_LOOKS = ("L word", "REC by look")
_MENTION = re.compile(
    r"(?:(?P<lean>upright) )?(?:(?P<fill>solid|dotted) )?"
    r"(?:(?P<colour>red|orange|yellow|green|cyan|blue|purple|gray) )?"
    r"\b(?P<shape>circle|square|triangle|star|cross|ring|diamond|heart)\b"
    r"(?: leaning (?P<leaning>left|right))?(?: (?P<striped>striped (?:across|down)))?"
    r"(?: with (?P<outline>a dark|no) outline)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FineScenesBenchmark:
    """Keeps the ``benchmark`` contract, with images and judge (``lyrics.core.evaluation.benchmark``)."""

    data: Mapping[ScenePart, Dataset]
    scenes: int
    max_new_tokens: int = 96

    def samples(self) -> Iterator[Sample]:
        """``extra["group"]`` is what a sample is scored in, ``extra["pair"]`` what it shares with that of the twin."""
        for row in range(self.scenes):
            for part, data in self.data.items():
                sample = data[row]
                where = {
                    "group": _group(part, sample),
                    "pair": f"{row // 2} {part.group}",
                    "sample_id": f"{sample.image} {part.group}",
                }
                yield replace(sample, extra={**sample.extra, **where})

    def picture(self, sample: Sample) -> PILImage:
        return next(iter(self.data.values())).picture(sample)

    def prompt(self, sample: Sample) -> str:
        return prompt_of(sample, _PROMPTS[sample.extra["task"]])

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        """Scores are named ``GROUP: right`` and ``GROUP: right, TYPE``; ``twins: both right`` is of whole pairs."""
        scores: dict[str, float] = {}
        notes: tuple[str, ...] = ()
        marks = [_mark(one, sample) for one, sample in zip(predictions, samples, strict=True)]
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, sample in enumerate(samples):
            rows_of[sample.extra["group"]].append(row)
        order = list(dict.fromkeys(part.group for part in PARTS))
        for group in sorted(rows_of, key=order.index):
            rows = rows_of[group]
            if group == _CAPTION:
                verdict = _captions([predictions[row] for row in rows], [samples[row] for row in rows])
                notes = verdict.notes
                scores |= {f"caption: {name}": value for name, value in verdict.scores.items()}
                for row, mark in zip(rows, verdict.marks, strict=True):
                    marks[row] = mark
                continue
            found = [marks[row] for row in rows]
            types = [_type(samples[row]) for row in rows]
            scores |= {f"{group}: right": 100 * judges.mean(found)}
            scores |= judges.by_group(f"{group}: right", found, types)
        return Verdict({**scores, **_twins(marks, samples)}, tuple(marks), notes)


def _group(part: ScenePart, sample: Sample) -> str:
    """The group of a sample: its part's, unless the scene left nothing of that kind to ask."""
    if sample.extra.get("search") == _ABSENT:
        return _ABSENT
    if part.group in _OF_LOOKS and sample.extra["groups"] == ("T",):
        return "REC by text" if part.task == "rec" else "T"
    return part.group


def _type(sample: Sample) -> str:
    """What it takes to answer: the type of the question, or whether what is looked for is there."""
    if sample.extra["task"] == "rec":
        return "not there" if sample.extra.get("absent") else "there"
    return str(sample.extra["question_types"][0]) if sample.extra["question_types"] else ""


def _mark(one: Prediction, sample: Sample) -> float:
    """1 for a right answer: the right box, option or words, or of what is not there a denial without a box."""
    task = sample.extra["task"]
    if task == _CAPTION:
        return 0.0
    if task == "rec":
        box = None if sample.extra.get("absent") else sample.objects[0].box_norm
    else:
        reference = sample.turns[0].answer
        if task == "multi-choice":
            choices = [str(option) for option in sample.extra["options"]]
            return float(chosen_option(one.answer, choices) == choices.index(reference))
        pointed = parse(reference).objects
        if not pointed and not (denies(reference) and len(reference.split()) > 1):
            return float(exact_match(one.answer, [reference]))
        box = pointed[0].box if pointed else None
    if box is None:
        return float(denies(one.answer) and not one.objects)
    return float(len(one.objects) == 1 and box_is_right(one.objects[0].box_norm, box))


def _twins(marks: Sequence[float], samples: Sequence[Sample]) -> dict[str, float]:
    """Of pairs of questions about looks, those with both answers right, in all and by the group of the questions."""
    pairs: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        if sample.extra["group"] != _CAPTION and set(sample.extra["groups"]) & {*_LOOKS}:
            pairs[sample.extra["pair"]].append(row)
    whole = [rows for rows in pairs.values() if len(rows) == 2]
    if not whole:
        return {}
    both = [float(all(marks[row] == 1 for row in rows)) for rows in whole]
    groups = [samples[rows[0]].extra["groups"][0] for rows in whole]
    name = "twins: both right"
    return {name: 100 * judges.mean(both), **judges.by_group(name, both, groups)}


def _captions(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
    """Of the things that a caption names by a look, those that are there; of those there, how many it names."""
    right = said = there = 0
    marks = []
    for one, sample in zip(predictions, samples, strict=True):
        left = list(sample.extra["things"])
        mentions = [found.groupdict() for found in _MENTION.finditer(one.answer)]
        hits = 0
        for mention in mentions:
            thing = next((thing for thing in left if _names(mention, thing)), None)
            if thing is not None:
                left.remove(thing)
                hits += 1
        things = len(sample.extra["things"])
        right, said, there = right + hits, said + len(mentions), there + things
        marks.append(2 * hits / (len(mentions) + things))
    scores = {
        "named things that are there": 100 * right / said if said else 0.0,
        "things there that are named": 100 * right / there,
    }
    try:
        verdict = judges.captions(predictions, samples)
    except MissingRequirementError as error:
        return Verdict(scores, tuple(marks), (str(error),))
    return Verdict({**scores, **verdict.scores}, tuple(marks), verdict.notes)


def _names(mention: Mapping[str, str | None], thing: Mapping[str, object]) -> bool:
    """Whether everything that is said of a thing is true of it, and something is said of its look."""
    outline = mention["outline"]
    told = {
        "colour": mention["colour"],
        "fill": mention["fill"] or mention["striped"],
        "lean": mention["leaning"] or mention["lean"],
        "outline": None if outline is None else {"a dark": "dark", "no": "none"}[outline.lower()],
    }
    looks = {name: value.lower() for name, value in told.items() if value is not None}
    shape = str(mention["shape"]).lower()
    return bool(looks) and shape == thing["shape"] and all(thing[name] == value for name, value in looks.items())


def fine_scenes(options: ScenesBenchmarkOptions, context: BuildContext) -> FineScenesBenchmark:
    """See ``ScenesBenchmarkOptions``."""
    shared = options.model_dump()
    data = {
        part: build_dataset(f"{DISTRIBUTION}/scenes", {**shared, "task": part.task, "questions": part.questions})
        for part in PARTS
    }
    return FineScenesBenchmark(data, options.scenes)
