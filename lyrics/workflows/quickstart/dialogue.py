"""A conversation about each image.

What was asked, what ``lyrics-tiny`` answered and pointed at, and for drawn scenes what is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

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
    corners = " ".join(f"{value:.0f}" for value in best.box_norm.to_px(seen.size_px))
    return (Turn(f"Where is the {best.tag}?", ""), Turn(f"What is at <box {corners}>?", best.tag))
