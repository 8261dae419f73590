"""How the model around the experts of ``lyrics-tiny`` is trained: its stages, and what they leave as files.

The experts come before (``lyrics.plugins.tiny.train_experts``), into the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.spec import ModelSpec
from lyrics.core.trained import start_from
from lyrics.core.training.assemble import run
from lyrics.core.training.launch import several_processes
from lyrics.core.training.loop import say
from lyrics.core.weights.model_folder import save_folder
from lyrics.core.weights.tensors import WEIGHTS_FILE
from lyrics.plugins.tiny.extend_vocabulary import carry_over
from lyrics.plugins.tiny.fine_stages import FINE_STAGE1, FINE_STAGE2, FINE_STAGES, FINE_TEXTS
from lyrics.plugins.tiny.plain_stages import PLAIN_STAGES, PLAIN_TEXTS
from lyrics.plugins.tiny.presets import (
    PLAIN_LANGUAGE_MODEL,
    TINY_LANGUAGE_MODEL,
    TINY_STAGE1_WEIGHTS,
    TINY_WEIGHTS,
    lyrics_tiny,
    lyrics_tiny_plain,
)
from lyrics.plugins.tiny.stage import Stage
from lyrics.plugins.tiny.trained_weights import list_files

Say = Callable[[str], None]

#: Names of the folders that the stages' weights are written to.
LANGUAGE_MODEL = TINY_LANGUAGE_MODEL.rpartition("/")[2]
AFTER_PLAIN_TEXTS = PLAIN_LANGUAGE_MODEL.rpartition("/")[2]
#: The language model that the fine texts begin with: that of the plain ones, with all words of today's tokenizer.
BEGINNING = f"{LANGUAGE_MODEL}-begun"
#: Those of ``lyrics-tiny``, in their order: a language model that reads plain scenes learns to read fine ones.
STAGES = (*PLAIN_TEXTS, *FINE_STAGES)
#: Stage -> the folder of its model.
MODELS = {
    **dict.fromkeys(("stage1", FINE_STAGE1[-1].name), TINY_STAGE1_WEIGHTS.rpartition("/")[2]),
    **dict.fromkeys(("stage2", FINE_STAGE2[-1].name), TINY_WEIGHTS.rpartition("/")[2]),
}
_CHECKPOINT = "model.spec.language_model.options.checkpoint"
_EXPERTS = ("image_encoder", "refiner.tagger", "refiner.detector", "refiner.segmenter")
#: Last text -> the folder of its language model, which the next stages build on.
LAST_TEXTS = {PLAIN_TEXTS[-1].name: AFTER_PLAIN_TEXTS, FINE_TEXTS[-1].name: LANGUAGE_MODEL}


def stage_config(stage: Stage, out: Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a stage whose run folder, and those before it, are in ``out``. ``settings`` come last."""
    given: dict[str, Any] = {"out": str(out / stage.name), **stage.settings}
    if stage.after is not None:
        given["model.start_from"] = str(out / stage.after)
    if stage in FINE_TEXTS:
        given[_CHECKPOINT] = str(out / "weights" / BEGINNING)
    elif stage.recipe != "tiny-text":
        given[_CHECKPOINT] = str(out / "weights" / (LANGUAGE_MODEL if stage in FINE_STAGES else AFTER_PLAIN_TEXTS))
    if stage.recipe != "tiny-text":
        given |= {f"model.spec.{part}.options.checkpoint": str(out / "weights") for part in _EXPERTS}
    if stage in FINE_STAGE1:
        given[_CHECKPOINT] = None  # stage 1 asks the language model nothing
    return load_config(stage.recipe, {**given, **(settings or {})})


def stages(out: Path, *, plain: bool) -> tuple[Stage, ...]:
    """What there is to train in a folder. Where the language model that fine texts begin with lies in ``out/weights``
    already, plain texts are not trained.
    """
    if plain:
        return PLAIN_STAGES
    return FINE_STAGES if (out / "weights" / BEGINNING).is_dir() else STAGES


def train_stage(stage: Stage, out: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Train a stage, or go on with it; what is finished is not done again. After the last plain and the last fine text
    the language model is written to ``out/weights``, where the next stages find it; where several processes train, the
    same call by one process afterwards writes it.

    Raises what training raises (``lyrics.core.training.assemble.run``).
    """
    config = stage_config(stage, out, settings)
    if stage in FINE_TEXTS and not (out / "weights" / BEGINNING).is_dir():
        carry_over(str(out / "weights" / AFTER_PLAIN_TEXTS), out / "weights" / BEGINNING)
    run(config)
    if stage.name in LAST_TEXTS and not several_processes():
        export_language_model(config, out / "weights", LAST_TEXTS[stage.name])


def export_language_model(config: TrainConfig, weights: Path, name: str = LANGUAGE_MODEL) -> None:
    """Write the language model that a run of ``tiny-text`` has trained so far to the folder ``name`` in ``weights``, in
    half precision.
    """
    # The recipe's own: one that holds a model of transformers.
    language_model: Any = trained_model(config).language_model
    folder = weights / name
    language_model.model.half().save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    list_files(weights)


def export_model(out: Path, weights: Path, stage: Stage) -> None:
    """Write what stage 1 or stage 2 has trained so far to its model folder in ``weights``, in half precision.

    Its specification is the preset's: the language model and the experts that it names are those in the package. What
    stage 1 does not train is random, the same every time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trained_model(stage_config(stage, out))
    model.spec = model.spec.with_overrides(_packaged(lyrics_tiny() if stage in FINE_STAGES else lyrics_tiny_plain()))
    folder = weights / MODELS[stage.name]
    save_folder(model, folder, trainable_only=True)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_tensors({name: _half(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    list_files(weights)


def _packaged(preset: ModelSpec) -> dict[str, Any]:
    """The checkpoints that a preset names, of the language model and of the experts; None: those that ship."""
    refiner = preset.refiner
    assert refiner is not None
    slots = {
        "language_model": preset.language_model,
        "image_encoder": preset.image_encoder,
        "refiner.tagger": refiner.tagger,
        "refiner.detector": refiner.detector,
        "refiner.segmenter": refiner.segmenter,
    }
    return {
        f"{path}.options.checkpoint": slot.options.get("checkpoint") for path, slot in slots.items() if slot is not None
    }


def trained_model(config: TrainConfig) -> LyricsModel:
    """The model that a run has made so far, in evaluation mode. Raises ``CheckpointError`` where there is none."""
    model = build_model(config.model.spec, weights=config.model.weights)
    if config.model.start_from is not None:  # what this stage leaves as it was, such as the objectives in stage 2
        start_from(model, config.model.start_from, say)
    start_from(model, config.out, say)
    return model.eval()


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
