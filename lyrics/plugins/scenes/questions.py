"""Questions about a scene, each with its one right answer.

A question is asked only where the answer is clear to the eye.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lyrics.core.data.conversation import NOT_FOUND
from lyrics.core.data.templates import IF_FOUND, TEMPLATES, fill, lettered
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.language import (
    EXTREMES,
    OPPOSITE,
    PLACES,
    RELATIONS,
    Kind,
    expression_for,
    expressions_for,
    joined,
    names_of,
    place_of,
    stands,
    with_article,
)
from lyrics.plugins.scenes.layout import Scene, Thing, combinations
from lyrics.plugins.scenes.names import COLOURS, SHAPES, SIZES, SPLIT_ROOM, SPLITS, WORDS, QuestionType


@dataclass(frozen=True)
class Question:
    """``type`` is what it takes to answer it.

    ``choices`` are all answers that a question of its form may have; empty where open.
    """

    type: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


Ask = Callable[[Scene, Draws], Question | None]
#: Of a multiple choice.
OPTIONS = 4
#: Opposite relations.
_PAIRS = (("to the left of", "to the right of"), ("above", "below"))


def _nameable(scene: Scene, draws: Draws) -> tuple[Thing, Kind] | None:
    """A thing at random and a name that it has to itself."""
    for thing in draws.shuffled(scene.things):
        if names := names_of(scene, thing):
            return thing, draws.pick(names)
    return None


def absent_pair(scene: Scene, draws: Draws) -> tuple[str, str] | None:
    """A colour and a shape that are not there together; three times in four either one is there.

    No held-out pair, but in their split.
    """
    pairs = list(combinations(held_out=False))
    if scene.number // SPLIT_ROOM == SPLITS.index("held-out"):
        pairs += combinations(held_out=True)
    there = {(thing.colour, thing.shape) for thing in scene.things}
    absent = [pair for pair in pairs if pair not in there]
    colours, shapes = ({thing.colour for thing in scene.things}, {thing.shape for thing in scene.things})
    near = [pair for pair in absent if pair[0] in colours or pair[1] in shapes]
    if near and draws.unit() < 0.75:
        return draws.pick(near)
    return draws.pick(absent) if absent else None


def ask_count(scene: Scene, draws: Draws) -> Question:
    thing = draws.pick(scene.things)
    kinds = [Kind(), Kind(shape=thing.shape), Kind(colour=thing.colour), Kind(thing.colour, thing.shape)]
    if draws.unit() < 0.25 and (pair := absent_pair(scene, draws)):
        kinds = [Kind(*pair)]
    kind = draws.pick(kinds)
    count = len(kind.of(scene))
    choices = tuple(str(number) for number in range(max(0, count - 3), count + 4))
    return Question("count", f"How many {kind.noun(plural=True)} are there?", str(count), choices)


def ask_amount(scene: Scene, draws: Draws) -> Question:
    """As ``ask_count``, for a colour with a shape, which three times in four is there."""
    thing = draws.pick(scene.things)
    pair = absent_pair(scene, draws) if draws.below(4) == 0 else None
    kind = Kind(*(pair or (thing.colour, thing.shape)))
    return Question("amount", f"How many {kind.noun(plural=True)} are there?", str(len(kind.of(scene))))


def ask_colour(scene: Scene, draws: Draws) -> Question | None:
    for thing in draws.shuffled(scene.things):
        for kind in (Kind(shape=thing.shape), Kind(shape=thing.shape, size=thing.size)):
            if kind.of(scene) == [thing]:
                return Question("color", f"What color is the {kind.noun()}?", thing.colour, COLOURS)
    return None


def ask_shape(scene: Scene, draws: Draws) -> Question | None:
    for thing in draws.shuffled(scene.things):
        for kind in (Kind(colour=thing.colour), Kind(colour=thing.colour, size=thing.size)):
            if kind.of(scene) == [thing]:
                return Question("shape", f"What shape is the {kind.noun()}?", thing.shape, SHAPES)
    return None


def ask_sized(scene: Scene, draws: Draws) -> Question | None:
    """The colour or the shape of a thing that is told from others like it by its size alone."""
    for thing in draws.shuffled(scene.things):
        by_shape, by_colour = Kind(shape=thing.shape), Kind(colour=thing.colour)
        for kind in draws.shuffled((by_shape, by_colour)):
            sized = kind._replace(size=thing.size)
            if len(kind.of(scene)) > 1 and sized.of(scene) == [thing]:
                if kind == by_shape:
                    return Question("sized", f"What color is the {sized.noun()}?", thing.colour, COLOURS)
                return Question("sized", f"What shape is the {sized.noun()}?", thing.shape, SHAPES)
    return None


def ask_size(scene: Scene, draws: Draws) -> Question | None:
    for thing in draws.shuffled(scene.things):
        for kind in (Kind(shape=thing.shape), Kind(thing.colour, thing.shape)):
            if kind.of(scene) == [thing]:
                return Question("size", f"How big is the {kind.noun()}?", thing.size, tuple(SIZES))
    return None


def ask_existence(scene: Scene, draws: Draws) -> Question:
    pair = absent_pair(scene, draws) if draws.below(2) else None
    answer = "yes" if pair is None else "no"
    if pair is None:
        thing = draws.pick(scene.things)
        pair = (thing.colour, thing.shape)
    return Question("existence", f"Is there {with_article(Kind(*pair).noun())}?", answer, ("yes", "no"))


def ask_absent(scene: Scene, draws: Draws) -> Question | None:
    """A question whose premise is false."""
    pair = absent_pair(scene, draws)
    if pair is None:
        return None
    noun = Kind(*pair).noun()
    form = draws.pick(("How big is the {}?", "Where is the {}?", "Where in the picture is the {}?"))
    return Question("absent", form.format(noun), f"There is no {noun}.")


def _related(scene: Scene, draws: Draws) -> tuple[str, str, Thing] | None:
    """The name of a thing, a relation that it has, and the other thing, which has a name, too."""
    found = _nameable(scene, draws)
    if found is None:
        return None
    one, name = found
    for other in draws.shuffled(scene.things):
        if other is one or not names_of(scene, other):
            continue
        for relation in draws.shuffled(tuple(RELATIONS)):
            if stands(relation, one.box, other.box):
                return name.noun(), relation, other
    return None


def ask_relation(scene: Scene, draws: Draws) -> Question | None:
    found = _related(scene, draws)
    if found is None:
        return None
    name, relation, other = found
    asked, answer = (relation, "yes") if draws.below(2) else (OPPOSITE[relation], "no")
    text = f"Is the {name} {asked} the {draws.pick(names_of(scene, other)).noun()}?"
    return Question("relation", text, answer, ("yes", "no"))


def ask_side(scene: Scene, draws: Draws) -> Question | None:
    """Which of two opposite relations holds: what to ask for one by yes and no is learnt from."""
    found = _related(scene, draws)
    if found is None:
        return None
    name, relation, other = found
    first, second = next(pair for pair in _PAIRS if relation in pair)
    ways = [way.removeprefix("to the ").removesuffix(" of") for way in (first, second)]
    noun = draws.pick(names_of(scene, other)).noun()
    text = f"Is the {name} {first.removesuffix(' of')} or {second} the {noun}?"
    return Question("side", text, ways[relation == second], tuple(ways))


def ask_position(scene: Scene, draws: Draws) -> Question | None:
    found = _nameable(scene, draws)
    place = place_of(found[0].box) if found else None
    if found is None or place is None:
        return None
    return Question("position", f"Where in the picture is the {found[1].noun()}?", place, PLACES)


def ask_word(scene: Scene, draws: Draws) -> Question:
    """About what is written, or whether anything is."""
    if draws.below(4) == 0:
        answer = "yes" if scene.words else "no"
        return Question("text", "Is there a word in the picture?", answer, ("yes", "no"))
    if not scene.words:
        return Question("text", "What word is written in the picture?", "There is no word.")
    (word,) = scene.words
    if draws.below(4) == 0:
        return Question("text", "What is the first letter of the word?", word.text[0])
    return Question("text", "What word is written in the picture?", word.text, WORDS)


VISUAL: tuple[Ask, ...] = (
    ask_count,
    ask_colour,
    ask_shape,
    ask_size,
    ask_existence,
    ask_absent,
    ask_relation,
    ask_position,
)
CHOICE: tuple[Ask, ...] = (ask_count, ask_colour, ask_shape, ask_position, ask_word)


def ask(scene: Scene, draws: Draws, asks: tuple[Ask, ...]) -> Question:
    """A question of one of the forms, each as likely as the others where the scene allows it."""
    for one in draws.shuffled(asks):
        if question := one(scene, draws):
            return question
    raise AssertionError("a count can always be asked for")


def with_options(question: Question, draws: Draws) -> list[str]:
    """The answer of a question among others that it might have had, in any order."""
    wrong = draws.shuffled([choice for choice in question.choices if choice != question.answer])
    return draws.shuffled([question.answer, *wrong[: OPTIONS - 1]])


def ask_choice(scene: Scene, draws: Draws) -> Question | None:
    """A question with options, in the first of the words of the task ``multi-choice``."""
    return _chosen("choice", draws.pick(CHOICE)(scene, draws), draws)


def ask_place_choice(scene: Scene, draws: Draws) -> Question | None:
    """As ``ask_choice``, for the place of a thing."""
    return _chosen("place-choice", ask_position(scene, draws), draws)


def ask_word_choice(scene: Scene, draws: Draws) -> Question | None:
    """As ``ask_choice``, for the word that is written."""
    return _chosen("word-choice", ask_word(scene, draws), draws)


def _chosen(kind: QuestionType, question: Question | None, draws: Draws) -> Question | None:
    """The question with options, or None where its form has too few answers."""
    if question is None or len(question.choices) < OPTIONS:
        return None
    options = with_options(question, draws)
    choices = lettered(options)
    text = fill(TEMPLATES["multi-choice"][0], {"Question": question.text, "Option": " ".join(choices)})
    return Question(kind, text, choices[options.index(question.answer)], tuple(choices))


def mention(thing: Thing) -> str:
    """The thing in the paper's markup."""
    return format_objects([SpatialObject(thing.tag, thing.box)])


def ask_about(scene: Scene, target: Thing, draws: Draws) -> Question:
    """A question about "it"; answers name other things with their boxes."""
    others = [thing for thing in scene.things if thing is not target]
    options = ["size", "same color", "same shape"]
    if place_of(target.box):
        options.append("position")
    relations = [
        (relation, other) for other in others for relation in RELATIONS if stands(relation, target.box, other.box)
    ]
    if relations:
        options.append("relation")
    kind = draws.pick(options)
    if kind == "size":
        return Question("size", "How big is it?", target.size)
    if kind == "position":
        return Question("position", "Where is it in the picture?", str(place_of(target.box)))
    if kind == "relation":
        relation, other = draws.pick(relations)
        asked, answer = (relation, "yes") if draws.below(2) else (OPPOSITE[relation], "no")
        return Question("relation", f"Is it {asked} {mention(other)}?", answer)
    attribute = "colour" if kind == "same color" else "shape"
    alike = [other for other in others if getattr(other, attribute) == getattr(target, attribute)]
    answer = joined([mention(other) for other in alike]) if alike else "None."
    return Question(kind, f"Which other objects have the {kind}?", answer)


def ask_where(scene: Scene, draws: Draws) -> Question | None:
    """A question answered by a box."""
    thing = draws.pick(scene.things)
    expression = expression_for(scene, thing, draws)
    return Question("location", f"Where is the {expression}?", mention(thing)) if expression else None


def ask_search(scene: Scene, draws: Draws) -> Question | None:
    """A referring expression in the words of the task ``rec``: a colour and a shape, which are there or not, or one
    that takes more.
    """
    thing = draws.pick(scene.things)
    tag = Kind(thing.colour, thing.shape)
    expression: str | None = tag.noun() if tag.of(scene) == [thing] else None
    # A scene has many more names to deny than things to find.
    form = draws.below(8)
    if form == 0:
        pair = absent_pair(scene, draws)
        return Question("search", fill(IF_FOUND, {"Tag": Kind(*pair).noun()}), NOT_FOUND) if pair else None
    if form > 3:
        # What has no name of its own is what expressions are for.
        thing = min(draws.shuffled(scene.things), key=lambda one: bool(names_of(scene, one)))
        expression = expression_for(scene, thing, draws)
    return _searched("search", expression, thing) if expression else None


def ask_extreme(scene: Scene, draws: Draws) -> Question | None:
    """As ``ask_search``, for the leftmost, rightmost, topmost or lowest of its kind."""
    return _searched_any("extreme", scene, draws, lambda expression: expression.split()[0] in EXTREMES)


def ask_height(scene: Scene, draws: Draws) -> Question | None:
    """As ``ask_search``, for the topmost or lowest of its kind."""
    heights = tuple(word for word, (axis, _) in EXTREMES.items() if axis == "y")
    return _searched_any("height", scene, draws, lambda expression: expression.split()[0] in heights)


def ask_beside(scene: Scene, draws: Draws) -> Question | None:
    """As ``ask_search``, for what lies in some direction from another thing."""
    return _searched_any(
        "beside", scene, draws, lambda expression: any(f" {way} the " in expression for way in RELATIONS)
    )


def _searched_any(kind: QuestionType, scene: Scene, draws: Draws, wanted: Callable[[str], bool]) -> Question | None:
    """One of the wanted expressions of all things, or None where there is none."""
    found = [
        (thing, expression)
        for thing in scene.things
        for expression in expressions_for(scene, thing)
        if wanted(expression)
    ]
    if not found:
        return None
    thing, expression = draws.pick(found)
    return _searched(kind, expression, thing)


def _searched(kind: QuestionType, expression: str, thing: Thing) -> Question:
    """A question answered by a thing under the name that it was asked for by."""
    answer = format_objects([SpatialObject(expression, thing.box)])
    return Question(kind, fill(IF_FOUND, {"Tag": expression}), answer)


def ask_what(scene: Scene, draws: Draws) -> Question:
    """A question that points with a box."""
    thing = draws.pick(scene.things)
    return Question("naming", f"What is at {format_box(thing.box)}?", with_article(thing.tag))


#: Type -> what asks questions of it. ``types`` of ``scene-texts`` are its keys.
BY_TYPE: Mapping[QuestionType, Ask] = {
    "count": ask_count,
    "color": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "existence": ask_existence,
    "absent": ask_absent,
    "relation": ask_relation,
    "position": ask_position,
    "text": ask_word,
    "location": ask_where,
    "naming": ask_what,
    "side": ask_side,
    "search": ask_search,
    "choice": ask_choice,
    "extreme": ask_extreme,
    "amount": ask_amount,
    "height": ask_height,
    "beside": ask_beside,
    "place-choice": ask_place_choice,
    "word-choice": ask_word_choice,
    "sized": ask_sized,
}
