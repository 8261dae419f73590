"""The embedded default: four small experts, ``lyrics-tiny`` that consists of them, and how it is trained.

They are meant for drawn scenes and know no photograph. This file is the manifest: it imports no torch.

The experts are ``vit``, ``tagger``, ``detector`` and ``segmenter``, on ``backbone``, ``phrases``, ``boxes`` and
``knows_scenes``; ``trained_weights`` finds and loads what ships. ``presets`` and ``recipes`` are those of the hooks,
``tokenizer_words`` and ``expert_vocabulary`` what the language model and the experts know by name. To train them:
``train_experts`` (losses in ``expert_losses``, ``tensor_losses`` and ``looks``), then ``train_model`` (stages in
``plain_stages`` and ``fine_stages``; ``extend_vocabulary`` when words are added). To measure them: ``measure_experts``,
``probe_experts``, ``measure_reading``, ``stage1_gates``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from lyrics.core.registry.component import Component, NamesWeights, Options, Preset, Recipe, Vocabulary, hookimpl
from lyrics.plugins.tiny.expert_vocabulary import NOUNS, normalised
from lyrics.plugins.tiny.presets import TINY_STAGE1_WEIGHTS, TINY_WEIGHTS, lyrics_tiny, lyrics_tiny_plain, tiny_refiner

LICENCE = "as lyrics; the weights were trained on scenes, which lyrics draws itself"


def _checked_vocabulary(vocabulary: tuple[str, ...]) -> tuple[str, ...]:
    """Every name has a letter, and no two names differ in case and white space only."""
    seen: dict[str, str] = {}
    for name in vocabulary:
        key = normalised(name)
        if not key:
            raise ValueError("a name of the vocabulary is empty; every name needs at least one word")
        if key in seen:
            raise ValueError(
                f"the vocabulary names {seen[key]!r} and {name!r}, which are the same to the expert; drop one"
            )
        seen[key] = name
    return vocabulary


class _TrainedOptions(Options):
    checkpoint: Annotated[str | None, NamesWeights()] = Field(
        None,
        description="folder of trained experts (scripts/train_tiny.py experts), or package:NAME/PATH; null: those "
        "that ship",
    )


class TinyVitOptions(_TrainedOptions):
    """Options of ``tiny-vit``."""

    image_size: int = Field(56, ge=8, description="side in pixels of the square that images are squashed to")
    patch_size: int = Field(8, ge=4, le=32, description="pixels per token along each side; a power of two")
    width: int = Field(128, ge=8, multiple_of=8, description="width of a token")
    blocks: int = Field(4, ge=0, description="residual blocks of the last stage of the convolutional trunk")
    layers: int = Field(2, ge=1, description="transformer layers on the trunk")
    heads: int = Field(4, ge=1, description="attention heads; divides the width")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size must be a power of two (4, 8, 16 or 32), not {self.patch_size}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def feature_dim(self) -> int:
        """Width of an image token."""
        return self.width


class _VocabularyOptions(_TrainedOptions):
    vocabulary: tuple[str, ...] = Field(
        NOUNS,
        min_length=1,
        description="the names it knows; a name's logit is made of those of its words (quoted: letters)",
    )

    @field_validator("vocabulary")
    @classmethod
    def _names_differ(cls, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_vocabulary(vocabulary)


class TinyTaggerOptions(_VocabularyOptions):
    """Options of ``tiny-tagger``."""

    image_size: int = Field(
        128, ge=16, multiple_of=8, description="longest side in pixels, and side of the padded square"
    )
    width: int = Field(96, ge=8, multiple_of=8, description="channels of the last stage")
    blocks: int = Field(4, ge=0, description="residual blocks of the last stage")
    threshold: float = Field(0.5, ge=0, le=1, description="tags whose probability is lower are not reported")


class TinyDetectorOptions(_VocabularyOptions):
    """Options of ``tiny-detector``."""

    image_size: int = Field(
        128, ge=16, multiple_of=8, description="longest side in pixels, and side of the padded square"
    )
    width: int = Field(96, ge=8, multiple_of=8, description="channels of the last stage")
    blocks: int = Field(6, ge=0, description="residual blocks of the last stage")
    score_threshold: float = Field(0.4, ge=0, le=1, description="detections whose score is lower are not reported")
    nms_iou: float = Field(
        0.5, ge=0, le=1, description="of two boxes for one phrase that overlap more, the better stays"
    )
    rival_iou: float = Field(
        0.7,
        ge=0,
        le=1,
        description="of two boxes for different phrases that overlap more, the better stays: a thing has one name; "
        "1: both stay",
    )
    max_detections: int = Field(100, ge=1, description="most detections per image; the best are kept")
    queries: int | None = Field(
        16,
        ge=1,
        description="tokens per image: the best so many that stand for different boxes; null: one for each cell",
    )
    query_width: int | None = Field(
        32,
        ge=4,
        multiple_of=4,
        description="names and boxes are read from so many channels of a cell; null: from all",
    )
    query_threshold: float = Field(0.05, ge=0, le=1, description="queries that are less sure of an object are left out")

    @property
    def feature_dim(self) -> int:
        """Width of a local token: a cell's state and its box as (center x, center y, width, height)."""
        return (self.query_width or self.width) + 4


class TinySegmenterOptions(_TrainedOptions):
    """Options of ``tiny-segmenter``."""

    image_size: int = Field(
        128, ge=16, multiple_of=8, description="longest side in pixels, and side of the padded square"
    )
    width: int = Field(48, ge=8, multiple_of=8, description="channels of the image's features")
    blocks: int = Field(2, ge=0, description="residual blocks of the image's features")
    roi_size: int = Field(28, ge=4, description="side of the grid of samples over a box from which its mask is made")
    look_width: int | None = Field(
        64,
        ge=4,
        multiple_of=4,
        description="tokens tell in so many channels what the masked part looks like; null: features averaged over "
        "the mask",
    )

    @property
    def feature_dim(self) -> int:
        """Width of a local token: what the mask holds and the box as (center x, center y, width, height)."""
        return (self.look_width or self.width) + 4


# Phrases that the conformance suite asks for, one of each image, so that it sees detections.
_TEST_VOCABULARY = ("red circle", "dog")


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="image-encoder",
        name="tiny-vit",
        build="lyrics.plugins.tiny.vit:build",
        options=TinyVitOptions,
        summary="small vision transformer on a convolutional trunk for drawn scenes: 49 tokens of width 128",
        license=LICENCE,
        test_options={"image_size": 32, "width": 16, "blocks": 1, "layers": 1, "heads": 2},
    )
    yield Component(
        kind="tagger",
        name="tiny-tagger",
        build="lyrics.plugins.tiny.tagger:build",
        options=TinyTaggerOptions,
        summary="small convolutional tagger for drawn scenes, with a fixed vocabulary",
        license=LICENCE,
        test_options={"image_size": 32, "width": 16, "blocks": 1, "vocabulary": _TEST_VOCABULARY, "threshold": 0.0},
    )
    yield Component(
        kind="detector",
        name="tiny-detector",
        build="lyrics.plugins.tiny.detector:build",
        options=TinyDetectorOptions,
        summary="small anchor-free detector for drawn scenes, with a fixed vocabulary; its best 16 queries are tokens",
        license=LICENCE,
        test_options={
            "image_size": 32,
            "width": 16,
            "blocks": 1,
            "query_threshold": 0.0,  # random weights are sure of nothing
            "vocabulary": _TEST_VOCABULARY,
            "score_threshold": 0.0,
            "rival_iou": 1.0,
            "query_width": 8,
        },
    )
    yield Component(
        kind="segmenter",
        name="tiny-segmenter",
        build="lyrics.plugins.tiny.segmenter:build",
        options=TinySegmenterOptions,
        summary="small box-prompted segmenter for drawn scenes",
        license=LICENCE,
        test_options={"image_size": 32, "width": 16, "blocks": 1, "roi_size": 8, "look_width": 8},
    )


@hookimpl
def lyrics_presets() -> Iterable[Preset]:
    yield Preset(
        "lyrics-tiny",
        lyrics_tiny,
        "trained, at toy size, for drawn scenes: the same code paths on a CPU, offline",
        weights=TINY_WEIGHTS,
    )
    yield Preset(
        "lyrics-tiny-stage1",
        lyrics_tiny,
        "lyrics-tiny as stage 1 left it: for retrieval and matching, and to begin stage 2 with",
        weights=TINY_STAGE1_WEIGHTS,
    )
    yield Preset(
        "lyrics-tiny-plain",
        lyrics_tiny_plain,
        "lyrics-tiny for plain scenes, whose tags say what things look like; to be trained, its experts first "
        "(docs/tiny-story.md)",
    )
    yield Preset("tiny-refiner", tiny_refiner, "a refiner alone: the experts of lyrics-tiny, for drawn scenes")


@hookimpl
def lyrics_recipes() -> Iterable[Recipe]:
    recipes = "lyrics.plugins.tiny.recipes"
    yield Recipe(
        "tiny-text", f"{recipes}:tiny_text", "what the language model of lyrics-tiny learns first: to read scenes"
    )
    yield Recipe("tiny-stage1", f"{recipes}:tiny_stage1", "stage 1 of lyrics-tiny on drawn scenes, on a CPU")
    yield Recipe("tiny-stage2", f"{recipes}:tiny_stage2", "stage 2 of lyrics-tiny on drawn scenes, on a CPU")
    yield Recipe(
        "tiny-plain-stage1", f"{recipes}:tiny_plain_stage1", "stage 1 of lyrics-tiny-plain on plain scenes, on a CPU"
    )
    yield Recipe(
        "tiny-plain-stage2", f"{recipes}:tiny_plain_stage2", "stage 2 of lyrics-tiny-plain on plain scenes, on a CPU"
    )


@hookimpl
def lyrics_vocabularies() -> Iterable[Vocabulary]:
    yield Vocabulary(
        "words",
        "lyrics.plugins.tiny.tokenizer_words:lists",
        "the words of the drawn scenes and of the paper's templates",
    )
