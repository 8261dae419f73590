"""``lyrics list`` and ``lyrics show``: which parts exist, and what one of them takes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._output import JsonFlag, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.core.registry.registry import Entry


def list_parts(
    kind: Annotated[
        str | None, typer.Argument(help="A kind of component, 'preset', or 'vocabulary'; everything if left out.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List components, presets and vocabularies: whether each is ready, incomplete or broken, and where from."""
    from lyrics.core.errors import UnknownNameError, did_you_mean
    from lyrics.core.inspection.inventory import rows
    from lyrics.core.registry.component import KINDS
    from lyrics.core.registry.registry import default_registry

    kinds = (*KINDS, "preset", "vocabulary", "plugin")
    if kind is not None and kind not in kinds:
        raise UnknownNameError(f"there is no kind {kind!r}.{did_you_mean(kind, kinds)} Kinds: {', '.join(kinds)}.")
    found = rows(default_registry(), kind)
    if json:
        print_json([dataclasses.asdict(row) for row in found])
        return
    print_table(
        ("kind", "name", "from", "status", "summary"),
        [(row.kind, row.name, f"{row.distribution} {row.version}", row.status, row.summary) for row in found],
    )


def show(
    name: Annotated[
        str, typer.Argument(help="A component or preset; kind:name where a name is not enough (benchmark:coco).")
    ],
    json: JsonFlag = False,
) -> None:
    """Show a component's options with types, defaults and help, or a preset as YAML."""
    from lyrics.core.errors import AmbiguousNameError, UnknownNameError, did_you_mean
    from lyrics.core.registry.component import KINDS
    from lyrics.core.registry.registry import default_registry
    from lyrics.core.spec import dumps

    registry = default_registry()
    kind, colon, bare = name.rpartition(":")
    matches = [
        entry
        for entry in registry.entries
        if bare in (entry.component.name, entry.qualified_name) and (not colon or entry.component.kind == kind)
    ]
    if not colon and {entry.component.kind for entry in matches} == {"dataset", "benchmark"}:
        # A benchmark has the name of its data set; "benchmark:NAME" shows the benchmark.
        matches = [entry for entry in matches if entry.component.kind == "dataset"]
    presets = {preset.name for preset, _ in registry.presets} | {
        f"{s.distribution}/{p.name}" for p, s in registry.presets
    }
    is_preset = bare in presets and kind in ("", "preset")
    if len(matches) + is_preset > 1:
        spellings = [f"{e.component.kind}:{e.qualified_name}" for e in matches] + [f"preset:{bare}"] * is_preset
        raise AmbiguousNameError(f"{name!r} names several parts; write one of {', '.join(spellings)}.")
    if is_preset:
        spec = registry.preset(bare)
        print_text(dumps(spec, format="json" if json else "yaml").rstrip("\n"))
    elif matches:
        _show_component(matches[0], json)
    else:
        # The registry says why: unknown, or broken.
        failed = [f for f in registry.failures if bare in (f.name, f.source.entry_point, f.source.distribution)]
        asked = kind or (failed[0].kind if failed else "")
        if asked == "preset":
            registry.preset(bare)
        elif asked in KINDS or failed:
            registry.component(asked if asked in KINDS else KINDS[0], bare)
        names = [entry.component.name for entry in registry.entries] + sorted(presets)
        raise UnknownNameError(f"no component or preset named {name!r}.{did_you_mean(bare, names)} See 'lyrics list'.")


def _show_component(entry: Entry, json: bool) -> None:
    from lyrics.core.inspection.inventory import options_of

    component, source = entry.component, entry.source
    options = options_of(component)
    if json:
        data: dict[str, Any] = {
            "kind": component.kind,
            "name": component.name,
            "distribution": source.distribution,
            "version": source.version,
            "summary": component.summary,
            "license": component.license,
            "requires": list(component.requires),
            "unmet": entry.unmet(),
            "contract": component.contract,
            "options": [dataclasses.asdict(option) for option in options],
        }
        print_json(data)
        return
    print_text(f"{component.kind} {component.name}  ({source.distribution} {source.version})")
    print_text(component.summary)
    if component.license:
        print_text(f"license: {component.license}")
    for complaint in entry.unmet():
        print_text(f"needs: {complaint}; run: {component.install}")
    print_text("")
    print_table(
        ("option", "type", "default", "allowed", "help"),
        [(o.path, o.type, _plain(o.default), o.allowed, o.description) for o in options],
    )


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        text = "[" + ", ".join(str(item) for item in value) + "]"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return str(value)
