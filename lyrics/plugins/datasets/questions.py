"""Questions with reference answers: of photographs, of documents and written words, of diagrams and charts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Fields,
    Home,
    JsonRecords,
    Lookup,
    PictureFolder,
    RecordDataset,
    annotated,
    keyed,
    listed,
    question_and_answers,
)
from lyrics.core.data.readers.files import read_json
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.geometry import Box
from lyrics.core.types import Sample

# What the split is called in the names of question files, and whose pictures it asks about.
_COCO_SPLITS = {
    "train": ("train2014", "train2014"),
    "val": ("val2014", "val2014"),
    "test": ("test2015", "test2015"),
    "test-dev": ("test-dev2015", "test2015"),
}


def vqav2(options: Any, context: BuildContext) -> RecordDataset:
    """Questions and, save for the test splits, a file of annotations with ten answers to each."""
    return _coco_questions(options, "vqav2", "v2_")


def ok_vqa(options: Any, context: BuildContext) -> RecordDataset:
    """As VQAv2. ``answer`` is a stem, which the official metric compares; ``raw_answer`` is what was written, and is trained on."""
    return _coco_questions(options, "ok-vqa", "")


def _coco_questions(options: Any, name: str, prefix: str) -> RecordDataset:
    home = Home.of(name, options.root)
    part, folder = _COCO_SPLITS[options.split]
    # Without the split's name: a cut of the set for trying things out.
    questions = home.file(f"{prefix}OpenEnded_mscoco_{part}_questions.json", f"{prefix}OpenEnded_mscoco_questions.json")
    annotations = None
    if not options.split.startswith("test"):
        file = home.file(f"{prefix}mscoco_{part}_annotations.json", f"{prefix}mscoco_annotations.json")
        annotations = Lookup(file, "question_id", partial(listed, key="annotations"))
    pictures = home.pictures(options.images, folder, f"images/{folder}")
    sample = partial(_coco_question_sample, annotations=annotations, folder=folder)
    return RecordDataset(name, JsonRecords([questions], partial(listed, key="questions")), sample, pictures)


def _coco_question_sample(record: Mapping[str, Any], annotations: Lookup | None, folder: str) -> Sample:
    about = annotations[record["question_id"]] if annotations is not None else {}
    answers = about.get("answers", [])
    raw = Counter(answer["raw_answer"] for answer in answers if "raw_answer" in answer).most_common(1)
    return question_and_answers(
        f"COCO_{folder}_{record['image_id']:012d}.jpg",
        record["question"],
        answers,
        answer=raw[0][0] if raw else about.get("multiple_choice_answer"),
        **{key: about[key] for key in ("question_type", "answer_type") if key in about},
        question_id=record["question_id"],
        image_id=record["image_id"],
    )


def gqa(options: Any, context: BuildContext) -> RecordDataset:
    """``{question_id: {question, imageId, answer, fullAnswer, ...}}``; ``imageId`` is a text such as n578564.

    ``train-all`` is a folder of ten files, ``questions.json`` a cut of any split.
    """
    home = Home.of("gqa", options.root)
    name = options.split.replace("-", "_") + "_questions"
    files = home.files(
        f"{name}.json", f"questions/{name}.json", f"{name}/*.json", f"questions/{name}/*.json", "questions.json"
    )
    fields = Fields(
        image="{imageId}.jpg",
        question="question",
        answers="answer",
        keep=("question_id", "fullAnswer", "types", "isBalanced"),
    )
    records = JsonRecords(files, partial(keyed, name="question_id"))
    return RecordDataset("gqa", records, fields, home.pictures(options.images, "images"))


def vizwiz(options: Any, context: BuildContext) -> RecordDataset:
    """``[{image, question, answers[10]{answer, answer_confidence}, answer_type, answerable}]``; the test split has no answers."""
    home = Home.of("vizwiz", options.root)
    file = home.file(f"{options.split}.json", f"Annotations/{options.split}.json")
    fields = Fields(image="{image}", question="question", answers="answers", keep=("answer_type", "answerable"))
    return RecordDataset("vizwiz", JsonRecords([file]), fields, home.pictures(options.images, options.split))


def docvqa(options: Any, context: BuildContext) -> RecordDataset:
    """``{"data": [{questionId, question, image: "documents/x.png", docId, answers}]}``; the test split has no answers."""
    home = Home.of("docvqa", options.root)
    file = home.file(f"{options.split}_v1.0*.json", f"*/{options.split}_v1.0*.json")
    pictures = home.pictures(options.images, options.split, "spdocvqa_images")
    records = JsonRecords([file], partial(listed, key="data"))
    return RecordDataset("docvqa", records, _docvqa_sample, pictures)


def _docvqa_sample(record: Mapping[str, Any]) -> Sample:
    return question_and_answers(
        record["image"],
        record["question"],
        record.get("answers", []),
        task="text-vqa",
        question_id=record["questionId"],
        question_types=tuple(record.get("question_types") or ()),
    )


def textvqa(options: Any, context: BuildContext) -> RecordDataset:
    """``{"data": [{question_id, question, image_id, answers[10 texts]}]}``; pictures of ``val`` lie with those of ``train``.

    Words that an OCR found (``TextVQA_Rosetta_OCR_v0.2_SPLIT.json``) become objects where that file is there. Their boxes are a corner and
    two sides, as shares of the picture; their rotation is ignored.
    """
    home = Home.of("textvqa", options.root)
    records = JsonRecords([home.file(f"TextVQA_0.5.1_{options.split}.json")], partial(listed, key="data"))
    found = home.find(f"TextVQA_Rosetta_OCR_v0.2_{options.split}.json")
    words = Lookup(found[0], "image_id", partial(listed, key="data")) if found else None
    folder = "test_images" if options.split == "test" else "train_images"
    pictures = home.pictures(options.images, folder)
    return RecordDataset("textvqa", records, partial(_textvqa_sample, words=words), pictures)


def _textvqa_sample(record: Mapping[str, Any], words: Lookup | None) -> Sample:
    rows = words[record["image_id"]]["ocr_info"] if words is not None else []
    objects, dropped = annotated((row["word"], _corner_and_sides(row["bounding_box"])) for row in rows)
    sample = question_and_answers(
        f"{record['image_id']}.jpg",
        record["question"],
        record.get("answers", []),
        task="text-vqa",
        question_id=record["question_id"],
        image_id=record["image_id"],
        **dropped,
    )
    return Sample(sample.image, objects=objects, turns=sample.turns, extra=sample.extra)


def _corner_and_sides(box: Mapping[str, float]) -> Box | None:
    x, y = box["top_left_x"], box["top_left_y"]
    return Box.clip(x, y, x + box["width"], y + box["height"])


_OCR_SPLITS = {"train": 1, "val": 2, "test": 3}


def ocr_vqa(options: Any, context: BuildContext) -> RecordDataset:
    """``dataset.json``: {id: {imageURL, questions[], answers[], split 1, 2 or 3, title, ...}}; the picture is ``images/ID.jpg``."""
    home = Home.of("ocr-vqa", options.root)
    records = JsonRecords([home.file("dataset.json")], partial(_books, split=_OCR_SPLITS[options.split]))
    return RecordDataset("ocr-vqa", records, _book_sample, home.pictures(options.images, "images"))


def _books(data: Any, split: int) -> list[Any]:
    """One record per question of the split. Raises ``DatasetError`` when a book has not as many answers as questions."""
    found = []
    for book in keyed(data, "id"):
        if len(book["questions"]) != len(book["answers"]):
            raise DatasetError(
                f"{book['id']} has {len(book['questions'])} questions and {len(book['answers'])} answers."
            )
        if book["split"] == split:
            pairs = zip(book["questions"], book["answers"], strict=True)
            found += [{"book": book, "number": n, "question": q, "answer": a} for n, (q, a) in enumerate(pairs)]
    return found


def _book_sample(record: Mapping[str, Any]) -> Sample:
    book = record["book"]
    suffix = PurePosixPath(book["imageURL"]).suffix or ".jpg"
    return question_and_answers(
        f"{book['id']}{suffix}",
        record["question"],
        [record["answer"]],
        task="text-vqa",
        question_id=f"{book['id']}-{record['number']}",
        title=book.get("title"),
    )


def ai2d(options: Any, context: BuildContext) -> RecordDataset:
    """One file per diagram, ``questions/X.png.json``: {imageName, questions: {text: {abcLabel, answerTexts, correctAnswer, questionId}}}.

    A question with ``abcLabel`` asks about letters that are drawn in ``abc_images`` only. ``ai2d_test_ids.csv`` names the diagrams of the
    test split. The words in a diagram (``annotations/X.png.json``, corners in pixels) become objects where those files are there.
    """
    home = Home.of("ai2d", options.root)
    with home.file("ai2d_test_ids.csv").open(encoding="utf-8", newline="") as opened:
        test = {row[0].strip() for row in csv.reader(opened) if row}
    wanted = options.split == "test"
    files = [path for path in home.files("questions/*.json") if (path.name.partition(".")[0] in test) == wanted]
    if not files:
        raise DatasetError(f"{home.root / 'questions'}: has no file of split {options.split!r}. {home.hint}")
    pictures = home.pictures(options.images, "", "images")
    annotations = home.root / "annotations" if (home.root / "annotations").is_dir() else None
    sample = partial(_ai2d_sample, pictures=pictures, annotations=annotations)
    return RecordDataset("ai2d", JsonRecords(files, _diagram), sample, pictures)


def _diagram(data: Any) -> list[Any]:
    return [{**about, "question": text, "imageName": data["imageName"]} for text, about in data["questions"].items()]


def _ai2d_sample(record: Mapping[str, Any], pictures: PictureFolder, annotations: Path | None) -> Sample:
    name = record["imageName"]
    image = f"abc_images/{name}" if record.get("abcLabel") else f"images/{name}"
    sample = _choice(image, record["question"], record["answerTexts"], record["correctAnswer"], record["questionId"])
    if annotations is None or not (annotations / f"{name}.json").exists():
        return sample
    words = read_json(annotations / f"{name}.json").get("text", {}).values()
    size = pictures.size(image)
    corners = ((word["value"], (*word["rectangle"][0], *word["rectangle"][1])) for word in words)
    objects, dropped = annotated((text, Box.from_px(xyxy_px, size)) for text, xyxy_px in corners)
    return Sample(sample.image, objects=objects, turns=sample.turns, extra={**sample.extra, **dropped})


def scienceqa(options: Any, context: BuildContext) -> RecordDataset:
    """``problems.json``: {id: {question, choices, answer (a number), image or null, hint, split, ...}}, ``pid_splits.json``: {split: [id]}.

    The picture is ``SPLIT/ID/image.png`` after the problem's own split, which for minival and the like is another than the one asked for.
    """
    home = Home.of("scienceqa", options.root)
    chosen = read_json(home.file("pid_splits.json", "*/pid_splits.json"))
    if options.split not in chosen:
        raise DatasetError(f"{home.root}: pid_splits.json has no split {options.split!r}; it has {', '.join(chosen)}.")
    rows = partial(_problems, chosen=tuple(chosen[options.split]))
    records = JsonRecords([home.file("problems.json", "*/problems.json")], rows)
    return RecordDataset("scienceqa", records, _problem_sample, home.pictures(options.images, "images"))


def _problems(data: Any, chosen: tuple[str, ...]) -> list[Any]:
    by_id = {row["id"]: row for row in keyed(data, "id")}
    return [by_id[key] for key in chosen]


def _problem_sample(record: Mapping[str, Any]) -> Sample:
    image = f"{record['split']}/{record['id']}/{record['image']}" if record.get("image") else None
    about = {key: record[key] for key in ("hint", "lecture", "solution", "subject") if record.get(key)}
    return _choice(image, record["question"], record["choices"], record["answer"], record["id"], **about)


def _choice(image: str | None, question: str, options: list[str], right: int, question_id: str, **extra: Any) -> Sample:
    """A multiple choice; the answer is the text of the right option."""
    if not 0 <= right < len(options):
        raise SampleError(f"the right answer is number {right} of {len(options)}", "record")
    return question_and_answers(
        image,
        question,
        [options[right]],
        task="multi-choice",
        options=tuple(map(str, options)),
        question_id=question_id,
        **extra,
    )


def chartqa(options: Any, context: BuildContext) -> RecordDataset:
    """``SPLIT/SPLIT_human.json`` and ``SPLIT/SPLIT_augmented.json``: [{imgname, query, label}]; the pictures are ``SPLIT/png/``."""
    home = Home.of("chartqa", options.root)
    parts = ("human", "augmented") if options.part == "all" else (options.part,)
    files = [home.file(f"{options.split}/{options.split}_{part}.json") for part in parts]
    fields = Fields(image="{imgname}", question="query", answers="label", task="text-vqa")
    return RecordDataset(
        "chartqa", JsonRecords(files), fields, home.pictures(options.images, f"{options.split}/png", "png")
    )


def dvqa(options: Any, context: BuildContext) -> RecordDataset:
    """``SPLIT_qa.json``: [{image, question_id, question, answer, template_id, answer_bbox}].

    ``answer_bbox`` is (left, top, width, height) in pixels, and empty where the answer is not written in the chart. The picture's size is
    read from its file.
    """
    home = Home.of("dvqa", options.root)
    pictures = home.pictures(options.images, "images")
    records = JsonRecords([home.file(f"{options.split}_qa.json", f"qa/{options.split}_qa.json")])
    return RecordDataset("dvqa", records, partial(_dvqa_sample, pictures=pictures), pictures)


def _dvqa_sample(record: Mapping[str, Any], pictures: PictureFolder) -> Sample:
    fields = Fields(
        "{image}", question="question", answers="answer", keep=("question_id", "template_id"), task="text-vqa"
    )
    sample = fields(record)
    if not record.get("answer_bbox"):
        return sample
    box = Box.from_xywh_px(record["answer_bbox"], pictures.size(record["image"]))
    objects, dropped = annotated([(record["answer"], box)])
    return Sample(sample.image, objects=objects, turns=sample.turns, extra={**sample.extra, **dropped})
