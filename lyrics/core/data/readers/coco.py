"""COCO-style JSON: one record per image, its captions and its annotated boxes joined to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from lyrics.core.data.readers.files import ReadOnDemand
from lyrics.core.data.readers.json_files import ByKey, Fault, listed, parsed
from lyrics.core.data.readers.row import Row, brief
from lyrics.core.errors import SampleError


class _Record(NamedTuple):
    """A record, or why it cannot be read; with the file and the place in it, for messages."""

    path: Path
    place: str
    record: dict[str, Any] | Fault


@dataclass
class CocoRecords(ReadOnDemand):
    """Records ``{"image": {...}, "captions": [...], "annotations": [...]}``, in the order of the file's ``images``.

    Each annotation gets its category's name as ``category``. Regions of many objects (``iscrowd``) are left out.

    What is wrong harms only itself: an image one of whose annotations cannot be read is one bad sample, and so is each
    of two images with one id, and each annotation that belongs to no image. The last stand after all images.

    Args:
        captions: file whose annotations have a ``caption``, or None.
        instances: file whose annotations have a ``bbox`` (left, top, width, height in pixels), or None.
    """

    captions: Path | None = None
    instances: Path | None = None

    @cached_property
    def _records(self) -> list[_Record]:
        path = self.captions or self.instances
        assert path is not None, "captions, instances or both"
        places = _Images(parsed(path, lambda data: listed(data, "images")))
        captions = boxes = _Joined({}, {}, [])
        if self.captions is not None:
            captions = parsed(self.captions, partial(_joined, path=self.captions, images=places))
        if self.instances is not None:
            boxes = parsed(self.instances, partial(_joined, path=self.instances, images=places, boxes=True))
        records: list[_Record] = []
        for number, (image, key) in enumerate(places.rows):
            if isinstance(key, Fault):
                records.append(_Record(path, f"images[{number}]", key))
            elif (fault := captions.faults.get(key) or boxes.faults.get(key)) is not None:
                records.append(_Record(path, f"image {key}", fault))
            else:
                found = {
                    "image": image,
                    "captions": captions.found.get(key, []),
                    "annotations": boxes.found.get(key, []),
                }
                records.append(_Record(path, f"image {key}", found))
        return records + captions.homeless + boxes.homeless

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index].record
        if isinstance(record, Fault):
            path, place = self.where(index)
            raise SampleError(f"{path}, {place}: {record.sentence}", "record")
        return record

    def where(self, index: int) -> tuple[Path, str]:
        return self._records[index][:2]


class _Images:
    """The images of a file, each with its id or with what is wrong with it."""

    def __init__(self, images: list[Any]) -> None:
        by_id = ByKey(images, "id", called="image")
        self.rows: list[tuple[Any, Any]] = []
        self.ids: set[Any] = set()
        for image in images:
            row = Row(image)
            try:
                key = row.identity("id")
                if key in self.ids and key not in by_id.doubled:
                    continue  # the same image once more
                if key in by_id.doubled:
                    raise SampleError(
                        f"another image has the id {brief(key)} too; which annotations are whose?", "record"
                    )
            except SampleError as error:
                self.rows.append((image, Fault(str(error))))
            else:
                self.ids.add(key)
                self.rows.append((image, key))
        self.doubled = by_id.doubled


@dataclass(frozen=True)
class _Joined:
    """By the image's id: its annotations, or that one cannot be read. ``homeless`` ones belong to no image."""

    found: Mapping[Any, list[Any]]
    faults: Mapping[Any, Fault]
    homeless: list[_Record]


def _joined(data: Any, path: Path, images: _Images, boxes: bool = False) -> _Joined:
    """Captions of a file, or its boxes."""
    names = ByKey(listed(data, "categories"), "id", called="category") if boxes else None
    found: dict[Any, list[Any]] = defaultdict(list)
    faults: dict[Any, Fault] = {}
    homeless: list[_Record] = []
    # Test splits have images only.
    for number, fields in enumerate(listed(data, "annotations") if "annotations" in data else []):
        row = Row(fields)
        place = f"annotations[{number}]"
        try:
            key = row.identity("image_id")
            if key in images.doubled:
                continue
            if key not in images.ids:
                raise SampleError(f"image_id is {brief(key)}, which is not the id of an image.", "missing")
        except SampleError as error:
            homeless.append(_Record(path, place, Fault(str(error))))
            continue
        try:
            if names is None:
                found[key].append(row.text("caption"))
            elif not _is_crowd(row):
                found[key].append({**fields, "category": _name(row, names), "place": f"{path.name}, {place}"})
        except SampleError as error:
            faults.setdefault(key, Fault(f"{path.name}, {place}: {error}"))
    return _Joined(dict(found), faults, homeless)


def _name(row: Row, names: ByKey) -> str:
    key = row.value("category_id")
    try:
        return Row(names[key], f"category {brief(key)}").words("name")
    except SampleError as error:
        raise SampleError(f"category_id is {brief(key)}; the file {error}", "record") from None


def _is_crowd(row: Row) -> bool:
    if not row.has("iscrowd"):
        return False
    if row.fields["iscrowd"] not in (0, 1):
        raise row.error("iscrowd", "0 or 1")
    return bool(row.fields["iscrowd"])
