"""Captions of fine scenes: what things look like, bound to what they are and where they are.

Each caption says something that twins differ in, so none is true of both. What is said of a thing is drawn, so that a
model cannot wait for the same words at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lyrics.core.language.codecs import format_box
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine_language import ATTRIBUTES, Attribute, FineKind, boxed, said, value_of
from lyrics.plugins.scenes.language import RELATIONS, by_area, joined, place_of, place_phrase, stands, with_article
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.names import Captions

#: Things that one caption lists at most.
MOST_LISTED = 3
#: How often each attribute is said of a thing.
_COLOR_SHARE, _OTHER_SHARE = 0.9, 0.6
_FRAMES = ("{}", "a picture of {}", "a drawing with {}", "this picture shows {}")


def described(thing: Thing, attributes: Sequence[Attribute]) -> str:
    """A thing with some of color, fill, lean and outline:
    ``a red star leaning left striped across with a dark outline``.
    """
    return with_article(FineKind.of_thing(thing, tuple(attributes)).noun())


def some_attributes(draws: Draws) -> tuple[Attribute, ...]:
    """What is said of a thing: one attribute at least."""
    shares: dict[Attribute, float] = {
        "color": _COLOR_SHARE,
        "fill": _OTHER_SHARE,
        "lean": _OTHER_SHARE,
        "outline": _OTHER_SHARE,
    }
    chosen = tuple(name for name, share in shares.items() if draws.unit() < share)
    return chosen or ("color",)


def ground_phrase(scene: Scene) -> str:
    """``on a dark ground``, ``on a dark checked ground``."""
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    return f"on a {scene.ground} {texture}ground"


def fine_captions(scene: Scene, draws: Draws) -> tuple[str, ...]:
    """Several true descriptions: some things with the ground, one in every detail, one beside and one upon another, the
    word.
    """
    captions = [_listed(scene, draws), _detailed(scene, draws)]
    for found in (_related(scene, draws), _overlapping(scene, draws)):
        if found is not None:
            captions.append(found)
    captions += [f'the word "{word.text}" {ground_phrase(scene)}, {_things(scene, draws, 2)}' for word in scene.words]
    return tuple(captions)


def dense_captions(scene: Scene, draws: Draws) -> tuple[str, ...]:
    """Everything about everything, each thing's noun before its looks: from left to right, and in any order.

    ``a star, red striped across leaning left with no outline, a ring, ...``. Once the noun is said, only its own
    look can come next, which teaches whose look is whose.
    """
    ordered = sorted(scene.things, key=lambda thing: (thing.box.x1, thing.box.y1))
    written = [f'the word "{word.text}"' for word in scene.words]
    return tuple(
        f"{', '.join([*(_whole(thing, thing.shape) for thing in things), *written])}, {ground_phrase(scene)}"
        for things in (ordered, draws.shuffled(scene.things))
    )


def region_captions(scene: Scene, draws: Draws) -> tuple[str, ...]:
    """Everything about everything, in any order, each thing's noun and box before its looks:
    ``a star at <Bbox>(5,20),(310,999)</Bbox>, red striped across ...``. A box tells things of one noun apart.
    """
    things = [_whole(thing, boxed(thing)) for thing in draws.shuffled(scene.things)]
    written = [f'the word at {format_box(word.box)}, "{word.text}"' for word in scene.words]
    return (f"{', '.join([*things, *written])}, {ground_phrase(scene)}",)


#: Kind of captions -> those of a scene.
FINE_CAPTIONS: Mapping[Captions, Callable[[Scene, Draws], tuple[str, ...]]] = {
    "varied": fine_captions,
    "dense": dense_captions,
    "regions": region_captions,
}


def _whole(thing: Thing, name: str) -> str:
    looks = [said(attribute, value_of(thing, attribute)) for attribute in ATTRIBUTES]
    return f"{with_article(name)}, {' '.join(looks)}"


def _things(scene: Scene, draws: Draws, most: int) -> str:
    chosen = draws.shuffled(scene.things)[:most]
    return joined([described(thing, some_attributes(draws)) for thing in chosen])


def _listed(scene: Scene, draws: Draws) -> str:
    listed = draws.pick(_FRAMES).format(_things(scene, draws, MOST_LISTED))
    return f"{listed}, {ground_phrase(scene)}"


def _detailed(scene: Scene, draws: Draws) -> str:
    """One thing, often the largest."""
    thing = by_area(scene)[0] if draws.below(2) else draws.pick(scene.things)
    whole = described(thing, ("color", "fill", "lean", "outline"))
    place = place_of(thing.box)
    return f"{whole}, {ground_phrase(scene) if place is None else place_phrase(place)}"


def _related(scene: Scene, draws: Draws) -> str | None:
    """A relation between two things that nothing hides the direction of."""
    found = [
        (one, relation, other)
        for one in scene.things
        for other in scene.things
        if one is not other
        for relation in RELATIONS
        if stands(relation, one.box, other.box)
    ]
    if not found:
        return None
    one, relation, other = draws.pick(found)
    return f"{described(one, some_attributes(draws))} {relation} {described(other, some_attributes(draws))}"


def _overlapping(scene: Scene, draws: Draws) -> str | None:
    """Who lies on whom."""
    if not scene.overlaps:
        return None
    upper, lower = draws.pick(scene.overlaps)
    one, other = (described(scene.things[index], some_attributes(draws)) for index in (upper, lower))
    return f"{one} lying on {other}" if draws.below(2) else f"{other} under {one}"
