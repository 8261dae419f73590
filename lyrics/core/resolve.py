"""From a specification to parts that exist and fit: look every name up, validate every option, compare every width.

Needs no torch and takes well under a second, so a spec can be checked without building it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from lyrics.core.clean_text import one_line
from lyrics.core.errors import LyricsError, PluginError, SpecError, WiringError, did_you_mean
from lyrics.core.registry.component import Capability, Options
from lyrics.core.registry.registry import Entry, Registry, default_registry, describe, vocabulary_options
from lyrics.core.renaming import current_names
from lyrics.core.spec import (
    ModelSpec,
    RefinerOnlySpec,
    RefinerSpec,
    Slot,
    Specification,
    load_any,
    validate,
    validate_any,
    whole_model,
)

LOCAL_SOURCES = ("detector", "segmenter")
#: What a query transformer's streams may consist of, by the letter of the segment.
SEGMENTS = {"V": "visual queries", "G": "grounding queries", "S": "spatial text (S)", "C": "captions (C)"}

S = TypeVar("S", bound=Specification)
SpecLike = str | os.PathLike[str] | Mapping[str, Any] | ModelSpec
#: What names a refiner: that of a model, or one alone.
RefinerLike = SpecLike | RefinerOnlySpec | RefinerSpec


@dataclass(frozen=True)
class Part:
    """A slot whose component was found and whose options are valid.

    ``registry`` is where it was looked up; None: everything installed.
    """

    path: str
    entry: Entry
    options: Options
    registry: Registry | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """``detector 'grounding-dino'``, for messages."""
        return f"{self.entry.component.kind} {self.entry.component.name!r}"


@dataclass(frozen=True)
class Resolved:
    """A specification with every default filled in, and the parts behind it.

    ``preset_weights`` is what the preset that it came from says of its trained weights (``Preset.weights``).
    """

    spec: ModelSpec
    parts: Mapping[str, Part]
    preset_weights: str | None = None


@dataclass(frozen=True)
class ResolvedRefiner:
    """As ``Resolved``, of a refiner alone."""

    spec: RefinerOnlySpec
    parts: Mapping[str, Part]


def read_spec(spec: SpecLike, registry: Registry | None = None) -> ModelSpec:
    """Return a ``ModelSpec`` from a preset's name, a path, a mapping, or a ``ModelSpec``.

    Raises ``SpecError``, also for the spec of a refiner alone, or ``UnknownNameError`` for a preset that does not
    exist.
    """
    found = read_any_spec(spec, registry)
    return whole_model(found, os.fspath(spec) if isinstance(spec, str | os.PathLike) else "the spec")


def read_any_spec(spec: RefinerLike, registry: Registry | None = None) -> ModelSpec | RefinerOnlySpec:
    """As ``read_spec``, also of a refiner alone.

    That is a preset of one, a file or mapping whose only key is ``refiner``, or a ``RefinerSpec``.
    """
    if isinstance(spec, ModelSpec | RefinerOnlySpec):
        return spec
    if isinstance(spec, RefinerSpec):
        return RefinerOnlySpec(refiner=spec)
    if isinstance(spec, Mapping):
        return validate_any(spec)
    if not isinstance(spec, str | os.PathLike):
        raise SpecError(f"a spec is a preset's name, a path, a mapping or a ModelSpec, not a {type(spec).__name__}.")
    text = os.fspath(spec)
    if is_spec_file(text):
        return load_any(text)
    # One separator may also be a preset's qualified name, distribution/preset.
    if isinstance(spec, os.PathLike) or text.count(os.sep) > 1 or (os.sep in text and Path(text).exists()):
        raise SpecError(f"{text}: a spec file ends in .yaml, .yml or .json.")
    return (registry or default_registry()).preset(text)


def is_spec_file(text: str) -> bool:
    """Return whether a name can only be meant as that of a file with a specification."""
    return Path(text).suffix in {".yaml", ".yml", ".json"}


def resolve(
    spec: SpecLike, overrides: Mapping[str, Any] | None = None, *, registry: Registry | None = None
) -> Resolved:
    """Find every part the spec names and validate its options. All faults are reported together."""
    registry = registry or default_registry()
    wanted = read_spec(spec, registry)
    if overrides:
        wanted = overridden(wanted, overrides, registry)
    parts = _find_parts(wanted, registry, overrides)
    named = isinstance(spec, str) and not is_spec_file(spec)
    trained = registry.preset_weights(spec) if named else None  # type: ignore[arg-type]
    return Resolved(wanted.with_overrides(_filled_in(parts)), parts, trained)


def resolve_refiner(
    spec: RefinerLike, overrides: Mapping[str, Any] | None = None, *, registry: Registry | None = None
) -> ResolvedRefiner:
    """Resolve and wire the refiner of a model, or one alone. The model's other parts are not looked at.

    Raises ``SpecError`` where there is no refiner, and as ``resolve`` and ``wire``.
    """
    registry = registry or default_registry()
    wanted = read_any_spec(spec, registry)
    if overrides:
        wanted = overridden(wanted, overrides, registry)
    if wanted.refiner is None:
        raise SpecError(
            "refiner: is null, so there is nothing to refine with; set refiner.detector, or take another spec."
        )
    written = {path: by for path, by in wanted.distributions.items() if path.startswith("refiner.")}
    alone = RefinerOnlySpec(refiner=wanted.refiner, distributions=written)
    parts = _find_parts(alone, registry, overrides)
    _check_refiner(parts)
    return ResolvedRefiner(alone.with_overrides(_filled_in(parts)), parts)


def overridden(spec: S, overrides: Mapping[str, Any], registry: Registry | None = None) -> S:
    """Return ``spec.with_overrides(overrides)``, where components' options may have their former names in both.

    Raises ``SpecError``.
    """
    if not isinstance(overrides, Mapping):
        return spec.with_overrides(overrides)  # which says what they must be
    registry = registry or default_registry()
    for path, kind, slot in spec.slots():
        options = _current_options(registry, kind, slot.use, slot.options, f"{path}.options.")
        if options != slot.options:
            spec = spec.with_overrides({f"{path}.options": options})
        use = overrides.get(f"{path}.use", overrides.get(path, slot.use))
        overrides = _current_options(registry, kind, use, overrides, prefix=f"{path}.options.")
    return spec.with_overrides(overrides)


def _current_options(
    registry: Registry, kind: str, use: object, given: Mapping[str, Any], where: str = "", prefix: str = ""
) -> dict[str, Any]:
    """``given`` with the options of a component by their current names.

    ``prefix`` stands before them in ``given`` itself.
    """
    try:
        former_names = registry.component(kind, str(use)).component.options.FORMER_NAMES
    except LyricsError:  # resolving says what is wrong
        return dict(given)
    former_names = {prefix + former: prefix + name for former, name in former_names.items()}
    return current_names(given, former_names, where=where, error=SpecError)


def _find_parts(
    wanted: ModelSpec | RefinerOnlySpec, registry: Registry, overrides: Mapping[str, Any] | None
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    faults: list[SpecError | PluginError] = []
    for path, kind, slot in wanted.slots():
        try:
            entry = registry.component(kind, slot.use)
            parts[path] = Part(path, entry, _options(path, entry, slot, registry), registry)
        except (SpecError, PluginError) as error:
            faults.append(type(error)(_at(path, str(error))))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise SpecError("\n".join(str(fault) for fault in faults))
    # A part that the caller has just chosen is not held against the one that it replaces.
    chosen = {path.removesuffix(".use") for path in overrides or ()}
    _warn_of_other_versions(wanted, {path: part for path, part in parts.items() if path not in chosen})
    return parts


def _filled_in(parts: Mapping[str, Part]) -> dict[str, Any]:
    filled: dict[str, Any] = {f"{path}.options": part.options.model_dump(mode="json") for path, part in parts.items()}
    return filled | {"distributions": {path: _version_of(part) for path, part in parts.items()}}


def _at(path: str, message: str) -> str:
    return "\n".join(line if line.startswith(path) else f"{path}: {line}" for line in message.splitlines())


def _options(path: str, entry: Entry, slot: Slot, registry: Registry) -> Options:
    where = f"{path}.options"
    try:
        options = validate(slot.options, entry.component.options, where=where)
        options.model_dump(mode="json")  # the resolved spec must be plain data
    except SpecError:
        raise
    except Exception as error:  # a third-party validator may raise anything
        raise PluginError(f"{where}: the options of {entry.source} failed: {describe(error)}") from error
    for name in vocabulary_options(entry.component.options):
        if getattr(options, name) is None:
            continue
        try:
            registry.check_vocabulary(getattr(options, name))
        except (SpecError, PluginError) as error:
            raise type(error)(f"{where}.{name}: {error}") from error
    return options


def _version_of(part: Part) -> str:
    return f"{part.entry.source.distribution} {part.entry.source.version}"


def _warn_of_other_versions(spec: ModelSpec | RefinerOnlySpec, parts: Mapping[str, Part]) -> None:
    """Warn once of all parts that come from another distribution or version than was written down.

    Versions differ where the major or minor number does.
    """
    changed: dict[tuple[str, str], list[str]] = {}
    for path, written in spec.distributions.items():
        if path in parts and _series(found := _version_of(parts[path])) != _series(written):
            changed.setdefault((one_line(written, 100), found), []).append(path)
    if changed:
        what = "; ".join(
            f"{', '.join(paths)} was written for {written}, this is {found}"
            for (written, found), paths in changed.items()
        )
        warnings.warn(
            f"{what}. Results may differ; install the versions that were written down if they do.", stacklevel=4
        )


def _series(distribution: str) -> tuple[str, ...]:
    """``lyrics-vl 0.1.7`` -> its name as registries compare it, major and minor version; anything else as it is."""
    name, _, version = distribution.rpartition(" ")
    try:
        return canonicalize_name(name), *map(str, (*Version(version).release, 0)[:2])
    except InvalidVersion:
        return (distribution,)


@dataclass(frozen=True)
class Wiring:
    """The widths that the query transformer is built for. None where only the built part can tell."""

    image_dim: int | None
    local_dims: Mapping[str, int | None]


def wire(resolved: Resolved) -> Wiring:
    """Compare the parts with each other before anything is allocated. Raises ``WiringError``."""
    parts = resolved.parts
    _check_refiner(parts)
    image_dim = declared_dim(parts["image_encoder"])
    local_dims = {
        source: declared_dim(parts[f"refiner.{source}"]) for source in LOCAL_SOURCES if f"refiner.{source}" in parts
    }
    wiring = Wiring(image_dim, local_dims)
    check_query_transformer(parts, wiring)
    segments = declared_segments(parts["query_transformer"], "segments")
    if segments is not None:
        check_objectives(parts, segments)
    return wiring


def _check_refiner(parts: Mapping[str, Part]) -> None:
    if "refiner.segmenter" in parts and "refiner.detector" not in parts:
        raise WiringError(
            f"refiner.segmenter {parts['refiner.segmenter'].entry.component.name!r} needs boxes, but refiner.detector "
            "is null; set refiner.segmenter=null, or refiner.detector to one of 'lyrics list detector'."
        )


def declared_dim(part: Part) -> int | None:
    """Return ``feature_dim`` as the part's options state it, or None where they do not."""
    try:
        dim = getattr(part.options, "feature_dim", None)
    except Exception as error:  # a third-party property may raise anything
        raise PluginError(f"{part.path}: feature_dim of {part.entry.source} failed: {describe(error)}") from error
    if dim is None or (isinstance(dim, int) and dim > 0):
        return dim
    raise PluginError(f"{part.path}: feature_dim of {part.entry.source} must be a positive integer, not {dim!r}.")


def declared_segments(part: Part, name: str) -> tuple[str, ...] | None:
    """Return ``segments`` or ``needs_segments`` as the part's options state them, or None where they do not."""
    try:
        found = getattr(part.options, name, None)
    except Exception as error:  # a third-party property may raise anything
        raise PluginError(f"{part.path}: {name} of {part.entry.source} failed: {describe(error)}") from error
    if found is None or (isinstance(found, tuple) and set(found) <= set(SEGMENTS)):
        return found
    raise PluginError(
        f"{part.path}: {name} of {part.entry.source} must be a tuple of {', '.join(SEGMENTS)}, not {found!r}."
    )


def check_objectives(parts: Mapping[str, Part], segments: Sequence[str]) -> None:
    """Compare what the objectives need with the segments that the query transformer has.

    Raises ``WiringError`` naming all that lack one, and the override that removes them.
    """
    lacking: dict[str, list[str]] = {}
    for path, part in parts.items():
        if part.entry.component.kind == "objective":
            missing = [one for one in declared_segments(part, "needs_segments") or () if one not in segments]
            if missing:
                lacking[path] = missing
    if not lacking:
        return
    reader = parts["query_transformer"]
    needs = "; ".join(
        f"{path} needs {' and '.join(SEGMENTS[one] for one in missing)}" for path, missing in lacking.items()
    )
    kept = [path for path, part in parts.items() if part.entry.component.kind == "objective" and path not in lacking]
    remove = " ".join(f"--set {path}=null" for path in lacking) if kept else "--set objectives={}"
    raise WiringError(
        f"{reader.path} {reader.entry.component.name!r} reads {', '.join(SEGMENTS[one] for one in segments)} and "
        f"nothing else, so stage 1 cannot have all of its objectives: {needs}. Remove them: {remove}"
    )


def declaring(spec: ModelSpec, capability: Capability, *, registry: Registry | None = None) -> tuple[str, ...]:
    """Return paths of the parts of a spec whose components declare a capability."""
    registry = registry or default_registry()
    return tuple(
        path
        for path, kind, slot in spec.slots()
        if capability in registry.component(kind, slot.use).component.capabilities
    )


def check_query_transformer(parts: Mapping[str, Part], wiring: Wiring, *, warn: bool = True) -> None:
    """Compare what the query transformer is set to read with what the experts give.

    Raises ``WiringError``. Warns of local tokens that nothing reads, unless told not to.
    """
    reader = parts["query_transformer"]
    pinned = getattr(reader.options, "image_dim", None)
    given = wiring.image_dim
    if pinned is not None and given is not None and pinned != given:
        raise WiringError(_misfit(reader, "image_dim", pinned, parts["image_encoder"], given))
    reads_local = "local_dims" in type(reader.options).model_fields
    if warn and wiring.local_dims and not reads_local:
        warnings.warn(
            f"{reader.label} reads no local tokens: those of the refiner's {' and '.join(wiring.local_dims)} are not "
            "used. Its tags and boxes still reach the text.",
            stacklevel=3,
        )
    pinned_local = getattr(reader.options, "local_dims", None)
    if pinned_local is None:
        return
    for source in pinned_local:
        if source not in LOCAL_SOURCES:
            raise WiringError(
                f"query_transformer.options.local_dims: {source!r} gives no local "
                f"tokens.{did_you_mean(source, LOCAL_SOURCES)} Those that do: {', '.join(LOCAL_SOURCES)}; set "
                "query_transformer.options.local_dims=null to follow the refiner."
            )
    for source in LOCAL_SOURCES:
        dim, given = pinned_local.get(source), wiring.local_dims.get(source)
        if (source in pinned_local) != (source in wiring.local_dims):
            there, missing = ("reads", "gives none") if source in pinned_local else ("does not read", "gives them")
            raise WiringError(
                f"query_transformer.options.local_dims: {reader.entry.component.name!r} {there} tokens of a {source}, "
                f"but refiner.{source} {missing}; set query_transformer.options.local_dims=null to follow the refiner."
            )
        if dim is not None and given is not None and dim != given:
            raise WiringError(_misfit(reader, f"local_dims.{source}", dim, parts[f"refiner.{source}"], given))


def _misfit(reader: Part, option: str, pinned: int, giver: Part, given: int) -> str:
    return (
        f"{giver.path} {giver.entry.component.name!r} gives feature_dim {given}, but {reader.path} "
        f"{reader.entry.component.name!r} is set to read {pinned}; set {reader.path}.options.{option}={given}, or "
        f"choose a part for {giver.path} that gives {pinned}."
    )
