"""The quickstart's report: one HTML page that needs no other file and no network, and is readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.reports import pages

_TEMPLATE = Path(__file__).parent / "quickstart.html"
#: A photograph need not be as large as it came.
_SHOWN_SIDE_PX = 600


def page(result: dict[str, Any], drawn: Sequence[Image.Image], *, own: bool) -> str:
    """Return one HTML page that needs no other file and no network, and is readable on a phone."""
    return pages.page(
        _TEMPLATE,
        title="lyrics quickstart",
        own=own,
        pictures=[_picture(one, picture) for one, picture in zip(result["pictures"], drawn, strict=True)],
        soft_tokens=result["soft_tokens"],
        spatial_text=result["spatial_text"],
        swap=_swap(result["swap"]),
        training=[_stage(name, steps) for name, steps in result["training"].items()],
    )


def _picture(one: Mapping[str, Any], picture: Image.Image) -> dict[str, Any]:
    large = max(picture.size) > _SHOWN_SIDE_PX
    return {
        "name": Path(one["picture"]).name,
        "image": pages.data_url(picture, _SHOWN_SIDE_PX, lossless=not large),
        "objects": [(found["tag"], f"{found['score']:.2f}", _box(found)) for found in one["objects"]],
        "conversation": [
            {
                "question": turn["question"],
                "answer": turn["plain_text"] or turn["text"],
                "boxes": [_box(seen) for seen in turn["objects"]],
                "truth": turn["truth"],
            }
            for turn in one["conversation"]
        ],
    }


def _box(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.0f}" for value in found["box_px"])


def _swap(swap: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if swap is None:
        return None
    return {
        "settings": " ".join(f"--set {path}={slot['use']}" for path, slot in swap["overrides"].items()),
        "rows": [
            (
                Path(one["picture"]).name,
                one["both"],
                ", ".join(one["trained detector alone"]) or "-",
                ", ".join(one["annotations alone"]) or "-",
            )
            for one in swap["pictures"]
        ],
    }


def _stage(name: str, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    rows = [(number, *(f"{value:.3f}" for value in step.values())) for number, step in enumerate(steps, 1)]
    return {"name": name, "head": ["step", *steps[0]], "rows": rows}
