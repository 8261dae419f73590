"""``lyrics parity``: compare a model's answers across batches, number types and implementations of attention."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyrics.cli._model import DeviceOption, DownloadFlag, WeightsOption
from lyrics.cli._output import JsonFlag, SetOption, print_json, print_table, print_text

if TYPE_CHECKING:
    from lyrics.workflows.parity import ParityQuestion, ParityReport, Tolerance


def parity(
    model: Annotated[str, typer.Argument(help="A model folder, a run folder, a preset, a spec file, or a hub id.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images; with --questions. Without both, scenes' test split is asked."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Text file with a question on each line; each is asked of every image.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Ask only the first questions, so many.")] = 20,
    compare: Annotated[
        str | None, typer.Option(help="Some of batch,attention,bfloat16,4bit; without it, all that can be made here.")
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Questions answered together in the comparison 'batch'.")] = 8,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.KEY=VALUE",
            help="How far a comparison may be off, such as bfloat16.logit=0.02; repeatable (docs/evaluation.md).",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens of an answer.")] = 32,
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask the same questions in float32 and under other conditions; compare answers, logits and boxes.

    Exit code 1 beyond tolerance.
    """
    from lyrics.cli._overrides import parse_overrides

    tolerances = _tolerances(tolerance)
    names = None if compare is None else [name.strip() for name in compare.split(",") if name.strip()]
    overrides = parse_overrides(settings)

    from lyrics.workflows.parity import loader
    from lyrics.workflows.parity import parity as hold

    report = hold(
        loader(model, overrides=overrides, weights=weights, downloads=download or None, device=device),
        _questions(images, questions, limit),
        compare=names,
        tolerances=tolerances,
        batch=batch,
        max_new_tokens=max_new_tokens,
        progress=lambda stage: print(f"parity: {stage}", file=sys.stderr),
    )
    if json:
        print_json({"model": model, **report.to_json()})
    else:
        _print(report)
    if not report.within:
        raise typer.Exit(1)


def _tolerances(given: Sequence[str] | None) -> Mapping[str, Tolerance]:
    from lyrics.cli._overrides import parse_overrides
    from lyrics.workflows.parity import TOLERANCES, with_tolerance

    found = dict(TOLERANCES)
    for path, value in parse_overrides(list(given or ())).items():
        name, _, key = path.rpartition(".")
        found = with_tolerance(found, name, key, value)
    return found


def _questions(images: Path | None, file: Path | None, limit: int) -> list[ParityQuestion]:
    from lyrics.core.errors import SpecError
    from lyrics.workflows.parity import ParityQuestion

    if images is None and file is None:
        return _scenes(limit)
    if images is None or file is None:
        raise SpecError("--images and --questions: give both, or none for the scenes of the embedded data set.")

    from lyrics.core.refining.refine_files import find_images

    pictures = find_images([images])
    if not pictures:
        raise SpecError(f"--images {images}: holds no image.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--questions {file}: cannot be read: {error}.") from None
    texts = [line for line in lines if line]
    if not texts:
        raise SpecError(f"--questions {file}: holds no question; write one on each line.")
    return [ParityQuestion(f"{path.name}: {text}", path, text) for path in pictures for text in texts][:limit]


def _scenes(limit: int) -> list[ParityQuestion]:
    """Return the first questions of the benchmark ``scenes``, with its prompts: five tasks take turns."""
    from itertools import islice

    from lyrics.core.evaluation.build import build_benchmark
    from lyrics.workflows.parity import ParityQuestion

    benchmark: Any = build_benchmark("scenes", {"split": "test", "scenes": limit})
    return [
        ParityQuestion(sample.extra["sample_id"], benchmark.picture(sample), benchmark.prompt(sample))
        for sample in islice(benchmark.samples(), limit)
    ]


def _print(report: ParityReport) -> None:
    def share(worst: float | None, largest: float | None) -> str:
        return "" if worst is None or not largest else f"{worst:.3g} ({worst / largest:.2g} of the largest)"

    rows = []
    for one in report.comparisons:
        answers = "" if one.worst_logit is None else f"{len(one.differing)} of {one.questions}"
        boxes = "" if one.mean_iou is None else f"{one.mean_iou:.3f} ({one.boxes})"
        far = share(one.worst_logit, one.largest_logit) or share(one.worst_output, one.largest_output)
        rows.append((one.variant, answers, far, boxes, "beyond tolerance" if one.exceeded else "within"))
    columns = ("held against float32, one by one", "answers differ", "worst difference", "mean IoU (boxes)", "")
    print_table(columns, rows)
    for one in report.comparisons:
        for reason in one.exceeded:
            print_text(f"{one.variant}: {reason}")
        if one.differing:
            print_text(
                f"{one.variant}: other answers to "
                f"{', '.join(one.differing[:5])}{' ...' if len(one.differing) > 5 else ''}"
            )
    for name, reason in report.skipped.items():
        print_text(f"not compared: {name}: {reason}")
