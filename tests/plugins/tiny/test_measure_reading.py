"""Answers about written scenes are right when every token is, and are counted by the type of their question."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lyrics.core.data.build import build_dataset
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.plugins.tiny.measure_reading import reading_accuracy

SCENES = 12


class Knowing:
    """Says the next token of what it is given, but for every ``wrong``-th of them."""

    chat_template = "plain"

    def __init__(self, wrong: int | None = None) -> None:
        self.tokenizer, self.wrong = builtin_tokenizer("words", ("<pad>", "<s>", "</s>")), wrong

    def embed(self, ids_BL):
        return ids_BL

    def __call__(self, ids_BL, mask_BL):
        following = ids_BL.roll(-1, dims=1)
        if self.wrong is not None:
            following[:, :: self.wrong] = 0
        return torch.nn.functional.one_hot(following, len(self.tokenizer)).float()


@pytest.fixture(scope="module")
def texts():
    return build_dataset("scene-texts", {"split": "test", "plain": True, "box_error": 0.06})


def test_one_that_knows_everything_is_right_about_everything(texts):
    found = reading_accuracy(Knowing(), texts, SCENES)
    assert {share for share, _ in found.values()} == {1.0}
    types = Counter(kind for row in range(SCENES) for kind in texts[row].extra["question_types"])
    assert {kind: count for kind, (_, count) in found.items()} == types
    assert types["repetition"] == SCENES
    assert types.total() == sum(len(texts[row].turns) for row in range(SCENES))


def test_an_answer_with_one_wrong_token_is_wrong(texts):
    found = reading_accuracy(Knowing(wrong=7), texts, SCENES)
    assert found["repetition"] == (0.0, SCENES)  # longer than seven tokens, each of them
    assert 0 < found["count"][0] < 1  # two tokens
    assert {share for share, _ in reading_accuracy(Knowing(wrong=1), texts, SCENES).values()} == {0.0}
