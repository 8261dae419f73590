"""Texts as CLIP's text encoders read them: begin, words, end, and padding to a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.prompts import encode_texts
from lyrics.core.language.tokenizers import byte_tokenizer


class ClipWords:
    """Texts -> ids [P, length] and their mask.

    A text that is spelled like a special token stays text. Texts that are too long are cut.

    Args:
        tokenizer: has a token that begins and one that ends a text; the latter's id is the greatest, by which the text
            encoder finds the end.
        length: tokens of a row.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without what stands around it."""
        return encode_texts(self.tokenizer, texts)

    def rows(self, tokens: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of texts -> rows [P, length] and their mask, int64."""
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[begin, *ids[: self.length - 2], end] for ids in tokens]
        # What stands behind the end is not seen: these encoders read from left to right.
        ids = [[*row, *[0] * (self.length - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (self.length - len(row)) for row in rows]
        shape = (len(rows), self.length)
        return (
            torch.tensor(ids, dtype=torch.int64, device=device).view(shape),
            torch.tensor(mask, dtype=torch.int64, device=device).view(shape),
        )


def stand_in_tokenizer(vocabulary: int) -> Any:
    """Return the built-in byte tokenizer with a begin and an end: 259 tokens.

    Raises ``SpecError`` where the text encoder knows fewer.
    """
    tokenizer = byte_tokenizer(("<pad>",))
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    if vocabulary < len(tokenizer):
        raise SpecError(
            f"the text encoder's vocab_size is {vocabulary}, but without pretrained weights the built-in tokenizer "
            f"stands in, which has {len(tokenizer)} tokens; set it to {len(tokenizer)} or more."
        )
    return tokenizer


def check_tokenizer(tokenizer: Any, vocabulary: int, source: object) -> None:
    """Raise ``WeightsError`` for a tokenizer that is not the text encoder's."""
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise WeightsError(f"the tokenizer of {source} is not CLIP's: it has no token that begins or none that ends.")
    if len(tokenizer) > vocabulary:
        raise WeightsError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, but the text encoder only {vocabulary}."
        )
