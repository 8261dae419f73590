"""Load a model by whatever name a user has for it.

That is a model folder, the folder of a training run, a preset, a spec file, or a hub id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.build import build_resolved
from lyrics.core.changes import stand_ins
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.model import LyricsModel
from lyrics.core.public_models import find_public, load_public
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import is_spec_file, read_spec, resolve
from lyrics.core.saving import load_saved

if TYPE_CHECKING:
    import torch

    from lyrics.core.registry.registry import Registry
    from lyrics.core.resolve import SpecLike


def build_model(
    spec: SpecLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] = "pretrained",
    base: str | os.PathLike[str] | None = None,
    downloads: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    registry: Registry | None = None,
    without_experts: bool = False,
) -> LyricsModel:
    """Compose a model from its specification. It comes back in evaluation mode; training code calls ``train()``.

    Args:
        spec: a preset's name, a path to a YAML or JSON file, a mapping, or a ``ModelSpec``.
        overrides: dotted paths, e.g. ``{"refiner.detector": "cached"}``.
        weights: ``"pretrained"`` loads what the parts' options name (this may download from the hub), and then what
            ships with the preset of that name, if anything does (``Preset.weights``); ``"random"`` and ``"meta"``
            download nothing, and ``"meta"`` allocates nothing; anything else is a folder written by
            ``save_pretrained``.
        base: a model folder with the frozen parts, where ``weights`` is a folder that leaves them out.
        downloads: whether parts may be fetched from the hub; unless given, not for a folder that
            ``save_pretrained`` wrote: a hub id in it was not named by you.
        device: where the parameters live; the CPU unless given. Not with ``weights="meta"``.
        dtype: floating-point type of the parameters, or its name (``"bfloat16"``, ``"bf16"``); ``torch.float32`` unless
            given.
        registry: where parts are looked up; everything installed unless given.
        without_experts: leave the refiner's experts out, to train on what they saw before (``lyrics refine
            --features``).

    Raises:
        SpecError: the spec, an override or an option is not valid, a name is unknown, or parts do not fit
            (``WiringError``).
        MissingRequirementError: a part needs a package that is not installed.
        PluginError: a part is installed but broken.
        WeightsError: weights cannot be found, read or matched.
    """
    resolved = resolve(spec, overrides, registry=registry)
    return build_resolved(
        LyricsModel,
        resolved,
        weights=weights,
        base=base,
        downloads=downloads,
        device=device,
        dtype=dtype,
        without_experts=without_experts,
    )


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
        name: a folder that ``save_pretrained`` wrote, the folder of a training run or one of its checkpoints, a
            preset, a spec file, or a hub id (``owner/name``), looked for in this order. Folder and hub id may also be
            of a public model that a plugin reads (``lyrics.PublicModel``): LLaVA-1.5, BLIP-2, InstructBLIP.
        overrides: of the specification. Of a saved model or a run, only the parts that they change are built anew
            (``lyrics.core.changes``).
        weights: ``pretrained`` or ``random``, for a preset or a spec file.
        downloads, device, dtype: as for ``lyrics.build_model``.

    Raises ``SpecError`` or ``WeightsError`` naming what is wrong.
    """
    presets = {preset.name for preset, _ in default_registry().presets}
    presets |= {f"{source.distribution}/{preset.name}" for preset, source in default_registry().presets}
    is_hub_id = name.count("/") == 1 and name not in presets and not is_spec_file(name)
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
        return load_saved(LyricsModel, name, overrides=overrides, downloads=downloads, device=device, dtype=dtype)
    asked = downloads is not False  # the user named the hub id
    public = find_public(name, downloads=asked)
    if public is not None:
        return load_public(LyricsModel, public, overrides=overrides, downloads=asked, device=device, dtype=dtype)
    return LyricsModel.from_pretrained(
        name, overrides=overrides, downloads=bool(downloads), device=device, dtype=dtype
    ).eval()


def _is_path(name: str) -> bool:
    """Return whether a name that is neither a preset's nor a hub id can only be meant as that of a folder."""
    return not is_spec_file(name) and (name.count("/") > 1 or name.startswith((".", "/", "~")))
