"""What is installed, as plain rows: for ``lyrics list``, ``lyrics show`` and ``lyrics doctor``. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lyrics import __version__
from lyrics.core.clean_text import one_line
from lyrics.core.errors import LyricsError, WeightsError
from lyrics.core.language.chat_templates import SUMMARIES
from lyrics.core.registry.component import KINDS, Component, NamesWeights, Options
from lyrics.core.registry.registry import DISTRIBUTION, Registry, describe
from lyrics.core.weights.pretrained import PACKAGED, is_hub_id, packaged

#: What has a name and is no component, as ``lyrics list`` and ``lyrics show`` call it.
NAMED_KINDS = ("preset", "recipe", "vocabulary", "chat-template")


@dataclass(frozen=True)
class WeightsNeed:
    """Pretrained files that are not on this machine's disk where an option says.

    Args:
        option: the option that names them, such as ``refiner.tagger.options.checkpoint``; empty for a preset's own
            weights.
        value: what it says; None where it says nothing and the part refuses to be built without.
        download: whether the value is a hub id, which building downloads unless that was done before. Otherwise a
            person has to act.
        advice: what to do, in words; empty for a download.
    """

    option: str
    value: str | None
    download: bool
    advice: str = ""


@dataclass(frozen=True)
class InventoryRow:
    """One line of ``lyrics list``.

    ``status`` is ``ready``, ``ready; downloads ...``, ``needs ...`` or ``broken: ...``; ``weights`` is what pretrained
    weights need. Whether a hub id exists or was downloaded before is not looked at: that is for the network to say.
    The status of a recipe is empty unless it is broken: what its model and its data need is found out when it is used.
    """

    kind: str
    name: str
    distribution: str
    version: str
    status: str
    summary: str
    weights: tuple[WeightsNeed, ...] = ()


def rows(registry: Registry, kind: str | None = None) -> list[InventoryRow]:
    """Return everything that has a name, and everything that failed, or those of one kind.

    Kinds are those of components, ``NAMED_KINDS``, and ``plugin`` for a plugin that failed as a whole.
    """
    found = []
    for entry in registry.entries:
        if kind not in (None, entry.component.kind):
            continue
        component, source = entry.component, entry.source
        needs = _weights_of(component, {}, "")
        status = _status(entry.unmet(), needs)
        found.append(
            InventoryRow(
                component.kind, component.name, source.distribution, source.version, status, component.summary, needs
            )
        )
    for preset, source in registry.presets if kind in (None, "preset") else ():
        status, needs = _preset_status(registry, f"{source.distribution}/{preset.name}", preset.weights)
        found.append(
            InventoryRow("preset", preset.name, source.distribution, source.version, status, preset.summary, needs)
        )
    named = [
        *(
            ("recipe", one.name, source.distribution, source.version, "", one.summary)
            for one, source in registry.recipes
        ),
        *(
            ("vocabulary", one.name, source.distribution, source.version, "ready", one.summary)
            for one, source in registry.vocabularies
        ),
        *(("chat-template", name, DISTRIBUTION, __version__, "ready", text) for name, text in SUMMARIES.items()),
        *(
            ("chat-template", one.name, source.distribution, source.version, "ready", one.summary)
            for one, source in registry.templates
        ),
    ]
    found += [InventoryRow(*row) for row in named]
    for failure in registry.failures:
        of = failure.kind.replace(" ", "-")
        row_kind = of if of in (*KINDS, *NAMED_KINDS) else "plugin"
        name = failure.name or failure.source.entry_point
        found.append(
            InventoryRow(
                row_kind, name, failure.source.distribution, failure.source.version, f"broken: {failure.cause}", ""
            )
        )
    return [row for row in found if kind is None or row.kind == kind]


def _preset_status(registry: Registry, name: str, weights: str | None) -> tuple[str, tuple[WeightsNeed, ...]]:
    unmet: list[str] = []
    needs: list[WeightsNeed] = []
    try:
        for path, kind, slot in registry.preset(name).slots():
            entry = registry.component(kind, slot.use)
            unmet += [f"{complaint} for {path}" for complaint in entry.unmet()]
            needs += _weights_of(entry.component, slot.options, f"{path}.options.")
    except (LyricsError, SystemExit) as error:
        return f"broken: {one_line(str(error), 300) if isinstance(error, LyricsError) else describe(error)}", ()
    if weights is not None:
        needs += _need("", weights, "")
    return _status(unmet, needs), tuple(needs)


def _status(unmet: list[str], needs: Iterable[WeightsNeed]) -> str:
    missing = [f"needs {', '.join(unmet)}"] if unmet else []
    # Several parts may miss the same folder.
    if advice := "; ".join(dict.fromkeys(need.advice for need in needs if not need.download)):
        missing.append(f"needs weights: {advice}")
    if missing:
        return "; ".join(missing)
    downloads = list(dict.fromkeys(str(need.value) for need in needs))
    return f"ready; downloads {', '.join(downloads)}" if downloads else "ready"


def _weights_of(component: Component, given: Mapping[str, Any], prefix: str) -> tuple[WeightsNeed, ...]:
    """Return what the marked options of a component need, of which some are given.

    Options are not validated: a build does that.
    """
    found: list[WeightsNeed] = []
    format = next((converter.format for converter in component.converters if not converter.whole_model), None)
    for name, field in component.options.model_fields.items():
        mark = next((item for item in field.metadata if isinstance(item, NamesWeights)), None)
        if mark is None:
            continue
        value = given.get(name, field.get_default(call_default_factory=True))
        option = f"{prefix}{name}"
        command = f"lyrics convert FILE FOLDER --from {format}, then {option}=FOLDER" if format else f"set {option}"
        if isinstance(value, str):
            found += _need(option, value, command)
        elif mark.required and value is None:
            found.append(WeightsNeed(option, None, False, command))
    return tuple(found)


def _need(option: str, value: str, command: str) -> list[WeightsNeed]:
    if value.startswith(PACKAGED):
        problem = _packaged_problem(value)
        return [WeightsNeed(option, value, False, problem)] if problem else []
    if Path(value).expanduser().exists():
        return []
    if is_hub_id(value):
        return [WeightsNeed(option, value, True)]
    advice = f"; {command}" if command else ""
    return [WeightsNeed(option, value, False, f"{option}={one_line(value)} is not there{advice}")]


@functools.cache
def _packaged_problem(value: str) -> str:
    try:
        packaged(value)
    except WeightsError as error:
        return one_line(str(error).partition("; ")[0])  # what to do is said where the weights are asked for
    return ""


@dataclass(frozen=True)
class OptionRow:
    """One option of a component, as ``lyrics show`` prints it."""

    path: str
    type: str
    default: Any
    allowed: str
    description: str


def options_of(component: Component) -> list[OptionRow]:
    """Return every option with its type, default, range and help; options within options by their dotted path."""
    return list(_walk(component.options, ""))


def _walk(options: type[BaseModel], prefix: str) -> Iterator[OptionRow]:
    for name, field in options.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Options):
            yield from _walk(type(default), f"{prefix}{name}.")
            continue
        allowed = ", ".join(_constraint(item) for item in field.metadata if _constraint(item))
        value = "(required)" if default is PydanticUndefined else default
        yield OptionRow(
            f"{prefix}{name}",
            one_line(_type_name(field.annotation)),
            one_line(value) if isinstance(value, str) else value,
            one_line(allowed),
            one_line(field.description or "", 500),
        )


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of", "min_length": "length >="}


def _constraint(item: Any) -> str:
    for name, sign in _SIGNS.items():
        bound = getattr(item, name, None)
        if bound is not None:
            return f"{sign} {bound}"
    return ""


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is tuple:
        inner = [_type_name(a) for a in arguments if a is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"list of {len(inner)} {inner[0]}"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0])}" if arguments else "mapping"
    if origin is list or origin is None:
        return str(annotation).removeprefix("typing.")
    if all(isinstance(a, str | int) for a in arguments):
        return " | ".join(repr(a) for a in arguments)
    return " | ".join(_type_name(a) for a in arguments)
