"""What the page draws: an image with what the refiner found in it and what an answer points at, as plain data.

Coordinates are pixels of the original image; the image and the masks that are sent may be smaller.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lyrics.core.answers import Answer, AnswerObject
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject

#: The longer side of the image that is sent.
_SIDE_PX = 1024
#: Fills of masks and edges of boxes; each has a contrast of 4.5 or more with white.
COLORS = ("#0b6e75", "#b3261e", "#5b3fa8", "#8a5a00", "#1d6b2f", "#a8186d", "#1f5fae", "#5f5f00")


def scene(image: Image.Image, seen: Refinement, parts: Mapping[str, str | None]) -> dict[str, Any]:
    """Return an image with what the refiner saw in it.

    Args:
        image: as it was seen.
        seen: what was found in it.
        parts: ``tagger``, ``detector`` and ``segmenter`` -> the name of the part, None where there is none.
    """
    small = _small(image)
    return {
        "image": _data_url(small, "JPEG"),
        "width": image.width,
        "height": image.height,
        "parts": {name: part or "none" for name, part in parts.items()},
        "tags": [{"name": tag.name, "score": round(tag.score, 2)} for tag in seen.tags],
        "objects": [
            {
                "tag": found.tag,
                "score": round(found.score, 2),
                "box": [round(value, 1) for value in found.box_norm.to_px(image.size)],
                "mask": _mask(found, small.size, COLORS[number % len(COLORS)]),
                "color": COLORS[number % len(COLORS)],
                "evidence": f"{parts.get('detector') or 'the detector'}, score {found.score:.2f}",
            }
            for number, found in enumerate(seen.objects)
        ],
        "answer": None,
    }


def with_answer(shown: Mapping[str, Any], answer: Answer, detector: str | None) -> dict[str, Any]:
    """The same with what an answer points at, each thing with its evidence."""
    objects = [
        {
            "tag": found.tag or "box",
            "box": [round(value, 1) for value in found.box_px],
            "supported": found.supported,
            "evidence": evidence(found, detector),
        }
        for found in answer.objects
    ]
    sure = None if answer.confidence is None else round(float(np.exp(answer.confidence.mean_log_prob)), 3)
    return {**shown, "answer": {"text": answer.plain_text, "objects": objects, "sure": sure}}


def evidence(found: AnswerObject, detector: str | None) -> str:
    """Who saw what an answer points at, in words."""
    if not found.supported or found.detection is None:
        return "nobody saw this"
    return f"seen by {detector or 'the detector'} as {found.detection.tag!r}, score {found.detection.score:.2f}"


def _small(image: Image.Image) -> Image.Image:
    side = max(image.size)
    if side <= _SIDE_PX:
        return image
    return image.resize(tuple(max(1, round(value * _SIDE_PX / side)) for value in image.size))  # type: ignore[arg-type]


def _mask(found: DetectedObject, size: tuple[int, int], color: str) -> str | None:
    """A mask as a PNG of one color that is clear around it."""
    if found.mask is None:
        return None
    alpha = Image.fromarray(found.mask.to_array().astype(np.uint8) * 150).resize(size)
    painted = Image.new("RGB", size, color)
    painted.putalpha(alpha)
    return _data_url(painted, "PNG")


def _data_url(image: Image.Image, kind: str) -> str:
    out = io.BytesIO()
    image.save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
