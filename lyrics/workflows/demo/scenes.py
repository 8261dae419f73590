"""Example images: drawn scenes, of which some data set of the registry makes any number."""

from __future__ import annotations

from PIL import Image

from lyrics.core.data.build import build_dataset

#: What ``lyrics-tiny`` knows, and has not seen.
_DATASET, _OPTIONS = "lyrics-vl/scenes", {"split": "test", "task": "dialogue"}


def scenes(count: int = 6, side_px: int = 256) -> list[Image.Image]:
    """Return drawn scenes, enlarged so that people see them well."""
    data = build_dataset(_DATASET, {**_OPTIONS, "scenes": count})
    found = [data.picture(data[row]) for row in range(count)]
    return [one.resize((side_px, side_px), Image.Resampling.LANCZOS) for one in found]
