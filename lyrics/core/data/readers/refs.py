"""Referring expressions in the form of the refer toolkit: a file of refs, and the COCO instances they point into."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lyrics.core.data.readers.files import ReadOnDemand
from lyrics.core.data.readers.json_files import listed, parsed
from lyrics.core.errors import DatasetError, SampleError


@dataclass
class RefRecords(ReadOnDemand):
    """Records ``{"ref": {...}, "sentence": {...}, "annotation": {...}, "image": {...}}``: one per expression of a split.

    Args:
        refs: ``refs(...).json``, made once of ``refs(...).p`` by ``lyrics data import-refs``.
        instances: ``instances.json``; its boxes are (left, top, width, height) in pixels.
        split: the refs' ``split`` that is read.
    """

    refs: Path
    instances: Path
    split: str

    @cached_property
    def _pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return parsed(self.refs, self._of_split)  # type: ignore[no-any-return]

    def _of_split(self, data: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        rows = listed(data)
        found = [(ref, sentence) for ref in rows if ref["split"] == self.split for sentence in ref["sentences"]]
        if not found:
            raise DatasetError(
                f"has no expression of split {self.split!r}; it has {', '.join(sorted({r['split'] for r in rows}))}."
            )
        return found

    @cached_property
    def _joined(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Annotations and images by their id."""
        return parsed(  # type: ignore[no-any-return]
            self.instances,
            lambda data: (
                {row["id"]: row for row in listed(data, "annotations")},
                {row["id"]: row for row in listed(data, "images")},
            ),
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def where(self, index: int) -> tuple[Path, str]:
        ref, sentence = self._pairs[index]
        return self.refs, f"ref {ref.get('ref_id')}, sentence {sentence.get('sent_id')}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref, sentence = self._pairs[index]
        annotations, images = self._joined
        # By the image's number: the ref's own file_name carries the annotation's number and is no file.
        for what, key, rows in (("annotation", ref["ann_id"], annotations), ("image", ref["image_id"], images)):
            if key not in rows:
                path, place = self.where(index)
                raise SampleError(
                    f"{path}, {place}: refers to {what} {key!r}, which {self.instances} lacks.", "missing"
                )
        return {
            "ref": ref,
            "sentence": sentence,
            "annotation": annotations[ref["ann_id"]],
            "image": images[ref["image_id"]],
        }
