"""Both attentions on torch's flex_attention, compiled; the block mask comes from the plan's table, not from evaluating
the mask everywhere.

It has no dropout: flex changes scores before the softmax, and dropout takes weights after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import key_exists_of, runs_of

_BLOCK = 128
#: Both attentions, with and without gradients and key masks, in every type and number of heads: more than torch's limit
#: of 8 compilations.
_VARIANTS = 64


def segment_attention(
    q_THd: torch.Tensor, k_THd: torch.Tensor, v_THd: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q_THd, k_THd, v_THd, plan, dropout_p)


def cross_attention(
    q_SQHd: torch.Tensor, k_IMHd: torch.Tensor, v_IMHd: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q_SQHd, k_IMHd, v_IMHd))
    return _attend(q, k, v, plan, dropout_p).reshape(q_SQHd.shape)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, dropout_p: float
) -> torch.Tensor:
    assert dropout_p == 0, "the dispatcher refuses dropout"
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out: torch.Tensor = _function()(q, k, v, block_mask=_block_mask(plan, q.shape[2], k.shape[2], q.device))
    return out[0].transpose(0, 1)


@lru_cache(maxsize=1)
def _function() -> Callable[..., Any]:
    # In one graph or not at all: uncompiled, it would compute the dense matrix of all packed tokens without a word.
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)

    def call(*arguments: Any, **keywords: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            return compiled(*arguments, **keywords)

    return call


def _block_mask(plan: Plan | CrossPlan, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
    key = ("flex.mask", str(device))
    if key not in plan.derived:
        plan.derived[key] = build_block_mask(plan, num_queries, num_keys, device)
    return plan.derived[key]


def build_block_mask(plan: Plan | CrossPlan, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
    """Return the plan as flex's block mask: two key intervals per row, and for each block of rows the blocks of keys
    that they touch.
    """
    runs = runs_of(plan)
    q0, qn, k0, kn, k1, k1n, cm = runs[runs[:, 1] > 0].T
    row = np.arange(qn.sum()) - np.repeat(np.cumsum(qn) - qn, qn)  # of each row, its number in its run
    at = np.repeat(q0, qn) + row
    ends = np.zeros((4, num_queries), np.int64)
    ends[0, at], ends[1, at], ends[2, at] = (np.repeat(edge, qn) for edge in (k0, k0 + kn, k1))
    ends[3, at] = np.repeat(k1, qn) + np.minimum(np.repeat(k1n, qn), row + np.repeat(cm, qn))
    # Every interval of every run touches a rectangle of blocks: its corners, summed along both axes.
    corners = np.zeros((-(-num_queries // _BLOCK) + 1, -(-num_keys // _BLOCK) + 1), np.int32)
    for start, length in ((k0, kn), (k1, k1n)):
        some = length > 0
        top, bottom = q0[some] // _BLOCK, (q0 + qn - 1)[some] // _BLOCK + 1
        left, right = start[some] // _BLOCK, (start + length - 1)[some] // _BLOCK + 1
        for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
            np.add.at(corners, (rows, columns), sign)
    touched = corners.cumsum(0).cumsum(1)[:-1, :-1] > 0
    counts = touched.sum(1).astype(np.int32)
    row_blocks, key_blocks = touched.nonzero()
    indices = np.zeros(touched.shape, np.int32)
    indices[row_blocks, np.arange(len(row_blocks)) - np.repeat(np.cumsum(counts) - counts, counts)] = key_blocks
    first, first_end, second, second_end = torch.from_numpy(ends.astype(np.int32)).to(device)
    exists = key_exists_of(plan)
    exists = None if exists is None else exists.to(device)

    def sees(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        seen = (column >= first[row]) & (column < first_end[row])
        seen = seen | ((column >= second[row]) & (column < second_end[row]))
        return seen if exists is None else seen & exists[column]

    return BlockMask.from_kv_blocks(
        torch.from_numpy(counts)[None, None].to(device),
        torch.from_numpy(indices)[None, None].to(device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(num_queries, num_keys),
    )
