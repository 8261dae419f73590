"""The formats that installed components convert from, and the one place that runs a converter."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import LyricsError, PluginError, UnknownNameError, did_you_mean
from lyrics.core.registry.component import Converter, Options
from lyrics.core.registry.registry import Entry, Registry, default_registry, describe

if TYPE_CHECKING:
    import torch

    from lyrics.core.conversion.plan import ConversionPlan


@dataclass(frozen=True)
class Format:
    """A format by its name, with every component that declares it: alternatives, or the parts of a whole model."""

    name: str
    declared: tuple[tuple[Entry, Converter], ...]

    @property
    def summary(self) -> str:
        return next((converter.summary for _, converter in self.declared if converter.summary), "")

    @property
    def marks(self) -> frozenset[str]:
        """Keys that every checkpoint of the format has."""
        return frozenset(mark for _, converter in self.declared for mark in converter.marks)

    @property
    def published(self) -> tuple[str, ...]:
        """Where checkpoints of the format are to be had, in a form that ``convert`` takes."""
        return tuple(dict.fromkeys(one for _, converter in self.declared for one in converter.published))

    @property
    def beside(self) -> dict[str, str]:
        """What belongs beside a checkpoint and is published elsewhere: file name -> its address."""
        return {name: address for _, converter in self.declared for name, address in converter.beside.items()}

    @property
    def whole_model(self) -> bool:
        return any(converter.whole_model for _, converter in self.declared)

    def converter_of(self, entry: Entry) -> Converter | None:
        """Return the converter that this component declares for the format, if it does."""
        return next((converter for declarer, converter in self.declared if declarer == entry), None)


def formats(registry: Registry | None = None) -> list[Format]:
    """Return every format that some installed component declares, by name. Imports no torch."""
    declared: dict[str, list[tuple[Entry, Converter]]] = {}
    for entry in (registry or default_registry()).entries:
        for converter in entry.component.converters:
            declared.setdefault(converter.format, []).append((entry, converter))
    return [Format(name, tuple(declared[name])) for name in sorted(declared)]


def find_format(name: str, registry: Registry | None = None) -> Format:
    """Return the format of that name. Raises ``UnknownNameError`` with the nearest one and all others."""
    known = {found.name: found for found in formats(registry)}
    if name not in known:
        raise UnknownNameError(f"there is no format {name!r}.{did_you_mean(name, known)} Formats: {', '.join(known)}.")
    return known[name]


def recognize(keys: Iterable[str], registry: Registry | None = None) -> Format | None:
    """Return the format whose marks are all among the keys; of several the one with the most.

    None when there is none.
    """
    # Some checkpoints were saved from a data-parallel wrapper.
    present = {key.removeprefix("module.") for key in keys}
    fitting = [found for found in formats(registry) if found.marks and found.marks <= present]
    return max(fitting, key=lambda found: len(found.marks), default=None)


def run_converter(
    entry: Entry,
    converter: Converter,
    checkpoint: Mapping[str, torch.Tensor],
    options: Options,
    context: BuildContext,
) -> ConversionPlan:
    """Import the converter and run it. Raises ``PluginError`` naming the plugin when it is broken."""
    module, _, attribute = converter.convert.partition(":")
    try:
        function: Callable[..., ConversionPlan] = getattr(importlib.import_module(module), attribute)
        return function(checkpoint, options, context)
    except (LyricsError, KeyboardInterrupt):
        raise
    except BaseException as error:  # third-party code may raise anything, SystemExit included
        raise PluginError(f"the converter {converter.format!r} of {entry.source} failed: {describe(error)}") from error
