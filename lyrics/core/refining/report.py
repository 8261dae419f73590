"""``report.html`` of a refined folder: how much was found, of what, and the first images with what was seen in them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lyrics.core.errors import ImageError
from lyrics.core.files import name_as_text
from lyrics.core.pictures.images import open_image
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.rows import (
    DRAWN_FOLDER,
    OBJECTS_FILE,
    SKIPPED_FILE,
    read_rows,
    read_skipped,
    refinement_of,
    written_whole,
)
from lyrics.core.reports import pages

REPORT_FILE = "report.html"
#: Images, tags and reasons that are shown.
_IMAGES, _TAGS, _REASONS = 24, 30, 10
_SIDE_PX = 480
_TEMPLATE = Path(__file__).parent / "refined.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` about the rows of ``objects.jsonl`` and ``skipped.jsonl``, in one pass over each."""
    tags: Counter[str] = Counter()
    images = empty = 0
    shown: list[dict[str, Any]] = []
    for where, row in read_rows(folder / OBJECTS_FILE):
        found = refinement_of(row, where)
        images += 1
        empty += not found.objects
        tags.update(one.tag for one in found.objects)
        if len(shown) < _IMAGES:
            shown.append(_shown(folder, row, found))
    skipped, reasons = _skipped(read_skipped(folder / SKIPPED_FILE))
    text = pages.page(
        _TEMPLATE,
        title=f"{name_as_text(folder.resolve().name)}: what was found",
        facts={
            "images": f"{images:,}",
            "objects": f"{tags.total():,}",
            "images without an object": f"{empty:,}",
            "skipped": f"{skipped.total():,}",
        },
        tags=[(tag, f"{count:,}") for tag, count in sorted(tags.items(), key=lambda one: (-one[1], one[0]))[:_TAGS]],
        more_tags=max(0, len(tags) - _TAGS),
        skipped=[(kind, f"{count:,}") for kind, count in skipped.most_common()],
        reasons=reasons,
        more_reasons=max(0, skipped.total() - len(reasons)),
        images=shown,
        more_images=max(0, images - len(shown)),
    )
    with written_whole(folder / REPORT_FILE) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return folder / REPORT_FILE


def _skipped(found: Iterable[tuple[str, ImageError]]) -> tuple[Counter[str], list[str]]:
    """How often each kind of fault, and the first reasons."""
    kinds: Counter[str] = Counter()
    reasons: list[str] = []
    for _, error in found:
        kinds[error.kind] += 1
        if len(reasons) < _REASONS:
            reasons.append(str(error))
    return kinds, reasons


def _shown(folder: Path, row: Mapping[str, Any], found: Refinement) -> dict[str, Any]:
    return {
        "name": name_as_text(Path(found.name).name),
        "image": _picture(folder, row, found),
        "size": f"{found.size_px[0]} x {found.size_px[1]} pixels",
        "tags": [f"{tag.name} {tag.score:.2f}" for tag in found.tags],
        "objects": [
            (one.tag, f"{one.score:.2f}", ", ".join(f"{value:.0f}" for value in one.box_norm.to_px(found.size_px)))
            for one in itertools.islice(found.objects, 12)
        ],
        "more": max(0, len(found.objects) - 12),
    }


def _picture(folder: Path, row: Mapping[str, Any], found: Refinement) -> str | None:
    """The drawing, where there is one; else the image with what was found drawn over it, where it is a file still."""
    try:
        if drawn := row.get("drawn"):
            return pages.data_url(open_image(folder / DRAWN_FOLDER / Path(str(drawn)).name), _SIDE_PX)
        image = open_image(found.name) if Path(found.name).is_file() else None
    except (ImageError, OSError):
        return None
    if image is None or image.size != found.size_px:  # it is another one by now
        return None
    return pages.data_url(found.draw(image), _SIDE_PX)
