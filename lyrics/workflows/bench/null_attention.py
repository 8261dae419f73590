"""Attention without a kernel: everything that the Triton implementation does on the host, and nothing on the device.

Takes the place of every implementation in ``lyrics.kernels.attention.replaced_by``. Results have the right shapes and any values.
"""

from __future__ import annotations

from typing import Any

import torch

from lyrics.kernels import CrossPlan, Plan
from lyrics.kernels._triton_configs import SHIPPED, key_of
from lyrics.kernels.tiles import tiles_of


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, dropout_p: float
) -> torch.Tensor:
    config = SHIPPED[key_of(q, plan, dropout_p > 0)]
    tiles_of(plan, config.row_block, config.key_block, config.row_step, q.device)
    out: torch.Tensor = _Nothing.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


def segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q, k, v, plan, dropout_p)


def cross_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q, k, v, plan, dropout_p)
