"""Building: wire -> construct -> load. Each stage has its own error.

Torch is imported when something is constructed, not before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lyrics.core import contracts
from lyrics.core.changes import Changes, part_of, warn_of_changes
from lyrics.core.contracts import BuildContext, Weights
from lyrics.core.dtypes import torch_dtype
from lyrics.core.errors import LyricsError, MissingRequirementError, PluginError, SpecError, WeightsError, did_you_mean
from lyrics.core.registry.registry import DISTRIBUTION, Registry, describe
from lyrics.core.resolve import (
    LOCAL_SOURCES,
    Part,
    RefinerLike,
    Resolved,
    ResolvedRefiner,
    Wiring,
    check_objectives,
    check_query_transformer,
    declared_dim,
    declared_segments,
    resolve_refiner,
    wire,
)
from lyrics.core.runs.folder import find_run
from lyrics.core.types import Preprocessing

if TYPE_CHECKING:
    import torch

    from lyrics.core.composed import ComposedModel
    from lyrics.core.refining.refiner import VisualRefiner
    from lyrics.core.weights.tensors import TensorHeader

M = TypeVar("M", bound="ComposedModel")

_WORDS = ("pretrained", "random", "meta")
#: The parts of a refiner, in the order in which an image goes through them.
EXPERTS = ("tagger", "detector", "segmenter")
# Types of what a built part declares; an int is positive.
_TYPES: Mapping[str, type] = {
    "feature_dim": int,
    "preprocessing": Preprocessing,
    "hidden_size": int,
    "num_queries": int,
    "max_positions": int,
    "segments": tuple,
    "adaptation": str,
    "chat_template": str,
}


def build_resolved(
    model_class: type[M],
    resolved: Resolved,
    *,
    weights: str | os.PathLike[str] = "pretrained",
    base: str | os.PathLike[str] | None = None,
    downloads: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    changes: Changes | None = None,
    without_experts: bool = False,
) -> M:
    """Compose a model of a specification that is resolved: wire, construct, load (see ``lyrics.build_model``).

    ``model_class`` is what the parts become.

    ``changes`` are those that overrides made to the specification of the folder ``weights``: the parts that they
    replace are built from their own weights, and all others take from the folder what fits them
    (``lyrics.core.changes``).

    ``without_experts`` leaves the refiner's experts out, for training on what they saw before: nothing of theirs is
    loaded. From a folder they are built, and dropped.
    """
    wiring = wire(resolved)
    how, folder = _materialization(weights, device)
    for part in resolved.parts.values():
        check_requirements(part)
    allowed = folder is None if downloads is None else downloads
    sources = dict.fromkeys(resolved.parts, _PartSource(BuildContext(how, downloads=allowed)))
    if folder is not None:
        from lyrics.core.weights.model_folder import load_folder

        sources = _sources_in_folder(resolved, folder, base, allowed, changes)
    elif base is not None:
        raise WeightsError(
            f"base={os.fspath(base)!r}: completes a folder of trained parts; give that folder as weights."
        )
    place = "meta" if how == "meta" else device
    blind = without_experts and folder is None
    model = _construct(model_class, resolved, wiring, sources, device=place, dtype=dtype, without_experts=blind)
    if folder is not None:
        load_folder(model, folder, base=base, changes=changes)
    elif how == "pretrained" and resolved.preset_weights is not None:
        from lyrics.core.weights.model_folder import load_trained_parts
        from lyrics.core.weights.pretrained import locate_checkpoint

        load_trained_parts(model, locate_checkpoint(resolved.preset_weights))
    if without_experts:
        model.drop_experts()
    return model.eval()


def attach_experts(
    model: ComposedModel, resolved: Resolved, *, weights: Weights = "pretrained", downloads: bool = True
) -> None:
    """Give a model that was built without them the experts of its refiner, each with its own weights, on the CPU."""
    experts = {
        name: build_part(resolved.parts[f"refiner.{name}"], BuildContext(weights, downloads=downloads))
        if f"refiner.{name}" in resolved.parts
        else None
        for name in EXPERTS
    }
    model.set_refiner(_assemble(resolved, experts))


@dataclass(frozen=True)
class _PartSource:
    """Where a part comes from: the context it is built in, and the tensors that will fill it.

    ``folder`` is that model folder, for messages; ``tensors`` are the headers of those that belong to the part.
    ``there`` is the part itself, where another model has it.
    """

    context: BuildContext
    folder: str = ""
    tensors: Mapping[str, TensorHeader] | None = None
    there: Any = None


def _sources_in_folder(
    resolved: Resolved,
    folder: str,
    base: str | os.PathLike[str] | None,
    downloads: bool,
    changes: Changes | None,
) -> dict[str, _PartSource]:
    """Return each part's source where a model folder is loaded, and ``base`` perhaps holds the frozen parts of it."""
    from lyrics.core.weights.model_folder import holds_all_tensors, is_frozen_part, part_files, part_prefix
    from lyrics.core.weights.tensors import tensor_headers

    whole = folder if holds_all_tensors(folder) else (None if base is None else os.fspath(base))
    found: dict[str, _PartSource] = {}
    for path in resolved.parts:
        if changes is not None and path in changes.replaced:  # the user named it
            found[path] = _PartSource(BuildContext("pretrained"))
            continue
        holder = whole if is_frozen_part(path, resolved.spec) else folder
        if changes is not None and path in changes.quantized:
            holder = None
        if holder is None:  # the folder holds what was trained; this part comes from where the specification says
            found[path] = _PartSource(BuildContext("pretrained", downloads=downloads))
            continue
        prefix = part_prefix(path)
        files = part_files(holder).get(path)
        if changes is not None and (path in changes.altered or not is_frozen_part(path, resolved.spec)):
            # It takes what fits: its options, or the widths of what it reads, are no longer those of the folder.
            found[path] = _PartSource(BuildContext("random", files=files, downloads=downloads))
            continue
        tensors = {name: header for name, header in tensor_headers(holder).items() if name.startswith(prefix)}
        found[path] = _PartSource(BuildContext("random", files=files, downloads=downloads), holder, tensors)
    return found


def build_changed(base: M, resolved: Resolved, changes: Changes, source: object) -> M:
    """Return a model of the specification ``resolved``, which is that of ``base`` with some parts changed, on the CPU.

    The parts that no stage trains in full (experts, language model) are those of ``base`` itself where they are
    untouched. What is built anew and not replaced takes each tensor of ``base`` that fits. Warns of what stays random;
    ``source`` says in messages where ``base`` came from.
    """
    import torch

    from lyrics.core.weights.model_folder import is_frozen, readers
    from lyrics.core.weights.tensors import stored_tensors

    wiring = wire(resolved)
    for path, wanted in resolved.parts.items():
        if path in changes.all:
            check_requirements(wanted)
    own: dict[str, contracts.Expert | contracts.LanguageModel] = {"language_model": base.language_model}
    own |= base.experts_by_path
    given = {path: module for path, module in own.items() if path not in changes.all}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for path in changes.altered:
            part = own.get(path)
            if isinstance(part, contracts.WithFiles):
                files[path] = Path(folder) / path
                files[path].mkdir()
                part.save_files(files[path])
        sources = {
            path: _PartSource(
                BuildContext("pretrained" if path in changes.from_own_weights else "random", files=files.get(path)),
                there=given.get(path),
            )
            for path in resolved.parts
        }
        model = _construct(type(base), resolved, wiring, sources, device=None, dtype=None)
        _take_files(model, files)
    before = readers(base)
    for path, reader in readers(model).items():
        if path not in changes.replaced and path in before:
            reader.tokenizer = before[path].tokenizer
    there = base.state_dict()
    left = []
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            owner = part_of(name)
            if owner in given or (owner in changes.quantized and is_frozen(model, name)):
                continue
            if owner not in changes.replaced and name in there and there[name].shape == tensor.shape:
                tensor.copy_(there[name])
            else:
                left.append(name)
    warn_of_changes(changes, resolved.spec, left, source)
    return model


def _take_files(model: ComposedModel, files: Mapping[str, Path]) -> None:
    """Give parts the files of their own, by their spec paths."""
    for path, place in files.items():
        part = model.get_submodule("encoder" if path == "image_encoder" else path)
        part.load_files(place)  # type: ignore[operator]


def _materialization(weights: str | os.PathLike[str], device: object) -> tuple[Weights, str | None]:
    if not isinstance(weights, str | os.PathLike):
        raise WeightsError(
            f"weights={weights!r}: is 'pretrained', 'random', 'meta' or a folder; leave it out for 'pretrained'."
        )
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
    if find_run(text) is not None:
        raise WeightsError(
            f"weights={text!r} is the folder of a run, not a model folder. `lyrics export {text} DEST` makes one of "
            "it, LyricsModel.from_pretrained reads it as it is, and training begins with it by model.start_from."
        )
    return "random", text


def check_requirements(part: Part) -> None:
    """Raise ``MissingRequirementError`` with the command that installs what the part needs."""
    unmet = part.entry.unmet()
    if unmet:
        component = part.entry.component
        install = component.install or "pip install " + " ".join(f"'{text}'" for text in component.requires)
        raise MissingRequirementError(
            f"{part.path}: {part.label} of {part.entry.source} needs {', '.join(unmet)}. Run: {install}"
        )


def _construct(
    model_class: type[M],
    resolved: Resolved,
    wiring: Wiring,
    sources: Mapping[str, _PartSource],
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    without_experts: bool = False,
) -> M:
    import torch
    from torch import nn

    parts = resolved.parts
    taken = next((name for name in resolved.spec.objectives if hasattr(nn.ModuleDict(), name)), None)
    if taken is not None:
        raise SpecError(
            f"objectives.{taken}: torch keeps the name {taken!r} for itself; write objectives.{taken}-loss."
        )

    def built(path: str, **known: Any) -> Any:
        return _build_from(parts[path], sources[path], **known)

    with _placed(device, dtype):
        encoder = built("image_encoder")
        if without_experts:
            # On the meta device, for their widths; nothing is loaded, and no random number is drawn.
            context = BuildContext("meta")
            with torch.device("meta"):
                experts = {
                    name: build_part(parts[f"refiner.{name}"], context) if f"refiner.{name}" in parts else None
                    for name in EXPERTS
                }
        else:
            experts = {name: built(f"refiner.{name}") if f"refiner.{name}" in parts else None for name in EXPERTS}
        local_dims = {source: one.feature_dim for source in LOCAL_SOURCES if (one := experts[source]) is not None}
        # Now the widths are known for certain, also those that no option declared.
        check_query_transformer(parts, Wiring(encoder.feature_dim, local_dims), warn=False)
        image_tokens = encoder.num_tokens if isinstance(encoder, contracts.WithNumTokens) else 0
        widths: dict[str, Any] = {
            "image_dim": encoder.feature_dim,
            "image_tokens": image_tokens,
            "local_dims": local_dims,
        }
        query_transformer = built("query_transformer", **widths)
        check_objectives(parts, query_transformer.segments)
        widths |= {"query_dim": query_transformer.hidden_size, "query_segments": query_transformer.segments}
        objectives = {
            path.removeprefix("objectives."): built(path, **widths) for path in parts if path.startswith("objectives.")
        }
        refiner = None if resolved.spec.refiner is None else _assemble(resolved, experts)
        return model_class(
            encoder=encoder,
            refiner=refiner.without_experts() if refiner is not None and without_experts else refiner,
            query_transformer=query_transformer,
            language_model=built("language_model", **widths),
            objectives=objectives,
            spec=resolved.spec,
        )


def _build_from(part: Part, source: _PartSource, **known: Any) -> Any:
    """A part, of which the shapes are compared with the tensors that will fill it before any memory is taken for it."""
    import torch

    if source.there is not None:
        return source.there
    context = replace(source.context, **known)
    if source.tensors is not None:
        from lyrics.core.weights.model_folder import part_prefix
        from lyrics.core.weights.tensors import bounded, check_shapes

        with torch.device("meta"), bounded(source.tensors.values(), f"{source.folder}: {part.path}"):
            outline = build_part(part, replace(context, weights="meta"))
        if isinstance(outline, torch.nn.Module):
            check_shapes(outline, part_prefix(part.path), source.tensors, source.folder)
    return build_part(part, context)


def build_refiner(
    spec: RefinerLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    weights: Weights = "pretrained",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    registry: Registry | None = None,
) -> VisualRefiner:
    """Build a visual refiner: tags, boxes and masks, without the parts of a model that read them.

    ``spec`` is that of a model, of which only the refiner is looked at, or that of a refiner alone: a preset such as
    ``tiny-refiner``, a file or mapping whose only key is ``refiner``, or a ``RefinerSpec``. Other arguments and errors
    are those of ``build_model``, but ``weights`` is no folder.
    """
    return build_resolved_refiner(
        resolve_refiner(spec, overrides, registry=registry), weights=weights, device=device, dtype=dtype
    )


def build_resolved_refiner(
    resolved: ResolvedRefiner,
    *,
    weights: Weights = "pretrained",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> VisualRefiner:
    """Build a refiner from a specification that is resolved already."""
    how, folder = _materialization(weights, device)
    if folder is not None:
        raise WeightsError(f"weights={weights!r}: a refiner alone is built with 'pretrained', 'random' or 'meta'.")
    for part in resolved.parts.values():
        check_requirements(part)
    context = BuildContext(how)
    with _placed("meta" if how == "meta" else device, dtype):
        experts = {
            name: build_part(resolved.parts[f"refiner.{name}"], context)
            if f"refiner.{name}" in resolved.parts
            else None
            for name in EXPERTS
        }
        return _assemble(resolved, experts)


def _assemble(resolved: Resolved | ResolvedRefiner, experts: Mapping[str, Any]) -> VisualRefiner:
    from lyrics.core.refining.refiner import VisualRefiner

    assert resolved.spec.refiner is not None
    parts = {name: part for name in experts if (part := resolved.parts.get(f"refiner.{name}")) is not None}
    made_of = {
        "lyrics": importlib.metadata.version(DISTRIBUTION),
        "versions": {name: str(part.entry.source) for name, part in parts.items()},
        "refiner": resolved.spec.refiner.model_dump(mode="json"),
    }
    names = {name: f"{part.label} of {part.entry.source}" for name, part in parts.items()}
    return VisualRefiner(**experts, max_objects=resolved.spec.refiner.max_objects, names=names, made_of=made_of)


@contextlib.contextmanager
def _placed(device: str | torch.device | None, dtype: str | torch.dtype | None) -> Iterator[None]:
    """Make parameters of this type and on this device from the start, so that a large model is never held twice."""
    import torch

    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(torch_dtype(dtype))
    try:
        with _usable(device if device is not None else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def _usable(device: str | torch.device) -> torch.device:
    """Raises ``SpecError`` for a device that does not exist or is not here."""
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SpecError(f"device={device!r}: cannot be used here ({reason}); 'lyrics doctor' says what is.") from error
    return found


def build_part(part: Part, context: BuildContext) -> Any:
    """Import and build one part, and hold it to what its kind declares.

    Raises ``PluginError`` naming distribution, version, entry point and cause when the part is installed but broken.
    """
    source = part.entry.source
    build = _import_build(part)
    if part.registry is not None:
        context = replace(context, registry=part.registry)
    try:
        built = build(part.options, context)
    except (LyricsError, KeyboardInterrupt):
        raise
    except BaseException as error:  # third-party code may raise anything, SystemExit included
        raise PluginError(
            f"{part.path}: {part.label} of {source} failed while it was built: {describe(error)}"
        ) from error
    fault = _broken_promise(part, built)
    if fault is not None:
        raise PluginError(
            f"{part.path}: {part.label} of {source} does not keep its contract: {fault} See lyrics.core.contracts."
        )
    return built


def _broken_promise(part: Part, built: Any) -> str | None:
    """What is wrong with a built part, judged by what its kind must have and what its own record and options say.

    None if nothing is.
    """
    from torch import nn

    component = part.entry.component
    if component.kind not in ("dataset", "benchmark") and not isinstance(built, nn.Module):
        return f"it is a {type(built).__name__}, not a torch.nn.Module."
    required = contracts.members(contracts.PROTOCOLS[component.kind])
    if component.kind == "query-transformer" and {"S", "C"} & set(getattr(built, "segments", ())):
        required += contracts.members(contracts.ReadsText)
    for name in sorted(required, key=lambda name: name not in _TYPES):
        value: Any = getattr(built, name, None)
        kind = _TYPES.get(name)
        if kind is not None and not (isinstance(value, kind) and not (isinstance(value, int) and value <= 0)):
            return f"{name} must be {'a positive int' if kind is int else 'a ' + kind.__name__}, not {value!r}."
        if value is None:
            return f"it has no {name}."
    if component.kind == "query-transformer" and ("V" not in built.segments or not set(built.segments) <= set("VGSC")):
        return f"segments must be V and any of G, S, C, not {built.segments!r}."
    for name, declared in (("feature_dim", declared_dim(part)), ("segments", declared_segments(part, "segments"))):
        if declared is not None and declared != getattr(built, name, declared):
            return f"its options declare {name} {declared!r}, the built part has {getattr(built, name)!r}."
    compares = "compares_across_batch" in component.capabilities
    if isinstance(built, contracts.ChoosesNegatives) and not compares:
        return "it has similarity and does not declare the capability compares_across_batch."
    return None


def _import_build(part: Part) -> Any:
    component, source = part.entry.component, part.entry.source
    module_name, _, attribute = component.build.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a third-party module may raise anything, SystemExit included
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
        raise PluginError(
            f"{part.path}: {part.label} of {source} is installed but failed to import with {versions}: "
            f"{describe(error)}"
        ) from error
    return found
