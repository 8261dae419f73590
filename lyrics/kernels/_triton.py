"""Both attentions in Triton: tables, launches, and the custom operations that autograd and torch.compile see.

The two attentions are one kernel: cross-attention is segment attention over the keys of all images in one sequence, in
which all query sets of an image are one block of rows. See ``tiles`` for the tables and ``_triton_kernels`` for the
arithmetic.

Needs a CUDA device of compute capability 8.0 or more. With ``TRITON_INTERPRET=1`` in the environment before triton is
first imported, the kernels run on CPU tensors instead, slowly; that is how they are tested without a GPU.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
import triton

from lyrics.kernels import _triton_kernels as kernels
from lyrics.kernels._triton_configs import CANDIDATES, SHIPPED, Config, Key, generation_of, key_of, length_of
from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import HostTiles, Tiles, host_tiles, tiles_of

#: Whether the kernels were decorated for the interpreter.
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
_MASK = 0xFFFFFFFF

#: ``LYRICS_AUTOTUNE=1`` in the environment: ``tune`` every case when it is first met, instead of using the shipped
#: configuration.
AUTOTUNE = os.environ.get("LYRICS_AUTOTUNE") == "1"
#: What that found in this process.
_tuned: dict[Key, Config] = {}


def tune(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, *, dropout_p: float, rounds: int = 10
) -> Config:
    """Return the fastest of the few configurations there are, forward and backward, on these tensors (as the two
    attentions take them).

    Another configuration sums in another order: its results differ in their last bits.
    """
    q, k, v = (x.detach().reshape(-1, *x.shape[-2:]).requires_grad_() for x in (q, k, v))

    def took(config: Config) -> float:
        def run() -> None:
            with torch.enable_grad():
                out = _attend(q, k, v, plan, dropout_p, 0, config)
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

        try:
            return _milliseconds(run, rounds)
        except triton.runtime.errors.OutOfResources:  # tiles for narrow heads and halves may not fit wide ones and fp32
            return float("inf")

    return min(
        dict.fromkeys((SHIPPED[key_of(plan, q.device, q.dtype, q.shape[-1], dropout_p > 0)], *CANDIDATES)), key=took
    )


def _milliseconds(run: Callable[[], object], rounds: int) -> float:
    """The median by CUDA events, after runs that compile and warm up."""
    found = []
    for turn in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if turn >= 2:
            found.append(start.elapsed_time(end))
    return statistics.median(found)


def _config_for(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan | CrossPlan, dropout_p: float) -> Config:
    key = key_of(plan, q.device, q.dtype, q.shape[-1], dropout_p > 0)
    # While a graph is captured or traced nothing can be timed.
    busy = torch.compiler.is_compiling() or (q.is_cuda and torch.cuda.is_current_stream_capturing())
    if AUTOTUNE and key not in _tuned and not busy:
        _tuned[key] = tune(q, k, v, plan, dropout_p=dropout_p)
    return _tuned.get(key, SHIPPED[key])


@dataclass(frozen=True)
class _HostTables:
    """Makes the tables that the attentions will read, in this process or in one that may not touch the device."""

    generation: int
    dtype: torch.dtype
    head_dim: int
    dropout: bool
    tuned: dict[Key, Config] = field(default_factory=dict)

    def __call__(self, plan: Plan | CrossPlan) -> HostTiles:
        key = Key(self.generation, self.dtype, self.head_dim, self.dropout, length_of(plan))
        config = self.tuned.get(key, SHIPPED[key])
        return host_tiles(plan, config.row_block, config.key_block, config.row_step)


def host_tables(device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float) -> _HostTables:
    """What makes the tables that the attentions will read for such tensors; see ``lyrics.kernels.attention.prepare``.

    The device is asked now and not again.
    """
    return _HostTables(generation_of(device), dtype, head_dim, dropout_p > 0, _tuned)


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
    if config is None:
        config = _config_for(q, k, v, plan, dropout_p)
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
    """Map q [T, H, d], k and v [K, H, d] -> out [T, H, d] and fp32 log2-sum-exp [H, T].

    The tables are those of ``tiles.Tiles``.
    """
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
    """Return the gradients of q, k and v, contiguous."""
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
    """seed_low, seed_high, threshold, keep_scale as ``hashing.dropout_keep`` takes them from the seed and the
    probability.
    """
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
