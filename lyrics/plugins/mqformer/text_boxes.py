"""Boxes that a text gives in numbers, found among its token ids.

``(5,20),(310,999)`` is seven tokens where every number is one: what the four say together, a model would have to learn
from pairs of thousand words. Found here, a box in a text can be given the same waves as the boxes of local tokens.

Letters: L tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lyrics.core.language.tokenizers import NUMBERS

#: Tokens from a box's first number to its last.
_SPAN = 7


class BoxMarks(NamedTuple):
    """What a box is made of, for one tokenizer."""

    values: torch.Tensor
    """Number of each id, -1 where it is none: [vocabulary]."""
    comma: int
    between: int
    """The id of ``),(``."""


def box_marks(tokenizer: Any, vocab_size: int) -> BoxMarks | None:
    """Return the ids that boxes are made of; None where a number or the markup between is not one token."""
    vocabulary = tokenizer.get_vocab()
    if not all(piece in vocabulary for piece in (*NUMBERS, ",", "),(")):
        return None
    values = torch.full((vocab_size,), -1)
    values[[vocabulary[number] for number in NUMBERS]] = torch.arange(len(NUMBERS))
    return BoxMarks(values, vocabulary[","], vocabulary["),("])


def boxes_in_text(ids_L: torch.Tensor, positions_L: torch.Tensor, marks: BoxMarks) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tokens [..,L] are the last number of a box, and x1, y1, x2, y2 [..,L,4] there, as shares of the
    image's sides; zeros elsewhere.

    ``positions_L`` [..,L] are the tokens' places in their texts: a box does not reach over the end of one into the
    next. A box of which a token is masked is none.
    """
    found_L = torch.zeros_like(ids_L, dtype=torch.bool)
    sides_L4 = torch.zeros(*ids_L.shape, 4, device=ids_L.device)
    length = ids_L.shape[-1]
    if length < _SPAN:
        return found_L, sides_L4
    last = length - _SPAN + 1

    def at(tensor: torch.Tensor, offset: int) -> torch.Tensor:
        return tensor[..., offset : offset + last]

    numbers = marks.values[ids_L]
    four = torch.stack([at(numbers, offset) for offset in (0, 2, 4, 6)], dim=-1)
    whole = (
        (four >= 0).all(dim=-1)
        & (at(ids_L, 1) == marks.comma)
        & (at(ids_L, 3) == marks.between)
        & (at(ids_L, 5) == marks.comma)
        & (at(positions_L, 6) - at(positions_L, 0) == _SPAN - 1)
    )
    found_L[..., _SPAN - 1 :] = whole
    sides_L4[..., _SPAN - 1 :, :] = torch.where(whole[..., None], four / (len(NUMBERS) - 1), 0.0)
    return found_L, sides_L4
