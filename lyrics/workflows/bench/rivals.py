"""The rivals of ``lyrics bench attention`` that come for free: one padded and masked pass per objective (segment) or
per query set (cross).

``dense`` is torch's scaled_dot_product_attention, ``dense-efficient`` and so on the same with one of its back-ends
pinned, and ``eager`` the formula in plain operations, as BERT implementations write it.

Letters: B samples, H heads, d width of a head, L padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lyrics.kernels import ImplementationError, Layout, cross_attention, segment_attention
from lyrics.workflows.bench.work import (
    CROSS_SETS,
    PASSES,
    STREAMS,
    Case,
    WorkSizes,
    cross_sets,
    packed_streams,
    random_tensors,
)

BACKENDS: Mapping[str, SDPBackend] = {
    "dense-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "dense-cudnn": SDPBackend.CUDNN_ATTENTION,
    "dense-flash": SDPBackend.FLASH_ATTENTION,
    "dense-math": SDPBackend.MATH,
}
RIVALS = ("dense", *BACKENDS, "eager")
#: A rival's output may be off by this much; it is nobody's reference.
LIMITS: Mapping[str, float] = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}


def pinned(rival: str) -> AbstractContextManager[object]:
    """Within it torch's attention uses the back-end that the rival is named after, or fails."""
    return sdpa_kernel(BACKENDS[rival]) if rival in BACKENDS else nullcontext()


def attend(
    rival: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout_p: float
) -> torch.Tensor:
    """Return one padded pass: q, k, v [B, L, H, d], mask bool [L, L] (padding sees token 0, lest a softmax be
    over nothing).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if rival != "eager":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p).transpose(1, 2)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return (F.dropout(weights, dropout_p) @ v).transpose(1, 2)


def pass_positions(layout: Layout, sizes: WorkSizes, batch: int, name: str) -> torch.Tensor:
    """Return where the tokens of a padded pass (V, G, S, C) lie in the packed sequence: [B, L], -1 for padding.

    Lengths must be padded ones.
    """
    groups = PASSES[name]
    columns = []
    lengths = (sizes.visual, sizes.grounding, *sizes.padded)
    for segment, length in zip("VGSC", lengths, strict=True):
        group = next((g for g in groups if segment in STREAMS[g][0]), None)
        found = torch.full((batch, length), -1) if group is None else layout.positions(group, segment).view(batch, -1)
        columns.append(found)
    return torch.cat(columns, dim=1)


def pass_masks(sizes: WorkSizes) -> dict[str, torch.Tensor]:
    """Return the mask of each padded pass, bool [L, L], the same for every sample."""
    layout, plan = packed_streams(sizes, "padded", 1)
    dense = plan.dense_mask()
    masks = {}
    for name in PASSES:
        at = pass_positions(layout, sizes, 1, name)[0]
        mask = dense[at[:, None], at[None, :]] & (at >= 0)[:, None] & (at >= 0)[None, :]
        mask[at < 0, 0] = True
        masks[name] = mask
    return masks


@dataclass(frozen=True)
class Work:
    """All passes of a rival: how to run them, their leaves, and the gradients of their outputs."""

    run: Callable[[], list[torch.Tensor]]
    leaves: list[torch.Tensor]
    grads: list[torch.Tensor]


def work_of(rival: str, case: Case, device: str) -> Work:
    """Raise
    Raises:
        ImplementationError: torch's flash kernels take no mask.
    """
    sizes = case.sizes
    if case.op == "cross":
        q_shape = (case.batch, sizes.visual, sizes.heads, sizes.width)
        k_shape = (case.batch, sizes.image_tokens, sizes.heads, sizes.width)
        sets = [random_tensors((q_shape, k_shape, k_shape, q_shape), case.dtype, device) for _ in range(CROSS_SETS)]
        k, v = sets[0][1:3]
        queries = [q for q, *_ in sets]
        return Work(
            lambda: _cross_passes(rival, queries, k, v, case.dropout_p),
            [*queries, k, v],
            [grad for *_, grad in sets],
        )
    if rival == "dense-flash":
        raise ImplementationError("torch's flash kernels take no mask.")
    length = sizes.visual + sizes.grounding + sum(sizes.padded)
    shape = (case.batch, length, sizes.heads, sizes.width)
    passes = [random_tensors([shape] * 4, case.dtype, device) for _ in PASSES]
    masks = [mask.to(device) for mask in pass_masks(sizes).values()]

    def run() -> list[torch.Tensor]:
        return [attend(rival, q, k, v, mask, case.dropout_p) for (q, k, v, _), mask in zip(passes, masks, strict=True)]

    return Work(run, [leaf for *qkv, _ in passes for leaf in qkv], [grad for *_, grad in passes])


def _cross_passes(
    rival: str, queries: list[torch.Tensor], k: torch.Tensor, v: torch.Tensor, dropout_p: float
) -> list[torch.Tensor]:
    """Every query set reads its own image, but for the last, which reads the next sample's: a copy of keys
    and values.
    """
    other = ((torch.arange(len(k)) + 1) % len(k)).to(k.device)
    own = [attend(rival, q, k, v, None, dropout_p) for q in queries[:-1]]
    return [*own, attend(rival, queries[-1], k[other], v[other], None, dropout_p)]


def error_of(rival: str, case: Case, device: str) -> float:
    """Return the rival against the definition in float64 on two samples: greatest error of the outputs. Without
    dropout, since torch draws its own.
    """
    sizes, worst = case.sizes, 0.0
    if case.op == "cross":
        plan = cross_sets(sizes, 2, device)
        shapes = [(*plan.row_id_SQ.shape, 2, sizes.width)] + [(2, sizes.image_tokens, 2, sizes.width)] * 2
        q, k, v = (x.detach() for x in random_tensors(shapes, case.dtype, device))
        got = torch.cat(_cross_passes(rival, list(q.split(2)), k, v, 0.0))
        return float(
            (got.double() - cross_attention(q.double(), k.double(), v.double(), plan, impl="reference")).abs().max()
        )
    layout, packed = packed_streams(sizes, "padded", 2)
    q, k, v = (x.detach() for x in random_tensors([(packed.num_queries, 2, sizes.width)] * 3, case.dtype, device))
    want = segment_attention(q.double(), k.double(), v.double(), packed.to(device), impl="reference")
    for name, mask in pass_masks(sizes).items():
        at = pass_positions(layout, sizes, 2, name).to(device)
        index = at.clamp(min=0)
        got = attend(rival, q[index], k[index], v[index], mask.to(device), 0.0)
        worst = max(worst, float((got.double() - want[index])[at >= 0].abs().max()))
    return worst
