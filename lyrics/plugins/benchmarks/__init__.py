"""The benchmarks that the paper reports in Tables 2 and 3, ``scenes``, and POPE's probe. This manifest imports no
torch.

A benchmark reads its samples through the data set of the same name. docs/evaluation.md says which command gives which
number of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, create_model

from lyrics.core.registry.component import Component, Options, hookimpl


class FileOptions(Options):
    """Of a benchmark whose files the user has."""

    root: str = Field(description="folder that holds the files of the set (docs/datasets.md)")
    images: str | None = Field(
        None, description="folder that holds the images, where that is not root (several sets share COCO's)"
    )


class ScenesBenchmarkOptions(Options):
    """Of ``scenes``."""

    split: Literal["test", "validation", "held-out"] = Field("test", description="scenes that training never shows")
    scenes: int = Field(
        200,
        ge=1,
        le=1_000_000,
        description="scenes; each is asked five times, for each task, or 12 times if it is fine",
    )
    side: int = Field(128, ge=128, le=512, description="longer side of the images in pixels")
    max_objects: int = Field(8, ge=1, le=20, description="most objects of a scene")
    seed: int = Field(0, ge=0, lt=2**64, description="another seed is another world")
    attributes: Literal["plain", "fine"] = Field(
        "plain", description="fine: twins that tags and boxes do not tell apart, asked in groups (docs/scenes.md)"
    )


class PopeOptions(Options):
    """Options of ``pope`` and ``pope-boxes``."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"pictures": "num_images", "per_picture": "per_image"}

    split: Literal["random", "popular", "adversarial"] = Field(
        "random", description="how what is not there is drawn (docs/evaluation.md)"
    )
    data: str = Field("scenes", description="data set whose samples have objects")
    root: str | None = Field(None, description="folder that holds the data set's files; null for scenes")
    images: str | None = Field(None, description="folder that holds its images, where that is not root")
    part: str | None = Field("test", description="split of the data set, such as val2014; null for its own default")
    num_images: int = Field(500, ge=1, description="images that are asked about")
    per_image: int = Field(3, ge=1, description="questions about things that are there, and as many about others")
    counted: int | None = Field(
        1000, ge=1, description="images that frequencies are counted over, the first; null for all of the data set"
    )
    seed: int = Field(0, ge=0, lt=2**64, description="of the draws")


_ACCURACY = (
    Literal["official", "lavis", "evalai"],
    Field("official", description="variant of VQA accuracy (docs/evaluation.md); they give different scores"),
)


@dataclass(frozen=True)
class _Row:
    """``splits`` begins with the one that is evaluated unless another is asked for."""

    name: str
    build: str
    splits: tuple[str, ...]
    summary: str
    annotators: bool = False
    requires: tuple[str, ...] = ()


_CAPTIONS = ("pycocoevalcap>=1.2",)

_ROWS = (
    # Captions
    _Row(
        "coco",
        "captions:coco",
        ("karpathy-test", "karpathy-val", "val2014", "val2017"),
        "COCO captions: CIDEr",
        requires=_CAPTIONS,
    ),
    _Row("nocaps", "captions:nocaps", ("val",), "NoCaps: CIDEr", requires=_CAPTIONS),
    _Row("flickr30k", "captions:flickr30k", ("test", "val"), "Flickr30K captions: CIDEr", requires=_CAPTIONS),
    # General questions
    _Row("vqav2", "questions:vqav2", ("val", "test-dev", "test"), "VQAv2: VQA accuracy", annotators=True),
    _Row("ok-vqa", "questions:ok_vqa", ("val",), "OK-VQA: VQA accuracy", annotators=True),
    _Row("gqa", "questions:gqa", ("testdev-balanced", "val-balanced"), "GQA: exact match"),
    _Row("sciqa-img", "questions:sciqa_img", ("test", "val"), "ScienceQA, problems with an image: option letter"),
    _Row("vizwiz", "questions:vizwiz", ("val", "test"), "VizWiz: VQA accuracy", annotators=True),
    # Questions about written words
    _Row("textvqa", "questions:textvqa", ("val", "test"), "TextVQA: VQA accuracy", annotators=True),
    _Row("ocr-vqa", "questions:ocr_vqa", ("test", "val"), "OCR-VQA: exact match"),
    # Referring expressions
    _Row("refcoco", "expressions:refcoco", ("val", "testA", "testB"), "RefCOCO: accuracy at IoU 0.5"),
    _Row("refcoco-plus", "expressions:refcoco_plus", ("val", "testA", "testB"), "RefCOCO+: accuracy at IoU 0.5"),
    _Row("refcocog", "expressions:refcocog", ("val", "test"), "RefCOCOg: accuracy at IoU 0.5"),
)


def _options(row: _Row) -> type[Options]:
    fields: dict[str, Any] = {
        "split": (Literal[row.splits], Field(row.splits[0], description="which part of the set")),
    }
    if row.annotators:
        fields["accuracy"] = _ACCURACY
    name = "".join(word.capitalize() for word in row.name.split("-")) + "Options"
    return create_model(name, __base__=FileOptions, __module__=__name__, __doc__=f"Of {row.name}.", **fields)


@hookimpl
def lyrics_components() -> Iterator[Component]:
    for row in _ROWS:
        yield Component(
            kind="benchmark",
            name=row.name,
            build=f"lyrics.plugins.benchmarks.{row.build}",
            options=_options(row),
            requires=row.requires,
            install="pip install 'lyrics-vl[eval]'" if row.requires else "",
            summary=row.summary,
            license="the data set's own",
        )
    yield Component(
        kind="benchmark",
        name="scenes",
        build="lyrics.plugins.benchmarks.scenes:scenes",
        options=ScenesBenchmarkOptions,
        summary="the embedded data set: captions, questions by type, expressions, choices, words, what is not there",
        license="as lyrics; nothing is downloaded",
        test_options={"scenes": 4},
    )
    for name, build, summary in (
        (
            "pope",
            "pope:pope",
            "is it there? yes or no about things that are and are not, over any data set with objects",
        ),
        (
            "pope-boxes",
            "pope:pope_boxes",
            "boxes of things that are not there, and how well the refiner's evidence tells",
        ),
    ):
        yield Component(
            kind="benchmark",
            name=name,
            build=f"lyrics.plugins.benchmarks.{build}",
            options=PopeOptions,
            summary=summary,
            license="the data set's own",
            test_options={"num_images": 2, "counted": 20},
        )
