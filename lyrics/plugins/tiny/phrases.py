"""Logits for a fixed list of phrases, each made of the logits of its words.

Shapes: P phrases, U different words, D width; the leading dimensions are free.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lyrics.plugins.tiny.vocabulary import normalised


class PhraseHead(nn.Module):
    """States [..., D] -> logits [..., P]: a phrase's logit is the sum of its words' logits plus one common bias.

    Because words are shared, a pair never seen in training ("cyan star") follows from its parts.

    Args:
        width: D.
        vocabulary: the P phrases.
        prior_logit: the bias to begin with, the logit of a phrase's presence before anything is known.
    """

    phrase_words_PU: torch.Tensor

    def __init__(self, width: int, vocabulary: Sequence[str], prior_logit: float) -> None:
        super().__init__()
        self.columns = {normalised(phrase): column for column, phrase in enumerate(vocabulary)}
        words = sorted({word for phrase in self.columns for word in phrase.split()})
        self.words = nn.Linear(width, len(words), bias=False)
        self.bias = nn.Parameter(torch.full((), prior_logit))
        membership = [[float(phrase.split().count(word)) for word in words] for phrase in self.columns]
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
