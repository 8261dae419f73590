"""``lyrics check SPEC``: does a specification resolve and fit, and what would the model be?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._output import JsonFlag, SetOption, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.core.inspection.summary import PartRow
    from lyrics.core.model import LyricsModel
    from lyrics.core.public_models import FoundModel
    from lyrics.core.registry.component import Preset
    from lyrics.core.resolve import Resolved


def check(
    spec: Annotated[
        str, typer.Argument(help="A preset's name, a YAML or JSON file, or a public model by its folder or hub id.")
    ],
    settings: SetOption = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights that bytes are counted in.")] = "bfloat16",
    batch: Annotated[int, typer.Option(min=1, help="Images of a training step that memory is counted for.")] = 1,
    licenses: Annotated[
        bool, typer.Option("--licenses", help="Print the license of each part's weights instead, and what it asks for.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Resolve and wire a specification; print its parts, shapes, parameters, licenses, and the memory that it needs.

    Of a refiner alone, the parts, parameters and licenses are printed. --licenses prints, for each checkpoint that a
    part names, where it comes from, its revision or hash, its license, and what that asks for.
    Allocates nothing, and downloads nothing but the small files of a public model that is named by its hub id.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.dtypes import dtype_name
    from lyrics.core.registry.registry import default_registry
    from lyrics.core.resolve import read_any_spec, resolve, wire
    from lyrics.core.spec import RefinerOnlySpec

    dtype = dtype_name(dtype)
    public = _public(spec)
    if licenses:
        _check_licenses(spec, public, parse_overrides(settings), json)
        return
    if public is not None:
        from lyrics.core.model import LyricsModel
        from lyrics.core.public_models import outline_public

        model, resolved = outline_public(LyricsModel, public, overrides=parse_overrides(settings), dtype=dtype)
        _print_checked(model, resolved, dtype, batch, None, json)
        return
    if isinstance(read_any_spec(spec), RefinerOnlySpec):
        _check_refiner(spec, parse_overrides(settings), dtype, json)
        return
    resolved = resolve(spec, parse_overrides(settings))
    wire(resolved)

    # Everything above is quick and needs no torch; a mistake in the spec is reported before torch is imported.
    from lyrics.core.build import build_resolved
    from lyrics.core.model import LyricsModel

    model = build_resolved(LyricsModel, resolved, weights="meta", dtype=dtype)
    reported = next((p for p, s in default_registry().presets if spec in (p.name, f"{s.distribution}/{p.name}")), None)
    _print_checked(model, resolved, dtype, batch, reported, json)


def _public(name: str) -> FoundModel | None:
    """The public model of that folder or hub id; None for a preset or a file.

    Raises ``SpecError`` for a model folder of this library: it has a specification, which is to be named.
    """
    from lyrics.core.errors import SpecError
    from lyrics.core.registry.registry import default_registry
    from lyrics.core.resolve import is_spec_file
    from lyrics.core.weights.pretrained import is_hub_id

    path = Path(name).expanduser()
    presets = {f"{source.distribution}/{preset.name}" for preset, source in default_registry().presets}
    if not path.is_dir() and (name in presets or is_spec_file(name) or path.exists() or not is_hub_id(name)):
        return None

    from lyrics.core.public_models import find_public

    found = find_public(name)
    if found is None:
        raise SpecError(f"{name}: is no public model; of a model folder or a run, check its spec.json.")
    return found


def _print_checked(
    model: LyricsModel, resolved: Resolved, dtype: str, batch: int, reported: Preset | None, json: bool
) -> None:
    from lyrics.core.inspection.memory import memory_table
    from lyrics.core.inspection.summary import summarize

    summary = summarize(model, resolved)
    needed = memory_table(model, batch)
    if json:
        data: dict[str, Any] = {
            "parts": [dataclasses.asdict(row) for row in summary.parts],
            "parameters": summary.parameters,
            "bytes": summary.num_bytes,
            "dtype": dtype,
            "stage1_trainable": summary.stage1_trainable,
            "stage2_trainable": summary.stage2_trainable,
            "stage2_breakdown": dict(summary.stage2_breakdown),
            "memory": [
                {"use": row.use, "precision": row.precision, "batch": batch, "total": row.memory.total}
                | dataclasses.asdict(row.memory)
                for row in needed
            ],
            "reported_trainable": reported.reported_trainable if reported else None,
            "spec": resolved.spec.model_dump(mode="json"),
        }
        print_json(data)
        return
    _print_parts(summary.parts, dtype)
    print_text(f"\ntotal: {summary.parameters:,} parameters, {_size(summary.num_bytes)} in {dtype}")
    first = "image encoder, query transformer" if "image encoder" in summary.stage2_breakdown else "query transformer"
    print_text(f"trained in stage 1: {summary.stage1_trainable:,} ({first} and objectives)")
    pieces = ", ".join(f"{name} {count:,}" for name, count in summary.stage2_breakdown.items())
    print_text(f"trained in stage 2: {summary.stage2_trainable:,} ({pieces})")
    if reported is not None and reported.reported_trainable is not None:
        difference = summary.stage2_trainable - reported.reported_trainable
        print_text(
            f"reported by its source: {reported.reported_trainable / 1e6:,.0f}M; ours is {difference / 1e6:+.1f}M. "
            f"{reported.reported_note}"
        )

    pictures = "1 image" if batch == 1 else f"{batch} images"
    print_text(f"\nmemory on one device (a training step of {pictures}; answering one; flash attention; AdamW):")
    print_table(
        ("use", "precision", "weights", "gradients", "optimizer", "working", "total"),
        [
            (
                row.use,
                row.precision,
                *(_size(n) for n in (row.memory.weights, row.memory.gradients, row.memory.optimizer)),
                _size(row.memory.working),
                _size(row.memory.total),
            )
            for row in needed
        ],
        right=("weights", "gradients", "optimizer", "working", "total"),
    )


def _check_licenses(spec: str, public: FoundModel | None, overrides: dict[str, Any], json: bool) -> None:
    from lyrics.core.resolve import read_any_spec, resolve, resolve_refiner
    from lyrics.core.spec import RefinerOnlySpec
    from lyrics.core.weights.licenses import license_rows

    if public is not None:
        rows = license_rows(resolve(public.plan().spec, overrides).spec, whole=public.name)
    elif isinstance(read_any_spec(spec), RefinerOnlySpec):
        rows = license_rows(resolve_refiner(spec, overrides).spec)
    else:
        rows = license_rows(resolve(spec, overrides).spec)
    if json:
        print_json({"licenses": [dataclasses.asdict(row) for row in rows]})
        return
    print_table(
        ("part", "component", "weights", "revision", "license", "asks for"),
        [(row.path, row.component, row.source or "-", row.revision or "-", row.license, row.asks) for row in rows],
    )
    print_text("\nThis replaces no license: read each before you use or pass on the weights.")


def _check_refiner(spec: str, overrides: dict[str, Any], dtype: str, json: bool) -> None:
    from lyrics.core.resolve import resolve_refiner

    resolved = resolve_refiner(spec, overrides)

    import torch

    from lyrics.core.build import build_resolved_refiner
    from lyrics.core.inspection.summary import summarize_refiner

    parts = summarize_refiner(build_resolved_refiner(resolved, weights="meta", dtype=getattr(torch, dtype)), resolved)
    parameters, num_bytes = sum(row.parameters for row in parts), sum(row.num_bytes for row in parts)
    if json:
        rows = [dataclasses.asdict(row) for row in parts]
        spec_data = resolved.spec.model_dump(mode="json")
        print_json({"parts": rows, "parameters": parameters, "bytes": num_bytes, "dtype": dtype, "spec": spec_data})
        return
    _print_parts(parts, dtype)
    print_text(f"\na refiner alone: {parameters:,} parameters, {_size(num_bytes)} in {dtype}; nothing of it is trained")


def _print_parts(parts: Sequence[PartRow], dtype: str) -> None:
    print_table(
        ("part", "component", "from", "gives", "parameters", "trainable", dtype, "license"),
        [
            (
                row.path,
                row.component,
                row.distribution,
                row.output,
                f"{row.parameters:,}",
                f"{row.trainable:,}",
                _size(row.num_bytes),
                row.license,
            )
            for row in parts
        ],
        right=("parameters", "trainable", dtype),
    )


def _size(num_bytes: int) -> str:
    """Binary units, three digits."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
