"""The objectives of stage 1: the paper's four, and region words. This manifest imports no torch.

Each of the four has the recipe ``paper`` (the default) and the recipe ``released``, which reproduces the authors'
published code; with a query transformer without grounding queries the latter is BLIP-2's stage 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from lyrics.core.registry.component import Capability, Component, Options, hookimpl

Recipe = Literal["paper", "released"]


class ObjectiveOptions(Options):
    """What every objective has."""

    recipe: Recipe = Field("paper", description="paper, or released: what the authors' published code does")

    @property
    def needs_segments(self) -> tuple[str, ...]:
        """What the query transformer must have; spatial text is read where there is some."""
        return ("V", "C")


class ITCOptions(ObjectiveOptions):
    """Image-text contrastive learning."""

    projection_dim: int = Field(256, ge=1, description="width in which images and texts are compared")
    temperature: float = Field(0.07, gt=0.0, description="initial value of the learnable temperature")
    min_temperature: float = Field(0.001, gt=0.0, description="the temperature is clamped from below (recipe paper)")
    max_temperature: float = Field(0.5, gt=0.0, description="the temperature is clamped from above (recipe paper)")
    drop_spatial: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="in training, share of texts that are compared without their spatial text: captions must tell "
        "images apart, too",
    )


class ITMOptions(ObjectiveOptions):
    """Image-text matching."""


class ICGOptions(ObjectiveOptions):
    """Image-grounded caption generation."""


class MSPOptions(ObjectiveOptions):
    """Masked spatial prediction."""

    mask_probability: float = Field(
        0.15, ge=0.0, le=1.0, description="chance that an object (released: a unit of one) is masked"
    )
    queries_see_text: bool = Field(
        True,
        description="queries read the spatial text too; off: spatial text reads the query stream of ITC (recipe paper)",
    )

    @property
    def needs_segments(self) -> tuple[str, ...]:
        return ("V", "S")


class RegionOptions(Options):
    """Region words."""

    num_layers: int = Field(2, ge=1, description="layers of the decoder that reads the queries")
    num_heads: int = Field(4, ge=1, description="its attention heads")

    @property
    def needs_segments(self) -> tuple[str, ...]:
        """What the query transformer must have: queries to read, and a reader of captions."""
        return ("V", "C")


_SUMMARIES: dict[str, tuple[type[Options], str]] = {
    "itc": (ITCOptions, "image-text contrastive: pooled queries against [BOS] and [CLS], negatives from all ranks"),
    "itm": (
        ITMOptions,
        "image-text matching: visual queries with the caption, grounding queries with the spatial text",
    ),
    "icg": (ICGOptions, "image-grounded caption generation: a causal caption that sees the queries"),
    "msp": (MSPOptions, "masked spatial prediction: whole objects, tag and box, restored from the queries"),
    "regions": (RegionOptions, "region words: what captions say of a box, told from the box (not of the paper)"),
}
_CAPABILITIES: dict[str, tuple[Capability, ...]] = {
    "itc": ("compares_across_batch",),
    "regions": ("reads_boxes_in_captions",),
}


@hookimpl
def lyrics_components() -> Iterator[Component]:
    for name, (options, summary) in _SUMMARIES.items():
        yield Component(
            kind="objective",
            name=name,
            build=f"lyrics.plugins.objectives.{name}:build",
            options=options,
            summary=summary,
            license="Apache-2.0",
            test_options={"projection_dim": 16} if name == "itc" else {},
            capabilities=_CAPABILITIES.get(name, ()),
        )
