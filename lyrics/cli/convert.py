"""``lyrics convert SRC DEST --from FORMAT``: public checkpoints to safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lyrics.cli._output import JsonFlag, print_json, print_text

if TYPE_CHECKING:
    from lyrics.core.convert import Origin

_SHOWN = 3


class ConvertCommand(TyperCommand):
    """Its help ends with the formats that installed components declare."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from lyrics.core.convert import formats

        with formatter.section("Formats"):
            formatter.write_dl([(known.name, known.summary) for known in formats()])


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="The checkpoint: a file, or a folder with one or with shards.")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; it must not exist, or be empty.")],
    format: Annotated[str, typer.Option("--from", metavar="FORMAT", help="Format of SRC, one of those below.")],
    spec: Annotated[
        str | None,
        typer.Option(help="A preset, or a YAML or JSON file, whose part states the sizes of the checkpoint."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Convert a public checkpoint to safetensors that the parts read, and account for every key.

    A pickled SRC (.pth, .pt, .bin) is read by a process of its own that refuses everything but tensors and plain values. DEST appears
    whole or not at all; DEST/conversion.json says what became of every key, with the SHA-256 of each file.
    """
    from lyrics.core.convert import convert as run

    report = run(source, dest, format, spec=spec)
    if json:
        print_json(report.to_json())
        return
    num_bytes = sum(file.bytes for file in report.result)
    print_text(f"{dest}: {num_bytes / 1e9:.2f} GB for {report.component}, from {_files(report.source)}")
    for what, names in (
        ("taken, same name", report.taken),
        ("renamed", tuple(report.renamed)),
        ("new, initialised", report.new),
        ("left, not used", report.left),
    ):
        print_text(f"{what}: {len(names):,}{_first(names)}")
    for file in report.files:
        print_text(f"beside the weights: {file}")
    for note in report.notes:
        print_text(f"note: {note}")
    print_text(f"every key: {dest / 'conversion.json'}")


def _files(files: Sequence[Origin]) -> str:
    first = files[0]
    return (
        f"{first.file} (sha256 {first.sha256[:12]}...)"
        if len(files) == 1
        else f"{first.file} and {len(files) - 1} more"
    )


def _first(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"  ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
