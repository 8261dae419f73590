"""A conversation about encoded pictures as a prompt that the language model has room for.

Shapes: P pictures, Q queries, D width of the language model's embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lyrics.core.contracts import LanguageModel
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.language.mentions import snapped
from lyrics.core.language.prompts import Dialogue, TokenPrompt, encode_words, segments_of, template_named, tokenize
from lyrics.core.refining.refinement import Refinement
from lyrics.core.spec import ModelSpec


@dataclass(frozen=True)
class Encoded:
    """Pictures as the language model receives them.

    ``soft_tokens_PQD`` are the projected query outputs, D wide as the language model's embeddings. ``refinements`` say what the refiner
    saw, and ``spatial_texts`` how it was written down.
    """

    soft_tokens_PQD: torch.Tensor
    refinements: tuple[Refinement, ...]
    spatial_texts: tuple[str, ...]

    def followed_by(self, other: Encoded) -> Encoded:
        """The pictures of both, ``other``'s last."""
        return Encoded(
            torch.cat([self.soft_tokens_PQD, other.soft_tokens_PQD]),
            self.refinements + other.refinements,
            self.spatial_texts + other.spatial_texts,
        )


def spatial_text(refinement: Refinement, codec: str) -> str:
    """A picture's spatial representation: its objects, best first."""
    objects = [SpatialObject(found.tag, found.box_norm, found.score) for found in refinement.objects]
    return format_objects(objects, codec, refinement.size_px)


def snapped_dialogue(dialogue: Dialogue, encoded: Encoded, min_iou: float, codec: str) -> Dialogue:
    """The dialogue with boxes in its answers exchanged for those that the refiner found in its pictures, where they overlap enough."""
    pictures = [encoded.refinements[picture] for exchange in dialogue for picture in exchange.pictures]
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
    tokens_per_picture: int,
) -> TokenPrompt:
    """A conversation as tokens. Where it is longer than ``room``, the refiner's least certain objects are left out of its text.

    It may be longer still: soft tokens, instructions and answers stay whole.
    """
    template = template_named(language_model.chat_template)
    tokenizer = language_model.tokenizer

    def tokens(texts: Mapping[int, str]) -> TokenPrompt:
        segments = segments_of(dialogue, template, lambda picture: texts.get(picture, ""))
        return tokenize(segments, tokenizer, tokens_per_picture)

    texts = dict(enumerate(encoded.spatial_texts)) if spec.spatial_in_prompt else {}
    prompt = tokens(texts)
    shown = {picture for exchange in dialogue for picture in exchange.pictures if texts.get(picture)}
    if len(prompt) <= room or not shown:
        return prompt
    warnings.warn(
        "a prompt has no room for all objects that the refiner found; those with the lowest scores are left out of the text.",
        stacklevel=2,
    )
    share = max(0, room - len(tokens({}))) // len(shown)
    return tokens(
        {picture: _shortened(encoded.refinements[picture], share, spec.codec, tokenizer) for picture in shown}
    )


def _shortened(refinement: Refinement, longest: int, codec: str, tokenizer: Any) -> str:
    """The spatial representation of as many objects, best first, as ``longest`` tokens hold."""
    best = sorted(refinement.objects, key=lambda found: -found.score)
    few, many = 0, len(best)
    while few < many:
        middle = (few + many + 1) // 2
        text = spatial_text(replace(refinement, objects=tuple(best[:middle])), codec)
        # One token for what the cut between this text and its neighbours may cost.
        if len(encode_words(tokenizer, f"{text}\n")) + 1 <= longest:
            few = middle
        else:
            many = middle - 1
    return spatial_text(replace(refinement, objects=tuple(best[:few])), codec)
