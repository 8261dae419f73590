"""``build_dataset``: a data set by its name and options. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.core.contracts import BuildContext, Dataset
from lyrics.core.errors import SpecError
from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate


def build_dataset(name: str, options: Mapping[str, Any] | None = None, *, registry: Registry | None = None) -> Dataset:
    """Return the data set of that name, which may be ``distribution/name``.

    Reads no more than it must to know that its files are there.

    Raises:
        SpecError: the name is unknown, or an option is wrong or missing.
        MissingRequirementError: it needs a package that is not installed.
        DatasetError: its files are not there, or are not what they should be.
    """
    from lyrics.core.build import build_part, check_requirements

    entry = (registry or default_registry()).component("dataset", name)
    given = dict(options or {})
    if "root" not in given and (root := entry.component.options.model_fields.get("root")) and root.is_required():
        raise SpecError(f"{name}: say where its files are: root=FOLDER. docs/datasets.md says how they must lie.")
    part = Part(name, entry, validate(given, entry.component.options, where=name))
    check_requirements(part)
    built: Dataset = build_part(part, BuildContext("random"))
    return built
