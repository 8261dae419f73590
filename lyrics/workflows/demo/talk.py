"""A visitor's image and conversation, met by the worker."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from lyrics.core.answers import Answer, read_answer
from lyrics.core.chat import with_boxes
from lyrics.core.errors import ImageError, PromptError
from lyrics.core.language.generation import Decoding
from lyrics.core.language.prompts import Exchange
from lyrics.core.pictures.images import open_image
from lyrics.core.refining.refinement import Refinement
from lyrics.workflows.serve.jobs import Answered, AskJob, Event, Failed, Refined, RefineJob, TextPiece
from lyrics.workflows.serve.worker import Worker

TOKENS = 128


@dataclass(frozen=True)
class Talk:
    """An image, what was seen in it, and what was said about it.

    ``questions`` are as they were asked, boxes in pixels; ``exchanges`` as the model read and answered them.
    """

    image: Image.Image
    seen: Refinement
    exchanges: tuple[Exchange, ...] = ()
    questions: tuple[str, ...] = ()


def look(worker: Worker, image: Image.Image) -> Talk:
    """Begin to talk about an image: what does the refiner see in it?

    Raises ``ImageError`` and what the worker raises.
    """
    upright = open_image(image)
    if upright.width * upright.height > worker.limits.image_pixels:
        raise ImageError(
            f"the image has {upright.width} x {upright.height} pixels; at most {worker.limits.image_pixels:,} are "
            "read.",
            "large",
        )
    if worker.model.refiner is None:
        return Talk(upright, Refinement(upright.size))
    events: queue.Queue[Event] = queue.Queue()
    worker.submit(RefineJob([upright], events.put, seconds=worker.limits.seconds))
    event = events.get()
    if isinstance(event, Failed):
        raise event.error
    assert isinstance(event, Refined)
    return Talk(upright, event.refinement)


def ask(worker: Worker, talk: Talk, question: str) -> Iterator[tuple[str, Answer | None, Talk]]:
    """Ask a question, which may hold ``<box 10 20 200 180>``.

    Yields the answer's plain text so far, the answer when it is complete, and then the conversation with it. If nobody
    asks for more, the answer is given up. Raises ``PromptError`` and what the worker raises.
    """
    question = question.strip()
    if not question:
        raise PromptError("the question is empty; ask something.")
    codec = worker.model.spec.codec
    new = Exchange(with_boxes(question, talk.image.size, codec), None, () if talk.exchanges else (0,))
    events: queue.Queue[Event] = queue.Queue()
    job = AskJob(
        [talk.image],
        events.put,
        seconds=worker.limits.seconds,
        exchanges=(*talk.exchanges, new),
        questions=[(*talk.questions, question)[0]],
        how=Decoding(min(TOKENS, worker.limits.tokens)),
        follow=True,
    )
    worker.submit(job)
    text = ""
    try:
        while True:
            event = events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Answered):
                break
            assert isinstance(event, TextPiece)
            text += event.text
            # Box markup that is not complete yet would be read as text.
            yield read_answer(text, codec, talk.seen).plain_text.partition("<")[0].rstrip(), None, talk
    finally:
        worker.cancel(job)
    answered = replace(new, answer=event.answer.text)
    after = replace(talk, exchanges=(*talk.exchanges, answered), questions=(*talk.questions, question))
    yield event.answer.plain_text, event.answer, after
