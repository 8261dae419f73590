"""Fine scenes as text alone. The list of objects has nouns and boxes, as a refiner's; what things look like is said in
sentences before it.

So every word for a look is read, bound to its thing, and answered with, before any image is seen; and never is it read
off the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lyrics.core.data.conversation import converse
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import format_box, format_objects
from lyrics.core.types import Turn
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine_captions import described, ground_phrase
from lyrics.plugins.scenes.fine_language import ATTRIBUTES, Attribute
from lyrics.plugins.scenes.fine_questions import TwinQuestion, ask_fine, names_in
from lyrics.plugins.scenes.fine_samples import Told, fine_sample, worded
from lyrics.plugins.scenes.language import joined
from lyrics.plugins.scenes.layout import Scene, Thing, Word
from lyrics.plugins.scenes.listing import listed
from lyrics.plugins.scenes.names import FineQuestion

#: How often sentences are about all attributes, name boxes where nouns would do, tell the ground, and tell the word.
_ALL_SHARE, _BOXES_SHARE, _GROUND_SHARE, _WORD_SHARE = 0.5, 0.6, 0.6, 0.8
#: How often a conversation ends with a caption of everything or of one thing, where everything is told.
_CAPTION_SHARE = 0.5


@dataclass(frozen=True)
class FineText:
    """What is read before the first question, the turns, and the group and type of each (``L color``)."""

    context: str
    turns: tuple[Turn, ...]
    types: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class _Known:
    """What the sentences tell."""

    attributes: tuple[Attribute, ...] = ()
    ground: bool = False
    word: bool = False

    def allows(self, name: FineQuestion) -> bool:
        group = name.split()[0]
        if name == "L word":
            return self.word
        return group == "T" or (self.ground if group == "G" else bool(self.attributes))


def fine_text(
    told: Told, *, most: int, box_error: float, share_told: float, share_listed: float, plain: bool
) -> FineText:
    """A text about a scene: what it says, and up to ``most`` turns. Its draws are those of ``told``.

    Args:
        box_error: as for ``scene-texts``.
        share_told, share_listed: its options ``told`` and ``listed``.
        plain: the questions as they are, without the words of the tasks, and no captions.
    """
    draws, scene = told.draws, told.scene
    seen = listed(scene, draws, box_error)
    objects = [found for _, found in seen]
    known = _known(scene, draws) if draws.unit() < share_told else _Known()
    context, boxed = [], False
    if known != _Known():
        shapes = [thing.shape for thing in scene.things]
        boxed = len({*shapes}) < len(shapes) or draws.unit() < _BOXES_SHARE
        context.append(_sentence(scene, draws, known, {id(one): found.box for one, found in seen} if boxed else {}))
    # The list may be missing where the sentences say of everything where it is.
    whole = boxed and known.attributes and (known.word or not scene.words)
    if not whole or draws.unit() < share_listed:
        context.append(format_objects(objects))
    asked = _asked(told, draws, known, most)
    turns: list[Turn] = []
    types = [f"{one.group} {one.type}" for one in asked]
    for number, one in enumerate(asked):
        question = one.of(told.twin)
        as_it_is = (Turn(question.text, question.answer),)
        turns += as_it_is if plain else worded(told, one, 0, _position(scene, number))
    if not plain and known == _Known(ATTRIBUTES, True, known.word) and draws.unit() < _CAPTION_SHARE:
        task: Literal["whole-caption", "grounded-caption"]
        task = draws.pick(("whole-caption", "grounded-caption"))
        turns += converse(fine_sample(told, task), seed=0, position=_position(scene, most))
        types.append(f"L {task}")
    return FineText("\n".join(context), tuple(turns), tuple(types), tuple(found.box for found in objects))


def _position(scene: Scene, number: int) -> int:
    return scene.number * 32 + number


def _known(scene: Scene, draws: Draws) -> _Known:
    """What is told: all attributes, or some; the ground; the word."""
    attributes = ATTRIBUTES
    if draws.unit() >= _ALL_SHARE:
        chosen = draws.shuffled(ATTRIBUTES)[: draws.below(len(ATTRIBUTES))]
        attributes = tuple(name for name in ATTRIBUTES if name in chosen)
    known = _Known(attributes, draws.unit() < _GROUND_SHARE, bool(scene.words) and draws.unit() < _WORD_SHARE)
    return known if known != _Known() else _Known(ground=True)


def _sentence(scene: Scene, draws: Draws, known: _Known, boxes: Mapping[int, Box]) -> str:
    """``this picture shows a red star at <Bbox>...</Bbox> and the word "STOP", on a dark ground.``"""

    def where(one: Thing | Word) -> str:
        return f" at {format_box(boxes[id(one)])}" if id(one) in boxes else ""

    parts = [described(one, known.attributes) + where(one) for one in scene.things] if known.attributes else []
    parts += [f'the word "{one.text}"{where(one)}' for one in scene.words] if known.word else []
    shown = [f"this picture shows {joined(draws.shuffled(parts))}"] if parts else []
    ground = [ground_phrase(scene) if parts else f"a picture {ground_phrase(scene)}"] if known.ground else []
    return f"{', '.join([*shown, *ground])}."


def _asked(told: Told, draws: Draws, known: _Known, most: int) -> Sequence[TwinQuestion]:
    """Different questions that the text answers, ``most`` of them, or fewer where it has no more to ask."""
    found: dict[str, TwinQuestion] = {}
    for _ in range(2 * most):
        if len(found) == most:
            break
        allowed = (name for name in names_in(told.questions, draws) if known.allows(name))
        if asked := ask_fine(told.twins, draws, allowed, known.attributes):
            found.setdefault(asked.text, asked)
    return [*found.values()] or [told.ask(("T count",))]
