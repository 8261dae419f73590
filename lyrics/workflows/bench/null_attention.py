"""Attention without a kernel: everything that the Triton implementation does on the host, and nothing on the device.

Takes the place of every implementation in ``lyrics.kernels.attention.replaced_by``. Results have the right shapes and
any values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lyrics.kernels import CrossPlan, Plan
from lyrics.kernels._triton_configs import DTYPES, HEAD_DIMS, SHIPPED, Config, key_of
from lyrics.kernels.tiles import HostTiles, host_tiles, tiles_of


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


def _config(
    plan: Plan | CrossPlan, device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float
) -> Config:
    """What is shipped for such a case; a head dimension that the kernels do not take counts as the next one."""
    head_dim = next((one for one in HEAD_DIMS if one >= head_dim), HEAD_DIMS[-1])
    return SHIPPED[key_of(plan, device, dtype if dtype in DTYPES else DTYPES[-1], head_dim, dropout_p > 0)]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, dropout_p: float
) -> torch.Tensor:
    config = _config(plan, q.device, q.dtype, q.shape[-1], dropout_p)
    tiles_of(plan, config.row_block, config.key_block, config.row_step, q.device)
    out: torch.Tensor = _Nothing.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


def _host_tables(
    plan: Plan | CrossPlan, device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float
) -> HostTiles:
    config = _config(plan, device, dtype, head_dim, dropout_p)
    return host_tiles(plan, config.row_block, config.key_block, config.row_step)


def host_tables(
    device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float
) -> Callable[[Plan | CrossPlan], HostTiles]:
    return partial(_host_tables, device=device, dtype=dtype, head_dim=head_dim, dropout_p=dropout_p)


def segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q, k, v, plan, dropout_p)


def cross_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    return _attend(q, k, v, plan, dropout_p)
