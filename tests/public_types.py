"""``lyrics.types`` for the examples of the documentation, which import their records from there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

#: Where the records are defined, while the package has no ``lyrics.types`` of its own.
_HOMES = (
    "lyrics.core.errors",
    "lyrics.core.types",
    "lyrics.core.geometry",
    "lyrics.core.masks",
    "lyrics.core.stage1.streams",
    "lyrics.core.stage1.step",
)


def provide() -> None:
    """Make ``import lyrics.types`` work: the package's own module, or one of names from where they are."""
    if "lyrics.types" in sys.modules or importlib.util.find_spec("lyrics.types") is not None:
        return
    module = ModuleType("lyrics.types")
    for home in _HOMES:
        found = vars(importlib.import_module(home))
        module.__dict__.update({name: value for name, value in found.items() if not name.startswith("_")})
    sys.modules["lyrics.types"] = module
