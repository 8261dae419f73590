"""``lyrics test-plugin DIST``: the conformance suite over everything a distribution provides."""

from __future__ import annotations

from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, print_json, print_table, print_text


def test_plugin(
    distribution: Annotated[str, typer.Argument(help="Name of an installed distribution, such as acme-boxes.")],
    json: JsonFlag = False,
) -> None:
    """Run the conformance suite over all that a distribution provides; exit code 1 if a part breaks its contract."""
    from packaging.utils import canonicalize_name

    from lyrics.core.errors import UnknownNameError, did_you_mean
    from lyrics.core.registry.registry import default_registry

    registry = default_registry()
    wanted = canonicalize_name(distribution)
    plugins = [plugin for plugin in registry.plugins if canonicalize_name(plugin.source.distribution) == wanted]
    if not plugins:
        names = sorted({plugin.source.distribution for plugin in registry.plugins})
        raise UnknownNameError(
            f"no installed plugin comes from a distribution {distribution!r}.{did_you_mean(distribution, names)} "
            f"Distributions with plugins: {', '.join(names) or 'none'}."
        )

    from lyrics.testing import check_component, check_vocabulary

    failures = [failure for plugin in plugins for failure in plugin.failures]
    reports = [
        check_component(entry, registry)
        for entry in registry.entries
        if canonicalize_name(entry.source.distribution) == wanted
    ]
    reports += [
        check_vocabulary(vocabulary, source, registry)
        for vocabulary, source in registry.vocabularies
        if canonicalize_name(source.distribution) == wanted
    ]
    failed = bool(failures) or any(report.failures for report in reports)
    if json:
        print_json(
            {
                "plugins": [{"entry_point": f.source.entry_point, "cause": f.cause} for f in failures],
                "components": [
                    {
                        "kind": r.kind,
                        "name": r.name,
                        "checks": r.checks,
                        "failures": dict(r.failures),
                        "skipped": r.skipped,
                    }
                    for r in reports
                ],
                "passed": not failed,
            }
        )
    else:
        for failure in failures:
            print_text(f"broken: {failure.source}: {failure.cause}")
        print_table(
            ("kind", "name", "checks", "failed", "others not run"),
            [
                (report.kind, report.name, str(report.checks), str(len(report.failures)), report.skipped)
                for report in reports
            ],
            right=("checks", "failed"),
        )
        for report in reports:
            for name, cause in report.failures.items():
                print_text(f"\n{report.kind} {report.name}: {name}\n  {cause}")
    if failed:
        raise typer.Exit(1)
