"""Boxes that captions give in numbers, and the words that they say of each, found among token ids.

``a star at <Bbox>(5,20),(310,999)</Bbox>, red striped across, a ring ...``: a description of a region follows its box
and a comma, and ends with the next comma, or with the caption.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from lyrics.core.language.tokenizers import NUMBERS
from lyrics.core.stage1.batch import Regions
from lyrics.core.stage1.streams import Text
from lyrics.kernels.host_work import host_work

#: A box's numbers begin this many tokens before its end: four numbers, two commas, what stands between the corners.
_NUMBERS = (7, 5, 3, 1)


class BoxMarks(NamedTuple):
    """What boxes are made of, for one tokenizer."""

    values_V: np.ndarray
    """Number of each id, -1 where it is none."""
    comma: int
    between: int
    """The id of ``),(``."""
    end: int
    """The id of ``)</Bbox>``."""


@functools.lru_cache(maxsize=8)  # it looks up a thousand words
def box_marks(tokenizer: Any) -> BoxMarks | None:
    """Return the ids that boxes are made of; None where a number or a piece of markup is not one token."""
    vocabulary = tokenizer.get_vocab()
    if not all(piece in vocabulary for piece in (*NUMBERS, ",", "),(", ")</Bbox>")):
        return None
    values_V = np.full(max(vocabulary.values()) + 1, -1)
    values_V[[vocabulary[number] for number in NUMBERS]] = np.arange(len(NUMBERS))
    return BoxMarks(values_V, vocabulary[","], vocabulary["),("], vocabulary[")</Bbox>"])


@host_work("tokenize objects")
def find_regions(captions: Text, marks: BoxMarks) -> Regions:
    """Return the boxes of captions of which something is said, in their order. A box of which a token is masked, or
    whose numbers are not ordered, is none.
    """
    ids_RL = captions.ids_RL.numpy()
    samples, sides, words = [], [], []
    for row, end in np.argwhere(ids_RL == marks.end).tolist():
        line = ids_RL[row, : int(captions.lengths_R[row])]
        if end < max(_NUMBERS) or end >= len(line):
            continue
        x1, y1, x2, y2 = (int(marks.values_V[line[end - back]]) for back in _NUMBERS)
        separators = (line[end - 6], line[end - 4], line[end - 2])
        if min(x1, y1) < 0 or x1 > x2 or y1 > y2 or separators != (marks.comma, marks.between, marks.comma):
            continue
        if end + 1 >= len(line) or line[end + 1] != marks.comma:
            continue
        said = line[end + 2 :]
        until = np.flatnonzero(said == marks.comma)
        said = said[: until[0]] if len(until) else said
        if not len(said):
            continue
        samples.append(row)
        sides.append([side / (len(NUMBERS) - 1) for side in (x1, y1, x2, y2)])
        words.append(said.tolist())
    return Regions(torch.tensor(samples, dtype=torch.int64), torch.tensor(sides).reshape(-1, 4), Text.from_lists(words))
