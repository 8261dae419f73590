"""Refining files: what is written, resuming, bad files, and reading results back through the cached experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lyrics.core.build import build_refiner
from lyrics.core.drawing import draw_objects
from lyrics.core.errors import ImageError, LyricsError, SpecError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refine_files import (
    COCO_FILE,
    DRAWN_FOLDER,
    OBJECTS_FILE,
    SKIPPED_FILE,
    find_pictures,
    read_refinements,
    refine_files,
)
from lyrics.core.refinement import Refinement, to_coco
from lyrics.core.refiner import VisualRefiner
from lyrics.core.types import DetectedObject, Tag

SEE_ANYTHING = {
    "refiner.tagger.options.threshold": 0.0,
    "refiner.detector.options.score_threshold": 0.0,
    "refiner.max_objects": 3,
}


@pytest.fixture(scope="module")
def refiner() -> VisualRefiner:
    import torch

    torch.manual_seed(0)
    return build_refiner("lyrics-tiny", overrides=SEE_ANYTHING, weights="random")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of different shapes, one in a folder below; a text file; a picture that is none."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for index, (name, size) in enumerate({"a.png": (64, 48), "b.jpg": (30, 90), "deeper/a.png": (100, 40)}.items()):
        picture = Image.new("RGB", size, (250, 250, 240))
        ImageDraw.Draw(picture).ellipse((5, 5, 25, 30), fill=(200, 40 * index, 30))
        picture.save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "c.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return folder


def test_a_folder_becomes_lines_coco_and_drawings(refiner: VisualRefiner, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = find_pictures([pictures])
    assert [path.relative_to(pictures).as_posix() for path in found] == ["a.png", "b.jpg", "c.jpg", "deeper/a.png"]
    seen: list[tuple[int, int]] = []
    summary = refine_files(refiner, found, out, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert (summary.refined, summary.done_before, list(summary.skipped)) == (3, 0, [str(pictures / "c.jpg")])
    assert seen == [(0, 4), (2, 4), (4, 4)]
    lines = [json.loads(line) for line in (out / OBJECTS_FILE).read_text().splitlines()]
    assert [(line["width"], line["height"]) for line in lines] == [(64, 48), (30, 90), (100, 40)]
    for line in lines:
        assert line["objects"]
        for obj in line["objects"]:
            x1, y1, x2, y2 = obj["box_px"]
            assert 0 <= x1 < x2 <= line["width"]
            assert 0 <= y1 < y2 <= line["height"]
            assert obj["mask"]["size"] == [line["height"], line["width"]]
    coco = json.loads((out / COCO_FILE).read_text())
    assert len(coco["annotations"]) == sum(len(line["objects"]) for line in lines) == summary.objects
    assert {annotation["category_id"] for annotation in coco["annotations"]} <= {c["id"] for c in coco["categories"]}
    drawings = sorted((out / DRAWN_FOLDER).iterdir())
    assert len(drawings) == 3, "two pictures called a.png must not share a drawing"
    assert [json.loads(line)["image"] for line in (out / SKIPPED_FILE).read_text().splitlines()] == [
        str(pictures / "c.jpg")
    ]


def test_a_second_run_does_only_what_is_missing(refiner: VisualRefiner, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = find_pictures([pictures])
    refine_files(refiner, found[:1], out, draw=False)
    first = (out / OBJECTS_FILE).read_text()
    summary = refine_files(refiner, found, out, draw=False)
    assert (summary.refined, summary.done_before) == (2, 1)
    assert (out / OBJECTS_FILE).read_text().startswith(first)
    whole = (out / OBJECTS_FILE).read_bytes()
    # A killed run leaves half a line; the next one cuts it off and does that picture again.
    (out / OBJECTS_FILE).write_bytes(whole[:-20])
    assert refine_files(refiner, found, out, draw=False).refined == 1
    assert (out / OBJECTS_FILE).read_bytes() == whole


def test_cached_experts_give_back_what_was_written(refiner: VisualRefiner, pictures: Path, tmp_path: Path) -> None:
    found = [path for path in find_pictures([pictures]) if path.name != "c.jpg"]
    refine_files(refiner, found, tmp_path / "out", draw=False)
    file = tmp_path / "out" / OBJECTS_FILE
    cached = {"use": "cached", "options": {"file": str(file)}}
    overrides = {f"refiner.{part}": cached for part in ("tagger", "detector", "segmenter")}
    again = build_refiner("lyrics-tiny", overrides=overrides, weights="random")
    refine_files(again, found, tmp_path / "again", draw=False)
    assert (tmp_path / "again" / OBJECTS_FILE).read_text() == file.read_text()


def test_cached_experts_refuse_a_picture_they_do_not_know(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / OBJECTS_FILE
    line = {"image": str(pictures / "a.png"), "width": 64, "height": 48, "objects": []}
    file.write_text(json.dumps(line) + "\n")
    options = {"file": str(file)}
    overrides = {
        "refiner": {"tagger": {"use": "cached", "options": options}, "detector": {"use": "cached", "options": options}}
    }
    refiner = build_refiner("lyrics-tiny", overrides=overrides, weights="random")
    assert refiner([pictures / "a.png"])[0].objects == ()
    with pytest.raises(LyricsError, match=r"b\.jpg is not in"):
        refiner([pictures / "b.jpg"])
    with pytest.raises(LyricsError, match="it is another picture"):
        refiner([pictures / "deeper" / "a.png"])
    with pytest.raises(SpecError, match=r"options\.file"):
        build_refiner("lyrics-tiny", overrides={"refiner.tagger": "cached"}, weights="random")


def test_annotated_boxes_come_through_in_their_place(tmp_path: Path) -> None:
    """Boxes from annotations, on a picture that is not square: unchanged to a thousandth of a pixel, with their own masks."""
    Image.new("RGB", (200, 50)).save(tmp_path / "wide.png")
    mask = np.zeros((50, 200), dtype=bool)
    mask[10:20, 150:190] = True
    objects = [
        {"tag": "dog", "box_px": [150, 10, 190, 20], "mask": Mask.from_array(mask).to_coco()},
        {"tag": "cat", "box_px": [0.25, 0, 33.5, 50]},
    ]
    file = tmp_path / OBJECTS_FILE
    file.write_text(json.dumps({"image": "wide.png", "width": 200, "height": 50, "objects": objects}) + "\n")
    part = {"use": "cached", "options": {"file": str(file)}}
    refiner = build_refiner(
        "lyrics-tiny", overrides={"refiner": {"tagger": part, "detector": part, "segmenter": part}}, weights="random"
    )
    (found,) = refiner([tmp_path / "wide.png"])
    assert [obj.tag for obj in found.objects] == ["dog", "cat"]
    assert found.objects[0].box_norm.to_px((200, 50)) == pytest.approx((150, 10, 190, 20), abs=1e-3)
    assert found.objects[0].mask is not None
    assert np.array_equal(found.objects[0].mask.to_array(), mask)
    assert found.objects[1].mask is not None
    assert found.objects[1].mask.box_norm() is not None
    assert found.objects[1].mask.area_px == 34 * 50


def test_missing_and_empty_inputs_say_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file or folder"):
        find_pictures([tmp_path / "nothing"])
    assert find_pictures([tmp_path]) == []
    with pytest.raises(SpecError, match="nothing to refine with"):
        build_refiner("blip2-13b", weights="random")


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"image": "a"}', '{"width": 2, "height": 2, "objects": [{"tag": "a", "box_px": [1]}]}']
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / OBJECTS_FILE
    file.write_text('{"image": "a", "width": 2, "height": 2, "objects": []}\n' + line + "\n")
    with pytest.raises(LyricsError, match="line 2"):
        list(read_refinements(file))


def test_refinement_survives_json_and_counts_in_coco() -> None:
    mask = Mask.from_box(Box(0.1, 0.2, 0.5, 0.6), (40, 20))
    found = Refinement(
        (40, 20),
        (Tag("dog", 0.75),),
        (DetectedObject("dog", Box(0.1, 0.2, 0.5, 0.6), 0.75, mask), DetectedObject("cat", Box(0, 0, 1, 1), 0.5)),
        "x.png",
    )
    assert Refinement.from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()
    coco = to_coco([Refinement((5, 5)), found])
    assert coco["annotations"][0]["bbox"] == [4, 4, 16, 8]
    assert coco["annotations"][0]["area"] == 16 * 8
    assert coco["annotations"][1]["area"] == 40 * 20
    assert [annotation["image_id"] for annotation in coco["annotations"]] == [2, 2]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_coco_masks_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for _ in range(50):
        array = rng.random((rng.integers(1, 30), rng.integers(1, 30))) < rng.random()
        encoded = Mask.from_array(array).to_coco()
        assert np.array_equal(coco.decode(encoded).astype(bool), array)
        assert coco.encode(np.asfortranarray(array.astype(np.uint8)))["counts"].decode() == encoded["counts"]


def test_drawings_show_box_mask_and_label_inside_the_picture() -> None:
    picture = Image.new("RGB", (120, 90), (128, 128, 128))
    box = Box.from_px((80, 5, 119, 60), picture.size)
    assert box is not None
    found = DetectedObject("a long label that does not fit 東", box, 0.5, Mask.from_box(box, picture.size))
    drawn = draw_objects(picture, [found])
    assert drawn.size == picture.size
    changed = np.abs(np.asarray(drawn, dtype=int) - np.asarray(picture, dtype=int)).sum(axis=2) > 0
    assert changed[30:55, 85:115].all(), "the mask is not drawn"
    assert not changed[70:, :].any(), "something is drawn where nothing is"
    assert np.array_equal(np.asarray(draw_objects(picture, [])), np.asarray(picture))
    with pytest.raises(ValueError, match="120, 90"):
        Refinement((120, 90)).draw(Image.new("RGB", (10, 10)))
