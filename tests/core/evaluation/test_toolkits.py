"""Requests of toolkits as questions, and answers in the form that their metrics read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.toolkits import (
    Generation,
    generate_until,
    options_in,
    pictures_of,
    rewritten,
    until,
    words_of,
)
from lyrics.core.geometry import Box
from tests.core.evaluation.toys import box_answer

SEED = (
    "How many birds?\nA. One\nB. Two\nC. Three\nD. Four\n"
    "Answer with the option's letter from the given choices directly."
)
CHINESE = (
    "\u56fe\u4e2d\uff1f\nA. \u4e00\nB. \u4e8c\n"
    "\u8bf7\u76f4\u63a5\u4f7f\u7528\u6240\u63d0\u4f9b\u7684\u9009\u9879\u5b57\u6bcd\u4f5c\u4e3a\u7b54\u6848\u56de\u7b54\u3002"
)
MATHVISTA = (
    "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\nQuestion: "
    "Which?\nChoices:\n(A) 4\n(B) 5\n(C) 6"
)
REC = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. Please provide the bounding box coordinate of the "
    "region this sentence describes: dog"
)
POPE = "Is there a dog in the image?\nAnswer the question using a single word or phrase."


def plain(text: str) -> Answer:
    return Answer(text, plain_text=text)


@pytest.mark.parametrize(
    ("said", "prompt", "expected"),
    [
        ("(b) Two", SEED, "B"),
        ("Four", SEED, "D"),
        ("The answer is c.", SEED, "C"),
        ("Five, I think", SEED, "Five, I think"),  # it cannot be told: a judge may
        ("(f) Six", SEED, "(f) Six"),
        ("\u4e8c", CHINESE, "B"),
        ("5", MATHVISTA, "B"),
        ("(a)", "What does (a) mean?", "(a)"),  # no letter is asked for
        ("B", "Answer with the option's letter: red or blue?", "B"),  # no options are to be seen
        ("no dog", REC, "no dog"),
        ("(B) Two, and not (C)", SEED, "(B) Two, and not (C)"),  # MMMU's parser takes the last one
        ("(b) Two (C)", SEED, "(b) Two (C)"),
        ("A bird, so the answer is (b)", SEED, "A bird, so the answer is (b)"),
        ("B: Two", SEED, "B"),
        ("Yes, there is.", POPE, "Yes"),
        ("no", POPE, "no"),
        ("No.", "Is it? Please answer yes or no.", "No"),
        ("No parking", POPE, "No parking"),
        ("Yes, there is.", "Is there a dog?", "Yes, there is."),  # no word is asked for
    ],
)
def test_answers_as_they_are_read(said: str, prompt: str, expected: str) -> None:
    assert rewritten(plain(said), prompt) == expected


def test_boxes_are_taken_out_or_written_as_asked() -> None:
    answer = box_answer("a dog", Box(0.125, 0.25, 0.5, 0.99999))
    assert "<box>" in answer.text
    assert rewritten(answer, "What is it?") == "a dog"
    assert rewritten(answer, REC) == "[0.1250, 0.2500, 0.5000, 1.0000]"


def test_lmms_eval_reads_the_box() -> None:
    """The pattern of its RefCOCO tasks: four numbers in square brackets, with or without decimals."""
    import re

    number = r"(-?\d+(?:\.\d+)?)"
    found = re.search(
        rf"\[\s*{number},\s*{number},\s*{number},\s*{number}\s*\]", rewritten(box_answer("x", Box(0, 0, 0.5, 1)), REC)
    )
    assert found is not None
    assert [float(value) for value in found.groups()] == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (SEED, ["One", "Two", "Three", "Four"]),
        (MATHVISTA, ["4", "5", "6"]),
        ("A) x\nB) y", ["x", "y"]),
        ("A. old\nB. old\nNow:\nA. x\nB. y\nC. z", ["x", "y", "z"]),
        ("A. x\nC. z", []),
        ("A. Smith wrote it", []),
        ("", []),
    ],
)
def test_options(prompt: str, expected: list[str]) -> None:
    assert options_in(prompt) == expected


def test_stops() -> None:
    assert until("one\ntwo ASSISTANT: three", ["ASSISTANT:", "\n"]) == "one"
    assert until("one", ["", "x"]) == "one"
    assert until("", ["x"]) == ""


def test_generation_arguments() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Generation.of({}, most=9) == Generation(9)
        assert Generation.of(
            {"until": "x", "max_new_tokens": 4, "temperature": 0, "num_beams": 1}, most=9
        ) == Generation(4, ("x",))
        asked = {
            "until": ["a", "b"],
            "max_gen_toks": 3,
            "do_sample": False,
            "top_p": 1.0,
            "image_aspect_ratio": "original",
        }
        assert Generation.of(asked, most=9) == Generation(3, ("a", "b"))
    for asked, word in (
        ({"max_new_tokens": 16384}, "cut to 9"),
        ({"temperature": 0.2}, "greedy"),
        ({"do_sample": True}, "greedy"),
        ({"num_beams": 5}, "num_beams=5"),
        ({"repetition_penalty": 1.1}, "repetition_penalty is not used"),
    ):
        with pytest.warns(UserWarning, match=word):
            assert Generation.of(asked, most=9) == Generation(9)
    for asked in ({"until": [1]}, {"max_new_tokens": 0}, {"max_new_tokens": "many"}, {"max_new_tokens": True}):
        with pytest.raises(LyricsError, match=r"until|max_new_tokens"):
            Generation.of(asked, most=9)


def test_pictures() -> None:
    one = Image.new("RGB", (2, 2))
    assert pictures_of(None) == []
    assert pictures_of([[one], (one, "a.jpg"), None]) == [one, one, "a.jpg"]
    with pytest.raises(LyricsError, match=r"a\.MP4.*no video"):
        pictures_of(["a.MP4"])
    with pytest.raises(LyricsError, match="dict"):
        pictures_of([{"array": 1}])
    assert words_of("<image>\n<image> What is in <image 1>?") == "What is in <image 1>?"


# --- requests
# ----------------------------------------------------------------------------------------------------------


class Echo:
    """Says how many pictures it saw, and what it was asked; keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def generate(self, pictures: Sequence[Any], instructions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        self.calls.append((len(instructions), max_new_tokens))
        return [plain(f"{len(own)} {text}|tail") for own, text in zip(pictures, instructions, strict=True)]


PICTURE = Image.new("RGB", (4, 4))
DOCUMENTS = {
    "toy": {"test": [{"shown": []}, {"shown": [PICTURE]}, {"shown": [PICTURE, PICTURE]}, {"shown": ["a.mp4"]}]}
}


def request(document: int, context: str, **asked: Any) -> Any:
    return SimpleNamespace(args=(context, asked, lambda row: row["shown"], document, "toy", "test"))


def test_answers_come_in_order_whatever_is_batched() -> None:
    requests = [
        request(0, "none", max_new_tokens=4),
        request(1, "<image> one", until=["|"]),
        request(2, "two", max_new_tokens=4),
        request(1, "again", max_new_tokens=4),
    ]
    model = Echo()
    kept: list[tuple[str, str]] = []
    texts = generate_until(
        model, requests, DOCUMENTS, batch=2, most=16, done=lambda context, asked, text: kept.append((context, text))
    )
    assert texts == ["0 none|tail", "1 one", "2 two|tail", "1 again|tail"]
    # Those of the same arguments together, two at a time.
    assert sorted(model.calls) == [(1, 4), (1, 16), (2, 4)]
    assert sorted(kept) == sorted(zip(["none", "<image> one", "two", "again"], texts, strict=True))
    assert generate_until(model, [], DOCUMENTS, batch=2, most=16) == []


def test_what_cannot_be_met_names_task_and_document() -> None:
    with pytest.raises(LyricsError, match=r"toy, document 3: the task shows a\.mp4"):
        generate_until(Echo(), [request(3, "what?")], DOCUMENTS, batch=1, most=4)
    with pytest.raises(LyricsError, match="toy, document 1: max_new_tokens"):
        generate_until(Echo(), [request(1, "what?", max_new_tokens=-1)], DOCUMENTS, batch=1, most=4)


def test_a_model_answers_them() -> None:
    """Several pictures, one, and none, through a real model."""
    from lyrics.core.loading import build_model
    from tests.core.small import small

    model = build_model(small(language_model__options__max_positions=512), weights="random").eval()
    requests = [request(document, "What is it?", max_new_tokens=2) for document in (0, 1, 2)]
    texts = generate_until(model, requests, DOCUMENTS, batch=3, most=4)
    assert len(texts) == 3
    assert all(isinstance(text, str) for text in texts)
