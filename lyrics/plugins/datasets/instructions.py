"""Instructions and conversations: LLaVA, LLaVAR, SVIT, M3IT, MultiInstruct, and of text alone OpenOrca and Alpaca.

The turns are trained as they stand (task ``text``), without a template around them. Where a text points at boxes they are written in it
in the markup of codec ``lyrics``, and ``Sample.objects`` lists them in the order in which the turns mention them: the k-th box of the
texts is ``objects[k]``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Home,
    JsonRecords,
    LineRecords,
    ParquetRecords,
    PictureFolder,
    RecordDataset,
    annotated,
    records_of,
    text_of,
)
from lyrics.core.errors import SampleError
from lyrics.core.geometry import Box
from lyrics.core.spatial import SpatialObject, format_objects
from lyrics.core.types import DetectedObject, Sample, Turn

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_MARK = "<image>"
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


def llava(options: Any, context: BuildContext) -> RecordDataset:
    """``[{id, image?, conversations[{from: human or gpt, value}]}]``; ``<image>`` stands in the first turn, where there is a picture.

    ``caps_boxes_*.jsonl`` ({image, captions, instances[{category, bbox: xyxy as shares of the picture}]}) is read as well.
    """
    return _llava(options, "llava", "train2017", "train2014", "val2014")


def llavar(options: Any, context: BuildContext) -> RecordDataset:
    """As LLaVA; the file for instruction tuning holds LLaVA's conversations too, whose pictures are COCO's."""
    return _llava(options, "llavar", "images", "finetune", "train2017")


def _llava(options: Any, name: str, *folders: str) -> RecordDataset:
    home = Home.of(name, options.root)
    return RecordDataset(
        name, records_of([home.file(options.file)]), _llava_sample, home.pictures(options.images, *folders)
    )


def _llava_sample(record: Mapping[str, Any]) -> Sample:
    image, extra = record.get("image"), {"id": record["id"]}
    if "conversations" not in record and "instances" in record:
        rows = ((row["category"], Box.clip(*row["bbox"])) for row in record["instances"])
        objects, dropped = annotated(rows)
        return Sample(image, tuple(record["captions"]), objects, extra={"task": "caption", **extra, **dropped})
    turns = _turns(record["conversations"])
    return Sample(image, turns=turns, extra={"task": "text", **extra})


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Pairs of a question and its answer; the mark of the picture's place is taken out of the first question."""
    roles = [message["from"] for message in messages]
    if len(roles) % 2 or any(r not in _ASKS for r in roles[::2]) or any(r not in _ANSWERS for r in roles[1::2]):
        raise ValueError(f"a conversation goes question, answer, question, ..., not {', '.join(map(str, roles))}")
    texts = [text_of(message["value"]) for message in messages]
    if texts:
        texts[0] = texts[0].replace(_IMAGE_MARK, "").strip()
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def svit(options: Any, context: BuildContext) -> RecordDataset:
    """``[{image_id, conversations[{content[{from: user or gpt, value}]}]}]``, one sample per conversation; pictures are Visual Genome's.

    ``referring_qa.json`` points at objects as ``<st>man<ed> [x1, y1, x2, y2]``, shares of the picture (the prompt its authors gave says
    so, and their own converter multiplies them by its sides).
    """
    home = Home.of("svit", options.root)
    records = JsonRecords([home.file(options.file, f"*/{options.file}")], _conversations)
    return RecordDataset("svit", records, _svit_sample, home.pictures(options.images, "VG_100K", "VG_100K_2"))


def _conversations(data: Any) -> list[Any]:
    return [
        {"image_id": record["image_id"], "content": conversation["content"]}
        for record in data
        for conversation in record["conversations"]
    ]


_NUMBER = r"\s*-?[0-9]+(?:\.[0-9]+)?\s*"
_SVIT_BOX = re.compile(rf"\[({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})\]")
_SVIT_MENTION = re.compile(rf"<st>([^<>]*)<ed>((?:\s*,?\s*{_SVIT_BOX.pattern})*)")


def _svit_sample(record: Mapping[str, Any]) -> Sample:
    found: list[tuple[str, Box | None]] = []

    def rewritten(mention: re.Match[str]) -> str:
        """Each box as markup. Words whose boxes are none stay as they are, and so do boxes without words."""
        if not mention[1].strip():
            return mention[0]
        boxes = [Box.clip(*map(float, box.groups())) for box in _SVIT_BOX.finditer(mention[2])]
        found.extend((mention[1], box) for box in boxes)
        return "".join(_markup(mention[1], box) for box in boxes if box is not None) or mention[1]

    turns = tuple(
        Turn(_SVIT_MENTION.sub(rewritten, turn.instruction), _SVIT_MENTION.sub(rewritten, turn.answer))
        for turn in _turns(record["content"])
    )
    objects, dropped = annotated(found)
    task = "referential" if objects else "text"
    return Sample(
        f"{record['image_id']}.jpg",
        objects=objects,
        turns=turns,
        extra={"task": task, "boxes_in_text": bool(objects), "image_id": record["image_id"], **dropped},
    )


def _markup(tag: str, box: Box) -> str:
    return format_objects([SpatialObject(text_of(tag), box)])


def m3it(options: Any, context: BuildContext) -> RecordDataset:
    """``data/TASK/SET/SPLIT.jsonl``: {instruction, inputs, outputs, image_base64_str[]}: the pictures stand in the records.

    The first picture is the sample's. The hub copy is made for a loading script, which is not run; its files are read as they are.
    """
    home = Home.of("m3it", options.root)
    records = _NumberedLines(home.files(f"**/{options.split}.jsonl"))
    return RecordDataset("m3it", records, _m3it_sample, _PicturesInRecords(records))


@dataclass
class _NumberedLines(LineRecords):
    """Each record with its number, by which its picture is found again."""

    def __getitem__(self, index: int) -> Any:
        return {**super().__getitem__(index), "number": index}


@dataclass
class _PicturesInRecords:
    records: LineRecords

    def read(self, key: str) -> Image.Image:
        from lyrics.core.data.pictures import decode_picture

        path, place = self.records.where(int(key))
        try:
            data = base64.b64decode(_pictures_of(self.records[int(key)])[0], validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError(f"{path}, {place}: its picture is not base64: {error}.", "record") from None
        return decode_picture(data, f"{path}, {place}")


def _pictures_of(record: Mapping[str, Any]) -> Sequence[str]:
    pictures = record.get("image_base64_str") or []
    return [pictures] if isinstance(pictures, str) else pictures


def _m3it_sample(record: Mapping[str, Any]) -> Sample:
    pictures = _pictures_of(record)
    turn = _instruction(record["instruction"], record["inputs"], record["outputs"])
    extra = {"task": "text", "pictures": len(pictures)}
    return Sample(str(record["number"]) if pictures else None, turns=(turn,), extra=extra)


def _instruction(instruction: Any, more: Any, answer: Any) -> Turn:
    """The instruction, and on a line of its own what it is to be applied to."""
    parts = [text for text in (text_of(instruction), text_of(more)) if text]
    return Turn("\n".join(parts), text_of(answer))


def multiinstruct(options: Any, context: BuildContext) -> RecordDataset:
    """``SPLIT.jsonl``: {unique_id, task_name, image_path, region, options, prompt, target, ...}.

    A region is four numbers in one text, "x1 y1 x2 y2", in pixels of the original picture (the set's own scripts copy COCO's numbers);
    the picture's size is read from its file. The prompt and the target repeat the regions; there they become markup.
    """
    home = Home.of("multiinstruct", options.root)
    pictures = home.pictures(options.images)
    sample = partial(_multiinstruct_sample, pictures=pictures)
    return RecordDataset("multiinstruct", LineRecords([home.file(f"{options.split}.jsonl")]), sample, pictures)


_FOUR_NUMBERS = re.compile(r"-?[0-9.]+(?: -?[0-9.]+){3}")
_REGION = "region"


def _multiinstruct_sample(record: Mapping[str, Any], pictures: PictureFolder) -> Sample:
    image = record["image_path"].removeprefix("./")
    options = tuple(map(text_of, record.get("options") or ()))
    listed = {text for text in (*(record.get("region") or ()), *options) if _FOUR_NUMBERS.fullmatch(text)}
    found: list[tuple[str, Box | None]] = []
    texts = [text_of(record["prompt"]), text_of(record["target"])]
    if listed:
        size = pictures.size(image)
        # The longest first: one region's numbers may begin another's.
        pattern = re.compile("|".join(re.escape(text) for text in sorted(listed, key=lambda t: (-len(t), t))))

        def rewritten(region: re.Match[str]) -> str:
            box = Box.from_px([float(number) for number in region[0].split()], size)
            found.append((_REGION, box))
            return _markup(_REGION, box) if box is not None else _REGION

        texts = [pattern.sub(rewritten, text) for text in texts]
    objects: tuple[DetectedObject, ...]
    objects, dropped = annotated(found)
    extra = {
        "task": "referential" if objects else "text",
        "boxes_in_text": bool(objects),
        "id": record["unique_id"],
        "task_name": record["task_name"],
        **dropped,
    }
    return Sample(image, objects=objects, turns=(Turn(*texts),), extra=extra)


def orca(options: Any, context: BuildContext) -> RecordDataset:
    """OpenOrca's parquet files: id, system_prompt, question, response. The system prompt begins the instruction."""
    home = Home.of("orca", options.root)
    return RecordDataset("orca", ParquetRecords(home.files("*.parquet")), _orca_sample)


def _orca_sample(record: Mapping[str, Any]) -> Sample:
    turn = _instruction(record["system_prompt"] or "", record["question"], record["response"])
    return Sample(None, turns=(turn,), extra={"task": "text", "id": record["id"]})


def alpaca(options: Any, context: BuildContext) -> RecordDataset:
    """``[{instruction, input, output}]``; ``input`` may be empty."""
    home = Home.of("alpaca", options.root)
    return RecordDataset("alpaca", records_of([home.file(options.file)]), _alpaca_sample)


def _alpaca_sample(record: Mapping[str, Any]) -> Sample:
    turn = _instruction(record["instruction"], record["input"], record["output"])
    return Sample(None, turns=(turn,), extra={"task": "text"})
