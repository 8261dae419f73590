"""``lyrics data``: prepare, look at and check data sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text
from lyrics.cli._renamed import renamed_option

if TYPE_CHECKING:
    from lyrics.core.contracts import Dataset
    from lyrics.core.types import Sample

app = typer.Typer(help="Prepare, look at and check data sets.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="A data set, such as coco; 'lyrics list dataset' names them.")]
Root = Annotated[Path | None, typer.Option(help="Folder with its files; short for --set root=FOLDER.")]


@app.command("index", short_help="Write the offset index of tar shards.")
def index(tars: Annotated[list[Path], typer.Argument(help="Tar shards, as img2dataset writes them.")]) -> None:
    """Read each tar once and write TAR.index beside it.

    A tar that is damaged or has links is reported and not indexed.
    """
    from lyrics.core.data.readers import write_index
    from lyrics.core.errors import DatasetError

    failed = 0
    for tar in tars:
        try:
            print_text(f"{tar}: {write_index(tar):,} samples")
        except (DatasetError, OSError) as error:
            failed += 1
            print_text(f"lyrics: {error}", error=True)
    if failed:
        typer.echo(f"{failed} of {len(tars)} tars were not indexed", err=True)
        raise typer.Exit(1)


@app.command("merge", short_help="Bring the shards of 'lyrics refine --shard' together.")
def merge(
    folder: Annotated[Path, typer.Argument(help="The --out of 'lyrics refine --shard I/N'.")],
    formats: Annotated[
        str, typer.Option("--format", help="What to write of jsonl (always), coco, parquet and yolo.")
    ] = "jsonl,coco",
    json: JsonFlag = False,
) -> None:
    """Write objects.jsonl and skipped.jsonl of all shards, sorted by path, and what else is asked for.

    All shards must be done, by one refiner; those that are not are named.
    """
    from lyrics.core.errors import LyricsError
    from lyrics.core.files import name_as_text, name_for_messages
    from lyrics.core.refining.shards import merge_shards

    try:
        done = merge_shards(folder, [name.strip() for name in formats.split(",")])
    except OSError as error:
        raise LyricsError(f"{name_for_messages(folder)}: cannot be written: {error.strerror or error}.") from error
    files = [name_as_text(str(path)) for path in done.files]
    if json:
        print_json({"shards": done.shards, "rows": done.rows, "skipped": done.skipped, "files": files})
    else:
        print_text(f"{done.rows:,} rows of {done.shards} shards, {done.skipped:,} skipped: {', '.join(files)}")


@app.command("filter", short_help="Score how well each row's image and text belong together.")
def filter_rows(
    name: Name,
    out: Annotated[Path, typer.Option(help="The file of scores to write, such as laion.safetensors.")],
    root: Root = None,
    settings: SetOption = None,
    column: Annotated[str, typer.Option(help="The number of each record that says it.")] = "similarity",
    model: Annotated[
        str | None,
        typer.Option(help="A model or run of stage 1, which says it of each pair: itm, a probability; itc, a cosine."),
    ] = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option(
            "--at-least", metavar="NAME=NUMBER", help="Count the rows that reach it; may be given several times."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pairs that a model scores together.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and prepare images for a model.")] = 2,
    device: Annotated[str | None, typer.Option(help="Where a model runs, such as cuda; a GPU if there is one.")] = None,
    json: JsonFlag = False,
) -> None:
    """Write a score for each row; training then reads those that reach a threshold.

    \b
    lyrics data filter laion --root LAION --out laion.safetensors
    lyrics pretrain CONFIG --set data.sets.laion.scores=laion.safetensors \\
      --set 'data.sets.laion.at_least={similarity: 0.3}'

    Without --model it is the number that each record has under the name --column, such as LAION's similarity. A row
    that cannot be read has no score, and is not read in training.
    """
    import numpy as np

    from lyrics.core.data.relevance import rows_reaching, write_scores
    from lyrics.core.errors import SpecError
    from lyrics.core.evaluation.relevance import column_scores, model_scores

    thresholds = _thresholds(at_least)
    if not out.parent.is_dir():
        raise SpecError(f"--out {out}: there is no folder {out.parent}.")
    data = _built(name, root, settings)

    def say(line: str) -> None:
        print_text(line, error=True)

    if model is None:
        found = column_scores(data, column, say)
    else:
        import torch

        from lyrics.core.loading import load_model

        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = model_scores(load_model(model, device=place), data, batch=batch, workers=workers, say=say)
    write_scores(out, found.scores, {"data_set": name, "by": model or f"column {column}"})
    rows = len(data)
    kept = len(rows_reaching(found.scores, thresholds, rows, str(out))) if thresholds else None
    quantiles = {
        kind: [float(one) for one in np.nanquantile(scores, (0.05, 0.25, 0.5, 0.75, 0.95))]
        for kind, scores in found.scores.items()
    }
    if json:
        print_json({"rows": rows, "unread": dict(found.unread), "quantiles": quantiles, "kept": kept, "file": str(out)})
        return
    print_text(
        f"{out}: {rows:,} rows"
        + "".join(f"; {count:,} without a score ({what})" for what, count in found.unread.items())
    )
    for kind, values in quantiles.items():
        print_text(f"{kind}: 5, 25, 50, 75, 95 % of the rows lie below {', '.join(f'{one:.3f}' for one in values)}")
    if kept is not None:
        print_text(f"{kept:,} rows reach {', '.join(f'{kind} >= {least:g}' for kind, least in thresholds.items())}")


def _thresholds(given: list[str] | None) -> dict[str, float]:
    """``["similarity=0.3"]`` -> ``{"similarity": 0.3}``. Raises ``SpecError``."""
    from lyrics.core.errors import SpecError

    found = {}
    for one in given or ():
        kind, _, number = one.partition("=")
        try:
            found[kind.strip()] = float(number)
        except ValueError:
            raise SpecError(f"--at-least {one}: write NAME=NUMBER, such as --at-least similarity=0.3.") from None
    return found


@app.command("import-refs", short_help="RefCOCO's refs(*).p to JSON, once.")
def import_refs(
    source: Annotated[Path, typer.Argument(help="refs(unc).p or the like.")],
    dest: Annotated[Path, typer.Argument(help="The JSON file to write, such as refs(unc).json.")],
) -> None:
    """Convert a pickle of refs in a process of its own, with an unpickler that refuses everything but plain values."""
    from lyrics.core.data.convert_refs import import_refs as convert

    print_text(f"{dest}: {convert(source, dest):,} refs")


@app.command("check", short_help="Count samples; find missing images and boxes that are not valid.")
def check(
    name: Name,
    root: Root = None,
    settings: SetOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many samples, spread evenly.")] = None,
    opened: Annotated[
        bool | None,
        typer.Option(
            "--images", help="Decode every image, too, and compare its size with the annotated one.", show_default=False
        ),
    ] = None,
    opened_before: Annotated[
        bool | None, typer.Option("--pictures", hidden=True, help="The former name of --images.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Read every sample, look whether its image is there, and count what is wrong.

    Exit code 1 when a sample or an image cannot be read, when the set has not as many samples as were published, and
    when images are missing. Where none of the images is there, records were checked alone: that is said, and is no
    fault without --images.
    """
    from lyrics.core.data.readers import RecordDataset
    from lyrics.core.errors import ImageError, SampleError

    opened = renamed_option("--images", opened, "--pictures", opened_before)
    data = _built(name, root, settings)
    counts = {"samples": len(data), "looked_at": 0, "images": 0, "images_missing": 0, "captions": 0, "turns": 0}
    counts |= {"boxes": 0, "boxes_without_area": 0}
    problems: list[str] = []
    missing: list[str] = []
    for number in _spread(len(data), limit):
        counts["looked_at"] += 1
        try:
            sample = data[number]
        except (SampleError, ImageError) as error:
            problems.append(str(error))
            continue
        counts["captions"] += len(sample.captions)
        counts["turns"] += len(sample.turns)
        counts["boxes"] += len(sample.objects)
        counts["boxes_without_area"] += sample.extra.get("boxes_dropped", 0)
        if sample.image is None:
            continue
        counts["images"] += 1
        try:
            if opened:
                data.picture(sample)
            elif isinstance(data, RecordDataset):
                data.find_picture(sample)
        except (SampleError, ImageError) as error:
            (missing if error.kind == "missing" else problems).append(str(error))
    counts["images_missing"] = len(missing)
    none_there = not opened and bool(missing) and len(missing) == counts["images"]
    if not none_there:
        problems += missing
    expected = getattr(data, "expected", None)
    if expected is not None and expected != len(data):
        problems.append(f"{name} has {expected:,} samples as published; here are {len(data):,}")
    if json:
        print_json({**counts, "expected": expected, "problems": problems})
    else:
        for what, count in counts.items():
            print_text(f"{what.replace('_', ' ')}: {count:,}")
        if none_there:
            print_text(f"none of the {len(missing):,} images is there, so only the records were checked: {missing[0]}")
        for problem in problems[:20]:
            print_text(f"problem: {problem}")
        if len(problems) > 20:
            print_text(f"and {len(problems) - 20:,} more problems")
    if problems:
        raise typer.Exit(1)


@app.command("peek", short_help="The first samples as a sheet of images with their boxes.")
def peek(
    name: Annotated[str, typer.Argument(help="A data set, such as coco; or a tar shard with its index.")],
    root: Root = None,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The sheet to write, a PNG; without it only the text is printed.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="How many samples.")] = 12,
    start: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
) -> None:
    """Print the first samples, and draw their images with boxes on a sheet."""
    from lyrics.core.data.sheet import contact_sheet
    from lyrics.core.errors import ImageError, SampleError

    data = _built(name, root, settings)
    drawn = []
    for number in range(start, min(start + count, len(data))):
        try:
            sample = data[number]
            print_text(_described(number, sample))
            if out is not None and sample.image is not None:
                drawn.append((f"{number}", sample, data.picture(sample)))
        except (SampleError, ImageError) as error:
            print_text(f"{number}: cannot be read: {error}")
    if out is not None and drawn:
        contact_sheet(drawn).save(out, format="PNG")
        print_text(f"{len(drawn)} images on {out}")


def _described(number: int, sample: Sample) -> str:
    lines = [f"{number}: {sample.source}  {sample.image or 'no image'}"]
    lines += [f"  caption: {caption}" for caption in sample.captions]
    for found in sample.objects:
        x1, y1, x2, y2 = found.box_norm.as_tuple()
        lines.append(f"  box: {found.tag}  ({x1:.3f},{y1:.3f}),({x2:.3f},{y2:.3f})")
    for turn in sample.turns:
        lines += [f"  asked: {turn.instruction}", f"  answer: {turn.answer}"]
    return "\n".join(lines)


def _spread(total: int, limit: int | None) -> Iterable[int]:
    if limit is None or limit >= total:
        return range(total)
    return (number * total // limit for number in range(limit))


def _built(name: str, root: Path | None, settings: list[str] | None) -> Dataset:
    """Return the data set of that name, or the tar shard."""
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.data.build import build_dataset
    from lyrics.core.data.readers import RecordDataset, TarRecords, tar_sample

    if name.endswith(".tar"):
        tars = TarRecords([Path(name)])
        return RecordDataset(Path(name).name, tars, tar_sample, tars)
    options = parse_overrides(settings)
    if root is not None:
        options["root"] = str(root)
    return build_dataset(name, options)
