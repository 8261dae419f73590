"""The page of a refined folder: what it counts, what it shows, and that a stranger's words stay words."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refining.formats import FILES, check_formats, write_formats
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.rows import DRAWN_FOLDER, OBJECTS_FILE, SKIPPED_FILE, row_line, skipped_line
from lyrics.core.types import DetectedObject, Tag

DOG = DetectedObject("dog", Box(0.1, 0.2, 0.5, 0.6), 0.75, Mask.from_array(np.ones((48, 64))))
ODD = DetectedObject("<script>alert(1)</script>", Box(0, 0, 1, 1), 0.5)


def page_of(folder: Path, found: list[Refinement], drawn: dict[str, str] | None = None) -> str:
    rows = [
        one.to_json() | {"refiner": "0123"} | ({"drawn": drawn[one.name]} if drawn and one.name in drawn else {})
        for one in found
    ]
    (folder / OBJECTS_FILE).write_bytes(b"".join(map(row_line, rows)))
    assert write_formats(folder, check_formats(["jsonl", "html"])) == [folder / FILES["html"]]
    return (folder / "report.html").read_text(encoding="utf-8")


def shown(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]


def test_it_counts_everything_and_shows_the_first(tmp_path: Path) -> None:
    found = [Refinement((64, 48), (Tag("dog", 0.9),), (DOG, DOG), f"in/{number}.png") for number in range(30)]
    found += [Refinement((64, 48), (), (ODD,), "s3://b/<b>.png"), Refinement((64, 48), (), (), "in/none.png")]
    faults = [("in/bad.jpg: is <i>empty</i>.", "empty")] * 11 + [("in/worse.jpg: is corrupt.", "corrupt")]
    (tmp_path / SKIPPED_FILE).write_bytes(b"".join(skipped_line("x", ImageError(*one)) for one in faults))
    page = page_of(tmp_path, found)
    assert re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td>", page) == [
        ("images", "32"),
        ("objects", "61"),
        ("images without an object", "1"),
        ("skipped", "12"),
    ]
    assert "<tr><td>dog</td><td>60</td></tr>" in page
    assert "<tr><td>&lt;script&gt;alert(1)&lt;/script&gt;</td><td>1</td></tr>" in page
    assert "<tr><td>empty</td><td>11</td></tr>" in page
    assert "and 2 more in skipped.jsonl" in page
    assert page.count("<figure>") == 24
    assert "and 8 more in objects.jsonl" in page
    assert "6, 10, 32, 29" in page
    assert "dog 0.90" in page
    assert "<script" not in page
    assert "<i>" not in page


def test_images_are_drawings_or_are_drawn(tmp_path: Path) -> None:
    """And no other file is shown, whatever a row says."""
    (tmp_path / DRAWN_FOLDER).mkdir()
    for name, color in (("a.png", "black"), ("other.png", "blue"), (f"{DRAWN_FOLDER}/a.jpg", "red")):
        Image.new("RGB", (64, 48), color).save(tmp_path / name)
    names = [str(tmp_path / name) for name in ("a.png", "gone.png", "other.png", "small.png")]
    Image.new("RGB", (6, 4)).save(names[3])
    found = [Refinement((64, 48), (), (DOG,), name) for name in names]
    red, over = shown(page_of(tmp_path, found, {names[0]: "a.jpg", names[1]: "../other.png"}))
    assert red.getpixel((60, 40)) == pytest.approx((254, 0, 0), abs=3)
    left = over.convert("RGB").getpixel((60, 40))
    assert left != (0, 0, 0), "the blue one, with what was found over it"
    assert over.convert("RGB").getpixel((10, 12)) != left


def test_nothing_at_all(tmp_path: Path) -> None:
    page = page_of(tmp_path, [])
    assert "There are none." in page
    assert "<h2>Of what</h2>" not in page
    assert "<h2>Skipped</h2>" not in page


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / OBJECTS_FILE).write_text("{}\n{}\n")
    with pytest.raises(LyricsError, match="line 1"):
        write_formats(tmp_path, ["html"])
    assert not (tmp_path / "report.html").exists()
