"""A mixture that changes during the run: each data set is read from one position on, and up to another.

Each phase is a ``Mixture`` of the data sets that are read in it. Positions count through, so that the order is still a
function of (seed, position), and a data set that goes on in the next phase does not begin anew.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lyrics.core.data.mixture import Mixture, Place, Source
from lyrics.core.errors import SpecError


class PhasedMixture:
    """Position -> ``Place`` like a ``Mixture``, with the sources that are read at that position.

    Args:
        sources: the data sets.
        spans: for each source its first position, and the one after its last; None where it is read to the end.
        seed, group: as for ``Mixture``.

    Raises ``SpecError`` as ``Mixture`` does, for a phase in which nothing is read, and for a phase that begins within
    a group.
    """

    def __init__(
        self, sources: Sequence[Source], spans: Sequence[tuple[int, int | None]], seed: int, group: int = 1
    ) -> None:
        self.sources, self.spans = tuple(sources), tuple(spans)
        self.seed, self.group = seed, group
        edges = {edge for span in self.spans for edge in span if edge is not None}
        self._starts = sorted({0, *edges})
        if cut := [start for start in self._starts if start % group]:
            raise SpecError(f"a phase begins at position {cut[0]}, within a group of {group} rows that stay together")
        self._phases: list[tuple[Mixture, list[int]]] = []
        for start in self._starts:
            read = [number for number, span in enumerate(self.spans) if _covers(span, start)]
            if not read:
                raise SpecError(f"no data set is read from position {start} on: a phase needs one at least")
            self._phases.append((Mixture([self.sources[number] for number in read], seed, group), read))

    def reseeded(self, seed: int) -> PhasedMixture:
        """Return the same with another seed."""
        return PhasedMixture(self.sources, self.spans, seed, self.group)

    def __len__(self) -> int:
        """Rows of all sources that are in whole groups."""
        return sum(source.rows // self.group for source in self.sources) * self.group

    def sample_at(self, position: int) -> Place:
        """Return what stands at a position."""
        mixture, read = self._phase(position)
        place = mixture.sample_at(position)
        return Place(read[place.source], place.row)

    def many(self, positions_N: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``sample_at`` of an array [N]: sources [N] and rows [N], int64."""
        positions = np.asarray(positions_N, dtype=np.int64)
        source_N, row_N = np.empty_like(positions), np.empty_like(positions)
        phase_N = np.asarray(self._starts).searchsorted(positions, "right") - 1
        for number, (mixture, read) in enumerate(self._phases):
            at = phase_N == number
            found, row_N[at] = mixture.many(positions[at])
            source_N[at] = np.asarray(read)[found]
        return source_N, row_N

    def replacement(self, position: int, attempt: int) -> Place:
        """What takes the place of a bad sample, as in a ``Mixture``: another row of the same source."""
        mixture, read = self._phase(position)
        place = mixture.replacement(position, attempt)
        return Place(read[place.source], place.row)

    def fingerprint(self) -> str:
        """Return a hash of all that decides the order."""
        facts = [(start, mixture.fingerprint()) for start, (mixture, _) in zip(self._starts, self._phases, strict=True)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _phase(self, position: int) -> tuple[Mixture, list[int]]:
        return self._phases[bisect_right(self._starts, position) - 1]


def _covers(span: tuple[int, int | None], position: int) -> bool:
    begin, end = span
    return begin <= position and (end is None or position < end)
