"""How a fine scene is spoken of: kinds of things by shape and look, and ways to mean one thing without saying what it
looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from lyrics.core.language.codecs import format_box
from lyrics.plugins.scenes.language import Kind, expressions_for
from lyrics.plugins.scenes.layout import Scene, Thing
from lyrics.plugins.scenes.names import COLOURS, FILLS, LEANS, OUTLINES, PLURALS, SHAPES

#: What a thing looks like.
Attribute = Literal["color", "fill", "lean", "outline"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
#: Attribute -> its values.
VALUES: dict[Attribute, tuple[str, ...]] = {"color": COLOURS, "fill": FILLS, "lean": LEANS, "outline": OUTLINES}


def value_of(thing: Thing, attribute: Attribute) -> str:
    """The value of an attribute of a thing of a fine scene."""
    return str(thing.colour if attribute == "color" else getattr(thing, attribute))


def said(attribute: Attribute, value: str) -> str:
    """A value as it is said of a thing: ``red``, ``striped down``, ``leaning left``, ``upright``, ``with
    no outline``.
    """
    if attribute == "lean":
        return value if value == "upright" else f"leaning {value}"
    if attribute == "outline":
        return "with a dark outline" if value == "dark" else "with no outline"
    return value


class FineKind(NamedTuple):
    """What things of a fine scene have in common; None where anything goes."""

    shape: str | None = None
    color: str | None = None
    fill: str | None = None
    lean: str | None = None
    outline: str | None = None

    @classmethod
    def of_thing(cls, thing: Thing, attributes: tuple[Attribute, ...] = ATTRIBUTES) -> FineKind:
        """The kind of a thing by its shape and some of its attributes."""
        return cls(thing.shape, **{name: value_of(thing, name) for name in attributes})

    def matches(self, thing: Thing) -> bool:
        return self.shape in (None, thing.shape) and all(
            getattr(self, name) in (None, value_of(thing, name)) for name in ATTRIBUTES
        )

    def of(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene.things if self.matches(thing)]

    def noun(self, *, plural: bool = False) -> str:
        """``upright solid red star with a dark outline``; what takes more than a word stands behind the shape."""
        before: list[str] = []
        after: list[str] = []
        for name in ("lean", "fill", "color", "outline"):
            value = getattr(self, name)
            if value is not None:
                words = said(name, value)  # type: ignore[arg-type]
                (after if " " in words else before).append(words)
        shape = self.shape or "object"
        return " ".join([*before, PLURALS[shape] if plural else shape, *after])


def nouns_of(thing: Thing) -> tuple[Kind, ...]:
    """The kinds that the text alone tells of a thing: its shape, and that it is an object."""
    return Kind(shape=thing.shape), Kind()


class Reference(NamedTuple):
    """A way to mean one thing (its place in the layout) by what text tells.

    ``how`` is ``noun`` (it is alone of its shape), ``box``, or ``words`` (a superlative, or a relation to another
    thing).
    """

    thing: int
    words: str
    how: Literal["noun", "box", "words"]


def references(scene: Scene) -> Iterator[Reference]:
    """All ways to mean things of a scene without a word on their looks. Twins have the same."""
    for index, thing in enumerate(scene.things):
        yield Reference(index, boxed(thing), "box")
        for words in dict.fromkeys(expressions_for(scene, thing, nouns_of)):
            yield Reference(index, words, "noun" if words in (*SHAPES, "object") else "words")


def boxed(thing: Thing) -> str:
    """``star at <Bbox>(5,20),(310,999)</Bbox>``."""
    return f"{thing.shape} at {format_box(thing.box)}"
