"""COCO-style JSON: one record per image, its captions and its annotated boxes joined to it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lyrics.core.data.readers.files import ReadOnDemand
from lyrics.core.data.readers.json_files import listed, parsed
from lyrics.core.errors import DatasetError


@dataclass
class CocoRecords(ReadOnDemand):
    """Records ``{"image": {...}, "captions": [...], "annotations": [...]}``, in the order of the file's ``images``.

    Each annotation gets its category's name as ``category``. Regions of many objects (``iscrowd``) are left out.

    Args:
        captions: file whose annotations have a ``caption``, or None.
        instances: file whose annotations have a ``bbox`` (left, top, width, height in pixels), or None.
    """

    captions: Path | None = None
    instances: Path | None = None

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        path = self.captions or self.instances
        assert path is not None, "captions, instances or both"
        images = {image["id"]: image for image in parsed(path, lambda data: listed(data, "images"))}
        captions: dict[Any, list[str]] = {}
        boxes: dict[Any, list[dict[str, Any]]] = {}
        if self.captions is not None:
            captions = parsed(self.captions, lambda data: _by_image(data, images, lambda row: row["caption"]))
        if self.instances is not None:
            boxes = parsed(self.instances, lambda data: _boxes(data, images))
        return [
            {"image": image, "captions": captions.get(key, []), "annotations": boxes.get(key, [])}
            for key, image in images.items()
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]

    def where(self, index: int) -> tuple[Path, str]:
        path = self.captions or self.instances
        assert path is not None
        return path, f"image {self._records[index]['image']['id']}"


def _by_image(data: Any, images: dict[Any, Any], value: Any) -> dict[Any, list[Any]]:
    """Values of the annotations by the image they belong to."""
    found: dict[Any, list[Any]] = defaultdict(list)
    # Test splits have images only.
    for row in listed(data, "annotations") if "annotations" in data else []:
        if row["image_id"] not in images:
            raise DatasetError(f"annotation {row['id']} is of image {row['image_id']}, which is not among the images.")
        found[row["image_id"]].append(value(row))
    return dict(found)


def _boxes(data: Any, images: dict[Any, Any]) -> dict[Any, list[dict[str, Any]]]:
    names = {category["id"]: category["name"] for category in listed(data, "categories")}
    found = _by_image(data, images, lambda row: {**row, "category": names[row["category_id"]]})
    return {key: [row for row in rows if not row.get("iscrowd")] for key, rows in found.items()}
