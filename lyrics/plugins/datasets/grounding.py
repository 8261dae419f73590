"""Words that have boxes: RefCOCO, RefCOCO+, RefCOCOg, GRIT, Visual Genome."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Answers,
    Home,
    JsonRecords,
    Lookup,
    ParquetRecords,
    RecordDataset,
    RefRecords,
    Row,
    TarRecords,
    annotated,
    captioned,
    kept,
    listed,
    question_and_answers,
    shards_in,
    taken_apart,
    tar_sample,
)
from lyrics.core.data.readers.json_files import Found
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.geometry import Box, Size
from lyrics.core.types import Sample

#: Expressions per split (UNC's for the first two, UMD's for the third).
EXPRESSIONS = {
    ("refcoco", "val"): 10_834,
    ("refcoco", "testA"): 5_657,
    ("refcoco", "testB"): 5_095,
    ("refcoco-plus", "val"): 10_758,
    ("refcoco-plus", "testA"): 5_726,
    ("refcoco-plus", "testB"): 4_889,
    ("refcocog", "val"): 4_896,
    ("refcocog", "test"): 9_602,
}


def refcoco(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``refs(unc).json`` and ``instances.json``."""
    return _refs(options, "refcoco", "refcoco", "unc")


def refcoco_plus(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``refs(unc).json`` and ``instances.json``."""
    return _refs(options, "refcoco-plus", "refcoco+", "unc")


def refcocog(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``refs(umd).json`` and ``instances.json``; Google's splits have no test set and are not read."""
    return _refs(options, "refcocog", "refcocog", "umd")


def _refs(options: Any, name: str, original: str, by: str) -> RecordDataset:
    """Return one sample per expression: ``objects[0]`` is what it refers to, and its tag is the expression.

    The refs come from the refer toolkit, as JSON made once of its pickle, or from MiniGPT-4's export
    ``NAME_SPLIT.json``.
    """
    home = Home.of(name, options.root)
    pictures = home.pictures(options.images, "train2014", "images/train2014", "images/mscoco/images/train2014")
    expected = EXPRESSIONS.get((name, options.split))
    if export := home.find(f"{original}_{options.split}.json"):
        return RecordDataset(name, JsonRecords(export), _export_sample, pictures, expected)
    pickled = home.find(f"refs({by}).p")
    if pickled and not home.find(f"refs({by}).json"):
        raise DatasetError(
            f"{pickled[0]}: is a pickle, which is never read here. Convert it once: "
            f"lyrics data import-refs '{pickled[0]}' '{pickled[0].with_suffix('.json')}'"
        )
    refs = home.file(f"refs({by}).json", f"{original}_{options.split}.json")
    records = RefRecords(refs, home.file("instances.json"), options.split)
    return RecordDataset(name, records, _ref_sample, pictures, expected)


def _ref_sample(record: Mapping[str, Any]) -> Sample:
    image, sentence = Row(record["image"], "image"), Row(record["sentence"], "sentence")
    words = sentence.words("raw" if sentence.has("raw") and sentence.text("raw") else "sent")
    size = image.size()
    box = Row(record["annotation"], "annotation").xywh_px("bbox", size)
    return _expression(image.name("file_name"), words, box, size, ref_id=Row(record["ref"], "ref").identity("ref_id"))


# COCO_train2014_000000370162_5: the last number is the ref's (in RefCOCOg the annotation's), not part of the file's
# name.
_EXPORT_IMAGE = re.compile(r"(?P<name>COCO_[a-z]+2014_\d{12})(_\d+)?")


def _export_sample(record: Any) -> Sample:
    row = Row(record)
    image = _EXPORT_IMAGE.fullmatch(row.text("img_id"))
    if image is None:
        raise row.error("img_id", "a name like COCO_train2014_000000370162_5")
    size = row.size()
    return _expression(
        f"{image['name']}.jpg", row.words("sents"), row.xywh_px("bbox", size), size, ref_id=row.fields["img_id"]
    )


def _expression(image: str, words: str, box: Box | None, size: Size, **extra: Any) -> Sample:
    objects, _ = annotated([(words, box)])
    if not objects:
        raise SampleError("the box of the expression has no area inside the image", "record")
    return Sample(image, objects=objects, extra={"task": "rec", **extra}, annotated_size=size)


def grit(options: Any, context: BuildContext) -> RecordDataset:
    """Read tar shards of img2dataset whose ``json`` has the columns of the index.

    The parquet index alone will do, then without images.

    ``noun_chunks`` and ``ref_exps`` are rows (start, end, x1, y1, x2, y2, score): characters of the caption, and a box
    as shares of the image. One words' several boxes are several rows.
    """
    home = Home.of("grit", options.root)
    if home.root.is_dir() and (shards := shards_in(home.root)):
        tars = TarRecords(shards)
        return RecordDataset("grit", tars, partial(_grit_tar_sample, part=options.part), tars)
    records = ParquetRecords(home.files("*.parquet"))
    return RecordDataset("grit", records, partial(_grit_row_sample, part=options.part))


def _grit_tar_sample(record: Mapping[str, Any], part: str) -> Sample:
    if record["json"] is None:
        raise SampleError("it has no json, where the words and their boxes stand", "record")
    about = Row(record["json"], "its json")
    sample = _grit_sample(tar_sample(record), about, part)
    # img2dataset keeps the size of the image that it downloaded, and makes it smaller.
    prefix = "original_" if about.has("original_width") else ""
    size = about.size(f"{prefix}width", f"{prefix}height") if about.has(f"{prefix}width") else None
    return replace(sample, annotated_size=size)


def _grit_row_sample(record: Any, part: str) -> Sample:
    row = Row(record)
    return _grit_sample(captioned(None, row.text("caption"), **kept(row, ("url", "key"))), row, part)


def _grit_sample(sample: Sample, about: Row, part: str) -> Sample:
    """The offsets count in the caption as it stands in the index.

    A ``ref_exps`` row refers to one thing, a noun does not.
    """
    caption, rows = about.value("caption"), []
    if not isinstance(caption, str):
        raise about.error("caption", "a text")
    for number, numbers in enumerate(about.items(part)):
        row = Row({f"{part}[{number}]": numbers}, about.at)
        start, end, *corners = row.numbers(f"{part}[{number}]", 7)[:6]
        words = caption[int(start) : int(end)] if 0 <= start < end <= len(caption) else ""
        if not words.strip():
            raise SampleError(
                f"{part} names the characters {start:g} to {end:g} of a caption of {len(caption)}", "record"
            )
        rows.append((words, Box.clip(*corners)))
    objects, dropped = annotated(rows)
    task = "rec" if part == "ref_exps" and rows else "caption"
    return Sample(
        sample.image, sample.captions, objects, extra={**sample.extra, "task": task, "objects_of": "caption", **dropped}
    )


def visual_genome(options: Any, context: BuildContext) -> RecordDataset:
    """Read three kinds of annotations, all in pixels of the original image, whose size stands in ``image_data.json``.

    ``regions``: (x, y, width, height) and a phrase, one sample each. ``objects``: (x, y, w, h) and names, one sample
    per image. ``questions``: without boxes, one sample each.
    """
    home = Home.of("vg", options.root)
    pictures = home.pictures(options.images, "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")
    if options.part == "questions":
        records = JsonRecords([home.file("question_answers.json")], partial(_each, key="qas"), "question")
        return RecordDataset("vg", records, _genome_question, pictures)
    sizes = Lookup(home.file("image_data.json"), "image_id")
    if options.part == "regions":
        records = JsonRecords([home.file("region_descriptions.json")], partial(_each, key="regions"), "region")
        return RecordDataset("vg", records, partial(_genome_region, sizes=sizes), pictures)
    records = JsonRecords([home.file("objects.json")])
    return RecordDataset("vg", records, partial(_genome_objects, sizes=sizes), pictures)


def _each(data: Any, key: str) -> Iterable[Found]:
    """Each of these names its image itself, as ``image_id``; the record around them calls it ``id``."""
    return taken_apart(listed(data), lambda image: image.items(key))


def _genome_question(record: Any) -> Sample:
    row = Row(record)
    answer = Answers((row.text("answer"),))
    return question_and_answers(
        f"{row.name('image_id')}.jpg", row.text("question"), answer, question_id=row.identity("qa_id")
    )


def _genome_region(record: Any, sizes: Lookup) -> Sample:
    row = Row(record)
    key, phrase = row.name("image_id"), row.text("phrase")
    size = sizes[row.fields["image_id"]].size()
    objects, dropped = annotated([(phrase, _genome_box(row, ("x", "y", "width", "height"), size))])
    extra = {
        "task": "grounded-caption",
        "image_id": row.fields["image_id"],
        "region_id": row.identity("region_id"),
        **dropped,
    }
    return replace(captioned(f"{key}.jpg", phrase, **extra), objects=objects, annotated_size=size)


def _genome_objects(record: Any, sizes: Lookup) -> Sample:
    row = Row(record)
    key, rows = row.name("image_id"), row.rows("objects")
    size = sizes[row.fields["image_id"]].size()
    objects, dropped = annotated(
        ((one.texts("names") or ("",))[0], _genome_box(one, ("x", "y", "w", "h"), size)) for one in rows
    )
    extra = {"image_id": row.fields["image_id"], **dropped}
    return Sample(f"{key}.jpg", objects=objects, extra=extra, annotated_size=size)


def _genome_box(row: Row, sides: tuple[str, str, str, str], size: Size) -> Box | None:
    return Box.from_xywh_px([row.number(side) for side in sides], size)
