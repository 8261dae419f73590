"""Answers about fine scenes by the ground truth and the words of the question alone: no line is shared with the data
set.
"""

from __future__ import annotations

import re
from typing import Any

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from tests.plugins.scenes.oracle import centre, holds, place

Thing = dict[str, Any]
COLORS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"]
_AXES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "lowest": (1, -1)}
_RELATION = r"(to the left of|to the right of|above|below)"


def lean_of(thing: Thing) -> str:
    return "upright" if thing["lean"] == "upright" else f"leaning {thing['lean']}"


def has(thing: Thing, words: str) -> bool:
    """Whether a thing has all that is said of it, such as ``upright striped down with no outline``."""
    for phrase, true in (
        (r"with a dark outline", thing["outline"] == "dark"),
        (r"with no outline", thing["outline"] == "none"),
        (r"striped (?:across|down)", thing["fill"] in words),
        (r"leaning (?:left|right)", lean_of(thing) in words),
    ):
        words, found = re.subn(phrase, "", words)
        if found and not true:
            return False
    for word in words.split():
        if word in COLORS:
            fits = thing["color"] == word
        elif word in ("solid", "dotted"):
            fits = thing["fill"] == word
        elif word == "upright":
            fits = thing["lean"] == "upright"
        else:
            shape = {"crosses": "cross"}.get(word, word if word in SHAPES else word.removesuffix("s"))
            assert shape in (*SHAPES, "object"), words
            fits = shape in ("object", thing["shape"])
        if not fits:
            return False
    return True


def like(things: list[Thing], words: str) -> list[Thing]:
    """The things that a phrase means."""
    if related := re.fullmatch(rf"(.+?) {_RELATION} the (.+)", words):
        (landmark,) = like(things, related[3])
        return [one for one in like(things, related[1]) if one is not landmark and holds(one, related[2], landmark)]
    if boxed := re.fullmatch(r"(?:(\w+) at )?(<Bbox>.+</Bbox>)", words):
        (named,) = parse(boxed[2]).objects
        best = max(things, key=lambda thing: Box(*thing["box_norm"]).iou(named.box))
        assert boxed[1] in (None, best["shape"])
        return [best]
    first, _, rest = words.partition(" ")
    if first in _AXES:
        axis, sign = _AXES[first]
        return sorted(like(things, rest), key=lambda thing: sign * centre(thing)[axis])[:1]
    return [thing for thing in things if has(thing, words)]


def answer(question: str, extra: dict[str, Any]) -> str | tuple[str, Thing]:
    """The right answer; of one that points at a thing, the name that it is asked for by, and the thing."""
    things = [dict(thing, color=thing["colour"]) for thing in extra["things"]]

    def one(words: str) -> Thing | str:
        found = like(things, words)
        assert len(found) <= 1, (words, found)
        return found[0] if found else f"There is no {words}."

    if question == "Is the ground pale, dark or tinted?":
        return str(extra["ground"])
    if question == "Is the ground plain, sloping or checked?":
        return str(extra["texture"])
    if question == "Is there a word in the picture?":
        return "yes" if extra["words"] else "no"
    if question == "What word is written in the picture?":
        return str(extra["words"][0]["text"])
    if question == "What is the first letter of the word?":
        return str(extra["words"][0]["text"][0])
    if found := re.fullmatch(rf"How many (.+) are {_RELATION} the (.+)\?", question):
        (landmark,) = like(things, found[3])
        return str(sum(thing is not landmark and holds(thing, found[2], landmark) for thing in like(things, found[1])))
    if found := re.fullmatch(r"How many (.+) are there\?", question):
        return str(len(like(things, found[1])))
    if found := re.fullmatch(r"Is there a dark outline on the (.+)\?", question):
        thing = one(found[1])
        return thing if isinstance(thing, str) else "yes" if thing["outline"] == "dark" else "no"
    if found := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if like(things, found[1]) else "no"
    for pattern, value in (
        (r"What color is the (.+)\?", lambda thing: thing["color"]),
        (r"Is the (.+) solid, striped or dotted\?", lambda thing: thing["fill"]),
        (r"Is the (.+) upright or leaning\?", lean_of),
        (r"Where in the picture is the (.+)\?", lambda thing: place(thing["box_norm"])),
    ):
        if found := re.fullmatch(pattern, question):
            thing = one(found[1])
            return thing if isinstance(thing, str) else value(thing)
    if found := re.fullmatch(r"What is at (<Bbox>.+</Bbox>)\?", question):
        shape = like(things, found[1])[0]["shape"]
        return f"a {shape}"
    if found := re.fullmatch(r"Which (\w+) is (.+)\?", question):
        name = f"{found[1]} {found[2]}" if " " in found[2] else f"{found[2]} {found[1]}"
        thing = one(name)
        return thing if isinstance(thing, str) else (name, thing)
    if found := re.fullmatch(r"Where is the (.+)\?", question):
        thing = one(found[1])
        return thing if isinstance(thing, str) else (found[1], thing)
    if found := re.fullmatch(r"Is the (.+) (to the left|above) or (to the right of|below) the (.+)\?", question):
        (thing,), (other,) = like(things, found[1]), like(things, found[4])
        if found[2] == "above":
            return "above" if holds(thing, "above", other) else "below"
        return "left" if holds(thing, "to the left of", other) else "right"
    if found := re.fullmatch(rf"Is the (.+?) {_RELATION} the (.+)\?", question):
        (thing,), (other,) = like(things, found[1]), like(things, found[3])
        return "yes" if holds(thing, found[2], other) else "no"
    # "Is the star dotted?": the value is what may be said behind.
    if found := re.fullmatch(r"Is the (.+?) (\S+|striped \S+|leaning \S+)\?", question):
        thing = one(found[1])
        assert not isinstance(thing, str)
        return "yes" if has(thing, found[2]) else "no"
    raise AssertionError(f"unknown question {question!r}")
