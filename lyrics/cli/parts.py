"""``lyrics list`` and ``lyrics show``: which parts exist, and what one of them takes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._output import JsonFlag, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.core.registry.registry import Entry, PluginSource, Registry


def list_parts(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="A kind of component, 'preset', 'recipe', 'vocabulary' or 'chat-template'; everything if left out."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List components, presets, recipes, vocabularies and chat templates: whether each is ready, and where from."""
    from lyrics.core.errors import UnknownNameError, did_you_mean
    from lyrics.core.inspection.inventory import NAMED_KINDS, rows
    from lyrics.core.registry.component import KINDS
    from lyrics.core.registry.registry import default_registry

    kinds = (*KINDS, *NAMED_KINDS, "plugin")
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
        str,
        typer.Argument(help="A name that 'lyrics list' shows; kind:name where that is not enough (benchmark:coco)."),
    ],
    json: JsonFlag = False,
) -> None:
    """Show a component's options, a preset or recipe as YAML, a vocabulary's words, or a chat template."""
    from lyrics.core.errors import AmbiguousNameError, UnknownNameError, did_you_mean
    from lyrics.core.inspection.inventory import NAMED_KINDS
    from lyrics.core.language.chat_templates import TEMPLATES
    from lyrics.core.registry.component import KINDS
    from lyrics.core.registry.registry import default_registry

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
    records: tuple[list[tuple[Any, PluginSource]], ...] = (
        registry.presets,
        registry.recipes,
        registry.vocabularies,
        registry.templates,
    )
    named = {
        of: {spelling for one, source in found for spelling in (one.name, f"{source.distribution}/{one.name}")}
        for of, found in zip(NAMED_KINDS, records, strict=True)
    }
    named["chat-template"] |= set(TEMPLATES)
    others = [of for of in NAMED_KINDS if bare in named[of] and kind in ("", of)]
    if len(matches) + len(others) > 1:
        spellings = [f"{e.component.kind}:{e.qualified_name}" for e in matches] + [f"{of}:{bare}" for of in others]
        raise AmbiguousNameError(f"{name!r} names several parts; write one of {', '.join(spellings)}.")
    if matches:
        _show_component(matches[0], json)
        return
    # Where nothing has the name, the registry says why: unknown, or broken.
    failed = [f for f in registry.failures if bare in (f.name, f.source.entry_point, f.source.distribution)]
    asked = others[0] if others else kind or (failed[0].kind.replace(" ", "-") if failed else "")
    if asked in NAMED_KINDS:
        _show_named(registry, asked, bare, json)
        return
    if asked in KINDS or failed:
        registry.component(asked if asked in KINDS else KINDS[0], bare)
    names = [entry.component.name for entry in registry.entries] + sorted(set().union(*named.values()))
    raise UnknownNameError(f"nothing is named {name!r}.{did_you_mean(bare, names)} See 'lyrics list'.")


def _show_named(registry: Registry, kind: str, name: str, json: bool) -> None:
    if kind == "preset":
        from lyrics.core.spec import dumps

        print_text(dumps(registry.preset(name), format="json" if json else "yaml").rstrip("\n"))
    elif kind == "recipe":
        from lyrics.core.runs.config import dump_config, recipe_named

        config = recipe_named(name, registry)
        if json:
            print_json(config.model_dump(mode="json"))
        else:
            print_text(dump_config(config).rstrip("\n"))
    elif kind == "vocabulary":
        lists = registry.vocabulary(name)
        if json:
            print_json({"kind": kind, "name": name, "words": [list(words) for words in lists]})
            return
        for number, words in enumerate(lists, 1):
            print_text(f"list {number}, {len(words)} words: {', '.join(words)}")
    else:
        _show_template(registry, name, json)


def _show_template(registry: Registry, name: str, json: bool) -> None:
    """Print a conversation of two exchanges as the template writes it, or the source of a template in Jinja."""
    from lyrics.core.language.chat_templates import template_named
    from lyrics.core.language.jinja_templates import JinjaTemplate
    from lyrics.core.language.prompts import BOS, EOS, Exchange, Segment, Special, Words

    template = template_named(name, registry=registry)
    if isinstance(template, JinjaTemplate):
        written: dict[str, Any] = {"jinja": template.source}
    else:
        talk = (Exchange("{instruction}", "{answer}", (0,)), Exchange("{instruction}", "{answer}"))

        def spelled(piece: Segment) -> str:
            if isinstance(piece, Words):
                return piece.text
            if isinstance(piece, Special):
                return f"<{piece.token}>" if piece in (BOS, EOS) else piece.token
            return "{image}"

        pieces = template.segments(talk, lambda image: "{objects}")
        written = {"conversation": "".join(spelled(piece) for piece, _ in pieces)}
    if json:
        print_json({"kind": "chat-template", "name": name, **written})
    else:
        print_text(*written.values())


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
