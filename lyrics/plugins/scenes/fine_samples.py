"""What is said of fine scenes, by task: twins are asked the same and answer otherwise
(``lyrics.plugins.scenes.fine_questions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from lyrics.core.data.conversation import NOT_FOUND, converse
from lyrics.core.data.templates import TEMPLATES, fill, placeholders
from lyrics.core.types import Sample, Turn
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine_captions import described, ground_phrase
from lyrics.plugins.scenes.fine_language import ATTRIBUTES, Attribute, boxed
from lyrics.plugins.scenes.fine_questions import (
    TwinQuestion,
    Twins,
    absent_shape,
    ask_fine,
    it_looks,
    names_in,
    pointed,
)
from lyrics.plugins.scenes.language import joined, place_of, place_phrase
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.names import GROUPS, FineQuestion, SingleTask
from lyrics.plugins.scenes.questions import OPTIONS
from lyrics.plugins.scenes.telling import Telling

_TURNS_OF_DIALOGUE = 3
#: Questions that are answered by a box of what an expression means.
_SEARCHED: tuple[FineQuestion, ...] = ("L which", "T location")
#: Of referring expressions, those whose noun nothing in the image has.
_ABSENT_SHARE = 0.1
#: The words of the task ``rec`` that ask where something is, whether it is there or not.
_SEARCHES = tuple(one for one in TEMPLATES["rec"] if "Bbox" not in placeholders(one))
#: Of a multiple choice at least; grounds, textures and leans have no more.
_FEWEST_OPTIONS = 3
#: Always to be asked: an attribute of a thing whose box is named, and a count.
_LAST_RESORT: tuple[FineQuestion, ...] = ("L color", "T count")
#: How often a conversation describes the whole at its end, or one thing; and how often a question is put in the words
#: of which task.
_CAPTION_SHARE, _DESCRIPTION_SHARE, _CHOICE_SHARE, _TEMPLATE_SHARE, _SEARCH_SHARE = 0.3, 0.5, 0.15, 0.6, 0.6


class Told:
    """A fine scene with its twin, the draws that both share, and what is to be asked."""

    def __init__(self, twins: Twins, twin: int, draws: Draws, key: str, questions: Sequence[FineQuestion]) -> None:
        self.twins, self.twin, self.draws, self.key = twins, twin, draws, key
        self.questions = questions or GROUPS
        self.scene: Scene = twins.scenes[twin]

    def ask(self, questions: Sequence[FineQuestion] = ()) -> TwinQuestion:
        """A question of those given, or else of the data set's; of a last resort where none of them can be asked."""
        for names in (questions or self.questions, _LAST_RESORT):
            if asked := ask_fine(self.twins, self.draws, names_in(names, self.draws)):
                return asked
        raise AssertionError("a color can always be asked for")

    def pick_thing(self) -> int:
        return self.draws.below(len(self.scene.things))

    def sample(
        self,
        task: str,
        asked: Sequence[TwinQuestion] = (),
        *,
        first: Thing | None = None,
        tag: str | None = None,
        captions: tuple[str, ...] = (),
        **extra: object,
    ) -> Sample:
        """A sample about this twin; ``extra["groups"]`` has the group of each question."""
        questions = tuple(one.of(self.twin) for one in asked)
        extra = {"groups": tuple(one.group for one in asked), **extra}
        telling = Telling(self.scene, self.draws, self.key)
        return telling.sample(task, captions=captions, first=first, tag=tag, questions=questions, **extra)


def whole_caption(scene: Scene, draws: Draws) -> str:
    """Everything from left to right, each thing by its color and one attribute more, and the ground."""
    things = sorted(scene.things, key=lambda thing: (thing.box.x1, thing.box.y1))
    others: tuple[Attribute, ...] = ("fill", "fill", "lean", "outline")
    listed = joined([described(thing, ("color", draws.pick(others))) for thing in things])
    return f"{listed}, {ground_phrase(scene)}"


def descriptions(thing: Thing) -> tuple[str, ...]:
    """Captions of one thing in every detail."""
    full = described(thing, ATTRIBUTES)
    place = place_of(thing.box)
    return (full,) if place is None else (full, f"{full} {place_phrase(place)}")


def _whole_caption(told: Told) -> Sample:
    return told.sample("caption", captions=(whole_caption(told.scene, told.draws),))


def _vqa(told: Told) -> Sample:
    return told.sample("vqa", [told.ask()])


def _text_vqa(told: Told) -> Sample:
    return told.sample("text-vqa", [told.ask(("L word",) if told.scene.words else ("T written",))])


def _grounded_caption(told: Told) -> Sample:
    target = told.scene.things[told.pick_thing()]
    return told.sample("grounded-caption", captions=descriptions(target), first=target)


def _rec(told: Told) -> Sample:
    """By what the text tells (``T``), or by a look (``L``); what is asked for by a look is not there in some twins."""
    names: list[FineQuestion] = [one for one in _SEARCHED if {one, one.split()[0]} & {*told.questions}]
    names = names or list(_SEARCHED)
    by_text = "T location" in names
    if by_text and told.draws.unit() < _ABSENT_SHARE and (shape := absent_shape(told.scene, told.draws)):
        return told.sample("rec", absent=shape, groups=("T",), search="absent")
    asked = told.ask((told.draws.pick(names),))
    if asked.expression is None:
        asked = told.ask(names)
    if asked.expression is None:  # nothing tells the things apart but where they are
        thing = told.scene.things[told.pick_thing()]
        return told.sample("rec", first=thing, tag=boxed(thing), groups=("T",), search="location")
    target = asked.targets[told.twin]
    if target is None:
        return told.sample("rec", absent=asked.expression, groups=(asked.group,), search=asked.type)
    return told.sample("rec", first=target, tag=asked.expression, groups=(asked.group,), search=asked.type)


def _referential(told: Told) -> Sample:
    index = told.pick_thing()
    target = told.scene.things[index]
    if told.draws.below(4) == 0:
        return told.sample("referential", captions=descriptions(target), first=target)
    return told.sample("referential", [it_looks(told.twins, index, told.draws)], first=target)


def _multiple_choice(told: Told) -> Sample:
    asked = told.ask()
    while len(asked.choices) < _FEWEST_OPTIONS:
        asked = told.ask((*told.questions, "L color"))
    return told.sample("multi-choice", [asked], options=options_of(asked, told.draws))


def options_of(asked: TwinQuestion, draws: Draws) -> tuple[str, ...]:
    """The answers of both twins among others, so that the options do not tell either."""
    right = tuple(dict.fromkeys(asked.answers))
    wrong = draws.shuffled([choice for choice in asked.choices if choice not in right])
    return tuple(draws.shuffled([*right, *wrong[: OPTIONS - len(right)]]))


def _dialogue(told: Told) -> Sample:
    asked: dict[str, TwinQuestion] = {}
    while len(asked) < _TURNS_OF_DIALOGUE:
        one = told.ask((*told.questions, *_LAST_RESORT)) if len(asked) else told.ask()
        asked.setdefault(one.text, one)
    return told.sample("text", [*asked.values()])


_SAMPLES: Mapping[SingleTask | Literal["whole-caption"], Callable[[Told], Sample]] = {
    "whole-caption": _whole_caption,
    "vqa": _vqa,
    "text-vqa": _text_vqa,
    "grounded-caption": _grounded_caption,
    "rec": _rec,
    "referential": _referential,
    "multi-choice": _multiple_choice,
    "dialogue": _dialogue,
}


def fine_sample(told: Told, task: SingleTask | Literal["whole-caption"]) -> Sample:
    """What is said of a fine scene for a task other than ``caption``, or its caption of everything."""
    return _SAMPLES[task](told)


def fine_turns(told: Told, index: int, seed: int, most: int, *, plain: bool = False) -> tuple[Turn, ...]:
    """A conversation of ``most`` turns about row ``index``: questions, at the end often a description, which tells what
    was asked. ``plain`` leaves the questions as they are, and no description ends them.
    """
    draws, most_asked = told.draws, most
    end = draws.unit()
    last: Literal["whole-caption", "grounded-caption"] | None = None
    if end < _DESCRIPTION_SHARE and not plain:
        last, most_asked = "whole-caption" if end < _CAPTION_SHARE else "grounded-caption", most - 1
    # Twins are asked in the same words.
    position = index // 2 * (3 * most + 1)
    turns: dict[str, Turn] = {}
    for number in range(1, 3 * most + 1):
        if len(turns) >= most_asked:
            break
        asked = told.ask()
        if asked.text in turns:
            continue
        question = asked.of(told.twin)
        as_it_is = (Turn(question.text, question.answer),)
        (turns[asked.text],) = as_it_is if plain else worded(told, asked, seed, position + number)
    ended = converse(_SAMPLES[last](told), seed=seed, position=position) if last else ()
    return (*turns.values(), *ended)


def worded(told: Told, asked: TwinQuestion, seed: int, position: int) -> tuple[Turn, ...]:
    """A question as it is, or in the words of a task that it fits.

    What is looked for may not be there: no words tell that it is.
    """
    draws, question = told.draws, asked.of(told.twin)
    if asked.expression is not None and draws.unit() < _SEARCH_SHARE:
        text = fill(draws.pick(_SEARCHES), {"Tag": asked.expression})
        target = asked.targets[told.twin]
        return (Turn(text, NOT_FOUND if target is None else pointed(asked.expression, target)),)
    if len(asked.choices) >= _FEWEST_OPTIONS and draws.unit() < _CHOICE_SHARE:
        sample = told.sample("multi-choice", [asked], options=options_of(asked, draws))
    elif draws.unit() < _TEMPLATE_SHARE:
        sample = told.sample("vqa", [asked])
    else:
        return (Turn(question.text, question.answer),)
    return converse(sample, seed=seed, position=position)
