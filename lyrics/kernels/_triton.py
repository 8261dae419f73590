"""Both attentions in Triton: tables, launches, and the custom operations that autograd and torch.compile see.

The two attentions are one kernel: cross-attention is segment attention over the keys of all images in one sequence, in which all query
sets of an image are one block of rows. See ``tiles`` for the tables and ``_triton_kernels`` for the arithmetic.

Needs a CUDA device of compute capability 8.0 or more. With ``TRITON_INTERPRET=1`` in the environment before triton is first imported, the
kernels run on CPU tensors instead, slowly; that is how they are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
import triton

from lyrics.kernels import _triton_kernels as kernels
from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import Tiles, tiles_of

#: Whether the kernels were decorated for the interpreter.
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Config:
    """Tile sizes (powers of two, at least 16) and how a program is run.

    The forward pass and dQ take ``row_block`` rows and walk over ``key_step`` keys at a time; dK and dV take ``key_block`` keys and walk
    over at most ``row_step`` rows at a time.
    """

    row_block: int
    key_step: int
    key_block: int
    row_step: int
    num_warps: int
    num_stages: int


#: (compute capability's first digit, head dimension, bytes per number) -> configuration. Chosen for fit to 64-256 tokens and by what
#: ptxas says of registers, spills and shared memory (docs/kernels.md); nothing here was timed.
CONFIGS: Mapping[tuple[int, int, int], Config] = {
    (8, 32, 2): Config(64, 32, 64, 32, 4, 2),
    (8, 64, 2): Config(64, 32, 32, 32, 4, 2),
    (8, 128, 2): Config(64, 32, 64, 32, 8, 2),
    (8, 32, 4): Config(32, 32, 32, 32, 4, 2),
    (8, 64, 4): Config(32, 32, 32, 32, 4, 2),
    (8, 128, 4): Config(32, 16, 32, 16, 8, 2),
    (9, 32, 2): Config(64, 32, 64, 32, 4, 2),
    (9, 64, 2): Config(64, 32, 64, 32, 4, 2),
    (9, 128, 2): Config(64, 32, 64, 32, 8, 2),
    (9, 32, 4): Config(32, 32, 32, 32, 4, 2),
    (9, 64, 4): Config(32, 32, 32, 32, 4, 2),
    (9, 128, 4): Config(32, 16, 32, 16, 8, 2),
}

#: What ``lyrics bench attention`` tries on a GPU beside the shipped configurations, at the paper's head dimension of 64.
CANDIDATES = (
    Config(32, 32, 32, 32, 4, 2),
    Config(64, 32, 32, 32, 4, 2),
    Config(64, 32, 64, 32, 4, 2),
    Config(64, 64, 64, 32, 4, 2),
    Config(64, 64, 32, 64, 8, 2),
    Config(64, 32, 64, 32, 8, 3),
)


def config_for(q: torch.Tensor) -> Config:
    """The shipped configuration for this tensor's device, head dimension and type; generations after Hopper take Hopper's."""
    major = torch.cuda.get_device_capability(q.device)[0] if q.is_cuda else 8
    return CONFIGS[min(major, 9), q.shape[-1], q.element_size()]


def segment_attention(
    q_THd: torch.Tensor,
    k_THd: torch.Tensor,
    v_THd: torch.Tensor,
    plan: Plan,
    *,
    dropout_p: float,
    seed: int,
    config: Config | None = None,
) -> torch.Tensor:
    return _attend(q_THd, k_THd, v_THd, plan, dropout_p, seed, config)


def cross_attention(
    q_SQHd: torch.Tensor,
    k_IMHd: torch.Tensor,
    v_IMHd: torch.Tensor,
    plan: CrossPlan,
    *,
    dropout_p: float,
    seed: int,
    config: Config | None = None,
) -> torch.Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q_SQHd, k_IMHd, v_IMHd))
    return _attend(q, k, v, plan, dropout_p, seed, config).view(q_SQHd.shape)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan | CrossPlan,
    dropout_p: float,
    seed: int,
    config: Config | None,
) -> torch.Tensor:
    config = config or config_for(q)
    tiles = tiles_of(plan, config.row_block, config.key_block, config.row_step, q.device)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out: torch.Tensor
    out, _ = attention_op(q, k, v, *_tables(tiles), dropout_p, _signed(seed, 64), list(astuple(config)))
    return out


def _tables(tiles: Tiles) -> tuple[Any, ...]:
    return (
        tiles.rows,
        tiles.row_tiles,
        tiles.cols,
        tiles.key_tiles,
        tiles.entries,
        tiles.row_id,
        tiles.col_id,
        tiles.key_exists,
    )


# --- the custom operations -------------------------------------------------------------------------------------------


@torch.library.custom_op("lyrics::attention", mutates_args=())
def attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    row_tiles: torch.Tensor,
    cols: torch.Tensor,
    key_tiles: torch.Tensor,
    entries: torch.Tensor,
    row_id: torch.Tensor,
    col_id: torch.Tensor,
    key_exists: torch.Tensor | None,
    dropout_p: float,
    seed: int,
    config: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [T, H, d], k and v [K, H, d] -> out [T, H, d] and fp32 log2-sum-exp [H, T]. The tables are those of ``tiles.Tiles``."""
    out, lse = _new_out(q, whole=len(rows) == len(q))
    if len(row_tiles):
        row_block, key_step, _, _, num_warps, num_stages = config
        with torch.cuda.device_of(q):
            kernels.forward[(len(row_tiles), q.shape[1])](
                *(q, k, v, out, lse, rows, row_tiles, row_id, col_id, _pointer(key_exists, rows)),
                *_strides(q, k, v),
                len(q),
                q.shape[-1] ** -0.5 * 1.4426950408889634,
                *_dropout(dropout_p, seed),
                **_constants(q, row_block, key_step, dropout_p, key_exists),
                num_warps=num_warps,
                num_stages=num_stages,
            )
    return out, lse


@attention_op.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return _new_out(q, whole=True)


@torch.library.custom_op("lyrics::attention_backward", mutates_args=())
def attention_backward_op(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rows: torch.Tensor,
    row_tiles: torch.Tensor,
    cols: torch.Tensor,
    key_tiles: torch.Tensor,
    entries: torch.Tensor,
    row_id: torch.Tensor,
    col_id: torch.Tensor,
    key_exists: torch.Tensor | None,
    dropout_p: float,
    seed: int,
    config: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, contiguous."""
    grad = grad.contiguous()
    delta = torch.empty_like(lse)
    dq = _new(q, whole=len(rows) == len(q))
    dk, dv = (_new(x, whole=len(cols) == len(x)) for x in (k, v))
    row_block, key_step, key_block, row_step, num_warps, num_stages = config
    shared = (*_strides(q, k, v), len(q), q.shape[-1] ** -0.5, *_dropout(dropout_p, seed))
    exists = _pointer(key_exists, rows)
    if len(row_tiles):
        with torch.cuda.device_of(q):
            kernels.grad_q[(len(row_tiles), q.shape[1])](
                *(q, k, v, out, lse, grad, dq, delta, rows, row_tiles, row_id, col_id, exists),
                *shared,
                **_constants(q, row_block, key_step, dropout_p, key_exists),
                num_warps=num_warps,
                num_stages=num_stages,
            )
            kernels.grad_kv[(len(key_tiles), q.shape[1])](
                *(q, k, v, lse, delta, grad, dk, dv, rows, cols, key_tiles, entries, row_id, col_id, exists),
                *shared,
                **_constants(q, row_step, key_block, dropout_p, key_exists),
                num_warps=num_warps,
                num_stages=num_stages,
            )
    return dq, dk, dv


@attention_backward_op.register_fake
def _(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _new(q, whole=True), _new(k, whole=True), _new(v, whole=True)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    tensors, (ctx.dropout_p, ctx.seed, ctx.config) = inputs[:-3], inputs[-3:]
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    out, lse, q, k, v, *tables = ctx.saved_tensors
    nothing = (None,) * (len(tables) + 3)
    grads = attention_backward_op(grad, q, k, v, out, lse, *tables, ctx.dropout_p, ctx.seed, ctx.config)
    return (*grads, *nothing)


attention_op.register_autograd(_backward, setup_context=_setup_context)


# --- arguments of a launch -------------------------------------------------------------------------------------------


def _new(like: torch.Tensor, whole: bool) -> torch.Tensor:
    """A contiguous result; zeros where the tiles do not write all of it."""
    make = torch.empty if whole else torch.zeros
    return make(like.shape, dtype=like.dtype, device=like.device)


def _new_out(q: torch.Tensor, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return _new(q, whole), torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _pointer(key_exists: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    return unused if key_exists is None else key_exists


def _dropout(dropout_p: float, seed: int) -> tuple[int, int, int, float]:
    """seed_low, seed_high, threshold, keep_scale as ``hashing.dropout_keep`` takes them from the seed and the probability."""
    threshold = min(round(dropout_p * 2**32), _MASK)
    return _signed(seed, 32), _signed(seed >> 32, 32), _signed(threshold, 32), 1.0 / (1.0 - dropout_p)


def _signed(bits: int, width: int) -> int:
    bits &= 2**width - 1
    return bits - 2**width if bits >= 2 ** (width - 1) else bits


def _constants(
    q: torch.Tensor, rows: int, keys: int, dropout_p: float, key_exists: torch.Tensor | None
) -> dict[str, int | bool]:
    return {
        "D": q.shape[-1],
        "M": rows,
        "N": keys,
        "DROPOUT": dropout_p > 0,
        "KEY_MASK": key_exists is not None,
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,
    }
