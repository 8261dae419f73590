"""Every public data set of the paper's Table 1, and those it evaluates on.

A set is one row here, and one function in the module of its family.

``web`` (image and alt text), ``captions``, ``grounding`` (expressions and boxes), ``questions``, ``instructions``.
docs/datasets.md says where each set is to be had and how its files must lie. This manifest imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, create_model

from lyrics.core.registry.component import Component, Options, hookimpl


class TextOptions(Options):
    """Of a set of text alone."""

    root: str = Field(description="folder that holds the files of the set (docs/datasets.md)")


class PictureOptions(TextOptions):
    """Of a set whose images lie in a folder."""

    images: str | None = Field(
        None,
        description="folder that holds the images, where that is not root (several sets share COCO's); or what they "
        "are called there, "
        "such as pictures/coco_val2017_*, where * is an image's name after its last underscore",
    )


@dataclass(frozen=True)
class _Choice:
    """An option with a few values, the first being the default."""

    name: str
    values: tuple[str, ...]
    description: str


def _split(*values: str) -> _Choice:
    return _Choice("split", values, "which part of the set")


@dataclass(frozen=True)
class _File:
    """An option that names one of the set's files."""

    default: str
    name: str = "file"
    description: str = "file with the records, a path below root"


@dataclass(frozen=True)
class _Set:
    name: str
    build: str
    license: str
    summary: str
    options: tuple[_Choice | _File, ...] = ()
    pictures: bool = True
    requires: tuple[str, ...] = ()


_COCO_2014 = _split("train", "val", "test", "test-dev")
_SHARDS = "tar shards of img2dataset, or the list of addresses"
_PARTS = "which of the set's annotations are read"

_SETS = (
    # Pre-training
    _Set("laion", "web:laion", "CC BY 4.0", f"LAION: {_SHARDS}", pictures=False),
    _Set("cc12m", "web:cc12m", "Google's terms", f"Conceptual 12M: {_SHARDS}", pictures=False),
    _Set("cc3m", "web:cc3m", "Google's terms", f"Conceptual Captions: {_SHARDS}", pictures=False),
    _Set("sbu", "web:sbu", "research", f"SBU Captions: {_SHARDS}", pictures=False),
    # Captioning
    _Set(
        "coco",
        "captions:coco",
        "CC BY 4.0",
        "COCO: five captions and the boxes of 80 kinds of objects",
        (
            _split(
                "train2017",
                "val2017",
                "train2014",
                "val2014",
                "karpathy-train",
                "karpathy-val",
                "karpathy-test",
            ),
        ),
    ),
    _Set("mmc4", "captions:mmc4", "ODC-BY", "Multimodal C4: images and the sentences of web pages around them"),
    _Set(
        "ai-challenger",
        "captions:ai_challenger",
        "research",
        "AI Challenger: five Chinese captions",
        (_split("train", "val"),),
    ),
    _Set("nocaps", "captions:nocaps", "CC BY 2.0", "NoCaps: ten captions", (_split("val", "test"),)),
    _Set(
        "flickr30k",
        "captions:flickr30k",
        "research, non-commercial",
        "Flickr30K: five captions, and the boxes of Entities where they are there",
        (_split("train", "val", "test", "all"),),
    ),
    # Grounding
    _Set(
        "refcoco",
        "grounding:refcoco",
        "UNC; boxes CC BY 4.0",
        "RefCOCO: referring expressions",
        (_split("train", "val", "testA", "testB"),),
    ),
    _Set(
        "refcoco-plus",
        "grounding:refcoco_plus",
        "UNC; boxes CC BY 4.0",
        "RefCOCO+: referring expressions without words of place",
        (_split("train", "val", "testA", "testB"),),
    ),
    _Set(
        "refcocog",
        "grounding:refcocog",
        "UMD; boxes CC BY 4.0",
        "RefCOCOg: longer referring expressions",
        (_split("train", "val", "test"),),
    ),
    _Set(
        "grit",
        "grounding:grit",
        "MS-PL",
        "GRIT: captions whose phrases have boxes",
        (_Choice("part", ("noun_chunks", "ref_exps"), _PARTS),),
        pictures=False,
    ),
    _Set(
        "vg",
        "grounding:visual_genome",
        "CC BY 4.0",
        "Visual Genome: regions, objects or questions",
        (_Choice("part", ("regions", "objects", "questions"), _PARTS),),
    ),
    # Questions
    _Set("vqav2", "questions:vqav2", "CC BY 4.0", "VQAv2: ten answers to each question", (_COCO_2014,)),
    _Set("ok-vqa", "questions:ok_vqa", "CC BY 4.0", "OK-VQA: questions that need knowledge", (_split("train", "val"),)),
    _Set(
        "gqa",
        "questions:gqa",
        "CC BY 4.0",
        "GQA: questions made of scene graphs",
        (
            _split(
                "train-balanced",
                "val-balanced",
                "testdev-balanced",
                "test-balanced",
                "train-all",
                "val-all",
                "testdev-all",
            ),
        ),
    ),
    _Set(
        "vizwiz",
        "questions:vizwiz",
        "CC BY 4.0",
        "VizWiz: questions of blind people about their own photographs",
        (_split("train", "val", "test"),),
    ),
    _Set(
        "docvqa",
        "questions:docvqa",
        "terms of RRC",
        "DocVQA: questions about scanned pages",
        (_split("train", "val", "test"),),
    ),
    _Set(
        "textvqa",
        "questions:textvqa",
        "CC BY 4.0",
        "TextVQA: questions about written words, and the words an OCR found",
        (_split("train", "val", "test"),),
    ),
    _Set(
        "ocr-vqa",
        "questions:ocr_vqa",
        "research",
        "OCR-VQA: questions about book covers",
        (_split("train", "val", "test"),),
    ),
    _Set("ai2d", "questions:ai2d", "CC BY-SA", "AI2D: multiple choice about diagrams", (_split("train", "test"),)),
    _Set(
        "scienceqa",
        "questions:scienceqa",
        "CC BY-NC-SA 4.0",
        "ScienceQA: multiple choice of school science, half of it with an image",
        (_split("train", "val", "test", "trainval", "minitrain", "minival", "minitest"),),
    ),
    _Set(
        "chartqa",
        "questions:chartqa",
        "GPL-3.0",
        "ChartQA: questions about charts",
        (_split("train", "val", "test"), _Choice("part", ("all", "human", "augmented"), _PARTS)),
    ),
    _Set(
        "dvqa",
        "questions:dvqa",
        "CC BY-NC 4.0",
        "DVQA: questions about drawn bar charts",
        (_split("train", "val_easy", "val_hard"),),
    ),
    # Conversation
    _Set(
        "llava",
        "instructions:llava",
        "CC BY-NC 4.0",
        "LLaVA: conversations about COCO's images",
        (_File("llava_instruct_150k.json"),),
    ),
    _Set(
        "llavar",
        "instructions:llavar",
        "CC BY-NC 4.0",
        "LLaVAR: conversations about images with much text",
        (_File("llava_instruct_150k_llavar_16k.json"),),
    ),
    _Set(
        "svit",
        "instructions:svit",
        "CC BY 4.0",
        "SVIT: conversations, also with boxes, about Visual Genome's images",
        (_File("referring_qa.json"),),
    ),
    _Set(
        "m3it",
        "instructions:m3it",
        "each source's own",
        "M3IT: instructions of 40 sets, the images in the records",
        (_split("train", "val", "test"),),
        pictures=False,
    ),
    _Set(
        "multiinstruct",
        "instructions:multiinstruct",
        "each source's own",
        "MultiInstruct: 62 tasks, also with boxes",
        (_split("train", "test"),),
    ),
    _Set(
        "orca",
        "instructions:orca",
        "MIT",
        "OpenOrca: text alone; the paper's Orca was not published",
        pictures=False,
        requires=("pyarrow>=15",),
    ),
    _Set(
        "alpaca",
        "instructions:alpaca",
        "CC BY-NC 4.0",
        "Alpaca: text alone",
        (_File("alpaca_data.json"),),
        pictures=False,
    ),
)


def _options(row: _Set) -> type[Options]:
    fields: dict[str, Any] = {}
    for option in row.options:
        if isinstance(option, _File):
            fields[option.name] = (str, Field(option.default, description=option.description))
        else:
            fields[option.name] = (Literal[option.values], Field(option.values[0], description=option.description))
    name = "".join(word.capitalize() for word in row.name.split("-")) + "Options"
    base: type[Options] = PictureOptions if row.pictures else TextOptions
    return create_model(name, __base__=base, __module__=__name__, __doc__=f"Of {row.name}.", **fields)


@hookimpl
def lyrics_components() -> Iterator[Component]:
    for row in _SETS:
        yield Component(
            kind="dataset",
            name=row.name,
            build=f"lyrics.plugins.datasets.{row.build}",
            options=_options(row),
            requires=row.requires,
            install="pip install 'lyrics-vl[data]'" if row.requires else "",
            summary=row.summary,
            license=row.license,
        )
