"""Instructions and conversations: LLaVA, LLaVAR, SVIT, M3IT, MultiInstruct, and of text alone OpenOrca and Alpaca.

The turns are trained as they stand (task ``text``), without a template around them. Where a text points at boxes they
are written in it in the markup of codec ``lyrics``, and ``Sample.objects`` lists them in the order in which the turns
mention them: the k-th box of the texts is ``objects[k]``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Home,
    JsonRecords,
    LineRecords,
    ParquetRecords,
    PictureFolder,
    RecordDataset,
    Row,
    annotated,
    captioned,
    kept,
    listed,
    records_of,
    taken_apart,
)
from lyrics.core.data.readers.json_files import Found
from lyrics.core.data.readers.row import brief
from lyrics.core.errors import SampleError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.types import DetectedObject, Sample, Turn

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_MARK = "<image>"
_ASKS, _ANSWERS, _SYSTEM = ("human", "user"), ("gpt", "assistant"), "system"


def llava(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``[{id, image?, conversations[{from: human or gpt, value}]}]``.

    ``<image>`` stands in the first turn, where there is an image.

    ``caps_boxes_*.jsonl`` ({image, captions, instances[{category, bbox: xyxy as shares of the image}]}) is read as
    well.
    """
    return _llava(options, "llava", "train2017", "train2014", "val2014")


def llavar(options: Any, context: BuildContext) -> RecordDataset:
    """As LLaVA; the file for instruction tuning holds LLaVA's conversations too, whose images are COCO's."""
    return _llava(options, "llavar", "images", "finetune", "train2017")


def _llava(options: Any, name: str, *folders: str) -> RecordDataset:
    home = Home.of(name, options.root)
    return RecordDataset(
        name, records_of([home.file(options.file)]), _llava_sample, home.pictures(options.images, *folders)
    )


def _llava_sample(record: Any) -> Sample:
    row = Row(record)
    image = _only_image(row)
    extra = {"id": row.identity("id")} if row.has("id") else {}
    if not row.has("conversations") and row.has("instances"):
        objects, dropped = annotated(
            (one.text("category"), Box.clip(*one.numbers("bbox", 4))) for one in row.rows("instances")
        )
        return replace(captioned(image, row.texts("captions"), **extra, **dropped), objects=objects)
    return Sample(image, turns=_turns(row.rows("conversations"), image), extra={"task": "text", **extra})


def _only_image(row: Row) -> str | None:
    """Return the image of a record: a path, or a list of one; None where it is missing, null or empty."""
    if not row.has("image") or row.fields["image"] in ("", []):
        return None
    if isinstance(row.fields["image"], list):
        names = row.fields["image"]
        if len(names) > 1:
            raise SampleError(
                f"it has {len(names)} images ({brief(names)}); records with one image are read.", "record"
            )
        return Row({"image[0]": names[0]}).name("image[0]")
    return row.name("image")


def _turns(messages: Sequence[Row], image: str | None) -> tuple[Turn, ...]:
    """Pairs of a question and its answer.

    A system message begins the first question. An answer before the first question is left out, and so is a last
    question without an answer. The mark of the image's place is taken out of every text, for a prompt holds the
    image as a segment of its own; there must not be more marks than images.
    """
    roles = [message.text("from").lower() for message in messages]
    texts = [message.text("value") for message in messages]
    _check_roles(roles)
    first = next((number for number, role in enumerate(roles) if role in _ASKS), len(roles))
    marks = sum(text.count(_IMAGE_MARK) for text, role in zip(texts, roles, strict=True) if role in _ASKS)
    if marks > (image is not None):
        names = "no image" if image is None else "one image"
        raise SampleError(
            f"the questions of its conversation have {marks} marks {_IMAGE_MARK}, and it names {names}.", "record"
        )
    texts = [text.replace(_IMAGE_MARK, "").strip() for text in texts]
    system = [text for text, role in zip(texts, roles, strict=True) if role == _SYSTEM and text]
    pairs = list(zip(texts[first::2], texts[first + 1 :: 2], strict=False))
    if not pairs:
        raise SampleError("its conversation has no question with an answer.", "record")
    pairs[0] = ("\n".join([*system, pairs[0][0]]), pairs[0][1])
    return tuple(Turn(question, answer) for question, answer in pairs)


def _check_roles(roles: Sequence[str]) -> None:
    """System messages come first; after them questions and answers take turns, and it does not matter which begins."""
    known = (_SYSTEM, *_ASKS, *_ANSWERS)
    if unknown := [role for role in roles if role not in known]:
        raise SampleError(f"a message is from {brief(unknown[0])}; {', '.join(known)} are known.", "record")
    for before, role in pairwise(roles):
        same = (before in _ASKS) == (role in _ASKS)
        if role == _SYSTEM and before != _SYSTEM:
            raise SampleError("a system message stands in the middle of the conversation.", "record")
        if before != _SYSTEM and same:
            raise SampleError(f"two messages in a row are from {before} and {role}.", "record")


def svit(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``[{image_id, conversations[{content[{from: user or gpt, value}]}]}]``, one sample per conversation.

    Images are Visual Genome's.

    ``referring_qa.json`` points at objects as ``<st>man<ed> [x1, y1, x2, y2]``, shares of the image (the prompt its
    authors gave says so, and their own converter multiplies them by its sides).
    """
    home = Home.of("svit", options.root)
    records = JsonRecords([home.file(options.file, f"*/{options.file}")], _conversations, "conversation")
    return RecordDataset("svit", records, _svit_sample, home.pictures(options.images, "VG_100K", "VG_100K_2"))


def _conversations(data: Any) -> Iterable[Found]:
    return taken_apart(
        listed(data),
        lambda row: [
            {"image_id": row.name("image_id"), "conversation": one.fields} for one in row.rows("conversations")
        ],
    )


_NUMBER = r"\s*-?[0-9]+(?:\.[0-9]+)?\s*"
_SVIT_BOX = re.compile(rf"\[({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})\]")
_SVIT_MENTION = re.compile(rf"<st>([^<>]*)<ed>((?:\s*,?\s*{_SVIT_BOX.pattern})*)")


def _svit_sample(record: Mapping[str, Any]) -> Sample:
    image = f"{record['image_id']}.jpg"
    found: list[tuple[str, Box | None]] = []

    def rewritten(mention: re.Match[str]) -> str:
        """Return each box as markup. Words whose boxes are none stay as they are, and so do boxes without words."""
        if not mention[1].strip():
            return mention[0]
        boxes = [Box.clip(*map(float, box.groups())) for box in _SVIT_BOX.finditer(mention[2])]
        found.extend((mention[1], box) for box in boxes)
        return "".join(_markup(mention[1], box) for box in boxes if box is not None) or mention[1]

    turns = tuple(
        Turn(_SVIT_MENTION.sub(rewritten, turn.instruction), _SVIT_MENTION.sub(rewritten, turn.answer))
        for turn in _turns(Row(record["conversation"]).rows("content"), image)
    )
    objects, dropped = annotated(found)
    extra = {
        "task": "referential" if objects else "text",
        "boxes_in_text": bool(objects),
        "objects_of": "question",
        "image_id": record["image_id"],
        **dropped,
    }
    return Sample(image, objects=objects, turns=turns, extra=extra)


def _markup(tag: str, box: Box) -> str:
    return format_objects([SpatialObject(tag.strip(), box)])


def m3it(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``data/TASK/SET/SPLIT.jsonl``, whose records hold the images.

    A record is {instruction, inputs, outputs, image_base64_str[]}.

    The first image is the sample's. The hub copy is made for a loading script, which is not run; its files are read
    as they are.
    """
    home = Home.of("m3it", options.root)
    records = _NumberedLines(home.files(f"**/{options.split}.jsonl"))
    return RecordDataset("m3it", records, _m3it_sample, _PicturesInRecords(records))


@dataclass
class _NumberedLines(LineRecords):
    """Each record with its number, by which its image is found again."""

    def __getitem__(self, index: int) -> Any:
        return {"row": super().__getitem__(index), "number": index}


@dataclass
class _PicturesInRecords:
    records: LineRecords

    def read(self, key: str) -> Image.Image:
        from lyrics.core.data.pictures import decode_picture

        path, place = self.records.where(int(key))
        try:
            data = base64.b64decode(_pictures_of(Row(self.records[int(key)]["row"]))[0], validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError(f"{path}, {place}: image_base64_str is not base64: {error}.", "record") from None
        return decode_picture(data, f"{path}, {place}")

    def find(self, key: str) -> None:
        """Nothing to look for: the image is in the record."""


def _pictures_of(row: Row) -> tuple[str, ...]:
    return row.texts("image_base64_str") if row.has("image_base64_str") and row.fields["image_base64_str"] else ()


def _m3it_sample(record: Mapping[str, Any]) -> Sample:
    row = Row(record["row"])
    pictures = _pictures_of(row)
    turn = _instruction(row, "instruction", "inputs", "outputs")
    extra = {"task": "text", "pictures": len(pictures)}
    return Sample(str(record["number"]) if pictures else None, turns=(turn,), extra=extra)


def _instruction(row: Row, instruction: str, more: str, answer: str) -> Turn:
    """Return the instruction, and on a line of its own what it is to be applied to, which may be empty or null."""
    parts = [row.text(instruction), row.text(more) if row.value(more) is not None else ""]
    return Turn("\n".join(text for text in parts if text), row.text(answer))


def multiinstruct(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``SPLIT.jsonl``: {unique_id, task_name, image_path, region, options, prompt, target, ...}.

    A region is four numbers in one text, "x1 y1 x2 y2", in pixels of the original image (the set's own scripts copy
    COCO's numbers); the image's size is read from its file. The prompt and the target repeat the regions; there they
    become markup.
    """
    home = Home.of("multiinstruct", options.root)
    pictures = home.pictures(options.images)
    sample = partial(_multiinstruct_sample, pictures=pictures)
    return RecordDataset("multiinstruct", LineRecords([home.file(f"{options.split}.jsonl")]), sample, pictures)


_FOUR_NUMBERS = re.compile(r"-?[0-9.]+(?: -?[0-9.]+){3}")
_REGION = "region"


def _multiinstruct_sample(record: Any, pictures: PictureFolder) -> Sample:
    row = Row(record)
    image = row.name("image_path").removeprefix("./")
    regions, options = (row.texts(key) if row.has(key) else () for key in ("region", "options"))
    named = {text for text in (*regions, *options) if _FOUR_NUMBERS.fullmatch(text)}
    found: list[tuple[str, Box | None]] = []
    texts = [row.text("prompt"), row.text("target")]
    if named:
        size = pictures.size(image)
        # The longest first: one region's numbers may begin another's.
        pattern = re.compile("|".join(re.escape(text) for text in sorted(named, key=lambda t: (-len(t), t))))

        def rewritten(region: re.Match[str]) -> str:
            numbers = Row({f"region number {n}": number for n, number in enumerate(region[0].split())})
            box = Box.from_px([numbers.number(key) for key in numbers.fields], size)
            found.append((_REGION, box))
            return _markup(_REGION, box) if box is not None else _REGION

        texts = [pattern.sub(rewritten, text) for text in texts]
    objects: tuple[DetectedObject, ...]
    objects, dropped = annotated(found)
    extra = {
        "task": "referential" if objects else "text",
        "boxes_in_text": bool(objects),
        "objects_of": "question",
        "id": row.identity("unique_id"),
        "task_name": row.text("task_name"),
        **dropped,
    }
    return Sample(image, objects=objects, turns=(Turn(*texts),), extra=extra)


def orca(options: Any, context: BuildContext) -> RecordDataset:
    """OpenOrca's parquet files: id, system_prompt, question, response. The system prompt begins the instruction."""
    home = Home.of("orca", options.root)
    return RecordDataset("orca", ParquetRecords(home.files("*.parquet")), _orca_sample)


def _orca_sample(record: Any) -> Sample:
    row = Row(record)
    system = row.text("system_prompt", "")
    turn = Turn("\n".join([*([system] if system else []), row.text("question")]), row.text("response"))
    return Sample(None, turns=(turn,), extra={"task": "text", **kept(row, ("id",))})


def alpaca(options: Any, context: BuildContext) -> RecordDataset:
    """Read ``[{instruction, input, output}]``; ``input`` may be empty."""
    home = Home.of("alpaca", options.root)
    return RecordDataset("alpaca", records_of([home.file(options.file)]), _alpaca_sample)


def _alpaca_sample(record: Any) -> Sample:
    return Sample(None, turns=(_instruction(Row(record), "instruction", "input", "output"),), extra={"task": "text"})
