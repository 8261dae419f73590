"""What only the pixels of a fine scene tell, drawn for two twins at once so that they differ in all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.names import (
    COLOURS,
    FILLS,
    GROUNDS,
    HELD_OUT,
    HELD_OUT_FILLS,
    LEANS,
    OUTLINES,
    TEXTURES,
    WORDS,
    Fill,
    Ground,
    Lean,
    Outline,
    Texture,
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class ThingLook:
    """What one thing looks like."""

    color: str
    fill: Fill
    lean: Lean
    outline: Outline


@dataclass(frozen=True)
class SceneLook:
    """What a scene looks like: its things in the order of the layout, its words, its ground, and which thing is laid
    when.
    """

    things: tuple[ThingLook, ...]
    words: tuple[str, ...]
    ground: Ground
    texture: Texture
    laid: tuple[int, ...]


def twin_looks(
    draws: Draws, shapes: Sequence[str], lengths: Sequence[int], *, held_out: bool
) -> tuple[SceneLook, SceneLook]:
    """Return the looks of two scenes with things of the same ``shapes`` and words of the same ``lengths``.

    They differ in every attribute of every thing, in every word, in ground and texture, and in who lies on whom. With
    ``held_out`` the first thing of one has a held-out color for its shape and that of the other a held-out fill for its
    color; all other combinations are those of the other splits.
    """
    rare = draws.below(2) if held_out else None
    pairs = [_thing_looks(draws, shape, rare if place == 0 else None) for place, shape in enumerate(shapes)]
    texts = [_two(draws, [word for word in WORDS if len(word) == length]) for length in lengths]
    grounds, textures = _two(draws, GROUNDS), _two(draws, TEXTURES)
    laid = draws.shuffled(range(len(shapes)))
    orders = (tuple(laid), tuple(reversed(laid)))
    first, second = (
        SceneLook(
            tuple(pair[row] for pair in pairs),
            tuple(text[row] for text in texts),
            grounds[row],
            textures[row],
            orders[row],
        )
        for row in (0, 1)
    )
    return first, second


def _thing_looks(draws: Draws, shape: str, rare: int | None) -> tuple[ThingLook, ThingLook]:
    """Two looks of a thing; ``rare`` is the one that has the held-out color of the shape, the other has a held-out
    fill.
    """
    usual = [
        (color, fill)
        for color in COLOURS
        for fill in FILLS
        if (color, shape) not in HELD_OUT and (color, fill) not in HELD_OUT_FILLS
    ]
    rare_color = [(color, fill) for color in COLOURS for fill in FILLS if (color, shape) in HELD_OUT]
    rare_color = [pair for pair in rare_color if pair not in HELD_OUT_FILLS]
    rare_fill = sorted(pair for pair in HELD_OUT_FILLS if (pair[0], shape) not in HELD_OUT)
    choices = [usual, usual]
    if rare is not None:
        choices[rare], choices[1 - rare] = rare_color, rare_fill
    color, fill = draws.pick(choices[0])
    other_color, other_fill = draws.pick([pair for pair in choices[1] if pair[0] != color and pair[1] != fill])
    leans, outlines = _two(draws, LEANS), _two(draws, OUTLINES)
    return ThingLook(color, fill, leans[0], outlines[0]), ThingLook(other_color, other_fill, leans[1], outlines[1])


def _two(draws: Draws, items: Sequence[Item]) -> tuple[Item, Item]:
    """Two different ones."""
    one = draws.pick(items)
    return one, draws.pick([item for item in items if item != one])
