"""The stages that train ``lyrics-tiny``, in their order: the language model goes on from that of plain scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.plugins.tiny.stage import Stage


def _captions(max_objects: int, seed: int, captions: str = "dense") -> dict[str, Any]:
    options = {"task": "caption", "attributes": "fine", "max_objects": max_objects, "seed": seed, "captions": captions}
    return {"use": "scenes", "options": options}


def _fine_stage1(name: str, steps: int, after: str | None, sets: Mapping[str, Any], **settings: Any) -> Stage:
    """Stage 1 on fine scenes. ``settings`` are of the objectives: ``msp__weight=2``."""
    given: dict[str, Any] = {
        "data.sets": sets,
        "optimization.steps": steps,
        **{f"model.spec.objectives.{path.replace('__', '.')}": value for path, value in settings.items()},
    }
    return Stage(name, "tiny-stage1", after, given)


#: Stage 1 on fine scenes. Both what a box says and what a thing looks like is learned from scenes of one thing, and
#: neither among many (docs/fine-stage1.md). They are learned together: masked spatial prediction alone teaches the
#: grounding queries to read boxes only, and what the segmenter's tokens tell is not found again later. ITM comes
#: second, as of one thing its color is enough.
FINE_STAGE1 = (
    _fine_stage1(
        "fine-stage1-one",
        300,
        None,
        {"one": _captions(1, 1)},
        itm=None,
        icg__weight=2.0,
        msp__weight=3.0,
        msp__options__mask_probability=1.0,
    ),
    _fine_stage1(
        "fine-stage1-two",
        400,
        "fine-stage1-one",
        {"one": _captions(1, 2), "two": _captions(2, 3)},
        icg__weight=2.0,
        msp__weight=4.0,
        msp__options__mask_probability=0.5,
    ),
    _fine_stage1(
        "fine-stage1",
        450,
        "fine-stage1-two",
        {"two": _captions(2, 4), "four": _captions(4, 5), "all": _captions(8, 0), "said": _captions(8, 6, "varied")},
        icg__weight=2.0,
        msp__weight=3.0,
        msp__options__mask_probability=0.3,
    ),
)


def _fine_text(name: str, steps: int, batch: int, after: str | None, rate: float, **sets: Mapping[str, Any]) -> Stage:
    """Questions about fine scenes whose looks are told in sentences; what a set says comes last."""
    fine = {"attributes": "fine", "plain": True, "box_error": 0.06, "repeat": False, "turns": 8}
    settings = {
        "model.weights": "pretrained",
        "data.sets": {key: {"use": "scene-texts", "options": {**fine, **options}} for key, options in sets.items()},
        "optimization.steps": steps,
        "optimization.global_batch": batch,
        "optimization.learning_rate": rate,
        "optimization.precision": "bf16",
    }
    return Stage(name, "tiny-text", after, settings)


#: Those that take more than to find a word: whose look it is, by noun, by box, or by where it is.
_BOUND = ("L color", "L fill", "L lean", "L check", "T naming", "LT color", "LT fill", "LT lean")

#: The language model goes on from that of plain scenes, with the words for looks added: what is told of up to three
#: things, with lists of nouns beside it; then all, half of it in the words of the tasks; then more of what was still
#: wrong, which of several things looks so.
FINE_TEXTS = (
    _fine_text(
        "fine-text-1",
        217,
        48,
        None,
        2.5e-3,
        one={"max_objects": 1, "told": 1.0, "questions": ("L", "L", "G"), "seed": 101},
        few={"max_objects": 3, "told": 1.0, "questions": ("L", "L", "L", "LT", "G"), "seed": 102},
        nouns={"told": 0.0, "questions": ("T",), "seed": 103},
    ),
    _fine_text(
        "fine-text-2",
        700,
        32,
        "fine-text-1",
        2.5e-3,
        some={"max_objects": 4, "questions": ("L", "L", "LT", "T", "G"), "seed": 104},
        many={"questions": ("L", "L", "LT", "T"), "seed": 105},
        nouns={"told": 0.0, "questions": ("T", "T relation", "T location", "T location"), "seed": 106},
        tasks={"plain": False, "questions": ("L", "LT", "T", "G"), "seed": 107},
        asked={"plain": False, "told": 0.0, "questions": ("T",), "seed": 108},
    ),
    _fine_text(
        "fine-text-3",
        600,
        32,
        "fine-text-2",
        2e-3,
        boxes={"max_objects": 3, "told": 1.0, "box_error": 0.02, "questions": _BOUND, "seed": 109},
        bound={"max_objects": 4, "told": 1.0, "questions": _BOUND, "seed": 110},
        many={"told": 1.0, "questions": (*_BOUND, "LT tally", "L which"), "seed": 111},
        tasks={"plain": False, "questions": ("L", "LT", "T", "G"), "seed": 112},
        asked={"plain": False, "told": 0.0, "questions": ("T",), "seed": 113},
    ),
    _fine_text(
        "fine-text-4",
        1000,
        32,
        "fine-text-3",
        2e-3,
        boxes={"max_objects": 4, "told": 1.0, "box_error": 0.02, "questions": _BOUND, "seed": 114},
        bound={"max_objects": 6, "told": 1.0, "questions": _BOUND, "seed": 115},
        many={"told": 1.0, "questions": (*_BOUND, "LT tally", "L which"), "seed": 116},
        tasks={"plain": False, "told": 1.0, "questions": ("L", "LT", "T", "G"), "seed": 117},
        asked={"plain": False, "told": 0.0, "questions": ("T",), "seed": 118},
    ),
)


def _fine_stage2(name: str, steps: int, after: str, sets: Mapping[str, Any], **settings: Any) -> Stage:
    """Stage 2 on fine scenes; ``data__drop_text=0.3`` sets ``data.drop_text``."""
    fine = {"task": "conversation", "attributes": "fine"}
    given: dict[str, Any] = {
        "data.sets": {key: {"use": "scenes", "options": {**fine, **options}} for key, options in sets.items()},
        "optimization.steps": steps,
        **{path.replace("__", "."): value for path, value in settings.items()},
    }
    return Stage(name, "tiny-stage2", after, given)


#: Asked in few words, many times of each image: so many more looks are told in the same time.
_SHORT = {"plain": True, "turns": 16}
#: What a short question asks: looks, and never for a box, whose numbers would be most of the loss.
_LOOKS = (*(f"L {name}" for name in ("color", "fill", "lean", "outline", "check", "presence", "word")), "G", "LT")
_ALL = (*("L",) * 11, "L which", *("G",) * 2, *("T",) * 2, "T absent", *("LT",) * 3)
#: Stage 2: the language model learns to read what the queries tell. They hardly change: at the language model's rate
#: they forget within some hundred steps whose look is whose, which stage 1 has taught them (docs/fine-stage2.md).
FINE_STAGE2 = (
    _fine_stage2(
        "fine-2",
        800,
        "fine-stage1",
        {
            "few": {**_SHORT, "max_objects": 4, "questions": _LOOKS, "seed": 15},
            "many": {**_SHORT, "questions": _LOOKS, "seed": 16},
            "all": {"questions": _ALL, "seed": 17},
        },
        optimization__groups={"query_transformer": {"learning_rate": 5e-5}},
    ),
)
FINE_STAGES = (*FINE_TEXTS, *FINE_STAGE1, *FINE_STAGE2)
