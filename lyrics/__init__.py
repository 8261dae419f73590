"""Lyrics: a vision-language model that sees objects, as a library of swappable parts.

Importing this package imports neither torch nor any plugin: public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "Box": "lyrics.core.geometry",
    "Component": "lyrics.core.registry.component",
    "Converter": "lyrics.core.registry.component",
    "Frame": "lyrics.core.geometry",
    "LyricsError": "lyrics.core.errors",
    "LyricsModel": "lyrics.core.model",
    "ModelSpec": "lyrics.core.spec",
    "NamesWeights": "lyrics.core.registry.component",
    "Options": "lyrics.core.registry.component",
    "Preset": "lyrics.core.registry.component",
    "Registry": "lyrics.core.registry.registry",
    "VisualRefiner": "lyrics.core.refining.refiner",
    "build_model": "lyrics.core.build",
    "build_refiner": "lyrics.core.build",
    "hookimpl": "lyrics.core.registry.component",
}

__all__ = [
    "Box",
    "Component",
    "Converter",
    "Frame",
    "LyricsError",
    "LyricsModel",
    "ModelSpec",
    "NamesWeights",
    "Options",
    "Preset",
    "Registry",
    "VisualRefiner",
    "__version__",
    "build_model",
    "build_refiner",
    "hookimpl",
]

if TYPE_CHECKING:
    from lyrics.core.build import build_refiner
    from lyrics.core.errors import LyricsError
    from lyrics.core.geometry import Box, Frame
    from lyrics.core.loading import build_model
    from lyrics.core.model import LyricsModel
    from lyrics.core.refining.refiner import VisualRefiner
    from lyrics.core.registry.component import Component, Converter, NamesWeights, Options, Preset, hookimpl
    from lyrics.core.registry.registry import Registry
    from lyrics.core.spec import ModelSpec


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lyrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
