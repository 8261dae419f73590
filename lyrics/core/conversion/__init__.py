"""Public checkpoints of other projects -> safetensors in this library's naming."""

from __future__ import annotations

from lyrics.core.renaming import moved_names

_PLAN = "lyrics.core.conversion.plan"
#: Names of ``plan``, which was this module.
_NAMES = {"Beside": "Beside", "Checkpoint": "SourceCheckpoint", "Piece": "Piece", "Plan": "ConversionPlan"}
__getattr__ = moved_names(__name__, {old: f"{_PLAN}.{new}" for old, new in _NAMES.items()})
