"""Answers with evidence: what a model said, and for each object it pointed at, what the refiner saw there.

A language model may name a box where nothing is. The refiner looked at the same image: an object of an answer is
*supported* where one of the refiner's boxes overlaps it enough, whatever the two call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lyrics.core.geometry import Box, Corners
from lyrics.core.language.codecs import parse
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject

#: Overlap from which a box of the refiner counts as the same thing; the threshold of referring expression comprehension
#: (section 5.1).
SUPPORT_IOU = 0.5


@dataclass(frozen=True)
class AnswerObject:
    """An object that an answer points at.

    Args:
        tag: what the answer calls it; empty for a box alone.
        box_norm, box_px: where, as shares and in pixels (xyxy) of the original image.
        detection: the refiner's object that overlaps it most, if any overlaps at all.
        iou: that overlap, from 0 to 1.
    """

    tag: str
    box_norm: Box
    box_px: Corners
    detection: DetectedObject | None
    iou: float

    @property
    def supported(self) -> bool:
        """Did the refiner see something there?"""
        return self.iou >= SUPPORT_IOU

    @property
    def score(self) -> float | None:
        """The refiner's score of what it saw there; None where it saw nothing."""
        return self.detection.score if self.detection is not None and self.supported else None


@dataclass(frozen=True)
class Confidence:
    """How sure the language model was of an answer, as natural logarithms of its tokens' probabilities; 0 is certainty.

    Both are rounded to five decimals, so that they do not depend on what was answered in the same batch.

    Args:
        mean_log_prob: the mean over the answer's tokens, the one that ends it included.
        min_log_prob: the least of them.
    """

    mean_log_prob: float
    min_log_prob: float

    @classmethod
    def of(cls, log_probs: Sequence[float]) -> Confidence | None:
        """Of the tokens of an answer; None of none."""
        if not log_probs:
            return None
        # Adding 0 makes no difference but for -0.
        return cls(round(sum(log_probs) / len(log_probs), 5) + 0.0, round(min(log_probs), 5) + 0.0)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Args:
        text: the answer as it was written, boxes in the model's codec.
        objects: what it points at, in order of mention.
        problems: box text that could not be read, in words; the rest of the answer is not affected.
        plain_text: the answer without its box markup: each object's tag stands in its place.
        confidence: how sure the language model was; None where it does not say
            (``lyrics.core.contracts.ScoresItsTokens``).
        withheld: what the model would have said in place of an abstention (``lyrics.core.abstaining``); else empty.
    """

    text: str
    objects: tuple[AnswerObject, ...] = ()
    problems: tuple[str, ...] = ()
    plain_text: str = ""
    confidence: Confidence | None = field(default=None, compare=False)
    withheld: str = ""

    @property
    def seen(self) -> bool | None:
        """Whether the refiner saw anything of what the answer points at; None where it points at nothing."""
        return any(found.supported for found in self.objects) if self.objects else None

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Return plain data; boxes are xyxy in pixels of the original image."""
        return {
            "text": self.text,
            "plain_text": self.plain_text,
            "objects": [
                {
                    "tag": found.tag,
                    "box_px": [round(value, 2) for value in found.box_px],
                    "supported": found.supported,
                    "score": None if found.score is None else round(found.score, 5),
                    "iou": round(found.iou, 5),
                    "detected_as": found.detection.tag if found.detection is not None and found.supported else None,
                }
                for found in self.objects
            ],
            "problems": list(self.problems),
            "seen": self.seen,
            "confidence": None if self.confidence is None else asdict(self.confidence),
            **({"withheld": self.withheld} if self.withheld else {}),
        }


def read_answer(text: str, codec: str, refinement: Refinement | None, confidence: Confidence | None = None) -> Answer:
    """Return an answer's objects, matched with what the refiner saw in the image that the answer is about.

    ``refinement`` is that image's; without an image there is nothing to point at, and the text stays text. Raises
    nothing, whatever the text.
    """
    text = text.strip()
    if refinement is None:
        return Answer(text, plain_text=text, confidence=confidence)
    parsed = parse(text, codec, refinement.size_px)
    objects = tuple(_matched(one.tag, one.box, refinement) for one in parsed.objects)
    pieces, end = [], 0
    for one, (start, after) in zip(parsed.objects, parsed.spans, strict=True):
        pieces += [text[end:start], one.tag]
        end = after
    plain = " ".join("".join([*pieces, text[end:]]).split())
    return Answer(text, objects, tuple(problem.message for problem in parsed.problems), plain, confidence)


def _matched(tag: str, box: Box, refinement: Refinement) -> AnswerObject:
    best = max(refinement.objects, key=lambda found: found.box_norm.iou(box), default=None)
    iou = 0.0 if best is None else best.box_norm.iou(box)
    return AnswerObject(tag, box, box.to_px(refinement.size_px), best if iou > 0 else None, iou)


def objects_to_draw(answer: Answer) -> Sequence[DetectedObject]:
    """An answer's objects in the form that drawing takes; one that the refiner did not see says so in its label."""
    return [
        DetectedObject(
            found.tag or "box" if found.supported else f"{found.tag or 'box'} (not seen)",
            found.box_norm,
            found.score if found.score is not None else 0.0,
            found.detection.mask if found.detection is not None and found.supported else None,
        )
        for found in answer.objects
    ]
