"""How a scene is spoken of: kinds of things, relations, places, captions, and expressions that mean one thing only.

All of it goes by what is to be seen: the boxes are those of visible pixels, and whatever is not clear at a glance (a
thing hardly more to the left than another, a place on the border of two) is not said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lyrics.core.geometry import Box
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.names import NUMBERS, PLURALS

#: A center between these shares of the image's side is in the first, second or last third, and well inside of it.
_THIRDS = ((0.0, 0.28), (0.38, 0.62), (0.72, 1.0))
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = tuple(" ".join(filter(None, (row, column))) or "center" for row in _ROWS for column in _COLUMNS)
#: Relation -> which coordinate of the one must not be beyond which of the other.
RELATIONS = {
    "to the left of": ("x2", "x1"),
    "to the right of": ("x1", "x2"),
    "above": ("y2", "y1"),
    "below": ("y1", "y2"),
}
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
#: Superlative -> (coordinate of the centre, whether the smallest is meant).
EXTREMES = {"leftmost": ("x", True), "rightmost": ("x", False), "topmost": ("y", True), "lowest": ("y", False)}
#: The most extreme thing must be ahead of the next by this share of the side.
_LEAD = 0.06
_FRAMES = ("{}", "a picture of {}", "a drawing with {}", "this picture shows {}")


class Kind(NamedTuple):
    """What things have in common; None where anything goes."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def matches(self, thing: Thing) -> bool:
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.size in (None, thing.size)
        )

    def of(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene.things if self.matches(thing)]

    def noun(self, *, plural: bool = False) -> str:
        shape = self.shape or "object"
        return " ".join(filter(None, (self.size, self.colour, PLURALS[shape] if plural else shape)))


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def centre(box: Box) -> tuple[float, float]:
    return (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2


def place_of(box: Box) -> str | None:
    """One of ``PLACES``, or None near the border of two."""
    cells = []
    for share, names in zip(reversed(centre(box)), (_ROWS, _COLUMNS), strict=True):
        inside = [name for name, (low, high) in zip(names, _THIRDS, strict=True) if low <= share <= high]
        if not inside:
            return None
        cells += inside
    return " ".join(filter(None, cells)) or "center"


def place_phrase(place: str) -> str:
    """``at the top left``, ``in the center``, ``on the right``."""
    preposition = {"center": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{preposition} the {place}"


def stands(relation: str, one: Box, other: Box) -> bool:
    """Whether a relation holds clearly: the boxes do not overlap in its direction."""
    ours, theirs = RELATIONS[relation]
    if relation in ("to the left of", "above"):
        return bool(getattr(one, ours) <= getattr(other, theirs))
    return bool(getattr(one, ours) >= getattr(other, theirs))


#: What gives the kinds by which a thing may be named.
Kinds = Callable[[Thing], Sequence[Kind]]


def kinds_of(thing: Thing) -> tuple[Kind, ...]:
    """The ways to name a thing by itself, the shortest first."""
    colour, shape, size = thing.colour, thing.shape, thing.size
    return Kind(shape=shape), Kind(colour=colour), Kind(colour, shape), Kind(colour, shape, size)


def names_of(scene: Scene, thing: Thing, kinds: Kinds = kinds_of) -> list[Kind]:
    """Those of the thing's kinds that only this thing of the scene is of."""
    return [kind for kind in kinds(thing) if kind.of(scene) == [thing]]


def expressions_for(scene: Scene, thing: Thing, kinds: Kinds = kinds_of) -> Iterator[str]:
    """Referring expressions that mean this thing and no other: its own names, superlatives, and relations to things
    with names.

    ``kinds`` gives the kinds by which things are named.
    """
    for kind in names_of(scene, thing, kinds):
        yield kind.noun()
    for kind in kinds(thing):
        rivals = [other for other in kind.of(scene) if other is not thing]
        if not rivals:
            continue
        for word, (axis, smallest) in EXTREMES.items():
            if all(_ahead(thing.box, rival.box, axis, smallest=smallest) for rival in rivals):
                yield f"{word} {kind.noun()}"
        for other in scene.things:
            if other is thing:
                continue
            for relation in RELATIONS:
                if not stands(relation, thing.box, other.box):
                    continue
                # A rival must clearly not be there: a doubtful one would make the expression ambiguous.
                if all(stands(OPPOSITE[relation], rival.box, other.box) for rival in rivals if rival is not other):
                    yield from (
                        f"{kind.noun()} {relation} the {name.noun()}" for name in names_of(scene, other, kinds)[:1]
                    )


def _ahead(one: Box, other: Box, axis: str, *, smallest: bool) -> bool:
    index = 0 if axis == "x" else 1
    lead = centre(other)[index] - centre(one)[index]
    return (lead if smallest else -lead) >= _LEAD


def expression_for(scene: Scene, thing: Thing, draws: Draws) -> str | None:
    """One of them at random, or None where nothing tells the thing from the others."""
    found = list(expressions_for(scene, thing))
    return draws.pick(found) if found else None


def by_area(scene: Scene) -> list[Thing]:
    """The things, the most conspicuous first."""
    return sorted(scene.things, key=lambda thing: -thing.box.area)


def captions_of(scene: Scene, draws: Draws) -> tuple[str, ...]:
    """Several true descriptions: everything by kind, the number of things, one relation, the largest
    thing, the word.
    """
    things = by_area(scene)
    captions = [draws.pick(_FRAMES).format(_listed(things)), _counted(things, draws)]
    if related := _related(scene, draws):
        captions.append(related)
    place = place_of(things[0].box)
    if place is not None:
        noun = Kind(things[0].colour, things[0].shape, things[0].size).noun()
        captions.append(f"{with_article(noun)} {place_phrase(place)}")
    for word in scene.words:
        captions.append(f'the word "{word.text}" with {_listed(things)}')
    return tuple(captions)


def _listed(things: Sequence[Thing]) -> str:
    """ "two red circles, a blue star and a green heart"."""
    groups = Counter((thing.colour, thing.shape) for thing in things)
    return joined([_amount(Kind(*pair), count) for pair, count in groups.items()])


def _amount(kind: Kind, count: int) -> str:
    return with_article(kind.noun()) if count == 1 else f"{NUMBERS[count]} {kind.noun(plural=True)}"


def _counted(things: Sequence[Thing], draws: Draws) -> str:
    """ "five objects: three stars and two hearts", by shape or by colour."""
    total = _amount(Kind(), len(things)).replace("an object", "one object")
    if draws.below(2):
        groups = Counter(thing.shape for thing in things)
        return f"{total}: {joined([_amount(Kind(shape=shape), count) for shape, count in groups.items()])}"
    groups = Counter(thing.colour for thing in things)
    return f"{total}: {joined([f'{NUMBERS[count]} {colour}' for colour, count in groups.items()])}"


def _related(scene: Scene, draws: Draws) -> str | None:
    """A relation between two things that have their tags to themselves."""
    tags = Counter(thing.tag for thing in scene.things)
    alone = [thing for thing in scene.things if tags[thing.tag] == 1]
    found = [
        f"{with_article(one.tag)} {relation} {with_article(other.tag)}"
        for one in alone
        for other in alone
        if one is not other
        for relation in RELATIONS
        if stands(relation, one.box, other.box)
    ]
    return draws.pick(found) if found else None


def joined(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
