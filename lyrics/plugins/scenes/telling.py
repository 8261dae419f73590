"""What is said of a scene as a ``Sample``, with the ground truth as plain data."""

from __future__ import annotations

from typing import Any

from lyrics.core.types import DetectedObject, Sample, Turn
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.language import by_area
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.questions import Question


class Telling:
    """A scene, the draws about what is said of it, and its key."""

    def __init__(self, scene: Scene, draws: Draws, key: str) -> None:
        self.scene, self.draws, self.key = scene, draws, key

    def sample(
        self,
        task: str,
        *,
        captions: tuple[str, ...] = (),
        first: Thing | None = None,
        tag: str | None = None,
        questions: tuple[Question, ...] = (),
        **extra: Any,
    ) -> Sample:
        """The sample: all objects, the conspicuous ones first, but ``first`` before them (under the name ``tag``)."""
        things = by_area(self.scene)
        if first is not None:
            things.sort(key=lambda thing: thing is not first)
        objects = [self._object(thing, tag if thing is first and tag else thing.tag) for thing in things]
        truth: dict[str, Any] = {
            "things": tuple(_told(one) for one in self.scene.things),
            "words": tuple({"text": word.text, "box_norm": word.box.as_tuple()} for word in self.scene.words),
        }
        if self.scene.ground is not None:
            truth |= {"ground": self.scene.ground, "texture": self.scene.texture, "overlaps": self.scene.overlaps}
        types, answers = tuple(one.type for one in questions), tuple(one.answer for one in questions)
        return Sample(
            image=self.key,
            captions=captions,
            objects=tuple(objects),
            turns=tuple(Turn(one.text, one.answer) for one in questions),
            source=f"scenes {self.key}",
            extra={"task": task, "question_types": types, "answers": answers, **truth, **extra},
        )

    def _object(self, thing: Thing, tag: str) -> DetectedObject:
        index = next(index for index, other in enumerate(self.scene.things) if other is thing)
        return DetectedObject(tag, thing.box, 1.0, self.scene.mask(index))


def _told(thing: Thing) -> dict[str, Any]:
    """A thing as plain data."""
    told = {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "box_norm": thing.box.as_tuple()}
    fine = {"fill": thing.fill, "lean": thing.lean, "outline": thing.outline}
    return told if thing.canvas is None else {**told, **fine}
