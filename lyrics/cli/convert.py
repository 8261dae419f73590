"""``lyrics convert SRC DEST --from FORMAT``: public checkpoints to safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lyrics.cli._output import JsonFlag, print_json, print_text
from lyrics.cli._renamed import renamed_option
from lyrics.core.errors import SpecError

if TYPE_CHECKING:
    from lyrics.core.conversion.convert import Origin

_SHOWN = 3


class ConvertCommand(TyperCommand):
    """Its help ends with the formats that installed components declare."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from lyrics.core.conversion.formats import formats

        with formatter.section("Formats"):
            formatter.write_dl(
                [
                    (known.name, " ".join([known.summary, *(f"({one})" for one in known.published)]))
                    for known in formats()
                ]
            )


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="The checkpoint: a file, or a folder with one or with shards; or hub:OWNER/NAME/FILE or an https "
            "address, which is fetched.",
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; it must not exist, or be empty.")],
    format: Annotated[str, typer.Option("--from", metavar="FORMAT", help="Format of SRC, one of those below.")],
    model: Annotated[
        str | None,
        typer.Option(help="A preset, or a YAML or JSON file, whose part states the sizes of the checkpoint."),
    ] = None,
    spec: Annotated[str | None, typer.Option(hidden=True, help="The former name of --model.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PART=FOLDER",
            help="For a whole model: what a part needs besides its tensors, such as language_model=FOLDER with its "
            "tokenizer; may be given several times.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Convert a public checkpoint to safetensors that the parts read, and account for every key.

    A pickled SRC (.pth, .pt, .bin) is read by a process of its own that refuses everything but tensors and plain
    values. DEST appears whole or not at all; DEST/conversion.json says what became of every key, with the SHA-256 of
    each file.
    """
    from lyrics.core.conversion.convert import convert as run

    def say(line: str) -> None:
        print_text(f"fetching {line}", error=True)

    spec = renamed_option("--model", model, "--spec", spec)
    report = run(source, dest, format, spec=spec, beside=_folders(given), say=say)
    if json:
        print_json(report.to_json())
        return
    num_bytes = sum(file.bytes for file in report.result)
    print_text(f"{dest}: {num_bytes / 1e9:.2f} GB for {report.component}, from {_files(report.source)}")
    for what, names in (
        ("taken, same name", report.taken),
        ("renamed", tuple(report.renamed)),
        ("new, initialized", report.new),
        ("left, not used", report.left),
    ):
        print_text(f"{what}: {len(names):,}{_first(names)}")
    for file in report.beside:
        print_text(f"beside the weights: {_files([file])}")
    for note in report.notes:
        print_text(f"note: {note}")
    print_text(f"every key: {dest / 'conversion.json'}")


def _folders(given: Sequence[str] | None) -> dict[str, str]:
    """``["refiner.tagger=ram/data"]`` -> ``{"refiner.tagger": "ram/data"}``. Raises ``SpecError``."""
    folders: dict[str, str] = {}
    for one in given or ():
        part, equals, folder = one.partition("=")
        if not (equals and part.strip() and folder):
            raise SpecError(f"--with {one}: write PART=FOLDER, such as --with language_model=vicuna-tokenizer.")
        if part.strip() in folders:
            raise SpecError(f"--with {one}: {part.strip()} has a folder already, {folders[part.strip()]}.")
        folders[part.strip()] = folder
    return folders


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
