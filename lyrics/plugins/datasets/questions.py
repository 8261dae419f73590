"""Questions with reference answers: of photographs, of documents and written words, of diagrams and charts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Answers,
    Fields,
    Home,
    JsonRecords,
    Lookup,
    PictureFolder,
    RecordDataset,
    Row,
    annotated,
    answers_of,
    kept,
    keyed,
    listed,
    question_and_answers,
    taken_apart,
)
from lyrics.core.data.readers.files import is_there, read_json
from lyrics.core.data.readers.json_files import Fault, Found
from lyrics.core.data.readers.row import brief, clean
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.geometry import Box, Size
from lyrics.core.types import Sample

# What the split is called in the names of question files, and whose images it asks about.
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
    """As VQAv2.

    ``answer`` is a stem, which the official metric compares; ``raw_answer`` is what was written, and is trained on.
    """
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


def _coco_question_sample(record: Any, annotations: Lookup | None, folder: str) -> Sample:
    row = Row(record)
    about = annotations[row.value("question_id")] if annotations is not None else Row({})
    # A split with annotations has answers.
    answers = Answers() if annotations is None or not about.items("answers") else answers_of(about, "answers")
    raw = [one.text("raw_answer") for one in about.rows("answers") if one.has("raw_answer")] if answers.records else []
    wanted = Counter(raw).most_common(1)[0][0] if raw else None
    if wanted is None and about.has("multiple_choice_answer"):
        wanted = about.text("multiple_choice_answer")
    return question_and_answers(
        f"COCO_{folder}_{row.whole('image_id'):012d}.jpg",
        row.text("question"),
        answers,
        answer=wanted,
        **kept(about, ("question_type", "answer_type")),
        question_id=row.identity("question_id"),
        image_id=row.whole("image_id"),
    )


def gqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``{question_id: {question, imageId, answer, fullAnswer, ...}}``; ``imageId`` is a text such as n578564.

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
    """Read ``[{image, question, answers[10]{answer, answer_confidence}, answer_type, answerable}]``.

    The test split has no answers.
    """
    home = Home.of("vizwiz", options.root)
    file = home.file(f"{options.split}.json", f"Annotations/{options.split}.json")
    fields = Fields(image="{image}", question="question", answers="answers", keep=("answer_type", "answerable"))
    return RecordDataset("vizwiz", JsonRecords([file]), fields, home.pictures(options.images, options.split))


def docvqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``{"data": [{questionId, question, image: "documents/x.png", docId, answers}]}``.

    The test split has no answers.
    """
    home = Home.of("docvqa", options.root)
    file = home.file(f"{options.split}_v1.0*.json", f"*/{options.split}_v1.0*.json")
    pictures = home.pictures(options.images, options.split, "spdocvqa_images")
    records = JsonRecords([file], partial(listed, key="data"))
    return RecordDataset("docvqa", records, _docvqa_sample, pictures)


def _docvqa_sample(record: Any) -> Sample:
    row = Row(record)
    return question_and_answers(
        row.name("image"),
        row.text("question"),
        answers_of(row, "answers"),
        task="text-vqa",
        question_id=row.identity("questionId"),
        question_types=row.texts("question_types") if row.has("question_types") else (),
    )


def textvqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``{"data": [{question_id, question, image_id, answers[10 texts]}]}``.

    Images of ``val`` lie with those of ``train``.

    Words that an OCR found (``TextVQA_Rosetta_OCR_v0.2_SPLIT.json``) become objects where that file is there. Their
    boxes are a corner and two sides, as shares of the image; their rotation is ignored.
    """
    home = Home.of("textvqa", options.root)
    records = JsonRecords([home.file(f"TextVQA_0.5.1_{options.split}.json")], partial(listed, key="data"))
    found = home.find(f"TextVQA_Rosetta_OCR_v0.2_{options.split}.json")
    words = Lookup(found[0], "image_id", partial(listed, key="data")) if found else None
    folder = "test_images" if options.split == "test" else "train_images"
    pictures = home.pictures(options.images, folder)
    return RecordDataset("textvqa", records, partial(_textvqa_sample, words=words), pictures)


def _textvqa_sample(record: Any, words: Lookup | None) -> Sample:
    row = Row(record)
    found = words[row.value("image_id")].rows("ocr_info") if words is not None else []
    objects, dropped = annotated((one.text("word"), _corner_and_sides(one.row("bounding_box"))) for one in found)
    sample = question_and_answers(
        f"{row.name('image_id')}.jpg",
        row.text("question"),
        answers_of(row, "answers"),
        task="text-vqa",
        question_id=row.identity("question_id"),
        image_id=row.fields["image_id"],
    )
    size = row.size("image_width", "image_height") if row.has("image_width") else None
    return replace(sample, objects=objects, extra={**sample.extra, **dropped}, annotated_size=size)


def _corner_and_sides(box: Row) -> Box | None:
    x, y, width, height = (box.number(side) for side in ("top_left_x", "top_left_y", "width", "height"))
    return Box.clip(x, y, x + width, y + height)


_OCR_SPLITS = {"train": 1, "val": 2, "test": 3}


def ocr_vqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``dataset.json``: {id: {imageURL, questions[], answers[], split 1, 2 or 3, ...}}.

    Images are ``images/ID.jpg``.

    About 900 covers were published as GIF. Their files are ``ID.gif``, or ``ID.jpg`` where all were saved under that
    name.
    """
    home = Home.of("ocr-vqa", options.root)
    split = partial(_books, split=_OCR_SPLITS[options.split])
    pictures = home.pictures(options.images, "images")
    records = JsonRecords([home.file("dataset.json")], split, "question")
    return RecordDataset("ocr-vqa", records, partial(_book_sample, pictures=pictures), pictures)


def _books(data: Any, split: int) -> Iterable[Found]:
    """One record per question of the split. A book that has not as many answers as questions is one bad sample."""

    def questions(book: Row) -> list[Any]:
        if book.whole("split") != split:
            return []
        questions, answers = book.items("questions"), book.items("answers")
        if len(questions) != len(answers):
            raise SampleError(
                f"{book.fields['id']} has {len(questions)} questions and {len(answers)} answers.", "record"
            )
        pairs = zip(questions, answers, strict=True)
        return [{"book": book.fields, "number": n, "question": q, "answer": a} for n, (q, a) in enumerate(pairs)]

    return taken_apart(keyed(data, "id"), questions)


def _book_sample(record: Mapping[str, Any], pictures: PictureFolder) -> Sample:
    row, book = Row(record), Row(record["book"], f"book {record['book']['id']}")
    suffix = PurePosixPath(book.text("imageURL")).suffix.lower() or ".jpg"
    name = f"{book.name('id')}{suffix}"
    if suffix != ".jpg":
        name = pictures.first(name, f"{book.name('id')}.jpg")
    return question_and_answers(
        name,
        row.text("question"),
        Answers((row.text("answer"),)),
        task="text-vqa",
        question_id=f"{book.fields['id']}-{record['number']}",
        **kept(book, ("title",)),
    )


def ai2d(options: Any, context: BuildContext) -> RecordDataset:
    """Read one file per diagram, ``questions/X.png.json``.

    {imageName, questions: {text: {abcLabel, answerTexts, correctAnswer, questionId}}}.

    A question with ``abcLabel`` asks about letters that are drawn in ``abc_images`` only. ``ai2d_test_ids.csv`` names
    the diagrams of the test split. The words in a diagram (``annotations/X.png.json``, corners in pixels) become
    objects where those files are there; where letters are painted over them, the letters (``replacementText``) do, and
    not what they hide.
    """
    home = Home.of("ai2d", options.root)
    test = _first_column(home.file("ai2d_test_ids.csv"))
    wanted = options.split == "test"
    files = [path for path in home.files("questions/*.json") if (path.name.partition(".")[0] in test) == wanted]
    if not files:
        raise DatasetError(f"{home.root / 'questions'}: has no file of split {options.split!r}. {home.hint}")
    pictures = home.pictures(options.images, "", "images")
    annotations = home.root / "annotations" if (home.root / "annotations").is_dir() else None
    sample = partial(_ai2d_sample, pictures=pictures, annotations=annotations)
    return RecordDataset("ai2d", JsonRecords(files, _diagram, "question"), sample, pictures)


def _first_column(path: Path) -> set[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            return {row[0].strip() for row in csv.reader(opened) if row}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: is not a table of text: {error}.") from None


def _diagram(data: Any) -> Iterable[Found]:
    def questions(diagram: Row) -> list[Any]:
        name = diagram.name("imageName")
        found = diagram.row("questions")
        return [{"fields": found.fields[text], "question": text, "imageName": name} for text in found.fields]

    return taken_apart([data], questions)


def _ai2d_sample(record: Mapping[str, Any], pictures: PictureFolder, annotations: Path | None) -> Sample:
    name, row = record["imageName"], Row(record["fields"], brief(record["question"]))
    lettered = bool(row.fields["abcLabel"]) if row.has("abcLabel") else False
    image = f"abc_images/{name}" if lettered else f"images/{name}"
    sample = _choice(
        image,
        clean(record["question"]),
        row.texts("answerTexts"),
        row.whole("correctAnswer"),
        row.identity("questionId"),
    )
    # The name is a stranger's: as an image's it is checked, and so it is for the annotations.
    if annotations is None or not is_there(PictureFolder(annotations).path(f"{name}.json")):
        return sample
    objects, dropped = annotated(_words(annotations / f"{name}.json", lettered, pictures.size(image)))
    return replace(sample, objects=objects, extra={**sample.extra, **dropped})


def _words(path: Path, lettered: bool, size: Size) -> list[tuple[str, Box | None]]:
    """The words of a diagram that can be seen in it, with their boxes: letters where letters are painted over words."""
    about, found = Row(_bad_sample_json(path), path.name), []
    for key in about.row("text").fields if about.has("text") else ():
        word = about.row("text").row(key)
        if lettered and not (word.has("replacementText") and word.text("replacementText")):
            continue  # it may be under a letter
        corners = [Row({"rectangle": each}, word.at).numbers("rectangle", 2) for each in word.items("rectangle")[:2]]
        if len(corners) != 2:
            raise word.error("rectangle", "a list of two corners")
        found.append(
            (word.text("replacementText" if lettered else "value"), Box.from_px(corners[0] + corners[1], size))
        )
    return found


def _bad_sample_json(path: Path) -> Any:
    """Return a JSON file that belongs to one sample: what is wrong with it is wrong with that one."""
    try:
        return read_json(path)
    except DatasetError as error:
        raise SampleError(str(error), "record") from None


def scienceqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``problems.json`` and ``pid_splits.json``.

    {id: {question, choices, answer (a number), image or null, hint, split, ...}} and {split: [id]}.

    The image is ``SPLIT/ID/image.png`` after the problem's own split, which for minival and the like is another than
    the one asked for.
    """
    home = Home.of("scienceqa", options.root)
    file = home.file("pid_splits.json", "*/pid_splits.json")
    chosen = read_json(file)
    if not isinstance(chosen, Mapping) or options.split not in chosen:
        there = ", ".join(map(str, chosen)) if isinstance(chosen, Mapping) else brief(chosen)
        raise DatasetError(f"{home.root}: pid_splits.json has no split {options.split!r}; it has {there}.")
    if not isinstance(chosen[options.split], list):
        raise DatasetError(
            f"{file}: split {options.split!r} is {brief(chosen[options.split])}, where a list is expected."
        )
    rows = partial(_problems, chosen=tuple(chosen[options.split]))
    records = JsonRecords([home.file("problems.json", "*/problems.json")], rows)
    return RecordDataset("scienceqa", records, _problem_sample, home.pictures(options.images, "images"))


def _problems(data: Any, chosen: tuple[Any, ...]) -> Iterable[Found]:
    rows = keyed(data, "id")
    numbers = {key: number for number, key in enumerate(data)}
    for key in chosen:
        # Keys of a JSON mapping are texts.
        number = numbers.get(key, -1) if isinstance(key, str) else -1
        yield Found(rows[number], number) if number >= 0 else Found(Fault(f"there is no problem {brief(key)}"), number)


def _problem_sample(record: Any) -> Sample:
    row = Row(record)
    image = f"{row.name('split')}/{row.name('id')}/{row.name('image')}" if row.has("image") else None
    about = {key: row.text(key) for key in ("hint", "lecture", "solution", "subject") if row.has(key) and row.text(key)}
    return _choice(image, row.text("question"), row.texts("choices"), row.whole("answer"), row.fields["id"], **about)


def _choice(
    image: str | None, question: str, options: Sequence[str], right: int, question_id: str | int, **extra: Any
) -> Sample:
    """Return a multiple choice; the answer is the text of the right option."""
    if not 0 <= right < len(options):
        raise SampleError(f"the right answer is number {right} of {len(options)}", "record")
    return question_and_answers(
        image,
        question,
        Answers((options[right],)),
        task="multi-choice",
        options=tuple(options),
        question_id=question_id,
        **extra,
    )


def chartqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``SPLIT/SPLIT_human.json`` and ``SPLIT/SPLIT_augmented.json``: [{imgname, query, label}].

    The images are ``SPLIT/png/``.
    """
    home = Home.of("chartqa", options.root)
    parts = ("human", "augmented") if options.part == "all" else (options.part,)
    files = [home.file(f"{options.split}/{options.split}_{part}.json") for part in parts]
    fields = Fields(image="{imgname}", question="query", answers="label", task="text-vqa")
    return RecordDataset(
        "chartqa", JsonRecords(files), fields, home.pictures(options.images, f"{options.split}/png", "png")
    )


def dvqa(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``SPLIT_qa.json``: [{image, question_id, question, answer, template_id, answer_bbox}].

    ``answer_bbox`` is (left, top, width, height) in pixels, and empty where the answer is not written in the chart. The
    image's size is read from its file.
    """
    home = Home.of("dvqa", options.root)
    pictures = home.pictures(options.images, "images")
    records = JsonRecords([home.file(f"{options.split}_qa.json", f"qa/{options.split}_qa.json")])
    return RecordDataset("dvqa", records, partial(_dvqa_sample, pictures=pictures), pictures)


def _dvqa_sample(record: Any, pictures: PictureFolder) -> Sample:
    fields = Fields(
        "{image}", question="question", answers="answer", keep=("question_id", "template_id"), task="text-vqa"
    )
    sample, row = fields(record), Row(record)
    if not row.has("answer_bbox") or not row.items("answer_bbox"):
        return sample
    objects, dropped = annotated([(row.text("answer"), row.xywh_px("answer_bbox", pictures.size(row.name("image"))))])
    # It is where the answer stands.
    return replace(sample, objects=objects, extra={**sample.extra, **dropped, "objects_of": "question"})
