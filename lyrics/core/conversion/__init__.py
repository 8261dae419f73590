"""Public checkpoints of other projects -> safetensors in this library's naming."""

from __future__ import annotations

from lyrics.core.renaming import moved_names

_PLAN = "lyrics.core.conversion.plan"
#: Names of ``plan``, which was this module.
__getattr__ = moved_names(__name__, {name: f"{_PLAN}.{name}" for name in ("Beside", "Checkpoint", "Piece", "Plan")})
