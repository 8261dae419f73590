"""Plans and tiles by plain loops over runs, rows and keys: what the arrays of ``lyrics.kernels.plan`` and ``tiles`` must equal."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lyrics.kernels.plan import (
    COLUMNS,
    NUM_BANKS,
    Layout,
    Plan,
    PlanError,
    StreamGroup,
    _Interval,
    as_int32,
    ragged_positions,
)
from lyrics.kernels.tiles import NOT_CAUSAL, Block

_MASK, _GOLDEN = 0xFFFFFFFF, 0x9E3779B9
_Seen = tuple[int, int, int, int, int]


def build_plan(groups: Sequence[StreamGroup]) -> tuple[Layout, Plan]:
    by_name = {group.name: group for group in groups}
    ordered = {group.name: _order(group, by_name) for group in groups}
    layout = _lay_out(groups, ordered)
    table = [run for group in groups for run in _runs(group, by_name, ordered, layout)]
    stacked = np.concatenate(table) if table else np.zeros((0, len(COLUMNS)), np.int64)
    stacked = stacked[stacked[:, 1] > 0]
    stacked = stacked[np.argsort(stacked[:, 0], kind="stable")]
    ids = _logical_ids(groups, layout)
    return layout, Plan(torch.from_numpy(stacked.astype(np.int32)), ids, ids)


def select(plan: Plan, rows: torch.Tensor) -> Plan:
    """The plan for a subset of the query rows (sorted packed positions, host) against the same keys."""
    wanted = rows.cpu().numpy().astype(np.int64)
    assert (np.diff(wanted) > 0).all(), "rows must be sorted and different"
    table = plan.table.numpy().astype(np.int64)
    low = np.searchsorted(wanted, table[:, 0])
    high = np.searchsorted(wanted, table[:, 0] + table[:, 1])
    kept: list[np.ndarray] = []
    for run, first, last in zip(table, low, high, strict=True):
        if first == last:
            continue
        if run[6] >= run[5]:  # not causal: rows are alike, so gaps between them do not matter
            kept.append(np.array([[first, last - first, *run[2:]]]))
            continue
        offsets = wanted[first:last] - run[0]
        pieces = np.split(np.arange(first, last), np.flatnonzero(np.diff(offsets) > 1) + 1)
        for piece in pieces:
            kept.append(np.array([[piece[0], len(piece), *run[2:6], run[6] + wanted[piece[0]] - run[0]]]))
    chosen = np.concatenate(kept) if kept else np.zeros((0, len(COLUMNS)), np.int64)
    return Plan(torch.from_numpy(chosen.astype(np.int32)), plan.row_id_T[rows.to(plan.row_id_T.device)], plan.col_id_T)


def _order(group: StreamGroup, by_name: Mapping[str, StreamGroup]) -> tuple[tuple[str, ...], ...]:
    """Segment names per bank, in the first order (the declared one first) in which two intervals do for every segment."""
    banks = [[segment.name for segment in group.segments if segment.bank == bank] for bank in range(NUM_BANKS)]
    worst = ""
    for candidate in itertools.product(*(itertools.permutations(bank) for bank in banks)):
        failure = ""
        for segment in group.segments:
            found = _intervals(group, segment.name, candidate, by_name)
            if len(found) > 2 or sum(interval.causal for interval in found) > 1:
                shown = " and ".join("+".join(i.segments) + (" (causal)" if i.causal else "") for i in found)
                failure = f"segment {segment.name!r} sees {shown}"
                break
        if not failure:
            return candidate
        worst = worst or failure
    raise PlanError(
        f"stream {group.name!r}: {worst}: that is more than two intervals of keys (or two causal ones) in any order of its segments. "
        "Make it see fewer separate runs of segments, or put part of it in a stream of its own."
    )


def _intervals(
    group: StreamGroup, row: str, order: Sequence[Sequence[str]], by_name: Mapping[str, StreamGroup]
) -> list[_Interval]:
    """What a segment sees, as intervals of adjacent segments, a causal one last."""
    found: list[_Interval] = []
    if group.prefix is not None:
        prefix = by_name[group.prefix]
        for bank in range(NUM_BANKS):
            names = tuple(segment.name for segment in prefix.segments if segment.bank == bank)
            if names:
                found.append(_Interval(prefix.name, names))
    for segments in order:
        run: list[str] = []
        for name in segments:
            seen = group.visibility.get((row, name), "none")
            if seen == "none":
                if run:
                    found.append(_Interval(group.name, tuple(run)))
                run = []
                continue
            run.append(name)
            if seen == "causal":
                found.append(_Interval(group.name, tuple(run), causal=True))
                run = []
        if run:
            found.append(_Interval(group.name, tuple(run)))
    return sorted(found, key=lambda interval: interval.causal)


def _lay_out(groups: Sequence[StreamGroup], ordered: Mapping[str, Sequence[Sequence[str]]]) -> Layout:
    starts: dict[tuple[str, str], torch.Tensor] = {}
    lengths: dict[tuple[str, str], torch.Tensor] = {}
    bank_sizes = []
    base = 0
    for bank in range(NUM_BANKS):
        first = base
        for group in groups:
            sizes = {segment.name: segment.lengths_R.to("cpu", torch.int64) for segment in group.segments}
            names = ordered[group.name][bank]
            stride_R = sum((sizes[name] for name in names), torch.zeros(group.num_rows, dtype=torch.int64))
            start_R = base + torch.cumsum(stride_R, 0) - stride_R
            for name in names:
                starts[group.name, name], lengths[group.name, name] = start_R, sizes[name]
                start_R = start_R + sizes[name]
            base += int(stride_R.sum())
        bank_sizes.append(base - first)
    at = {key: ragged_positions(starts[key], lengths[key]).numpy() for key in starts}
    return Layout(base, tuple(bank_sizes), starts, lengths, at)


def _runs(
    group: StreamGroup,
    by_name: Mapping[str, StreamGroup],
    ordered: Mapping[str, Sequence[Sequence[str]]],
    layout: Layout,
) -> list[np.ndarray]:
    """The table's rows for one group: adjacent segments that see the same are one run."""
    rows = np.arange(group.num_rows)
    prefix_rows = rows if group.prefix_row_R is None else group.prefix_row_R.cpu().numpy()
    runs: list[np.ndarray] = []
    for names_in_bank in ordered[group.name]:
        merged: list[tuple[list[str], list[_Interval]]] = []
        for name in names_in_bank:
            seen = _intervals(group, name, ordered[group.name], by_name)
            if merged and merged[-1][1] == seen and not any(interval.causal for interval in seen):
                merged[-1][0].append(name)
            else:
                merged.append(([name], seen))
        for names, seen in merged:
            lengths = [layout.lengths[group.name, name].numpy() for name in names]
            columns = np.zeros((group.num_rows, len(COLUMNS)), np.int64)
            columns[:, 0] = layout.starts[group.name, names[0]].numpy()
            columns[:, 1] = sum(lengths)
            placed = [None, seen[0]] if len(seen) == 1 and seen[0].causal else list(seen)
            for slot, interval in enumerate(placed):
                if interval is None:
                    continue
                at = prefix_rows if interval.group != group.name else rows
                segments = [layout.lengths[interval.group, name].numpy()[at] for name in interval.segments]
                firsts = [layout.starts[interval.group, name].numpy()[at] for name in interval.segments]
                columns[:, 2 + 2 * slot] = np.minimum.reduce(firsts)
                columns[:, 3 + 2 * slot] = sum(segments)
                if slot == 1:
                    columns[:, 6] = sum(segments[:-1]) + 1 if interval.causal else columns[:, 5]
            runs.append(columns)
    return runs


def _logical_ids(groups: Sequence[StreamGroup], layout: Layout) -> torch.Tensor:
    ids = torch.zeros(layout.num_tokens, dtype=torch.int64)
    for group in groups:
        for segment in group.segments:
            lengths = layout.lengths[group.name, segment.name]
            offset = ragged_positions(torch.zeros_like(lengths), lengths)
            sample = torch.repeat_interleave(group.sample_R.to("cpu", torch.int64), lengths)
            name = zlib.crc32(f"{group.name}/{segment.name}".encode())
            ids[layout.positions(group.name, segment.name)] = mix(sample, name, offset)
    return as_int32(ids)


def group_rows(runs: Sequence[Sequence[int]]) -> tuple[np.ndarray, list[Block]]:
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
    return np.concatenate([rows for rows, _ in parts] or [np.zeros(0, np.int64)]), blocks


def row_tiles(blocks: Sequence[Block], row_block: int) -> list[tuple[int, ...]]:
    tiles: list[tuple[int, ...]] = []
    for b in blocks:
        for offset in range(0, b.length, row_block):
            rows = min(row_block, b.length - offset)
            cm = b.cm + offset if b.causal else b.cm
            k1n = min(b.k1n, rows - 1 + cm) if b.causal else b.k1n
            tiles.append((b.first + offset, rows, b.k0, b.kn, b.k1, k1n, cm))
    return tiles


def key_tiles(
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


def _finalize(bits: torch.Tensor) -> torch.Tensor:
    """The 32-bit finalizer of MurmurHash3 (public domain, Austin Appleby) on numbers 0 .. 2**32 - 1 held in int64."""
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & _MASK
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & _MASK
    return bits ^ (bits >> 16)


def mix(*keys: torch.Tensor | int) -> torch.Tensor:
    """Hash integers (broadcast against each other, any sign, 64 bits each) to 0 .. 2**32 - 1, held in int64."""
    hashed = torch.zeros((), dtype=torch.int64)
    for key in keys:
        wide = torch.as_tensor(key, dtype=torch.int64)
        hashed = hashed.to(wide.device) if wide.dim() else hashed
        for half in (wide & _MASK, (wide >> 32) & _MASK):
            hashed = _finalize(((hashed ^ half.to(hashed.device)) + _GOLDEN) & _MASK)
    return hashed
