"""Refining files: what is written, resuming, bad files, and reading results back through the cached experts."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lyrics.core.build import build_refiner
from lyrics.core.errors import ImageError, LyricsError, SpecError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.pictures.drawing import draw_objects
from lyrics.core.pictures.model_inputs import ModelImages
from lyrics.core.refining.refine_files import (
    COCO_FILE,
    DRAWN_FOLDER,
    GIVE_UP_AFTER,
    OBJECTS_FILE,
    SKIPPED_FILE,
    find_images,
    read_refinements,
    refine_files,
)
from lyrics.core.refining.refinement import Refinement, to_coco
from lyrics.core.refining.refiner import RefinerOutput, VisualRefiner
from lyrics.core.types import DetectedObject, Tag

NAMES = ["red circle", "blue ring", "gray square"]
SEE_ANYTHING = {
    # Whatever it is asked for, it finds; few names and cells, since all of them are compared with each other.
    "refiner.tagger.options": {"threshold": 0.0, "vocabulary": NAMES, "image_size": 64},
    "refiner.detector.options": {"score_threshold": 0.0, "vocabulary": NAMES, "image_size": 64},
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
    found = find_images([pictures])
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
    assert len(drawings) == 3, "two images called a.png must not share a drawing"
    assert [json.loads(line)["image"] for line in (out / SKIPPED_FILE).read_text().splitlines()] == [
        str(pictures / "c.jpg")
    ]


def test_a_second_run_does_only_what_is_missing(refiner: VisualRefiner, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = find_images([pictures])
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
    found = [path for path in find_images([pictures]) if path.name != "c.jpg"]
    refine_files(refiner, found, tmp_path / "out", draw=False)
    file = tmp_path / "out" / OBJECTS_FILE
    cached = {"use": "cached", "options": {"file": str(file)}}
    overrides = {f"refiner.{part}": cached for part in ("tagger", "detector", "segmenter")}
    again = build_refiner("lyrics-tiny", overrides=overrides, weights="random")
    refine_files(again, found, tmp_path / "again", draw=False)
    written, back = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (file, tmp_path / "again" / OBJECTS_FILE)
    )
    made_by = {line.pop("refiner") for line in written}, {line.pop("refiner") for line in back}
    assert back == written
    assert [len(digests) for digests in made_by] == [1, 1]
    assert made_by[0] != made_by[1]


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
    with pytest.raises(LyricsError, match="it is another image"):
        refiner([pictures / "deeper" / "a.png"])
    with pytest.raises(SpecError, match=r"options\.file"):
        build_refiner("lyrics-tiny", overrides={"refiner.tagger": "cached"}, weights="random")


def test_annotated_boxes_come_through_in_their_place(tmp_path: Path) -> None:
    """Boxes from annotations, on a picture that is not square: unchanged to a thousandth of a pixel, with their own
    masks.
    """
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
        find_images([tmp_path / "nothing"])
    assert find_images([tmp_path]) == []
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


# --- every file is done or skipped, whatever it is ---


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Choosy(VisualRefiner):
    """Fails on pictures of a width, as an expert may; in a batch with others too."""

    def __init__(self, width: int, error: Exception) -> None:
        super().__init__()
        self.width, self.error, self.batches = width, error, []

    def refine(self, images: ModelImages, phrases: Any = None) -> RefinerOutput:
        self.batches.append(len(images))
        if any(width == self.width for width, _ in images.sizes_px):
            raise self.error
        whole = (DetectedObject("thing", Box(0, 0, 1, 1), 0.5),)
        seen = (Refinement(size, (), whole, name) for size, name in zip(images.sizes_px, images.names, strict=True))
        return RefinerOutput(tuple(seen), {})


def _refine_until(writes: int, refiner: VisualRefiner, found: Sequence[Path], out: Path) -> int:
    """Refine in a process that kills itself after ``writes`` writes to the disk. Returns the process's status."""
    pid = os.fork()
    if pid != 0:
        return os.waitpid(pid, 0)[1]
    try:
        left = iter(range(writes))

        def or_die(act: Callable[..., Any]) -> Callable[..., Any]:
            def write(*args: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*args)

            return write

        os.replace, os.fsync = or_die(os.replace), or_die(os.fsync)
        refine_files(refiner, found, out, batch_size=2)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_run_that_is_killed_anywhere_and_repeated_gives_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL before each write that reaches the disk in turn: drawings, rows, the files at the end."""
    Image.new("RGB", (64, 48)).save(pictures / "a.webp")  # wants the drawing of a.png
    found, refiner = find_images([pictures]), Choosy(0, RuntimeError())
    refine_files(refiner, found, tmp_path / "whole", batch_size=2)
    whole = snapshot(tmp_path / "whole")
    assert len(whole) == 4 + len(found) - 1  # three files, the lock, and no drawing of the damaged picture
    for writes in itertools.count():
        out = tmp_path / str(writes)
        status = _refine_until(writes, refiner, found, out)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        refine_files(refiner, found, out, batch_size=3)
        assert snapshot(out) == whole, f"killed at write {writes}"
    assert writes == len(found) - 1 + 3 + 2  # drawings, batches, and two files at the end


def test_one_picture_one_drawing(refiner: VisualRefiner, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "b"
    folder.mkdir(parents=True)
    for name in ("same.jpg", "same.png", "same.webp", "SAME.bmp", f"{'x' * 240}.png", "line\nbreak.png"):
        Image.new("RGB", (20, 20)).save(folder / name)
    (tmp_path / "in_b").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "in_b" / "same.jpg")
    found = find_images([tmp_path / "in", tmp_path / "in_b"])
    first = refine_files(refiner, found[:3], tmp_path / "out", batch_size=1)
    summary = refine_files(refiner, found, tmp_path / "out", batch_size=4)
    assert (first.refined, summary.refined, summary.skipped) == (3, 4, {})
    drawn = [row["drawn"] for row in rows(tmp_path / "out" / OBJECTS_FILE)]
    assert sorted(drawn) == sorted(path.name for path in (tmp_path / "out" / DRAWN_FOLDER).iterdir())
    assert len({name.casefold() for name in drawn}) == 7
    assert "in_b_SAME.jpg" in drawn, "the first to come has its name"
    assert all(name.isprintable() and len(name.encode()) < 220 for name in drawn)


def test_a_side_that_no_jpeg_holds_is_drawn_as_png(refiner: VisualRefiner, tmp_path: Path) -> None:
    Image.new("RGB", (66_000, 1)).save(tmp_path / "long.png")
    assert refine_files(refiner, [tmp_path / "long.png"], tmp_path / "out").refined == 1
    (drawn,) = (tmp_path / "out" / DRAWN_FOLDER).iterdir()
    with Image.open(drawn) as opened:
        assert (opened.format, opened.size) == ("PNG", (66_000, 1))


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), LyricsError("is not in x.jsonl"), MemoryError()])
def test_of_a_batch_that_fails_only_the_culprit_is_skipped(error: Exception, tmp_path: Path) -> None:
    for number, width in enumerate((10, 11, 12, 13)):
        Image.new("RGB", (width, 5)).save(tmp_path / f"{number}.png")
    refiner = Choosy(12, error)
    summary = refine_files(refiner, find_images([tmp_path]), tmp_path / "out", draw=False)
    assert refiner.batches == [4, 1, 1, 1, 1]
    assert (summary.refined, list(summary.skipped), summary.reasons) == (3, [str(tmp_path / "2.png")], {"expert": 1})
    (skipped,) = rows(tmp_path / "out" / SKIPPED_FILE)
    assert str(tmp_path / "2.png") in skipped["reason"]


@pytest.mark.parametrize("what", ["draw", "to_json", "not a number"])
def test_a_row_or_drawing_that_cannot_be_made_skips_its_picture_alone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (10, 11):
        Image.new("RGB", (width, 5)).save(tmp_path / f"{width}.png")

    class Odd(Refinement):
        def draw(self, picture: Image.Image) -> Image.Image:
            if what == "draw" and self.size_px[0] == 10:
                raise KeyError("no color")
            return picture

        def to_json(self) -> dict[str, Any]:
            if what == "to_json" and self.size_px[0] == 10:
                raise TypeError("no plain data")
            score = float("nan") if what == "not a number" and self.size_px[0] == 10 else 0.5
            return super().to_json() | {"score": score}

    class Odder(VisualRefiner):
        def refine(self, images: ModelImages, phrases: Any = None) -> RefinerOutput:
            seen = (Odd(size, name=name) for size, name in zip(images.sizes_px, images.names, strict=True))
            return RefinerOutput(tuple(seen), {})

    summary = refine_files(Odder(), find_images([tmp_path]), tmp_path / "out")
    assert (summary.refined, list(summary.skipped)) == (1, [str(tmp_path / "10.png")])
    assert summary.reasons == {"drawing" if what == "draw" else "expert": 1}


def test_experts_that_fail_on_everything_stop_the_run(tmp_path: Path) -> None:
    for number in range(GIVE_UP_AFTER + 4):
        Image.new("RGB", (10, 5)).save(tmp_path / f"{number:02}.png")
    refiner = Choosy(10, RuntimeError("wrong device"))
    found = find_images([tmp_path])
    with pytest.raises(LyricsError, match=f"failed on each of the first {GIVE_UP_AFTER} images.*wrong device"):
        refine_files(refiner, found, tmp_path / "out", draw=False)
    assert len(rows(tmp_path / "out" / SKIPPED_FILE)) == GIVE_UP_AFTER
    # Once it has worked, it is the pictures that are odd, in later runs too.
    Image.new("RGB", (9, 5)).save(tmp_path / "00.png")
    assert refine_files(refiner, found, tmp_path / "out", draw=False).reasons == {"expert": GIVE_UP_AFTER + 3}
    assert refine_files(refiner, found, tmp_path / "out", draw=False).done_before == 1


def test_large_pictures_go_through_the_experts_in_smaller_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.core.refining.refine_files.MAX_PIXELS", 120)
    for number in range(5):
        Image.new("RGB", (10, 5)).save(tmp_path / f"{number}.png")
    refiner = Choosy(0, RuntimeError())
    assert refine_files(refiner, find_images([tmp_path]), tmp_path / "out", batch_size=4, draw=False).refined == 5
    assert refiner.batches == [2, 2, 1]


# --- which refiner made a row ---


def test_results_of_two_refiners_are_not_mixed(pictures: Path, tmp_path: Path) -> None:
    import torch

    def build(seed: int, **overrides: Any) -> VisualRefiner:
        torch.manual_seed(seed)
        return build_refiner("tiny-refiner", overrides=SEE_ANYTHING | overrides, weights="random")

    found, out = find_images([pictures]), tmp_path / "out"
    refine_files(build(0), found[:1], out, draw=False)
    same = rows(out / OBJECTS_FILE)[0]["refiner"]
    assert refine_files(build(0), found[:2], out, draw=False).done_before == 1
    others: dict[str, tuple[VisualRefiner, list[str] | None]] = {
        "weights": (build(1), None),
        "options": (build(0, **{"refiner.detector.options.nms_iou": 0.4}), None),
        "objects kept": (build(0, **{"refiner.max_objects": 4}), None),
        "phrases": (build(0), ["red circle"]),
        "parts": (build(0, **{"refiner.segmenter": None}), None),
    }
    before = (out / OBJECTS_FILE).read_bytes()
    for other, phrases in others.values():
        with pytest.raises(LyricsError, match=rf"another refiner.*2 by {same}; this is .*or --redo") as caught:
            refine_files(other, found, out, draw=False, phrases=phrases)
        assert "\n" not in str(caught.value)
        assert (out / OBJECTS_FILE).read_bytes() == before
    redone = refine_files(others["weights"][0], found[:2], out, draw=False, redo=True)
    assert (redone.refined, redone.done_before) == (2, 0)
    assert len({row["refiner"] for row in rows(out / OBJECTS_FILE)} - {same}) == 1
    assert len(rows(out / OBJECTS_FILE)) == 2
    again = refine_files(others["weights"][0], found[:2], out, draw=False, redo=True)
    assert (again.refined, again.done_before) == (0, 2)


def test_a_refiner_that_reads_files_is_another_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / OBJECTS_FILE
    digests = []
    for tag in ("dog", "cat"):
        objects = [{"tag": tag, "box_px": [0, 0, 1, 1]}]
        file.write_text(json.dumps({"image": "a.png", "width": 2, "height": 2, "objects": objects}) + "\n")
        part = {"use": "cached", "options": {"file": str(file)}}
        digests.append(build_refiner({"refiner": {"tagger": part, "detector": part}}).digest())
    assert digests[0] != digests[1]


# --- what is looked for ---


def test_phrases_are_looked_for_in_every_picture(refiner: VisualRefiner, pictures: Path, tmp_path: Path) -> None:
    refine_files(refiner, find_images([pictures]), tmp_path / "out", draw=False, phrases=["red circle", "blue ring"])
    found = rows(tmp_path / "out" / OBJECTS_FILE)
    assert {obj["tag"] for row in found for obj in row["objects"]} <= {"red circle", "blue ring"}
    assert all(row["objects"] and not row["tags"] for row in found)


def test_without_a_tagger_a_detector_is_asked_for_what_it_knows() -> None:
    detector = {"use": "tiny-detector", "options": SEE_ANYTHING["refiner.detector.options"]}
    refiner = build_refiner({"refiner": {"detector": detector}}, weights="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refiner([Image.new("RGB", (40, 30))])[0].objects


# --- rows and names ---


def test_an_objects_file_may_have_a_byte_order_mark_blank_lines_and_crlf(tmp_path: Path) -> None:
    line = b'{"image": "a", "width": 2, "height": 2, "objects": []}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n\n" + line + b"\n")
    assert [found.name for found in read_refinements(tmp_path / "a.jsonl")] == ["a", "a"]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("file", ["fifo", "nested", "not utf-8", "missing"])
def test_an_objects_file_that_is_none_is_a_sentence(file: str, tmp_path: Path) -> None:
    path = tmp_path / OBJECTS_FILE
    if file == "fifo":
        os.mkfifo(path)
    elif file != "missing":
        path.write_bytes(b"[" * 100_000 + b"\n" if file == "nested" else b'{"image": "\xff"}\n')
    with pytest.raises(LyricsError, match=re.escape(str(path))):
        list(read_refinements(path))


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_text_is_kept_byte_for_byte(refiner: VisualRefiner, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        with open(folder + b"/" + name, "wb") as file:
            Image.new("RGB", (9, 8)).save(file, "PNG")
    found = find_images([tmp_path / "in"])
    assert refine_files(refiner, found, tmp_path / "out").refined == 2
    back = [os.fsencode(one.name) for one in read_refinements(tmp_path / "out" / OBJECTS_FILE)]
    assert back == [folder + b"/caf\xe8.png", folder + b"/caf\xe9.png"]
    coco = json.loads((tmp_path / "out" / COCO_FILE).read_text(encoding="utf-8"))
    assert [bytes.fromhex(image["file_name_hex"]) for image in coco["images"]] == back
    assert refine_files(refiner, found, tmp_path / "out").done_before == 2
    assert len(list((tmp_path / "out" / DRAWN_FOLDER).iterdir())) == 2


def test_the_drawings_of_an_earlier_run_are_no_pictures(refiner: VisualRefiner, pictures: Path) -> None:
    out = pictures / "out"
    found = find_images([pictures], leave_out=out / DRAWN_FOLDER)
    refine_files(refiner, found, out)
    assert list((out / DRAWN_FOLDER).iterdir())
    assert find_images([pictures], leave_out=out / DRAWN_FOLDER) == found


def test_a_mask_drawn_in_its_window_is_the_mask_drawn_whole() -> None:
    from lyrics.core.pictures.drawing import MASK_OPACITY, _rim, _tint

    rng = np.random.default_rng(0)
    for _ in range(40):
        pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
        inside = np.zeros((24, 30), dtype=bool)
        top, left = rng.integers(0, 20), rng.integers(0, 26)
        inside[top : top + rng.integers(1, 25), left : left + rng.integers(1, 31)] = rng.random() < 0.9
        inside &= rng.random((24, 30)) < 0.9
        whole = pixels.copy()
        whole[inside] = ((1 - MASK_OPACITY) * whole[inside] + MASK_OPACITY * np.array((10, 200, 30))).round()
        whole[_rim(inside, 2)] = (10, 200, 30)
        _tint(pixels, inside, (10, 200, 30), 2)
        assert np.array_equal(pixels, whole)
