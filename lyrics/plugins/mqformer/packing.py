"""Streams -> the tables that MQ-Former's layers read: one packed sequence, all query rows before all text rows.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I
images, N image tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lyrics.core.errors import ContractError
from lyrics.core.stage1.streams import ProjectedFeatures, Stream
from lyrics.kernels import CrossPlan, Layout, Plan, build_cross_plan, build_plan
from lyrics.kernels.attention import Prepared
from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import within
from lyrics.plugins.mqformer.layers import Rows


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


@host_work("lay out")
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
    packed = pack(sizes, streams)
    num_sets = len(packed.set_image)
    num_query_rows = num_sets * sizes.num_queries
    visual, grounding = _cross_plans(sizes, packed.plan.row_id_T, packed.set_image, memory)
    kept_images = packed.set_image[packed.kept[: packed.kept_queries : sizes.num_queries] // max(1, sizes.num_queries)]
    last_visual, last_grounding = (
        _cross_plans(sizes, packed.last.row_id_T, kept_images, memory) if sizes.last_reads else (None, None)
    )
    plans: list[Plan | CrossPlan] = [
        packed.plan,
        packed.last,
        *(p for p in (visual, grounding, last_visual, last_grounding) if p is not None),
    ]
    ids = (packed.plan.row_id_T.numpy(), packed.last.row_id_T.numpy())
    rows = [found for found, _ in packed.where.values()]
    keys = np.arange(max((len(one.col_id_M) for one in (visual, grounding) if one is not None), default=0))
    prepared = prepare(plans, (*ids, keys, packed.kept, packed.ids, packed.positions, *rows))
    every_ids, last_ids, key_ids, kept, text_ids, positions, *rows_there = prepared.arrays
    plan, last = packed.plan.placed(every_ids, every_ids), packed.last.placed(last_ids, every_ids)
    placed = [
        _placed(sizes, visual, every_ids, key_ids, visual=True),
        _placed(sizes, grounding, every_ids, key_ids, visual=False),
        _placed(sizes, last_visual, last_ids, key_ids, visual=True),
        _placed(sizes, last_grounding, last_ids, key_ids, visual=False),
    ]
    prepared.keep([plan, last, *(one for one in placed if one is not None)])
    where = {key: (found, shape) for found, (key, (_, shape)) in zip(rows_there, packed.where.items(), strict=True)}
    every_rows = Rows(plan, None, num_query_rows, placed[0], placed[1])
    last_rows = Rows(last, kept, packed.kept_queries, placed[2], placed[3])
    return Tables(every_rows, last_rows, text_ids, positions, num_sets, where)


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
    sizes: Sizes, row_id_T: torch.Tensor, set_image: np.ndarray, memory: ProjectedFeatures
) -> tuple[CrossPlan | None, CrossPlan | None]:
    if not len(set_image):
        return None, None
    found: list[CrossPlan | None] = []
    for queries, keys_and_values, mask in (
        (slice(0, sizes.num_visual), memory.image, memory.image_mask_BN),
        (slice(sizes.num_visual, None), memory.local, memory.local_mask_BM),
    ):
        if not keys_and_values:
            found.append(None)
            continue
        num_keys = next(iter(keys_and_values.values()))[0].shape[1]
        rows = _query_ids(sizes, row_id_T, len(set_image))[:, queries]
        found.append(build_cross_plan(torch.from_numpy(set_image), mask, memory.num_images, rows, num_keys))
    return found[0], found[1]


def _query_ids(sizes: Sizes, row_id_T: torch.Tensor, num_sets: int) -> torch.Tensor:
    return row_id_T[: num_sets * sizes.num_queries].view(num_sets, sizes.num_queries)


def _placed(
    sizes: Sizes, plan: CrossPlan | None, row_id_T: torch.Tensor, key_ids: torch.Tensor, *, visual: bool
) -> CrossPlan | None:
    """Return the plan with its queries' and keys' names where those of all rows and keys are."""
    if plan is None:
        return None
    ids_PQ = _query_ids(sizes, row_id_T, len(plan.image_index_S))
    rows = ids_PQ[:, : sizes.num_visual] if visual else ids_PQ[:, sizes.num_visual :]
    return plan.placed(rows, key_ids[: len(plan.col_id_M)])


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
