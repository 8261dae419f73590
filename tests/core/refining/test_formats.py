"""Rows in other formats: the same bytes, boxes and names, whatever holds them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lyrics.core.errors import ImageError, LyricsError, UnknownNameError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refining.formats import (
    COCO_FILE,
    PARQUET_FILE,
    YOLO_FOLDER,
    check_formats,
    rows_of_parquet,
    write_formats,
)
from lyrics.core.refining.refinement import Refinement, to_coco
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, read_refinements, row_line, skipped_line
from lyrics.core.types import DetectedObject, Tag


def refinements(folder: Path) -> list[Refinement]:
    """With and without masks, tags and objects; names that are alike, and one that is no text."""
    mask = Mask.from_array(np.arange(48 * 64).reshape(48, 64) % 7 < 3)
    dog = DetectedObject("dog", Box(0.1, 0.2, 0.5, 0.6), 0.75, mask)
    cat = DetectedObject('a "cat"\n東', Box(0, 0, 1, 1), 0.5)
    names = ["in/a.png", "in/a.jpg", os.fsdecode(b"in/caf\xe9.png"), "s3://bucket/b.jpg", "in/none.png"]
    seen = [(Tag("dog", 0.9),), (), (), (Tag("x", 0.1), Tag("y", 0.05)), ()]
    found = [(dog, cat), (cat,), (dog,), (cat, dog), ()]
    return [
        Refinement((64, 48), tags, objects, str(folder / name) if not name.startswith("s3") else name)
        for name, tags, objects in zip(names, seen, found, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "a.jpg")
    rows = [one.to_json() | {"refiner": "0123"} for one in refinements(tmp_path)]
    (tmp_path / OBJECTS_FILE).write_bytes(b"".join(map(row_line, rows)))
    (tmp_path / SKIPPED_FILE).write_bytes(skipped_line("in/bad.jpg", ImageError("in/bad.jpg: is empty.", "empty")))
    return tmp_path


def test_coco_written_row_by_row_is_coco_of_all_rows(folder: Path) -> None:
    write_formats(folder, ["jsonl", "coco"])
    whole = to_coco(list(read_refinements(folder / OBJECTS_FILE)))
    assert (folder / COCO_FILE).read_text(encoding="utf-8") == json.dumps(whole, ensure_ascii=False)
    assert len(whole["annotations"]) == 6
    (folder / OBJECTS_FILE).write_bytes(b"")
    write_formats(folder, ["coco"])
    assert (folder / COCO_FILE).read_text(encoding="utf-8") == json.dumps(to_coco([]), ensure_ascii=False)


def test_parquet_gives_back_every_row_and_has_one_for_what_was_skipped(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    write_formats(folder, ["parquet"])
    *rows, failed = rows_of_parquet(folder / PARQUET_FILE)
    assert b"".join(map(row_line, rows)) == (folder / OBJECTS_FILE).read_bytes()
    assert failed == {"image": "in/bad.jpg", "error": "in/bad.jpg: is empty.", "error_kind": "empty"}
    from lyrics.core.data.readers import ParquetRecords

    records = ParquetRecords([folder / PARQUET_FILE])
    assert [one["image"] for one in map(records.__getitem__, range(len(records)))][-1] == "in/bad.jpg"


def test_a_damaged_parquet_file_is_a_sentence(folder: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (folder / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(LyricsError, match=r"a\.parquet: cannot be read as parquet") as caught:
        list(rows_of_parquet(folder / "a.parquet"))
    pyarrow.parquet.write_table(arrow.table({"image": ["a"]}), folder / "a.parquet")
    with pytest.raises(LyricsError, match="has no column drawn, error"):
        list(rows_of_parquet(folder / "a.parquet"))
    assert "\n" not in str(caught.value)


def test_yolo_has_a_label_file_and_a_link_for_each_image(folder: Path) -> None:
    write_formats(folder, ["yolo"])
    out = folder / YOLO_FOLDER
    data = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {0: 'a "cat"\n東', 1: "dog"}
    listed = [json.loads(line) for line in (out / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({one["label"] for one in listed}) == 5
    assert [one["image"] for one in listed][3] == "s3://bucket/b.jpg"
    first = (out / "labels" / listed[0]["label"]).read_text().splitlines()
    assert first == ["1 0.300000 0.400000 0.400000 0.400000", "0 0.500000 0.500000 1.000000 1.000000"]
    assert (out / "labels" / listed[4]["label"]).read_text() == ""
    links = sorted((out / "images").iterdir())
    assert {link.resolve().name for link in links} == {"a.png", "a.jpg"}
    assert {link.stem for link in links} == {Path(one["label"]).stem for one in listed[:2]}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_formats(folder, ["yolo"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_unknown_format_is_named_before_anything_is_done() -> None:
    assert check_formats(["jsonl", "coco", "jsonl"]) == ("jsonl", "coco")
    with pytest.raises(
        UnknownNameError, match=r"format 'cocoa': there are jsonl, coco, parquet and yolo\. Did you mean"
    ):
        check_formats(["cocoa"])


def test_a_damaged_row_is_named_and_the_last_file_stays(folder: Path) -> None:
    write_formats(folder, ["coco"])
    before = (folder / COCO_FILE).read_bytes()
    with (folder / OBJECTS_FILE).open("ab") as file:
        file.write(b'{"image": 1}\n')
    rows: Any = read_refinements(folder / OBJECTS_FILE)
    with pytest.raises(LyricsError, match="line 6"):
        list(rows)
    with pytest.raises(LyricsError, match="line 6"):
        write_formats(folder, ["coco"])
    assert (folder / COCO_FILE).read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
