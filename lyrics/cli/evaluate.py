"""``lyrics evaluate``: a model over benchmarks: predictions, scores, the worst cases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._model import DeviceOption, DownloadFlag, DtypeOption, ModelOption, WeightsOption, open_model
from lyrics.cli._output import JsonFlag, SetOption, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.core.contracts import Benchmark


def evaluate(
    benchmark: Annotated[
        str,
        typer.Option(
            help="Names separated by commas, such as gqa,refcoco:testA (a split of its own). 'lyrics list benchmark' names them."
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
        str | None, typer.Option(help="Split of every benchmark that names none; else each has its own default.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.KEY=VALUE",
            help="Another option of a benchmark, such as refcoco.images=DIR or vqav2.accuracy=lavis.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples of each, the first.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples that are answered together.")] = 8,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="This process answers every N-th sample from I on (0 to N-1) and scores nothing."
        ),
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the answers that are there; no model is built.")
    ] = False,
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    json: JsonFlag = False,
) -> None:
    """Greedy answers to a benchmark's prompts, and their scores. A second run answers only what is missing."""
    from lyrics.core.errors import SpecError
    from lyrics.core.evaluation.report import read_scores, rows_of
    from lyrics.core.evaluation.runner import evaluate as run

    part = _shard(shard)
    if rescore and shard is not None:
        raise SpecError("--rescore and --shard: scores are of the answers of all processes; leave --shard out.")
    if out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: is a file, not a folder.")
    built, about = asked_benchmarks(benchmark, data, split, option)
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
            progress=progress.update,
        )
    written = read_scores(out)
    found = {result.name: written[result.name] for result in results}
    if json:
        print_json({"out": str(out), "benchmarks": found})
        return
    if shard is not None:
        print_text(f"answered; when all processes have finished, run without --shard to merge and score {out}")
        return
    print_table(("benchmark", "samples", "score", "value"), list(rows_of(found)), right=("samples", "value"))
    for result in results:
        for note in result.notes:
            print_text(f"{result.name}: {note}")
    print_text(f"scores, predictions and worst cases in {out}")


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
    """Benchmarks by the name of their folder, and what is known of each."""
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
                f"{flag} {name}: is none of the benchmarks ({', '.join(sorted(names))}).{did_you_mean(name, names)}"
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
