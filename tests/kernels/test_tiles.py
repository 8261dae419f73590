"""Tables of tiles: they cover exactly the pairs that the plan's dense mask has, each once, in tiles of the
asked size.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.kernels import Plan, StreamGroup, build_cross_plan, build_plan
from lyrics.kernels.tiles import Tiles, blocks_of, tiles_of
from tests.kernels.test_plan import full, group, groups_strategy, lengths

CPU = torch.device("cpu")


def pairs_of_row_tiles(tiles: Tiles, queries: int, keys: int, most: int) -> torch.Tensor:
    """How often each pair is computed in the forward pass: what the kernel does, pair by pair."""
    count = torch.zeros(queries, keys, dtype=torch.int64)
    rows = tiles.rows.tolist()
    for r0, rn, k0, kn, k1, k1n, cm in tiles.row_tiles.tolist():
        assert 0 < rn <= most
        for m in range(rn):
            for n in range(kn + k1n):
                key = k0 + n if n < kn else k1 + n - kn
                if n < kn or n - kn < m + cm:
                    count[rows[r0 + m], key] += 1
    return count


def pairs_of_key_tiles(tiles: Tiles, queries: int, keys: int, most: int, step: int) -> torch.Tensor:
    """The same for dK and dV."""
    count = torch.zeros(queries, keys, dtype=torch.int64)
    rows, cols, entries = tiles.rows.tolist(), tiles.cols.tolist(), tiles.entries.tolist()
    for c0, cn, e0, en in tiles.key_tiles.tolist():
        assert 0 < cn <= most
        assert en > 0
        for r0, rn, diagonal in entries[e0 : e0 + en]:
            assert 0 < rn <= step
            for c in range(cn):
                for m in range(rn):
                    if c < m + diagonal:
                        count[rows[r0 + m], cols[c0 + c]] += 1
    return count


def check(plan: Plan, row_block: int, key_block: int, row_step: int) -> None:
    tiles = tiles_of(plan, row_block, key_block, row_step, CPU)
    mask = plan.dense_mask()
    shape = (plan.num_queries, plan.num_keys)
    assert torch.equal(pairs_of_row_tiles(tiles, *shape, row_block), mask.long())
    assert torch.equal(pairs_of_key_tiles(tiles, *shape, key_block, row_step), mask.long())
    assert sorted(tiles.rows.tolist()) == mask.any(1).nonzero()[:, 0].tolist()
    assert sorted(tiles.cols.tolist()) == mask.any(0).nonzero()[:, 0].tolist()
    assert tiles.row_tiles.dtype == tiles.key_tiles.dtype == tiles.entries.dtype == tiles.rows.dtype == torch.int32


@settings(max_examples=60, deadline=None)
@given(groups_strategy(), st.sampled_from([1, 2, 4, 64]), st.sampled_from([1, 3, 64]), st.sampled_from([1, 2, 64]))
def test_tiles_cover_the_mask_once(groups: list[StreamGroup], row_block: int, key_block: int, row_step: int) -> None:
    check(build_plan(groups)[1], row_block, key_block, row_step)


def test_selected_rows_too() -> None:
    groups = [
        group("queries", {"V": [3], "G": [2]}, full("VG")),
        group("icg", {"C": [9]}, {("C", "C"): "causal"}, prefix="queries"),
    ]
    plan = build_plan(groups)[1]
    check(plan.select(torch.tensor([0, 4, 5, 6, 9, 13])), 2, 4, 2)


def test_rows_that_see_the_same_share_a_tile_across_banks() -> None:
    """ITM: visual queries (bank 0) and caption (bank 1) see each other; so do grounding queries and spatial text."""
    visibility = full("VC", "GS")
    plan = build_plan([group("itm", {"V": [4], "G": [3], "S": [5], "C": [2]}, visibility)])[1]
    tiles = tiles_of(plan, 16, 16, 16, CPU)
    assert sorted(tile[1] for tile in tiles.row_tiles.tolist()) == [4 + 2, 3 + 5]
    assert sorted(tile[1] for tile in tiles.key_tiles.tolist()) == [4 + 2, 3 + 5]


def test_tables_are_built_once_per_plan_and_sizes() -> None:
    plan = build_plan([group("x", {"V": [4]}, full("V"))])[1]
    assert tiles_of(plan, 16, 16, 16, CPU) is tiles_of(plan, 16, 16, 16, CPU)
    assert tiles_of(plan, 32, 16, 16, CPU) is not tiles_of(plan, 16, 16, 16, CPU)
    assert blocks_of(plan) is blocks_of(plan)


@pytest.mark.parametrize("index", [[1, 0, 1, 1], [0, 0, 0], [1]])
def test_query_sets_of_an_image_are_one_block(index: list[int]) -> None:
    queries, keys, images = 3, 5, 2
    ids = torch.arange(queries * len(index), dtype=torch.int32).view(-1, queries)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    plan = build_cross_plan(lengths(*index), mask, images, ids, keys)
    tiles = tiles_of(plan, 4, 4, 4, CPU)
    want = torch.zeros(queries * len(index), images * keys, dtype=torch.int64)
    for number, image in enumerate(index):
        want[number * queries : (number + 1) * queries, image * keys : (image + 1) * keys] = 1
    assert torch.equal(pairs_of_row_tiles(tiles, *want.shape, 4), want)
    assert torch.equal(pairs_of_key_tiles(tiles, *want.shape, 4, 4), want)
    counts = [index.count(image) * queries for image in range(images)]
    assert len(tiles.row_tiles) == sum(-(-count // 4) for count in counts)
    assert tiles.key_exists is not None
    assert torch.equal(tiles.key_exists.bool(), mask.flatten())
    assert torch.equal(tiles.col_id, plan.col_id_M.repeat(images)), "a key is named by its place in its image"
