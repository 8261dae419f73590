"""VQA accuracy: cases worked by hand, and where the three variants part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyrics.core.errors import UnknownNameError
from lyrics.core.evaluation.metrics.vqa import VARIANTS, normalized, vqa_accuracy, with_digits, without_punctuation


def answers(*groups: tuple[str, int]) -> list[str]:
    return [text for text, count in groups for _ in range(count)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("agreeing", "expected"),
    [
        (0, 0.0),
        # Left out one of the one: nobody else says so. Left out any of the nine others: one third.
        (1, 9 / 10 * 1 / 3),
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (3, (3 * 2 / 3 + 7) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_one_annotator_is_left_out_at_a_time(variant, agreeing: int, expected: float) -> None:
    given_answers = answers(("cat", agreeing), ("dog", 10 - agreeing))
    assert vqa_accuracy("cat", given_answers, variant) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("the cat on a mat", "cat on mat"),
        ("dont know", "don't know"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("shouldntve", "shouldntve"),  # both apostrophes missing is not in the table
        ("somebody'd", "somebodyd"),
        ("ow's'at", "'ow's'at"),
        ("lets", "lets"),  # the table maps only let's, to itself
        ("id've", "id've"),  # the table has it capitalized, which lower-cased words never match
        ("", ""),
        ("a", ""),
    ],
)
def test_numbers_articles_and_contractions(text: str, expected: str) -> None:
    assert with_digits(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t-shirt", "t shirt"),
        ("yes, it is", "yes it is"),
        ("no!", "no "),
        ("1,000", "1000"),
        ("1,000/day", "1000day"),  # a number with a comma makes all punctuation vanish
        ("3.5 m.", "3.5 m"),
        ("U.S.", "US"),
        ("3:45", "3:45"),
        ("it's", "it's"),
        ("." * 40, "." * 8),  # the official script's count by accident
    ],
)
def test_punctuation(text: str, expected: str) -> None:
    assert without_punctuation(text) == expected


def test_where_all_agree_only_the_official_variant_wants_it_to_the_letter() -> None:
    same = answers(("yes", 10))
    assert [vqa_accuracy("Yes.", same, variant) for variant in VARIANTS] == [0.0, 1.0, 1.0]
    assert [vqa_accuracy(" yes\n", same, variant) for variant in VARIANTS] == [1.0, 1.0, 1.0]


def test_lavis_does_not_normalize_the_words_of_answers() -> None:
    told = answers(("two", 9), ("several", 1))
    assert [vqa_accuracy("2", told, variant) for variant in VARIANTS] == [1.0, 0.0, 1.0]
    punctuated = answers(("t-shirt", 9), ("dress", 1))
    assert [vqa_accuracy("t-shirt", punctuated, variant) for variant in VARIANTS] == [1.0, 1.0, 1.0]
    unanimous = answers(("t-shirt", 10))
    assert [vqa_accuracy("t-shirt", unanimous, variant) for variant in VARIANTS] == [1.0, 0.0, 1.0]


def test_evalai_splits_possessives_and_drops_commas_first() -> None:
    told = answers(("1,5", 5), ("15", 5))
    assert vqa_accuracy("15", told, "evalai") == 1.0
    possessive = answers(("dog 's", 9), ("cat", 1))
    assert [vqa_accuracy("dog's", possessive, variant) for variant in VARIANTS] == [0.0, 0.0, 1.0]


def test_answers_are_not_changed() -> None:
    told = answers(("The two.", 5), ("b", 5))
    vqa_accuracy("2", told)
    assert told == answers(("The two.", 5), ("b", 5))


def test_odd_input() -> None:
    assert vqa_accuracy("", answers(("", 1), ("x", 9))) == pytest.approx(0.3)
    assert vqa_accuracy("x", ["x"]) == 0.0  # nobody else to agree
    with pytest.raises(ValueError, match="an answer at least"):
        vqa_accuracy("x", [])
    with pytest.raises(UnknownNameError, match="Did you mean 'official'"):
        vqa_accuracy("x", ["x"], "oficial")  # type: ignore[arg-type]


@given(st.text(max_size=30), st.lists(st.text(max_size=10), min_size=1, max_size=10), st.sampled_from(VARIANTS))
def test_any_text_gives_a_share(prediction: str, told: list[str], variant) -> None:
    assert 0.0 <= vqa_accuracy(prediction, told, variant) <= 1.0


@given(st.text(alphabet="ab 1,.'-?", max_size=20))
def test_normalizing_leaves_no_articles_and_single_blanks(text: str) -> None:
    words = normalized(text).split(" ")
    assert "a" not in words
    assert "" not in words or words == [""]
