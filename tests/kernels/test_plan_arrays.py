"""Plans and tiles made with arrays are those of plain loops over runs, rows and keys, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.kernels import Segment, StreamGroup, build_cross_plan, build_plan, hashing
from lyrics.kernels.hashing import keyed_uniform, mix, mix_arrays
from lyrics.kernels.tiles import _group_rows, _key_tiles, _row_tiles, runs_of
from lyrics.workflows.bench.work import STREAMS
from tests.kernels import plain_tables
from tests.kernels.test_plan import groups_strategy, lengths

#: Rows of a row tile, keys of a key tile, rows of an entry.
SIZES = st.tuples(*[st.sampled_from([1, 2, 3, 4, 16, 64])] * 3)


def check_tiles(runs: np.ndarray, row_block: int, key_block: int, row_step: int) -> None:
    rows, blocks = plain_tables.group_rows(runs.tolist())
    found = _group_rows(runs)
    assert np.array_equal(found.rows, rows)
    assert list(found.blocks) == blocks
    assert _row_tiles(found.table, row_block).tolist() == [
        list(one) for one in plain_tables.row_tiles(blocks, row_block)
    ]
    cols, tiles, entries = _key_tiles(found.table, key_block, row_step)
    want_cols, want_tiles, want_entries = plain_tables.key_tiles(blocks, key_block, row_step)
    assert np.array_equal(cols, want_cols)
    assert tiles.tolist() == [list(one) for one in want_tiles]
    assert entries.tolist() == [list(one) for one in want_entries]


def check_plan(groups: list[StreamGroup], kept: list[bool], *sizes: int) -> None:
    layout, plan = build_plan(groups)
    want_layout, want = plain_tables.build_plan(groups)
    assert (layout.num_tokens, layout.bank_sizes) == (want_layout.num_tokens, want_layout.bank_sizes)
    for key in want_layout.starts:
        assert torch.equal(layout.starts[key], want_layout.starts[key])
        assert torch.equal(layout.lengths[key], want_layout.lengths[key])
        assert torch.equal(layout.positions(*key), want_layout.positions(*key))
    for ours, theirs in ((plan.table, want.table), (plan.row_id_T, want.row_id_T), (plan.col_id_T, want.col_id_T)):
        assert ours.dtype == theirs.dtype == torch.int32
        assert torch.equal(ours, theirs)
    check_tiles(runs_of(plan), *sizes)
    rows = torch.tensor(kept[: plan.num_queries] + [False] * (plan.num_queries - len(kept)), dtype=torch.bool)
    some, want_some = plan.select(rows.nonzero()[:, 0]), plain_tables.select(want, rows.nonzero()[:, 0])
    assert torch.equal(some.table, want_some.table)
    assert torch.equal(some.row_id_T, want_some.row_id_T)
    check_tiles(runs_of(some), *sizes)


@settings(max_examples=150, deadline=None)
@given(groups_strategy(), st.lists(st.booleans(), max_size=80), SIZES)
def test_any_groups(groups: list[StreamGroup], kept: list[bool], sizes: tuple[int, int, int]) -> None:
    check_plan(groups, kept, *sizes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12), st.integers(1, 4), st.integers(1, 9), SIZES)
def test_any_query_sets(index: list[int], queries: int, keys: int, sizes: tuple[int, int, int]) -> None:
    ids = torch.zeros(len(index), queries, dtype=torch.int32)
    check_tiles(runs_of(build_cross_plan(lengths(*index), None, 5, ids, keys)), *sizes)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 6)] * 6, st.booleans()).map(
            # rows, two intervals anywhere (they may overlap), the second causal or not
            lambda one: (one[0], one[1], one[2], one[3], one[4], one[5] + 1 if one[6] else one[4])
        ),
        max_size=8,
    ),
    SIZES,
)
def test_any_runs(pieces: list[tuple[int, ...]], sizes: tuple[int, int, int]) -> None:
    """Beyond what groups make: overlapping intervals, diagonals anywhere."""
    runs, first = [], 0
    for qn, k0, kn, k1, k1n, cm in pieces:
        runs.append([first, qn, k0, kn, k1 + 7, k1n, min(cm, k1n) if cm < 1 else cm])
        first += qn
    check_tiles(np.array(runs, np.int64).reshape(-1, 7), *sizes)


@pytest.mark.parametrize("sizes", [(64, 32, 32), (32, 64, 32)])
def test_the_streams_of_a_step(sizes: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    count = {"V": (4, 5), "G": (3, 4), "S": (0, 90), "C": (0, 20)}
    groups = [
        StreamGroup(
            name,
            tuple(
                Segment(s, torch.randint(*count[s], (9,), generator=generator), 0 if s in "VG" else 1) for s in segments
            ),
            visibility,
            torch.arange(9) * 10**12,
            prefix,
        )
        for name, (segments, visibility, prefix) in STREAMS.items()
    ]
    total = build_plan(groups)[1].num_queries
    check_plan(groups, [number % 3 > 0 for number in range(total)], *sizes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.integers(-(2**63), 2**63 - 1))
def test_the_hash_of_arrays_is_the_hash(values: list[int], key: int) -> None:
    column = np.array(values, np.int64)
    tensors = torch.from_numpy(column), key, torch.arange(len(values))
    want = plain_tables.mix(*tensors)
    assert torch.equal(mix(*tensors), want)
    assert torch.equal(keyed_uniform(*tensors), want.double() / 2**32)
    assert mix_arrays(column, key, np.arange(len(values))).tolist() == want.tolist()
    assert mix_arrays(np.arange(len(values)), hashed=mix_arrays(column, key)).tolist() == want.tolist()


def test_long_arrays_are_hashed_as_short_ones() -> None:
    numbers = np.random.default_rng(0).integers(-(2**62), 2**62, 2 * hashing._AT_ONCE + 5)
    before = mix_arrays(numbers[::-1], 7)
    whole = mix_arrays(numbers, -3, hashed=before)
    alone = [int(mix_arrays(number, -3, hashed=one)) for number, one in zip(numbers[::997], before[::997], strict=True)]
    assert whole[::997].tolist() == alone
    assert np.array_equal(mix_arrays(5, numbers), mix_arrays(np.full(len(numbers), 5), numbers))
    assert mix_arrays(numbers[:0]).shape == (0,)
