"""A model by whatever name a user has for it: a model folder, the folder of a training run, a preset, a spec file, or a hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.registry.registry import default_registry

if TYPE_CHECKING:
    import torch

    from lyrics.core.model import LyricsModel

SPEC_SUFFIXES = (".yaml", ".yml", ".json")


def load_model(
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: str = "pretrained",
    downloads: bool | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LyricsModel:
    """Load the model of that name, in evaluation mode.

    Args:
        name: a folder that ``save_pretrained`` wrote, the folder of a training run or one of its checkpoints, a preset, a spec file, or a
            hub id (``owner/name``), looked for in this order.
        overrides: of the specification. Of a saved model or a run, only the parts that they change are built anew
            (``lyrics.core.changes``).
        weights: ``pretrained`` or ``random``, for a preset or a spec file.
        downloads, device, dtype: as for ``lyrics.build_model``.

    Raises ``SpecError`` or ``WeightsError`` naming what is wrong.
    """
    from lyrics.core.build import build_model
    from lyrics.core.changes import stand_ins
    from lyrics.core.resolve import read_spec

    presets = {preset.name for preset, _ in default_registry().presets}
    presets |= {f"{source.distribution}/{preset.name}" for preset, source in default_registry().presets}
    is_hub_id = name.count("/") == 1 and name not in presets and not name.endswith(SPEC_SUFFIXES)
    if not Path(name).is_dir() and not is_hub_id and _is_path(name):
        raise WeightsError(
            f"{name}: there is no such folder of a model or of a run, and a spec file ends in .yaml, .yml or .json."
        )
    if not Path(name).is_dir() and not is_hub_id:
        if overrides:
            overrides = {**overrides, **stand_ins(read_spec(name), overrides)}
        return build_model(
            name, overrides=overrides, weights=weights, downloads=downloads, device=device, dtype=dtype
        ).eval()
    if weights != "pretrained":
        raise SpecError(f"weights={weights}: {name} is a saved model, which brings its own; leave weights out.")
    if Path(name).is_dir():
        return load_saved(name, overrides=overrides, downloads=downloads, device=device, dtype=dtype)
    from lyrics.core.model import LyricsModel

    return LyricsModel.from_pretrained(
        name, overrides=overrides, downloads=bool(downloads), device=device, dtype=dtype
    ).eval()


def _is_path(name: str) -> bool:
    """Whether a name that is neither a preset's nor a hub id can only be meant as that of a folder."""
    return not name.endswith(SPEC_SUFFIXES) and (name.count("/") > 1 or name.startswith((".", "/", "~")))


def load_saved(
    folder: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    base: str | os.PathLike[str] | None = None,
    downloads: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> LyricsModel:
    """Load the model of a local folder, in evaluation mode: one that ``save_pretrained`` wrote, or that of a training run.

    Args:
        folder: a model folder, the folder of a run, or a checkpoint of one.
        overrides: of its specification; only the parts that they change are built anew.
        base: for a model folder that holds trained parts only, one that has the frozen parts.
        downloads, device, dtype: as for ``lyrics.build_model``.

    Raises ``SpecError`` or ``WeightsError`` naming what is wrong.
    """
    from lyrics.core.build import build_resolved
    from lyrics.core.changes import overridden
    from lyrics.core.resolve import resolve
    from lyrics.core.spec import load
    from lyrics.core.trained import find_run, trained_model
    from lyrics.core.weights.model_folder import spec_file

    run = find_run(folder)
    if run is not None:
        if base is not None:
            raise WeightsError(
                f"base={os.fspath(base)!r}: {folder} is a run, whose configuration says what it began with."
            )
        return trained_model(run, overrides=overrides, downloads=bool(downloads), device=device, dtype=dtype)
    spec, changes = load(spec_file(folder)), None
    if overrides:
        spec, changes = overridden(spec, overrides)
    return build_resolved(
        resolve(spec), weights=folder, base=base, downloads=downloads, device=device, dtype=dtype, changes=changes
    ).eval()
