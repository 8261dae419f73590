"""A small file in the true format of each data set, by its name: ``MAKERS[name](folder)`` writes it and returns the
options.

Each has the set's own names of files and keys, two samples or more, and its traps.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.data.readers import write_index
from tests.core.data.tars import jpeg, sample_members, write_tar

Options = dict[str, Any]
MAKERS: dict[str, Callable[[Path], Options]] = {}


def maker(*names: str) -> Callable[[Callable[..., Options]], Callable[..., Options]]:
    def keep(function: Callable[..., Options]) -> Callable[..., Options]:
        for name in names:
            MAKERS[name] = function
        return function

    return keep


def write(path: Path, data: Any) -> Path:
    """JSON, JSON lines (a list, for a path that ends so), or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        data = "".join(json.dumps(row) + "\n" for row in data)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def picture(path: Path, size: tuple[int, int] = (100, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def parquet(path: Path, columns: Mapping[str, Any]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)


@maker("laion", "cc12m", "cc3m", "sbu")
def web(folder: Path) -> Options:
    for shard in range(2):
        members = [m for n in range(2) for m in sample_members(f"{shard:05d}{n:04d}", f"caption {shard}.{n}")]
        write_index(write_tar(folder / f"{shard:05d}.tar", members))
        # img2dataset writes these beside its shards.
        write(folder / f"{shard:05d}_stats.json", {"count": 2, "successes": 2})
    return {"root": str(folder)}


def coco_image(image_id: int, file_name: str = "", **more: Any) -> dict[str, Any]:
    name = file_name or f"{image_id:012d}.jpg"
    return {"id": image_id, "file_name": name, "width": 100, "height": 50, "license": 1, **more}


@maker("coco")
def coco(folder: Path) -> Options:
    images = [coco_image(9), coco_image(4)]
    captions = [{"id": n, "image_id": key, "caption": f"c{n} "} for n, key in enumerate((9, 9, 4))]
    boxes = [
        # Left, top, width, height in pixels.
        {"id": 1, "image_id": 9, "category_id": 18, "bbox": [10.0, 5.0, 20.0, 25.0], "iscrowd": 0, "area": 1},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 1, "area": 1},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [40, 40, 0, 5], "iscrowd": 0, "area": 0},
    ]
    names = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    info = {"info": {}, "licenses": [], "images": images}
    write(folder / "annotations/captions_val2017.json", {**info, "annotations": captions})
    write(folder / "annotations/instances_val2017.json", {**info, "annotations": boxes, "categories": names})
    for image in images:
        picture(folder / "val2017" / image["file_name"])
    return {"root": str(folder), "split": "val2017"}


@maker("nocaps")
def nocaps(folder: Path) -> Options:
    images = [
        coco_image(0, "a.jpg", open_images_id="a", domain="near-domain"),
        coco_image(1, "b.jpg", domain="in-domain"),
    ]
    captions = [{"id": n, "image_id": n % 2, "caption": f"c{n}"} for n in range(20)]
    write(folder / "nocaps_val_4500_captions.json", {"info": {}, "images": images, "annotations": captions})
    write(folder / "nocaps_test_image_info.json", {"info": {}, "images": images})
    picture(folder / "val/a.jpg")
    picture(folder / "val/b.jpg")
    return {"root": str(folder)}


@maker("mmc4")
def mmc4(folder: Path) -> Options:
    rows = [
        {
            "url": "http://x",
            "text_list": ["First.", "Second.", "Third."],
            "image_info": [
                {"image_name": "a.jpg", "raw_url": "http://x/a.jpg", "matched_text_index": 2, "matched_sim": 0.21},
                {"image_name": "b.jpg", "raw_url": "http://x/b.jpg", "matched_text_index": 0, "matched_sim": 0.34},
            ],
            "similarity_matrix": [[0.1, 0.1, 0.21], [0.34, 0.1, 0.1]],
        },
        {"url": "http://y", "text_list": ["Only words."], "image_info": [], "similarity_matrix": []},
    ]
    write(folder / "docs_shard_0_v2.jsonl", rows)
    picture(folder / "images/a.jpg")
    picture(folder / "images/b.jpg")
    return {"root": str(folder)}


@maker("ai-challenger")
def ai_challenger(folder: Path) -> Options:
    rows = [
        {"url": "http://x", "image_id": f"{name}.jpg", "caption": [f"一个男人{n}" for n in range(5)]} for name in "ab"
    ]
    inner = folder / "ai_challenger_caption_validation_20170910"
    write(inner / "caption_validation_annotations_20170910.json", rows)
    for row in rows:
        picture(inner / "caption_validation_images_20170910" / row["image_id"])
    return {"root": str(folder), "split": "val"}


ENTITIES_XML = """<annotation><filename>1.jpg</filename><size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>11</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>
<object><name>11</name><name>12</name><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
<object><name>13</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""
ENTITIES_TEXT = """[/EN#11/people Two young guys] look at [/EN#12/clothing/bodyparts their hands] in [/EN#13/scene the yard] .
[/EN#11/people Men] stand .
"""


@maker("flickr30k")
def flickr30k(folder: Path) -> Options:
    images = [
        {
            "filename": f"{n}.jpg",
            "imgid": n,
            "split": split,
            "sentids": [],
            "sentences": [{"raw": f"c{n}.{i}", "tokens": []} for i in range(5)],
        }
        for n, split in enumerate(("train", "test", "test"))
    ]
    write(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    for n in range(3):
        picture(folder / "flickr30k-images" / f"{n}.jpg")
    write(folder / "Annotations/1.xml", ENTITIES_XML)
    write(folder / "Sentences/1.txt", ENTITIES_TEXT)
    return {"root": str(folder), "split": "test"}


def refs(folder: Path, by: str) -> Options:
    # The ref's file_name carries the number of the annotation; no such file exists.
    rows = [
        {
            "ref_id": n,
            "ann_id": 70 + n,
            "image_id": 9,
            "category_id": 1,
            "split": split,
            "file_name": f"COCO_train2014_{9:012d}_{70 + n}.jpg",
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [
                {"sent_id": 2 * n + i, "sent": f"words {n}{i}", "raw": f"Words {n}{i}", "tokens": []} for i in (0, 1)
            ],
        }
        for n, split in enumerate(("train", "val", "val"))
    ]
    name = f"COCO_train2014_{9:012d}.jpg"
    instances = {
        "images": [coco_image(9, name)],
        "annotations": [{"id": 70 + n, "image_id": 9, "category_id": 1, "bbox": [10, 5, 20 + n, 25]} for n in range(3)],
        "categories": [],
    }
    write(folder / f"refs({by}).json", rows)
    write(folder / "instances.json", instances)
    picture(folder / "train2014" / name)
    return {"root": str(folder), "split": "val"}


@maker("refcoco", "refcoco-plus")
def refcoco(folder: Path) -> Options:
    return refs(folder, "unc")


@maker("refcocog")
def refcocog(folder: Path) -> Options:
    return refs(folder, "umd")


GRIT_CAPTION = "a wire hanger with a paper cover"
GRIT = {
    "caption": GRIT_CAPTION,
    "url": "http://x/a.jpg",
    "key": "000373938",
    "width": 640,
    "height": 480,
    "clip_similarity_vitb32": 0.3,
    # Characters of the caption, then a box as shares of the picture, then a score.
    "noun_chunks": [[19, 32, 0.019, 0.3, 0.99, 0.79, 0.9], [0, 13, 0.02, 0.1, 0.98, 0.81, 0.95]],
    "ref_exps": [[19, 32, 0.019, 0.3, 0.99, 0.79, 0.9], [0, 32, 0.02, 0.1, 0.98, 0.81, 0.95]],
}


@maker("grit")
def grit(folder: Path) -> Options:
    folder.mkdir(exist_ok=True)
    members = [
        m
        for key in ("000373938", "000373939")
        for m in sample_members(key, **{k: v for k, v in GRIT.items() if k != "key"})
    ]
    write_index(write_tar(folder / "00000.tar", members))
    return {"root": str(folder)}


@maker("vg")
def vg(folder: Path) -> Options:
    sizes = [{"image_id": key, "url": "http://x", "width": 100, "height": 50, "coco_id": None} for key in (1, 2)]
    region = {
        "region_id": 1382,
        "image_id": 1,
        "phrase": "the clock is green",
        "x": 10,
        "y": 5,
        "width": 20,
        "height": 25,
    }
    other = {**region, "region_id": 1383, "image_id": 2, "phrase": "shade"}
    item = {"object_id": 5, "x": 10, "y": 5, "w": 20, "h": 25, "names": ["clock", "watch"], "synsets": ["clock.n.01"]}
    pair = {"qa_id": 8, "image_id": 1, "question": "What color?", "answer": "Green.", "q_objects": [], "a_objects": []}
    write(folder / "image_data.json", sizes)
    write(folder / "region_descriptions.json", [{"id": 1, "regions": [region]}, {"id": 2, "regions": [other]}])
    write(
        folder / "objects.json", [{"image_id": 1, "objects": [item], "image_url": ""}, {"image_id": 2, "objects": []}]
    )
    write(folder / "question_answers.json", [{"id": 1, "qas": [pair, {**pair, "qa_id": 9}]}, {"id": 2, "qas": []}])
    picture(folder / "VG_100K/1.jpg")
    picture(folder / "VG_100K_2/2.jpg")
    return {"root": str(folder)}


def ten_answers(*texts: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(texts)]


def coco_questions(folder: Path, prefix: str, answers: list[dict[str, Any]], **about: Any) -> Options:
    questions = [{"image_id": 42, "question": "What is it?", "question_id": 42000 + n} for n in range(2)]
    rows = [
        {
            "question_id": q["question_id"],
            "image_id": 42,
            "question_type": "what is",
            "answer_type": "other",
            "answers": answers,
            **about,
        }
        for q in reversed(questions)
    ]
    write(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": questions})
    write(folder / f"{prefix}mscoco_val2014_annotations.json", {"info": {}, "annotations": rows})
    write(folder / f"{prefix}OpenEnded_mscoco_test2015_questions.json", {"info": {}, "questions": questions})
    picture(folder / "val2014/COCO_val2014_000000000042.jpg")
    picture(folder / "test2015/COCO_test2015_000000000042.jpg")
    return {"root": str(folder), "split": "val"}


@maker("vqav2")
def vqav2(folder: Path) -> Options:
    return coco_questions(folder, "v2_", ten_answers("cat", "dog", "cat"), multiple_choice_answer="dog")


@maker("ok-vqa")
def ok_vqa(folder: Path) -> Options:
    answers = [
        {**a, "raw_answer": raw}
        for a, raw in zip(ten_answers("race", "race", "car"), ("racing", "racing", "cars"), strict=True)
    ]
    return coco_questions(folder, "", answers)


@maker("gqa")
def gqa(folder: Path) -> Options:
    question = {
        "question": "What is hanging?",
        "imageId": "n578564",
        "answer": "picture",
        "fullAnswer": "A picture is hanging.",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "rel"},
        "semantic": [],
    }
    write(folder / "testdev_balanced_questions.json", {"202218649": question, "2": question})
    for part in range(2):
        write(folder / f"train_all_questions/train_all_questions_{part}.json", {f"{part}": question})
    picture(folder / "images/n578564.jpg")
    return {"root": str(folder), "split": "testdev-balanced"}


@maker("vizwiz")
def vizwiz(folder: Path) -> Options:
    answers = [{"answer": "basil", "answer_confidence": "yes"}] * 9 + [
        {"answer": "unanswerable", "answer_confidence": "no"}
    ]
    rows = [
        {
            "image": f"VizWiz_val_{n:08d}.jpg",
            "question": "What's this?",
            "answers": answers,
            "answer_type": "other",
            "answerable": 1,
        }
        for n in range(2)
    ]
    write(folder / "Annotations/val.json", rows)
    write(folder / "Annotations/test.json", [{key: row[key] for key in ("image", "question")} for row in rows])
    for row in rows:
        picture(folder / "val" / str(row["image"]))
    return {"root": str(folder), "split": "val"}


@maker("docvqa")
def docvqa(folder: Path) -> Options:
    rows = [
        {
            "questionId": 49153 + n,
            "question": "What is the actual value?",
            "question_types": ["figure/diagram"],
            "image": "documents/pybv0228_81.png",
            "docId": 14465,
            "ucsf_document_id": "pybv0228",
            "answers": ["0.28", "0.28%"],
            "data_split": "val",
        }
        for n in range(2)
    ]
    head = {"dataset_name": "SP-DocVQA", "dataset_split": "val", "dataset_version": "1.0"}
    write(folder / "val_v1.0_withQT.json", {**head, "data": rows})
    write(
        folder / "test_v1.0.json", {**head, "data": [{k: v for k, v in row.items() if k != "answers"} for row in rows]}
    )
    picture(folder / "val/documents/pybv0228_81.png")
    return {"root": str(folder), "split": "val"}


@maker("textvqa")
def textvqa(folder: Path) -> Options:
    rows = [
        {
            "question_id": 34602 + n,
            "question": "what brand?",
            "image_id": "003a8ae2ef43b901",
            "image_width": 200,
            "image_height": 100,
            "answers": ["dakota", "dakota", "clos culombu", "dakota digital"],
            "set_name": "val",
        }
        for n in range(2)
    ]
    # Shares of the picture; a word that lies outside is dropped.
    word = {
        "top_left_x": 0.1,
        "top_left_y": 0.2,
        "width": 0.3,
        "height": 0.1,
        "rotation": 0.0,
        "roll": 0,
        "pitch": 0,
        "yaw": 0,
    }
    found = [{"word": "DAKOTA", "bounding_box": word}, {"word": "?", "bounding_box": {**word, "top_left_x": 1.2}}]
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    ocr = [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "?"], "ocr_info": found}]
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    picture(folder / "train_images/003a8ae2ef43b901.jpg")
    return {"root": str(folder), "split": "val"}


@maker("ocr-vqa")
def ocr_vqa(folder: Path) -> Options:
    def book(split: int, suffix: str) -> dict[str, Any]:
        return {
            "imageURL": f"http://x/I/51bc.{suffix}",
            "questions": ["Who wrote this book?", "What is the genre?"],
            "answers": ["Sandra Boynton", "Calendars"],
            "title": "Mom's Calendar",
            "authorName": "Sandra Boynton",
            "genre": "Calendars",
            "split": split,
        }

    write(
        folder / "dataset.json",
        {"0761183272": book(1, "jpg"), "1445720523": book(3, "gif"), "1588984168": book(3, "jpg")},
    )
    for name in ("1445720523.gif", "1588984168.jpg"):
        picture(folder / "images" / name)
    return {"root": str(folder), "split": "test"}


@maker("ai2d")
def ai2d(folder: Path) -> Options:
    def question(letters: bool, number: int) -> dict[str, Any]:
        options = ["A", "B"] if letters else ["sun", "soil", "leaf", "root"]
        return {"abcLabel": letters, "answerTexts": options, "correctAnswer": 1, "questionId": f"1.png-{number}"}

    for name in ("1.png", "2.png"):
        write(
            folder / f"questions/{name}.json",
            {
                "imageName": name,
                "questions": {"What feeds it?": question(False, 0), "Which letter?": question(True, 1)},
            },
        )
        picture(folder / "images" / name)
        picture(folder / "abc_images" / name)
    words = {"T0": {"id": "T0", "rectangle": [[10, 5], [30, 30]], "value": "soil", "replacementText": "B"}}
    write(folder / "annotations/1.png.json", {"imageName": "1.png", "text": words, "blobs": {}, "arrows": {}})
    with (folder / "ai2d_test_ids.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([["1"], ["77"]])
    return {"root": str(folder), "split": "test"}


@maker("scienceqa")
def scienceqa(folder: Path) -> Options:
    problem = {
        "question": "Which is a solid?",
        "choices": ["ice", "steam"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "lecture": "Solids keep their shape.",
        "solution": "Ice does.",
        "split": "test",
    }
    problems = {"5": problem, "12": {**problem, "image": None, "answer": 1}, "1": {**problem, "split": "train"}}
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["1"], "test": ["12", "5"], "minitest": ["5"]})
    picture(folder / "images/test/5/image.png")
    return {"root": str(folder), "split": "test"}


@maker("chartqa")
def chartqa(folder: Path) -> Options:
    write(folder / "val/val_human.json", [{"imgname": "a.png", "query": "How many?", "label": "14"}])
    write(folder / "val/val_augmented.json", [{"imgname": "b.png", "query": "Which year?", "label": "2017"}])
    picture(folder / "val/png/a.png")
    picture(folder / "val/png/b.png")
    return {"root": str(folder), "split": "val"}


@maker("dvqa")
def dvqa(folder: Path) -> Options:
    row = {
        "image": "bar_1.png",
        "question_id": 7,
        "question": "What label?",
        "answer": "camp",
        "template_id": "reasoning",
        "answer_bbox": [10, 5, 20, 25],
    }
    write(folder / "qa/val_easy_qa.json", [row, {**row, "question_id": 8, "answer": "no", "answer_bbox": []}])
    picture(folder / "images/bar_1.png")
    return {"root": str(folder), "split": "val_easy"}


def conversation(image: str | None) -> dict[str, Any]:
    messages = [
        {"from": "human", "value": "<image>\nWhat is it?" if image else "What is a bus?"},
        {"from": "gpt", "value": "A bus."},
        {"from": "human", "value": "What color?"},
        {"from": "gpt", "value": "Red."},
    ]
    return {"id": "000000033471", **({"image": image} if image else {}), "conversations": messages}


@maker("llava", "llavar")
def llava(folder: Path) -> Options:
    write(folder / "llava.json", [conversation("000000033471.jpg"), conversation(None)])
    picture(folder / "train2017/000000033471.jpg")
    return {"root": str(folder), "file": "llava.json"}


@maker("svit")
def svit(folder: Path) -> Options:
    def asked(question: str, answer: str) -> dict[str, Any]:
        return {"content": [{"from": "user", "value": question}, {"from": "gpt", "value": answer}]}

    mention = "What does the <st>man<ed> [0.1, 0.2, 0.3, 0.4] hold?"
    answer = (
        "He and the <st>kids<ed> [0.5, 0.5, 0.75, 1.0], [0, 0, 0.25, 0.5] hold <st>nothing<ed> [0.5, 0.5, 0.5, 0.9]."
    )
    conversations = [asked(mention, answer), asked("Why?", "Because.")]
    write(folder / "referring_qa.json", [{"image_id": 2, "conversations": conversations}])
    picture(folder / "VG_100K_2/2.jpg")
    return {"root": str(folder)}


@maker("m3it")
def m3it(folder: Path) -> Options:
    inside = base64.b64encode(jpeg((12, 7))).decode()
    row = {
        "instruction": "Answer the question.",
        "inputs": "What is it?",
        "outputs": "A bus.",
        "image_base64_str": [inside],
    }
    write(folder / "data/vqa/vqav2/val.jsonl", [row, {**row, "inputs": "", "image_base64_str": []}])
    write(folder / "data/captioning/coco/val.jsonl", [{**row, "image_base64_str": inside}])
    return {"root": str(folder), "split": "val"}


@maker("multiinstruct")
def multiinstruct(folder: Path) -> Options:
    first, second = "10.0 5.0 30.0 30.0", "10.0 5.0 30.0 30.05"
    row = {
        "unique_id": "mscoco_1",
        "image_source": "coco2014",
        "task_name": "text_legibility",
        "image_path": "./raw_datasets/MSCOCO2014/train2014/COCO_train2014_000000287140.jpg",
        "region": [first],
        "options": ["not clear and complete", "clear"],
        "target_txt": "clear",
        "prompt": f"Decide if the text is legible. Region {first} \n\n[Options]: not clear and complete||||clear",
        "target": "clear",
    }
    choose = {
        **row,
        "region": [second],
        "options": [first, second],
        "prompt": f"Which region? [Options]: {first}||||{second}",
        "target": second,
    }
    plain = {key: value for key, value in row.items() if key not in ("region", "options")} | {
        "prompt": "Say clear. 1 2 3 4"
    }
    write(folder / "train.jsonl", [row, choose, plain])
    picture(folder / "raw_datasets/MSCOCO2014/train2014/COCO_train2014_000000287140.jpg")
    return {"root": str(folder)}


@maker("orca")
def orca(folder: Path) -> Options:
    columns = {
        "id": ["niv.1", "flan.2"],
        "system_prompt": ["You are an AI assistant.", ""],
        "question": ["Why?", "How?"],
        "response": ["Because.", "So."],
    }
    parquet(folder / "1M-GPT4-Augmented.parquet", columns)
    return {"root": str(folder)}


@maker("alpaca")
def alpaca(folder: Path) -> Options:
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    ]
    write(folder / "alpaca_data.json", rows)
    return {"root": str(folder)}
