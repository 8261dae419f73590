"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lyrics.core.clean_text import json_printable, printable

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the spec; may be given several times."),
]


def print_json(data: Any) -> None:
    print(json_printable(json.dumps(data, indent=2, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A plain table; the columns named in ``right`` are set flush right.

    Never narrower than its content when not on a terminal.
    """
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell).replace("\n", " ") for cell in row))
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, emoji=False, width=10_000)
        out.print(table, crop=False, no_wrap=True)
        return
    out.print(table)


def print_text(text: str, *, error: bool = False) -> None:
    """Print text, of which nothing acts on the terminal; to standard error, if wanted."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_piece(text: str) -> None:
    """Print a piece of a line that is being written."""
    print(printable(text), end="", flush=True)
