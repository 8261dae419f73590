"""Parts of a ``Sample`` that many formats have: captions, a question with its reference answers, annotated boxes.

``Sample.extra`` holds plain data for instruction templates and benchmarks, under these keys: ``task`` (a task of
``lyrics.core.data.templates``), ``answers`` (all reference answers, as text), ``answer_records`` (as they stand in the
file, where they are records), ``scores`` (numbers of a record of web data, by name), ``options`` (of a multiple choice;
the turn's answer is the text of the right one), ``boxes_dropped`` (how many annotated boxes were none: without an area,
wholly outside of the image, or without a name), ``objects_of`` (see ``lyrics.core.data.known``), and the identifiers
that the set itself uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

from lyrics.core.data.readers.row import Row, clean, kept
from lyrics.core.errors import SampleError
from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject, Sample, Turn


def captioned(image: str | None, captions: str | Iterable[str], **extra: Any) -> Sample:
    """Return an image with its captions; empty ones are left out."""
    texts = [caption.strip() for caption in ([captions] if isinstance(captions, str) else captions)]
    return Sample(image, captions=tuple(text for text in texts if text), extra={"task": "caption", **extra})


def tar_sample(record: Mapping[str, Any]) -> Sample:
    """Return a record of ``TarRecords`` as a captioned image: the caption is the ``txt``, or stands in the ``json``.

    Raises ``SampleError`` where there is no image that can be read: shards of images are never text alone.
    """
    if record["image"] is None:
        raise SampleError(f"{record['key']!r} has no image that is read; {record['why']}.", "member")
    about = Row(record["json"] if record["json"] is not None else {}, "its json")
    caption = clean(record["txt"]) if record["txt"] is not None else about.text("caption")
    return captioned(record["image"], [caption], key=record["key"], **kept(about, ("url",)), **scores_of(about))


def scores_of(row: Row) -> dict[str, Any]:
    """Return ``{"scores": {name: number}}``: the numbers of a record, such as LAION's ``similarity``."""
    found = {
        name: float(value)
        for name, value in row.fields.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {"scores": found} if found else {}


def question_and_answers(
    image: str | None, question: str, answers: Answers, *, answer: str | None = None, task: str = "vqa", **extra: Any
) -> Sample:
    """Return a question about an image.

    Args:
        answers: the reference answers, as ``answers_of`` reads them. None for the test splits that keep theirs.
        answer: the one to train on; the most frequent (of several, the first) unless given. Empty where there are
            no answers.
    """
    if answers.records:
        extra["answer_records"] = answers.records
    if answer is None:
        answer = Counter(answers.texts).most_common(1)[0][0] if answers.texts else ""
    return Sample(image, turns=(Turn(question, answer),), extra={"task": task, "answers": answers.texts, **extra})


class Answers(NamedTuple):
    """Reference answers: their texts, and the records as they stand in the file, where they are records."""

    texts: tuple[str, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()


def answers_of(row: Row, key: str) -> Answers:
    """Return an answer or a list of them, as texts or as records with an ``answer``.

    None where the key is missing or null.
    """
    if not row.has(key):
        return Answers()
    if not isinstance(row.fields[key], list | tuple):
        return Answers((row.text(key),))
    if not any(isinstance(each, Mapping) for each in row.fields[key]):
        return Answers(row.texts(key))
    rows = row.rows(key)
    return Answers(tuple(each.text("answer") for each in rows), tuple(each.fields for each in rows))


def annotated(boxes: Iterable[tuple[str, Box | None]]) -> tuple[tuple[DetectedObject, ...], dict[str, int]]:
    """Return annotated objects from names and boxes, and how many were dropped.

    ``{"boxes_dropped": n}``, where n of the boxes are None or have no name.
    """
    found = [(clean(name), box) for name, box in boxes]
    kept = tuple(DetectedObject(name, box, 1.0) for name, box in found if name and box is not None)
    return kept, {"boxes_dropped": len(found) - len(kept)} if len(kept) < len(found) else {}


@dataclass(frozen=True)
class Fields:
    """Which key of a flat record holds what: the whole declaration of a simple format.

    Args:
        image: template over the record, such as ``"{image_id}.jpg"``.
        captions: key of a caption or of a list of them.
        question: key of a question; the sample then has it as its turn.
        answers: key of a reference answer or of a list of them (texts, or records with an ``answer``); a record
            without it, or with null there, belongs to a test split.
        keep: keys that go to ``Sample.extra`` under their own name.
        task: see ``Sample.extra``.
    """

    image: str
    captions: str = ""
    question: str = ""
    answers: str = ""
    keep: tuple[str, ...] = ()
    task: str = "vqa"

    def __call__(self, record: Any) -> Sample:
        row = Row(record)
        names = {field: row.name(field) for _, field, _, _ in Formatter().parse(self.image) if field}
        image = self.image.format_map(names)
        extra = kept(row, self.keep)
        if self.captions:
            return captioned(image, row.texts(self.captions), **extra)
        return question_and_answers(
            image, row.text(self.question), answers_of(row, self.answers), task=self.task, **extra
        )
