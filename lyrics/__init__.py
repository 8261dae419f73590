"""Lyrics: a vision-language model that sees objects, as a library of swappable parts.

Importing this package imports neither torch nor any plugin: public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "Abstaining": "lyrics.core.abstaining",
    "Answer": "lyrics.core.answers",
    "Box": "lyrics.core.geometry",
    "BuildContext": "lyrics.core.contracts",
    "CheckpointOptions": "lyrics.core.registry.component",
    "Component": "lyrics.core.registry.component",
    "Condition": "lyrics.core.conditions",
    "ContractError": "lyrics.core.errors",
    "Converter": "lyrics.core.registry.component",
    "Detection": "lyrics.core.types",
    "Frame": "lyrics.core.geometry",
    "ImageError": "lyrics.core.errors",
    "LyricsError": "lyrics.core.errors",
    "LyricsModel": "lyrics.core.model",
    "ModelSpec": "lyrics.core.spec",
    "NamesVocabulary": "lyrics.core.registry.component",
    "NamesWeights": "lyrics.core.registry.component",
    "Options": "lyrics.core.registry.component",
    "PluginError": "lyrics.core.errors",
    "Preset": "lyrics.core.registry.component",
    "PromptError": "lyrics.core.errors",
    "PublicModel": "lyrics.core.registry.component",
    "Recipe": "lyrics.core.registry.component",
    "Refinement": "lyrics.core.refining.refinement",
    "Registry": "lyrics.core.registry.registry",
    "SpecError": "lyrics.core.errors",
    "Template": "lyrics.core.registry.component",
    "TrainResult": "lyrics.tasks",
    "TrainingOutput": "lyrics.core.training_output",
    "VisualRefiner": "lyrics.core.refining.refiner",
    "Vocabulary": "lyrics.core.registry.component",
    "WeightsError": "lyrics.core.errors",
    "build_dataset": "lyrics.core.data.build",
    "build_model": "lyrics.core.loading",
    "build_refiner": "lyrics.core.build",
    "data_collator": "lyrics.tasks",
    "default_registry": "lyrics.core.registry.registry",
    "evaluate": "lyrics.tasks",
    "hookimpl": "lyrics.core.registry.component",
    "list_components": "lyrics.tasks",
    "list_presets": "lyrics.tasks",
    "list_recipes": "lyrics.tasks",
    "load_model": "lyrics.core.loading",
    "read_spec": "lyrics.core.resolve",
    "train": "lyrics.tasks",
    "training_data": "lyrics.tasks",
}

__all__ = [
    "Abstaining",
    "Answer",
    "Box",
    "BuildContext",
    "CheckpointOptions",
    "Component",
    "Condition",
    "ContractError",
    "Converter",
    "Detection",
    "Frame",
    "ImageError",
    "LyricsError",
    "LyricsModel",
    "ModelSpec",
    "NamesVocabulary",
    "NamesWeights",
    "Options",
    "PluginError",
    "Preset",
    "PromptError",
    "PublicModel",
    "Recipe",
    "Refinement",
    "Registry",
    "SpecError",
    "Template",
    "TrainResult",
    "TrainingOutput",
    "VisualRefiner",
    "Vocabulary",
    "WeightsError",
    "__version__",
    "build_dataset",
    "build_model",
    "build_refiner",
    "data_collator",
    "default_registry",
    "evaluate",
    "hookimpl",
    "list_components",
    "list_presets",
    "list_recipes",
    "load_model",
    "read_spec",
    "train",
    "training_data",
]

if TYPE_CHECKING:
    from lyrics.core.abstaining import Abstaining
    from lyrics.core.answers import Answer
    from lyrics.core.build import build_refiner
    from lyrics.core.conditions import Condition
    from lyrics.core.contracts import BuildContext
    from lyrics.core.data.build import build_dataset
    from lyrics.core.errors import (
        ContractError,
        ImageError,
        LyricsError,
        PluginError,
        PromptError,
        SpecError,
        WeightsError,
    )
    from lyrics.core.geometry import Box, Frame
    from lyrics.core.loading import build_model, load_model
    from lyrics.core.model import LyricsModel
    from lyrics.core.refining.refinement import Refinement
    from lyrics.core.refining.refiner import VisualRefiner
    from lyrics.core.registry.component import (
        CheckpointOptions,
        Component,
        Converter,
        NamesVocabulary,
        NamesWeights,
        Options,
        Preset,
        PublicModel,
        Recipe,
        Template,
        Vocabulary,
        hookimpl,
    )
    from lyrics.core.registry.registry import Registry, default_registry
    from lyrics.core.resolve import read_spec
    from lyrics.core.spec import ModelSpec
    from lyrics.core.training_output import TrainingOutput
    from lyrics.core.types import Detection
    from lyrics.tasks import (
        TrainResult,
        data_collator,
        evaluate,
        list_components,
        list_presets,
        list_recipes,
        train,
        training_data,
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lyrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
