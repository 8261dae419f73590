"""The stages that train ``lyrics-tiny-plain``, in their order. ``lyrics-tiny`` begins with its texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.plugins.tiny.stage import Stage


def _text(
    name: str,
    steps: int,
    batch: int,
    after: str | None,
    rate: float = 6e-3,
    precision: str = "fp32",
    **sets: Mapping[str, Any],
) -> Stage:
    """Plain questions about scenes, boxes as a detector finds them, unless a set says otherwise."""
    settings = {
        "data.sets": {
            key: {"use": "scene-texts", "options": {"plain": True, "box_error": 0.06, "repeat": False, **options}}
            for key, options in sets.items()
        },
        "optimization.steps": steps,
        "optimization.global_batch": batch,
        "optimization.learning_rate": rate,
        "optimization.precision": precision,
    }
    return Stage(name, "tiny-text", after, settings)


#: Those that take more than to copy a word.
_HARD = ("size", "existence", "existence", "absent", "location", "count", "relation", "relation")
#: Those that are learnt last.
_HARDEST = (*("size", "relation", "color", "count", "location") * 2, "relation", "naming", "position")

#: Those that the task ``vqa`` asks, relations and counts of what is there more often.
_VISUAL = (
    "count",
    "amount",
    "amount",
    "color",
    "shape",
    "size",
    "existence",
    "absent",
    "relation",
    "relation",
    "position",
)

#: Those answered by a box that takes a comparison.
_POINTING = (*("height",) * 3, *("beside",) * 2, "extreme", "search")

#: In the order of training. What a box says of size and place is learnt from scenes of one object within minutes, and
#: so is to copy it; then whose box it is, from two; then all that is said of a scene, also in the wordy instructions of
#: the tasks. Relations follow at a lower rate: while a loss is at chance, Muon's steps, all of one size, forget what
#: was known. Which way one thing lies from another ("side") is learnt before whether it lies that way ("relation"), as
#: that is "yes" for one half of the words and "no" for the other. What follows asks more often for what was still
#: wrong, later also in the words of the tasks: plain skill does not carry over. What is topmost or lowest was at chance
#: among four and eight objects, and is learnt from two.
PLAIN_TEXTS = (
    _text(
        "text-1",
        400,
        32,
        None,
        all={"max_objects": 1, "turns": 9, "repeat": True},
        one={"max_objects": 1, "turns": 9, "types": ("size", "position", "existence", "existence"), "seed": 1},
    ),
    _text(
        "text-2",
        400,
        32,
        "text-1",
        all={"max_objects": 2, "turns": 10, "repeat": True, "seed": 2},
        hard={"max_objects": 2, "turns": 10, "types": _HARD, "seed": 3},
    ),
    _text(
        "text-4",
        450,
        48,
        "text-2",
        few={"max_objects": 2, "turns": 10, "seed": 4},
        some={"max_objects": 4, "seed": 5},
        hard={"max_objects": 4, "types": (*_HARD, "position"), "seed": 6},
    ),
    _text(
        "text-8",
        1000,
        48,
        "text-4",
        few={"max_objects": 2, "turns": 8, "types": ("size", "relation", "relation", "color"), "seed": 7},
        some={"max_objects": 4, "seed": 8},
        many={"seed": 9},
        hard={"types": _HARDEST, "seed": 10},
        tasks={"plain": False, "turns": 7, "seed": 11},
    ),
    _text(
        "measures",
        275,
        64,
        "text-8",
        1e-3,
        two={"max_objects": 2, "turns": 6, "types": ("relation",) * 4 + ("size",), "seed": 12},
        four={"max_objects": 4, "turns": 6, "types": ("relation",) * 4 + ("size",), "seed": 13},
    ),
    _text(
        "sides",
        250,
        64,
        "measures",
        1.5e-3,
        two={"max_objects": 2, "turns": 6, "types": ("side",) * 3 + ("relation", "size"), "seed": 14},
        four={"max_objects": 4, "turns": 6, "types": ("side",) * 3 + ("relation", "position"), "seed": 15},
    ),
    _text(
        "relations",
        200,
        64,
        "sides",
        2e-3,
        two={"max_objects": 2, "turns": 6, "types": ("side", "side", "relation", "relation", "size"), "seed": 21},
        four={"max_objects": 4, "turns": 6, "types": ("side", "side", "relation", "relation", "position"), "seed": 22},
    ),
    _text(
        "everything",
        270,
        48,
        "relations",
        2e-3,
        few={"max_objects": 2, "turns": 7, "types": ("side", "relation", "relation", "relation", "size"), "seed": 16},
        some={
            "max_objects": 4,
            "turns": 9,
            "types": ("relation",) * 3 + ("side", "size", "color", "location"),
            "seed": 17,
        },
        many={"seed": 18},
        hard={"types": (*_HARDEST, "relation", "side"), "seed": 19},
        tasks={"plain": False, "turns": 7, "seed": 20},
    ),
    _text(
        "search",
        300,
        48,
        "everything",
        2e-3,
        search={"turns": 7, "types": ("search",), "seed": 23},
        some={"max_objects": 4, "turns": 8, "types": ("search",) * 4 + ("relation", "count"), "seed": 24},
        many={"seed": 25},
        hard={"types": (*_HARDEST, "relation", "search", "search"), "seed": 26},
        tasks={"plain": False, "turns": 7, "seed": 27},
    ),
    _text(
        "answers",
        1000,
        48,
        "search",
        2e-3,
        many={"seed": 28},
        some={
            "max_objects": 4,
            "turns": 9,
            "types": ("relation",) * 3 + ("search",) * 2 + ("choice", "choice", "size", "naming"),
            "seed": 29,
        },
        hard={"turns": 11, "types": (*_HARDEST, "relation", "shape", *("search", "choice") * 3), "seed": 30},
        search={"turns": 7, "types": ("search",) * 3 + ("relation",), "seed": 31},
        tasks={"plain": False, "turns": 7, "seed": 32},
    ),
    _text(
        "choices",
        600,
        48,
        "answers",
        2.5e-3,
        many={"seed": 33},
        some={
            "max_objects": 4,
            "turns": 10,
            "types": (*("choice",) * 5, "color", "shape", "naming", "location", "search"),
            "seed": 34,
        },
        hard={
            "turns": 11,
            "types": (*("color", "shape", "count", "location", "search") * 2, *("choice",) * 5, "relation", "position"),
            "seed": 35,
        },
        search={"turns": 7, "types": (*("search",) * 3, "count"), "seed": 36},
        tasks={"plain": False, "turns": 7, "seed": 37},
    ),
    _text(
        "extremes",
        450,
        48,
        "choices",
        2e-3,
        some={"max_objects": 4, "turns": 8, "types": (*("extreme",) * 3, "count"), "seed": 38},
        many={"seed": 39},
        hard={
            "turns": 10,
            "types": (*("extreme",) * 5, *("count", "search") * 2, "choice", "color", "shape", "relation", "position"),
            "seed": 40,
        },
        tasks={"plain": False, "turns": 7, "seed": 41},
        wordy={"plain": False, "turns": 7, "seed": 42},
    ),
    _text(
        "amounts",
        400,
        48,
        "extremes",
        2.5e-3,
        some={"max_objects": 4, "turns": 8, "types": (*("extreme",) * 3, "amount", "amount", "relation"), "seed": 43},
        many={"seed": 44},
        hard={
            "turns": 10,
            "types": (
                *("extreme",) * 4,
                *("amount",) * 3,
                *("relation", "choice") * 2,
                *("count", "color", "shape", "position"),
            ),
            "seed": 45,
        },
        tasks={"plain": False, "turns": 7, "seed": 46},
        wordy={"plain": False, "turns": 7, "seed": 47},
    ),
    _text(
        "words",
        150,
        48,
        "amounts",
        2e-3,
        some={"max_objects": 4, "turns": 9, "types": _VISUAL, "worded": True, "seed": 48},
        many={"turns": 10, "types": _VISUAL, "worded": True, "seed": 49},
        hard={"turns": 8, "types": (*("search", "choice") * 3, *("extreme",) * 2, "location"), "seed": 50},
        tasks={"plain": False, "turns": 7, "seed": 51},
    ),
    _text(
        "gaps",
        1500,
        48,
        "words",
        2.5e-3,
        "bf16",
        some={"max_objects": 4, "turns": 9, "types": _VISUAL, "worded": True, "seed": 52},
        many={"turns": 10, "types": (*_VISUAL, "count", "color", "size"), "worded": True, "seed": 53},
        few={"max_objects": 4, "turns": 8, "types": _POINTING, "seed": 54},
        points={"turns": 9, "types": (*_POINTING, "search", "location"), "seed": 55},
        choices={"turns": 8, "types": (*("choice",) * 3, "place-choice", "place-choice", "word-choice"), "seed": 56},
        tasks={"plain": False, "turns": 7, "seed": 57},
    ),
    _text(
        "heights",
        600,
        64,
        "gaps",
        2.5e-3,
        "bf16",
        two={"max_objects": 2, "turns": 5, "types": ("height",), "seed": 58},
        three={"max_objects": 3, "turns": 5, "types": ("height", "height", "extreme"), "seed": 59},
    ),
    _text(
        "together",
        900,
        48,
        "heights",
        2.5e-3,
        "bf16",
        few={"max_objects": 3, "turns": 6, "types": ("height", "height", "extreme"), "seed": 60},
        some={"max_objects": 5, "turns": 8, "types": _POINTING, "seed": 61},
        points={"turns": 9, "types": (*_POINTING, "search", "location"), "seed": 62},
        sees={"turns": 10, "types": (*_VISUAL, "sized", "sized", "sized"), "worded": True, "seed": 63},
        choices={"turns": 8, "types": (*("choice",) * 3, "place-choice", "word-choice"), "seed": 64},
        tasks={"plain": False, "turns": 7, "seed": 65},
    ),
)
PLAIN_STAGES = (
    *PLAIN_TEXTS,
    Stage("stage1", "tiny-plain-stage1"),
    Stage("stage2", "tiny-plain-stage2", "stage1", {"optimization.steps": 400}),
)
