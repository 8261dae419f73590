"""How the model around the experts of ``lyrics-tiny`` is trained: its stages, and what they leave as files.

The experts come before (``lyrics.plugins.tiny.recipe``); the stages take theirs from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.trained import start_from
from lyrics.core.training.assemble import run
from lyrics.core.training.launch import several_processes
from lyrics.core.training.loop import say
from lyrics.core.weights.model_folder import save_folder
from lyrics.core.weights.tensors import WEIGHTS_FILE
from lyrics.plugins.tiny.presets import TINY_LANGUAGE_MODEL, TINY_STAGE1_WEIGHTS, TINY_WEIGHTS, lyrics_tiny
from lyrics.plugins.tiny.shipped import list_files

Say = Callable[[str], None]

#: Names of the folders that the stages' weights are written to.
LANGUAGE_MODEL = TINY_LANGUAGE_MODEL.rpartition("/")[2]
#: Stage -> the folder of its model.
MODELS = {"stage1": TINY_STAGE1_WEIGHTS.rpartition("/")[2], "stage2": TINY_WEIGHTS.rpartition("/")[2]}
_CHECKPOINT = "model.spec.language_model.options.checkpoint"


@dataclass(frozen=True)
class Stage:
    """A recipe with what is set in it. ``after`` names the stage whose trained weights it begins with."""

    name: str
    recipe: str
    after: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


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

#: In the order of training. What a box says of size and place is learnt from scenes of one object within minutes, and so is to copy it;
#: then whose box it is, from two; then all that is said of a scene, also in the wordy instructions of the tasks. Relations follow at
#: a lower rate: while a loss is at chance, Muon's steps, all of one size, forget what was known. Which way one thing lies from another
#: ("side") is learnt before whether it lies that way ("relation"), as that is "yes" for one half of the words and "no" for the other.
#: What follows asks more often for what was still wrong, later also in the words of the tasks: plain skill does not carry over. What is
#: topmost or lowest was at chance among four and eight objects, and is learnt from two.
STAGES = (
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
    Stage("stage1", "tiny-stage1"),
    Stage("stage2", "tiny-stage2", "stage1", {"optimization.steps": 400}),
)


def _fine_stage1(name: str, steps: int, after: str | None, max_objects: int, seed: int, **settings: Any) -> Stage:
    """Stage 1 on fine scenes of so many things. ``settings`` are of the objectives: ``msp__weight=2``."""
    scenes = {"task": "caption", "attributes": "fine", "max_objects": max_objects, "seed": seed}
    given: dict[str, Any] = {
        "data.sets": {"scenes": {"use": "scenes", "options": scenes}},
        "optimization.steps": steps,
        **{f"model.spec.objectives.{path.replace('__', '.')}": value for path, value in settings.items()},
    }
    return Stage(name, "tiny-fine-stage1", after, given)


_BOXES_ALONE = {"itc": None, "itm": None, "icg": None}
#: Stage 1 on fine scenes. That a masked object's box stands in a local token is learned in 400 steps from scenes
#: of one object (docs/fine-stage1.md), and neither among many nor beside the other losses; so it comes first, from one and
#: two things. Then all four losses, on all scenes. The experts are those of the same folder.
FINE_STAGE1 = (
    _fine_stage1("fine-stage1-one", 400, None, 1, 1, **_BOXES_ALONE, msp__options__mask_probability=1.0),
    _fine_stage1("fine-stage1-two", 500, "fine-stage1-one", 2, 2, **_BOXES_ALONE, msp__options__mask_probability=0.5),
    _fine_stage1("fine-stage1", 1000, "fine-stage1-two", 8, 0, itm__weight=3.0, msp__weight=2.0),
)
_EXPERTS = ("image_encoder", "refiner.tagger", "refiner.detector", "refiner.segmenter")

#: After it the language model is what the next stages build on.
LAST_TEXT = next(stage for stage in reversed(STAGES) if stage.recipe == "tiny-text")


def stage_config(stage: Stage, out: Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a stage whose run folder, and those before it, are in ``out``. ``settings`` come last."""
    given: dict[str, Any] = {"out": str(out / stage.name), **stage.settings}
    if stage.after is not None:
        given["model.start_from"] = str(out / stage.after)
    if stage in FINE_STAGE1:
        given |= {f"model.spec.{part}.options.checkpoint": str(out / "weights") for part in _EXPERTS}
        given[_CHECKPOINT] = None  # stage 1 asks the language model nothing
    elif stage.recipe != "tiny-text":
        given[_CHECKPOINT] = str(out / "weights" / LANGUAGE_MODEL)
    return load_config(stage.recipe, {**given, **(settings or {})})


def train_stage(stage: Stage, out: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Train a stage, or go on with it; what is finished is not done again. After the last text, the language model is written to
    ``out/weights``, where the next stages find it; where several processes train, the same call by one process afterwards writes it.

    Raises what training raises (``lyrics.core.training.assemble.run``).
    """
    config = stage_config(stage, out, settings)
    run(config)
    if stage == LAST_TEXT and not several_processes():
        export_language_model(config, out / "weights")


def export_language_model(config: TrainConfig, weights: Path) -> None:
    """Write the language model that a run of ``tiny-text`` has trained so far to a folder in ``weights``, in half precision."""
    # The recipe's own: one that holds a model of transformers.
    language_model: Any = trained_model(config).language_model
    folder = weights / LANGUAGE_MODEL
    language_model.model.half().save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    list_files(weights)


def export_model(out: Path, weights: Path, stage: Stage) -> None:
    """Write what stage 1 or stage 2 has trained so far to its model folder in ``weights``, in half precision.

    Its specification is the preset's: the language model that it names is the one in the package. What stage 1 does not train is random,
    the same every time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trained_model(stage_config(stage, out))
    named = {"language_model.options.checkpoint": lyrics_tiny().language_model.options["checkpoint"]}
    model.spec = model.spec.with_overrides(named)
    folder = weights / MODELS[stage.name]
    save_folder(model, folder, trainable_only=True)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_tensors({name: _half(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    list_files(weights)


def trained_model(config: TrainConfig) -> LyricsModel:
    """The model that a run has made so far, in evaluation mode. Raises ``CheckpointError`` where there is none."""
    model = build_model(config.model.spec, weights=config.model.weights)
    if config.model.start_from is not None:  # what this stage leaves as it was, such as the objectives in stage 2
        start_from(model, config.model.start_from, say)
    start_from(model, config.out, say)
    return model.eval()


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
