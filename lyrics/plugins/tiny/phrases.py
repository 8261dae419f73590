"""Logits for a fixed list of phrases, each made of the logits of its words, and of the letters of what is quoted.

Shapes: P phrases, U different parts, D width; the leading dimensions are free.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lyrics.plugins.tiny.expert_vocabulary import normalised


def parts(phrase: str) -> list[str]:
    """What a phrase's logit is the sum of: its words; in place of a word in quotes, its letters with their places and
    their number.

    ``word "tea"`` has the parts ``word``, ``"t1``, ``"e2``, ``"a3`` and ``"3``.
    """
    found: list[str] = []
    for word in phrase.split():
        letters = word[1:-1]
        if word == f'"{letters}"' and letters:
            found += [f'"{letter}{place}' for place, letter in enumerate(letters, start=1)]
            found.append(f'"{len(letters)}')
        else:
            found.append(word)
    return found


class PhraseHead(nn.Module):
    """States [..., D] -> logits [..., P]: a phrase's logit is the sum of the logits of its ``parts`` plus one common
    bias.

    Because parts are shared, a pair never seen in training ("cyan star") follows from its words, and what a written
    word looks like is learned from all that have its letters.

    Args:
        width: D.
        vocabulary: the P phrases.
        prior_logit: the bias to begin with, the logit of a phrase's presence before anything is known.
    """

    phrase_words_PU: torch.Tensor

    def __init__(self, width: int, vocabulary: Sequence[str], prior_logit: float) -> None:
        super().__init__()
        self.columns = {normalised(phrase): column for column, phrase in enumerate(vocabulary)}
        words = sorted({part for phrase in self.columns for part in parts(phrase)})
        self.words = nn.Linear(width, len(words), bias=False)
        self.bias = nn.Parameter(torch.full((), prior_logit))
        membership = [[float(parts(phrase).count(word)) for word in words] for phrase in self.columns]
        self.register_buffer("phrase_words_PU", torch.tensor(membership), persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.words(states) @ self.phrase_words_PU.T.to(states.dtype) + self.bias

    def column(self, phrase: str) -> int | None:
        """The phrase's place in the vocabulary whatever its case and white space, or None."""
        return self.columns.get(normalised(phrase))

    def targets(self, tags: Sequence[str]) -> torch.Tensor:
        """One row of zeros and ones per tag, [len(tags), P]; a tag outside the vocabulary has a row of zeros."""
        targets = torch.zeros(len(tags), len(self.columns), device=self.bias.device)
        for row, tag in enumerate(tags):
            column = self.column(tag)
            if column is not None:
                targets[row, column] = 1.0
        return targets
