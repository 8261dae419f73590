"""A plan as tables of tiles: what each program of a kernel reads, in int32, without a mask.

Query rows that see the same keys are put side by side, wherever they lie in the packed sequence, so that few tiles are half empty; so are
keys seen by the same rows. The two orders are index lists (``rows`` and ``cols``), and a tile is a run of one of them.

A *row tile* (forward pass, dQ) is ``r0, rn, k0, kn, k1, k1n, cm``: rows ``rows[r0 : r0+rn]`` see the keys of the plan's two intervals,
the second one causally if ``cm < k1n``. A *key tile* (dK, dV) is ``c0, cn, e0, en``: keys ``cols[c0 : c0+cn]`` are seen by the entries
``e0 .. e0+en-1``, and an entry is ``r0, rn, diagonal``: key c of the tile is seen by row i of the entry iff ``c < i + diagonal``.

Letters: T query rows, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import COLUMNS, Plan

ROW_TILE = 7
KEY_TILE = 4
ENTRY = 3
#: The diagonal of an entry all of whose rows see all keys.
NOT_CAUSAL = 2**30
#: k0, kn, k1, k1n, cm of a block.
_Seen = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Block:
    """Query rows (``length`` of them from ``first`` on, in the order of ``Blocks.rows``) that see the same keys, or one causal run.

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
    """All query rows that see a key, block by block, in ``rows`` (positions in the packed sequence, int64)."""

    rows: np.ndarray
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tables on a device, int32; see the file's text. ``rows`` and ``cols`` leave out rows without keys and keys without readers."""

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
    """Runs of query rows and the keys they see, as in ``Plan.table``: int64 [P, 7]. For cross-attention the query sets stand one after
    another, and so do the keys of all images."""
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


def tiles_of(plan: Plan | CrossPlan, row_block: int, key_block: int, row_step: int, device: torch.device) -> Tiles:
    """Tables with at most ``row_block`` rows in a row tile, ``key_block`` keys in a key tile and ``row_step`` rows in an entry; computed
    once per plan, sizes and device."""
    key = ("tiles", row_block, key_block, row_step, str(device))
    found = plan.derived.get(key)
    if found is None:
        found = plan.derived[key] = _make_tiles(plan, row_block, key_block, row_step, device)
    tiles: Tiles = found
    return tiles


@host_work("tiles")
def _make_blocks(plan: Plan | CrossPlan) -> Blocks:
    return _group_rows(runs_of(plan).tolist())


@host_work("tiles")
def _make_tiles(plan: Plan | CrossPlan, row_block: int, key_block: int, row_step: int, device: torch.device) -> Tiles:
    grouped = blocks_of(plan)
    cols, key_tiles, entries = _key_tiles(grouped.blocks, key_block, row_step)
    exists = key_exists_of(plan)
    return Tiles(
        _int32(grouped.rows, device),
        _int32(_row_tiles(grouped.blocks, row_block), device, ROW_TILE),
        _int32(cols, device),
        _int32(key_tiles, device, KEY_TILE),
        _int32(entries, device, ENTRY),
        *_identities(plan, device),
        None if exists is None else exists.to(device, torch.uint8),
    )


def _identities(plan: Plan | CrossPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(plan, Plan):
        return plan.row_id_T.to(device), plan.col_id_T.to(device)
    return plan.row_id_SQ.reshape(-1).to(device), plan.col_id_M.to(device).repeat(plan.num_images)


def _group_rows(runs: Sequence[Sequence[int]]) -> Blocks:
    alike: dict[_Seen, list[np.ndarray]] = {}
    causal: list[tuple[np.ndarray, _Seen]] = []
    for q0, qn, k0, kn, k1, k1n, cm in runs:
        if kn + k1n == 0 or qn == 0:
            continue
        rows = np.arange(q0, q0 + qn)
        if cm >= k1n:
            (first, first_length), (second, second_length) = sorted(
                ((k0, kn), (k1, k1n)), key=lambda interval: (interval[1] == 0, interval[0])
            )
            seen = (first, first_length, second if second_length else 0, second_length, second_length)
            alike.setdefault(seen, []).append(rows)
        else:
            causal.append((rows, (k0, kn, k1, min(k1n, qn - 1 + cm), cm)))
    parts = [(np.concatenate(rows), seen) for seen, rows in alike.items()] + causal
    blocks = []
    start = 0
    for rows, seen in parts:
        blocks.append(Block(start, len(rows), *seen))
        start += len(rows)
    return Blocks(np.concatenate([rows for rows, _ in parts] or [np.zeros(0, np.int64)]), tuple(blocks))


def _row_tiles(blocks: Sequence[Block], row_block: int) -> list[tuple[int, ...]]:
    tiles: list[tuple[int, ...]] = []
    for b in blocks:
        for offset in range(0, b.length, row_block):
            rows = min(row_block, b.length - offset)
            cm = b.cm + offset if b.causal else b.cm
            k1n = min(b.k1n, rows - 1 + cm) if b.causal else b.k1n
            tiles.append((b.first + offset, rows, b.k0, b.kn, b.k1, k1n, cm))
    return tiles


def _key_tiles(
    blocks: Sequence[Block], key_block: int, row_step: int
) -> tuple[np.ndarray, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Key order, key tiles and entries. Keys are cut into the pieces that all blocks see whole or not at all (but for causality)."""
    intervals = [
        (start, start + length, b, b.cm if second and b.causal else NOT_CAUSAL)
        for b in blocks
        for start, length, second in ((b.k0, b.kn, False), (b.k1, b.k1n, True))
        if length
    ]
    cuts = sorted({edge for start, end, *_ in intervals for edge in (start, end)})
    number = {edge: i for i, edge in enumerate(cuts)}
    readers: list[list[tuple[int, int, int]]] = [[] for _ in cuts]
    for start, end, b, cm in intervals:
        for i in range(number[start], number[end]):
            diagonal = cm - (cuts[i] - start)
            whole = cm == NOT_CAUSAL or cuts[i + 1] - cuts[i] - 1 < diagonal
            readers[i].append((b.first, b.length, NOT_CAUSAL if whole else diagonal))

    cols: list[np.ndarray] = []
    num_cols = 0
    tiles: list[tuple[int, ...]] = []
    entries: list[tuple[int, ...]] = []
    alike: dict[tuple[Any, ...], list[np.ndarray]] = {}
    for i, seen in enumerate(readers):
        if seen:
            plain = all(diagonal == NOT_CAUSAL for *_, diagonal in seen)
            alike.setdefault(tuple(seen) if plain else (i, *seen), []).append(np.arange(cuts[i], cuts[i + 1]))
    for signature, pieces in alike.items():
        keys = np.concatenate(pieces)
        seen = [entry for entry in signature if isinstance(entry, tuple)]
        plain = len(seen) == len(signature)
        first_entry = len(entries)
        for offset in range(0, len(keys), key_block):
            if offset == 0 or not plain:
                first_entry = len(entries)
                for first, length, diagonal in seen:
                    entries += _entries(first, length, diagonal, offset, row_step)
            count = min(key_block, len(keys) - offset)
            tiles.append((num_cols + offset, count, first_entry, len(entries) - first_entry))
        cols.append(keys)
        num_cols += len(keys)
    return np.concatenate(cols or [np.zeros(0, np.int64)]), tiles, entries


def _entries(first: int, length: int, diagonal: int, offset: int, row_step: int) -> list[tuple[int, ...]]:
    """The rows of a block that see a key tile ``offset`` keys into their piece, in steps; rows before the diagonal are left out."""
    if diagonal == NOT_CAUSAL:
        return [(first + r, min(row_step, length - r), NOT_CAUSAL) for r in range(0, length, row_step)]
    blind = max(0, 1 - (diagonal - offset))
    return [(first + r, min(row_step, length - r), diagonal - offset + r) for r in range(blind, length, row_step)]


def _int32(values: Any, device: torch.device, columns: int | None = None) -> torch.Tensor:
    table = torch.from_numpy(np.asarray(values, dtype=np.int32))
    return (table if columns is None else table.reshape(-1, columns)).to(device)
