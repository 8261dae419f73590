"""Running the conformance suite without pytest, for ``lyrics test-plugin``."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lyrics.core.errors import LyricsError
from lyrics.core.registry.component import Vocabulary
from lyrics.core.registry.registry import Entry, PluginSource, Registry
from lyrics.testing.base import Contract, checks_of
from lyrics.testing.kinds import CONTRACTS
from lyrics.testing.vocabulary import VocabularyContract

#: What a component without test options can be held to: these build nothing.
_WITHOUT_A_BUILD = (
    "test_every_option_is_described",
    "test_manifest_imports_nothing_heavy",
    "test_no_check_is_missing",
    "test_unknown_option_is_refused",
)


@dataclass(frozen=True)
class ConformanceReport:
    """What ``check_component`` or ``check_vocabulary`` found.

    ``checks`` is how many checks ran, ``failures`` the cause of each that failed; ``skipped`` says why others did not
    run, if they did not.
    """

    kind: str
    name: str
    checks: int
    failures: Mapping[str, str]
    skipped: str = ""


def check_component(entry: Entry, registry: Registry | None = None) -> ConformanceReport:
    """Run every check of a component's contract, without pytest.

    A data set or a benchmark that cannot be built without files of the user's is held to what can be told without: its
    options need values that its ``test_options`` do not give. Its own tests inherit the contract and give them.

    A query transformer's checks start two processes of Python; a script that calls this does it under
    ``if __name__ == "__main__":``.
    """
    record = entry.component
    case = type("Case", (CONTRACTS[record.kind],), {"component": entry.qualified_name, "registry": registry})()
    checks, skipped = checks_without_files(entry)
    return ConformanceReport(record.kind, record.name, len(checks), _failures(case, checks), skipped)


def check_vocabulary(
    vocabulary: Vocabulary, source: PluginSource, registry: Registry | None = None
) -> ConformanceReport:
    """Run every check of ``VocabularyContract``, without pytest."""
    named = {"vocabulary": f"{source.distribution}/{vocabulary.name}", "registry": registry}
    case = type("Case", (VocabularyContract,), named)()
    checks = checks_of(VocabularyContract)
    return ConformanceReport("vocabulary", vocabulary.name, len(checks), _failures(case, checks))


def _failures(case: Contract, checks: Sequence[str]) -> dict[str, str]:
    """Return the cause of each check that fails."""
    failures = {}
    for name in checks:
        try:
            getattr(case, name)()
        except LyricsError as error:
            failures[name] = str(error)
        except Exception as error:  # third-party code may raise anything; all of it is a finding
            frame = traceback.extract_tb(error.__traceback__)[-1]
            failures[name] = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    return failures


def checks_without_files(entry: Entry) -> tuple[list[str], str]:
    """Return the names of the checks that a component can be held to as it is installed.

    Beside them stands why not to the others, if not to all.
    """
    checks = checks_of(CONTRACTS[entry.component.kind])
    skipped = _needs(entry)
    return ([name for name in checks if name in _WITHOUT_A_BUILD] if skipped else checks), skipped


def _needs(entry: Entry) -> str:
    """``needs root`` for a component of data whose test options leave required options open; else an empty string."""
    record = entry.component
    fields = record.options.model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in record.test_options]
    return f"needs {', '.join(missing)}" if missing and record.kind in ("dataset", "benchmark") else ""
