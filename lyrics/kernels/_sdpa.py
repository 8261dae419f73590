"""Both attentions on torch's scaled_dot_product_attention.

Runs of query rows that see the same keys form a block; blocks of like size are gathered into a bucket, padded to its
longest, and one call serves the bucket. The backward pass gathers again and recomputes the bucket's attention instead
of keeping padded copies, and sums the gradients of a key seen by several blocks in a fixed order, without atomics.

With dropout, SDPA cannot be told which entries to drop, so the bucket is computed plainly with the keyed mask of
``hashing``: the same entries fall as in the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.hashing import dropout_keep
from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import Plan
from lyrics.kernels.upload import to_device

#: A bucket may compute at most this many times the pairs it needs.
_MAX_WASTE = 1.35


def segment_attention(
    q_THd: torch.Tensor, k_THd: torch.Tensor, v_THd: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    buckets = _buckets(plan, q_THd.device)
    out: torch.Tensor = _PackedAttention.apply(q_THd, k_THd, v_THd, buckets, plan, dropout_p, seed)
    return out


def cross_attention(
    q_SQHd: torch.Tensor, k_IMHd: torch.Tensor, v_IMHd: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    """Sets of one image are put side by side, so that its keys are read once. Images with as many readers share a call;
    on a CPU unequal ones are called one by one, which needs no copy of their keys.
    """
    _, num_queries, num_heads, width = q_SQHd.shape
    sets = _sets_by_image(plan, q_SQHd.device)
    order = sets.order
    sorted_q = q_SQHd.index_select(0, order)
    row_id = plan.row_id_SQ.index_select(0, order) if dropout_p > 0 else None
    pieces = []
    first = 0
    k_images, v_images = None, None
    for images, count in sets.runs:
        rows = (images.stop - images.start) * count
        if count:
            if images == slice(0, plan.num_images):
                k, v = k_IMHd, v_IMHd
            else:
                if (
                    k_images is None or v_images is None
                ):  # unbind: its backward is one stack, not a zero tensor per image
                    k_images, v_images = k_IMHd.unbind(0), v_IMHd.unbind(0)
                if images.stop - images.start == 1:
                    k, v = k_images[images.start][None], v_images[images.start][None]
                else:
                    k, v = torch.stack(k_images[images]), torch.stack(v_images[images])
            q = sorted_q[first : first + rows].view(-1, count * num_queries, num_heads, width)
            keep = None
            if row_id is not None:
                ids = row_id[first : first + rows].view(-1, count * num_queries)
                keep = dropout_keep(ids, plan.col_id_M.expand(ids.shape[0], -1), num_heads, seed, dropout_p)
            mask = plan.key_mask_for(images)
            out = _attend(q, k, v, None if mask is None else mask[:, None, None, :], keep, dropout_p)
            if (keyless_I := plan.keyless_I) is not None:
                out = out * ~keyless_I[images, None, None, None]
            pieces.append(out.reshape(rows, num_queries, num_heads, width))
        first += rows
    return torch.cat(pieces).index_select(0, sets.inverse) if pieces else q_SQHd


@dataclass(frozen=True)
class _Sets:
    """Query sets sorted by image (``order``, and back by ``inverse``), and ``_image_runs``."""

    order: torch.Tensor
    inverse: torch.Tensor
    runs: list[tuple[slice, int]]


def _sets_by_image(plan: CrossPlan, device: torch.device) -> _Sets:
    """Computed once per plan and device."""
    key = ("sdpa.sets", str(device))
    if key not in plan.derived:
        order = np.argsort(plan.image_index_S.numpy(), kind="stable")
        there = to_device((order, np.argsort(order)), device)
        plan.derived[key] = _Sets(there[0], there[1], _image_runs(plan.counts_I, plan.num_images, device))
    found: _Sets = plan.derived[key]
    return found


def _image_runs(counts: Sequence[int], num_images: int, device: torch.device) -> list[tuple[slice, int]]:
    """Consecutive images read by equally many sets (on a CPU: all images, or one by one)."""
    if len(set(counts)) == 1:
        return [(slice(0, num_images), counts[0])]
    if device.type == "cpu":
        return [(slice(i, i + 1), count) for i, count in enumerate(counts)]
    runs: list[tuple[slice, int]] = []
    for i, count in enumerate(counts):
        if runs and runs[-1][1] == count:
            runs[-1] = (slice(runs[-1][0].start, i + 1), count)
        else:
            runs.append((slice(i, i + 1), count))
    return runs


def _attend(
    q_RLHd: torch.Tensor,
    k_RMHd: torch.Tensor,
    v_RMHd: torch.Tensor,
    mask: torch.Tensor | None,
    keep: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """Attention of every batch row with itself: [R, L, H, d]. ``mask`` leaves every query row at least one key."""
    q, k, v = q_RLHd.transpose(1, 2), k_RMHd.transpose(1, 2), v_RMHd.transpose(1, 2)
    if keep is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1) * keep / (1.0 - dropout_p)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


@dataclass(frozen=True)
class _Bucket:
    """R blocks of at most L query rows and M keys each, as indices into the packed sequence (padding
    points at row 0).
    """

    q_index: torch.Tensor
    k_index: torch.Tensor
    shape: tuple[int, int, int]
    mask: torch.Tensor | None
    q_valid: torch.Tensor | None


@dataclass(frozen=True)
class _Buckets:
    buckets: tuple[_Bucket, ...]
    q_inverse: torch.Tensor
    """For each query row, its row in the buckets' outputs, concatenated; one past the end for a row without keys."""
    k_inverse: torch.Tensor
    """The same for the first block that sees each key."""
    k_repeats: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """(keys, rows): further blocks that see those keys; each key at most once per entry."""


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        buckets: _Buckets,
        plan: Plan,
        dropout_p: float,
        seed: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rest = (buckets, plan, dropout_p, seed)
        outs = []
        for bucket in buckets.buckets:
            q_RLHd, k_RMHd, v_RMHd = _gather(bucket, q, k, v)
            keep = _keep(bucket, plan, q.shape[1], dropout_p, seed)
            outs.append(_attend(q_RLHd, k_RMHd, v_RMHd, bucket.mask, keep, dropout_p).reshape(-1, *q.shape[1:]))
        return _scatter(outs, buckets.q_inverse, q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        buckets, plan, dropout_p, seed = ctx.rest
        grad = grads[0]
        dq: list[torch.Tensor] = []
        dk: list[torch.Tensor] = []
        dv: list[torch.Tensor] = []
        for bucket in buckets.buckets:
            inputs = [x.requires_grad_() for x in _gather(bucket, q, k, v)]
            keep = _keep(bucket, plan, q.shape[1], dropout_p, seed)
            rows, length, _ = bucket.shape
            grad_RLHd = grad.index_select(0, bucket.q_index).view(rows, length, *q.shape[1:])
            if bucket.q_valid is not None:
                grad_RLHd = grad_RLHd * bucket.q_valid
            with torch.enable_grad():
                out = _attend(inputs[0], inputs[1], inputs[2], bucket.mask, keep, dropout_p)
            for pieces, piece in zip((dq, dk, dv), torch.autograd.grad(out, inputs, grad_RLHd), strict=True):
                pieces.append(piece.reshape(-1, *q.shape[1:]))
        grad_k, grad_v = (_scatter(pieces, buckets.k_inverse, k, buckets.k_repeats) for pieces in (dk, dv))
        return _scatter(dq, buckets.q_inverse, q), grad_k, grad_v, None, None, None, None


def _gather(bucket: _Bucket, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, length, keys = bucket.shape
    return (
        q.index_select(0, bucket.q_index).view(rows, length, *q.shape[1:]),
        k.index_select(0, bucket.k_index).view(rows, keys, *k.shape[1:]),
        v.index_select(0, bucket.k_index).view(rows, keys, *v.shape[1:]),
    )


def _scatter(
    pieces: Sequence[torch.Tensor],
    inverse: torch.Tensor,
    like: torch.Tensor,
    repeats: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> torch.Tensor:
    """Bucket rows back to packed rows: a gather, plus the rows of keys that several blocks see."""
    rows = torch.cat([*pieces, like.new_zeros(1, *like.shape[1:])])
    out = rows.index_select(0, inverse)
    for keys, sources in repeats:
        out.index_add_(0, keys, rows.index_select(0, sources))
    return out


def _keep(bucket: _Bucket, plan: Plan, num_heads: int, dropout_p: float, seed: int) -> torch.Tensor | None:
    if dropout_p == 0:
        return None
    rows, length, keys = bucket.shape
    row_id = plan.row_id_T[bucket.q_index].view(rows, length)
    return dropout_keep(row_id, plan.col_id_T[bucket.k_index].view(rows, keys), num_heads, seed, dropout_p)


def _buckets(plan: Plan, device: torch.device) -> _Buckets:
    key = ("sdpa.buckets", str(device))
    if key not in plan.derived:
        plan.derived[key] = _build_buckets(plan, device)
    found: _Buckets = plan.derived[key]
    return found


@dataclass(frozen=True)
class _Block:
    """Query rows that see the same keys; ``causal`` is (keys seen by all, cm) for the one run of rows of a causal
    block.
    """

    rows: np.ndarray
    keys: np.ndarray
    causal: tuple[int, int] | None


def _blocks(plan: Plan) -> list[_Block]:
    alike: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    causal = []
    for q0, qn, k0, kn, k1, k1n, cm in plan.table.tolist():
        if kn + k1n == 0:
            continue
        if cm >= k1n:
            parts = sorted((start, length) for start, length in ((k0, kn), (k1, k1n)) if length)
            alike.setdefault(tuple(number for part in parts for number in part), []).append((q0, qn))
        else:
            keys = np.r_[k0 : k0 + kn, k1 : k1 + k1n]
            causal.append(_Block(np.arange(q0, q0 + qn), keys, (kn, cm)))
    plain = [
        _Block(
            np.concatenate([np.arange(q0, q0 + qn) for q0, qn in runs]),
            np.concatenate([np.arange(s, s + n) for s, n in zip(keys[::2], keys[1::2], strict=True)]),
            None,
        )
        for keys, runs in alike.items()
    ]
    return plain + causal


def _group(blocks: Sequence[_Block], is_full: Callable[[int, int, int, int], bool]) -> list[list[_Block]]:
    groups: list[list[_Block]] = []
    current: list[_Block] = []
    needed = longest = widest = 0
    for block in sorted(blocks, key=lambda b: (b.causal is not None, len(b.keys), len(b.rows))):
        pairs, length, width = len(block.rows) * len(block.keys), len(block.rows), len(block.keys)
        grown = is_full(needed + pairs, max(longest, length), max(widest, width), len(current) + 1)
        if current and (grown or (current[0].causal is None) != (block.causal is None)):
            groups.append(current)
            current, needed, longest, widest = [], 0, 0, 0
        current.append(block)
        needed, longest, widest = needed + pairs, max(longest, length), max(widest, width)
    return [*groups, current] if current else groups


@host_work("tiles")
def _build_buckets(plan: Plan, device: torch.device) -> _Buckets:
    groups = _group(_blocks(plan), lambda pairs, longest, widest, count: longest * widest * count > _MAX_WASTE * pairs)
    buckets = []
    q_inverse = np.full(plan.num_queries, -1, np.int64)
    key_rows: list[tuple[np.ndarray, np.ndarray]] = []
    q_base = k_base = 0
    for group in groups:
        count, longest, widest = len(group), max(len(b.rows) for b in group), max(len(b.keys) for b in group)
        q_index = np.zeros((count, longest), np.int64)
        k_index = np.zeros((count, widest), np.int64)
        q_valid = np.zeros((count, longest), bool)
        mask = np.zeros((count, longest if group[0].causal else 1, widest), bool)
        for i, block in enumerate(group):
            rows, keys = len(block.rows), len(block.keys)
            q_index[i, :rows], k_index[i, :keys], q_valid[i, :rows] = block.rows, block.keys, True
            q_inverse[block.rows] = q_base + i * longest + np.arange(rows)
            key_rows.append((block.keys, k_base + i * widest + np.arange(keys)))
            mask[i, :, :keys] = True
            if block.causal is not None:
                common, cm = block.causal
                seen = np.arange(keys)[None, :] - common < np.arange(longest)[:, None] + cm
                mask[i, :, :keys] = seen
                mask[i, rows:, 0] = True
        buckets.append(
            _Bucket(
                torch.from_numpy(q_index.reshape(-1)).to(device),
                torch.from_numpy(k_index.reshape(-1)).to(device),
                (count, longest, widest),
                None if mask.all() else torch.from_numpy(mask[:, None]).to(device),
                None if q_valid.all() else torch.from_numpy(q_valid[:, :, None, None]).to(device),
            )
        )
        q_base += count * longest
        k_base += count * widest
    q_inverse[q_inverse < 0] = q_base
    k_inverse = np.full(plan.num_keys, k_base, np.int64)
    repeats = []
    if key_rows:
        all_keys, all_rows = (np.concatenate(parts) for parts in zip(*key_rows, strict=True))
        order = np.argsort(all_keys, kind="stable")
        all_keys, all_rows = all_keys[order], all_rows[order]
        firsts = np.r_[0, np.flatnonzero(np.diff(all_keys)) + 1]
        turn = np.arange(len(all_keys)) - np.repeat(firsts, np.diff(np.r_[firsts, len(all_keys)]))
        k_inverse[all_keys[turn == 0]] = all_rows[turn == 0]
        for i in range(1, int(turn.max()) + 1):
            repeats.append(
                (torch.from_numpy(all_keys[turn == i]).to(device), torch.from_numpy(all_rows[turn == i]).to(device))
            )
    return _Buckets(
        tuple(buckets), torch.from_numpy(q_inverse).to(device), torch.from_numpy(k_inverse).to(device), tuple(repeats)
    )
