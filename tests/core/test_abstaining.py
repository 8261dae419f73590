"""When an answer is withheld, and what is said instead."""

from __future__ import annotations

import pytest

from lyrics.core.abstaining import ABSTENTION, Abstaining
from lyrics.core.answers import Answer, AnswerObject, Confidence
from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box

BOX = Box(0.1, 0.1, 0.5, 0.5)
SEEN = AnswerObject("star", BOX, (0, 0, 1, 1), None, 0.75)
UNSEEN = AnswerObject("star", BOX, (0, 0, 1, 1), None, 0.0)


def answer(*objects: AnswerObject, mean: float | None = -0.2) -> Answer:
    return Answer("A star.", objects, (), "A star.", None if mean is None else Confidence(mean, 2 * mean))


def test_confidence_is_the_mean_and_the_least_of_all_tokens() -> None:
    assert Confidence.of([-0.1, -0.5, 0.0]) == Confidence(-0.2, -0.5)
    assert Confidence.of([-0.0, 0.0]) == Confidence(0.0, 0.0)
    assert Confidence.of([]) is None
    # What a batch changes behind the fifth decimal is not seen.
    assert Confidence.of([-0.1000001]) == Confidence.of([-0.1000002])


def test_what_nobody_saw_is_withheld() -> None:
    assert [answer(*objects).seen for objects in ((), (SEEN,), (UNSEEN,), (UNSEEN, SEEN))] == [None, True, False, True]
    never = Abstaining()
    for objects in ((), (SEEN,), (UNSEEN, SEEN)):
        assert never(answer(*objects)) == answer(*objects)
    found = never(answer(UNSEEN))
    assert (found.text, found.plain_text, found.objects) == (ABSTENTION, ABSTENTION, ())
    assert (found.withheld, found.confidence) == ("A star.", Confidence(-0.2, -0.4))
    assert found.to_json()["withheld"] == "A star."


def test_what_the_language_model_is_not_sure_of_is_withheld() -> None:
    assert Abstaining(-0.1)(answer(SEEN)).text == ABSTENTION
    assert Abstaining(-0.2)(answer(SEEN)).text == "A star.", "the threshold itself is enough"
    assert Abstaining(-0.3)(answer(UNSEEN)).text == ABSTENTION
    with pytest.raises(
        SpecError, match=r"needs a language model that says how probable its tokens were.*abstain without"
    ):
        Abstaining(-0.1)(answer(SEEN, mean=None))
    assert Abstaining()(answer(SEEN, mean=None)).text == "A star."


@pytest.mark.parametrize("threshold", [0.5, float("nan"), float("-inf")])
def test_thresholds_that_are_none(threshold: float) -> None:
    with pytest.raises(SpecError, match="is the logarithm of a probability, 0 at most"):
        Abstaining(threshold)
