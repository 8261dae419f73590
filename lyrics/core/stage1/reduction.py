"""What ranks tell each other once per step: one short vector, summed.

It carries whether a rank met a loss that is not finite, whether one was asked to stop, whether saves keep failing, and
the sum and the count of every loss. All ranks so decide alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lyrics.core.errors import TrainingError
from lyrics.core.stage1.distributed import rank, summed, world_size
from lyrics.core.stage1.state import Loss
from lyrics.kernels.host_work import host_work
from lyrics.kernels.upload import to_device_soon


@dataclass(frozen=True)
class Flags:
    """What a rank has to say besides its losses."""

    stop: bool = False
    saves_failed: bool = False


@dataclass(frozen=True, eq=False)
class Reduced:
    """Sums over all ranks and micro-batches. Tensors stay on their device until somebody reads them.

    ``head_3`` counts ranks: with a loss that is not finite, asked to stop, whose saves failed.
    """

    names: tuple[str, ...]
    head_3: torch.Tensor
    sums_K: torch.Tensor
    counts_K: torch.Tensor

    def scale(self, name: str) -> torch.Tensor:
        """The factor of this rank's sum that makes averaging gradients over ranks give the gradient of the global mean.

        A loss without a single term anywhere is 0, and so is its gradient.
        """
        return world_size() / self.counts_K[self.names.index(name)].clamp(min=1)

    @host_work("read losses")
    def read(self, norm: torch.Tensor) -> tuple[tuple[bool, bool, bool], dict[str, float], float]:
        """(some loss is not finite, stop, saves failed), each loss's mean, and the gradient's norm beside them.

        The host waits once, for all of it.
        """
        last = norm.detach().to(self.head_3)[None]
        *values, norm_read = torch.cat([self.head_3, self.sums_K, self.counts_K, last]).tolist()
        size = len(self.names)
        sums, counts = values[3 : 3 + size], values[3 + size :]
        means = {name: total / max(count, 1) for name, total, count in zip(self.names, sums, counts, strict=True)}
        not_finite, stop, failed = (value > 0 for value in values[:3])
        return (not_finite, stop, failed), means, norm_read


def is_finite(losses: Mapping[str, Loss]) -> torch.Tensor:
    """Return whether every sum is; a tensor, so that nobody waits for it."""
    return torch.stack([loss.sum.detach() for loss in losses.values()]).isfinite().all()


@host_work("read losses")
def reduce_losses(micro_batches: Sequence[Mapping[str, Loss]], flags: Flags) -> Reduced:
    """Run the step's only collective of ours: flags, sums and counts of all ranks' micro-batches."""
    names = tuple(micro_batches[0])
    device = next(iter(micro_batches[0].values())).sum.device
    finite = torch.stack([is_finite(losses) for losses in micro_batches]).all()
    sums = [torch.stack([losses[name].sum.detach().double() for losses in micro_batches]).sum() for name in names]
    counts = [float(sum(losses[name].count for losses in micro_batches)) for name in names]
    said = to_device_soon(torch.tensor([flags.stop, flags.saves_failed, *counts], dtype=torch.float64), device)
    total = summed(torch.cat([(~finite).double()[None], said, *(one[None] for one in sums)]))
    size = len(names)
    return Reduced(names, total[:3], total[3 + size :], total[3 : 3 + size])


def scaled_sum(losses: Mapping[str, Loss], reduced: Reduced, weights: Mapping[str, float]) -> torch.Tensor:
    """Return the loss to call backward on.

    Each sum is divided by the number of its terms in the whole step, and weighted (by 1 where no weight is given).

    Averaging its gradients over ranks (what data parallelism does) gives the gradient of the weighted sum of the global
    means.
    """
    terms = [
        loss.sum * (weights.get(name, 1.0) * reduced.scale(name)).to(loss.sum.dtype) for name, loss in losses.items()
    ]
    return torch.stack(terms).sum()


def total_loss(
    losses: Mapping[str, Loss], weights: Mapping[str, float] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a step with one micro-batch, as the engine computes it, and the mean of each loss over all ranks.

    A loss without a single term anywhere is 0.
    """
    reduced = reduce_losses([losses], Flags())
    means = reduced.sums_K / reduced.counts_K.clamp(min=1)
    return scaled_sum(losses, reduced, weights or {}), dict(zip(reduced.names, means.unbind(), strict=True))


def any_rank(value: bool, device: torch.device) -> bool:
    """Return whether it holds on some rank."""
    return bool(summed(torch.tensor([float(value)], device=device)).item() > 0)


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Let an error on one rank end the others, too, which would otherwise wait for it."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = any_rank(error is not None, device)
    if error is not None:
        raise error
    if failed:
        raise TrainingError("another rank could not start; its own message says why.")


@contextlib.contextmanager
def peers_alive(last_save: str) -> Iterator[None]:
    """A collective that fails because another rank is gone becomes a sentence.

    ``last_save`` says where to go on from.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _from_a_collective(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"rank {rank()} of {world_size()} lost the others: one of them has ended, or did not answer within the "
            f"timeout. Its own output says why. Start all ranks again to go on from {last_save}. "
            f"({type(error).__name__}: {first_line})"
        ) from error


def _from_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))
