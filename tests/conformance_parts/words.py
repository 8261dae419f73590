"""Words of the vocabulary, right and wrong."""

from __future__ import annotations

WORDS = ("a", "dog", "cat", "street", "tree", "house", "car", "sky")


def lists() -> list[tuple[str, ...]]:
    return [WORDS, ("tram",)]


def in_any_order() -> list[list[str]]:
    """The order of a set of strings is another one in every process."""
    return [list(set(WORDS))]


def of_two_words() -> list[list[str]]:
    return [["fire truck"]]
