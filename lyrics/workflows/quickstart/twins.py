"""What only the pixels tell: twins, two drawings with the same tags and boxes that look different, are asked the same
questions, with their own soft tokens and with each other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.data.build import build_dataset
from lyrics.core.evaluation.metrics.exact import exact_match
from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
from lyrics.core.language.prompts import Exchange
from lyrics.workflows.quickstart.dialogue import in_pixels

if TYPE_CHECKING:
    from PIL import Image

    from lyrics.core.model import LyricsModel
    from lyrics.core.types import Sample

PAIRS = 3
#: What is asked of every drawing, and whether the text of tags and boxes answers it.
ASKED = {
    "L color": "pixels",
    "L fill": "pixels",
    "L lean": "pixels",
    "L outline": "pixels",
    "G": "pixels",
    "T count": "text",
}
_MAX_NEW_TOKENS = 16


def draw_twins(out: Path, first_row: int = 0) -> tuple[list[tuple[str, Image.Image]], list[list[Sample]]]:
    """Draw scenes of the split ``test`` into ``out``, from an even row on, twins side by side.

    Return them with the questions of each.
    """
    data = {
        questions: build_dataset(
            "lyrics-vl/scenes",
            {"split": "test", "scenes": first_row + 2 * PAIRS, "task": "vqa", "questions": (questions,)},
        )
        for questions in ASKED
    }
    first = next(iter(data.values()))
    drawn, asked = [], []
    for place in range(2 * PAIRS):
        row = first_row + place
        path, image = out / f"twin-{place // 2}-{'ab'[place % 2]}.png", first.picture(first[row])
        assert image is not None
        image.save(path)
        drawn.append((str(path), image))
        asked.append([one[row] for one in data.values()])
    return drawn, asked


def ask_twins(
    model: LyricsModel, drawn: Sequence[tuple[str, Image.Image]], asked: Sequence[Sequence[Sample]]
) -> dict[str, Any]:
    """Ask each drawing its questions, and once more with the soft tokens of its twin.

    Everything else, the text of tags and boxes too, stays the drawing's own.
    """
    rows: list[dict[str, Any]] = []
    for kind, samples in zip(ASKED, zip(*asked, strict=True), strict=True):
        prompts = [prompt_of(sample, PROMPTS["vqa"]) for sample in samples]
        encoded = model.encode([image for _, image in drawn], prompts)
        other = [index ^ 1 for index in range(len(drawn))]
        seen = (encoded, replace(encoded, soft_tokens_PQD=encoded.soft_tokens_PQD[other]))
        dialogues = [[Exchange(prompt, images=(index,))] for index, prompt in enumerate(prompts)]
        answers = [model.answer(dialogues, one, max_new_tokens=_MAX_NEW_TOKENS) for one in seen]
        for (path, image), sample, own, exchanged in zip(drawn, samples, *answers, strict=True):
            turn = sample.turns[0]
            shown = in_pixels(turn, image.size)
            rows.append(
                {
                    "picture": path,
                    "told_by": ASKED[kind],
                    "question": shown.instruction,
                    "truth": shown.answer,
                    "answer": own.text.strip(),
                    "right": bool(exact_match(own.text, [turn.answer])),
                    "with_the_twins_soft_tokens": exchanged.text.strip(),
                    "right_with_the_twins": bool(exact_match(exchanged.text, [turn.answer])),
                }
            )
    rows.sort(key=lambda row: row["picture"])
    return {"answers": rows, "right": {told: _right(rows, told) for told in ("pixels", "text")}}


def _right(rows: Sequence[dict[str, Any]], told_by: str) -> dict[str, int]:
    chosen = [row for row in rows if row["told_by"] == told_by]
    return {
        "asked": len(chosen),
        "own": sum(row["right"] for row in chosen),
        "twin": sum(row["right_with_the_twins"] for row in chosen),
    }
