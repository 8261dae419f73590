"""What is to be done by the worker, and what becomes of it: events that whoever submitted a job is told."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.language.generation import Decoding
from lyrics.core.language.prompts import Exchange
from lyrics.core.language.running import Writing
from lyrics.core.refining.refinement import Refinement
from lyrics.workflows.serve.limits import LateError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TextPiece:
    """Text that was written of an answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """An answer is complete.

    Args:
        answer: with what it points at.
        seen: what the refiner saw in each image of the conversation.
        prompt_tokens, answer_tokens: as the language model counts.
        finish: ``stop``, or ``length`` where ``max_tokens`` cut it off.
    """

    answer: Answer
    seen: tuple[Refinement, ...]
    prompt_tokens: int
    answer_tokens: int
    finish: str


@dataclass(frozen=True)
class Refined:
    """An image was refined."""

    refinement: Refinement


@dataclass(frozen=True)
class Failed:
    """A job came to nothing: an error of the client's, or one of the server's."""

    error: Exception


Event = TextPiece | Answered | Refined | Failed
_numbers = itertools.count(1)


@dataclass(eq=False)
class Job:
    """Something to do with images.

    Args:
        images: opened, upright.
        tell: called with each event, in the worker's thread; the last one is ``Answered``, ``Refined`` or ``Failed``.
        seconds: from now until it is too late.
    """

    images: Sequence[Image.Image]
    tell: Callable[[Event], None]
    seconds: float = 120.0
    number: int = field(default_factory=lambda: next(_numbers))
    canceled: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        self.came = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until it is too late."""
        return self.came + self.seconds - time.monotonic()

    @property
    def late(self) -> bool:
        return self.left < 0

    def lateness(self) -> LateError:
        """What it fails with then."""
        return LateError(f"the request took longer than the {self.seconds:g} seconds that it may.")


@dataclass(eq=False)
class RefineJob(Job):
    """An image to refine. ``phrases`` are looked for in place of the tagger's tags; None: those."""

    phrases: Sequence[str] | None = None


@dataclass(eq=False)
class AskJob(Job):
    """A conversation to go on with.

    Args:
        exchanges: the conversation; its images by their numbers in ``images``, each brought in by one exchange.
        questions: for each image the question that brings it in, as it was asked.
        how: how the answer is decoded.
        stop: texts that end the answer, and do not belong to it.
        follow: whether pieces of the answer are told as they are written.
    """

    exchanges: Sequence[Exchange] = ()
    questions: Sequence[str] = ()
    how: Decoding = field(default_factory=Decoding)
    stop: Sequence[str] = ()
    follow: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.writing = Writing(self.how)


class AnswerText:
    """The text of an answer as its tokens come: what may be told, and whether it has ended.

    All pieces together are the whole text: white space at both ends is held back, and so are the bytes of half a
    character, and what may be the beginning of a text that ends the answer.

    Args:
        tokenizer: turns ids into text.
        stop: texts that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.told = ""
        self.stopped = False

    def read(self, ids: Sequence[int], *, over: bool) -> str:
        """Return what may be told now of an answer of these ids, beyond what was told before.

        ``stopped`` is then true where a text of ``stop`` has come. ``over``: there will be no more ids.
        """
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        end = min((place for one in self.stop if (place := text.find(one)) >= 0), default=None)
        if end is not None:
            self.stopped, text = True, text[:end]
        elif not over:
            text = text[: len(text) - self._held_back(text)]
            text = "" if text.endswith(_REPLACEMENT) else text
        text = text.strip()
        if not text.startswith(self.told):
            return ""
        piece = text[len(self.told) :]
        self.told = text
        return piece

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a text that ends the answer."""
        longest = max(map(len, self.stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(one.startswith(text[-size:]) for one in self.stop):
                return size
        return 0
