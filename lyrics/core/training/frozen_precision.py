"""The type in which the language model's frozen weights are held."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lyrics.core.dtypes import torch_dtype
from lyrics.core.runs.config import TrainConfig

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel


def hold_frozen(model: LyricsModel, config: TrainConfig) -> None:
    """Hold the language model's frozen weights in ``optimization.frozen_precision``.

    What the stage trains is held in fp32.

    Quantized weights stay what they are; so do the experts, some of which run in fp32 only.
    """
    trained = model.trainable_parameters(config.stage)
    for name, parameter in model.language_model.named_parameters():
        if parameter.is_floating_point():
            kept = f"language_model.{name}" in trained
            parameter.data = parameter.data.to(
                torch.float32 if kept else torch_dtype(config.optimization.frozen_precision)
            )
