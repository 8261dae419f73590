"""The readers on real public annotations, cut to 58 photographs: boxes lie on the objects they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.data.readers import RecordDataset
from tests.plugins.datasets.conftest import built

MINI = Path(__file__).parents[3].parent / "shared" / "data" / "real-mini"
pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason=f"{MINI} is not there")
RAW = MINI / "raw"


def annotations() -> dict[str, dict[str, Any]]:
    """By the name of the picture: the same annotations, converted once by another program; boxes xyxy in pixels."""
    rows = map(json.loads, (MINI / "annotations.jsonl").read_text(encoding="utf-8").splitlines())
    return {Path(row["image"]).name: row for row in rows}


def lay_out(folder: Path, names: dict[str, str]) -> None:
    """Links from the names that the sets use to the pictures."""
    for name, kept in names.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(MINI / "images" / kept)


def files(folder: Path, names: dict[str, str]) -> None:
    for name, raw in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RAW / raw, folder / name)


def coco(folder: Path, split: str) -> RecordDataset:
    kept = {path.name: path.name.removeprefix(f"coco_{split}_") for path in (MINI / "images").glob(f"coco_{split}_*")}
    lay_out(folder / split, {name: whole for whole, name in kept.items()})
    files(
        folder, {f"annotations/{kind}_{split}.json": f"coco/{kind}_{split}.json" for kind in ("captions", "instances")}
    )
    return built("coco", root=str(folder), split=split)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_cocos_captions_and_boxes(tmp_path: Path, split: str) -> None:
    data = coco(tmp_path, split)
    known, boxes = annotations(), 0
    for index in range(len(data)):
        sample = data[index]
        row = known[f"coco_{split}_{sample.image}"]
        assert data.picture(sample).size == (row["width"], row["height"])
        assert list(sample.captions) == [caption.strip() for caption in row["captions"]]
        found = sorted(
            (o.tag, *(round(c, 2) for c in o.box_norm.to_px((row["width"], row["height"])))) for o in sample.objects
        )
        assert found == sorted((o["tag"], *(round(c, 2) for c in o["bbox"])) for o in row["objects"])
        boxes += len(found)
    assert boxes > 100


@pytest.mark.parametrize("name", ["refcoco", "refcoco-plus", "refcocog"])
def test_expressions_of_the_export(tmp_path: Path, name: str) -> None:
    known = annotations()
    original = name.replace("-plus", "+")
    found = rows = 0
    for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
        files(tmp_path, {f"{original}_{split}.json": f"refcoco/{original}_{split}.json"})
        data = built(name, root=str(tmp_path), split=split)
        rows += len(json.loads((RAW / f"refcoco/{original}_{split}.json").read_text()))
        for index in range(len(data)):
            sample = data[index]
            number = str(sample.image).removeprefix("COCO_train2014_")
            row = known[f"coco_train2017_{number}"]
            (box,) = (o.box_norm.to_px((row["width"], row["height"])) for o in sample.objects)
            expected = [ref["bbox"] for ref in row["refs"] if ref["expression"] == sample.objects[0].tag]
            assert any(box == pytest.approx(xyxy, abs=0.02) for xyxy in expected), sample
            found += 1
    assert found == rows >= 10


def test_vqav2(tmp_path: Path) -> None:
    base = "train2014"
    files(
        tmp_path,
        {
            f"v2_OpenEnded_mscoco_{base}_questions.json": "vqav2/v2_OpenEnded_mscoco_questions.json",
            f"v2_mscoco_{base}_annotations.json": "vqav2/v2_mscoco_annotations.json",
        },
    )
    lay_out(tmp_path / base, {"COCO_train2014_000000458752.jpg": "coco_train2014_000000458752.jpg"})
    data = built("vqav2", root=str(tmp_path), split="train")
    assert [data[n].turns[0].instruction for n in range(2)] == [
        "What position is this man playing?",
        "What color is the players shirt?",
    ]
    assert len(data[0].extra["answers"]) == len(data[0].extra["answer_records"]) == 10
    assert data[0].turns[0].answer == "pitcher"
    assert data.picture(data[0]).mode == "RGB"


def test_gqa(tmp_path: Path) -> None:
    files(tmp_path, {"val_balanced_questions.json": "gqa/questions.json"})
    lay_out(tmp_path / "images", {"n578564.jpg": "gqa_n578564.jpg", "n166008.jpg": "gqa_n166008.jpg"})
    data = built("gqa", root=str(tmp_path), split="val-balanced")
    assert (data[0].turns[0].instruction, data[0].turns[0].answer) == (
        "What is hanging above the chalkboard?",
        "picture",
    )
    assert all(data.picture(data[n]).mode == "RGB" for n in range(len(data)))


def test_visual_genome(tmp_path: Path) -> None:
    files(tmp_path, {"question_answers.json": "visual_genome/question_answers.json"})
    lay_out(tmp_path / "VG_100K", {f"{n}.jpg": f"vg_{n}.jpg" for n in (1, 4, 5)})
    data = built("vg", root=str(tmp_path), part="questions")
    asked = {(data[n].image, turn.instruction, turn.answer) for n in range(len(data)) for turn in data[n].turns}
    assert ("4.jpg", "What is on the curtains?", "Sailboats.") in asked
    known = annotations()
    wanted = {
        (f"{n}.jpg", pair["question"], *pair["answers"])
        for n in (1, 4, 5)
        for pair in known[f"vg_{n}.jpg"]["vqa"]
        if "isual" in pair["source"]
    }
    assert asked >= wanted
    assert all(data.picture(data[n]).mode == "RGB" for n in range(len(data)))


def test_llavas_captions_with_boxes(tmp_path: Path) -> None:
    files(tmp_path, {"caps.jsonl": "llava/caps_boxes_coco2014_val_10.jsonl"})
    data = built("llava", root=str(tmp_path), file="caps.jsonl")
    assert len(data) == 10
    assert data[0].captions[0] == "A donut shop is full of different flavors of donuts."
    assert (data[0].objects[0].tag, data[0].objects[0].box_norm.as_tuple()) == ("donut", (0.37, 0.584, 0.504, 0.709))


def test_alpaca(tmp_path: Path) -> None:
    data = built("alpaca", root=str(RAW / "alpaca"), file="alpaca_en_20.json")
    assert len(data) == 20
    assert data[0].turns[0].instruction == "Describe a process of making crepes."
    assert data[0].turns[0].answer.startswith("Making crepes is an easy and delicious process!")


AS_IT_LIES = {
    "coco, validation": ("coco", "coco", {"split": "val2017"}, "coco_val2017_*", 22),
    "coco, training": ("coco", "coco", {"split": "train2017"}, "coco_train2017_*", 28),
    "refcoco": ("refcoco", "refcoco", {"split": "val"}, "coco_train2017_*", 6),
    "refcoco+": ("refcoco-plus", "refcoco", {"split": "testA"}, "coco_train2017_*", 11),
    "refcocog": ("refcocog", "refcoco", {"split": "test"}, "coco_train2017_*", 2),
    "vqav2": ("vqav2", "vqav2", {}, "coco_train2014_*", 2),
    "gqa": ("gqa", "gqa", {}, "gqa_*", 2),
    "visual genome": ("vg", "visual_genome", {"part": "questions"}, "vg_*", 8),
}


@pytest.mark.parametrize("case", AS_IT_LIES)
def test_every_folder_is_read_as_it_lies(case: str) -> None:
    """Pictures under other names in one folder, files without a split's name: nothing is copied or linked."""
    name, folder, options, called, samples = AS_IT_LIES[case]
    data = built(name, root=str(RAW / folder), images=str(MINI / "images" / called), **options)
    assert len(data) == samples
    for index in range(len(data)):
        sample = data[index]
        size = data.picture(sample).size
        row = annotations()[called.replace("*", str(sample.image).rpartition("_")[2])]
        assert size == (row["width"], row["height"])
