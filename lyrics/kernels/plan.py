"""Streams, segments and visibility tables -> an attention plan.

The plan is the only description of who sees whom. The reference, the SDPA path, the dense mask and the figures in the
documentation all come from it.

A *stream group* is R streams with the same segments and the same visibility table: one row per sample, each with its
own segment lengths. All tokens of all groups are packed into one sequence without padding. Segments live in one of two
*banks*, and the packed order is: bank 0 of every group, then bank 1 of every group. Inside a bank a row's segments are
adjacent. (MQ-Former puts its queries in bank 0 and text in bank 1, so that either is one slice of the packed sequence.)

With that order every query row sees at most two intervals of keys. The plan's table has one row per run of query rows::

    q0, qn      rows q0 .. q0+qn-1 of the queries
    k0, kn      all of them see keys k0 .. k0+kn-1
    k1, k1n, cm row r (0 .. qn-1) sees key k1+j, 0 <= j < k1n, iff j < r + cm

so a second interval that is not causal has ``cm == k1n``.

Letters: T packed tokens, R rows of a group, P rows of the table.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from lyrics.kernels.hashing import mix_arrays
from lyrics.kernels.host_work import host_work

Visibility = Literal["none", "full", "causal"]

#: Columns of the table.
COLUMNS = ("q0", "qn", "k0", "kn", "k1", "k1n", "cm")
NUM_BANKS = 2
_NOTHING = np.zeros(0, np.int64)
#: One number for each row of each segment.
_Arrays = Mapping[tuple[str, str], np.ndarray]


class PlanError(ValueError):
    """Streams that cannot be laid out: an unknown name, a wrong length, or a visibility of more than two
    key intervals.
    """


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind in every row of a group. ``lengths_R`` are on the host, int64, and may be 0."""

    name: str
    lengths_R: torch.Tensor
    bank: int = 0


@dataclass(frozen=True)
class StreamGroup:
    """R streams with the same segments and the same visibility.

    Args:
        name: unique among the groups of one plan.
        segments: in the order preferred inside their bank; all with the same R.
        visibility: ``{(row segment, column segment): "full" | "causal" | "none"}``; pairs left out are ``none``.
            ``causal`` is only meaningful from a segment to itself: token i sees tokens 0 .. i.
        sample_R: what identifies each row's sample, for dropout: the same sample in the same group drops the same
            entries however it is packed.
        prefix: name of another group all of whose segments every token of this group sees as well.
        prefix_row_R: which row of the prefix group; None means the same row.
    """

    name: str
    segments: tuple[Segment, ...]
    visibility: Mapping[tuple[str, str], Visibility]
    sample_R: torch.Tensor
    prefix: str | None = None
    prefix_row_R: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        return int(self.sample_R.shape[0])


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each segment lie in the packed sequence (host tensors)."""

    num_tokens: int
    bank_sizes: tuple[int, ...]
    starts: Mapping[tuple[str, str], torch.Tensor]
    lengths: Mapping[tuple[str, str], torch.Tensor]
    at: Mapping[tuple[str, str], np.ndarray]
    """Packed positions of all tokens of each segment, row after row: int64 [sum of lengths]."""

    def positions(self, group: str, segment: str) -> torch.Tensor:
        """``at`` as a tensor."""
        return torch.from_numpy(self.at[group, segment])


@dataclass(frozen=True, eq=False)
class Plan:
    """Who sees whom among packed tokens. Built once per step and used by every layer.

    Args:
        table: int32 [P, 7], host. Every query row is in exactly one run.
        row_id_T, col_id_T: int32 hash of the logical position (sample, group, segment, offset) of each query and
            key row; dropout is keyed on them.
    """

    table: torch.Tensor
    row_id_T: torch.Tensor
    col_id_T: torch.Tensor
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What an implementation computed from the table and wants again in the next layer, under its own key."""

    @property
    def num_queries(self) -> int:
        return int(self.row_id_T.shape[0])

    @property
    def num_keys(self) -> int:
        return int(self.col_id_T.shape[0])

    def dense_mask(self) -> torch.Tensor:
        """The visibility as a matrix: bool [num_queries, num_keys] on the host, True where the row sees the column."""
        mask = torch.zeros(self.num_queries, self.num_keys, dtype=torch.bool)
        for q0, qn, k0, kn, k1, k1n, cm in self.table.tolist():
            mask[q0 : q0 + qn, k0 : k0 + kn] = True
            seen = torch.arange(k1n)[None, :] < torch.arange(qn)[:, None] + cm
            mask[q0 : q0 + qn, k1 : k1 + k1n] |= seen
        return mask

    @host_work("lay out")
    def select(self, rows: torch.Tensor) -> Plan:
        """The plan for a subset of the query rows (sorted packed positions, host) against the same keys."""
        table = self.select_runs(rows.numpy())
        return Plan(torch.from_numpy(table), self.row_id_T[rows.to(self.row_id_T.device)], self.col_id_T)

    def select_runs(self, wanted: np.ndarray) -> np.ndarray:
        """The table of ``select``: int32 [P, 7]."""
        gaps = wanted[1:] - wanted[:-1]
        assert (gaps > 0).all(), "rows must be sorted and different"
        table = self.table.numpy().astype(np.int64)
        if not len(wanted):
            return np.zeros((0, len(COLUMNS)), np.int32)
        run = table[:, 0].copy().searchsorted(wanted, side="right") - 1
        # Rows of a run that is not causal are alike, so gaps between them do not matter.
        causal = table[:, 6] < table[:, 5]
        begins = changes(run)
        begins[1:] |= causal[run[1:]] & (gaps > 1)
        first = begins.nonzero()[0]
        chosen = table[run[first]]
        chosen[:, 6] += np.where(causal[run[first]], wanted[first] - chosen[:, 0], 0)
        chosen[:, 0], chosen[:, 1] = first, distances(first, len(wanted))
        return chosen.astype(np.int32)

    def to(self, device: torch.device | str) -> Plan:
        """The same plan with its per-token tables on ``device``; the table of runs stays on the host, where launches
        are decided.
        """
        return self.placed(self.row_id_T.to(device), self.col_id_T.to(device))

    def placed(self, row_id_T: torch.Tensor, col_id_T: torch.Tensor) -> Plan:
        """The same plan with these as its per-token tables, which are elsewhere."""
        return Plan(self.table, row_id_T, col_id_T, self.derived)


def ragged_positions(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """start_0, start_0 + 1, ... (length_0 of them), start_1, ...: int64 [sum of lengths]."""
    return torch.from_numpy(ragged(starts.numpy(), lengths.numpy()))


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``ragged_positions`` of arrays."""
    ends = lengths.cumsum()
    found: np.ndarray = (starts - ends + lengths).repeat(lengths)
    found += np.arange(len(found))
    return found


def within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... (length_0 of them), 0, 1, ...: int64 [sum of lengths]."""
    ends = lengths.cumsum()
    found: np.ndarray = (lengths - ends).repeat(lengths)
    found += np.arange(len(found))
    return found


def distances(starts: np.ndarray, end: int) -> np.ndarray:
    """How far each start is from the next one, the last one from ``end``."""
    found = np.empty(len(starts), np.int64)
    found[:-1] = starts[1:]
    found[-1:] = end
    found -= starts
    return found


def changes(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it, the first included: bool."""
    found = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=found[1:])
    return found


@host_work("lay out")
def build_plan(groups: Sequence[StreamGroup]) -> tuple[Layout, Plan]:
    """Lay the groups out and describe who sees whom.

    Raises:
        PlanError: a name is used twice or is unknown, numbers of rows differ, or some segment's visible keys cannot
            be had in two intervals under any order of the segments.
    """
    _check(groups)
    by_name = {group.name: group for group in groups}
    shapes = {group.name: _shape(group, by_name) for group in groups}
    sizes = {
        (group.name, segment.name): segment.lengths_R.to("cpu", torch.int64).numpy()
        for group in groups
        for segment in group.segments
    }
    layout, starts = _lay_out(groups, shapes, sizes)
    table = [run for group in groups for run in _runs(group, shapes[group.name], starts, sizes)]
    stacked = np.concatenate(table) if table else np.zeros((0, len(COLUMNS)), np.int64)
    stacked = stacked[stacked[:, 1] > 0]
    stacked = stacked[np.argsort(stacked[:, 0], kind="stable")]
    ids = torch.from_numpy(_logical_ids(groups, layout, sizes))
    return layout, Plan(torch.from_numpy(stacked.astype(np.int32)), ids, ids)


def _check(groups: Sequence[StreamGroup]) -> None:
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise PlanError(f"stream names must differ from each other, not {names}.")
    for group in groups:
        segments = [segment.name for segment in group.segments]
        if len(set(segments)) != len(segments):
            raise PlanError(f"stream {group.name!r}: segment names must differ from each other, not {segments}.")
        for segment in group.segments:
            if segment.lengths_R.shape != (group.num_rows,):
                raise PlanError(
                    f"stream {group.name!r}, segment {segment.name!r}: {tuple(segment.lengths_R.shape)} lengths for "
                    f"{group.num_rows} rows."
                )
            if not 0 <= segment.bank < NUM_BANKS:
                raise PlanError(f"stream {group.name!r}, segment {segment.name!r}: bank {segment.bank} is not 0 or 1.")
        for (row, column), seen in group.visibility.items():
            for name in (row, column):
                if name not in segments:
                    raise PlanError(f"stream {group.name!r}: visibility names segment {name!r}; it has {segments}.")
            if seen not in ("none", "full", "causal"):
                raise PlanError(
                    f"stream {group.name!r}: visibility {row}->{column} is {seen!r}, not none, full or causal."
                )
            if seen == "causal" and row != column:
                raise PlanError(f"stream {group.name!r}: only a segment can be causal to itself, not {row}->{column}.")
        if group.prefix is not None:
            if group.prefix not in names:
                raise PlanError(f"stream {group.name!r}: its prefix {group.prefix!r} is not among the streams {names}.")
            if group.prefix == group.name:
                raise PlanError(f"stream {group.name!r} cannot be its own prefix.")
            rows = next(other for other in groups if other.name == group.prefix).num_rows
            if group.prefix_row_R is None and rows != group.num_rows:
                raise PlanError(
                    f"stream {group.name!r} has {group.num_rows} rows and its prefix {group.prefix!r} has {rows}: give "
                    "prefix_row_R."
                )


@dataclass(frozen=True)
class _Interval:
    """Adjacent segments of one group and bank that a run of rows sees; the last one causally if ``causal``."""

    group: str
    segments: tuple[str, ...]
    causal: bool = False


@dataclass(frozen=True)
class _Shape:
    """A group but for its lengths: what repeats from step to step. Segments are (name, bank)."""

    name: str
    segments: tuple[tuple[str, int], ...]
    visibility: tuple[tuple[tuple[str, str], Visibility], ...]
    prefix: str | None
    prefix_segments: tuple[tuple[str, int], ...]


def _shape(group: StreamGroup, by_name: Mapping[str, StreamGroup]) -> _Shape:
    prefix = () if group.prefix is None else by_name[group.prefix].segments
    return _Shape(
        group.name,
        tuple((segment.name, segment.bank) for segment in group.segments),
        tuple(group.visibility.items()),
        group.prefix,
        tuple((segment.name, segment.bank) for segment in prefix),
    )


@lru_cache(maxsize=256)
def _order(shape: _Shape) -> tuple[tuple[str, ...], ...]:
    """Segment names per bank, in the first order (the declared one first) in which two intervals do for
    every segment.
    """
    banks = [[name for name, own in shape.segments if own == bank] for bank in range(NUM_BANKS)]
    worst = ""
    for candidate in itertools.product(*(itertools.permutations(bank) for bank in banks)):
        failure = ""
        for name, _ in shape.segments:
            found = _intervals(shape, name, candidate)
            if len(found) > 2 or sum(interval.causal for interval in found) > 1:
                shown = " and ".join("+".join(i.segments) + (" (causal)" if i.causal else "") for i in found)
                failure = f"segment {name!r} sees {shown}"
                break
        if not failure:
            return candidate
        worst = worst or failure
    raise PlanError(
        f"stream {shape.name!r}: {worst}: that is more than two intervals of keys (or two causal ones) in any order of "
        "its segments. Make it see fewer separate runs of segments, or put part of it in a stream of its own."
    )


def _intervals(shape: _Shape, row: str, order: Sequence[Sequence[str]]) -> list[_Interval]:
    """What a segment sees, as intervals of adjacent segments, a causal one last."""
    found: list[_Interval] = []
    if shape.prefix is not None:
        for bank in range(NUM_BANKS):
            names = tuple(name for name, own in shape.prefix_segments if own == bank)
            if names:
                found.append(_Interval(shape.prefix, names))
    visibility = dict(shape.visibility)
    for segments in order:
        run: list[str] = []
        for name in segments:
            seen = visibility.get((row, name), "none")
            if seen == "none":
                if run:
                    found.append(_Interval(shape.name, tuple(run)))
                run = []
                continue
            run.append(name)
            if seen == "causal":
                found.append(_Interval(shape.name, tuple(run), causal=True))
                run = []
        if run:
            found.append(_Interval(shape.name, tuple(run)))
    return sorted(found, key=lambda interval: interval.causal)


@lru_cache(maxsize=256)
def _merged(shape: _Shape) -> tuple[tuple[tuple[str, ...], tuple[_Interval, ...]], ...]:
    """Adjacent segments that see the same are one run: its segments, and the intervals that it sees."""
    merged: list[tuple[tuple[str, ...], tuple[_Interval, ...]]] = []
    order = _order(shape)
    for names_in_bank in order:
        joined = False
        for name in names_in_bank:
            seen = tuple(_intervals(shape, name, order))
            if joined and merged[-1][1] == seen and not any(interval.causal for interval in seen):
                merged[-1] = ((*merged[-1][0], name), seen)
            else:
                merged.append(((name,), seen))
            joined = True
    return tuple(merged)


def _sum(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of one array that array itself."""
    return arrays[0] if len(arrays) == 1 else np.add.reduce(arrays)


def _lay_out(
    groups: Sequence[StreamGroup], shapes: Mapping[str, _Shape], sizes: _Arrays
) -> tuple[Layout, dict[tuple[str, str], np.ndarray]]:
    """The layout, and where each row of each segment starts."""
    starts: dict[tuple[str, str], np.ndarray] = {}
    bank_sizes = []
    base = 0
    for bank in range(NUM_BANKS):
        first = base
        for group in groups:
            names = _order(shapes[group.name])[bank]
            if not names or not group.num_rows:
                starts |= {(group.name, name): sizes[group.name, name] for name in names}
                continue
            stride_R = _sum([sizes[group.name, name] for name in names])
            end_R = stride_R.cumsum()
            start_R = end_R - stride_R
            start_R += base
            for name in names[:-1]:
                starts[group.name, name] = start_R
                start_R = start_R + sizes[group.name, name]
            starts[group.name, names[-1]] = start_R
            base += int(end_R[-1])
        bank_sizes.append(base - first)
    # All segments at once, then cut.
    flat, counts = (np.concatenate([_NOTHING, *(of[key] for key in starts)]) for of in (starts, sizes))
    positions = ragged(flat, counts)
    ends = counts.cumsum()
    at, first, row = {}, 0, 0
    for key, start_R in starts.items():
        row += len(start_R)
        last = int(ends[row - 1]) if row else 0
        at[key], first = positions[first:last], last
    placed, lengths = ({key: torch.from_numpy(of[key]) for key in starts} for of in (starts, sizes))
    return Layout(base, tuple(bank_sizes), placed, lengths, at), starts


def _runs(group: StreamGroup, shape: _Shape, starts: _Arrays, sizes: _Arrays) -> list[np.ndarray]:
    """The table's rows for one group."""
    prefix_rows = None if group.prefix_row_R is None else group.prefix_row_R.cpu().numpy()
    runs: list[np.ndarray] = []
    for names, seen in _merged(shape):
        columns = np.zeros((group.num_rows, len(COLUMNS)), np.int64)
        columns[:, 0] = starts[group.name, names[0]]
        columns[:, 1] = _sum([sizes[group.name, name] for name in names])
        placed = [None, seen[0]] if len(seen) == 1 and seen[0].causal else list(seen)
        for slot, interval in enumerate(placed):
            if interval is None:
                continue
            keys = [(interval.group, name) for name in interval.segments]
            segments, firsts = ([of[key] for key in keys] for of in (sizes, starts))
            if prefix_rows is not None and interval.group != group.name:
                segments, firsts = ([one[prefix_rows] for one in of] for of in (segments, firsts))
            columns[:, 2 + 2 * slot] = firsts[0] if len(firsts) == 1 else np.minimum.reduce(firsts)
            columns[:, 3 + 2 * slot] = _sum(segments)
            if slot == 1:
                columns[:, 6] = sum(segments[:-1]) + 1 if interval.causal else columns[:, 5]
        runs.append(columns)
    return runs


def _logical_ids(groups: Sequence[StreamGroup], layout: Layout, sizes: _Arrays) -> np.ndarray:
    """int32 hashes of (sample, group and segment, offset), token by token."""
    ids = np.zeros(layout.num_tokens, np.int32)
    if not layout.at:
        return ids
    samples = {group.name: group.sample_R.to("cpu", torch.int64).numpy() for group in groups}
    sample = np.concatenate([samples[group] for group, _ in layout.at])
    names = np.array([zlib.crc32(f"{group}/{segment}".encode()) for group, segment in layout.at])
    name = np.repeat(names, [len(samples[group]) for group, _ in layout.at])
    lengths = np.concatenate([sizes[key] for key in layout.at])
    offset = within(lengths)
    hashed = mix_arrays(offset, hashed=mix_arrays(sample, name).repeat(lengths))
    ids[np.concatenate(list(layout.at.values()))] = hashed.view(np.int32)
    return ids


def as_int32(bits: torch.Tensor) -> torch.Tensor:
    """Unsigned 32-bit numbers held in int64 -> int32 with the same bits."""
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
