"""Position -> data set and row: complete epochs, exact shares, and no state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.data.mixture import BLOCK, Mixture, Source
from lyrics.core.data.order import WINDOW_SHARDS, Order
from lyrics.core.errors import SpecError


def ids(mixture: Mixture, positions: np.ndarray) -> np.ndarray:
    """One number per row of the mixture."""
    source_N, row_N = mixture.many(positions)
    return np.cumsum([0, *(source.rows for source in mixture.sources)])[source_N] + row_N


sharded = st.lists(st.integers(0, 40), min_size=1, max_size=90).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(sharded | st.integers(1, 300), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_without_weights_every_row_comes_once_per_epoch(sizes: list[list[int] | int], seed: int) -> None:
    sources = [
        Source(f"s{k}", size) if isinstance(size, int) else Source(f"s{k}", sum(size), shard_sizes=size)
        for k, size in enumerate(sizes)
    ]
    mixture = Mixture(sources, seed)
    total = len(mixture)
    epochs = [ids(mixture, np.arange(epoch * total, (epoch + 1) * total)) for epoch in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(total))
    if total > 12 and any(isinstance(size, int) and size > 12 for size in sizes):
        assert not np.array_equal(epochs[0], epochs[1])


def test_two_million_rows_come_once_per_epoch_in_any_cut() -> None:
    sources = [Source("a", 1_400_000, shard_sizes=np.full(140, 10_000)), Source("b", 600_000)]
    total = 2_000_000
    whole = ids(Mixture(sources, 7), np.arange(total, 2 * total))
    assert (np.bincount(whole, minlength=total) == 1).all()
    # The same positions asked for in another order and by another process's object.
    cut = np.random.default_rng(0).permutation(total)[:20_000]
    assert np.array_equal(ids(Mixture(sources, 7), total + cut), whole[cut])


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10**12), seed=st.integers(0, 2**64 - 1), weighted=st.booleans())
def test_one_and_many_agree_anywhere(position: int, seed: int, weighted: bool) -> None:
    weights = (3.0, 1.0) if weighted else (None, None)
    sources = [Source("a", 1_000, weights[0], [300, 0, 700]), Source("b", 10**6, weights[1])]
    mixture = Mixture(sources, seed)
    source, row = mixture.sample_at(position)
    assert (source, row) == tuple(int(part[0]) for part in mixture.many([position]))
    assert 0 <= row < sources[source].rows


def test_weights_are_exact_after_every_block_and_near_within() -> None:
    mixture = Mixture([Source("a", 10_000, 5), Source("b", 333, 2), Source("c", 10**7, 1)], seed=1)
    source_N, _ = mixture.many(np.arange(3 * BLOCK))
    for block in range(3):
        counts = np.bincount(source_N[block * BLOCK : (block + 1) * BLOCK])
        assert counts.tolist() == [BLOCK * 5 // 8, BLOCK * 2 // 8, BLOCK // 8]
    start = np.bincount(source_N[:2_000]) / 2_000
    assert start == pytest.approx([5 / 8, 2 / 8, 1 / 8], abs=0.05)
    # Not in stretches of one data set.
    assert 0.3 < (np.diff(source_N) != 0).mean() < 0.7


def test_each_data_set_of_a_weighted_mixture_has_complete_epochs_in_an_order_of_its_own() -> None:
    b_rows = 333
    alone = Order("b", b_rows, 1)
    for others in ([Source("a", 10_000, 3)], [Source("a", 77, 1), Source("c", 10**6, 5)]):
        mixture = Mixture([*others, Source("b", b_rows, 1)], seed=1)
        source_N, row_N = mixture.many(np.arange(2 * BLOCK))
        rows = row_N[source_N == len(others)]
        assert len(rows) % b_rows, "the blocks should cut an epoch, or this test shows little"
        counts = np.bincount(rows, minlength=b_rows)
        assert set(counts.tolist()) == {len(rows) // b_rows, len(rows) // b_rows + 1}
        # The same rows as the data set alone would give, whatever it is mixed with.
        assert sorted(rows.tolist()) == sorted(alone.many(np.arange(len(rows))).tolist())


def test_weights_that_do_not_divide_the_block_are_rounded_to_the_nearest_place() -> None:
    mixture = Mixture([Source(name, 10_000, weight) for name, weight in zip("abc", (1, 1, 1), strict=True)], 0)
    counts = np.bincount(mixture.many(np.arange(BLOCK))[0])
    assert counts.sum() == BLOCK
    assert counts.max() - counts.min() == 1


def test_with_shards_a_window_holds_few_of_them() -> None:
    shard_rows, shards = 50, 4 * WINDOW_SHARDS + 3
    order = Order("tar", shard_rows * shards, 0, [shard_rows] * shards)
    rows = order.many(np.arange(order.rows))
    window = WINDOW_SHARDS * shard_rows
    for start in range(0, order.rows, window):
        touched = np.unique(rows[start : start + window] // shard_rows)
        assert len(touched) <= WINDOW_SHARDS
        assert np.ptp(touched) > WINDOW_SHARDS or len(touched) < 8, "shards themselves are not shuffled"
    assert not np.array_equal(np.sort(rows[:window]), rows[:window])


@pytest.mark.parametrize("change", [{"seed": 6}, {"name": "z"}])
def test_seed_and_name_change_the_order(change: dict) -> None:
    usual = {"name": "a", "seed": 5}
    rows = np.arange(1_000)
    one, other = (Order(given["name"], 1_000, given["seed"]).many(rows) for given in (usual, usual | change))
    assert (one == other).mean() < 0.02


def test_a_replacement_is_another_row_of_the_same_data_set_and_fixed() -> None:
    mixture = Mixture([Source("a", 500, 1), Source("b", 900, 1)], 3)
    for position in (0, 1, BLOCK + 5):
        there = mixture.sample_at(position)
        found = [mixture.replacement(position, attempt) for attempt in range(1, 9)]
        assert {place.source for place in found} == {there.source}
        assert len(set(found)) > 5
        assert found == [Mixture(mixture.sources, 3).replacement(position, attempt) for attempt in range(1, 9)]
    assert mixture.replacement(0, 1) != mixture.replacement(1, 1)


def test_the_fingerprint_names_everything_that_decides_the_order() -> None:
    base = ([Source("a", 100, 1.0, [40, 60]), Source("b", 9, 1.0)], 0)
    changed = [
        (base[0], 1),
        ([Source("a", 100, 1.0, [60, 40]), base[0][1]], 0),
        ([Source("a", 100, 2.0, [40, 60]), base[0][1]], 0),
        ([Source("c", 100, 1.0, [40, 60]), base[0][1]], 0),
        ([base[0][0], Source("b", 10, 1.0)], 0),
        (base[0][::-1], 0),
    ]
    prints = [Mixture(*case).fingerprint() for case in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert Mixture(*base).fingerprint() == prints[0]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(sharded | st.integers(1, 300), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    group=st.integers(2, 4),
    weighted=st.booleans(),
)
def test_groups_stay_together_and_come_once_per_epoch(
    sizes: list[list[int] | int], seed: int, group: int, weighted: bool
) -> None:
    """Rows that fill no group, at the end of a data set, are never drawn."""
    rows = [size if isinstance(size, int) else sum(size) for size in sizes]
    sources = [
        Source(f"s{k}", count, 1.0 + k if weighted else None, None if isinstance(size, int) else size)
        for k, (size, count) in enumerate(zip(sizes, rows, strict=True))
    ]
    if min(rows) < group:
        with pytest.raises(SpecError, match=r"has fewer rows \(\d+\) than are to stay together \(data.group="):
            Mixture(sources, seed, group)
        return
    mixture = Mixture(sources, seed, group)
    total = len(mixture)
    assert total == sum(count // group * group for count in rows)
    source_N, row_N = mixture.many(np.arange(2 * total))
    places = list(zip(source_N.tolist(), row_N.tolist(), strict=True))
    assert places == [mixture.sample_at(position) for position in range(2 * total)]
    together = row_N.reshape(-1, group)
    assert (together[:, 0] % group == 0).all()
    assert (np.diff(together, axis=1) == 1).all()
    assert (np.ptp(source_N.reshape(-1, group), axis=1) == 0).all()
    if not weighted:
        drawn = sorted((s, r) for s, count in enumerate(rows) for r in range(count // group * group))
        assert sorted(places[:total]) == sorted(places[total:]) == drawn


def test_groups_are_drawn_as_rows_are_and_have_an_order_of_their_own() -> None:
    """Of one, they are nothing new; of two, the groups stand as half as many rows would."""
    sources = [Source("a", 1_000, 3, [400, 600]), Source("b", 10**9, 1)]
    assert [Mixture(sources, 11, 1).sample_at(position) for position in (0, 1, 2, 10**9)] == PINNED
    assert Mixture(sources, 11, 1).fingerprint() == Mixture(sources, 11).fingerprint()
    assert Mixture(sources, 11, 2).fingerprint() != Mixture(sources, 11).fingerprint()
    halves = Mixture([Source("a", 500, 3, [200, 300]), Source("b", 10**9 // 2, 1)], 11)
    whole = Mixture(sources, 11, 2)
    for position in (0, 1, 7, 10**9):
        source, row = halves.sample_at(position)
        assert [whole.sample_at(2 * position + k) for k in (0, 1)] == [(source, 2 * row), (source, 2 * row + 1)]
    with pytest.raises(SpecError, match="1 at least, not 0"):
        Mixture(sources, 11, 0)


def test_the_order_itself_is_pinned() -> None:
    """Runs resume across releases: if this fails, raise ORDER_VERSION."""
    mixture = Mixture([Source("a", 1_000, 3, [400, 600]), Source("b", 10**9, 1)], 11)
    assert [mixture.sample_at(position) for position in (0, 1, 2, 10**9)] == PINNED
    one = Mixture([Source("a", 1_000), Source("b", 50)], 11)
    assert [one.sample_at(position) for position in (0, 1, 2, 10**9)] == PINNED_UNWEIGHTED


PINNED = [(0, 868), (0, 74), (0, 248), (0, 238)]
PINNED_UNWEIGHTED = [(0, 954), (0, 898), (0, 774), (0, 321)]


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ([], "one data set at least"),
        ([Source("a", 1), Source("a", 2)], "given twice: a"),
        ([Source("a", 0)], "'a' has no rows"),
        ([Source("a", 5, shard_sizes=[2, 2])], "shards of data set 'a' have 4 rows"),
        ([Source("a", 5, 1.0), Source("b", 5)], "without one: b"),
        ([Source("a", 5, 0.0)], "weight of data set 'a' must be a positive number"),
        ([Source("a", 5, float("nan"))], "weight of data set 'a' must be a positive number"),
        ([Source("a", 5, 1.0), Source("b", 5, 1e-7)], "'b' is less than 1 in 65,536"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(sources: list[Source], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        Mixture(sources, 0)


def test_a_billion_rows_open_at_once_in_little_memory() -> None:
    """In a process of its own, for its memory.

    The bounds, of processor time, are generous: only growth with the number of rows would break them.
    """
    code = (
        "import time; start = time.process_time()\n"
        "import numpy as np\n"
        "from lyrics.core.data.mixture import Mixture, Source\n"
        "sources = [Source('a', 10**9, 1.0, np.full(100_000, 10_000)), Source('b', 10**9, 1.0)]\n"
        "mixture = Mixture(sources, 0); mixture.sample_at(700_000 * 512)\n"
        "opened = time.process_time() - start\n"
        "start = time.process_time()\n"
        "for position in range(700_000 * 512, 700_000 * 512 + 5_000): mixture.sample_at(position)\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "print(opened, (time.process_time() - start) / 5_000, int(peak) / 1024)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    opened_s, call_s, peak_mb = map(float, done.stdout.split())
    assert opened_s < 10
    assert call_s < 1e-3
    assert peak_mb < 200
