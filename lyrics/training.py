"""The pieces of a training run: its configuration, losses, optimizer and loop. ``lyrics.train`` runs all of it.

Names are loaded when they are first used; importing this module imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lyrics.core.runs.config import TrainConfig as TrainConfig
    from lyrics.core.runs.config import load_config as load_config
    from lyrics.core.stage1.reduction import total_loss as total_loss
    from lyrics.core.stage1.step import pretrain_losses as pretrain_losses
    from lyrics.core.training.assemble import build_datasets as build_datasets
    from lyrics.core.training.batches import MicroBatches as MicroBatches
    from lyrics.core.training.batches import StepLoader as StepLoader
    from lyrics.core.training.batches import build_mixture as build_mixture
    from lyrics.core.training.launch import several_processes as several_processes
    from lyrics.core.training.loop import train as train
    from lyrics.core.training.optimizer import build_optimizer as build_optimizer
    from lyrics.core.training.schedule import learning_rate as learning_rate
    from lyrics.core.training_output import TrainingOutput as TrainingOutput

# Public name -> the module that defines it.
_HOMES = {
    "MicroBatches": "lyrics.core.training.batches",
    "StepLoader": "lyrics.core.training.batches",
    "TrainConfig": "lyrics.core.runs.config",
    "TrainingOutput": "lyrics.core.training_output",
    "build_datasets": "lyrics.core.training.assemble",
    "build_mixture": "lyrics.core.training.batches",
    "build_optimizer": "lyrics.core.training.optimizer",
    "learning_rate": "lyrics.core.training.schedule",
    "load_config": "lyrics.core.runs.config",
    "pretrain_losses": "lyrics.core.stage1.step",
    "several_processes": "lyrics.core.training.launch",
    "total_loss": "lyrics.core.stage1.reduction",
    "train": "lyrics.core.training.loop",
}

__all__ = [
    "MicroBatches",
    "StepLoader",
    "TrainConfig",
    "TrainingOutput",
    "build_datasets",
    "build_mixture",
    "build_optimizer",
    "learning_rate",
    "load_config",
    "pretrain_losses",
    "several_processes",
    "total_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lyrics.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
