"""Which row of which data set stands at a position of the run.

It is a function of (seed, position), so the only state is a step number.

*Without weights* the data sets are one after the other and shuffled as one: each row comes once per epoch.

*With weights* positions come in blocks of ``BLOCK``. In each block data set k has ``weight_k * BLOCK`` places, shuffled
by a permutation of the block; its c-th place of block b is place ``b * places_k + c`` of that data set's own endless
order. Shares are exact after every block, each data set's own epochs are complete, and its order does not depend on the
others.

*With groups* all of this holds for groups of ``group`` neighboring rows in place of rows: positions
``[g * group, (g + 1) * group)`` have the rows ``[r * group, (r + 1) * group)`` of a data set, in their order. Rows
after its last whole group are never drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lyrics.core.data.draws import generator
from lyrics.core.data.order import Order
from lyrics.core.data.permutation import Permutations
from lyrics.core.errors import SpecError

BLOCK = 65_536
#: Changes with any change of what position holds which row; a resumed run must find the same number.
ORDER_VERSION = 2


@dataclass(frozen=True)
class Source:
    """A data set as the mixture sees it.

    Args:
        name: unique in the mixture; it keys the data set's order.
        rows: number of rows.
        weight: share of positions, relative to the other weights; None (for all sources) takes every row once per
            epoch.
        shard_sizes: rows per shard, where the data set has shards.
    """

    name: str
    rows: int
    weight: float | None = None
    shard_sizes: Sequence[int] | npt.NDArray[np.int64] | None = None


class Place(NamedTuple):
    """Row ``row`` of source number ``source``."""

    source: int
    row: int


class Mixture:
    """Position -> ``Place``, for positions 0, 1, 2, ... without end.

    Args:
        sources: the data sets.
        seed: of the run.
        group: neighboring rows that stay together: rows 0 and 1, 2 and 3, ... for 2.

    Raises ``SpecError`` for no sources, a name given twice, an empty source, weights on some sources only, a weight
    that is not positive or so small that it has no place in a block, or a source with fewer rows than a group.
    """

    def __init__(self, sources: Sequence[Source], seed: int, group: int = 1) -> None:
        if group < 1:
            raise SpecError(f"rows that stay together are 1 at least, not {group}")
        self.sources = tuple(sources)
        self.seed, self.group = seed, group
        names = [source.name for source in self.sources]
        if not names:
            raise SpecError("a mixture needs one data set at least")
        if doubled := {name for name in names if names.count(name) > 1}:
            raise SpecError(f"data set names must differ within a mixture; given twice: {', '.join(sorted(doubled))}")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            missing = [source.name for source in self.sources if source.weight is None]
            raise SpecError(f"give every data set of a mixture a weight, or none; without one: {', '.join(missing)}")
        self._weighted = any(given)
        grouped = [_in_groups(source, group) for source in self.sources]
        if self._weighted:
            self._orders = [_order(source, seed) for source in grouped]
            self._places = _places(self.sources)
        else:
            self._orders = [_one_order(grouped, seed)]
            self._places = [source.rows for source in grouped]
        self._starts = [0, *accumulate(self._places)][:-1]
        self._permutations = Permutations(seed, "mixture")

    def reseeded(self, seed: int) -> Mixture:
        """Return the same with another seed."""
        return Mixture(self.sources, seed, self.group)

    def __len__(self) -> int:
        """Rows of all sources that are in whole groups: the positions of one epoch where there are no weights."""
        return sum(source.rows // self.group for source in self.sources) * self.group

    def sample_at(self, position: int) -> Place:
        """Return what stands at a position. O(1), whatever the position and the number of rows."""
        number, within = divmod(position, self.group)
        source, drawn = self._group_at(number)
        return Place(source, drawn * self.group + within)

    def _group_at(self, number: int) -> Place:
        """Return the source of a group of positions, and which of that source's groups it holds."""
        if not self._weighted:
            return self._place(self._orders[0].row(number))
        block, offset = divmod(number, BLOCK)
        slot = self._permutations(BLOCK, block)(offset)
        source = bisect_right(self._starts, slot) - 1
        place = block * self._places[source] + slot - self._starts[source]
        return Place(source, self._orders[source].row(place))

    def many(self, positions_N: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``sample_at`` of an array [N]: sources [N] and rows [N], int64."""
        positions = np.asarray(positions_N, dtype=np.int64)
        source_N, drawn_N = self._many_groups(positions // self.group)
        return source_N, drawn_N * self.group + positions % self.group

    def _many_groups(self, numbers_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        starts = np.asarray(self._starts)
        if not self._weighted:
            rows_N = self._orders[0].many(numbers_N)
            source_N = starts.searchsorted(rows_N, "right") - 1
            return source_N, rows_N - starts[source_N]
        blocks_N, slots_N = numbers_N // BLOCK, numbers_N % BLOCK
        for block in np.unique(blocks_N).tolist():
            at = blocks_N == block
            slots_N[at] = self._permutations(BLOCK, block).many(slots_N[at])
        source_N = starts.searchsorted(slots_N, "right") - 1
        rows_N = blocks_N * np.asarray(self._places)[source_N] + slots_N - starts[source_N]
        for source, order in enumerate(self._orders):
            at = source_N == source
            rows_N[at] = order.many(rows_N[at])
        return source_N, rows_N

    def replacement(self, position: int, attempt: int) -> Place:
        """What takes the place of a bad sample, the ``attempt``-th time (from 1 on): another row of the same source."""
        source = self.sample_at(position).source
        random = generator(self.seed, "replacement", position, attempt)
        return Place(source, int(random.integers(self.sources[source].rows)))

    def fingerprint(self) -> str:
        """Return a hash of all that decides the order.

        A run that goes on with another one would repeat some samples and miss others.
        """
        shards = [
            None
            if source.shard_sizes is None
            else hashlib.sha256(np.asarray(source.shard_sizes, "<i8").tobytes()).hexdigest()
            for source in self.sources
        ]
        sources = [(source.name, source.rows, source.weight) for source in self.sources]
        grouped = [] if self.group == 1 else [self.group]  # without groups as it was before there were any
        facts = json.dumps([ORDER_VERSION, self.seed, sources, shards, *grouped])
        return hashlib.sha256(facts.encode()).hexdigest()

    def _place(self, row: int) -> Place:
        source = bisect_right(self._starts, row) - 1
        return Place(source, row - self._starts[source])


def _in_groups(source: Source, group: int) -> Source:
    """Return the same with its groups for rows; a group is of the shard in which its last row lies.

    Raises ``SpecError`` where there is no whole group, or the shards do not add up to the rows.
    """
    if group == 1 or source.rows < 1:
        return source
    if source.rows < group:
        raise SpecError(
            f"data set {source.name!r} has fewer rows ({source.rows}) than are to stay together (data.group={group}): "
            "nothing can be drawn from it"
        )
    sizes = source.shard_sizes
    if sizes is not None:
        _order(source, 0)  # for its checks: the error counts rows
        ends = np.cumsum(np.asarray(sizes, dtype=np.int64)) // group
        sizes = np.diff(ends, prepend=0)
    return Source(source.name, source.rows // group, source.weight, sizes)


def _order(source: Source, seed: int) -> Order:
    return Order(source.name, source.rows, seed, source.shard_sizes)


def _one_order(sources: Sequence[Source], seed: int) -> Order:
    """All rows as one data set; a source without shards counts as one shard if another has shards."""
    for source in sources:
        _order(source, seed)  # for its checks: the error names the source
    name = "+".join(source.name for source in sources)
    sizes = [[source.rows] if source.shard_sizes is None else source.shard_sizes for source in sources]
    sharded = any(source.shard_sizes is not None for source in sources)
    return Order(
        name, sum(source.rows for source in sources), seed, list(chain.from_iterable(sizes)) if sharded else None
    )


def _places(sources: Sequence[Source]) -> list[int]:
    """Return each source's places in a block, in proportion to the weights.

    They are rounded by largest remainder, so that they add up.
    """
    weights = [source.weight or 0.0 for source in sources]
    for source, weight in zip(sources, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise SpecError(f"the weight of data set {source.name!r} must be a positive number, not {source.weight}")
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    places = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: places[k] - exact[k])
    for k in by_remainder[: BLOCK - sum(places)]:
        places[k] += 1
    for source, count in zip(sources, places, strict=True):
        if count == 0:
            raise SpecError(
                f"the weight {source.weight} of data set {source.name!r} is less than 1 in {BLOCK:,} of all weights: "
                "it would never be drawn. Raise it, or leave the data set out."
            )
    return places
