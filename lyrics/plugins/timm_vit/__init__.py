"""Any vision transformer of timm as an image encoder, by its name there.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lyrics.core.registry.component import Component, NamesWeights, Options, hookimpl


class TimmVitOptions(Options):
    """Options of ``timm-vit``.

    Image size, mean, standard deviation and resampling are those with which timm evaluates the model. The width of a
    token is the model's too, so it is compared with the query transformer when the model is built, and not before.
    """

    model: str = Field(
        "vit_large_patch14_clip_224.openai",
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$",
        description="timm's name of the model, with or without the tag that says which weights",
    )
    checkpoint: Annotated[str | None, NamesWeights()] = Field(
        None,
        min_length=1,
        description="hub id, folder or .safetensors file, in timm's naming; null: the hub repository that timm names",
    )
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash the whole image to a square, or crop its center as timm does when it evaluates the model",
    )


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="image-encoder",
        name="timm-vit",
        build="lyrics.plugins.timm_vit.encoder:build",
        options=TimmVitOptions,
        requires=("timm>=1.0.20", "torchvision"),
        install="pip install 'lyrics-vl[experts]'",
        summary="any vision transformer of timm; CLIP's ViT-L/14 at 224 by default",
        license="code: Apache-2.0; weights: of each model, as its hub repository states",
        test_options={"model": "test_vit"},
    )
