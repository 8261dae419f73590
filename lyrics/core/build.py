"""``build_model``: resolve -> wire -> construct -> load. Each stage has its own error.

Torch is imported when something is constructed, not before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lyrics.core.contracts import BuildContext, Weights
from lyrics.core.errors import LyricsError, MissingRequirementError, PluginError, SpecError, WeightsError, did_you_mean
from lyrics.core.registry import Registry, describe
from lyrics.core.resolve import (
    LOCAL_SOURCES,
    Part,
    Resolved,
    SpecLike,
    Wiring,
    check_query_transformer,
    declared_dim,
    resolve,
    wire,
)
from lyrics.core.types import Preprocessing

if TYPE_CHECKING:
    import torch

    from lyrics.core.model import LyricsModel
    from lyrics.core.refiner import VisualRefiner

_WORDS = ("pretrained", "random", "meta")
# What a built part must declare, per kind, and of which type.
_DECLARES: Mapping[str, Mapping[str, type]] = {
    "image-encoder": {"feature_dim": int, "preprocessing": Preprocessing},
    "tagger": {"preprocessing": Preprocessing},
    "detector": {"feature_dim": int, "preprocessing": Preprocessing},
    "segmenter": {"feature_dim": int, "preprocessing": Preprocessing},
    "query-transformer": {"hidden_size": int, "num_queries": int, "max_positions": int, "segments": tuple},
    "language-model": {"hidden_size": int, "max_positions": int, "adaptation": str, "chat_template": str},
}


def build_model(
    spec: SpecLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] = "pretrained",
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    registry: Registry | None = None,
) -> LyricsModel:
    """Compose a model from its specification.

    Args:
        spec: a preset's name, a path to a YAML or JSON file, a mapping, or a ``ModelSpec``.
        overrides: dotted paths, e.g. ``{"refiner.detector": "cached"}``.
        weights: ``"pretrained"`` loads what the parts' options name (this may download from the hub), and then what ships with the preset
            of that name, if anything does (``Preset.weights``); ``"random"`` and ``"meta"`` download nothing, and ``"meta"`` allocates
            nothing; anything else is a folder written by ``save_pretrained``.
        base: a model folder with the frozen parts, where ``weights`` is a folder that leaves them out.
        device: where the parameters live; the CPU unless given. Not with ``weights="meta"``.
        dtype: floating-point type of the parameters; ``torch.float32`` unless given.
        registry: where parts are looked up; everything installed unless given.

    Raises:
        SpecError: the spec, an override or an option is not valid, a name is unknown, or parts do not fit (``WiringError``).
        MissingRequirementError: a part needs a package that is not installed.
        PluginError: a part is installed but broken.
        WeightsError: weights cannot be found, read or matched.
    """
    resolved = resolve(spec, overrides, registry=registry)
    return build_resolved(resolved, weights=weights, base=base, device=device, dtype=dtype)


def build_resolved(
    resolved: Resolved,
    *,
    weights: str | os.PathLike[str] = "pretrained",
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LyricsModel:
    """``build_model`` from the second stage on, for a specification that is resolved already."""
    wiring = wire(resolved)
    how, folder = _materialisation(weights, device)
    for part in resolved.parts.values():
        check_requirements(part)
    trained = how
    if folder is not None:
        from lyrics.core.model_folder import holds_all_tensors, load_folder

        if base is None and not holds_all_tensors(folder):
            # The folder holds what was trained; the rest comes from where the specification says.
            how = "pretrained"
    elif base is not None:
        raise WeightsError(
            f"base={os.fspath(base)!r}: completes a folder of trained parts; give that folder as weights."
        )
    model = _construct(resolved, wiring, how, trained, device=device, dtype=dtype)
    if folder is not None:
        load_folder(model, folder, base=base)
    elif how == "pretrained" and resolved.preset_weights is not None:
        from lyrics.core.model_folder import load_trained_parts
        from lyrics.core.pretrained import locate_checkpoint

        load_trained_parts(model, locate_checkpoint(resolved.preset_weights))
    return model


def _materialisation(weights: str | os.PathLike[str], device: object) -> tuple[Weights, str | None]:
    text = os.fspath(weights)
    if text == "meta" and device is not None:
        raise ValueError(f"weights='meta' allocates nothing, so device={device!r} cannot be met; leave device out")
    if text in _WORDS:
        return text, None  # type: ignore[return-value]
    if not os.path.isdir(text):
        hint = did_you_mean(text, _WORDS)
        raise WeightsError(
            f"weights={text!r} is neither 'pretrained', 'random' nor 'meta', nor a folder that exists.{hint}"
        )
    return "random", text


def check_requirements(part: Part) -> None:
    """Raises ``MissingRequirementError`` with the command that installs what the part needs."""
    unmet = part.entry.unmet()
    if unmet:
        component = part.entry.component
        install = component.install or "pip install " + " ".join(f"'{text}'" for text in component.requires)
        raise MissingRequirementError(
            f"{part.path}: {part.label} of {part.entry.source} needs {', '.join(unmet)}. Run: {install}"
        )


def _construct(
    resolved: Resolved,
    wiring: Wiring,
    how: Weights,
    trained: Weights,
    *,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> LyricsModel:
    """``how`` is for the image encoder, the refiner and the language model, ``trained`` for the parts that stage 1 trains."""
    from torch import nn

    from lyrics.core.model import LyricsModel

    parts = resolved.parts
    taken = next((name for name in resolved.spec.objectives if hasattr(nn.ModuleDict(), name)), None)
    if taken is not None:
        raise SpecError(
            f"objectives.{taken}: torch keeps the name {taken!r} for itself; write objectives.{taken}-loss."
        )
    with _placed("meta" if how == "meta" else device, dtype):
        context = BuildContext(how)
        encoder = build_part(parts["image_encoder"], context)
        experts = _build_experts(parts, context)
        local_dims = {source: experts[source].feature_dim for source in LOCAL_SOURCES if experts[source] is not None}
        # Now the widths are known for certain, also those that no option declared.
        check_query_transformer(parts, Wiring(encoder.feature_dim, local_dims), warn=False)
        context = BuildContext(trained, image_dim=encoder.feature_dim, local_dims=local_dims)
        query_transformer = build_part(parts["query_transformer"], context)
        context = replace(context, query_dim=query_transformer.hidden_size, query_segments=query_transformer.segments)
        objectives = {
            path.removeprefix("objectives."): build_part(part, context)
            for path, part in parts.items()
            if path.startswith("objectives.")
        }
        language_model = build_part(parts["language_model"], replace(context, weights=how))
        return LyricsModel(
            encoder=encoder,
            refiner=None if resolved.spec.refiner is None else _assemble(resolved, experts),
            query_transformer=query_transformer,
            language_model=language_model,
            objectives=objectives,
            spec=resolved.spec,
        )


def build_refiner(
    spec: SpecLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    registry: Registry | None = None,
) -> VisualRefiner:
    """Only the visual refiner of a model: tags, boxes and masks, without the parts that read them.

    Arguments and errors as ``build_model``, but ``weights`` is no folder.
    """
    resolved = resolve(spec, overrides, registry=registry)
    wire(resolved)
    if resolved.spec.refiner is None:
        raise SpecError(
            "refiner: is null, so there is nothing to refine with; set refiner.detector, or take another spec."
        )
    how, folder = _materialisation(weights, device)
    if folder is not None:
        raise WeightsError(f"weights={weights!r}: a refiner alone is built with 'pretrained', 'random' or 'meta'.")
    parts = {path: part for path, part in resolved.parts.items() if path.startswith("refiner.")}
    for part in parts.values():
        check_requirements(part)
    with _placed("meta" if how == "meta" else device, dtype):
        return _assemble(resolved, _build_experts(parts, BuildContext(how)))


def _build_experts(parts: Mapping[str, Part], context: BuildContext) -> dict[str, Any]:
    return {
        name: build_part(parts[f"refiner.{name}"], context) if f"refiner.{name}" in parts else None
        for name in ("tagger", "detector", "segmenter")
    }


def _assemble(resolved: Resolved, experts: Mapping[str, Any]) -> VisualRefiner:
    from lyrics.core.refiner import VisualRefiner

    assert resolved.spec.refiner is not None
    names = {
        name: f"{part.label} of {part.entry.source}"
        for name in experts
        if (part := resolved.parts.get(f"refiner.{name}")) is not None
    }
    return VisualRefiner(**experts, max_objects=resolved.spec.refiner.max_objects, names=names)


@contextlib.contextmanager
def _placed(device: str | torch.device | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Parameters made inside are of this type and on this device from the start, so that a large model is never held twice."""
    import torch

    before = torch.get_default_dtype()
    if dtype is not None:
        if not dtype.is_floating_point:
            raise ValueError(
                f"dtype={dtype} is not a floating-point type; give torch.float32, torch.bfloat16 or torch.float16"
            )
        torch.set_default_dtype(dtype)
    try:
        with torch.device(device if device is not None else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def build_part(part: Part, context: BuildContext) -> Any:
    """Import and build one part, and hold it to what its kind declares.

    Raises ``PluginError`` naming distribution, version, entry point and cause when the part is installed but broken.
    """
    source = part.entry.source
    build = _import_build(part)
    try:
        built = build(part.options, context)
    except (LyricsError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a stranger's code may raise anything, SystemExit included
        raise PluginError(
            f"{part.path}: {part.label} of {source} failed while it was built: {describe(error)}"
        ) from error
    for name, kind in _DECLARES.get(part.entry.component.kind, {}).items():
        value: Any = getattr(built, name, None)
        if not _is_proper(value, kind):
            raise PluginError(
                f"{part.path}: {part.label} of {source} does not keep its contract: {name} must be "
                f"{'a positive int' if kind is int else 'a ' + kind.__name__}, not {value!r}."
            )
    declared = declared_dim(part)
    if declared is not None and declared != getattr(built, "feature_dim", declared):
        raise PluginError(
            f"{part.path}: {part.label} of {source} contradicts itself: its options declare feature_dim {declared}, "
            f"the built part has {built.feature_dim}."
        )
    return built


def _is_proper(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (isinstance(value, int) and value <= 0)


def _import_build(part: Part) -> Any:
    component, source = part.entry.component, part.entry.source
    module_name, _, attribute = component.build.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's module may raise anything, SystemExit included
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
        raise PluginError(
            f"{part.path}: {part.label} of {source} is installed but failed to import with {versions}: {describe(error)}"
        ) from error
    return found
