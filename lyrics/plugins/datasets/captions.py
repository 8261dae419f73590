"""Captioned images: COCO, MMC4, AI Challenger, and for evaluation NoCaps and Flickr30K."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    CocoRecords,
    Fields,
    Home,
    JsonRecords,
    LineRecords,
    RecordDataset,
    Row,
    annotated,
    captioned,
    listed,
    taken_apart,
)
from lyrics.core.data.readers.files import is_there
from lyrics.core.data.readers.json_files import Fault, Found
from lyrics.core.data.readers.row import brief
from lyrics.core.errors import DatasetError, SampleError
from lyrics.core.geometry import Box, Size
from lyrics.core.types import Sample

# Karpathy's training set is COCO's and what was left of its validation images: 113,287 together.
_KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",), "all": ("train", "val", "test")}


def coco(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``captions_SPLIT.json`` and ``instances_SPLIT.json``, or one of them.

    Boxes are (left, top, width, height) in pixels.

    Karpathy's splits have captions only: ``dataset_coco.json``, or LAVIS's ``coco_karpathy_SPLIT.json``.
    """
    home = Home.of("coco", options.root)
    prefix, dash, part = options.split.partition("-")
    if dash:
        pictures = home.pictures(options.images, "images")
        if own := home.find("dataset_coco.json") or home.find("annotations/dataset_coco.json"):
            return RecordDataset("coco", JsonRecords(own, partial(_karpathy, part=part)), _karpathy_sample, pictures)
        lavis = home.files(f"coco_karpathy_{part}.json", f"annotations/coco_karpathy_{part}.json", "dataset_coco.json")
        fields = Fields(image="{image}", captions="caption", keep=("image_id",))
        return RecordDataset("coco", JsonRecords(lavis), fields, pictures)
    files = {
        kind: home.find(f"annotations/{kind}_{prefix}.json") or home.find(f"{kind}_{prefix}.json")
        for kind in ("captions", "instances")
    }
    captions, instances = (found[0] if found else None for found in files.values())
    if captions is None and instances is None:
        home.files(f"annotations/captions_{prefix}.json", f"annotations/instances_{prefix}.json")
    pictures = home.pictures(options.images, prefix, f"images/{prefix}")
    return RecordDataset("coco", CocoRecords(captions, instances), coco_sample, pictures)


def coco_sample(record: Mapping[str, Any]) -> Sample:
    image = Row(record["image"], "image")
    sample = captioned(image.name("file_name"), record["captions"], image_id=image.fields["id"])
    if not record["annotations"]:
        return sample
    size = image.size()
    rows = [(one["category"], Row(one, one["place"])) for one in record["annotations"]]
    objects, dropped = annotated((name, row.xywh_px("bbox", size)) for name, row in rows)
    return replace(sample, objects=objects, extra={**sample.extra, **dropped}, annotated_size=size)


def _karpathy(data: Any, part: str) -> list[Found]:
    """Return the images of one of Karpathy's splits.

    The file is ``{"images": [{"split", "filename", "sentences": [{"raw"}]}]}``.
    """
    found = list(
        taken_apart(listed(data, "images"), lambda row: [row.fields] if row.text("split") in _KARPATHY[part] else [])
    )
    if all(isinstance(one.record, Fault) for one in found):
        raise DatasetError(f"has no image of split {part!r}.")
    return found


def _karpathy_sample(record: Mapping[str, Any]) -> Sample:
    """COCO's have a ``filepath`` (the folder) and a ``cocoid``."""
    row = Row(record)
    folder = f"{row.name('filepath')}/" if row.has("filepath") else ""
    captions = [sentence.text("raw") for sentence in row.rows("sentences")]
    key = row.identity("cocoid" if row.has("cocoid") else "imgid")
    return captioned(folder + row.name("filename"), captions, image_id=key)


def nocaps(options: Any, context: BuildContext) -> RecordDataset:
    """COCO-like; ten captions an image in ``val``, none in ``test`` (its captions are on a server)."""
    home = Home.of("nocaps", options.root)
    names = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    records = CocoRecords(captions=home.file(names[options.split], f"annotations/{names[options.split]}"))
    pictures = home.pictures(options.images, options.split, f"images/{options.split}", "images")
    return RecordDataset("nocaps", records, _nocaps_sample, pictures)


def _nocaps_sample(record: Mapping[str, Any]) -> Sample:
    image = Row(record["image"], "image")
    domain = image.text("domain") if image.has("domain") else None
    return captioned(image.name("file_name"), record["captions"], image_id=image.fields["id"], domain=domain)


def ai_challenger(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``[{"image_id": "x.jpg", "url", "caption": [five texts in Chinese]}]``."""
    home = Home.of("ai-challenger", options.root)
    part = {"train": "train", "val": "validation"}[options.split]
    files = home.files(f"caption_{part}_annotations_*.json", f"*/caption_{part}_annotations_*.json")
    folders = [path for path in sorted(files[0].parent.glob(f"caption_{part}_images_*")) if path.is_dir()]
    pictures = home.pictures(options.images, *(str(path.relative_to(home.root)) for path in folders))
    fields = Fields(image="{image_id}", captions="caption", keep=("image_id",))
    return RecordDataset("ai-challenger", JsonRecords(files[:1]), fields, pictures)


def mmc4(options: Any, context: BuildContext) -> RecordDataset:
    """JSON lines of web pages: ``text_list``, and ``image_info[{image_name, matched_text_index, matched_sim}]``.

    A sample is a page: its image is the one that matches its sentence best, and that sentence is the caption. All its
    images and sentences, as (image, sentence), are in ``extra["pairs"]``, in the page's order of images.
    """
    home = Home.of("mmc4", options.root)
    records = LineRecords(home.files("*.jsonl", "docs/*.jsonl"))
    return RecordDataset("mmc4", records, _mmc4_sample, home.pictures(options.images, "images"))


def _mmc4_sample(record: Mapping[str, Any]) -> Sample:
    row = Row(record)
    texts = row.texts("text_list")
    pairs = []
    for one in row.rows("image_info"):
        number = one.whole("matched_text_index")
        if not 0 <= number < len(texts):
            raise SampleError("an image's matched_text_index is beyond its text_list", "record")
        pairs.append((one.number("matched_sim"), one.name("image_name"), texts[number]))
    named = tuple((name, text) for _, name, text in pairs)
    extra = {"task": "caption", "pairs": named, "text": "\n".join(texts), "url": row.fields.get("url")}
    if not pairs:
        return Sample(None, extra=extra)
    _, name, text = max(pairs, key=lambda pair: pair[0])
    return replace(captioned(name, text), extra=extra)


def flickr30k(options: Any, context: BuildContext) -> RecordDataset:
    """Karpathy's ``dataset_flickr30k.json``; 1,000 of its images are the test split.

    Split ``all`` also reads the original ``results*.token`` (lines ``x.jpg#0 TAB caption``), a sample per caption.
    Where Flickr30K Entities lies beside it (``Annotations/x.xml``, ``Sentences/x.txt``) its boxes are read, (left, top,
    right, bottom) in pixels.
    """
    home = Home.of("flickr30k", options.root)
    pictures = home.pictures(options.images, "flickr30k-images", "flickr30k_images", "images")
    entities = home.root if (home.root / "Annotations").is_dir() else None
    tokens = home.find("*.token") if options.split == "all" else []
    if tokens:
        lines = LineRecords(tokens[:1], ("image", "caption"))
        return RecordDataset("flickr30k", lines, partial(_token_sample, entities=entities), pictures)
    records = JsonRecords([home.file("dataset_flickr30k.json")], partial(_karpathy, part=options.split))
    return RecordDataset("flickr30k", records, partial(_flickr_sample, entities=entities), pictures)


def _flickr_sample(record: Mapping[str, Any], entities: Path | None) -> Sample:
    return _with_entities(_karpathy_sample(record), entities)


def _token_sample(record: Mapping[str, str], entities: Path | None) -> Sample:
    image, mark, number = record["image"].partition("#")
    if not mark or not number.isdecimal():
        raise SampleError(
            f"image is {brief(record['image'])}, where a name and a number such as 1.jpg#0 is expected", "record"
        )
    return _with_entities(captioned(image, record["caption"], caption_number=int(number)), entities)


# [/EN#283585/people A young man]: the number of a chain of mentions, its kinds, and the words.
_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)/\S+ (?P<phrase>[^\]]+)\]")


def _with_entities(sample: Sample, entities: Path | None) -> Sample:
    """With the boxes of Flickr30K Entities, each named by the words that mention it first."""
    assert sample.image is not None
    stem = PurePosixPath(sample.image).stem
    if entities is None or not stem or not is_there(entities / "Annotations" / f"{stem}.xml"):
        return sample
    text = _text_of(entities / "Sentences" / f"{stem}.txt")
    phrases: dict[str, str] = {}
    for mention in _PHRASE.finditer(text):
        phrases.setdefault(mention["chain"], mention["phrase"])
    size, boxes = _entity_boxes(entities / "Annotations" / f"{stem}.xml", phrases)
    objects, dropped = annotated(boxes)
    # Their names are words of the captions.
    extra = {**sample.extra, **dropped, "objects_of": "caption"}
    return replace(sample, objects=objects, extra=extra, annotated_size=size)


def _text_of(path: Path) -> str:
    if not is_there(path):
        raise SampleError(f"{path}: no such file", "missing")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: is not UTF-8 text at byte {error.start}", "record") from None


def _entity_boxes(path: Path, phrases: Mapping[str, str]) -> tuple[Size, list[tuple[str, Box | None]]]:
    """Return the image's size and (phrase, box) from one XML file.

    An object without a box (a scene, or not visible) is left out.
    """
    text = _text_of(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SampleError(f"{path}: declares entities of XML, which the set's files do not", "record")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise SampleError(f"{path}: is not XML: {error}", "record") from None
    sides = {side: _number(path, tree, f"size/{side}") for side in ("width", "height")}
    size = Row(sides, f"{path}: size").size()
    found = []
    for item in tree.iter("object"):
        corner = item.find("bndbox")
        if corner is not None:
            box = Box.from_px([_number(path, corner, side) for side in ("xmin", "ymin", "xmax", "ymax")], size)
            chains = [name.text or "" for name in item.iter("name")]
            found += [(phrases[chain], box) for chain in chains if chain in phrases]
    return size, found


def _number(path: Path, tree: ElementTree.Element, name: str) -> int:
    text = tree.findtext(name)
    if text is None or re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) is None:
        raise SampleError(f"{path}: {name} is {brief(text)}, where a whole number is expected", "record")
    return int(text)
