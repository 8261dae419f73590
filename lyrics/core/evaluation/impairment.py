"""Soft tokens under a condition: another sample's, none but zeros, noise, or fewer of them.

Shapes: P images, Q soft tokens of an image, K of those that are kept, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lyrics.core.conditions import Condition, kept_tokens
from lyrics.core.data.draws import generator
from lyrics.core.language.prompting import Encoded

#: What a draw is a function of, beside the seed: the sample's row, and the number of the image in it.
Key = tuple[int, int]


def impaired(
    encoded: Encoded, condition: Condition, keys: Sequence[Key], others_PQD: torch.Tensor | None = None
) -> Encoded:
    """Images that were looked at, with the soft tokens that the condition leaves them; what the refiner saw stays.

    Args:
        encoded: P images, looked at under ``condition.look``.
        condition: how.
        keys: of each image.
        others_PQD: for ``shuffled``, the soft tokens that take the place of their own.
    """
    soft_PQD = encoded.soft_tokens_PQD
    assert len(keys) == len(soft_PQD), "one key for each image"
    if condition.soft == "shuffled":
        assert others_PQD is not None, "shuffled needs the soft tokens of other samples"
        assert others_PQD.shape == soft_PQD.shape, "as many soft tokens as its own"
        soft_PQD = others_PQD
    elif condition.soft == "zero":
        soft_PQD = torch.zeros_like(soft_PQD)
    elif condition.soft == "noise" and len(keys):
        soft_PQD = torch.stack([_noise(one, condition.seed, key) for one, key in zip(soft_PQD, keys, strict=True)])
    if condition.drop_tokens and len(keys):
        queries = soft_PQD.shape[1]
        kept_PK = torch.stack([_kept(condition, queries, key) for key in keys]).to(soft_PQD.device)
        soft_PQD = soft_PQD.gather(1, kept_PK[:, :, None].expand(-1, -1, soft_PQD.shape[2]))
    return replace(encoded, soft_tokens_PQD=soft_PQD)


def _noise(soft_QD: torch.Tensor, seed: int, key: Key) -> torch.Tensor:
    row, part = key
    drawn = generator(seed, "noise for soft tokens", row, part).standard_normal(tuple(soft_QD.shape))
    numbers_QD = torch.from_numpy(drawn).to(soft_QD.device, torch.float32)
    given_QD = soft_QD.float()
    return (given_QD.mean() + given_QD.std(correction=0) * numbers_QD).to(soft_QD.dtype)


def _kept(condition: Condition, queries: int, key: Key) -> torch.Tensor:
    """Return which soft tokens of an image stay, in order: int64 [K]."""
    row, part = key
    order = generator(condition.seed, "dropped soft tokens", row, part).permutation(queries)
    return torch.from_numpy(order[: kept_tokens(condition, queries)]).sort().values
