"""A conversation about encoded images as a prompt that the language model has room for.

Shapes: P images, Q queries, D width of the language model's embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lyrics.core.contracts import LanguageModel
from lyrics.core.errors import PromptError
from lyrics.core.language.chat_templates import segments_of, template_named
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.language.mentions import snapped
from lyrics.core.language.prompts import (
    Dialogue,
    Exchange,
    TokenPrompt,
    encode_words,
    tokenize,
)
from lyrics.core.pictures.inputs import instruction_text
from lyrics.core.refining.refinement import Refinement
from lyrics.core.spec import ModelSpec


@dataclass(frozen=True)
class Encoded:
    """Images as the language model receives them.

    ``soft_tokens_PQD`` are the projected query outputs, D wide as the language model's embeddings. ``refinements`` say
    what the refiner saw, and ``spatial_texts`` how it was written down.
    """

    soft_tokens_PQD: torch.Tensor
    refinements: tuple[Refinement, ...]
    spatial_texts: tuple[str, ...]

    @property
    def tokens_per_picture(self) -> int:
        """Soft tokens of each image."""
        return int(self.soft_tokens_PQD.shape[1])

    def rows(self, start: int, end: int) -> Encoded:
        """Return images ``start`` to ``end``, without the last."""
        return Encoded(self.soft_tokens_PQD[start:end], self.refinements[start:end], self.spatial_texts[start:end])

    def followed_by(self, other: Encoded) -> Encoded:
        """Return the images of both, ``other``'s last."""
        return Encoded(
            torch.cat([self.soft_tokens_PQD, other.soft_tokens_PQD]),
            self.refinements + other.refinements,
            self.spatial_texts + other.spatial_texts,
        )


@dataclass(frozen=True)
class DroppedText:
    """Of a batch's images those whose spatial text is left out: of the prompt, and of what the query transformer reads.

    One entry for each image; empty where none is.
    """

    prompt: tuple[bool, ...] = ()
    queries: tuple[bool, ...] = ()

    def told(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the images' spatial texts as the prompt has them."""
        dropped = self.prompt or (False,) * len(texts)
        return tuple("" if drop else text for drop, text in zip(dropped, texts, strict=True))

    def read(self, refinements: Sequence[Refinement]) -> Sequence[Refinement]:
        """Return the images with the objects that the query transformer reads of."""
        dropped = self.queries or (False,) * len(refinements)
        return [replace(one, objects=()) if drop else one for drop, one in zip(dropped, refinements, strict=True)]


NOTHING_DROPPED = DroppedText()


def spatial_text(refinement: Refinement, codec: str) -> str:
    """Return an image's spatial representation: its objects, best first."""
    objects = [SpatialObject(found.tag, found.box_norm, found.score) for found in refinement.objects]
    return format_objects(objects, codec, refinement.size_px)


def snapped_dialogue(dialogue: Dialogue, encoded: Encoded, min_iou: float, codec: str) -> Dialogue:
    """Return the dialogue with the refiner's boxes in place of those in its answers, where they overlap enough."""
    pictures = [encoded.refinements[picture] for exchange in dialogue for picture in exchange.images]
    if not pictures:
        return dialogue
    boxes = [found.box_norm for picture in pictures for found in picture.objects]

    def answer(text: str | None) -> str | None:
        return None if text is None else snapped(text, boxes, min_iou, codec, pictures[0].size_px)

    return tuple(replace(exchange, answer=answer(exchange.answer)) for exchange in dialogue)


def fitted_prompt(
    dialogue: Dialogue,
    encoded: Encoded,
    room: int,
    spec: ModelSpec,
    language_model: LanguageModel,
) -> TokenPrompt:
    """Return a conversation as tokens.

    Where it is longer than ``room``, the refiner's least certain objects are left out of its text.

    It may be longer still: soft tokens, instructions and answers stay whole.
    """
    tokenizer = language_model.tokenizer
    template = template_named(language_model.chat_template, tokenizer)

    def tokens(texts: Mapping[int, str]) -> TokenPrompt:
        segments = segments_of(dialogue, template, lambda picture: texts.get(picture, ""))
        return tokenize(segments, tokenizer, encoded.tokens_per_picture)

    texts = dict(enumerate(encoded.spatial_texts)) if spec.spatial_in_prompt else {}
    prompt = tokens(texts)
    shown = {picture for exchange in dialogue for picture in exchange.images if texts.get(picture)}
    if len(prompt) <= room or not shown:
        return prompt
    warnings.warn(
        "a prompt has no room for all objects that the refiner found; those with the lowest scores are left out of the "
        "text.",
        stacklevel=2,
    )
    share = max(0, room - len(tokens({}))) // len(shown)
    return tokens(
        {picture: _shortened(encoded.refinements[picture], share, spec.codec, tokenizer) for picture in shown}
    )


def _shortened(refinement: Refinement, longest: int, codec: str, tokenizer: Any) -> str:
    """Return the spatial representation of as many objects, best first, as ``longest`` tokens hold."""
    best = sorted(refinement.objects, key=lambda found: -found.score)
    few, many = 0, len(best)
    while few < many:
        middle = (few + many + 1) // 2
        text = spatial_text(replace(refinement, objects=tuple(best[:middle])), codec)
        # One token for what the cut between this text and its neighbors may cost.
        if len(encode_words(tokenizer, f"{text}\n")) + 1 <= longest:
            few = middle
        else:
            many = middle - 1
    return spatial_text(replace(refinement, objects=tuple(best[:few])), codec)


def checked_prompt(
    dialogue: Dialogue, encoded: Encoded, max_new_tokens: int, spec: ModelSpec, language_model: LanguageModel
) -> TokenPrompt:
    """A conversation that ends with a question as tokens that leave room for ``max_new_tokens``, or ``PromptError``."""
    check_dialogue(dialogue, len(encoded.refinements))
    room = int(language_model.max_positions) - max_new_tokens
    prompt = fitted_prompt(dialogue, encoded, room, spec, language_model)
    if len(prompt) > room:
        raise too_long(prompt, encoded.tokens_per_picture, language_model.max_positions, max_new_tokens)
    return prompt


def check_dialogue(dialogue: Dialogue, num_pictures: int) -> None:
    """Raise ``PromptError`` unless a conversation ends with a question that ``num_pictures`` images can be asked."""
    if isinstance(dialogue, str) or not all(isinstance(exchange, Exchange) for exchange in dialogue):
        raise PromptError("a conversation is a list of lyrics.core.language.prompts.Exchange; generate takes texts.")
    if not dialogue or not instruction_text(dialogue[-1].instruction).strip():
        raise PromptError("the prompt is empty; ask something.")
    if dialogue[-1].answer is not None:
        raise PromptError("the last instruction has an answer already; there is nothing to generate.")
    for exchange in dialogue:
        for picture in exchange.images:
            if not 0 <= picture < num_pictures:
                raise PromptError(f"the prompt names image {picture}, but there are {num_pictures}.")


def too_long(prompt: TokenPrompt, num_queries: int, max_positions: int, max_new_tokens: int) -> PromptError:
    """Return the error for a prompt that leaves no room for its answer."""
    shown = len(prompt.slots)
    pictures = f", {shown} image{'s' * (shown != 1)} of {num_queries} tokens included"
    return PromptError(
        f"the prompt has {len(prompt):,} tokens{pictures if shown else ''}; the language model reads "
        f"{max_positions:,}, {max_new_tokens:,} of which are kept for the answer. Shorten it, give fewer images, "
        "or ask for a shorter answer."
    )


def instructions_of(dialogues: Sequence[Dialogue], num_pictures: int) -> list[str]:
    """Return for each image the instruction that brings it into its conversation; empty for one that none does."""
    found = [""] * num_pictures
    for dialogue in dialogues:
        for exchange in dialogue:
            for picture in exchange.images:
                found[picture] = exchange.instruction
    return found
