"""A plan as tables of tiles: what each program of a kernel reads, in int32, without a mask.

Query rows that see the same keys are put side by side, wherever they lie in the packed sequence, so that few tiles are
half empty; so are keys seen by the same rows. The two orders are index lists (``rows`` and ``cols``), and a tile is a
run of one of them.

A *row tile* (forward pass, dQ) is ``r0, rn, k0, kn, k1, k1n, cm``: rows ``rows[r0 : r0+rn]`` see the keys of the plan's
two intervals, the second one causally if ``cm < k1n``. A *key tile* (dK, dV) is ``c0, cn, e0, en``: keys
``cols[c0 : c0+cn]`` are seen by the entries ``e0 .. e0+en-1``, and an entry is ``r0, rn, diagonal``: key c of the tile
is seen by row i of the entry iff ``c < i + diagonal``.

Letters: T query rows, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import COLUMNS, Plan, changes, distances, ragged, within
from lyrics.kernels.upload import to_device

#: Rows of a row tile, keys of a key tile, rows of an entry, at most.
TileSizes = tuple[int, int, int]

ROW_TILE = 7
KEY_TILE = 4
ENTRY = 3
#: The diagonal of an entry all of whose rows see all keys.
NOT_CAUSAL = 2**30


@dataclass(frozen=True)
class Block:
    """Query rows (``length`` of them from ``first`` on, in the order of ``Blocks.rows``) that see the same keys, or one
    causal run.

    Row r sees keys ``k0 .. k0+kn-1``, and key ``k1+j`` iff ``j < k1n`` and ``j < r + cm``.
    """

    first: int
    length: int
    k0: int
    kn: int
    k1: int
    k1n: int
    cm: int

    @property
    def causal(self) -> bool:
        return self.cm < self.k1n


@dataclass(frozen=True, eq=False)
class Blocks:
    """All query rows that see a key, block by block, in ``rows`` (positions in the packed sequence, int64).

    ``table`` has the fields of ``Block`` as columns: int64 [blocks, 7].
    """

    rows: np.ndarray
    table: np.ndarray

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(Block(*row) for row in self.table.tolist())


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tables on a device, int32; see the file's text.

    ``rows`` and ``cols`` leave out rows without keys and keys without readers.
    """

    rows: torch.Tensor
    row_tiles: torch.Tensor
    cols: torch.Tensor
    key_tiles: torch.Tensor
    entries: torch.Tensor
    row_id: torch.Tensor
    """Identity of each query's logical position, for dropout: [T]."""
    col_id: torch.Tensor
    key_exists: torch.Tensor | None
    """uint8 [K]; None when all keys exist."""


def runs_of(plan: Plan | CrossPlan) -> np.ndarray:
    """Runs of query rows and the keys they see, as in ``Plan.table``: int64 [P, 7]. For cross-attention the query sets
    stand one after another, and so do the keys of all images.
    """
    if isinstance(plan, Plan):
        return plan.table.numpy().astype(np.int64)
    queries, keys = plan.row_id_SQ.shape[1], len(plan.col_id_M)
    image = plan.image_index_S.numpy()
    runs = np.zeros((len(image), len(COLUMNS)), np.int64)
    runs[:, 0], runs[:, 1] = np.arange(len(image)) * queries, queries
    runs[:, 2], runs[:, 3] = image * keys, keys
    return runs


def key_exists_of(plan: Plan | CrossPlan) -> torch.Tensor | None:
    """Which keys exist, in the order of ``runs_of``: bool [K]; None when all do."""
    return None if isinstance(plan, Plan) or plan.key_mask_IM is None else plan.key_mask_IM.reshape(-1)


def blocks_of(plan: Plan | CrossPlan) -> Blocks:
    """The plan's query rows grouped by what they see; computed once per plan.

    Query sets of one image are one block, however many they are.
    """
    found = plan.derived.get("blocks")
    if found is None:
        found = plan.derived["blocks"] = _make_blocks(plan)
    blocks: Blocks = found
    return blocks


@dataclass(frozen=True, eq=False)
class HostTiles:
    """Tables of tiles before they are on a device."""

    sizes: TileSizes
    arrays: tuple[np.ndarray, ...]
    """``rows``, ``row_tiles``, ``cols``, ``key_tiles`` and ``entries`` of ``Tiles``."""


#: How many tables there are of a plan.
NUM_TABLES = 5


def keep_tiles(plan: Plan | CrossPlan, sizes: TileSizes, tables: Sequence[torch.Tensor], device: torch.device) -> Tiles:
    """Give a plan the tables of ``host_tiles``, which are on ``device`` by now; the plan's per-token tables are there,
    too.
    """
    exists = key_exists_of(plan)
    rows, row_tiles, cols, key_tiles, entries = tables
    row_id, col_id = _identities(plan, device)
    key_exists = None if exists is None else exists.to(device).view(torch.uint8)
    found = Tiles(rows, row_tiles, cols, key_tiles, entries, row_id, col_id, key_exists)
    plan.derived[_key(sizes, device)] = found
    return found


def _key(sizes: TileSizes, device: torch.device) -> tuple[object, ...]:
    return ("tiles", *sizes, str(device))


@host_work("tiles")
def host_tiles(plan: Plan | CrossPlan, row_block: int, key_block: int, row_step: int) -> HostTiles:
    """Tables with at most ``row_block`` rows in a row tile, ``key_block`` keys in a key tile and ``row_step`` rows in
    an entry.
    """
    grouped = blocks_of(plan)
    cols, key_tiles, entries = _key_tiles(grouped.table, key_block, row_step)
    arrays = (grouped.rows, _row_tiles(grouped.table, row_block), cols, key_tiles, entries)
    return HostTiles((row_block, key_block, row_step), arrays)


def tiles_of(plan: Plan | CrossPlan, row_block: int, key_block: int, row_step: int, device: torch.device) -> Tiles:
    """``host_tiles`` on a device; computed once per plan, sizes and device."""
    found = plan.derived.get(_key((row_block, key_block, row_step), device))
    if found is None:
        made = host_tiles(plan, row_block, key_block, row_step)
        found = keep_tiles(plan, made.sizes, to_device(made.arrays, device), device)
    tiles: Tiles = found
    return tiles


@host_work("tiles")
def _make_blocks(plan: Plan | CrossPlan) -> Blocks:
    return _group_rows(runs_of(plan)) if isinstance(plan, Plan) else _group_sets(plan)


def _group_sets(plan: CrossPlan) -> Blocks:
    """What ``_group_rows`` makes of query sets, each of which sees all keys of one image."""
    queries, keys = plan.row_id_SQ.shape[1], len(plan.col_id_M)
    image = plan.image_index_S.numpy()
    if not queries * keys * len(image):
        return Blocks(np.zeros(0, np.int64), np.zeros((0, ROW_TILE), np.int64))
    numbers = np.arange(len(image))
    first_I = np.empty(plan.num_images, np.int64)
    first_I[image[::-1]] = numbers[::-1]  # of equal ones the last write counts: the first set of an image
    alike = first_I[image]
    order = alike.argsort(kind="stable")
    starts = np.flatnonzero(changes(alike[order]))
    table = np.zeros((len(starts), ROW_TILE), np.int64)
    table[:, 0] = starts * queries
    table[:, 1] = distances(starts, len(image)) * queries
    table[:, 2], table[:, 3] = image[order[starts]] * keys, keys
    return Blocks((order[:, None] * queries + np.arange(queries)).reshape(-1), table)


def _identities(plan: Plan | CrossPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(plan, Plan):
        return plan.row_id_T.to(device), plan.col_id_T.to(device)
    col_id_M = plan.col_id_M.to(device)
    return plan.row_id_SQ.reshape(-1).to(device), col_id_M.expand(plan.num_images, -1).reshape(-1)


def _group_rows(runs: np.ndarray) -> Blocks:
    q0, qn, k0, kn, k1, k1n, cm = runs[(runs[:, 3] + runs[:, 5] > 0) & (runs[:, 1] > 0)].T
    causal = cm < k1n
    # What is seen: the earlier interval first, an empty one last and at 0. Of a causal run its own.
    turned = ~causal & ((kn == 0) | ((k1n > 0) & (k1 < k0)))
    if turned.any():
        k0, kn, k1, k1n = (np.where(turned, b, a) for a, b in ((k0, k1), (kn, k1n), (k1, k0), (k1n, kn)))
    alone = np.zeros(len(cm), np.int64)
    k1 = np.where(causal | (k1n > 0), k1, 0)
    if causal.any():
        k1n = np.where(causal, np.minimum(k1n, qn - 1 + cm), k1n)
        alone[causal] = 1 + causal.nonzero()[0]
    alike = _first_alike([alone, k0 << 32 | kn, k1 << 32 | k1n])
    order = np.lexsort((alike, causal))  # causal runs come last, each a block of its own
    starts = np.flatnonzero(changes(alike[order]))
    lengths = np.add.reduceat(qn[order], starts) if len(starts) else np.zeros(0, np.int64)
    table = np.empty((len(starts), 7), np.int64)
    shown = order[starts]
    columns = (lengths.cumsum() - lengths, lengths, k0[shown], kn[shown], k1[shown], k1n[shown])
    for number, column in enumerate((*columns, np.where(causal[shown], cm[shown], k1n[shown]))):
        table[:, number] = column
    return Blocks(ragged(q0[order], qn[order]), table)


def _first_alike(columns: Sequence[np.ndarray]) -> np.ndarray:
    """For each row of a table, given by its columns, the first row that is equal to it."""
    order = np.lexsort(columns)
    new = changes(columns[0][order])
    for column in columns[1:]:
        new |= changes(column[order])
    found = np.empty(len(order), np.int64)
    found[order] = order[new][new.cumsum() - 1]  # the sort is stable, so the first of a group is the earliest
    return found


def _row_tiles(blocks: np.ndarray, row_block: int) -> np.ndarray:
    counts = -(-blocks[:, 1] // row_block)
    first, length, k0, kn, k1, k1n, cm = blocks.repeat(counts, axis=0).T
    offset = row_block * within(counts)
    rows = np.minimum(row_block, length - offset)
    causal = cm < k1n
    if causal.any():
        cm = np.where(causal, cm + offset, cm)
        k1n = np.where(causal, np.minimum(k1n, rows - 1 + cm), k1n)
    return _table(first + offset, rows, k0, kn, k1, k1n, cm)


def _table(*columns: np.ndarray) -> np.ndarray:
    found = np.empty((len(columns[0]), len(columns)), np.int32)
    for number, column in enumerate(columns):
        found[:, number] = column
    return found


def _key_tiles(blocks: np.ndarray, key_block: int, row_step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Key order, key tiles and entries.

    Keys are cut into the pieces that all blocks see whole or not at all (but for causality).
    """
    apart = _tiles_apart(blocks, key_block, row_step)
    if apart is not None:
        return apart
    # Intervals of keys, the two of a block after one another: start, length, block, the diagonal at its start.
    start, length = blocks[:, [2, 4]].reshape(-1), blocks[:, [3, 5]].reshape(-1)
    block = np.arange(len(blocks)).repeat(2)
    diagonal = np.full(len(start), NOT_CAUSAL)
    diagonal[1::2] = np.where(blocks[:, 6] < blocks[:, 5], blocks[:, 6], NOT_CAUSAL)
    some = length.nonzero()[0]
    start, length, block, diagonal = start[some], length[some], block[some], diagonal[some]
    cuts = np.sort(np.concatenate([start, start + length]))
    cuts = cuts[changes(cuts)]
    if not len(cuts):
        return cuts, np.zeros((0, KEY_TILE), np.int64), np.zeros((0, ENTRY), np.int64)
    widths = cuts[1:] - cuts[:-1]

    # Who reads each piece: a list of readers, sorted by piece, in the order of the intervals.
    low = cuts.searchsorted(start)
    counts = np.searchsorted(cuts, start + length) - low
    piece, interval = ragged(low, counts), np.arange(len(start)).repeat(counts)
    order = piece.argsort(kind="stable")
    piece, interval = piece[order], interval[order]
    seen_from = diagonal[interval] - np.where(diagonal[interval] == NOT_CAUSAL, 0, cuts[piece] - start[interval])
    seen_from[widths[piece] - 1 < seen_from] = NOT_CAUSAL  # all rows see all of it
    reader = block[interval]
    readers = np.bincount(piece, minlength=len(widths))
    first_reader = readers.cumsum() - readers

    # Pieces with the same readers are put side by side; one that is seen across a diagonal stays alone.
    plain = np.ones(len(widths), bool)
    plain[piece[seen_from != NOT_CAUSAL]] = False
    columns = [np.where(plain, 0, 1 + np.arange(len(widths))) << 32 | readers]
    for turn in range(int(readers.max())):
        nth = np.full(len(widths), -1)
        has = readers > turn
        nth[has] = reader[first_reader[has] + turn]
        columns.append(nth)
    alike = _first_alike(columns)
    pieces = alike.argsort(kind="stable")
    pieces = pieces[readers[pieces] > 0]
    cols = ragged(cuts[pieces], widths[pieces])
    leader = np.flatnonzero(changes(alike[pieces]))
    shown = pieces[leader]  # one piece of each group: its readers are the group's
    keys = np.add.reduceat(widths[pieces], leader)
    group_start = keys.cumsum() - keys

    # Tiles of each group. Those of a plain one share their entries, those across a diagonal have their own.
    tiles = -(-keys // key_block)
    group = np.arange(len(shown)).repeat(tiles)
    offset = key_block * within(tiles)
    own = np.where(plain[shown], np.minimum(tiles, 1), tiles)
    list_group = np.arange(len(shown)).repeat(own)
    list_offset = key_block * within(own)
    entries, in_list = _entries(
        blocks, reader, seen_from, first_reader[shown][list_group], readers[shown][list_group], list_offset, row_step
    )
    first_list = own.cumsum() - own
    lists = first_list[group] + np.where(plain[shown][group], 0, offset // key_block)
    first_entry = in_list.cumsum() - in_list
    count = np.minimum(key_block, keys[group] - offset)
    return cols, _table(group_start[group] + offset, count, first_entry[lists], in_list[lists]), entries


def _tiles_apart(blocks: np.ndarray, key_block: int, row_step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """``_key_tiles`` of blocks that see one interval of keys each and none that another sees, as query sets do that
    read images; None for others.
    """
    if not len(blocks) or blocks[:, 5].any():
        return None
    first, length, start, keys = blocks[blocks[:, 2].argsort(), :4].T
    if (start[:-1] + keys[:-1] > start[1:]).any():
        return None
    steps, tiles = -(-length // row_step), -(-keys // key_block)
    list_of, step = np.arange(len(keys)).repeat(steps), row_step * within(steps)
    entries = _table(first[list_of] + step, np.minimum(row_step, length[list_of] - step), np.array(NOT_CAUSAL))
    group, offset = np.arange(len(keys)).repeat(tiles), key_block * within(tiles)
    count = np.minimum(key_block, keys[group] - offset)
    placed = (keys.cumsum() - keys)[group] + offset
    return ragged(start, keys), _table(placed, count, (steps.cumsum() - steps)[group], steps[group]), entries


def _entries(
    blocks: np.ndarray,
    reader: np.ndarray,
    seen_from: np.ndarray,
    first: np.ndarray,
    counts: np.ndarray,
    offset: np.ndarray,
    row_step: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Entries of lists of readers, and how many each list has.

    A list is the readers ``first .. first+counts-1``, for keys that begin ``offset`` keys into their piece. Each
    reader's rows are cut into steps; those before the diagonal are left out.
    """
    number, of_list = ragged(first, counts), np.arange(len(first)).repeat(counts)
    start, length = blocks[reader[number], 0], blocks[reader[number], 1]
    diagonal = seen_from[number]
    whole = diagonal == NOT_CAUSAL
    diagonal = np.where(whole, NOT_CAUSAL, diagonal - offset[of_list])
    blind = np.where(whole, 0, np.maximum(0, 1 - diagonal))
    steps = np.maximum(0, -(-(length - blind) // row_step))
    at = np.arange(len(number)).repeat(steps)
    row = blind[at] + row_step * within(steps)
    seen = np.where(whole[at], NOT_CAUSAL, diagonal[at] + row)
    entries = _table(start[at] + row, np.minimum(row_step, length[at] - row), seen)
    return entries, np.bincount(of_list, steps, len(first)).astype(np.int64)
