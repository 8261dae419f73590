"""A sample as the conversation that instruction tuning trains on.

Instructions come from the paper's templates, and boxes are in any codec.

What a sample holds for each task (``sample.extra["task"]``), and what is made of it; appendix A of the paper gives the
instructions, the answers' forms are ours where it is silent:

================  ==============================================  ======================================================
task              the sample                                      instruction and answer
================  ==============================================  ======================================================
caption           captions                                        a template; one of the captions
vqa, text-vqa     turns of question and answer                    a template with the question; the answer
grounded-caption  captions of objects[0]                          a template, then the object's box; one of the captions
rec               objects[0], its tag the referring expression    a template; the object in markup, or Yes and No where
                                                                  it asks whether the object is in a box. With
                                                                  ``extra["absent"]``, an expression that nothing
                                                                  matches: a template that allows for it; "Not found."
referential       objects[0], and turns about it or captions      a template with the object in markup; the object in
                                                                  markup, then the answer (an answer that names boxes
                                                                  itself stays as it is)
multi-choice      turns, and extra["options"]: tuple of strings   a template with "(a) blue (b) yellow"; "(b) yellow"
text, or none     turns                                           as they are
================  ==============================================  ======================================================

Boxes in a sample's texts are in the codec ``lyrics``; they are rewritten in the codec that is asked for. The image is
no part of the text: a prompt holds it as a segment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_lowercase

import numpy as np

from lyrics.core.data.draws import generator
from lyrics.core.data.templates import IF_FOUND, TASKS, TEMPLATES, Task, fill, lettered, placeholders
from lyrics.core.errors import SampleError, did_you_mean
from lyrics.core.geometry import Size
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.core.language.mentions import CODEC, mention, mentioned, rewritten
from lyrics.core.types import DetectedObject, Sample, Turn

YES, NO, NOT_FOUND = "Yes.", "No.", "Not found."
# A box that overlaps the right one more than this is no clear No.
_MAX_WRONG_IOU = 0.3


class _Writer:
    """Draws templates and writes boxes, for one sample."""

    def __init__(self, task: Task, random: np.random.Generator, codec: str, size: Size | None) -> None:
        self.task, self.random, self.codec, self.size = task, random, codec, size

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def template(self, wanted: Callable[[frozenset[str]], bool] = lambda names: True) -> str:
        """Return one of the task's templates whose placeholders are as wanted."""
        return self.pick([template for template in TEMPLATES[self.task] if wanted(placeholders(template))])

    def markup(self, found: DetectedObject) -> str:
        return format_objects([SpatialObject(found.tag, found.box_norm)], self.codec, self.size)

    def box(self, found: DetectedObject) -> str:
        return format_box(found.box_norm, self.codec, self.size)

    def text(self, text: str) -> str:
        return recoded(text, self.codec, self.size)


def converse(
    sample: Sample, *, seed: int, position: int, codec: str = CODEC, size: Size | None = None
) -> tuple[Turn, ...]:
    """Return the sample's turns as they are trained; a function of the sample, ``seed`` and ``position``.

    ``size`` is (width, height) of the image that the boxes are shares of; only the codec ``pixel`` needs it. Empty
    where augmentation has cut off what the sample was about. Raises ``SampleError`` for a task that does not exist, and
    for a sample that does not fit its task.
    """
    task = sample.extra.get("task", "text")
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise SampleError(
            f"{sample.source}: there is no task {task!r}; there are {known}.{did_you_mean(task, TASKS)}", "record"
        )
    writer = _Writer(task, generator(seed, "conversation", position), codec, size)
    return _TASKS[task](sample, writer)


def _caption(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    if not sample.captions:
        return ()
    return (Turn(writer.template(), writer.text(writer.pick(sample.captions))),)


def _questions(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    return tuple(
        Turn(fill(writer.template(), {"Question": writer.text(turn.instruction)}), writer.text(turn.answer))
        for turn in sample.turns
    )


def _grounded_caption(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    if not (sample.objects and sample.captions):
        return ()
    # The templates speak of a target object and do not say which; the box does.
    instruction = f"{writer.template()} {writer.box(sample.objects[0])}"
    return (Turn(instruction, writer.text(writer.pick(sample.captions))),)


def _referring_expression(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    if absent := sample.extra.get("absent"):
        return (Turn(fill(IF_FOUND, {"Tag": absent}), NOT_FOUND),)
    if not sample.objects:
        return ()
    target, *others = sample.objects
    wrong = [other for other in others if other.box_norm.iou(target.box_norm) <= _MAX_WRONG_IOU]
    # Without another box to ask about, the answer to "is it in this box" would always be yes.
    template = writer.template(lambda names: "Bbox" not in names or bool(wrong))
    values = {"Tag": target.tag, "Bbox": writer.box(target)}
    if "Bbox" not in placeholders(template):
        return (Turn(fill(template, values), writer.markup(target)),)
    if right := bool(writer.random.integers(2)):
        shown = target
    else:
        shown = wrong[int(writer.random.integers(len(wrong)))]
    return (Turn(fill(template, values | {"Bbox": writer.box(shown)}), YES if right else NO),)


def _referential(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    if sample.extra.get("boxes_in_text"):
        return _as_they_are(sample, writer)
    if not sample.objects:
        return ()
    target = sample.objects[0]
    markup = writer.markup(target)

    def turn(question: str | None, answer: str) -> Turn:
        template = writer.template(lambda names: ("Question" in names) == (question is not None))
        if answer and not mentioned(answer):
            answer = f"{markup} {answer}"
        else:
            answer = writer.text(answer)
        return Turn(fill(template, {"Tag & Bbox": markup, "Question": writer.text(question or "")}), answer)

    if sample.turns:
        return tuple(turn(one.instruction, one.answer) for one in sample.turns)
    return (turn(None, writer.pick(sample.captions)),) if sample.captions else ()


def _multiple_choice(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    options = tuple(sample.extra.get("options", ()))
    if not 2 <= len(options) <= len(ascii_lowercase):
        raise SampleError(f"{sample.source}: a multiple-choice question with {len(options)} options", "record")
    choices = lettered([writer.text(option) for option in options])
    turns = []
    for turn in sample.turns:
        if turn.answer and turn.answer not in options:
            raise SampleError(f"{sample.source}: the answer {turn.answer!r} is none of the options {options}", "record")
        answer = choices[options.index(turn.answer)] if turn.answer else ""
        values = {"Question": writer.text(turn.instruction), "Option": " ".join(choices)}
        turns.append(Turn(fill(writer.template(), values), answer))
    return tuple(turns)


def _as_they_are(sample: Sample, writer: _Writer) -> tuple[Turn, ...]:
    return tuple(Turn(writer.text(turn.instruction), writer.text(turn.answer)) for turn in sample.turns)


def recoded(text: str, codec: str, size: Size | None = None) -> str:
    """Return a sample's text with its boxes in another codec."""
    if codec == CODEC:
        return text
    written = rewritten(text, lambda one: mention(one, codec, size))
    assert written is not None
    return written


_TASKS: dict[Task, Callable[[Sample, _Writer], tuple[Turn, ...]]] = {
    "caption": _caption,
    "vqa": _questions,
    "text-vqa": _questions,
    "grounded-caption": _grounded_caption,
    "rec": _referring_expression,
    "referential": _referential,
    "multi-choice": _multiple_choice,
    "text": _as_they_are,
}
