"""Running the conformance suite without pytest, for ``lyrics test-plugin``."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from lyrics.core.errors import LyricsError
from lyrics.core.registry import Entry, Registry
from lyrics.testing.base import checks_of
from lyrics.testing.kinds import CONTRACTS


@dataclass(frozen=True)
class Report:
    """What ``check_component`` found: how many checks ran, and the cause of each that failed."""

    kind: str
    name: str
    checks: int
    failures: Mapping[str, str]


def check_component(entry: Entry, registry: Registry | None = None) -> Report:
    """Run every check of a component's contract, without pytest."""
    record = entry.component
    case = type("Case", (CONTRACTS[record.kind],), {"component": entry.qualified_name, "registry": registry})()
    failures = {}
    checks = checks_of(type(case))
    for name in checks:
        try:
            getattr(case, name)()
        except LyricsError as error:
            failures[name] = str(error)
        except Exception as error:  # a stranger's code may raise anything; all of it is a finding
            frame = traceback.extract_tb(error.__traceback__)[-1]
            failures[name] = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    return Report(record.kind, record.name, len(checks), failures)
