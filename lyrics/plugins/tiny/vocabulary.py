"""The names that the tiny experts know unless their options say otherwise: every colour with every shape."""

from __future__ import annotations

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")

#: "red circle", "red square", ... "gray heart": 64 names.
VOCABULARY = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def normalised(phrase: str) -> str:
    """The spelling under which a phrase is compared: case and the amount of white space do not matter."""
    return " ".join(phrase.casefold().split())
