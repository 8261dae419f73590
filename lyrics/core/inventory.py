"""What is installed, as plain rows: for ``lyrics list``, ``lyrics show`` and ``lyrics doctor``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lyrics.core.clean_text import one_line
from lyrics.core.component import KINDS, Component, Options
from lyrics.core.registry import Registry


@dataclass(frozen=True)
class Row:
    """One line of ``lyrics list``. ``status`` is ``ready``, ``needs ...`` or ``broken: ...``."""

    kind: str
    name: str
    distribution: str
    version: str
    status: str
    summary: str


def rows(registry: Registry, kind: str | None = None) -> list[Row]:
    """Components, presets and everything that failed; all of them, or those of one kind (``preset`` and ``plugin`` count as kinds)."""
    found = []
    for entry in registry.entries:
        component, source = entry.component, entry.source
        unmet = entry.unmet()
        status = f"needs {', '.join(unmet)}" if unmet else "ready"
        found.append(
            Row(component.kind, component.name, source.distribution, source.version, status, component.summary)
        )
    for preset, source in registry.presets:
        found.append(Row("preset", preset.name, source.distribution, source.version, "ready", preset.summary))
    for failure in registry.failures:
        row_kind = failure.kind if failure.kind in (*KINDS, "preset") else "plugin"
        name = failure.name or failure.source.entry_point
        found.append(
            Row(row_kind, name, failure.source.distribution, failure.source.version, f"broken: {failure.cause}", "")
        )
    return [row for row in found if kind is None or row.kind == kind]


@dataclass(frozen=True)
class OptionRow:
    """One option of a component, as ``lyrics show`` prints it."""

    path: str
    type: str
    default: Any
    allowed: str
    description: str


def options_of(component: Component) -> list[OptionRow]:
    """Every option with its type, default, range and help; options within options by their dotted path."""
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
    if origin in (list, dict) or origin is None:
        return str(annotation).removeprefix("typing.")
    if all(isinstance(a, str | int) for a in arguments):
        return " | ".join(repr(a) for a in arguments)
    return " | ".join(_type_name(a) for a in arguments)
