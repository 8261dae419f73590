"""The small metrics, on cases worked by hand and on odd input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.metrics.anls import anls, edit_distance
from lyrics.core.evaluation.metrics.exact import exact_match
from lyrics.core.evaluation.metrics.options import chosen_option
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.evaluation.metrics.relaxed import relaxed_match
from lyrics.core.evaluation.metrics.support import THRESHOLDS, support_at, support_curve
from lyrics.core.evaluation.metrics.yes_no import COGNITION, PERCEPTION, mme_scores, yes_no_scores, yes_or_no
from lyrics.core.geometry import Box


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("picture", True),
        ("Picture.", True),
        ("  picture \n", True),
        ("picture frame", False),
        ("pictures", False),
        ("a picture", False),
        ("picture..", False),
        ("", False),
        (".", False),
    ],
)
def test_exact_match(said: str, right: bool) -> None:
    assert exact_match(said, ["picture", "image"]) is right


def test_an_empty_answer_is_never_right() -> None:
    assert not exact_match("", [""])
    assert exact_match("Calendars", ["calendars."])
    assert not exact_match("x", [])


OPTIONS = ("red", "a blue one", "yellow", "black")


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("(b) a blue one", 1),
        ("(B)", 1),
        ("b", 1),
        ("C.", 2),
        ("c) yellow", 2),
        ("D: black", 3),
        ("A, red", 0),
        ("The answer is (c).", 2),
        ("the answer is B", 1),
        ("Answer: d", 3),
        ("yellow", 2),
        ("Yellow.", 2),
        ("a blue one", 1),  # the article is no letter
        ("It must be (d), I think", 3),
        ("between (a) and (b)", None),
        ("The answer is a mystery", None),
        ("(e) green", None),  # there are four
        ("z.", None),
        ("green", None),
        ("", None),
        ("a red car", None),
        ("Dogs", None),
    ],
)
def test_option_letters(said: str, chosen: int | None) -> None:
    assert chosen_option(said, OPTIONS) == chosen


def test_two_options_of_the_same_text_choose_nothing() -> None:
    assert chosen_option("red", ("red", "Red.")) is None
    assert chosen_option("(b)", ("red", "Red.")) == 1


@given(st.text(max_size=40), st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_any_text_chooses_one_of_the_options_or_none(said: str, options: list[str]) -> None:
    chosen = chosen_option(said, options)
    assert chosen is None or 0 <= chosen < len(options)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_anls() -> None:
    assert anls("0.28", ["0.28", "0.28%"]) == 1.0
    assert anls("Sandra  Boynton", ["sandra boynton"]) == 1.0
    assert anls("abcd", ["abcx"]) == pytest.approx(0.75)
    assert anls("abcd", ["abxy"]) == 0.0  # a distance of 0.5 is not below 0.5
    assert anls("abcd", ["zzzz", "abcx", "abcdefgh"]) == pytest.approx(0.75)  # the best of them
    assert anls("", ["x"]) == 0.0
    with pytest.raises(ValueError, match="an answer at least"):
        anls("x", [])


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [
        ("95", "100", True),
        ("105", "100", True),
        ("94.9", "100", False),
        ("-95", "-100", True),
        ("95", "-100", False),
        ("14%", "0.14", True),
        ("14", "14%", False),
        ("0", "0", True),
        ("0.001", "0", False),  # nothing is relaxed next to 0
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("", "5", False),
        ("nan", "5", False),
        ("inf", "5", False),
        ("2017", "2017", True),
    ],
)
def test_relaxed_accuracy(said: str, true: str, right: bool) -> None:
    assert relaxed_match(said, true) is right


def test_a_box_at_half_is_right() -> None:
    target = Box(0.0, 0.0, 0.5, 1.0)
    assert Box(0.0, 0.0, 0.25, 1.0).iou(target) == 0.5
    assert box_is_right(Box(0.0, 0.0, 0.25, 1.0), target)
    assert not box_is_right(Box(0.0, 0.0, 0.249, 1.0), target)
    assert not box_is_right(Box(0.6, 0.0, 1.0, 1.0), target)
    assert not box_is_right(None, target)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("yes", True),
        ("Yes, there is.", True),
        (" NO.", False),
        ("y", True),
        ("n", False),
        ("north", None),
        ("yesterday", None),
        ("There is no dog", None),
        ("", None),
        ("?", None),
        ('"No"', False),
    ],
)
def test_yes_and_no(said: str, meant: bool | None) -> None:
    assert yes_or_no(said) is meant


def test_pope_scores_by_hand() -> None:
    # Of 4 that are there: 2 yes, 1 no, 1 unparsed. Of 4 that are not: 1 yes, 3 no.
    right = [True] * 4 + [False] * 4
    said = [True, True, False, None, True, False, False, False]
    scores = yes_no_scores(said, right)
    assert scores["accuracy"] == 5 / 8
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == 2 / 4
    assert scores["F1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert scores["yes ratio"] == 3 / 8
    assert scores["unparsed"] == 1


def test_pope_without_a_yes() -> None:
    assert yes_no_scores([False, None], [False, False]) == {
        "accuracy": 0.5,
        "precision": 0.0,
        "recall": 0.0,
        "F1": 0.0,
        "yes ratio": 0.0,
        "unparsed": 1,
    }
    with pytest.raises(ValueError, match="a question at least"):
        yes_no_scores([], [])


def test_mme_by_hand() -> None:
    # count: picture 1 both right, picture 2 one of two: accuracy 75, both right 50. color: all right: 200.
    rows = [
        (True, True, "count", "1"),
        (False, False, "count", "1"),
        (True, True, "count", "2"),
        (None, False, "count", "2"),
        (True, True, "color", "1"),
        (False, False, "color", "1"),
        (False, True, "code_reasoning", "9"),
        (True, False, "code_reasoning", "9"),
    ]
    scores = mme_scores(*zip(*rows, strict=True))
    assert scores == {
        "MME perception": 125.0 + 200.0,
        "MME cognition": 0.0,
        "MME count": 125.0,
        "MME color": 200.0,
        "MME code_reasoning": 0.0,
    }


def test_mme_of_all_subtasks_reaches_the_published_maxima() -> None:
    rows = [(truth, truth, name, "p") for name in (*PERCEPTION, *COGNITION) for truth in (True, False)]
    scores = mme_scores(*zip(*rows, strict=True))
    assert (scores["MME perception"], scores["MME cognition"]) == (2000.0, 800.0)


def test_mme_leaves_out_the_sum_of_what_was_not_asked() -> None:
    assert set(mme_scores([True, False], [True, False], ["count"] * 2, ["1"] * 2)) == {"MME perception", "MME count"}


def test_mme_names_what_is_wrong() -> None:
    with pytest.raises(LyricsError, match="no subtask 'colour'"):
        mme_scores([True], [True], ["colour"], ["1"])
    with pytest.raises(LyricsError, match="count 'p7' has 1"):
        mme_scores([True], [True], ["count"], ["p7"])


def test_support_without_warnings_and_without_inventions() -> None:
    assert support_at(0.5, [0.9, 0.5], [True, False]).precision is None  # 0.5 itself is support
    assert support_at(0.5, [0.9, 0.5], [True, False]).recall == 0.0
    assert support_at(0.5, [0.1], [True]).recall is None
    assert support_at(0.5, [0.1], [True]).precision == 0.0
    assert support_at(0.5, [], []).warned == 0


def test_the_support_curve_warns_of_more_as_the_threshold_rises() -> None:
    curve = support_curve([0.05, 0.45, 0.85, 0.95], [False, False, True, True])
    assert tuple(point.threshold for point in curve) == THRESHOLDS
    assert [point.warned for point in curve] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert [point.recall for point in curve] == [0.5] * 4 + [1.0] * 5
