"""``lyrics evaluate``: a model over benchmarks: predictions, scores, the worst cases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._abstaining import AbstainBelowOption, AbstainFlag, asked_abstaining
from lyrics.cli._conditions import (
    BlurOption,
    BlurPartsOption,
    DrawOption,
    DropOption,
    SoftOption,
    asked_conditions,
)
from lyrics.cli._model import DeviceOption, DownloadFlag, DtypeOption, ModelOption, WeightsOption, open_model
from lyrics.cli._output import JsonFlag, SetOption, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.core.contracts import Benchmark
    from lyrics.core.evaluation.runner import Result


def evaluate(
    benchmark: Annotated[
        str,
        typer.Option(
            help="Names separated by commas, such as gqa,refcoco:testA (a split of its own). 'lyrics list benchmark' "
            "names them."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for predictions, scores and worst cases; it may hold an earlier run's.")
    ],
    model: ModelOption = "lyrics-tiny",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Where the files of a benchmark are; may be given several times."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of every benchmark that names no split; otherwise each has its own default."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.KEY=VALUE",
            help="Another option of a benchmark, such as refcoco.images=DIR or vqav2.accuracy=lavis.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first samples of each, so many.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of samples that are answered together.")] = 8,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="This process answers every N-th sample from I on (0 to N-1) and scores nothing."
        ),
    ] = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score the existing answers; no model is built.")] = False,
    soft: SoftOption = None,
    blur: BlurOption = None,
    blur_parts: BlurPartsOption = None,
    drop_tokens: DropOption = None,
    condition_seed: DrawOption = None,
    abstain: AbstainFlag = False,
    abstain_below: AbstainBelowOption = None,
    choose_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="RISK",
            min=0.0,
            max=1.0,
            help="Write the threshold for --abstain-below with which at most this share of the remaining answers "
            "is wrong, from 0 to 1.",
        ),
    ] = None,
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    json: JsonFlag = False,
) -> None:
    """Greedy answers to a benchmark's prompts, and their scores. A second run answers only what is missing.

    With --soft, --blur or --drop-tokens the same samples are answered under these conditions as well, and the report
    says what each of them costs: how much the answers depend on the images.
    """
    from lyrics.core.errors import SpecError
    from lyrics.core.evaluation.report import read_scores, rows_of
    from lyrics.core.evaluation.runner import evaluate as run

    part = _shard(shard)
    abstaining = asked_abstaining(abstain, abstain_below)
    conditions = asked_conditions(soft, blur, blur_parts, drop_tokens, condition_seed)
    if rescore and shard is not None:
        raise SpecError("--rescore and --shard: scores are of the answers of all processes; leave --shard out.")
    if out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: is a file, not a folder.")
    built, about = asked_benchmarks(benchmark, data, split, option)
    if choose_threshold is not None:
        _check_choosing(about, abstaining is not None, shard is not None)
    described = " ".join([model, *(["(random weights)"] if weights == "random" else []), *sorted(settings or ())])
    if not rescore:  # then the answers say whose they are
        about = {name: {"model": described, **known} for name, known in about.items()}
    with BenchmarkProgress() as progress:
        results = run(
            None if rescore else lambda: open_model(model, weights, settings, None, device, dtype, download=download),
            built,
            out,
            batch=batch,
            limit=limit,
            shard=part,
            about=about,
            conditions=conditions,
            abstaining=abstaining,
            progress=progress.update,
        )
    if choose_threshold is not None and shard is None:
        _choose_thresholds(out, results, choose_threshold)
    written = read_scores(out)
    found = {result.name: written[result.name] for result in results}
    if json:
        print_json({"out": str(out), "benchmarks": found})
        return
    if shard is not None:
        print_text(f"answered; when all processes have finished, run without --shard to merge and score {out}")
        return
    print_table(("benchmark", "samples", "score", "value"), list(rows_of(found)), right=("samples", "value"))
    if conditions:
        _print_conditions(out, [result.name for result in results])
    for result in results:
        for note in result.notes:
            print_text(f"{result.name}: {note}")
    print_text(f"scores, predictions and worst cases in {out}")


def _check_choosing(about: Mapping[str, Mapping[str, str]], abstaining: bool, shared: bool) -> None:
    from lyrics.core.errors import SpecError

    if abstaining or shared:
        other = "--abstain" if abstaining else "--shard"
        raise SpecError(
            f"--choose-threshold and {other}: a threshold is chosen on all answers as they were given; leave {other} "
            "out."
        )
    for name, known in about.items():
        if known["split"].startswith("test"):
            raise SpecError(
                f"--choose-threshold: {name} is what the threshold will be judged on; choose it on another split, as "
                "with --split validation."
            )


def _choose_thresholds(out: Path, results: Sequence[Result], risk: float) -> None:
    """A file beside each benchmark's scores.

    Raises ``LyricsError`` where answers have no confidence, or none is so seldom wrong.
    """
    from lyrics.core.errors import LyricsError
    from lyrics.core.evaluation import selective

    chosen = {}
    for result in results:
        found = result.details.get("confidence")
        if found is None:
            raise LyricsError(
                f"{result.name}: --choose-threshold needs answers with a confidence and a mark from 0 to 1, and these "
                "have none."
            )
        chosen[result.name] = selective.choose_threshold(found, risk, result.name)
    for name, data in chosen.items():
        selective.write_threshold(out / name, data)
        print_text(
            f"{name}: threshold {data['threshold']:g}: risk {100 * data['risk']:.2f} % at coverage "
            f"{100 * data['coverage']:.1f} %, in {out / name / selective.FILE}",
            error=True,
        )


def _print_conditions(out: Path, names: Sequence[str]) -> None:
    from lyrics.core.evaluation.comparison import NAME, rows_of_json
    from lyrics.core.json_reading import read_json_object

    for name in names:
        columns, rows = rows_of_json(read_json_object(out / name / f"{NAME}.json"))
        print_text(f"\n{name}: score under each condition, and the share of answers that stay the same")
        print_table(columns, rows, right=columns[1:])
        print_text(f"curves and answers in {out / name / NAME}.html\n")


def _shard(text: str | None) -> tuple[int, int]:
    from lyrics.core.errors import SpecError

    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise SpecError(f"--shard {text}: is I/N, with I from 0 to N-1, such as 0/4.")
    return int(found[1]), int(found[2])


def asked_benchmarks(
    names: str, data: Sequence[str] | None, split: str | None, option: Sequence[str] | None
) -> tuple[dict[str, Benchmark], dict[str, dict[str, str]]]:
    """Return benchmarks by the name of their folder, and what is known of each."""
    from lyrics.core.errors import SpecError
    from lyrics.core.evaluation.build import build_benchmark, split_of

    asked = [tuple(name.strip().partition(":")[::2]) for name in names.split(",") if name.strip()]
    if not asked:
        raise SpecError("--benchmark: names none. 'lyrics list benchmark' names them.")
    given = _options(data, option, {name for name, _ in asked})
    built: dict[str, Benchmark] = {}
    about: dict[str, dict[str, str]] = {}
    for name, own in asked:
        options: dict[str, Any] = dict(given.get(name, {}))
        if own or split:
            options["split"] = own or split
        benchmark = build_benchmark(name, options)
        part = split_of(name, options)
        folder = "-".join(filter(None, (name.replace("/", "-"), part)))
        if folder in built:
            raise SpecError(f"--benchmark {names}: {folder} is named twice.")
        built[folder], about[folder] = benchmark, {"benchmark": name, "split": part}
    return built, about


def _options(data: Sequence[str] | None, option: Sequence[str] | None, names: set[str]) -> Mapping[str, dict[str, Any]]:
    """Options by benchmark. Raises ``SpecError`` for one of a benchmark that is not evaluated."""
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import SpecError, did_you_mean

    found: dict[str, dict[str, Any]] = {}
    given = [("--data", *text.partition("=")[::2], "root") for text in data or ()]
    for path, value in parse_overrides(list(option or ())).items():
        name, _, key = path.rpartition(".")
        given.append(("--option", name, value, key))
    for flag, name, value, key in given:
        if not name or value == "":
            raise SpecError(
                f"{flag}: is {'NAME=DIR' if flag == '--data' else 'NAME.KEY=VALUE'}, not {name or value!r}."
            )
        if name not in names:
            raise SpecError(
                f"{flag} {name}: is not one of the benchmarks ({', '.join(sorted(names))}).{did_you_mean(name, names)}"
            )
        found.setdefault(name, {})[key] = value
    return found


class BenchmarkProgress:
    """A bar on standard error with the benchmark's name, samples per second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BenchmarkProgress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def update(self, name: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total)
        self.bars.update(self.tasks[name], completed=done, total=total)
