"""The worst cases of a benchmark as one HTML page that needs no other file.

Each image is shown with the boxes of the answer and of the reference.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from lyrics.core.errors import ImageError, SampleError, StorageError
from lyrics.core.evaluation.benchmark import reference_box, reference_text
from lyrics.core.evaluation.predictions import Line
from lyrics.core.pictures.drawing import draw_objects
from lyrics.core.pictures.images import open_image
from lyrics.core.pictures.inputs import picture_list
from lyrics.core.types import DetectedObject, Sample

CASES = 24
_SIDE_PX = 360
# Nothing on the page may run or be fetched, whatever a model or a data set wrote.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """body{font:15px/1.4 sans-serif;margin:2em;max-width:70em}figure{display:flex;gap:1em;margin:0 0 1.5em;
border-top:1px solid #ccc;padding-top:1em}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em;
align-content:start;
margin:0}dt{color:#666}
dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}img{max-width:360px;align-self:start}"""


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
    summary = ", ".join(f"{score} {value:.2f}" for score, value in scores.items())
    figures = "\n".join(_figure(samples[row], lines[row], marks[row], picture) for row in worst)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(name)}: worst cases</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{html.escape(name)}: the {len(worst)} worst of "
        f"{len(samples)}</h1><p>{html.escape(summary)}</p>\n{figures}\n</body></html>\n"
    )


def _figure(sample: Sample, line: Line, mark: float, picture: Callable[[Sample], Any] | None) -> str:
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
    images = "".join(f'<img alt="" src="{_data_url(one)}">' for one in drawn)
    cells = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in rows.items())
    return f"<figure>{images}<dl>{cells}</dl></figure>"


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


def _data_url(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
