"""A conversation about each image.

What was asked, what ``lyrics-tiny`` answered and pointed at, and for drawn scenes what is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from lyrics.core.geometry import Box, Size
from lyrics.core.language.codecs import parse
from lyrics.core.types import Turn

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.core.refining.refinement import Refinement

_MAX_NEW_TOKENS = 48
#: What is asked about a user's own image, of which nothing is known.
OWN = (Turn("Describe the image concisely.", ""),)


def conversation(model: LyricsModel, picture: Image.Image, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Ask the questions of ``turns`` one after another in one conversation; ``truth`` is what a turn says, or empty."""
    chat = model.chat(picture)
    found = []
    for turn in turns:
        answer = chat.ask(turn.instruction, max_new_tokens=_MAX_NEW_TOKENS)
        found.append({"question": turn.instruction, **answer.to_json(), "truth": turn.answer})
    return found


def referring(seen: Refinement) -> tuple[Turn, ...]:
    """Return a conversation that points: where something is that the refiner saw, and then what is at that place."""
    if not seen.objects:
        return OWN
    best = max(seen.objects, key=lambda one: one.score)
    at = typed(best.box_norm, seen.size_px)
    return (Turn(f"Where is the {best.tag}?", ""), Turn(f"What is at {at}?", best.tag))


def typed(box: Box, size_px: Size) -> str:
    """Return a box as one types it in a question, in pixels: ``<box 10 20 200 180>``."""
    return f"<box {' '.join(f'{value:.0f}' for value in box.to_px(size_px))}>"


def in_pixels(turn: Turn, size_px: Size) -> Turn:
    """Return a turn of a data set with the boxes of its question as one types them, and those of its answer to read."""
    return Turn(
        _replaced(turn.instruction, size_px, lambda box: typed(box, size_px)),
        _replaced(turn.answer, size_px, lambda box: f"({', '.join(f'{value:.0f}' for value in box.to_px(size_px))})"),
    )


def _replaced(text: str, size_px: Size, written: Callable[[Box], str]) -> str:
    found = parse(text, size=size_px)
    for one, (start, end) in reversed(list(zip(found.objects, found.spans, strict=True))):
        text = f"{text[:start]}{f'{one.tag} ' if one.tag else ''}{written(one.box)}{text[end:]}"
    return text
