"""The paper's models, refiners and training recipes, by name.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from lyrics.core.registry.component import Preset, Recipe, hookimpl
from lyrics.plugins.paper.presets import (
    PAPER_TRAINABLE,
    PAPER_TRAINABLE_NOTE,
    blip2_13b,
    grounded_sam,
    lyrics_7b,
    lyrics_13b,
    lyrics_mini,
    lyrics_released_14b,
    paper_refiner,
)


@hookimpl
def lyrics_presets() -> Iterable[Preset]:
    yield Preset(
        "lyrics-13b",
        lyrics_13b,
        "the paper: CLIP ViT-L/14, RAM++, Grounding DINO-T, SAM-HQ, 32 + 32 queries, Vicuna-13B",
        reported_trainable=PAPER_TRAINABLE,
        reported_note=PAPER_TRAINABLE_NOTE,
    )
    yield Preset("lyrics-7b", lyrics_7b, "the paper's parts on Vicuna-7B")
    yield Preset(
        "lyrics-released-14b",
        lyrics_released_14b,
        "what the authors released: EVA ViT-g, RAM, 32 + 64 queries, no segmenter",
    )
    yield Preset("lyrics-mini", lyrics_mini, "the paper's parts at a twentieth of their width, for random weights")
    yield Preset("blip2-13b", blip2_13b, "the baseline: no refiner, BLIP-2's Q-Former")
    yield Preset("paper-refiner", paper_refiner, "a refiner alone: the paper's RAM++, Grounding DINO-T and SAM-HQ")
    yield Preset(
        "grounded-sam", grounded_sam, "a refiner alone: Grounding DINO-T and SAM-HQ, for lyrics refine --phrases"
    )


@hookimpl
def lyrics_recipes() -> Iterable[Recipe]:
    yield Recipe("paper-stage1", "lyrics.plugins.paper.recipes:paper_stage1", "stage 1 as in the paper, on 16 A100")
    yield Recipe("paper-stage2", "lyrics.plugins.paper.recipes:paper_stage2", "stage 2 as in the paper, after stage 1")
