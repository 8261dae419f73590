"""Public checkpoints of other projects -> safetensors in this library's naming."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_PLAN = "lyrics.core.conversion.plan"
_NAMES = {"Beside": "Beside", "Checkpoint": "SourceCheckpoint", "Piece": "Piece", "Plan": "ConversionPlan"}


def __getattr__(name: str) -> Any:
    """Names of ``plan``, which was this module; they go from here in 0.3."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _NAMES[name]
    warnings.warn(
        f"{__name__}.{name} is now lyrics.types.{new}; the old name goes in 0.3.", DeprecationWarning, stacklevel=2
    )
    return getattr(importlib.import_module(_PLAN), new)
