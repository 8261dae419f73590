"""Parts of a ``Sample`` that many formats have: captions, a question with its reference answers, annotated boxes.

``Sample.extra`` holds plain data for instruction templates and benchmarks, under these keys: ``task`` (a task of
``lyrics.core.data.templates``), ``answers`` (all reference answers, as text), ``answer_records`` (as they stand in the file, where they are
records), ``options`` (of a multiple choice; the turn's answer is the text of the right one), ``boxes_dropped`` (how many annotated boxes
were none: without an area, wholly outside of the picture, or without a name), and the identifiers that the set itself uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject, Sample, Turn


def text_of(value: Any) -> str:
    """A text or a number as text, without blanks around it. Raises ``TypeError`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"a text is expected, not {value!r}")
    return str(value).strip()


def captioned(image: str | None, captions: str | Iterable[str], **extra: Any) -> Sample:
    """A picture with its captions; empty ones are left out."""
    texts = [text_of(caption) for caption in ([captions] if isinstance(captions, str) else captions)]
    return Sample(image, captions=tuple(text for text in texts if text), extra={"task": "caption", **extra})


def tar_sample(record: Mapping[str, Any]) -> Sample:
    """A record of ``TarRecords`` as a captioned picture: the caption is the ``txt``, or stands in the ``json``."""
    about = record["json"] or {}
    caption = record["txt"] if record["txt"] is not None else about["caption"]
    return captioned(record["image"], caption, key=record["key"], **{k: about[k] for k in ("url",) if k in about})


def question_and_answers(
    image: str | None, question: Any, answers: Sequence[Any], *, answer: Any = None, task: str = "vqa", **extra: Any
) -> Sample:
    """A question about a picture.

    Args:
        answers: the reference answers: texts, or records with an ``answer``. None for the test splits that keep theirs.
        answer: the one to train on; the most frequent (of several, the first) unless given. Empty where there are no answers.
    """
    texts = [text_of(each["answer"] if isinstance(each, Mapping) else each) for each in answers]
    if any(isinstance(each, Mapping) for each in answers):
        extra["answer_records"] = tuple(answers)
    if answer is None:
        answer = Counter(texts).most_common(1)[0][0] if texts else ""
    turns = (Turn(text_of(question), text_of(answer)),)
    return Sample(image, turns=turns, extra={"task": task, "answers": tuple(texts), **extra})


def annotated(boxes: Iterable[tuple[str, Box | None]]) -> tuple[tuple[DetectedObject, ...], dict[str, int]]:
    """Annotated objects from names and boxes, and ``{"boxes_dropped": n}`` where n of the boxes are None or have no name."""
    found = [(text_of(name), box) for name, box in boxes]
    kept = tuple(DetectedObject(name, box, 1.0) for name, box in found if name and box is not None)
    return kept, {"boxes_dropped": len(found) - len(kept)} if len(kept) < len(found) else {}


@dataclass(frozen=True)
class Fields:
    """Which key of a flat record holds what: the whole declaration of a simple format.

    Args:
        image: template over the record, such as ``"{image_id}.jpg"``.
        captions: key of a caption or of a list of them.
        question: key of a question; the sample then has it as its turn.
        answers: key of a reference answer or of a list of them (texts, or records with an ``answer``); a record without it, or with null
            there, belongs to a test split.
        keep: keys that go to ``Sample.extra`` under their own name.
        task: see ``Sample.extra``.
    """

    image: str
    captions: str = ""
    question: str = ""
    answers: str = ""
    keep: tuple[str, ...] = ()
    task: str = "vqa"

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        image = self.image.format_map(record)
        extra = {key: record[key] for key in self.keep if key in record}
        if self.captions:
            return captioned(image, record[self.captions], **extra)
        answers = record.get(self.answers)
        if not isinstance(answers, list):
            answers = [] if answers is None else [answers]
        return question_and_answers(image, record[self.question], answers, task=self.task, **extra)
