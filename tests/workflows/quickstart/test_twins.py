"""What twins are asked, and that only their soft tokens change hands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lyrics.core.language.prompting import Encoded
from lyrics.core.refining.refinement import Refinement
from lyrics.workflows.quickstart.page import page
from lyrics.workflows.quickstart.twins import ASKED, PAIRS, ask_twins, draw_twins

DRAWN = 2 * PAIRS
RESULT: dict[str, Any] = {"pictures": [], "soft_tokens": [32, 192], "spatial_text": "", "swap": None, "training": {}}


class Seer:
    """Answers what is true of the drawing whose soft tokens it reads, or of the drawing itself if the text tells."""

    def __init__(self, asked: Sequence[Sequence[Any]]) -> None:
        self.truth = [{one.turns[0].instruction: one.turns[0].answer for one in samples} for samples in asked]

    def encode(self, images: Sequence[Any], prompts: Sequence[str]) -> Encoded:
        soft = torch.arange(float(len(images))).reshape(-1, 1, 1)
        refinements = tuple(Refinement(image.size) for image in images)
        return Encoded(soft, refinements, tuple(f"text {index}" for index in range(len(images))))

    def answer(self, dialogues: Sequence[Any], encoded: Encoded, *, max_new_tokens: int) -> list[Any]:
        assert encoded.spatial_texts == tuple(f"text {index}" for index in range(DRAWN)), "the text stays its own"
        found = []
        for (exchange,) in dialogues:
            seen = int(encoded.soft_tokens_PQD[exchange.images[0]].item())
            (question,) = [one for one in self.truth[seen] if one in exchange.instruction]
            found.append(SimpleNamespace(text=f"{self.truth[seen][question]}"))
        return found


def test_a_model_that_sees_loses_looks_and_keeps_counts_with_the_twins_soft_tokens(tmp_path: Path) -> None:
    drawn, asked = draw_twins(tmp_path)
    assert [Path(path).is_file() for path, _ in drawn] == [True] * DRAWN
    found: dict[str, Any] = ask_twins(Seer(asked), drawn, asked)  # type: ignore[arg-type]
    assert len(found["answers"]) == DRAWN * len(ASKED)
    looks = sum(told == "pixels" for told in ASKED.values()) * DRAWN
    assert found["right"]["pixels"] == {"asked": looks, "own": looks, "twin": 0}, "no look is true of both"
    counts = DRAWN * (len(ASKED) - looks // DRAWN)
    assert found["right"]["text"] == {"asked": counts, "own": counts, "twin": counts}
    shown = page({**RESULT, "twins": found}, [], own=False)
    assert shown.count("<figure>") == DRAWN
    assert shown.count("\u2717") == looks
    assert shown.count("\u2713") == looks + 2 * counts


def test_without_twins_the_page_says_nothing_of_them() -> None:
    assert "Twins" not in page({**RESULT, "twins": None}, [], own=True)
