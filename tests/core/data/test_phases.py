"""A mixture that changes during the run: what is read when, without state, like a mixture within each phase."""

from __future__ import annotations

import numpy as np
import pytest

from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.phases import PhasedMixture
from lyrics.core.errors import SpecError

SOURCES = [Source("tasks", 40), Source("captions", 24, shard_sizes=[10, 14]), Source("dialogue", 30)]
#: Tasks always, captions up to position 200, dialogue from position 120 on.
SPANS = [(0, None), (0, 200), (120, None)]


@pytest.fixture
def phased() -> PhasedMixture:
    return PhasedMixture(SOURCES, SPANS, 5)


def test_each_position_has_a_source_that_is_read_there(phased: PhasedMixture) -> None:
    source_N, row_N = phased.many(np.arange(600))
    assert set(source_N[:120]) == {0, 1}
    assert set(source_N[120:200]) == {0, 1, 2}
    assert set(source_N[200:]) == {0, 2}
    assert all(row < SOURCES[source].rows for source, row in zip(source_N, row_N, strict=True))


def test_one_position_is_what_many_say(phased: PhasedMixture) -> None:
    source_N, row_N = phased.many(np.arange(300))
    assert [phased.sample_at(position) for position in range(300)] == list(zip(source_N, row_N, strict=True))
    for position in (0, 119, 120, 250):
        assert phased.replacement(position, 1).source == phased.sample_at(position).source


def test_a_phase_is_a_mixture_of_its_sources(phased: PhasedMixture) -> None:
    """From its first position on: an epoch later each row has come once more."""
    last = Mixture([SOURCES[0], SOURCES[2]], 5)
    at = np.arange(210, 210 + 3 * len(last))
    source_N, row_N = phased.many(at)
    wanted_N, rows_N = last.many(at)
    assert np.array_equal(source_N, np.asarray([0, 2])[wanted_N])
    assert np.array_equal(row_N, rows_N)


def test_weights_are_shares_within_a_phase() -> None:
    sources = [Source("a", 500, 1.0), Source("b", 500, 3.0), Source("c", 500, 4.0)]
    source_N, _ = PhasedMixture(sources, [(0, None), (0, None), (65_536, None)], 0).many(np.arange(2 * 65_536))
    assert np.bincount(source_N[:65_536]).tolist() == [16_384, 49_152]
    assert np.bincount(source_N[65_536:]).tolist() == [8_192, 24_576, 32_768]


def test_groups_stay_together() -> None:
    phased = PhasedMixture([Source("a", 10), Source("b", 8)], [(0, None), (6, None)], 3, group=2)
    source_N, row_N = phased.many(np.arange(60))
    assert np.array_equal(source_N[::2], source_N[1::2])
    assert np.array_equal(row_N[::2] + 1, row_N[1::2])
    with pytest.raises(SpecError, match="begins at position 3, within a group of 2"):
        PhasedMixture([Source("a", 10), Source("b", 8)], [(0, None), (3, None)], 3, group=2)


def test_a_phase_without_a_data_set_is_refused() -> None:
    with pytest.raises(SpecError, match="no data set is read from position 50 on"):
        PhasedMixture(SOURCES[:2], [(0, 50), (80, None)], 0)
    with pytest.raises(SpecError, match="no data set is read from position 0 on"):
        PhasedMixture(SOURCES[:1], [(10, None)], 0)


def test_the_fingerprint_tells_orders_apart(phased: PhasedMixture) -> None:
    same = PhasedMixture(SOURCES, SPANS, 5)
    later = PhasedMixture(SOURCES, [(0, None), (0, 200), (121, None)], 5)
    assert phased.fingerprint() == same.fingerprint() == phased.reseeded(8).reseeded(5).fingerprint()
    assert len({phased.fingerprint(), later.fingerprint(), phased.reseeded(8).fingerprint()}) == 3
