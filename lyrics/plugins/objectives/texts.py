"""How the objectives put special tokens around a batch's texts, and the query stream that several of them share.

Recipe ``paper``: S is [BOS] and the objects, C is [CLS], the caption and [SEP]; each counts its own positions.
Recipe ``released``: one [CLS] in front of S, nothing around C, whose positions go on from 1; without S (BLIP-2), C is
as in ``paper``.

Letters: B samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lyrics.core.errors import SpecError
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.streams import QUERY_SEGMENTS, SpecialTokens, Stream, Text, full

QUERIES = "queries"


def query_stream(batch: PretrainBatch, segments: Sequence[str]) -> Stream:
    """Queries alone, all seeing each other: ITC's images, and the prefix of ICG and of one-way MSP."""
    rows = torch.arange(len(batch))
    return Stream(QUERIES, full("".join(name for name in QUERY_SEGMENTS if name in segments)), batch.sample_B, rows)


def special_id(special: SpecialTokens, name: str) -> int:
    """Return the id of a special token.

    Raises:
        SpecError: the query transformer's tokenizer lacks it.
    """
    found: int = getattr(special, name)
    if found < 0:
        raise SpecError(
            f"the query transformer's tokenizer has no [{name.upper()}] token; recipe 'paper' needs it. "
            "Raise query_transformer.options.vocab_size so that it can be added, or use recipe 'released'."
        )
    return found


def begin(text: Text, token: int) -> Text:
    """Return ``token`` in front of every row."""
    first = torch.full((len(text.lengths_R), 1), token, dtype=torch.int64)
    return Text(torch.cat([first, text.ids_RL], dim=1), text.lengths_R + 1, text.first_position)


def end(text: Text, token: int) -> Text:
    """Return ``token`` after the last token of every row."""
    ids = torch.cat([text.ids_RL, torch.zeros(len(text.lengths_R), 1, dtype=torch.int64)], dim=1)
    ids[torch.arange(len(ids)), text.lengths_R] = token
    return Text(ids, text.lengths_R + 1, text.first_position)


def both_texts(
    spatial: Text, caption: Text, special: SpecialTokens, recipe: str, segments: Sequence[str]
) -> dict[str, Text]:
    """Return the text segments of ITC and ITM, by name."""
    if "S" not in segments:
        return {"C": end(begin(caption, special.cls), special.sep)}
    if recipe == "released":
        return {"S": begin(spatial, special.cls), "C": Text(caption.ids_RL, caption.lengths_R, first_position=1)}
    return {
        "S": begin(spatial, special_id(special, "bos")),
        "C": end(begin(caption, special.cls), special.sep),
    }
