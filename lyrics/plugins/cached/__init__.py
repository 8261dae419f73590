"""Tags, boxes and masks read back from an ``objects.jsonl``.

``lyrics refine`` writes one, or it is made from annotations.

Experts may then run once, in another environment, and everything after them reads the file. This manifest imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from lyrics.core.registry.component import Component, Options, hookimpl


class CachedOptions(Options):
    """Where the objects are."""

    file: str | None = Field(
        None, description="objects.jsonl; images are found by their path as written there, or by file name"
    )
    missing: Literal["error", "empty"] = Field(
        "error", description="an image that is not in the file is an error, or an image without objects"
    )


class CachedTokensOptions(CachedOptions):
    """The same, for the kinds that give local tokens."""

    stand_in_dim: int | None = Field(
        None,
        ge=1,
        description="width of the local tokens of the part that this one stands in for: it then gives none, and a "
        "query transformer that "
        "was trained with that part fits; null: a token is the box itself",
    )

    @property
    def feature_dim(self) -> int:
        """A token is its box: center x, center y, width, height, each a share of the image."""
        return self.stand_in_dim or 4


@hookimpl
def lyrics_components() -> Iterator[Component]:
    for kind, options, summary in (
        ("tagger", CachedOptions, "tags from an objects.jsonl"),
        ("detector", CachedTokensOptions, "boxes from an objects.jsonl; a local token is the box itself"),
        ("segmenter", CachedTokensOptions, "masks from an objects.jsonl; the box itself where none is stored"),
    ):
        yield Component(
            kind=kind,  # type: ignore[arg-type]
            name="cached",
            build=f"lyrics.plugins.cached.experts:build_{kind}",
            options=options,
            summary=summary,
            license="that of the file",
            test_options={"missing": "empty"},
            capabilities=("reads_known_objects",),
        )
