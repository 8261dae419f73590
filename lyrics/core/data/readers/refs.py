"""Referring expressions in the form of the refer toolkit: a file of refs, and the COCO instances they point into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lyrics.core.data.readers.files import ReadOnDemand
from lyrics.core.data.readers.json_files import ByKey, Found, JsonRecords, listed, parsed, taken_apart
from lyrics.core.data.readers.row import Row, brief
from lyrics.core.errors import DatasetError, SampleError


@dataclass
class RefRecords(ReadOnDemand):
    """Records with the keys ``ref``, ``sentence``, ``annotation`` and ``image``: one per expression of a split.

    Args:
        refs: ``refs(...).json``, made once of ``refs(...).p`` by ``lyrics data import-refs``.
        instances: ``instances.json``; its boxes are (left, top, width, height) in pixels.
        split: the refs' ``split`` that is read.
    """

    refs: Path
    instances: Path
    split: str

    @cached_property
    def _pairs(self) -> JsonRecords:
        return JsonRecords([self.refs], self._of_split, item="sentence")

    def _of_split(self, data: Any) -> Iterable[Found]:
        rows = listed(data)
        splits: set[str] = set()

        def sentences(ref: Row) -> list[Any]:
            splits.add(ref.text("split"))
            if ref.text("split") != self.split:
                return []
            return [{"ref": ref.fields, "sentence": sentence.fields} for sentence in ref.rows("sentences")]

        found = list(taken_apart(rows, sentences))
        if self.split not in splits:
            raise DatasetError(f"has no expression of split {self.split!r}; it has {', '.join(sorted(splits))}.")
        return found

    @cached_property
    def _joined(self) -> tuple[ByKey, ByKey]:
        """Annotations and images by their id."""
        found: tuple[ByKey, ByKey] = parsed(
            self.instances,
            lambda data: (
                ByKey(listed(data, "annotations"), "id", called="annotation"),
                ByKey(listed(data, "images"), "id", called="image"),
            ),
        )
        return found

    def __len__(self) -> int:
        return len(self._pairs)

    def where(self, index: int) -> tuple[Path, str]:
        try:
            pair = self._pairs[index]
        except SampleError:
            return self._pairs.where(index)
        return self.refs, f"ref {brief(pair['ref'].get('ref_id'))}, sentence {brief(_sentence_id(pair))}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index]
        ref = Row(pair["ref"])
        # By the image's number: the ref's own file_name carries the annotation's number and is no file.
        found = {}
        for what, key, rows in zip(("annotation", "image"), ("ann_id", "image_id"), self._joined, strict=True):
            path, place = self.where(index)
            try:
                value = ref.value(key)
            except SampleError as error:
                raise SampleError(f"{path}, {place}: {error}", error.kind) from None
            try:
                found[what] = rows[value]
            except SampleError as error:
                raise SampleError(
                    f"{path}, {place}: {key} is {brief(value)}; {self.instances} {error}", error.kind
                ) from None
        return {**pair, **found}


def _sentence_id(pair: dict[str, Any]) -> Any:
    return pair["sentence"].get("sent_id") if isinstance(pair["sentence"], dict) else None
