"""The data set that a benchmark stands on."""

from __future__ import annotations

from typing import Any

from lyrics.core.contracts import Dataset
from lyrics.core.data.build import build_dataset

#: Qualified, so that a stranger's data set of the same name does not get in the way.
DISTRIBUTION = "lyrics-vl"


def of(name: str, options: Any, **more: Any) -> Dataset:
    """Return the data set ``name`` with the benchmark's root, images and split."""
    given = {"root": options.root, "images": options.images, "split": options.split, **more}
    return build_dataset(f"{DISTRIBUTION}/{name}", given)
