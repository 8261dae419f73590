"""Streams -> the tables that MQ-Former's layers read: one packed sequence, all query rows before all text rows.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I images, N image
tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lyrics.core.errors import ContractError
from lyrics.core.stage1.streams import ProjectedFeatures, Stream
from lyrics.kernels import CrossPlan, Layout, build_cross_plan, build_plan
from lyrics.kernels.host_work import host_work
from lyrics.plugins.mqformer.layers import Rows


@dataclass(frozen=True)
class Sizes:
    """What packing needs to know of the query transformer."""

    num_visual: int
    num_grounding: int
    max_positions: int

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


@host_work("lay out")
def lower(sizes: Sizes, streams: Sequence[Stream], memory: ProjectedFeatures, device: torch.device) -> Tables:
    """Pack the streams: layout, plan, token ids, and which rows the last layer computes."""
    groups = [stream.group(sizes.num_visual, sizes.num_grounding) for stream in streams]
    layout, plan = build_plan(groups)
    num_query_rows, num_text = layout.bank_sizes
    ids = torch.zeros(num_text, dtype=torch.int64)
    positions = torch.zeros(num_text, dtype=torch.int64)
    images: list[torch.Tensor] = []
    for stream in streams:
        if stream.image_index_R is not None:
            images.append(stream.image_index_R)
        for name, text in stream.text.items():
            furthest = text.first_position + int(text.lengths_R.max()) if stream.num_rows else 0
            if furthest > sizes.max_positions:
                raise ContractError(
                    f"stream {stream.name!r}: segment {name!r} reaches position {furthest}, and the query transformer has "
                    f"{sizes.max_positions}. Limit the objects or the caption's length before they get here."
                )
            packed = layout.positions(stream.name, name) - num_query_rows
            mask = text.mask_RL
            ids[packed] = text.ids_RL[mask]
            positions[packed] = mask.nonzero()[:, 1] + text.first_position
    set_image = torch.cat(images) if images else torch.zeros(0, dtype=torch.int64)
    plan = plan.to(device)
    every = Rows(plan, None, num_query_rows, *_cross_plans(sizes, plan.row_id_T, set_image, memory))
    kept, where = _wanted_rows(sizes, streams, layout)
    kept_queries = kept[kept < num_query_rows]
    last_plan = plan.select(kept)
    kept_images = set_image[kept_queries[:: sizes.num_queries] // sizes.num_queries]
    last = Rows(
        last_plan,
        kept.to(device),
        len(kept_queries),
        *_cross_plans(sizes, last_plan.row_id_T, kept_images, memory),
    )
    on_device = {key: (rows.to(device), shape) for key, (rows, shape) in where.items()}
    return Tables(every, last, ids.to(device), positions.to(device), len(set_image), on_device)


def _cross_plans(
    sizes: Sizes, row_id_T: torch.Tensor, set_image: torch.Tensor, memory: ProjectedFeatures
) -> tuple[CrossPlan | None, CrossPlan | None]:
    if not len(set_image):
        return None, None
    ids_PQ = row_id_T[: len(set_image) * sizes.num_queries].view(len(set_image), sizes.num_queries)
    found: list[CrossPlan | None] = []
    for rows, keys_and_values, mask in (
        (ids_PQ[:, : sizes.num_visual], memory.image, memory.image_mask_BN),
        (ids_PQ[:, sizes.num_visual :], memory.local, memory.local_mask_BM),
    ):
        if not keys_and_values:
            found.append(None)
            continue
        num_keys = next(iter(keys_and_values.values()))[0].shape[1]
        found.append(build_cross_plan(set_image, mask, memory.num_images, rows, num_keys))
    return found[0], found[1]


def _wanted_rows(
    sizes: Sizes, streams: Sequence[Stream], layout: Layout
) -> tuple[torch.Tensor, dict[tuple[str, str], tuple[torch.Tensor, tuple[int, ...]]]]:
    """Packed positions that some stream wants (sorted; query sets whole), and for each segment its rows among them."""
    kept = []
    rows_of: dict[tuple[str, str], torch.Tensor] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for stream in streams:
        for name, wanted in stream.wanted.items():
            key = (stream.name, name)
            positions = layout.positions(*key)
            if name in ("V", "G"):
                if not (isinstance(wanted, str) and wanted == "all"):
                    raise ContractError(f"stream {stream.name!r}: of queries all outputs can be wanted, not some.")
                shapes[key] = (stream.num_rows, layout_count(layout, key))
                kept += [layout.positions(stream.name, segment) for segment in ("V", "G")]
            elif isinstance(wanted, torch.Tensor):
                positions = positions[wanted[stream.text[name].mask_RL]]
                shapes[key] = (len(positions),)
            elif wanted == "first":
                if not bool((layout.lengths[key] > 0).all()):
                    raise ContractError(
                        f"stream {stream.name!r}: the first token of {name!r} is wanted, but a row has none."
                    )
                positions = layout.starts[key]
                shapes[key] = (stream.num_rows,)
            else:
                shapes[key] = (len(positions),)
            kept.append(positions)
            rows_of[key] = positions
    chosen = torch.unique(torch.cat(kept)) if kept else torch.zeros(0, dtype=torch.int64)
    return chosen, {key: (torch.searchsorted(chosen, rows), shapes[key]) for key, rows in rows_of.items()}


def layout_count(layout: Layout, key: tuple[str, str]) -> int:
    lengths = layout.lengths[key]
    return int(lengths[0]) if len(lengths) else 0
