"""The text of an answer as its tokens come: nothing is told that is not part of it in the end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lyrics.workflows.serve.jobs import AnswerText


class Letters:
    """A tokenizer with one token for each byte."""

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", errors="replace")


def told(text: str, *stop: str, size: int = 1) -> tuple[list[str], bool]:
    """What is told of a text that comes in pieces of so many bytes; and whether it was stopped."""
    data = list(text.encode())
    answer = AnswerText(Letters(), stop)
    pieces = []
    for end in [*range(size, len(data), size), len(data)]:
        pieces.append(answer.read(data[:end], over=end == len(data)))
        if answer.stopped:
            break
    assert answer.told == "".join(pieces)
    return [piece for piece in pieces if piece], answer.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a gray diamond", (), "a gray diamond"),
        ("  a\n b  \n", (), "a\n b"),
        ("één 😀 ja", (), "één 😀 ja"),
        ("one. two.", (".",), "one"),
        ("one\ntwo", ("\n",), "one"),
        ("\ntwo", ("\n",), ""),
        ("so it is </s> x", ("</s>", "<br>"), "so it is"),
        ("so it is </t", ("</s>",), "so it is </t"),
        ("aab", ("ab",), "a"),
        ("abcabd", ("abd", "zz"), "abc"),
        ("", (), ""),
        ("", ("x",), ""),
        ("no end here", ("end of",), "no end here"),
    ],
)
def test_pieces_are_the_text_up_to_what_stops_it(text: str, stop: tuple[str, ...], expected: str, size: int) -> None:
    pieces, stopped = told(text, *stop, size=size)
    assert "".join(pieces) == expected
    assert stopped == any(one in text for one in stop)


def test_the_same_for_every_short_text_and_stop() -> None:
    """All texts of up to five letters of three, against what the whole text says."""
    texts = ["".join(letters) for size in range(6) for letters in itertools.product("ab ", repeat=size)]
    for text, stop in itertools.product(texts, ("ab", "b", "a a", "bb ")):
        pieces, stopped = told(text, stop)
        assert ("".join(pieces), stopped) == (text.partition(stop)[0].strip(), stop in text), (text, stop)


def test_half_a_character_is_held_back() -> None:
    answer = AnswerText(Letters())
    data = list("é!".encode())
    assert [answer.read(data[:end], over=False) for end in (1, 2, 3)] == ["", "é", "!"]


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    answer = AnswerText(Letters())
    assert answer.read([0x61, 0xC3], over=False) == ""
    assert answer.read([0x61, 0xC3], over=True) == "a\N{REPLACEMENT CHARACTER}"
