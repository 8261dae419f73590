"""One small component of every kind and a vocabulary, right or wrong in one respect: what the suite is tested on.

This file is the manifest, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from lyrics.core.registry.component import KINDS, Component, Options, Vocabulary, hookimpl
from lyrics.core.registry.registry import PluginSource, Registry


class PartOptions(Options):
    """``fault`` names what is wrong; an empty string is right."""

    fault: str = Field("", description="what is wrong with the part")

    @property
    def needs_segments(self) -> tuple[str, ...]:
        """Of the objective."""
        return ("V", "C")


class WidthOptions(PartOptions):
    """Declares a width that the part does not have."""

    feature_dim: int = Field(99, description="not true")


class BareOptions(PartOptions):
    """Has an option without a description."""

    secret: int = 3


class LaxOptions(PartOptions, extra="ignore"):
    """Lets a misspelled option pass."""


class RoundingOptions(PartOptions):
    """Changes on its way through JSON."""

    ratio: Any = Field((1, 2), description="a tuple, which JSON does not know")


OPTIONS: dict[str, type[PartOptions]] = {
    "declared": WidthOptions,
    "undescribed": BareOptions,
    "lax": LaxOptions,
    "rounding": RoundingOptions,
}


WORDS = {"any order": "in_any_order", "two words": "of_two_words"}


class Parts:
    """A plugin whose components and vocabulary all have the same fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        for kind in KINDS:
            yield Component(
                kind,
                "part",
                build=f"tests.conformance_parts.parts:{kind.replace('-', '_')}",
                options=OPTIONS.get(self.fault, PartOptions),
                test_options={"fault": self.fault},
                contract=1,
            )

    @hookimpl
    def lyrics_vocabularies(self) -> Iterable[Vocabulary]:
        yield Vocabulary("part-words", f"tests.conformance_parts.words:{WORDS.get(self.fault, 'lists')}")


def registry(fault: str = "", module: str = __name__) -> Registry:
    """The parts as if installed; ``module`` is what their entry point names."""
    return Registry([(PluginSource("acme-parts", "1.0", "parts", module), lambda: Parts(fault))])
