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

from lyrics.core.build import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.model_folder import save_folder
from lyrics.core.presets import TINY_LANGUAGE_MODEL, TINY_WEIGHTS, lyrics_tiny
from lyrics.core.training.assemble import run, start_from
from lyrics.core.training.config import TrainConfig, load_config
from lyrics.core.training.launch import several_processes
from lyrics.core.weights import WEIGHTS_FILE
from lyrics.plugins.tiny.shipped import list_files

Say = Callable[[str], None]

#: Names of the folders that the stages' weights are written to.
LANGUAGE_MODEL, MODEL = (name.rpartition("/")[2] for name in (TINY_LANGUAGE_MODEL, TINY_WEIGHTS))
_CHECKPOINT = "model.spec.language_model.options.checkpoint"


@dataclass(frozen=True)
class Stage:
    """A recipe with what is set in it. ``after`` names the stage whose trained weights it begins with."""

    name: str
    recipe: str
    after: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _copying(most_objects: int, steps: int, batch: int, after: str | None) -> Stage:
    settings = {
        "data.sets.texts.options": {"max_objects": most_objects, "turns": 1},
        "optimisation.steps": steps,
        "optimisation.global_batch": batch,
        "optimisation.learning_rate": 3e-3,
    }
    return Stage(f"text-{most_objects}", "tiny-text", after, settings)


def _measuring(name: str, steps: int, after: str, **sets: Any) -> Stage:
    settings = {
        "data.sets": sets,
        "optimisation.steps": steps,
        "optimisation.global_batch": 64,
        "optimisation.learning_rate": 1.5e-3,
    }
    return Stage(name, "tiny-text", after, settings)


def _texts(**options: Any) -> dict[str, Any]:
    return {"use": "scene-texts", "options": {"box_error": 0.06, **options}}


def _asked(**options: Any) -> dict[str, Any]:
    return _texts(plain=True, repeat=False, **options)


#: Questions as they are, about few objects and many, and a few turns of every task. Sets of about equal length, for little padding.
_QUESTIONS: Mapping[str, Any] = {
    "data.sets": {
        "few": _texts(plain=True, max_objects=2),
        "some": _texts(plain=True, max_objects=4, seed=1),
        "many": _texts(plain=True, max_objects=8, seed=2),
        "tasks": _texts(turns=6, seed=3),
    },
    "optimisation.steps": 1100,
    "optimisation.global_batch": 32,
}

#: Sizes are learnt last.
_SIZES = ("size", "size", "size", "position")
_MEASURES = ("size", "size", "position", "position", "relation", "relation", "location")

#: All of it once more. The repetition of the list, 40 % of the tokens, is known by now.
_EVERYTHING: Mapping[str, Any] = {
    "data.sets": {
        "few": _asked(max_objects=2, turns=9, seed=31),
        "some": _asked(max_objects=4, turns=11, seed=32),
        "many": _asked(seed=33),
        "measures": _asked(types=("size", "size", "position", "relation"), turns=10, seed=34),
        "tasks": _texts(turns=7, repeat=False, seed=35),
    },
    "optimisation.steps": 350,
    "optimisation.global_batch": 48,
    "optimisation.learning_rate": 1.5e-3,
}

#: In the order of training. To copy a box is learnt from scenes of one object within minutes, and from scenes of eight not at all; then
#: whose box it is, from two; then all that is said of a scene, of which the wordy tasks teach the questions themselves slowly. What a box
#: says of size and place is again learnt alone, from one object, before it is looked up among others.
STAGES = (
    _copying(1, 300, 32, None),
    _copying(2, 320, 32, "text-1"),
    _copying(4, 120, 16, "text-2"),
    Stage("text", "tiny-text", "text-4"),
    Stage("questions", "tiny-text", "text", _QUESTIONS),
    _measuring("measures-1", 250, "questions", texts=_asked(types=_MEASURES, max_objects=1, turns=7, seed=4)),
    _measuring("measures-2", 250, "measures-1", texts=_asked(types=_SIZES, max_objects=2, turns=5, seed=21)),
    _measuring(
        "measures-4",
        200,
        "measures-2",
        alone=_asked(types=("size", "size", "position"), max_objects=4, turns=6, seed=22),
        relations=_asked(types=("relation", "size"), max_objects=2, turns=5, seed=23),
    ),
    Stage("everything", "tiny-text", "measures-4", _EVERYTHING),
    Stage("stage1", "tiny-stage1"),
    Stage("stage2", "tiny-stage2", "stage1"),
)
#: After it the language model is what the next stages build on.
LAST_TEXT = next(stage for stage in reversed(STAGES) if stage.recipe == "tiny-text")


def stage_config(stage: Stage, out: Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a stage whose run folder, and those before it, are in ``out``. ``settings`` come last."""
    given: dict[str, Any] = {"out": str(out / stage.name), **stage.settings}
    if stage.after is not None:
        given["model.start_from"] = str(out / stage.after)
    if stage.recipe != "tiny-text":
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
    model = trained_model(config)
    folder = weights / LANGUAGE_MODEL
    model.language_model.model.half().save_pretrained(folder)
    model.language_model.tokenizer.save_pretrained(folder)
    list_files(weights)


def export_model(out: Path, weights: Path, stage: Stage = STAGES[-1]) -> None:
    """Write what stage 2 has trained so far to a model folder in ``weights``, in half precision.

    Its specification is the preset's: the language model that it names is the one in the package.
    """
    model = trained_model(stage_config(stage, out))
    named = {"language_model.options.checkpoint": lyrics_tiny().language_model.options["checkpoint"]}
    model.spec = model.spec.with_overrides(named)
    folder = weights / MODEL
    save_folder(model, folder, trainable_only=True)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_tensors({name: _half(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    list_files(weights)


def trained_model(config: TrainConfig) -> LyricsModel:
    """The model that a run has made so far, in evaluation mode. Raises ``CheckpointError`` where there is none."""
    model = build_model(config.model.spec, weights=config.model.weights)
    if config.model.start_from is not None:  # what this stage leaves as it was, such as the objectives in stage 2
        start_from(model, config.model.start_from)
    start_from(model, config.out)
    return model.eval()


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
