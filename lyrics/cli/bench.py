"""``lyrics bench``: correctness first, then time; one table, one JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text

app = typer.Typer(help="Benchmarks: correctness first, then time.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def bench() -> None:
    """Benchmarks: correctness first, then time."""


def _check_device(device: str) -> None:
    """Raises ``SpecError`` for a device that is not here."""
    import torch

    from lyrics.core.errors import SpecError

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise SpecError(f"--device {device}: is not here; 'lyrics doctor' says what is.")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _show(rows: Any, shown: str, out: Path | None, json: bool) -> None:
    """The rows as JSON or as text, and where they were written."""
    if json:
        print_json(rows)
        return
    print_text(shown)
    if out is not None:
        print_text(f"written: {out}")


@app.command("step", short_help="The packed stage-1 step against one pass per objective.")
def step(
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Samples per step; may be given several times. [cpu: 4 8 16; cuda: 128 64]"),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32 or bfloat16; may be given several times. [cpu: both; cuda: bfloat16]"),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="paper: four objectives, against N1 and N3; blip2: three, against transformers. [both]"),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help="padded, true, equal or drawn; may be given several times. [all]"),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="What the packed step uses; may be given several times. [cpu: auto; cuda: triton sdpa]"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns that every variant gets. [cpu: 3; cuda: 10]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no case after so long. [no limit]")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also seconds by kind of kernel, in the file.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also ours with its dense blocks through torch.compile.")
    ] = False,
    toy: Annotated[bool, typer.Option("--toy", help="Tiny sizes, to see that it runs.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, and a chart (.svg) beside it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Time the stage-1 step: the paper's in one dense pass per objective (N1), in BLIP-2's way (N3), and packed;
    BLIP-2's with transformers' Q-Former, and packed.

    Lengths of the texts: padded (all of the maximum), true (shorter, the rivals padded to the maximum), equal (shorter,
    without padding) and drawn (for each sample, the rivals padded to the longest of the batch).

    Losses are compared before anything is timed; the variants take turns in one process. The paper's size needs about
    12 GiB of memory and several minutes on a CPU. On a GPU a case that fails is a row that says why, and the exit code
    is 1.
    """
    from lyrics.core.dtypes import SHORT, dtype_name
    from lyrics.core.errors import UnknownNameError

    dtype = [SHORT[dtype_name(name, choices=("float32", "bfloat16"))] for name in dtype or ()]

    _check_device(device)

    from lyrics.workflows.bench.step import ATTENTIONS, LENGTHS, RECIPES, run_bench_step, table

    named = (("attention", attention, ATTENTIONS), ("recipe", recipe, RECIPES), ("lengths", lengths, tuple(LENGTHS)))
    for option, given, known in named:
        for name in given or ():
            if name not in known:
                raise UnknownNameError(f"--{option} {name}: is one of {', '.join(known)}.")

    gpu = device != "cpu"
    rows = run_bench_step(
        batch or ((128, 64) if gpu else (4, 8, 16)),
        dtype or (("bf16",) if gpu else ("fp32", "bf16")),
        rounds or (10 if gpu else 3),
        device=device,
        recipes=recipe or RECIPES,
        lengths=lengths or tuple(LENGTHS),
        attentions=attention or (("triton", "sdpa") if gpu else ("auto",)),
        minutes=minutes,
        profile=profile,
        compiled=compiled,
        toy=toy,
        out=out,
        say=_to_stderr,
    )
    _show(rows, table(rows), out, json)
    if any(row.get("status") == "failed" for row in rows):
        raise typer.Exit(1)


@app.command("host", short_help="The processor's share of a stage-1 step, without a GPU.")
def host(
    config: Annotated[str, typer.Argument(help="A recipe's name or a YAML file of stage 1.")] = "paper-stage1",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples of one device; may be given several times. [32 128 256]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps; medians count.")] = 3,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, and a chart (.svg) beside it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Milliseconds of processor time of a stage-1 step by kind of work, with the arithmetic taken out.

    Needs no GPU, weights or data. Also counts how often the host waits for the device, what it copies there, and how
    much it launches.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.runs.config import load_config

    loaded = load_config(config, parse_overrides(settings))

    from lyrics.workflows.bench.host import BATCHES, run_bench_host, table

    rows = run_bench_host(loaded, batch or BATCHES, rounds, out=out, say=_to_stderr)
    _show(rows, table(rows), out, json)


@app.command("experts", short_help="Images a second of each frozen expert.")
def experts(
    spec: Annotated[str, typer.Argument(help="A preset or file of a model, or of a refiner alone.")] = "lyrics-13b",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images; may be given several times. [8]")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16 or float16; may be given several times. [float32]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Passes; their median counts.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no expert after so long. [no limit]")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    json: JsonFlag = False,
) -> None:
    """Time one pass of image encoder, tagger, detector and segmenter, each alone and with random weights.

    An expert that fails is a row that says why, and the exit code is 1.
    """
    from lyrics.core.dtypes import SHORT, dtype_name

    dtype = [SHORT[dtype_name(name)] for name in dtype or ("float32",)]
    _check_device(device)

    from lyrics.workflows.bench.experts import run_bench_experts, table

    rows = run_bench_experts(
        spec, batch or (8,), dtype, rounds, device=device, minutes=minutes, out=out, say=_to_stderr
    )
    _show(rows, table(rows), out, json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


@app.command("memory", short_help="What a training step takes on a device, beside what is counted.")
def memory(
    config: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Samples; may be given several times. [32]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    json: JsonFlag = False,
) -> None:
    """Bytes of one step with random weights, forward and backward and AdamW, against those of 'lyrics plan'.

    Builds the whole model of the configuration on the device.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.runs.config import load_config

    loaded = load_config(config, parse_overrides(settings))
    _check_device(device)

    from lyrics.workflows.bench.memory import run_bench_memory, table

    rows = run_bench_memory(loaded, batch or (32,), device=device, out=out, say=_to_stderr)
    _show(rows, table(rows), out, json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


@app.command("loader", short_help="Samples a second of one loader process.")
def loader(
    config: Annotated[str, typer.Argument(help="A recipe's name or a YAML file of stage 1.")] = "paper-stage1",
    samples: Annotated[int, typer.Option(min=1, help="Images of a turn.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; medians count.")] = 3,
    throughput: Annotated[
        list[float] | None,
        typer.Option(min=1e-6, help="Samples a second of one device, to be told its cores; may be repeated."),
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    json: JsonFlag = False,
) -> None:
    """Decode, augment and prepare photographs for every expert, on one core: milliseconds of processor time by part.

    Needs no data and no weights.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.runs.config import load_config

    loaded = load_config(config, parse_overrides(settings))

    from lyrics.workflows.bench.loader import run_bench_loader, table

    row = run_bench_loader(loaded, samples, rounds, out=out)
    _show(row, table(row, throughput or ()), out, json)


@app.command("attention", short_help="Both attentions of a packed layer, every implementation.")
def attention(
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples; may be given several times. [cpu: 2; cuda: 128 256 64 16]")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16, float16; may be given several times. [cpu: float32; cuda: bfloat16]"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs; medians count. [cpu: 3; cuda: 30]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0, help="Begin nothing after so long.")] = 8.0,
    toy: Annotated[bool, typer.Option("--toy", help="Tiny sizes, to see that it runs.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, and a chart (.svg) beside it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Compare each implementation with the definition in float64, then time it against dense masked attention.

    Exit code 1 if an implementation that runs here was wrong. On a GPU everything takes under 10 minutes and asks
    nothing.
    """
    from lyrics.core.dtypes import SHORT, dtype_name

    dtype = [SHORT[dtype_name(name)] for name in dtype or ()]

    _check_device(device)

    from lyrics.workflows.bench.attention import run_bench_attention, table
    from lyrics.workflows.bench.work import PAPER, TOY

    gpu = device != "cpu"
    rows = run_bench_attention(
        batch or ((128, 256, 64, 16) if gpu else (2,)),
        dtype or (("bf16",) if gpu else ("fp32",)),
        rounds or (30 if gpu else 3),
        sizes=TOY if toy else PAPER,
        device=device,
        minutes=minutes,
        out=out,
        say=_to_stderr,
    )
    _show(rows, table(rows), out, json)
    if any(row["status"] == "wrong" for row in rows):
        raise typer.Exit(1)
