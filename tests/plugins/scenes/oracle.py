"""Answers worked out from a sample's ground truth and the words of the question alone: no line of it is shared with the
data set.
"""

from __future__ import annotations

import re
from typing import Any

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from lyrics.core.types import Sample

COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "object"]
SIZES = ["small", "medium", "large"]
PLURALS = {"crosses": "cross", **{f"{shape}s": shape for shape in SHAPES if shape != "cross"}}
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
Thing = dict[str, Any]


def centre(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing["box_norm"]
    return (x1 + x2) / 2, (y1 + y2) / 2


def like(things: list[Thing], noun: str) -> list[Thing]:
    """The things that a noun such as "small red circles" names."""
    for word in noun.split():
        word = PLURALS.get(word, word)
        if word in COLOURS:
            things = [thing for thing in things if thing["colour"] == word]
        elif word in SIZES:
            things = [thing for thing in things if thing["size"] == word]
        elif word in SHAPES:
            things = [thing for thing in things if word in ("object", thing["shape"])]
        else:
            raise AssertionError(f"unknown word {word!r} in {noun!r}")
    return things


def holds(one: Thing, relation: str, other: Thing) -> bool:
    """By centres: weaker than what the data set demands, so a truth of the data set must be one here."""
    (x, y), (other_x, other_y) = centre(one), centre(other)
    return {
        "to the left of": x < other_x,
        "to the right of": x > other_x,
        "above": y < other_y,
        "below": y > other_y,
    }[relation]


def referents(things: list[Thing], expression: str) -> list[Thing]:
    """The things that a referring expression may mean."""
    related = re.fullmatch(r"(.+?) (to the left of|to the right of|above|below) the (.+)", expression)
    if related:
        (landmark,) = like(things, related[3])
        return [
            thing for thing in like(things, related[1]) if thing is not landmark and holds(thing, related[2], landmark)
        ]
    first, _, rest = expression.partition(" ")
    axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "lowest": (1, -1)}.get(first, (None, 0))
    if axis is None:
        return like(things, expression)
    return sorted(like(things, rest), key=lambda thing: sign * centre(thing)[axis])[:1]


def place(box_norm: tuple[float, ...]) -> str:
    """Of nine equal cells."""
    x, y = (box_norm[0] + box_norm[2]) / 2, (box_norm[1] + box_norm[3]) / 2
    row, column = (("top", "", "bottom")[int(y * 3)], ("left", "", "right")[int(x * 3)])
    return " ".join(filter(None, (row, column))) or "center"


def boxed(text: str, things: list[Thing]) -> list[Thing]:
    """The things whose boxes a text names, by place alone."""
    found = []
    for one in parse(text).objects:
        best = max(things, key=lambda thing: Box(*thing["box_norm"]).iou(one.box))
        assert Box(*best["box_norm"]).iou(one.box) > 0.8, text
        assert one.tag in ("", f"{best['colour']} {best['shape']}"), text
        found.append(best)
    return found


def answer(question: str, sample: Sample) -> str | list[Thing]:
    """The right answer; a list where it is boxes."""
    things, words = list(sample.extra["things"]), sample.extra["words"]
    if found := re.fullmatch(r"How many (.+) are there\?", question):
        return str(len(like(things, found[1])))
    if found := re.fullmatch(r"Is there an? (.+)\?", question):
        if found[1] == "word in the picture":
            return "yes" if words else "no"
        return "yes" if like(things, found[1]) else "no"
    if question == "What word is written in the picture?":
        return words[0]["text"] if words else "There is no word."
    if question == "What is the first letter of the word?":
        return words[0]["text"][0]
    if found := re.fullmatch(r"What is at (<Bbox>.+</Bbox>)\?", question):
        (thing,) = boxed(found[1], things)
        return f"{'an' if thing['colour'] == 'orange' else 'a'} {thing['colour']} {thing['shape']}"
    if found := re.fullmatch(r"What (color|shape) is the (.+)\?", question):
        (thing,) = like(things, found[2])
        return thing[{"color": "colour"}.get(found[1], "shape")]
    if found := re.fullmatch(r"How big is the (.+)\?", question):
        named = like(things, found[1])
        return named[0]["size"] if len(named) == 1 else missing(named, found[1])
    if found := re.fullmatch(r"Is the (.+?) (to the left or to the right of|above or below) the (.+)\?", question):
        (one,), (other,) = like(things, found[1]), like(things, found[3])
        first, second = {"above or below": ("above", "below")}.get(found[2], ("to the left of", "to the right of"))
        ways = [way for way in (first, second) if holds(one, way, other)]
        return {"to the left of": "left", "to the right of": "right"}.get(ways[0], ways[0])
    if found := re.fullmatch(r"Is the (.+?) (to the left of|to the right of|above|below) the (.+)\?", question):
        (one,), (other,) = like(things, found[1]), like(things, found[3])
        return "yes" if holds(one, found[2], other) else "no"
    if found := re.fullmatch(r"Where in the picture is the (.+)\?", question):
        named = like(things, found[1])
        return place(named[0]["box_norm"]) if len(named) == 1 else missing(named, found[1])
    if found := re.fullmatch(r"Where is the (.+)\?", question):
        named = referents(things, found[1])
        return named if len(named) == 1 else missing(named, found[1])
    raise AssertionError(f"unknown question {question!r}")


def missing(named: list[Thing], noun: str) -> str:
    assert not named, f"{noun!r} means {len(named)} things"
    return f"There is no {noun}."


def answer_about(question: str, target: Thing, sample: Sample) -> str | list[Thing]:
    """The right answer about the thing that is pointed at."""
    things = list(sample.extra["things"])
    others = [thing for thing in things if thing is not target]
    if question == "How big is it?":
        return target["size"]
    if question == "Where is it in the picture?":
        return place(target["box_norm"])
    if found := re.fullmatch(r"Which other objects have the same (color|shape)\?", question):
        key = {"color": "colour"}.get(found[1], "shape")
        return [thing for thing in others if thing[key] == target[key]]
    if found := re.fullmatch(r"Is it (to the left of|to the right of|above|below) (<br>.+</br>)\?", question):
        (other,) = boxed(found[2], things)
        return "yes" if holds(target, found[1], other) else "no"
    raise AssertionError(f"unknown question {question!r}")


def caption_is_true(caption: str, sample: Sample) -> bool:
    """Whether a caption of the whole picture says nothing false, and says everything where it lists everything."""
    things, words = list(sample.extra["things"]), sample.extra["words"]
    if found := re.fullmatch(r'the word "([A-Z]+)" with (.+)', caption):
        return words[0]["text"] == found[1] and listing_is_true(found[2], things)
    if found := re.fullmatch(r"(\w+) objects?: (.+)", caption):
        return NUMBERS.index(found[1]) == len(things) and counts_are_true(found[2], things)
    if found := re.fullmatch(r"an? (\w+ \w+) (to the left of|to the right of|above|below) an? (\w+ \w+)", caption):
        (one,), (other,) = like(things, found[1]), like(things, found[3])
        return holds(one, found[2], other)
    if found := re.fullmatch(r"an? ((?:small|medium|large) \w+ \w+) (?:in|on|at) the ([a-z ]+)", caption):
        return any(place(thing["box_norm"]) == found[2] for thing in like(things, found[1]))
    listing = re.sub(r"^(a picture of|a drawing with|this picture shows) ", "", caption)
    return listing_is_true(listing, things)


def listing_is_true(listing: str, things: list[Thing]) -> bool:
    total = 0
    for part in re.split(r", | and ", listing):
        number, _, noun = part.partition(" ")
        count = 1 if number in ("a", "an") else NUMBERS.index(number)
        if len(like(things, noun)) != count:
            return False
        total += count
    return total == len(things)


def counts_are_true(listing: str, things: list[Thing]) -> bool:
    parts = [
        part if part.split()[0] in NUMBERS or part[:2] in ("a ", "an") else ""
        for part in re.split(r", | and ", listing)
    ]
    counts = [part.partition(" ") for part in parts]
    found = {noun: len(like(things, noun)) for _, _, noun in counts}
    stated = {noun: 1 if number in ("a", "an") else NUMBERS.index(number) for number, _, noun in counts}
    return found == stated and sum(found.values()) == len(things)
