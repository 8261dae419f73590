"""A model small enough to be built many times, and a picture to show it."""

from __future__ import annotations

from PIL import Image, ImageDraw

from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.spec import ModelSpec


def small(registry: Registry | None = None, **overrides: object) -> ModelSpec:
    """``lyrics-tiny`` with every part under its test options, and without objectives; ``a__b`` in a keyword stands for
    ``a.b``.
    """
    registry = registry or default_registry()
    spec = registry.preset("lyrics-tiny").with_overrides({"objectives": {}})
    options = {
        f"{path}.options": dict(registry.component(kind, slot.use).component.test_options)
        for path, kind, slot in spec.slots()
    }
    spec = spec.with_overrides(options)
    return spec.with_overrides({path.replace("__", "."): value for path, value in overrides.items()})


def drawn(width: int = 96, height: int = 64, color: str = "red") -> Image.Image:
    """A filled circle on white."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).ellipse((width // 4, height // 4, width // 2, height // 2), fill=color)
    return picture
