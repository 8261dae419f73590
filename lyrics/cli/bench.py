"""``lyrics bench``: correctness first, then time; one table, one JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, print_json, print_text

app = typer.Typer(help="Benchmarks: correctness first, then time.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def bench() -> None:
    """Benchmarks: correctness first, then time."""


@app.command("step", short_help="The packed stage-1 step against one pass per objective.")
def step(
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples per step; may be given several times. [4 8 16]")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 or bf16; may be given several times. [both]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every variant gets.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    json: JsonFlag = False,
) -> None:
    """Time the paper's stage-1 step: one dense pass per objective (N1), BLIP-2's way (N3), and packed.

    Losses are compared before anything is timed; the variants take turns in one process. The paper's size needs about 12 GiB of memory and
    several minutes on a CPU.
    """
    from lyrics.core.errors import SpecError, UnknownNameError

    for name in dtype or ():
        if name not in ("fp32", "bf16"):
            raise UnknownNameError(f"--dtype {name}: is fp32 or bf16.")

    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise SpecError(f"--device {device}: is not here; 'lyrics doctor' says what is.")

    from lyrics.core.bench_step import run_bench_step, table

    rows = run_bench_step(
        batch or (4, 8, 16),
        dtype or ("fp32", "bf16"),
        rounds,
        device=device,
        out=out,
        say=lambda text: print(text, file=sys.stderr),
    )
    if json:
        print_json(rows)
    else:
        print_text(table(rows))
        if out is not None:
            print_text(f"written: {out}")
