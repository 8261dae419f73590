"""How well the language model of ``lyrics-tiny`` answers questions about scenes that are written down: what it can do
without eyes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from lyrics.core.contracts import Dataset
from lyrics.core.language.chat_templates import segments_of, template_named
from lyrics.core.language.prompts import Exchange, tokenize


@torch.no_grad()
def reading_accuracy(language_model: Any, texts: Dataset, scenes: int) -> dict[str, tuple[float, int]]:
    """Type of question -> (share whose answer is right to the last token, how many). ``texts`` is ``scene-texts`` with
    ``plain``.

    Greedy: an answer counts if each of its tokens is the likeliest after those before it. The turns before hold the
    right answers.
    """
    template = template_named(language_model.chat_template, language_model.tokenizer)
    right, asked = Counter[str](), Counter[str]()
    for row in range(scenes):
        sample = texts[row]
        dialogue = [Exchange(turn.instruction, turn.answer) for turn in sample.turns]
        prompt = tokenize(segments_of(dialogue, template), language_model.tokenizer, 0)
        ids_BL = torch.tensor([prompt.ids])
        logits_LV = language_model(language_model.embed(ids_BL), torch.ones_like(ids_BL))[0]
        hit_L = [False, *(logits_LV[:-1].argmax(-1) == ids_BL[0, 1:]).tolist()]
        for kind, (start, end) in zip(sample.extra["question_types"], _answers(prompt.targets), strict=True):
            asked[kind] += 1
            right[kind] += all(hit_L[start:end])
    return {kind: (right[kind] / count, count) for kind, count in sorted(asked.items())}


def _answers(targets: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Start and end of every run of tokens that are learned."""
    edges = [
        place
        for place, (one, other) in enumerate(zip((False, *targets), (*targets, False), strict=True))
        if one != other
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
