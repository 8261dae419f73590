"""Real photographs with real annotations: frames are right on every shape, and annotated boxes come
through unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lyrics.cli._model import open_model
from lyrics.core.build import build_refiner
from lyrics.core.geometry import Box
from lyrics.core.language.prompts import Exchange
from lyrics.core.pictures.images import open_image
from lyrics.core.pictures.processor import prepare_one
from lyrics.core.refining.refine_files import OBJECTS_FILE, read_refinements, refine_files
from lyrics.core.types import Preprocessing

FOLDER = Path(__file__).parents[3].parent / "shared" / "data" / "real-mini"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the photographs of shared/data/real-mini are not here")


def annotations() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "annotations.jsonl").read_text(encoding="utf-8").splitlines()]


def write_table(table: Path) -> dict[str, dict]:
    """The annotated objects of all photographs as a file that the cached refiner reads; the annotations by the
    photograph's path.
    """
    entries = {str(FOLDER / entry["image"]): entry for entry in annotations()}
    with table.open("w", encoding="utf-8") as lines:
        for name, entry in entries.items():
            objects = [{"tag": one["tag"], "box_px": one["bbox"]} for one in entry["objects"]]
            size = {"width": entry["width"], "height": entry["height"]}
            lines.write(json.dumps({"image": name, **size, "objects": objects}) + "\n")
    return entries


def test_annotated_boxes_come_through_the_cached_refiner(tmp_path: Path) -> None:
    """All photographs, through every part of the way: file -> table -> experts -> file, drawn."""
    table = tmp_path / "annotated.jsonl"
    expected = write_table(table)
    pictures = [Path(name) for name in expected]
    part = {"use": "cached", "options": {"file": str(table)}}
    overrides = {"refiner": {"tagger": part, "detector": part, "segmenter": part, "max_objects": 1000}}
    refiner = build_refiner("lyrics-tiny", overrides=overrides, weights="random")
    summary = refine_files(refiner, pictures, tmp_path / "out")
    assert (summary.refined, summary.skipped) == (58, {})
    assert summary.objects == sum(len(entry["objects"]) for entry in expected.values()) > 500
    for found in read_refinements(tmp_path / "out" / OBJECTS_FILE):
        entry = expected[found.name]
        assert found.size_px == (entry["width"], entry["height"])
        written = sorted((obj.tag, *obj.box_norm.to_px(found.size_px)) for obj in found.objects)
        annotated = sorted((obj["tag"], *_clipped(obj["bbox"], found.size_px)) for obj in entry["objects"])
        for ours, theirs in zip(written, annotated, strict=True):
            assert ours[0] == theirs[0]
            assert ours[1:] == pytest.approx(theirs[1:], abs=2e-3)
    assert len(list((tmp_path / "out" / "drawn").iterdir())) == 58


def test_every_photograph_can_be_asked_about_with_its_annotated_objects(tmp_path: Path) -> None:
    """As ``lyrics ask --refined``.

    What the tiny model says of a photograph means nothing; its boxes are in the picture all the same.
    """
    table = tmp_path / "annotated.jsonl"
    expected = write_table(table)
    model = open_model("lyrics-tiny", "pretrained", None, table, None, "float32")
    answered = 0
    for start in range(0, len(expected), 8):
        names = list(expected)[start : start + 8]
        tags = [(expected[name]["objects"] or [{"tag": "dog"}])[0]["tag"] for name in names]
        questions = [f"Where is the {tag}?" for tag in tags]
        encoded = model.look(names, questions)
        dialogues = [[Exchange(question, None, (number,))] for number, question in enumerate(questions)]
        answers = model.answer(dialogues, encoded, max_new_tokens=24)
        for name, seen, answer in zip(names, encoded.refinements, answers, strict=True):
            objects = expected[name]["objects"]
            assert seen.size_px == (expected[name]["width"], expected[name]["height"])
            assert len(seen.objects) == min(len(objects), model.refiner.max_objects)
            assert {found.tag for found in seen.objects} <= {one["tag"] for one in objects}
            assert all(0 <= edge <= 1 for found in answer.objects for edge in found.box_norm.as_tuple())
            answered += 1
    assert answered == 58


def _clipped(box_px: list[float], size_px: tuple[int, int]) -> tuple[float, ...]:
    width, height = size_px
    x1, y1, x2, y2 = box_px
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing("squash", 384, (0,) * 3, (1,) * 3),
        Preprocessing("shortest", 800, (0,) * 3, (1,) * 3, max_size=1333),
        Preprocessing("longest", 1024, (0,) * 3, (1,) * 3, pad_to=1024),
        Preprocessing("shortest", 224, (0,) * 3, (1,) * 3, crop=224),
    ],
    ids=lambda preprocessing: f"{preprocessing.resize}-{preprocessing.size}",
)
def test_a_box_shows_the_same_pixels_on_every_canvas(preprocessing: Preprocessing) -> None:
    """The mean color inside an annotated box is the same in the photograph and on the canvas, where the box is fully
    visible.
    """
    compared = 0
    for entry in annotations()[::6]:
        picture = open_image(FOLDER / entry["image"])
        canvas, frame = prepare_one(picture, preprocessing)
        pixels = np.asarray(picture, dtype=np.float32) / 255
        for obj in entry["objects"]:
            box = Box.from_px(obj["bbox"], picture.size)
            if box is None or box.area < 0.02 or frame.visible_fraction(box) < 1:
                continue
            x1, y1, x2, y2 = (round(value) for value in box.to_px(picture.size))
            left, top, right, bottom = (round(value) for value in frame.box_to_canvas(box))
            original = pixels[y1:y2, x1:x2].mean(axis=(0, 1))
            shown = canvas[:, top:bottom, left:right].mean(dim=(1, 2)).numpy()
            assert np.abs(original - shown).max() < 0.02, (entry["image"], obj["tag"])
            compared += 1
    assert compared >= 10


def test_turned_photographs_are_the_same_scene(tmp_path: Path) -> None:
    """A photograph stored turned, with the EXIF note that says so, is opened upright."""
    entry = annotations()[0]
    upright = Image.open(FOLDER / entry["image"]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 8  # stored turned clockwise: turn it back by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.asarray(upright))
