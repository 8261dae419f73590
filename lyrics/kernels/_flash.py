"""Both attentions on flash attention's variable-length kernels, in two calls: one for blocks of rows that see the same
keys, one for causal blocks, whose diagonal is flash attention's (it ends at the last row and the last key).

The kernels are flash-attn's where that package is installed, else torch's own build of them
(``torch.nn.attention.varlen``), which serves the same types and head dimensions.

Rows and keys are gathered into blocks, so a key seen by several blocks is copied, and its gradient is summed by an
atomic ``index_add``: this way is not deterministic. It has no dropout either: flash-attn's own depends on how the batch
is packed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import Block, Blocks, blocks_of, key_exists_of

if importlib.util.find_spec("flash_attn") is not None:
    from flash_attn import flash_attn_varlen_func as _varlen

    #: The last arguments of a call: whether row r sees all keys or, causally, all but the last (rows - 1 - r).
    _MASKS: dict[bool, dict[str, Any]] = {False: {}, True: {"causal": True}}
else:
    from torch.nn.attention.varlen import varlen_attn as _varlen

    _MASKS = {False: {}, True: {"window_size": (-1, 0)}}


@dataclass(frozen=True)
class _Call:
    """Blocks one after another: which rows and keys, where each block starts, and the longest."""

    rows: torch.Tensor
    keys: torch.Tensor
    row_starts: torch.Tensor
    key_starts: torch.Tensor
    most_rows: int
    most_keys: int
    causal: bool


def segment_attention(
    q_THd: torch.Tensor, k_THd: torch.Tensor, v_THd: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q_THd, k_THd, v_THd, plan, dropout_p)


def cross_attention(
    q_SQHd: torch.Tensor, k_IMHd: torch.Tensor, v_IMHd: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q_SQHd, k_IMHd, v_IMHd))
    return _attend(q, k, v, plan, dropout_p).view(q_SQHd.shape)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, dropout_p: float
) -> torch.Tensor:
    assert dropout_p == 0, "the dispatcher refuses dropout"
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for call in _calls(plan, q.device):
        read = _varlen(
            q.index_select(0, call.rows),
            k.index_select(0, call.keys),
            v.index_select(0, call.keys),
            call.row_starts,
            call.key_starts,
            call.most_rows,
            call.most_keys,
            **_MASKS[call.causal],
        )
        out = out.index_copy(0, call.rows, read)
    return out


def _calls(plan: Plan | CrossPlan, device: torch.device) -> tuple[_Call, ...]:
    key = ("flash.calls", str(device))
    if key not in plan.derived:
        exists = key_exists_of(plan)
        mask = None if exists is None else exists.cpu().numpy()
        grouped = blocks_of(plan)
        calls = [
            _call(grouped, [b for b in grouped.blocks if b.causal == causal], mask, causal, device)
            for causal in (False, True)
        ]
        plan.derived[key] = tuple(call for call in calls if call is not None)
    found: tuple[_Call, ...] = plan.derived[key]
    return found


def _call(
    grouped: Blocks, blocks: list[Block], mask: np.ndarray | None, causal: bool, device: torch.device
) -> _Call | None:
    rows, keys = [], []
    for b in blocks:
        seen = np.r_[b.k0 : b.k0 + b.kn, b.k1 : b.k1 + b.k1n]
        if mask is not None:
            seen = seen[mask[seen]]
        if len(seen):
            rows.append(grouped.rows[b.first : b.first + b.length])
            keys.append(seen)
            # Row r sees the first kn + cm + r keys; flash-attn lets it see all but the last (rows - 1 - r).
            assert not causal or b.cm + b.length - 1 == b.k1n, "a causal block ends at its last row's last key"
    if not rows:
        return None
    most_rows, most_keys = (max(len(part) for part in parts) for parts in (rows, keys))
    return _Call(
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(np.concatenate(keys)).to(device),
        _starts(rows, device),
        _starts(keys, device),
        most_rows,
        most_keys,
        causal,
    )


def _starts(parts: list[np.ndarray], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)).to(device)
