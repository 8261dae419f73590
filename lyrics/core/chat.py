"""A conversation with a model: images are looked at once, when they come in.

Every answer is part of what is asked next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Unpack

from lyrics.core.abstaining import Abstaining
from lyrics.core.answers import Answer
from lyrics.core.errors import PromptError, SpecError
from lyrics.core.geometry import Box, Size
from lyrics.core.language.codecs import format_box
from lyrics.core.language.generation import GenerationOptions, decoding
from lyrics.core.language.past import Past
from lyrics.core.language.prompts import Dialogue, Exchange
from lyrics.core.pictures.images import ImageLike
from lyrics.core.pictures.inputs import Phrases, Pictures, instruction_text, picture_list
from lyrics.core.renaming import renamed

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from lyrics.core.language.generation import Decoding
    from lyrics.core.language.prompting import Encoded
    from lyrics.core.spec import ModelSpec

# "<box 10 20 200 180>", in pixels of the image; commas are read too.
_BOX = re.compile(r"<box\b([^<>]*)>", re.IGNORECASE)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_FOUR = re.compile(rf"\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*")


def with_boxes(text: str, size_px: Size | None, codec: str) -> str:
    """Return a question with every ``<box x1 y1 x2 y2>`` written as the model reads boxes.

    The numbers are pixels of an image of ``size_px`` (width, height).

    Raises ``PromptError`` for a box that is no box, lies outside of the image, or belongs to no image.
    """

    def written(found: re.Match[str]) -> str:
        four = _FOUR.fullmatch(found[1])
        if four is None:
            raise PromptError(
                f"{found[0]}: a box is four numbers in pixels, left, top, right, bottom: <box 10 20 200 180>."
            )
        if size_px is None:
            raise PromptError(f"{found[0]}: there is no image that this box could lie in.")
        x1, y1, x2, y2 = (float(number) for number in four.groups())
        width, height = size_px
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise PromptError(
                f"{found[0]}: does not lie in the image, which is {width} x {height} pixels; give left, top, right, "
                "bottom with left < right and top < bottom."
            )
        box = Box.from_px((x1, y1, x2, y2), size_px)
        assert box is not None, "a box with an area inside the image"
        return format_box(box, codec, size_px)

    return _BOX.sub(written, text)


class Answering(Protocol):
    """What a conversation needs of a model: it looks at images, and decodes answers about what it saw."""

    spec: ModelSpec

    def look(self, images: Sequence[ImageLike], instructions: Sequence[str], *, phrases: Phrases = None) -> Encoded: ...

    def decode(
        self,
        dialogues: Sequence[Dialogue],
        encoded: Encoded,
        how: Decoding,
        *,
        on_text: Callable[[str], None] | None = None,
        past: Past | None = None,
    ) -> list[Answer]: ...


class Chat:
    """A conversation. Made by ``LyricsModel.chat``.

    ``history`` is what was said, ``encoded`` the images that were shown, in order. The query transformer reads the
    question with which an image comes in; it and the refiner run once for each image. A language model that can
    (``ResumesPrompts``) reads only what is new since the last answer; what it keeps of the conversation is memory of
    the size that ``lyrics check`` counts as its cache.
    """

    @renamed(pictures="images")
    def __init__(self, model: Answering, images: Sequence[ImageLike] = (), *, max_new_tokens: int = 256) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.history: list[Exchange] = []
        self.encoded: Encoded | None = None
        self._waiting = list(images)
        self._past = Past()

    def show(self, *images: Pictures) -> None:
        """Bring in images that the next question is about."""
        self._waiting += [one for entry in images for one in picture_list(entry)]

    def ask(
        self,
        question: str,
        *images: Pictures,
        phrases: Phrases = None,
        on_text: Callable[[str], None] | None = None,
        max_new_tokens: int | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        abstaining: Abstaining | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer a question, which may bring more images in.

        Args:
            question: may hold boxes of the last image, as ``<box 10 20 200 180>`` in its pixels.
            images: images, or lists of images, whatever ``lyrics.core.pictures.images.open_image`` opens.
            phrases: for each image that comes in, what the detector looks for in place of the tagger's tags.
            on_text: called with each piece of the answer as it is written.
            max_new_tokens: tokens of the answer at most; unless given here or in ``generation_config``, as many as
                ``Chat`` was made with.
            generation_config, seed, options: as for ``LyricsModel.generate``.
            abstaining: when to answer "I cannot see that." instead, which then is what the conversation goes on with.
                Whether an answer is withheld is known at its end, so ``on_text`` goes without it.

        If anything is raised (``ImageError``, ``PromptError``, ``KeyboardInterrupt``), the conversation is as it was
        before.
        """
        if not instruction_text(question).strip():
            raise PromptError("the prompt is empty; ask something.")
        how = decoding(
            options,
            max_new_tokens=max_new_tokens,
            generation_config=generation_config,
            seed=seed,
            streamed=on_text is not None,
            default_tokens=self.max_new_tokens,
        )
        if abstaining is not None and on_text is not None:
            raise SpecError(
                "abstaining: whether an answer is withheld is known at its end, so none can be followed as it is "
                "written; leave out on_text."
            )
        coming = [*self._waiting, *(one for entry in images for one in picture_list(entry))]
        encoded, indices = self.encoded, tuple[int, ...]()
        if coming or encoded is None:
            before = len(encoded.refinements) if encoded is not None else 0
            new = self.model.look(coming, [question] * len(coming), phrases=phrases)
            encoded = new if encoded is None else encoded.followed_by(new)
            indices = tuple(range(before, len(encoded.refinements)))
        size_px = encoded.refinements[-1].size_px if encoded.refinements else None
        exchange = Exchange(with_boxes(question, size_px, self.model.spec.codec), None, indices)
        # Taken away while it is written to: if anything is raised, the next question begins without it.
        past, self._past = self._past, Past()
        (answer,) = self.model.decode([[*self.history, exchange]], encoded, how, on_text=on_text, past=past)
        self._past = past
        if abstaining is not None:
            answer = abstaining(answer)
        self.encoded, self._waiting = encoded, []
        self.history.append(replace(exchange, answer=answer.text))
        return answer
