"""A model by whatever name a user has for it: a model folder, a preset, a spec file, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import SpecError
from lyrics.core.registry import default_registry

if TYPE_CHECKING:
    import torch

    from lyrics.core.model import LyricsModel

SPEC_SUFFIXES = (".yaml", ".yml", ".json")


def load_model(
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: str = "pretrained",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LyricsModel:
    """The model of that name, in evaluation mode.

    Args:
        name: a folder that ``save_pretrained`` wrote, a preset, a spec file, or a hub id (``owner/name``), looked for in this order.
        overrides: of the specification; not with a folder or a hub id, whose weights belong to their own.
        weights: ``pretrained`` or ``random``, for a preset or a spec file.
        device, dtype: as for ``lyrics.build_model``.

    Raises ``SpecError`` or ``WeightsError`` naming what is wrong.
    """
    from lyrics.core.build import build_model
    from lyrics.core.model import LyricsModel

    presets = {preset.name for preset, _ in default_registry().presets}
    presets |= {f"{source.distribution}/{preset.name}" for preset, source in default_registry().presets}
    is_hub_id = name.count("/") == 1 and name not in presets and not name.endswith(SPEC_SUFFIXES)
    if Path(name).is_dir() or is_hub_id:
        if overrides:
            raise SpecError(
                f"{name}: is a saved model; its parts cannot be set (--set {next(iter(overrides))}=...). "
                "Edit a copy of its spec.json and load that with --weights."
            )
        return LyricsModel.from_pretrained(name, device=device, dtype=dtype).eval()
    return build_model(name, overrides=overrides, weights=weights, device=device, dtype=dtype).eval()
