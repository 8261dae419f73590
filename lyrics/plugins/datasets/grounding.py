"""Words that have boxes: RefCOCO, RefCOCO+, RefCOCOg, GRIT, Visual Genome."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Home,
    JsonRecords,
    Lookup,
    ParquetRecords,
    RecordDataset,
    RefRecords,
    TarRecords,
    annotated,
    captioned,
    listed,
    question_and_answers,
    shards_in,
    tar_sample,
    text_of,
)
from lyrics.core.errors import DatasetError
from lyrics.core.geometry import Box
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
    """``refs(unc).json`` and ``instances.json``."""
    return _refs(options, "refcoco", "refcoco", "unc")


def refcoco_plus(options: Any, context: BuildContext) -> RecordDataset:
    """``refs(unc).json`` and ``instances.json``."""
    return _refs(options, "refcoco-plus", "refcoco+", "unc")


def refcocog(options: Any, context: BuildContext) -> RecordDataset:
    """``refs(umd).json`` and ``instances.json``; Google's splits have no test set and are not read."""
    return _refs(options, "refcocog", "refcocog", "umd")


def _refs(options: Any, name: str, original: str, by: str) -> RecordDataset:
    """One sample per expression: ``objects[0]`` is what it refers to, and its tag is the expression.

    The refs come from the refer toolkit, as JSON made once of its pickle, or from MiniGPT-4's export ``NAME_SPLIT.json``.
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
    image, annotation = record["image"], record["annotation"]
    box = Box.from_xywh_px(annotation["bbox"], (image["width"], image["height"]))
    sentence = record["sentence"]
    return _expression(image["file_name"], sentence.get("raw") or sentence["sent"], box, ref_id=record["ref"]["ref_id"])


# COCO_train2014_000000370162_5: the last number is the ref's (in RefCOCOg the annotation's), not part of the file's name.
_EXPORT_IMAGE = re.compile(r"(?P<name>COCO_[a-z]+2014_\d{12})(_\d+)?")


def _export_sample(record: Mapping[str, Any]) -> Sample:
    image = _EXPORT_IMAGE.fullmatch(record["img_id"])
    if image is None:
        raise ValueError(f"img_id {record['img_id']!r} is not like COCO_train2014_000000370162_5")
    box = Box.from_xywh_px(record["bbox"], (record["width"], record["height"]))
    return _expression(f"{image['name']}.jpg", record["sents"], box, ref_id=record["img_id"])


def _expression(image: str, words: str, box: Box | None, **extra: Any) -> Sample:
    objects, _ = annotated([(words, box)])
    if not objects:
        raise ValueError("the box of the expression has no area inside the picture")
    return Sample(image, objects=objects, extra={"task": "rec", **extra})


def grit(options: Any, context: BuildContext) -> RecordDataset:
    """Tar shards of img2dataset whose ``json`` has the columns of the index, or the parquet index alone (then without pictures).

    ``noun_chunks`` and ``ref_exps`` are rows (start, end, x1, y1, x2, y2, score): characters of the caption, and a box as shares of the
    picture. One words' several boxes are several rows.
    """
    home = Home.of("grit", options.root)
    if home.root.is_dir() and (shards := shards_in(home.root)):
        tars = TarRecords(shards)
        return RecordDataset("grit", tars, partial(_grit_tar_sample, part=options.part), tars)
    records = ParquetRecords(home.files("*.parquet"))
    return RecordDataset("grit", records, partial(_grit_row_sample, part=options.part))


def _grit_tar_sample(record: Mapping[str, Any], part: str) -> Sample:
    if record["json"] is None:
        raise KeyError("json")
    return _grit_sample(tar_sample(record), record["json"], part)


def _grit_row_sample(record: Mapping[str, Any], part: str) -> Sample:
    return _grit_sample(captioned(None, record["caption"], url=record["url"], key=record["key"]), record, part)


def _grit_sample(sample: Sample, about: Mapping[str, Any], part: str) -> Sample:
    """The offsets count in the caption as it stands in the index. A ``ref_exps`` row refers to one thing, a noun does not."""
    task = "rec" if part == "ref_exps" and about[part] else "caption"
    caption, rows = about["caption"], []
    for start, end, x1, y1, x2, y2, _ in about[part]:
        words = caption[int(start) : int(end)]
        if not words.strip():
            raise ValueError(f"{part} names the characters {start} to {end} of a caption of {len(caption)}")
        rows.append((words, Box.clip(x1, y1, x2, y2)))
    objects, dropped = annotated(rows)
    return Sample(sample.image, sample.captions, objects, extra={**sample.extra, "task": task, **dropped})


def visual_genome(options: Any, context: BuildContext) -> RecordDataset:
    """Three kinds of annotations, all in pixels of the original picture, whose size stands in ``image_data.json``.

    ``regions``: (x, y, width, height) and a phrase, one sample each. ``objects``: (x, y, w, h) and names, one sample per picture.
    ``questions``: without boxes, one sample each.
    """
    home = Home.of("vg", options.root)
    pictures = home.pictures(options.images, "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")
    if options.part == "questions":
        records = JsonRecords([home.file("question_answers.json")], partial(_each, key="qas"))
        return RecordDataset("vg", records, _genome_question, pictures)
    sizes = Lookup(home.file("image_data.json"), "image_id")
    if options.part == "regions":
        records = JsonRecords([home.file("region_descriptions.json")], partial(_each, key="regions"))
        return RecordDataset("vg", records, partial(_genome_region, sizes=sizes), pictures)
    records = JsonRecords([home.file("objects.json")])
    return RecordDataset("vg", records, partial(_genome_objects, sizes=sizes), pictures)


def _each(data: Any, key: str) -> list[Any]:
    """Each of these names its picture itself, as ``image_id``; the record around them calls it ``id``."""
    return [row for image in listed(data) for row in image[key]]


def _genome_question(record: Mapping[str, Any]) -> Sample:
    return question_and_answers(
        f"{record['image_id']}.jpg", record["question"], [record["answer"]], question_id=record["qa_id"]
    )


def _genome_region(record: Mapping[str, Any], sizes: Lookup) -> Sample:
    key, phrase = record["image_id"], record["phrase"]
    box = _genome_box(key, (record["x"], record["y"], record["width"], record["height"]), sizes)
    objects, dropped = annotated([(phrase, box)])
    extra = {"task": "grounded-caption", "image_id": key, "region_id": record["region_id"], **dropped}
    return Sample(f"{key}.jpg", (text_of(phrase),), objects, extra=extra)


def _genome_objects(record: Mapping[str, Any], sizes: Lookup) -> Sample:
    key, rows = record["image_id"], record["objects"]
    objects, dropped = annotated(
        (row["names"][0], _genome_box(key, (row["x"], row["y"], row["w"], row["h"]), sizes)) for row in rows
    )
    return Sample(f"{key}.jpg", objects=objects, extra={"image_id": key, **dropped})


def _genome_box(key: int, xywh_px: tuple[float, float, float, float], sizes: Lookup) -> Box | None:
    return Box.from_xywh_px(xywh_px, (sizes[key]["width"], sizes[key]["height"]))
