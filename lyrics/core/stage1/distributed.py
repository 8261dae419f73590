"""Collectives that stage 1 needs. With one process, or no process group, each of them is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist

from lyrics.core.stage1.streams import Text
from lyrics.kernels.upload import to_device_soon


class SharedOut(Protocol):
    """A language model that is shared out over the ranks, which run it together.

    See ``lyrics.core.training.sharding.Shards``.
    """

    def catch_up(self) -> None:
        """To be called by all ranks in an evaluation, before they exchange what each has found.

        A rank that is done with its own samples helps the others with theirs.
        """
        ...


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All ranks' rows, rank after rank.

    Every rank's loss depends on every row, so the backward pass sums over ranks.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.size = rows.shape[0]
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        summed = grads[0].contiguous()
        dist.all_reduce(summed)
        return summed[rank() * ctx.size : (rank() + 1) * ctx.size]


def gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """[B, ...] of every rank -> [world B, ...]; B must be the same on all ranks."""
    return rows if world_size() == 1 else cast(torch.Tensor, _Gather.apply(rows))  # type: ignore[no-untyped-call]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the same without gradient."""
    if world_size() == 1:
        return rows
    as_bytes = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    found = [torch.empty_like(as_bytes) for _ in range(world_size())]
    dist.all_gather(found, as_bytes.contiguous())
    return torch.cat(found).to(rows.dtype)


def gather_padded(rows: torch.Tensor) -> torch.Tensor:
    """[B, L, ...] with L different per rank -> [world B, longest L, ...], zeros after each rank's own L."""
    if world_size() == 1:
        return rows
    longest = torch.tensor([rows.shape[1]], device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - rows.shape[1]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(rows.shape[0], missing, *rows.shape[2:])], dim=1)
    return gather(rows)


def fetch_rows(tensors: Sequence[torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor]:
    """Get some rows of other ranks, and send those of this rank's that others want; nothing else travels.

    Args:
        tensors: [B, L, ...] each, with B the same on all ranks and L perhaps not. No gradient flows back.
        wanted: rows of other ranks by their number over all ranks, rising; int64 on the host. May be none.

    Returns:
        Of each tensor the wanted rows, with zeros up to the longest L of all ranks.
    """
    size, own, device = tensors[0].shape[0], rank(), tensors[0].device
    asked = torch.zeros(world_size() * size + len(tensors), dtype=torch.int64)
    asked[wanted] = 1
    asked[world_size() * size :] = torch.tensor([one.shape[1] for one in tensors])
    # Who wants what, and how long rows are: the host must know both before it can send anything.
    everyone = gather(to_device_soon(asked, device)).cpu().view(world_size(), -1)
    longest = everyone[:, world_size() * size :].amax(0).tolist()
    wants = everyone[:, : world_size() * size].view(world_size(), world_size(), size) > 0  # [by, of, row]
    if not wants.any():
        return [one.new_zeros(0, length, *one.shape[2:]) for one, length in zip(tensors, longest, strict=True)]
    sent_rows = to_device_soon(wants[:, own].nonzero()[:, 1], device)
    sent, received = wants[:, own].sum(1).tolist(), wants[own].sum(1).tolist()
    found = []
    for one, length in zip(tensors, longest, strict=True):
        rows = one.detach()[sent_rows]
        rows = rows.to(torch.uint8) if one.dtype == torch.bool else rows
        if length > rows.shape[1]:
            rows = torch.cat([rows, rows.new_zeros(len(rows), length - rows.shape[1], *rows.shape[2:])], dim=1)
        got = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(got, rows.contiguous(), received, sent)
        found.append(got.to(one.dtype))
    return found


def gather_text(text: Text, device: torch.device) -> Text:
    """Return every rank's text; collectives run on ``device`` and the result is on the host, like every ``Text``."""
    if world_size() == 1:
        return text
    ids = gather_padded(text.ids_RL.to(device)).cpu()
    return Text(ids, gather(text.lengths_R.to(device)).cpu(), text.first_position)


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def average(gradients: Sequence[torch.Tensor]) -> None:
    """Replace each by its mean over the ranks, all in one exchange. They are of one type."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
