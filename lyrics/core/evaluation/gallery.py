"""The worst cases of a benchmark as one HTML page that needs no other file.

Each image is shown with the boxes of the answer and of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.errors import ImageError, SampleError, StorageError
from lyrics.core.evaluation.benchmark import reference_box, reference_text
from lyrics.core.evaluation.predictions import Line
from lyrics.core.pictures.drawing import draw_objects
from lyrics.core.pictures.images import open_image
from lyrics.core.pictures.inputs import picture_list
from lyrics.core.reports import pages
from lyrics.core.types import DetectedObject, Sample

CASES = 24
_SIDE_PX = 360
_TEMPLATE = Path(__file__).parent / "gallery.html"


def gallery(
    name: str,
    scores: Mapping[str, float],
    samples: Sequence[Sample],
    lines: Sequence[Line],
    marks: Sequence[float],
    picture: Callable[[Sample], Any] | None,
) -> str:
    """Return the page: the ``CASES`` samples of the lowest mark, the first of equal ones first.

    ``picture`` opens a sample's image; None where the benchmark has none to open.
    """
    worst = sorted(range(len(samples)), key=lambda row: (marks[row], row))[:CASES]
    return pages.page(
        _TEMPLATE,
        title=f"{name}: worst cases",
        name=name,
        count=len(samples),
        summary=", ".join(f"{score} {value:.2f}" for score, value in scores.items()),
        cases=[_case(samples[row], lines[row], marks[row], picture) for row in worst],
    )


def _case(sample: Sample, line: Line, mark: float, picture: Callable[[Sample], Any] | None) -> dict[str, Any]:
    rows = {
        "sample": line.id,
        "asked": line.prompt,
        "answered": line.prediction.text or "(nothing)",
        "right": reference_text(sample) or "(unknown)",
        "mark": f"{mark:.3f}",
    }
    shown: list[Image.Image] = []
    if picture is not None and sample.image is not None:
        try:
            shown = [open_image(one) for one in picture_list(picture(sample))]
        except (
            ImageError,
            SampleError,
            StorageError,
        ) as error:  # answers can be scored again where the images are not
            rows["picture"] = str(error)
    # Boxes are of the last image.
    drawn = [*map(_small, shown[:-1]), *(_drawn(one, sample, line) for one in shown[-1:])]
    return {"rows": rows, "images": [pages.data_url(one) for one in drawn]}


def _drawn(picture: Image.Image, sample: Sample, line: Line) -> Image.Image:
    small = _small(picture)
    boxes = [DetectedObject("answer", one.box_norm, one.score or 0.0) for one in line.prediction.objects]
    if (target := reference_box(sample)) is not None:
        boxes.append(DetectedObject("right", target, 1.0))
    return draw_objects(small, boxes) if boxes else small


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    return small
