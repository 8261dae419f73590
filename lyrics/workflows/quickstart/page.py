"""The quickstart's report: one HTML page that needs no other file and no network, and is readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lyrics.core.pictures.images import open_image
from lyrics.core.reports import pages

_TEMPLATE = Path(__file__).parent / "quickstart.html"
#: A photograph need not be as large as it came.
_SHOWN_SIDE_PX = 600
_BOX = re.compile(r"<box ([0-9 ]+)>")
_PART_SIDE_PX = 96


def page(result: dict[str, Any], drawn: Sequence[Image.Image], *, own: bool) -> str:
    """Return one HTML page that needs no other file and no network, and is readable on a phone."""
    return pages.page(
        _TEMPLATE,
        title="lyrics quickstart",
        own=own,
        pictures=[_picture(one, picture) for one, picture in zip(result["pictures"], drawn, strict=True)],
        soft_tokens=result["soft_tokens"],
        spatial_text=result["spatial_text"],
        twins=_twins(result["twins"]),
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
                "question": _question(turn["question"], one["picture"]),
                "answer": turn["plain_text"] or turn["text"],
                "boxes": [_box(seen) for seen in turn["objects"]],
                "truth": turn["truth"],
            }
            for turn in one["conversation"]
        ],
    }


def _box(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.0f}" for value in found["box_px"])


def _twins(twins: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The answers of twins by drawing; what was wrong is said as plainly as what was right."""
    if twins is None:
        return None
    drawings = []
    for path, rows in groupby(twins["answers"], key=lambda row: row["picture"]):
        image = open_image(path)
        answers = [
            {
                "question": _question(row["question"], path),
                "truth": row["truth"],
                "own": (row["answer"], row["right"]),
                "twin": (row["with_the_twins_soft_tokens"], row["right_with_the_twins"]),
            }
            for row in rows
        ]
        drawings.append({"name": Path(path).name, "image": pages.data_url(image, lossless=True), "answers": answers})
    return {"drawings": drawings, **twins["right"]}


def _swap(swap: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What differs with the other detector; images in which nothing does are counted only."""
    if swap is None:
        return None
    changed = [one for one in swap["pictures"] if one["trained detector alone"] or one["annotations alone"]]
    return {
        "settings": " ".join(f"--set {path}={slot['use']}" for path, slot in swap["overrides"].items()),
        "same": sum(one["both"] for one in swap["pictures"]),
        "differences": [difference_text(one) for one in changed],
    }


def difference_text(one: Mapping[str, Any]) -> str:
    """What the trained detector and the annotations say of an image, in words: ``scene-1.png: only ...``."""
    parts = [
        f"{who} alone: {', '.join(names)}"
        for who, names in (
            ("the trained detector", one["trained detector alone"]),
            ("the annotations", one["annotations alone"]),
        )
        if names
    ]
    return f"{Path(one['picture']).name}: {one['both']} objects the same; {'; '.join(parts)}"


def _stage(name: str, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    # msp has nothing masked in some batches, and no loss then.
    losses = list(dict.fromkeys(loss for step in steps for loss in step))
    rows = [
        (number, *(f"{step[loss]:.3f}" if loss in step else "" for loss in losses))
        for number, step in enumerate(steps, 1)
    ]
    return {"name": name, "head": ["step", *losses], "rows": rows}


def _question(text: str, path: str) -> list[dict[str, str]]:
    """A question in pieces of text; in the place of each of its boxes stands that part of the image."""
    pieces = _BOX.split(text)  # what is between boxes, and their corners
    return [
        {"text": f"the box {piece}", "image": _part(path, piece)} if place % 2 else {"text": piece, "image": ""}
        for place, piece in enumerate(pieces)
    ]


def _part(path: str, corners: str) -> str:
    """The surroundings of a box of an image, the box outlined in dark and light, as a data URL."""
    image = open_image(path)
    x1, y1, x2, y2 = (int(number) for number in corners.split())
    margin = 4 + max(x2 - x1, y2 - y1) // 3
    left, top = max(0, x1 - margin), max(0, y1 - margin)
    part = image.crop((left, top, min(image.width, x2 + margin), min(image.height, y2 + margin)))
    times = _PART_SIDE_PX / max(part.size)
    shown = part.resize((max(1, round(part.width * times)), max(1, round(part.height * times))))
    box = [round(times * (edge - start)) for edge, start in zip((x1, y1, x2, y2), (left, top, left, top), strict=True)]
    pen = ImageDraw.Draw(shown)
    pen.rectangle(box, outline="black", width=4)
    pen.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=2)
    return pages.data_url(shown, lossless=True)
