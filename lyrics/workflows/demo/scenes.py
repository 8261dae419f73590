"""Example images: drawn scenes, of which some data set of the registry makes any number."""

from __future__ import annotations

from PIL import Image

from lyrics.core.data.build import build_dataset

#: What ``lyrics-tiny`` knows, and has not seen.
_DATASET, _OPTIONS = "lyrics-vl/scenes", {"split": "test", "task": "dialogue"}


def scenes(count: int = 6, side_px: int = 256) -> list[Image.Image]:
    """Return drawn scenes, enlarged so that people see them well: their longer side is ``side_px``."""
    data = build_dataset(_DATASET, {**_OPTIONS, "scenes": count})
    found = [data.picture(data[row]) for row in range(count)]
    times = [side_px / max(one.size) for one in found]
    return [
        one.resize((round(one.width * large), round(one.height * large)), Image.Resampling.LANCZOS)
        for one, large in zip(found, times, strict=True)
    ]
