"""A stage of training ``lyrics-tiny``'s model: a recipe with what is set in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A recipe with what is set in it. ``after`` names the stage whose trained weights it begins with."""

    name: str
    recipe: str
    after: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
