"""``lyrics doctor``: what is wrong with this installation, and why."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, print_json, print_table, print_text


def doctor(
    json: JsonFlag = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the traceback of every broken plugin.")] = False,
) -> None:
    """Show versions, accelerator, available attention implementations, and broken or slow plugins with the cause."""
    from lyrics.core.registry.doctor import SLOW_SECONDS, diagnose
    from lyrics.core.registry.registry import default_registry

    found = diagnose(default_registry())
    if json:
        print_json(
            {
                "python": found.python,
                "machine": found.machine,
                "accelerator": found.accelerator,
                "versions": found.versions,
                "kernels": found.kernels,
                "plugins": [
                    {
                        **dataclasses.asdict(plugin.source),
                        "seconds": round(plugin.seconds, 4),
                        "components": len(plugin.components),
                        "presets": len(plugin.presets),
                        "heavy_imports": list(plugin.heavy_imports),
                        "failures": [
                            {"kind": f.kind, "name": f.name, "cause": f.cause, "traceback": f.traceback}
                            for f in plugin.failures
                        ],
                    }
                    for plugin in found.plugins
                ],
                "advice": list(found.advice),
            }
        )
        return
    print_text(f"Python {found.python} on {found.machine}; accelerator: {found.accelerator}")
    print_text("\nPackages")
    print_table(
        ("package", "version"), [(name, version or "not installed") for name, version in found.versions.items()]
    )
    print_text("\nAttention implementations")
    print_table(("implementation", "state"), list(found.kernels.items()))
    print_text("\nPlugins")
    rows = []
    for plugin in found.plugins:
        state = "broken" if plugin.failures else "slow" if plugin.seconds > SLOW_SECONDS else "ok"
        source = plugin.source
        count = f"{len(plugin.components)} components, {len(plugin.presets)} presets"
        rows.append(
            (f"{source.distribution} {source.version}", source.entry_point, state, f"{plugin.seconds:.3f} s", count)
        )
    print_table(("from", "entry point", "state", "import", "provides"), rows, right=("import",))
    for failure in found.failures:
        print_text(f"\nbroken: {failure.source}: {failure.cause}")
        if verbose and failure.traceback:
            print_text(failure.traceback.rstrip())
    for sentence in found.advice:
        print_text(f"\nadvice: {sentence}.")
    if not found.failures and not found.advice:
        print_text("\nNothing is broken.")
