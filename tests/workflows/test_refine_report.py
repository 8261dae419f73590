"""``lyrics report``: what its page says of a refined folder, and what it is silent about."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lyrics.core.data.readers import write_index
from lyrics.core.errors import LyricsError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, row_line
from lyrics.core.types import DetectedObject
from lyrics.workflows.refine_report import BINS, BOXES, SAMPLES, find, page, write_report
from tests.core.data.tars import write_tar

SIZE = (40, 20)


def row(name: str, *objects: tuple[str, Box, float], mask: bool = False) -> bytes:
    import numpy as np

    shape = Mask.from_array(np.ones(SIZE[::-1], dtype=bool)) if mask else None
    found = tuple(DetectedObject(tag, box, score, shape) for tag, box, score in objects)
    return row_line(Refinement(SIZE, (), found, name).to_json() | {"refiner": "abc"})


def written(folder: Path, *rows: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / OBJECTS_FILE).write_bytes(b"".join(rows))
    return folder


def test_counts_scores_and_boxes(tmp_path: Path) -> None:
    small, large = Box(0.0, 0.0, 0.1, 0.1), Box(0.0, 0.0, 1.0, 1.0)
    folder = written(
        tmp_path,
        row("a.jpg", ("dog", small, 0.99), ("dog", large, 0.5), ("cat", large, 0.0), mask=True),
        row("b.jpg", ("dog", large, 1.0)),
        row("c.jpg"),
    )
    (folder / SKIPPED_FILE).write_bytes(
        b"".join(row_line({"image": f"{n}.jpg", "kind": "empty", "reason": f"{n} is empty"}) for n in range(3))
    )
    found = find(folder)
    assert (found.images, found.without_objects, found.masks) == (3, 1, 3)
    assert (found.objects, found.images_with) == ({"dog": 3, "cat": 1}, {"dog": 2, "cat": 1})
    assert [number for number, count in enumerate(found.scores["dog"]) if count] == [BINS // 2, BINS - 1]
    assert found.scores["dog"][BINS - 1] == 2, "a score of 1 is in the last bar"
    assert found.scores["cat"][0] == 1
    assert found.smallest[0].share == pytest.approx(0.01)
    assert [one.image for one in found.largest] == ["b.jpg", "a.jpg", "a.jpg", "a.jpg"]
    assert found.failures == {"empty": 3}
    shown = page(found, "here")
    assert "3, 1 of them without objects" in shown
    assert "2 is empty" in shown


def test_the_smallest_and_largest_boxes_of_many(tmp_path: Path) -> None:
    rows = [row(f"{n:03}.jpg", ("dog", Box(0.0, 0.0, (n * 37 % 100 + 1) / 100, 1.0), 0.5)) for n in range(100)]
    found = find(written(tmp_path, *rows))
    assert [round(one.share * 100) for one in found.smallest] == list(range(1, BOXES + 1))
    assert [round(one.share * 100) for one in found.largest] == list(range(100, 100 - BOXES, -1))


def test_samples_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [row(f"{number}.jpg") for number in range(200)]
    first, other = find(written(tmp_path / "a", *rows)), find(written(tmp_path / "b", *reversed(rows)))
    assert len(first.samples) == SAMPLES
    assert first.samples == other.samples
    assert {int(one.name[:-4]) for one in first.samples} != set(range(SAMPLES)), "not the first ones"


def test_images_are_drawn_from_files_and_tars_and_left_out_where_they_are_gone(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    write_index(write_tar(tmp_path / "s.tar", [("b.png", file.getvalue())]))
    Image.new("RGB", (5, 5)).save(tmp_path / "other.png")
    names = [tmp_path / "a.png", tmp_path / "s.tar" / "0" / "b.png", tmp_path / "gone.png", tmp_path / "other.png"]
    rows = [row(str(name), ("dog", Box(0.1, 0.1, 0.9, 0.9), 0.9), mask=True) for name in names]
    shown = write_report(written(tmp_path / "out", *rows)).read_text()
    figures = {
        name: re.search(rf"<figure>((?!<figure>).)*{name}\.png: dog", shown) for name in ("a", "b", "gone", "other")
    }
    there = {name: found is not None and "data:image/jpeg" in found[0] for name, found in figures.items()}
    assert there == {"a": True, "b": True, "gone": False, "other": False}
    assert all(figures.values())


def test_what_an_image_or_a_tag_is_called_cannot_act_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [row(f"{evil}{n}.jpg", (evil, Box(0.0, 0.0, 0.5, 0.5), 0.5)) for n in range(2)]
    folder = written(tmp_path / "out", *rows)
    (folder / SKIPPED_FILE).write_bytes(row_line({"image": evil, "kind": evil, "reason": evil}))
    shown = write_report(folder, tmp_path / "page.html").read_text()
    assert "<script" not in shown
    assert "&lt;script" in shown
    assert "default-src 'none'" in shown


def test_nothing_found_and_no_rows_at_all(tmp_path: Path) -> None:
    assert "0, 0 of them without objects" in write_report(written(tmp_path / "empty")).read_text()
    assert "1, 1 of them without objects" in write_report(written(tmp_path / "one", row("a.jpg"))).read_text()


def test_what_is_no_refined_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match=r"has no objects.jsonl; give the --out of lyrics refine"):
        find(tmp_path)
    (tmp_path / "shards").mkdir()
    with pytest.raises(LyricsError, match="run lyrics data merge"):
        find(tmp_path)
    for damaged in ({"image": "a"}, {"image": "a", "width": 1, "height": 0, "objects": [{}]}, [1]):
        (tmp_path / OBJECTS_FILE).write_bytes(row("a.jpg") + (json.dumps(damaged) + "\n").encode())
        with pytest.raises(LyricsError, match=r"objects\.jsonl, line 2: not a line of objects\.jsonl"):
            find(tmp_path)
