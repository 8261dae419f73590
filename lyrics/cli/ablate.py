"""``lyrics ablate``: run the paper's ablations (Tables 5 and 6, Figures 4a and 4b) on any benchmark."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._model import DeviceOption, DownloadFlag, DtypeOption, WeightsOption, open_model
from lyrics.cli._output import JsonFlag, print_json, print_table, print_text
from lyrics.cli.evaluate import BenchmarkProgress as Bars
from lyrics.cli.evaluate import asked_benchmarks as named_benchmarks

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.workflows.ablations.runs import Evaluating, Progress, Stages
    from lyrics.workflows.ablations.tables import Ablation, ScoreRow

WHAT = ("table 5", "table 6", "figure 4a", "figure 4b")
#: Of table 5; ``both`` are the paper's own and ``removed``.
READINGS = ("blank", "removed", "features", "both", "all")
#: What trains, unless configurations are given.
RECIPES = {"pretrain": "tiny-stage1", "finetune": "tiny-stage2"}
_SEEDS = {"table 6": 5}


def ablate(
    out: Annotated[Path, typer.Option(help="Folder for the table or figure, and everything it is made of.")],
    table: Annotated[str | None, typer.Option(help="5: parts of the architecture; 6: exemplars in the prompt.")] = None,
    figure: Annotated[
        str | None, typer.Option(help="4a: amount of pre-training; 4b: language model frozen, LoRA, full.")
    ] = None,
    reading: Annotated[
        str | None,
        typer.Option(
            help="Reading of table 5: blank (the part sees a blank image), features (only its tokens are "
            "those of a blank image), removed (trained without it), both (blank and removed), all."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Variants of table 5, some of full,no-vit,no-odm,no-ssm,no-vr,blip2,mlp-projector,"
            "perceiver-resampler,text-only,soft-only."
        ),
    ] = None,
    amounts: Annotated[str | None, typer.Option(help="Shares of stage 1 for figure 4a, such as 0,1/4,1/2,1.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model folder, a run folder, a preset, a spec file, or a hub id: for table 5, readings blank and "
            "features, and table 6."
        ),
    ] = None,
    pretrain: Annotated[str | None, typer.Option(help="Stage 1 of what is trained: a YAML file or a recipe.")] = None,
    finetune: Annotated[str | None, typer.Option(help="Stage 2 of what is trained: a YAML file or a recipe.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Number of repetitions; unless given, 5 for table 6 and 1 for what is trained."),
    ] = None,
    benchmark: Annotated[str, typer.Option(help="Names separated by commas, as for evaluate.")] = "scenes",
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Where the files of a benchmark are, as for evaluate.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of every benchmark that names no split.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME.KEY=VALUE", help="Another option of a benchmark, as for evaluate.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first samples of each, so many.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of samples that are answered together.")] = 8,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="WHERE.PATH=VALUE",
            help="Override a value of the configuration of stage 1 (pretrain.PATH), stage 2 (finetune.PATH), both "
            "(both.PATH), or of "
            "the specification of --model (model.PATH).",
        ),
    ] = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    json: JsonFlag = False,
) -> None:
    """An ablation of the paper: variants are trained or changed, and evaluated. A second run does only what is missing.

    SIGTERM and Ctrl-C during training save; the same command then goes on.
    """
    from lyrics.core.dtypes import dtype_name, torch_dtype
    from lyrics.core.errors import SpecError

    what = _what(table, figure)
    readings = _readings(what, reading)
    trains = what.startswith("figure") or "removed" in readings
    answers = what == "table 6" or "blank" in readings or "features" in readings
    given = {"--model": (model, answers), "--pretrain": (pretrain, trains), "--finetune": (finetune, trains)}
    _refuse_what_is_not_used(what, readings, given)
    for flag, value, whose in (("--only", only, "table 5"), ("--amounts", amounts, "figure 4a")):
        if value is not None and what != whose:
            raise SpecError(f"{flag}: is for {whose}, not for {what}.")
    if out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: is a file, not a folder.")
    dtype = dtype_name(dtype)
    overrides = _overrides(settings, trains, answers)
    if only is not None:
        _check_only(only, readings)

    built, about = named_benchmarks(benchmark, data, split, option)

    from lyrics.core.training.launch import leave, several_processes
    from lyrics.workflows.ablations.runs import Evaluating, StoppedError

    described = [model or "lyrics-tiny", *(["(random weights)"] if weights == "random" else [])]
    described += sorted(_as_settings(overrides["model"]))
    job = _Job(
        out=out / what.replace(" ", "-"),
        evaluating=Evaluating(built, about, _bars, batch, limit, device, torch_dtype(dtype)),
        load=lambda: open_model(
            model or "lyrics-tiny", weights, _as_settings(overrides["model"]), None, device, dtype, download=download
        ),
        described=" ".join(described),
        stages=_stages(pretrain, finetune, overrides, own_start=what == "figure 4b") if trains else None,
        seeds=seeds or _SEEDS.get(what, 1),
        readings=readings,
        only=_names(only),
        amounts=amounts,
    )
    try:
        found = _MAKERS[what](job)
    except StoppedError as error:
        leave()
        _say(str(error))
        return
    leave()
    if several_processes():
        _say("trained; run the same command without torchrun to evaluate")
        return
    _show(found, out, json)


def _say(text: str) -> None:
    """On the first rank."""
    if os.environ.get("RANK", "0") == "0":
        print_text(text)


def _stages(
    pretrain: str | None, finetune: str | None, overrides: Mapping[str, Mapping[str, Any]], *, own_start: bool
) -> Stages:
    from lyrics.workflows.ablations.runs import open_stages

    one, two = pretrain or RECIPES["pretrain"], finetune or RECIPES["finetune"]
    return open_stages(one, two, overrides, own_start=own_start)


def _what(table: str | None, figure: str | None) -> str:
    from lyrics.core.errors import SpecError, UnknownNameError

    if (table is None) == (figure is None):
        raise SpecError("give one of --table 5, --table 6, --figure 4a and --figure 4b.")
    what = f"table {table}" if table is not None else f"figure {figure}"
    if what not in WHAT:
        raise UnknownNameError(
            f"--{what}: is not an ablation of the paper that is available; there are --{', --'.join(WHAT)}."
        )
    return what


def _readings(what: str, reading: str | None) -> tuple[str, ...]:
    from lyrics.core.errors import SpecError, UnknownNameError, did_you_mean

    if what != "table 5":
        if reading is not None:
            raise SpecError(f"--reading: is for table 5, not for {what}.")
        return ()
    if reading is not None and reading not in READINGS:
        raise UnknownNameError(
            f"--reading {reading}: is one of {', '.join(READINGS)}.{did_you_mean(reading, READINGS)}"
        )
    several = {"both": ("blank", "removed"), "all": ("blank", "features", "removed")}
    return several.get(reading or "", (reading or "blank",))


def _refuse_what_is_not_used(what: str, readings: Sequence[str], given: Mapping[str, tuple[str | None, bool]]) -> None:
    from lyrics.core.errors import SpecError

    named = f"{what}, reading {readings[0]}," if readings else what
    for flag, (value, used) in given.items():
        if value is not None and not used:
            advice = (
                "trains its variants from --pretrain and --finetune"
                if flag == "--model"
                else "takes a trained model, --model"
            )
            raise SpecError(f"{flag} {value}: {named} {advice}.")


def _overrides(settings: list[str] | None, trains: bool, answers: bool) -> dict[str, dict[str, Any]]:
    """Overrides by where they belong.

    Raises ``SpecError`` for a path that does not say, or says what this ablation does not have.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import SpecError

    found: dict[str, dict[str, Any]] = {"pretrain": {}, "finetune": {}, "model": {}}
    for path, value in parse_overrides(settings).items():
        where, _, rest = path.partition(".")
        targets = {"both": ("pretrain", "finetune")}.get(where, (where,))
        if not rest or not set(targets) <= set(found):
            raise SpecError(
                f"--set {path}: say what it belongs to: pretrain.{path} (stage 1), finetune.{path} (stage 2), "
                f"both.{path}, or model.{path} (the specification of --model)."
            )
        if (where == "model" and not answers) or (where != "model" and not trains):
            raise SpecError(f"--set {path}: this ablation has no {where} to set.")
        for target in targets:
            found[target][rest] = value
    return found


def _as_settings(overrides: Mapping[str, Any]) -> list[str]:
    import json

    return [f"{path}={json.dumps(value)}" for path, value in overrides.items()]


def _names(only: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (only or "").split(",") if name.strip())


def _check_only(only: str, readings: Sequence[str]) -> None:
    from lyrics.workflows.ablations.architecture import BASELINES, chosen

    names = [name for name in _names(only) if name not in BASELINES or "removed" not in readings]
    for reading in readings:
        chosen(names, reading)


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    with Bars() as bars:
        yield bars.update


# --- what is made --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What was asked for; ``stages`` where something is trained."""

    out: Path
    evaluating: Evaluating
    load: Callable[[], LyricsModel]
    described: str
    stages: Stages | None
    seeds: int
    readings: tuple[str, ...]
    only: tuple[str, ...]
    amounts: str | None

    def facts(self, rows: Sequence[ScoreRow], *, model: bool) -> dict[str, str]:
        from lyrics.workflows.ablations.tables import samples_of

        seeds = sorted({row.seed for row in rows if row.seed is not None})
        return {
            **self.evaluating.facts(samples_of(rows)),
            "seeds": ", ".join(map(str, seeds)) or "none: nothing is drawn",
            **({"model": self.described} if model else {}),
            **(self.stages.facts() if self.stages is not None else {}),
        }


def _table_5(job: _Job) -> Ablation:
    from lyrics.workflows.ablations.architecture import ANSWERED, BASELINES, answered, removed, table_5

    rows: list[ScoreRow] = []
    names = [name for name in job.only if name not in BASELINES]
    read = [reading for reading in job.readings if reading in ANSWERED]
    for reading in read if names or not job.only else ():
        rows += answered(reading, job.load, job.described, job.evaluating, job.out / reading, names)
    if job.stages is not None:
        rows += removed(job.stages, job.evaluating, job.out / "removed", job.seeds, job.only)
    return table_5(rows, job.facts(rows, model=bool(read)), job.evaluating.about)


def _table_6(job: _Job) -> Ablation:
    from lyrics.workflows.ablations.shots import few_shot, table_6

    rows, left_out = few_shot(job.load, job.described, job.evaluating, job.out, job.seeds)
    return table_6(rows, left_out, job.facts(rows, model=True), job.evaluating.about)


def _figure_4a(job: _Job) -> Ablation:
    from lyrics.workflows.ablations.amount import AMOUNTS, amount, figure_4a, parsed

    assert job.stages is not None
    shares = AMOUNTS if job.amounts is None else parsed(job.amounts)
    rows, samples = amount(job.stages, job.evaluating, job.out, job.seeds, shares)
    return figure_4a(rows, samples, job.facts(rows, model=False), job.evaluating.about)


def _figure_4b(job: _Job) -> Ablation:
    from lyrics.workflows.ablations.tuning import figure_4b, tuning

    assert job.stages is not None
    rows, curves = tuning(job.stages, job.evaluating, job.out, job.seeds)
    return figure_4b(rows, curves, job.facts(rows, model=False), job.evaluating.about)


_MAKERS: Mapping[str, Callable[[_Job], Ablation]] = {
    "table 5": _table_5,
    "table 6": _table_6,
    "figure 4a": _figure_4a,
    "figure 4b": _figure_4b,
}


def _show(found: Ablation, out: Path, as_json: bool) -> None:
    from lyrics.workflows.ablations import tables

    command = shlex.join(["lyrics", *sys.argv[1:]])
    tables.write(found, out, command)
    if as_json:
        print_json(tables.as_json(found, command))
        return
    for reading in found.readings():
        columns, lines = tables.table(found, reading)
        print_text(f"{found.title}{f', reading {reading}' if reading else ''}")
        print_table(columns, lines, right=[column for column in columns if column not in ("benchmark", "score")])
    for note in found.notes:
        print_text(note)
    print_text(f"written to {out / found.name}.md, .json and .svg")
