"""Both attentions on torch's flex_attention, compiled; the block mask comes from the plan's table, not from evaluating the mask everywhere.

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
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled


def _block_mask(plan: Plan | CrossPlan, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
    key = ("flex.mask", str(device))
    if key not in plan.derived:
        plan.derived[key] = build_block_mask(plan, num_queries, num_keys, device)
    return plan.derived[key]


def build_block_mask(plan: Plan | CrossPlan, num_queries: int, num_keys: int, device: torch.device) -> BlockMask:
    """The plan as flex's block mask: two key intervals per row, and for each block of rows the blocks of keys that they touch."""
    runs = runs_of(plan)
    ends = np.zeros((4, num_queries), np.int64)
    touched: list[set[int]] = [set() for _ in range(-(-num_queries // _BLOCK))]
    for q0, qn, k0, kn, k1, k1n, cm in runs.tolist():
        ends[0, q0 : q0 + qn], ends[1, q0 : q0 + qn] = k0, k0 + kn
        ends[2, q0 : q0 + qn] = k1
        ends[3, q0 : q0 + qn] = k1 + np.minimum(k1n, np.arange(qn) + cm)
        blocks = {
            b for start, n in ((k0, kn), (k1, k1n)) if n for b in range(start // _BLOCK, (start + n - 1) // _BLOCK + 1)
        }
        for row_block in range(q0 // _BLOCK, (q0 + qn - 1) // _BLOCK + 1):
            touched[row_block] |= blocks
    counts = np.array([len(blocks) for blocks in touched], np.int32)
    indices = np.zeros((len(touched), -(-num_keys // _BLOCK)), np.int32)
    for row_block, blocks in enumerate(touched):
        indices[row_block, : len(blocks)] = sorted(blocks)
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
