"""The order in which one data set's rows are read: each row once per epoch.

A row is a function of its place in that order.

Without shards an epoch is one permutation of the rows. With shards it is a permutation of the shards, and within each
window of ``WINDOW_SHARDS`` of them a permutation of the rows, so that a reader has few files open at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lyrics.core.data.draws import generator
from lyrics.core.data.permutation import Permutation, Permutations
from lyrics.core.errors import SpecError

WINDOW_SHARDS = 32
# Shard orders kept at hand; to make one again takes some ms for 100,000 shards.
_KEPT_EPOCHS = 2


@dataclass(frozen=True)
class _Shards:
    """One epoch's shards in their order. ``starts`` are places in the epoch, ``first_rows`` rows of the data set.

    ``window_starts`` are the places at which windows begin, and the end of the last. Both forms are kept: an array
    answers for many places, a list for one, five times faster than the array would.
    """

    starts: npt.NDArray[np.int64]
    first_rows: npt.NDArray[np.int64]
    window_starts: list[int]
    starts_list: list[int]
    first_rows_list: list[int]


class Order:
    """The endless order of one data set.

    Args:
        name: of the data set; two names have unrelated orders.
        rows: number of rows.
        seed: of the run.
        shard_sizes: rows of each shard, in row order; None where there are no shards.

    Raises ``SpecError`` when there are no rows, or the shards do not add up to them.
    """

    def __init__(
        self, name: str, rows: int, seed: int, shard_sizes: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> None:
        if rows < 1:
            raise SpecError(f"data set {name!r} has no rows: nothing can be drawn from it")
        self.name, self.rows, self.seed = name, rows, seed
        self._sizes: npt.NDArray[np.int64] | None = None
        if shard_sizes is not None:
            sizes = np.asarray(shard_sizes, dtype=np.int64)
            if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != rows:
                raise SpecError(f"the shards of data set {name!r} have {sizes.sum()} rows in all, the data set {rows}")
            self._sizes = sizes[sizes > 0]
            self._first_rows = np.cumsum(self._sizes) - self._sizes
        self._permutations = Permutations(seed, f"rows of {name}")
        self._epochs: dict[int, _Shards] = {}

    def row(self, place: int) -> int:
        """Return the row at a place of the endless order: places ``[e * rows, (e + 1) * rows)`` are epoch e."""
        epoch, place = divmod(place, self.rows)
        if self._sizes is None:
            return self._permutation(epoch, 0, self.rows)(place)
        shards = self._shards(epoch)
        window = bisect_right(shards.window_starts, place) - 1
        start, end = shards.window_starts[window : window + 2]
        place = start + self._permutation(epoch, window, end - start)(place - start)
        first = window * WINDOW_SHARDS
        shard = bisect_right(shards.starts_list, place, first, min(first + WINDOW_SHARDS, len(shards.starts_list))) - 1
        return shards.first_rows_list[shard] + place - shards.starts_list[shard]

    def many(self, places_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Map ``row`` of an int64 array [N] -> int64 [N]."""
        rows_N = np.empty_like(places_N)
        epochs_N, within_N = places_N // self.rows, places_N % self.rows
        for epoch in np.unique(epochs_N).tolist():
            at = epochs_N == epoch
            rows_N[at] = self._epoch_rows(epoch, within_N[at])
        return rows_N

    def _epoch_rows(self, epoch: int, places_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._sizes is None:
            return self._permutation(epoch, 0, self.rows).many(places_N)
        shards = self._shards(epoch)
        shuffled_N = np.empty_like(places_N)
        windows_N = (shards.starts.searchsorted(places_N, "right") - 1) // WINDOW_SHARDS
        for window in np.unique(windows_N).tolist():
            at = windows_N == window
            start, end = shards.window_starts[window : window + 2]
            shuffled_N[at] = start + self._permutation(epoch, window, end - start).many(places_N[at] - start)
        shard_N = shards.starts.searchsorted(shuffled_N, "right") - 1
        rows_N: npt.NDArray[np.int64] = shards.first_rows[shard_N] + shuffled_N - shards.starts[shard_N]
        return rows_N

    def _shards(self, epoch: int) -> _Shards:
        if epoch not in self._epochs:
            assert self._sizes is not None
            if len(self._epochs) == _KEPT_EPOCHS:
                self._epochs.clear()
            order = generator(self.seed, f"shards of {self.name}", epoch).permutation(len(self._sizes))
            sizes = self._sizes[order]
            starts = np.cumsum(sizes) - sizes
            window_starts = [*starts[::WINDOW_SHARDS].tolist(), self.rows]
            first_rows = self._first_rows[order]
            self._epochs[epoch] = _Shards(starts, first_rows, window_starts, starts.tolist(), first_rows.tolist())
        return self._epochs[epoch]

    def _permutation(self, epoch: int, window: int, size: int) -> Permutation:
        return self._permutations(size, window, epoch)
