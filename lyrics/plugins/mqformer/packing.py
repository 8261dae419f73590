"""Streams -> the tables that MQ-Former's layers read: one packed sequence, all query rows before all text rows.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I
images, N image tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lyrics.core.errors import ContractError
from lyrics.core.stage1.streams import ProjectedFeatures, Stream
from lyrics.kernels import CrossPlan, Layout, Plan, build_cross_plan, build_plan
from lyrics.kernels.attention import HostTables, PackedTables, Prepared
from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import within
from lyrics.plugins.mqformer.layers import Rows

_NOTHING = torch.zeros(0, dtype=torch.int32)


@dataclass(frozen=True)
class Sizes:
    """What packing needs to know of the query transformer."""

    num_visual: int
    num_grounding: int
    max_positions: int
    last_reads: bool
    """Whether the last layer has cross-attention."""

    @property
    def num_queries(self) -> int:
        return self.num_visual + self.num_grounding


@dataclass(frozen=True, eq=False)
class Tables:
    """Everything about one forward call that layers share."""

    every: Rows
    last: Rows
    ids_T: torch.Tensor
    positions_T: torch.Tensor
    num_sets: int
    where: Mapping[tuple[str, str], tuple[torch.Tensor, tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class Packed:
    """The streams of a call on the host: what can be said of them from the lengths of their texts alone."""

    plan: Plan
    last: Plan
    kept: np.ndarray
    """Packed positions that some stream wants, sorted, query sets whole."""
    kept_queries: int
    ids: np.ndarray
    positions: np.ndarray
    set_image: np.ndarray
    """The image that each query set reads."""
    where: Mapping[tuple[str, str], tuple[np.ndarray, tuple[int, ...]]]
    """For each wanted segment its rows among ``kept``, and the shape they are returned in."""


@dataclass(frozen=True)
class Keys:
    """How much there is to read: images, and the tokens of each; None where no layer reads such."""

    images: int
    image_tokens: int | None
    local_tokens: int | None

    @classmethod
    def of(cls, memory: ProjectedFeatures) -> Keys:
        image, local = (
            None if not found else int(next(iter(found.values()))[0].shape[1]) for found in (memory.image, memory.local)
        )
        return cls(memory.num_images, image, local)


@dataclass(frozen=True, eq=False)
class LaidOut:
    """A call on the host: all of its plans, and ``arrays``, what their rows and tokens are called and where they lie.

    ``plans`` are those of self-attention, of the last layer's, and of the cross-attentions over image and local tokens,
    of all layers and of the last; None where nobody reads. Masks are the features' and not in them.
    """

    keys: Keys
    plans: tuple[Plan, Plan, CrossPlan | None, CrossPlan | None, CrossPlan | None, CrossPlan | None]
    arrays: tuple[np.ndarray, ...]
    kept_queries: int
    num_sets: int
    shapes: Mapping[tuple[str, str], tuple[int, ...]]
    """Of each wanted segment, in the order of ``arrays``."""

    @property
    def present(self) -> list[Plan | CrossPlan]:
        return [plan for plan in self.plans if plan is not None]

    def without_arrays(self) -> LaidOut:
        """The same without what ``arrays`` and tables made of the plans say: small, for another process."""
        every, last, visual, grounding, last_visual, last_grounding = self.plans
        plans = (
            *(_without_ids(every), _without_ids(last), _unread(visual), _unread(grounding)),
            *(_unread(last_visual), _unread(last_grounding)),
        )
        return replace(self, plans=plans, arrays=())


def _without_ids(plan: Plan) -> Plan:
    return replace(plan, row_id_T=_NOTHING, col_id_T=_NOTHING, derived=_short(plan.derived))


def _unread(plan: CrossPlan | None) -> CrossPlan | None:
    if plan is None:
        return None
    return replace(plan, row_id_SQ=_NOTHING, col_id_M=_NOTHING, derived=_short(plan.derived))


def _short(derived: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in derived.items() if isinstance(value, int)}


@dataclass(frozen=True, eq=False)
class PlannedPass:
    """A call that was laid out before its features were there; see ``plan_ahead``."""

    laid: LaidOut
    tables: PackedTables

    def pin_memory(self) -> PlannedPass:
        """Called by a loader whose batches go to a GPU."""
        return replace(self, tables=self.tables.pin_memory())


@dataclass(frozen=True)
class Planner:
    """Lays streams out for features that are not there yet; may be pickled. See ``PlansAhead`` in
    ``lyrics.core.contracts``.
    """

    sizes: Sizes
    image_tokens: int
    local_sources: tuple[str, ...]
    tables: HostTables | None

    def __call__(self, streams: Sequence[Stream], images: int, local_tokens: Mapping[str, int]) -> PlannedPass:
        local = sum(local_tokens.get(name, 0) for name in self.local_sources) if self.local_sources else None
        laid = lay_out(self.sizes, streams, Keys(images, self.image_tokens, local))
        tables = PackedTables.of(self.tables, laid.present, laid.arrays)
        return PlannedPass(laid.without_arrays(), tables)  # with what the tables have found out about the plans


def lower(
    sizes: Sizes,
    streams: Sequence[Stream],
    memory: ProjectedFeatures,
    prepare: Callable[[Sequence[Plan | CrossPlan], Sequence[np.ndarray]], Prepared],
) -> Tables:
    """Pack the streams: layout, plan, token ids, and which rows the last layer computes.

    All tables go to the device together.

    ``prepare`` is ``lyrics.kernels.prepare`` for the layers' attention.
    """
    laid = lay_out(sizes, streams, Keys.of(memory))
    return place(sizes, laid, prepare(laid.present, laid.arrays), memory)


@host_work("lay out")
def lay_out(sizes: Sizes, streams: Sequence[Stream], keys: Keys) -> LaidOut:
    """Everything of ``lower`` that needs no device and no features."""
    packed = pack(sizes, streams)
    cross = _cross_plans(sizes, packed.plan.row_id_T, packed.set_image, keys)
    kept_images = packed.set_image[packed.kept[: packed.kept_queries : sizes.num_queries] // max(1, sizes.num_queries)]
    last_cross = _cross_plans(sizes, packed.last.row_id_T, kept_images, keys) if sizes.last_reads else (None, None)
    most_keys = max((len(one.col_id_M) for one in cross if one is not None), default=0)
    arrays = (
        *(packed.plan.row_id_T.numpy(), packed.last.row_id_T.numpy(), np.arange(most_keys), packed.kept),
        *(packed.ids, packed.positions, *(found for found, _ in packed.where.values())),
    )
    shapes = {key: shape for key, (_, shape) in packed.where.items()}
    plans = (packed.plan, packed.last, *cross, *last_cross)
    return LaidOut(keys, plans, arrays, packed.kept_queries, len(packed.set_image), shapes)


@host_work("lay out")
def place(sizes: Sizes, laid: LaidOut, prepared: Prepared, memory: ProjectedFeatures) -> Tables:
    """What was laid out and is on the device by now, as the layers read it."""
    every_ids, last_ids, key_ids, kept, text_ids, positions, *rows = prepared.arrays
    every, last, *cross = laid.plans
    plan, last = every.placed(every_ids, every_ids), last.placed(last_ids, every_ids)
    masks = (memory.image_mask_BN, memory.local_mask_BM)
    read = (laid.keys.image_tokens or 0, laid.keys.local_tokens or 0)
    placed: list[CrossPlan | None] = []
    for number, one in enumerate(cross):
        if one is None:
            placed.append(None)
            continue
        kind = number % 2  # visual, grounding
        ids_PQ = _query_ids(sizes, every_ids if number < 2 else last_ids, len(one.image_index_S))
        queries = ids_PQ[:, : sizes.num_visual] if kind == 0 else ids_PQ[:, sizes.num_visual :]
        placed.append(one.placed(queries, key_ids[: read[kind]]).masked(masks[kind]))
    prepared.keep([plan, last, *(one for one in placed if one is not None)])
    where = {key: (found, shape) for found, (key, shape) in zip(rows, laid.shapes.items(), strict=True)}
    num_query_rows = laid.num_sets * sizes.num_queries
    every_rows = Rows(plan, None, num_query_rows, placed[0], placed[1])
    last_rows = Rows(last, kept, laid.kept_queries, placed[2], placed[3])
    return Tables(every_rows, last_rows, text_ids, positions, laid.num_sets, where)


@host_work("lay out")
def pack(sizes: Sizes, streams: Sequence[Stream]) -> Packed:
    """Lay the streams out on the host."""
    layout, plan = build_plan([stream.group(sizes.num_visual, sizes.num_grounding) for stream in streams])
    num_query_rows, num_text = layout.bank_sizes
    ids = np.zeros(num_text, np.int64)
    positions = np.zeros(num_text, np.int64)
    images: list[np.ndarray] = []
    for stream in streams:
        if stream.image_index_R is not None:
            images.append(stream.image_index_R.numpy())
        for name, text in stream.text.items():
            lengths_R, ids_RL = text.lengths_R.numpy(), text.ids_RL.numpy()
            furthest = text.first_position + int(lengths_R.max(initial=0))
            if stream.num_rows and furthest > sizes.max_positions:
                raise ContractError(
                    f"stream {stream.name!r}: segment {name!r} reaches position {furthest}, and the query transformer "
                    f"has {sizes.max_positions}. Limit the objects or the caption's length before they get here."
                )
            packed = layout.at[stream.name, name] - num_query_rows
            ids[packed] = ids_RL[_mask(ids_RL, lengths_R)]
            positions[packed] = within(lengths_R) + text.first_position
    kept, where = _wanted_rows(streams, layout)
    set_image = np.concatenate(images) if images else np.zeros(0, np.int64)
    kept_queries = int(kept.searchsorted(num_query_rows))
    return Packed(plan, plan.select(torch.from_numpy(kept)), kept, kept_queries, ids, positions, set_image, where)


def _mask(ids_RL: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    mask: np.ndarray = np.arange(ids_RL.shape[1]) < lengths_R[:, None]
    return mask


def _cross_plans(
    sizes: Sizes, row_id_T: torch.Tensor, set_image: np.ndarray, keys: Keys
) -> tuple[CrossPlan | None, CrossPlan | None]:
    """Of image and of local tokens."""
    ids_PQ = _query_ids(sizes, row_id_T, len(set_image))
    index = torch.from_numpy(set_image)

    def over(num_keys: int | None, rows: torch.Tensor) -> CrossPlan | None:
        found = num_keys is not None and len(set_image) > 0
        return build_cross_plan(index, None, keys.images, rows, num_keys or 0) if found else None

    return over(keys.image_tokens, ids_PQ[:, : sizes.num_visual]), over(
        keys.local_tokens, ids_PQ[:, sizes.num_visual :]
    )


def _query_ids(sizes: Sizes, row_id_T: torch.Tensor, num_sets: int) -> torch.Tensor:
    return row_id_T[: num_sets * sizes.num_queries].view(num_sets, sizes.num_queries)


def _wanted_rows(
    streams: Sequence[Stream], layout: Layout
) -> tuple[np.ndarray, dict[tuple[str, str], tuple[np.ndarray, tuple[int, ...]]]]:
    """Packed positions that some stream wants (sorted; query sets whole), and for each segment its rows among them."""
    wanted_T = np.zeros(layout.num_tokens, bool)
    rows_of: dict[tuple[str, str], np.ndarray] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for stream in streams:
        for name, wanted in stream.wanted.items():
            key = (stream.name, name)
            positions = layout.at[key]
            if name in ("V", "G"):
                if not (isinstance(wanted, str) and wanted == "all"):
                    raise ContractError(f"stream {stream.name!r}: of queries all outputs can be wanted, not some.")
                shapes[key] = (stream.num_rows, layout_count(layout, key))
                for segment in ("V", "G"):
                    wanted_T[layout.at[stream.name, segment]] = True
            elif isinstance(wanted, torch.Tensor):
                text = stream.text[name]
                positions = positions[wanted.numpy()[_mask(text.ids_RL.numpy(), text.lengths_R.numpy())]]
                shapes[key] = (len(positions),)
            elif wanted == "first":
                if not bool((layout.lengths[key] > 0).all()):
                    raise ContractError(
                        f"stream {stream.name!r}: the first token of {name!r} is wanted, but a row has none."
                    )
                positions = layout.starts[key].numpy()
                shapes[key] = (stream.num_rows,)
            else:
                shapes[key] = (len(positions),)
            wanted_T[positions] = True
            rows_of[key] = positions
    number_T = wanted_T.cumsum() - 1
    return wanted_T.nonzero()[0], {key: (number_T[rows], shapes[key]) for key, rows in rows_of.items()}


def layout_count(layout: Layout, key: tuple[str, str]) -> int:
    lengths = layout.lengths[key]
    return int(lengths[0]) if len(lengths) else 0
