"""``build_benchmark``: a benchmark by its name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.core.contracts import Benchmark, BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate


def build_benchmark(
    name: str, options: Mapping[str, Any] | None = None, *, registry: Registry | None = None
) -> Benchmark:
    """Return the benchmark of that name, which may be ``distribution/name``.

    Reads no more than it must to know that its files are there.

    Raises:
        SpecError: the name is unknown, or an option (such as the split) is wrong or missing.
        MissingRequirementError: it needs a package that is not installed.
        DatasetError: its files are not there, or are not what they should be.
    """
    from lyrics.core.build import build_part, check_requirements

    entry = (registry or default_registry()).component("benchmark", name)
    given = dict(options or {})
    fields = entry.component.options.model_fields
    if "root" not in given and "root" in fields and fields["root"].is_required():
        raise SpecError(
            f"{name}: say where its files are: root=FOLDER, or --data {name}=FOLDER on the command line. "
            "docs/datasets.md says how they must lie."
        )
    part = Part(name, entry, validate(given, entry.component.options, where=name))
    check_requirements(part)
    built: Benchmark = build_part(part, BuildContext("random"))
    return built


def split_of(name: str, options: Mapping[str, Any], *, registry: Registry | None = None) -> str:
    """Return the split that a benchmark is built with under these options; empty for one without splits.

    Raises as ``build_benchmark``.
    """
    entry = (registry or default_registry()).component("benchmark", name)
    default = entry.component.options.model_fields.get("split")
    return str(options.get("split", default.default if default else ""))
