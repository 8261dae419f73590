"""``scenes``: the embedded data set, coloured shapes and words drawn as they are asked for, with everything about them
known.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import Component, Options, hookimpl
from lyrics.plugins.scenes.names import (
    NUMBERS,
    SPLIT_ROOM,
    Attributes,
    Captions,
    FineQuestion,
    QuestionType,
    SceneTask,
    Split,
)

_QUESTIONS = (
    "of fine scenes: what is asked, by groups (T: tags and boxes tell; L: one thing's look; G: the whole's; LT: text "
    "and looks) or their types ('L color'); named twice, one comes twice as often. None: all groups alike"
)


class ScenesOptions(Options):
    """Options of ``scenes``."""

    split: Split = Field(
        "train",
        description="train, validation, test: disjoint and alike; held-out: every scene has a colour and shape that "
        "never meet in them",
    )
    scenes: int = Field(100_000, ge=1, le=SPLIT_ROOM, description="number of scenes; more of them begin with the same")
    task: SceneTask = Field(
        "caption",
        description="what is said of a scene; mixed draws a single task for each, conversation takes several. The "
        "images stay the same",
    )
    side: int = Field(128, ge=128, le=512, description="longer side of the images in pixels; some are not square")
    max_objects: int = Field(8, ge=1, le=len(NUMBERS) - 1, description="most objects of a scene; the fewest is 1")
    seed: int = Field(0, ge=0, lt=2**64, description="another seed is another world")
    attributes: Attributes = Field(
        "fine",
        description="fine: tags are shapes alone; color, fill, lean, outline, ground and spelling are in the pixels "
        "only, and rows 2k and 2k + 1 differ in nothing else; plain: tags are colors with shapes",
    )
    questions: tuple[FineQuestion, ...] = Field((), description=_QUESTIONS)
    turns: int = Field(6, ge=1, le=48, description="of fine scenes, the task conversation: turns at most")
    plain: bool = Field(
        False,
        description="of fine scenes, the task conversation: the questions as they are, without the words of the tasks, "
        "and no captions",
    )
    captions: Captions = Field(
        "varied",
        description="of fine scenes, the task caption: varied describes some things and some of their looks; dense "
        "everything about everything; regions the same, each thing with its box",
    )

    @model_validator(mode="after")
    def _fine_questions_are_of_fine_scenes(self) -> Self:
        if self.questions and self.attributes != "fine":
            raise ValueError("questions are of fine scenes: set attributes=fine, or leave questions out")
        if self.captions != "varied" and self.attributes != "fine":
            raise ValueError(f"{self.captions} captions are of fine scenes: set attributes=fine, or leave captions out")
        if (self.plain or self.turns != 6) and (self.attributes, self.task) != ("fine", "conversation"):
            raise ValueError(
                "plain and turns are of conversations about fine scenes: set attributes=fine and task=conversation, or "
                "leave them out"
            )
        return self


class SceneTextsOptions(Options):
    """Options of ``scene-texts``."""

    split: Split = Field("train", description="as for scenes; row i tells of scene i")
    scenes: int = Field(100_000, ge=1, le=SPLIT_ROOM, description="number of scenes; more of them begin with the same")
    max_objects: int = Field(8, ge=1, le=len(NUMBERS) - 1, description="as for scenes: most objects of one")
    turns: int = Field(13, ge=1, le=13, description="turns of a conversation at most")
    repeat: bool = Field(True, description="in the first turn everything is repeated, in another order")
    plain: bool = Field(
        False, description="questions about the whole scene as they are, without the wordy instructions of the tasks"
    )
    types: tuple[QuestionType, ...] = Field(
        (), description="plain questions of these types alone; named twice, one comes twice as often"
    )
    worded: bool = Field(
        False, description="plain questions of the kinds that the task vqa asks are in the words of its templates"
    )
    box_error: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="most that a listed coordinate is off, as a detector's, as a share of the box's side. Answers "
        "have listed boxes",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="another seed is another world")
    attributes: Attributes = Field("plain", description="as for scenes, which are fine unless this is said of them")
    questions: tuple[FineQuestion, ...] = Field((), description=_QUESTIONS)
    told: float = Field(
        0.7,
        ge=0,
        le=1,
        description="of fine scenes: share of texts that say in sentences what things look like; L, G and LT are "
        "asked there only",
    )
    listed: float = Field(
        0.85,
        ge=0,
        le=1,
        description="of fine scenes: share of the texts with such sentences that also list the objects",
    )

    @model_validator(mode="after")
    def _fine_texts_have_options_of_their_own(self) -> Self:
        if self.attributes == "fine" and (self.types or self.worded):
            raise ValueError("types and worded are of plain scenes; name questions instead")
        if self.attributes != "fine" and self.questions:
            raise ValueError("questions are of fine scenes: set attributes=fine, or leave questions out")
        return self

    @model_validator(mode="after")
    def _plain_questions_have_types(self) -> Self:
        if self.types and not self.plain:
            raise ValueError("types are those of plain questions: set plain=true, or leave types out")
        if self.worded and not self.plain:
            raise ValueError("worded is for plain questions, others are always so: set plain=true, or leave worded out")
        return self


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="dataset",
        name="scenes",
        build="lyrics.plugins.scenes.dataset:build",
        options=ScenesOptions,
        summary="coloured shapes and words, drawn on demand, with exact tags, boxes, masks, captions and answers",
        license="as lyrics; nothing is downloaded",
        test_options={"scenes": 20, "task": "mixed"},
    )
    yield Component(
        kind="dataset",
        name="scene-texts",
        build="lyrics.plugins.scenes.texts:build",
        options=SceneTextsOptions,
        summary="scenes as text alone: objects with their boxes, and a conversation about them",
        license="as lyrics; nothing is downloaded",
        test_options={"scenes": 20},
    )
