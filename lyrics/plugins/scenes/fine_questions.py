"""Questions about fine scenes, put to both twins: the same text, and the answer of each.

By what it takes to answer them they are of four groups: ``T``, the text of tags and boxes suffices; ``L``, the look of
one thing (local); ``G``, the look of the whole (global); ``LT``, both: the look of things that only the text tells
where they are. In L, G and LT the twins' answers differ always, so whoever knows the text alone is never right about
both; in T they are the same. A question is asked only where its answer is clear to the eye in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine_language import (
    ATTRIBUTES,
    VALUES,
    Attribute,
    FineKind,
    Reference,
    references,
    said,
    value_of,
)
from lyrics.plugins.scenes.language import (
    OPPOSITE,
    PLACES,
    RELATIONS,
    Kind,
    centre,
    place_of,
    stands,
    with_article,
)
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.names import FINE_QUESTIONS, GROUNDS, GROUPS, SHAPES, TEXTURES, WORDS, FineQuestion, Group
from lyrics.plugins.scenes.questions import Question

#: Tries of what is drawn at random and may not do.
_TRIES = 16


@dataclass(frozen=True)
class Twins:
    """Two fine scenes of one layout."""

    one: Scene
    other: Scene

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """Ways to mean things that hold in both."""
        return tuple(references(self.one))

    def of(self, index: int) -> tuple[Thing, Thing]:
        return self.one.things[index], self.other.things[index]

    def matching(self, kind: FineKind) -> tuple[list[int], list[int]]:
        """The places in the layout of what is of a kind, in either twin."""
        one, other = ([index for index, it in enumerate(scene.things) if kind.matches(it)] for scene in self.scenes)
        return one, other

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        return self.one, self.other


@dataclass(frozen=True)
class TwinQuestion:
    """A question to both twins: its group, its type, its text, and the answer of each.

    Attributes:
        choices: as of ``Question``.
        expression: of what is answered by a box: the name of what is looked for.
        targets: the thing that each twin's answer points at; None where nothing is there, or where it points at
            nothing.
    """

    group: Group
    type: str
    text: str
    answers: tuple[str, str]
    choices: tuple[str, ...] = ()
    expression: str | None = None
    targets: tuple[Thing | None, Thing | None] = (None, None)

    def of(self, twin: int) -> Question:
        """The question to the twin 0 or 1."""
        return Question(self.type, self.text, self.answers[twin], self.choices)


Ask = Callable[[Twins, Draws, Sequence[Attribute]], TwinQuestion | None]


def lacks(noun: str) -> str:
    """The answer to a question about what is not there."""
    return f"There is no {noun}."


def pointed(expression: str, thing: Thing | None) -> str:
    """The thing under the name that it was asked for by, or that there is none."""
    return lacks(expression) if thing is None else format_objects([SpatialObject(expression, thing.box)])


# T: what tags and boxes tell.


def _count(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion:
    shapes = [None, draws.pick(twins.one.things).shape, draws.pick(twins.one.things).shape, draws.pick(SHAPES)]
    kind = Kind(shape=draws.pick(shapes))
    count = len(kind.of(twins.one))
    return _told("count", f"How many {kind.noun(plural=True)} are there?", str(count), _numbers(count))


def _existence(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    absent = absent_shape(twins.one, draws)
    if draws.below(2) and absent:
        return _told("existence", f"Is there {with_article(absent)}?", "no", ("yes", "no"))
    shape = draws.pick(twins.one.things).shape
    return _told("existence", f"Is there {with_article(shape)}?", "yes", ("yes", "no"))


def _written(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion:
    return _told("existence", "Is there a word in the picture?", "yes" if twins.one.words else "no", ("yes", "no"))


def _relation(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    named = _nouns(twins, draws)
    for one in named:
        for other in named:
            relations = [way for way in RELATIONS if _holds(twins, way, one, other)] if other is not one else []
            if relations:
                relation = draws.pick(relations)
                asked, answer = (relation, "yes") if draws.below(2) else (OPPOSITE[relation], "no")
                return _told("relation", f"Is the {one.words} {asked} the {other.words}?", answer, ("yes", "no"))
    return None


def _side(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """Which of two opposite relations holds: what yes and no to one of them is learnt from."""
    named = _nouns(twins, draws)
    for one in named:
        for other in named:
            relations = [way for way in RELATIONS if _holds(twins, way, one, other)] if other is not one else []
            if relations:
                relation = draws.pick(relations)
                first, second = sorted((relation, OPPOSITE[relation]), key=list(RELATIONS).index)
                left, right = (way.removeprefix("to the ").removesuffix(" of") for way in (first, second))
                text = f"Is the {one.words} {first.removesuffix(' of')} or {second} the {other.words}?"
                return _told("side", text, left if relation == first else right, (left, right))
    return None


def _position(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    for one in _nouns(twins, draws):
        if place := place_of(twins.one.things[one.thing].box):
            return _told("position", f"Where in the picture is the {one.words}?", place, PLACES)
    return None


def _location(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """By a noun, a superlative or a relation; half of the time by more than a noun where that does."""
    found = [one for one in twins.references if one.how != "box"]
    more = [one for one in found if one.how == "words"]
    if not found:
        return None
    one = draws.pick(more if more and draws.below(2) else found)
    thing = twins.one.things[one.thing]
    asked = _told("location", f"Where is the {one.words}?", pointed(one.words, thing))
    return _pointing(asked, one.words, twins.of(one.thing))


def _naming(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion:
    thing = draws.pick(twins.one.things)
    return _told("naming", f"What is at {format_box(thing.box)}?", with_article(thing.shape), SHAPES)


def _absent(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """A question whose premise is false: what the text does not list is not there, whatever it is to look like."""
    shape = absent_shape(twins.one, draws)
    if shape is None:
        return None
    forms = ["Where is the {}?", "Where in the picture is the {}?"]
    forms += [_open(attribute, "{}") for attribute in attributes]
    form = draws.pick(forms)
    return _told("absent", form.format(shape), lacks(shape))


def _told(kind: str, text: str, answer: str, choices: tuple[str, ...] = ()) -> TwinQuestion:
    return TwinQuestion("T", kind, text, (answer, answer), choices)


def _pointing(asked: TwinQuestion, expression: str, targets: tuple[Thing | None, Thing | None]) -> TwinQuestion:
    return TwinQuestion(asked.group, asked.type, asked.text, asked.answers, asked.choices, expression, targets)


def _nouns(twins: Twins, draws: Draws) -> list[Reference]:
    """Things that are alone of their shape, in any order."""
    return draws.shuffled([one for one in twins.references if one.words in SHAPES])


def _holds(twins: Twins, relation: str, one: Reference, other: Reference) -> bool:
    things = twins.one.things
    return stands(relation, things[one.thing].box, things[other.thing].box)


def absent_shape(scene: Scene, draws: Draws) -> str | None:
    """A shape that nothing has."""
    there = {thing.shape for thing in scene.things}
    absent = [shape for shape in SHAPES if shape not in there]
    return draws.pick(absent) if absent else None


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(max(0, count - 3), count + 4))


# L: what one thing looks like.


def _open(attribute: Attribute, words: str) -> str:
    """The question for an attribute of what ``words`` mean (with its article where it takes one)."""
    return {
        "color": f"What color is the {words}?",
        "fill": f"Is the {words} solid, striped or dotted?",
        "lean": f"Is the {words} upright or leaning?",
        "outline": f"Is there a dark outline on the {words}?",
    }[attribute]


def _answer(attribute: Attribute, value: str) -> str:
    if attribute == "outline":
        return "yes" if value == "dark" else "no"
    return said(attribute, value)


def look_of(twins: Twins, index: int, attribute: Attribute, text: str, group: Group) -> TwinQuestion:
    """The question for an attribute of a thing, in a text that means it."""
    one, other = (_answer(attribute, value_of(thing, attribute)) for thing in twins.of(index))
    choices = tuple(_answer(attribute, value) for value in VALUES[attribute])
    return TwinQuestion(group, attribute, text, (one, other), choices)


def _look(attribute: Attribute) -> Ask:
    """An attribute of a thing that is named, or has its box named."""

    def ask(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
        if attribute not in attributes:
            return None
        named = [one for one in twins.references if one.how == "noun"]
        boxes = [one for one in twins.references if one.how == "box"]
        one = draws.pick(named if named and draws.below(3) else boxes)
        return look_of(twins, one.thing, attribute, _open(attribute, one.words), "L")

    return ask


def it_looks(twins: Twins, index: int, draws: Draws) -> TwinQuestion:
    """An attribute of a thing that was spoken of before: ``What color is it?``."""
    attribute = draws.pick(ATTRIBUTES)
    return look_of(twins, index, attribute, _open(attribute, "it").replace("the it", "it"), "L")


def _check(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """Whether a thing has a value, which one of the twins has."""
    found = [name for name in attributes if name != "outline"]
    if not found:
        return None
    attribute = draws.pick(found)
    named = [one for one in twins.references if one.how == "noun"]
    one = draws.pick(named or twins.references)
    right = draws.below(2)
    value = value_of(twins.of(one.thing)[right], attribute)
    text = f"Is the {one.words} {said(attribute, value)}?"
    return TwinQuestion("L", "check", text, _yes_in(right), ("yes", "no"))


def _presence(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """Whether anything of a shape looks so: in one of the twins, and not in the other."""
    for _ in range(_TRIES):
        right = draws.below(2)
        kind = _some_kind(twins, draws, attributes, right)
        found = twins.matching(kind)
        if found[right] and not found[1 - right]:
            return TwinQuestion(
                "L", "presence", f"Is there {with_article(kind.noun())}?", _yes_in(right), ("yes", "no")
            )
    return None


def _which(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """What is found by its look: one thing in either twin, not the same; or one in this and none in that."""
    lone: TwinQuestion | None = None
    for _ in range(_TRIES):
        right = draws.below(2)
        kind = _some_kind(twins, draws, attributes, right)
        found = twins.matching(kind)
        if len(found[right]) != 1 or len(found[1 - right]) > 1 or found[0] == found[1]:
            continue
        if len(twins.one.things) > 1 and len(Kind(shape=kind.shape).of(twins.one)) == 1 and draws.below(4):
            continue  # which one is meant, its noun tells already
        one, other = (
            scene.things[places[0]] if places else None for scene, places in zip(twins.scenes, found, strict=True)
        )
        expression = kind.noun()
        text = _which_text(kind, draws)
        answers = pointed(expression, one), pointed(expression, other)
        asked = TwinQuestion("L", "which", text, answers, (), expression, (one, other))
        if one is not None and other is not None:
            return asked
        lone = lone or asked
    return lone


def _which_text(kind: FineKind, draws: Draws) -> str:
    """``Which star is dotted?`` for one value, else ``Where is the dotted red star?``."""
    values = [(name, getattr(kind, name)) for name in ATTRIBUTES if getattr(kind, name) is not None]
    if len(values) == 1 and values[0][0] != "outline" and draws.below(2):
        return f"Which {kind.shape or 'object'} is {said(*values[0])}?"
    return f"Where is the {kind.noun()}?"


def _some_kind(twins: Twins, draws: Draws, attributes: Sequence[Attribute], right: int) -> FineKind:
    """What one of the twins has: one or two values of a thing, with its shape or without."""
    thing = draws.pick(twins.scenes[right].things)
    chosen = tuple(draws.shuffled(attributes)[: 1 + (draws.below(3) == 0)])
    kind = FineKind.of_thing(thing, chosen)
    return kind if draws.below(4) else kind._replace(shape=None)


def _yes_in(right: int) -> tuple[str, str]:
    return ("yes", "no") if right == 0 else ("no", "yes")


def _word(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """What is written."""
    if not (twins.one.words and twins.other.words):
        return None
    one, other = twins.one.words[0].text, twins.other.words[0].text
    if one[0] != other[0] and draws.below(4) == 0:
        return TwinQuestion("L", "word", "What is the first letter of the word?", (one[0], other[0]))
    return TwinQuestion("L", "word", "What word is written in the picture?", (one, other), WORDS)


# G: what the whole looks like.


def _ground(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion:
    answers = str(twins.one.ground), str(twins.other.ground)
    return TwinQuestion("G", "ground", "Is the ground pale, dark or tinted?", answers, GROUNDS)


def _texture(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion:
    answers = str(twins.one.texture), str(twins.other.texture)
    return TwinQuestion("G", "texture", "Is the ground plain, sloping or checked?", answers, TEXTURES)


# LT: the looks of things that only the text tells where they are.


def _found_look(attribute: Attribute) -> Ask:
    """An attribute of a thing that a superlative or a relation means."""

    def ask(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
        found = [one for one in twins.references if one.how == "words"]
        if not found or attribute not in attributes:
            return None
        one = draws.pick(found)
        return look_of(twins, one.thing, attribute, _open(attribute, one.words), "LT")

    return ask


def _tally(twins: Twins, draws: Draws, attributes: Sequence[Attribute]) -> TwinQuestion | None:
    """How many things look so, of all, of a shape, or of those on one side of a thing."""
    named = _nouns(twins, draws)
    for _ in range(_TRIES):
        kind = _some_kind(twins, draws, attributes, draws.below(2))
        if kind.shape is not None and len(Kind(shape=kind.shape).of(twins.one)) == 1:
            kind = kind._replace(shape=None)
        found = twins.matching(kind)
        text = f"How many {kind.noun(plural=True)} are there?"
        if named and draws.below(2):
            other, relation = draws.pick(named), draws.pick(tuple(RELATIONS))
            sides = [_beyond(twins, relation, places, other.thing) for places in found]
            if None in sides:
                continue
            found = sides[0] or [], sides[1] or []
            text = f"How many {kind.noun(plural=True)} are {relation} the {other.words}?"
        counts = tuple(map(len, found))
        if counts[0] != counts[1]:
            choices = _numbers(min(counts))
            return TwinQuestion("LT", "tally", text, (str(counts[0]), str(counts[1])), choices)
    return None


def _beyond(twins: Twins, relation: str, places: Sequence[int], other: int) -> list[int] | None:
    """Those of the places that stand so to a thing; None where it is not clear of all."""
    things, beyond = twins.one.things, []
    for place in places:
        if place == other:
            continue
        if stands(relation, things[place].box, things[other].box):
            beyond.append(place)
        elif not _clearly_not(relation, things[place], things[other]):
            return None
    return beyond


def _clearly_not(relation: str, one: Thing, other: Thing) -> bool:
    """Whether a thing's middle is on the other side of the other's middle."""
    axis = 0 if relation.startswith("to the") else 1
    ours, theirs = centre(one.box)[axis], centre(other.box)[axis]
    return ours >= theirs if relation in ("to the left of", "above") else ours <= theirs


#: Group and type -> what asks. ``questions`` of ``scenes`` and ``scene-texts`` are its keys, or groups.
BY_NAME: Mapping[FineQuestion, Ask] = {
    "T count": _count,
    "T existence": _existence,
    "T written": _written,
    "T relation": _relation,
    "T side": _side,
    "T position": _position,
    "T location": _location,
    "T naming": _naming,
    "T absent": _absent,
    "L color": _look("color"),
    "L fill": _look("fill"),
    "L lean": _look("lean"),
    "L outline": _look("outline"),
    "L check": _check,
    "L presence": _presence,
    "L which": _which,
    "L word": _word,
    "G ground": _ground,
    "G texture": _texture,
    "LT color": _found_look("color"),
    "LT fill": _found_look("fill"),
    "LT lean": _found_look("lean"),
    "LT outline": _found_look("outline"),
    "LT tally": _tally,
}
assert {*BY_NAME, *GROUPS} == set(FINE_QUESTIONS)
#: What a group stands for; "T side" is of use for training alone, and asked where it is named.
_OF_GROUP: Mapping[FineQuestion, tuple[FineQuestion, ...]] = {
    group: tuple(name for name in BY_NAME if name.split()[0] == group and name != "T side") for group in GROUPS
}


def names_in(questions: Sequence[FineQuestion], draws: Draws) -> Iterator[FineQuestion]:
    """The questions that are asked for, in the order in which they are tried: a group stands for all of its types."""
    for one in draws.shuffled(questions):
        yield from draws.shuffled(_OF_GROUP[one]) if one in _OF_GROUP else (one,)


def ask_fine(
    twins: Twins, draws: Draws, names: Iterable[FineQuestion], attributes: Sequence[Attribute] = ATTRIBUTES
) -> TwinQuestion | None:
    """The first question of ``names`` (see ``names_in``) that can be asked of both twins, or None.

    Of looks only ``attributes``.
    """
    for name in names:
        if asked := BY_NAME[name](twins, draws, attributes):
            return asked
    return None
