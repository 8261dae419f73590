"""The plan against the dense mask for the streams that the stage-1 objectives themselves declare, at random lengths."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives, negative_pairs
from lyrics.core.stage1.streams import Text, merge
from lyrics.kernels import build_plan
from lyrics.workflows.bench.step_cases import build_case
from tests.kernels.step_cases import TOY
from tests.kernels.test_plan import by_definition

#: Name of the component -> the options of every variant whose streams differ.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "itc": [{}, {"recipe": "released"}],
    "itm": [{}, {"recipe": "released"}],
    "icg": [{}, {"recipe": "released"}],
    "msp": [{}, {"recipe": "released"}, {"queries_see_text": False}],
}
NUM_VISUAL, NUM_GROUNDING = 2, 3


@lru_cache(maxsize=1)
def objectives() -> dict[str, list[Any]]:
    context = BuildContext("random", query_dim=32, query_segments=("V", "G", "S", "C"))
    found: dict[str, list[Any]] = {}
    for name, variants in VARIANTS.items():
        entry = default_registry().component("objective", name)
        parts = [Part(f"test.{name}", entry, entry.component.options(**options)) for options in variants]
        found[name] = [build_part(part, context) for part in parts]
    return found


@lru_cache(maxsize=1)
def special() -> Any:
    return build_case(1, (9, 6), **TOY)[0].special


def texts(lengths: list[int]) -> Text:
    width = max(lengths)
    return Text(torch.arange(7, 7 + width).expand(len(lengths), width), torch.tensor(lengths))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_objectives_streams(data: st.DataObject) -> None:
    """All streams of the step in one plan, as they are packed, in the recipe and variant drawn."""
    size = data.draw(st.integers(2, 4))
    captions = texts(data.draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)))
    spatial = texts(data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)))
    numbers = (torch.arange(spatial.ids_RL.shape[1]) // 3).expand(size, -1).masked_fill(~spatial.mask_RL, -1)
    batch = PretrainBatch(Spatial(spatial, numbers, numbers), captions, torch.arange(size), special())
    wrong = st.lists(st.integers(-1, size - 1), min_size=size, max_size=size)
    negatives = Negatives(torch.tensor(data.draw(wrong)), torch.tensor(data.draw(wrong)))
    pairs = negative_pairs(batch, negatives, torch.arange(size), torch.device("cpu"))
    variant = data.draw(st.integers(0, 2))
    streams = []
    for variants in objectives().values():
        objective = variants[variant % len(variants)]
        streams += objective.streams(batch)
        if hasattr(objective, "negative_streams"):
            streams += objective.negative_streams(batch, pairs)
    groups = [stream.group(NUM_VISUAL, NUM_GROUNDING) for stream in merge(streams)]
    assert torch.equal(build_plan(groups)[1].dense_mask(), by_definition(groups))
