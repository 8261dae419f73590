"""What the built-in benchmarks are made of, and what the runner uses of any benchmark.

A benchmark keeps ``lyrics.core.contracts.Benchmark``: ``samples``, ``prompt``, ``score``. The runner uses more where it
is there:

- ``picture(sample)``: the sample's image; without it ``sample.image`` is taken as the path of a file.
- ``judge(predictions, samples)``: scores with a mark for each answer, so that the worst can be shown, and answers
  come with their boxes; without it ``score`` gets the answers' texts.
- ``group(sample)``: the group that the sample is scored in, beside all of them; without it ``group_of`` takes the
  type of the question.
- ``max_new_tokens``: of an answer; 64 without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lyrics.core.answers import Answer, AnswerObject, Confidence
from lyrics.core.contracts import Dataset
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from lyrics.core.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class PredictedObject:
    """An object that an answer points at.

    Whether the refiner saw it is ``supported``; ``score`` is the refiner's of what it saw there, ``iou`` how much the
    two boxes overlap (``lyrics.core.answers``). ``evidence`` is that overlap times the score of the refiner's object,
    supported or not.
    """

    tag: str
    box_norm: Box
    supported: bool = False
    score: float | None = None
    iou: float = 0.0
    evidence: float = 0.0

    @classmethod
    def of(cls, one: AnswerObject) -> PredictedObject:
        evidence = 0.0 if one.detection is None else one.iou * one.detection.score
        return cls(one.tag, one.box_norm, one.supported, one.score, one.iou, evidence)


@dataclass(frozen=True)
class Prediction:
    """One answer: as written, without box markup, what it points at, and how sure the model was."""

    text: str
    answer: str
    objects: tuple[PredictedObject, ...] = ()
    confidence: Confidence | None = None

    @property
    def seen(self) -> bool | None:
        """As ``lyrics.Answer.seen``."""
        return any(one.supported for one in self.objects) if self.objects else None

    @classmethod
    def of(cls, answer: Answer) -> Prediction:
        objects = tuple(PredictedObject.of(one) for one in answer.objects)
        return cls(answer.text, answer.plain_text, objects, answer.confidence)

    @classmethod
    def of_text(cls, text: str) -> Prediction:
        """Of a text alone, its boxes in the codec ``lyrics``."""
        found = parse(text, "lyrics")
        pieces, end = [], 0
        for one, (start, after) in zip(found.objects, found.spans, strict=True):
            pieces += [text[end:start], one.tag]
            end = after
        plain = " ".join("".join([*pieces, text[end:]]).split())
        return cls(text, plain, tuple(PredictedObject(one.tag, one.box) for one in found.objects))


@dataclass(frozen=True)
class Verdict:
    """Scores of a benchmark.

    Args:
        scores: by name. Shares are times 100; counts (``unparsed``) are counts.
        marks: one for each sample, in order, from 0 (worst) on; the gallery shows the lowest. Empty where single
            answers have none.
        notes: what a reader of the scores must know.
        details: plain data for ``scores.json``, such as the points of a curve.
        points: what each answer is worth, from 0 (wrong) to 1 (right), where that is not its mark: a box has its
            overlap as a mark and is right or wrong. Scores of groups of samples and risks are means of these.
    """

    scores: Mapping[str, float]
    marks: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[float, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """What each answer is worth; empty where single answers have no mark."""
        return self.points or self.marks


Judge = Callable[[Sequence[Prediction], Sequence[Sample]], Verdict]


@runtime_checkable
class Judges(Protocol):
    """Optional, for a benchmark that scores more than texts: boxes of answers, notes, a mark for each answer."""

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        """Called instead of ``score``. ``predictions[i]`` answers ``samples[i]``."""
        ...


@runtime_checkable
class Groups(Protocol):
    """Optional, for a benchmark whose samples fall into groups that are scored apart, such as kinds of questions."""

    def group(self, sample: Sample) -> str:
        """Return the name of the sample's group; empty for one that is in none."""
        ...


def group_of(benchmark: object, sample: Sample) -> str:
    """Return a sample's group: ``extra["group"]``, what the benchmark says, its type of question, or its task."""
    if stated := sample.extra.get("group"):
        return str(stated)
    if isinstance(benchmark, Groups):
        return benchmark.group(sample)
    types = sample.extra.get("question_types")
    return str(types[0] if types else sample.extra.get("answer_type") or sample.extra.get("task") or "")


class Answerer(Protocol):
    """What is evaluated: ``lyrics.core.model.LyricsModel``, or anything that answers like it."""

    def generate(
        self, pictures: Sequence[Any], instructions: Sequence[str], *, max_new_tokens: int
    ) -> list[Answer]: ...


@dataclass(frozen=True)
class DatasetBenchmark:
    """A benchmark over a data set: which samples, what is asked, how answers are judged.

    Args:
        data: keeps the ``dataset`` contract.
        ask: the prompt of a sample.
        judging: scores of predictions.
        max_new_tokens: of an answer.
        keep: which samples belong to the benchmark.
    """

    data: Dataset
    ask: Callable[[Sample], str]
    judging: Judge
    max_new_tokens: int = MAX_NEW_TOKENS
    keep: Callable[[Sample], bool] = lambda sample: True

    def samples(self) -> Iterator[Sample]:
        """In the data set's order. Raises ``DatasetError`` and ``SampleError`` as the data set does."""
        return (sample for sample in (self.data[row] for row in range(len(self.data))) if self.keep(sample))

    def picture(self, sample: Sample) -> PILImage:
        return self.data.picture(sample)

    def prompt(self, sample: Sample) -> str:
        return self.ask(sample)

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        """Raises ``MissingRequirementError`` where the metric needs a package that is not installed."""
        verdict = self.judging(predictions, samples)
        expected: int | None = getattr(self.data, "expected", None)
        if expected is None or expected == len(self.data):
            return verdict
        counts = f"The files have {len(self.data):,} samples, {expected:,} were published"
        note = f"{counts}: not comparable with published scores."
        return replace(verdict, notes=(*verdict.notes, note))

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        """As ``judge``, of texts whose boxes are in the codec ``lyrics``."""
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores


def reference_box(sample: Sample) -> Box | None:
    """Return what a sample about an object is about; None where it is about nothing that has a box."""
    about_one = sample.extra.get("task") == "rec" and sample.objects and not sample.extra.get("absent")
    return sample.objects[0].box_norm if about_one else None


def reference_text(sample: Sample) -> str:
    """Return the right answer, or several, in one line for a person to read."""
    if absent := sample.extra.get("absent"):
        return f"{absent}: not there"
    if box := reference_box(sample):
        return f"{sample.objects[0].tag}: " + " ".join(f"{value:.3f}" for value in box.as_tuple())
    answers = sample.captions or tuple(sample.extra.get("answers", ())) or tuple(turn.answer for turn in sample.turns)
    return " | ".join(dict.fromkeys(answers))
