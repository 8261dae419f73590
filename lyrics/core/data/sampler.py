"""Which positions of the data order a rank reads in a step. The state is the step number, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from lyrics.core.errors import SpecError


class StepSampler:
    """The ``batch_sampler`` of a ``torch.utils.data.DataLoader``: for each step, this rank's positions.

    Step t takes positions ``[t * global_batch, (t + 1) * global_batch)`` however many ranks there are; rank r of R
    reads the r-th of R equal parts. Workers do not matter: the loader hands out whole batches and returns them in
    order.

    Args:
        global_batch: samples per step over all ranks.
        start, stop: first step, and the one after the last. To resume, start at the step that comes next.
        rank, ranks: this process among all.
        group: neighboring positions that one rank reads in one step.

    Raises ``SpecError`` unless the global batch divides by the ranks: every rank must hold the same number of samples,
    and whole groups.
    """

    def __init__(
        self, global_batch: int, *, start: int, stop: int, rank: int = 0, ranks: int = 1, group: int = 1
    ) -> None:
        if not 0 <= rank < ranks:
            raise SpecError(f"rank must be from 0 to {ranks - 1}, not {rank}")
        if global_batch < 1 or global_batch % ranks:
            raise SpecError(
                f"a global batch of {global_batch} cannot be shared equally by {ranks} ranks; "
                f"take {max(1, global_batch // ranks) * ranks}, or another number of ranks"
            )
        if global_batch // ranks % group:
            whole = max(1, global_batch // (ranks * group)) * ranks * group
            raise SpecError(
                f"a global batch of {global_batch} gives each of {ranks} ranks {global_batch // ranks} samples, which "
                f"are not whole groups of {group}; take {whole}, or another data.group"
            )
        if not 0 <= start <= stop:
            raise SpecError(f"steps must run from 0 or more upwards, not from {start} to {stop}")
        self.global_batch, self.start, self.stop = global_batch, start, stop
        self.rank, self.ranks, self.group = rank, ranks, group

    def positions(self, step: int) -> range:
        """This rank's positions of a step."""
        share = self.global_batch // self.ranks
        first = step * self.global_batch + self.rank * share
        return range(first, first + share)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            yield list(self.positions(step))

    def __len__(self) -> int:
        return self.stop - self.start
