"""Recognize Anything taggers: RAM++ (``ram-plus``) and RAM (``ram``), on a Swin backbone.

Upstream is on no package registry and does not run on today's transformers, so the network is our own and reads
upstream's weights. A checkpoint is a folder (or a repository on the hub) of three files:

- ``model.safetensors``: upstream's ``.pth`` converted to safetensors, tensor names as they are;
- ``tags.txt``: one tag a line, in the order of the checkpoint's classes (upstream's ``ram_tag_list.txt``);
- ``thresholds.txt``: one probability a line, in the same order (upstream's ``ram_tag_list_threshold.txt``).

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import Component, Converter, NamesWeights, Options, hookimpl

PATCH_SIZE = 4
#: Upstream's two lists, which are in its source and in no checkpoint, as of its commit 7cb804a: these bytes for good.
_DATA = (
    "https://raw.githubusercontent.com/xinyu1205/recognize-anything/7cb804a8609e9f4b1a50b7f31436d2df40bb9481/ram/data"
)
_LISTS = {name: f"{_DATA}/{name}" for name in ("ram_tag_list.txt", "ram_tag_list_threshold.txt")}


class SwinOptions(Options):
    """A Swin backbone by its numbers; every stage after the first halves the grid and doubles the width."""

    embed_dim: int = Field(ge=1, description="width of the first stage")
    depths: tuple[int, ...] = Field(min_length=1, description="blocks per stage")
    num_heads: tuple[int, ...] = Field(min_length=1, description="attention heads per stage")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths has {len(self.depths)} stages but num_heads has {len(self.num_heads)}")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"width {self.embed_dim * 2**stage} of stage {stage} is not a multiple of num_heads {heads}"
                )
        return self


SWIN: dict[str, dict[str, Any]] = {
    "swin-b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "swin-l": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


class RamOptions(Options):
    """Options of ``ram``; the defaults are those of the public ``ram_swin_large_14m.pth``."""

    checkpoint: Annotated[str | None, NamesWeights(required=True)] = Field(
        None,
        description="folder or hub id with model.safetensors, tags.txt and thresholds.txt; pretrained weights need it, "
        "because upstream publishes .pth files only",
    )
    backbone: Literal["swin-b", "swin-l"] | SwinOptions = Field(
        "swin-l",
        description="swin-l: as upstream publishes; swin-b: as the paper names (section 4); or a Swin by its numbers",
    )
    image_size: int = Field(384, ge=1, description="side in pixels of the square that images are squashed to")
    window_size: int = Field(12, ge=1, description="side of Swin's attention windows, in patches")
    num_tags: int = Field(4585, ge=1, description="classes; with random weights they are called 'tag 0', 'tag 1', ...")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="one threshold for all tags instead of the checkpoint's; with random weights None means 0.68",
    )
    head_width: int = Field(768, ge=1, description="width of the tagging head")
    head_layers: int = Field(2, ge=1, description="cross-attention layers of the tagging head")
    head_heads: int = Field(4, ge=1, description="attention heads of the tagging head; divides head_width")
    head_mlp_width: int = Field(3072, ge=1, description="inner width of the tagging head's feed-forward layers")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        stages = len(self.swin.depths)
        coarsest = PATCH_SIZE * 2 ** (stages - 1) * self.window_size
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {coarsest} (patch {PATCH_SIZE}, "
                f"{stages} stages, window_size {self.window_size}), so that every stage is whole windows"
            )
        if self.head_width % self.head_heads:
            raise ValueError(f"head_width {self.head_width} is not a multiple of head_heads {self.head_heads}")
        return self

    @property
    def swin(self) -> SwinOptions:
        """The backbone's numbers."""
        return SwinOptions(**SWIN[self.backbone]) if isinstance(self.backbone, str) else self.backbone


class RamPlusOptions(RamOptions):
    """Options of ``ram-plus``; the defaults are those of the public ``ram_plus_swin_large_14m.pth``."""

    num_descriptions: int = Field(51, ge=1, description="descriptions per tag, which each image weighs for itself")


@hookimpl
def lyrics_components() -> Iterator[Component]:
    """Yield ``ram-plus`` and ``ram``."""
    small = {
        "backbone": {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
        "image_size": 32,
        "window_size": 2,
        "num_tags": 6,
        "threshold": 0.0,  # every tag, so that the conformance suite sees some
        "head_width": 16,
        "head_layers": 2,
        "head_heads": 2,
        "head_mlp_width": 32,
    }
    yield Component(
        kind="tagger",
        name="ram-plus",
        build="lyrics.plugins.ram_plus.tagger:build_ram_plus",
        options=RamPlusOptions,
        summary="RAM++: 4,585 tags, each known by 51 descriptions",
        license="weights of recognize-anything: Apache-2.0",
        test_options={**small, "num_descriptions": 3},
        converters=(
            Converter(
                "ram-plus",
                "lyrics.plugins.ram_plus.public:convert",
                marks=("label_embed", "wordvec_proj.weight", "reweight_scale"),
                summary="RAM++ (ram_plus_swin_large_14m.pth), with its tag list and thresholds beside it",
                published=("hub:xinyu1205/recognize-anything-plus-model/ram_plus_swin_large_14m.pth",),
                beside=_LISTS,
            ),
        ),
    )
    yield Component(
        kind="tagger",
        name="ram",
        build="lyrics.plugins.ram_plus.tagger:build_ram",
        options=RamOptions,
        summary="RAM: 4,585 tags, each known by one embedding",
        license="weights of recognize-anything: Apache-2.0",
        test_options=small,
        converters=(
            Converter(
                "ram",
                "lyrics.plugins.ram_plus.public:convert",
                marks=("label_embed", "wordvec_proj.weight"),
                summary="RAM (ram_swin_large_14m.pth), with its tag list and thresholds beside it",
                published=("hub:xinyu1205/recognize_anything_model/ram_swin_large_14m.pth",),
                beside=_LISTS,
            ),
            Converter("lyrics-released-14b", "lyrics.plugins.ram_plus.public:convert_released", whole_model=True),
        ),
    )
