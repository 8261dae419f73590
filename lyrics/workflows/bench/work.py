"""What ``lyrics bench attention`` computes: the streams of a packed stage-1 step, and the query sets that read its
images.

Letters: B samples, H heads, d width of a head, Q queries in a set, L padded length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lyrics.core.dtypes import torch_dtype
from lyrics.kernels import CrossPlan, Layout, Plan, Segment, StreamGroup, build_cross_plan, build_plan
from lyrics.kernels.plan import Visibility


@dataclass(frozen=True)
class WorkSizes:
    """Tokens of one sample and the shape of one layer. ``true`` are (spatial, caption) lengths without padding."""

    visual: int = 32
    grounding: int = 32
    padded: tuple[int, int] = (128, 32)
    true: tuple[int, int] = (64, 16)
    heads: int = 12
    width: int = 64
    image_tokens: int = 257


PAPER = WorkSizes()
TOY = WorkSizes(visual=4, grounding=4, padded=(12, 5), true=(7, 3), heads=2, width=32, image_tokens=9)

_QUERIES: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "VG" for b in "VG"}
_TEXT: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "SC" for b in "SC"}
_ITM: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for pair in ("VC", "GS") for a in pair for b in pair}
_MSP: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "VGS" for b in "VGS"}
#: Stream group -> its segments, visibility and prefix: the streams of both packed passes of the step.
STREAMS: Mapping[str, tuple[str, Mapping[tuple[str, str], Visibility], str | None]] = {
    "queries": ("VG", _QUERIES, None),
    "text": ("SC", _TEXT, None),
    "icg": ("C", {("C", "C"): "causal"}, "queries"),
    "msp": ("VGS", _MSP, None),
    "itm": ("VGSC", _ITM, None),
    "itm-image": ("VGSC", _ITM, None),
    "itm-text": ("VGSC", _ITM, None),
}
#: The same as masked passes over V, G, S, C, one per objective: pass -> stream groups whose tokens it holds.
PASSES: Mapping[str, tuple[str, ...]] = {
    "itc": ("queries", "text"),
    "icg": ("queries", "icg"),
    "msp": ("msp",),
    "itm": ("itm",),
    "itm-image": ("itm-image",),
    "itm-text": ("itm-text",),
}
CROSS_SETS = 5  # the visual queries of ITC, MSP and three times ITM


@dataclass(frozen=True)
class Case:
    """One thing to time: ``op`` is ``segment`` or ``cross``, ``lengths`` is ``padded`` or ``true``."""

    op: str
    batch: int
    lengths: str
    dtype: str
    dropout_p: float
    sizes: WorkSizes


def packed_streams(sizes: WorkSizes, lengths: str, batch: int) -> tuple[Layout, Plan]:
    """Return the stage-1 step's streams of ``batch`` samples in one sequence."""
    spatial, caption = sizes.padded if lengths == "padded" else sizes.true
    count = {"V": sizes.visual, "G": sizes.grounding, "S": spatial, "C": caption}
    groups = [
        StreamGroup(
            name,
            tuple(Segment(s, torch.full((batch,), count[s]), 0 if s in "VG" else 1) for s in segments),
            visibility,
            torch.arange(batch),
            prefix,
        )
        for name, (segments, visibility, prefix) in STREAMS.items()
    ]
    return build_plan(groups)


def cross_sets(sizes: WorkSizes, batch: int, device: str) -> CrossPlan:
    """Return the visual query sets of all streams; those of one ITM stream read the next sample's image."""
    own = torch.arange(batch)
    index = torch.cat([own] * (CROSS_SETS - 1) + [(own + 1) % batch])
    ids = torch.arange(len(index) * sizes.visual, dtype=torch.int32, device=device).view(len(index), -1)
    return build_cross_plan(index, None, batch, ids, sizes.image_tokens)


def plan_of(case: Case, device: str) -> Plan | CrossPlan:
    if case.op == "segment":
        return packed_streams(case.sizes, case.lengths, case.batch)[1].to(device)
    return cross_sets(case.sizes, case.batch, device)


def inputs_of(case: Case, plan: Plan | CrossPlan, heads: int, device: str) -> list[torch.Tensor]:
    """q, k, v that want gradients, and a gradient of the output."""
    width = case.sizes.width
    if isinstance(plan, Plan):
        q_shape: tuple[int, ...] = (plan.num_queries, heads, width)
        k_shape: tuple[int, ...] = (plan.num_keys, heads, width)
    else:
        q_shape = (*plan.row_id_SQ.shape, heads, width)
        k_shape = (plan.num_images, len(plan.col_id_M), heads, width)
    return random_tensors((q_shape, k_shape, k_shape, q_shape), case.dtype, device)


def random_tensors(shapes: Sequence[tuple[int, ...]], dtype: str, device: str) -> list[torch.Tensor]:
    """Return q, k, v and the gradient of the output; the first three want gradients."""
    generator = torch.Generator(device).manual_seed(0)
    found = [torch.randn(shape, generator=generator, device=device).to(torch_dtype(dtype)) for shape in shapes]
    return [*(x.requires_grad_() for x in found[:3]), *found[3:]]
