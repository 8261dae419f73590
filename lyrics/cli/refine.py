"""``lyrics refine IMAGE_OR_FOLDER... --out DIR``: tags, boxes and masks of images."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text

# So many skipped files are named on standard error; the file names all.
_SHOWN = 10
_RATE_OVER_S = 30.0


def refine(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images; folders of images (searched at any depth); lists of paths (LIST.txt); tar shards; parquet "
            "files; addresses of an object store, such as s3://bucket/folder."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for objects.jsonl, skipped.jsonl, annotations.coco.json and drawn/.")
    ],
    spec: Annotated[
        str,
        typer.Option(
            help="A preset (of a model, or a refiner: tiny-refiner, paper-refiner, grounded-sam), or a spec file (of a "
            "model, or with the key refiner alone)."
        ),
    ] = "lyrics-tiny",
    phrases: Annotated[
        str | None,
        typer.Option(
            help='What to look for, in place of the tagger\'s tags: "dog, red car". Commas separate the names; a name '
            "cannot contain one."
        ),
    ] = None,
    settings: SetOption = None,
    weights: Annotated[
        str, typer.Option(help="pretrained, or random to try a spec out without weights.")
    ] = "pretrained",
    refined: Annotated[
        Path | None, typer.Option(help="Read tags, boxes and masks back from this objects.jsonl instead.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the experts run, such as cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the experts: float32, bfloat16 or float16.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images that go through the experts together.")] = 8,
    draw: Annotated[
        bool | None,
        typer.Option("--draw/--no-draw", help="Draw boxes, masks and labels.  [default: draw, but not with --shard]"),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="What to write of jsonl (always), coco, parquet and yolo.")
    ] = "jsonl,coco",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do the I-th of N shares of the images, counted from 0; 'lyrics data merge OUT' brings them together.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="all|K",
            help="Keep the experts' local tokens for training without the experts (data.features): all, or of the "
            "detector's the K nearest to objects.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: this process; ray: Ray Data (extra scale), on this machine or on a cluster.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; without it Ray starts here.")] = None,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="CPU cores of one Ray actor, where there are no GPUs.  [default: at most 4]"),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of parquet files that holds the images.")] = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="Drop what another refiner or other phrases left in --out, and do it again.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if anything was skipped, after all else is done.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Tag, detect and segment. A second run does only what is missing.

    Whatever cannot be used is skipped: a line of skipped.jsonl says why, the last line of the output counts the
    reasons, and the exit code stays 0 (see --strict). In folders everything is looked at that is named like an image.
    """
    from itertools import islice

    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.data.refine_inputs import RefineInputs
    from lyrics.core.dtypes import dtype_name
    from lyrics.core.errors import ImageError, SpecError, UnknownNameError
    from lyrics.core.files import name_as_text, name_for_messages
    from lyrics.core.refining.features import FEATURES_FILE, FeatureOptions
    from lyrics.core.refining.formats import COCO_FILE, FILES, check_formats
    from lyrics.core.refining.refine_files import DRAWN_FOLDER, OBJECTS_FILE, SKIPPED_FILE, refine_files
    from lyrics.core.refining.rows import read_skipped
    from lyrics.core.refining.shards import Shard

    if engine not in ("local", "ray"):
        raise UnknownNameError(f"--engine {engine}: is local or ray.")
    if engine == "local" and (address is not None or cores is not None):
        raise SpecError(f"{'--address' if address is not None else '--cores'}: is of Ray; give --engine ray with it.")
    if weights not in ("pretrained", "random"):
        raise UnknownNameError(f"--weights {weights}: is pretrained or random.")
    dtype = dtype_name(dtype)
    asked = None if phrases is None else _names(phrases)
    wanted = check_formats(name.strip() for name in formats.split(","))
    kept = None if features is None else FeatureOptions.parse(features)
    share = None if shard is None else Shard.parse(shard)
    found = RefineInputs(images, leave_out=out / DRAWN_FOLDER, column=column)
    first = list(islice(found, 1))
    if not first:
        raise ImageError(f"no images in {', '.join(map(name_for_messages, images))}.", "empty")
    overrides = parse_overrides(settings)
    if refined is not None:
        for part in ("tagger", "detector", "segmenter"):
            overrides.setdefault(f"refiner.{part}", {"use": "cached", "options": {"file": str(refined)}})

    if engine == "ray":
        given = {"--shard": shard, "--features": features, "--draw": draw, "--redo": redo, "--device": device}
        if without := [name for name, value in given.items() if value]:
            raise SpecError(f"{without[0]}: has no effect with --engine ray; leave it out.")
        from lyrics.core.resolve import resolve_refiner
        from lyrics.workflows.refine_ray import RayOptions, RefinerRecipe, refine_on_ray

        resolved = resolve_refiner(spec, overrides).spec.model_dump(mode="json")
        recipe = RefinerRecipe(resolved, weights, dtype, None if asked is None else tuple(asked))
        options = RayOptions(address, cores, batch)
        try:
            with _Bar() as bar:
                merged = refine_on_ray(recipe, found, out, options=options, formats=wanted, progress=bar.update)
        except OSError as error:
            raise _unwritable(out, error) from error
        written = [name_as_text(str(path)) for path in merged.files]
        if json:
            print_json({"rows": merged.rows, "skipped": merged.skipped, "files": written})
        else:
            print_text(f"{merged.rows:,} images refined, {merged.skipped:,} skipped: {', '.join(written)}")
        if strict and merged.skipped:
            raise typer.Exit(1)
        return

    import torch

    from lyrics.core.build import build_refiner

    if weights == "random":
        torch.manual_seed(0)  # the same refiner every time, so that a second run goes on
    refiner = build_refiner(spec, overrides=overrides, weights=weights, device=device, dtype=dtype)  # type: ignore[arg-type]
    from lyrics.core.refining.known import warn_of_unknown_pictures

    warn_of_unknown_pictures(refiner.experts.values(), found)
    try:
        with _Bar() as bar:
            summary = refine_files(
                refiner,
                found,
                out,
                batch_size=batch,
                draw=share is None if draw is None else draw,
                phrases=asked,
                redo=redo,
                formats=wanted,
                shard=share,
                features=kept,
                progress=bar.update,
            )
    except OSError as error:
        raise _unwritable(out, error) from error
    reasons = ", ".join(f"{count} {kind}" for kind, count in summary.reasons.items())
    count = sum(summary.reasons.values())
    folder = out if share is None else share.folder(out)
    skipped = f"{count} skipped ({reasons}): {name_for_messages(folder / SKIPPED_FILE)} says why" if count else ""
    made = [OBJECTS_FILE, *(FILES[name] for name in wanted if name != "jsonl" and share is None)]
    if json:
        print_json(
            {
                "refined": summary.refined,
                "done_before": summary.done_before,
                "objects": summary.objects,
                "features_bytes": summary.features_bytes,
                "seconds": round(summary.seconds, 3),
                "skipped": {
                    name_as_text(name): {"kind": error.kind, "reason": str(error)}
                    for name, error in summary.skipped.items()
                },
                "objects_file": name_as_text(str(folder / OBJECTS_FILE)),
                "coco_file": name_as_text(str(folder / COCO_FILE)) if COCO_FILE in made else None,
                "files": [name_as_text(str(folder / name)) for name in made],
                "skipped_file": name_as_text(str(folder / SKIPPED_FILE)),
            }
        )
        if skipped:
            print_text(str(skipped), error=True)
    else:
        rate = summary.refined / summary.seconds if summary.seconds else 0.0
        print_text(f"refined {summary.refined} images ({rate:.1f} images/s); {summary.done_before} were done before")
        files = " and ".join(name_for_messages(folder / name) for name in made)
        print_text(f"{summary.objects} objects in {files}")
        if kept is not None:
            each = summary.features_bytes / max(1, summary.refined + summary.done_before)
            print_text(f"{each:,.0f} bytes of features an image in {name_for_messages(folder / FEATURES_FILE)}")
        sys.stdout.flush()
        for _, reason in islice(read_skipped(summary.skipped_file), _SHOWN):
            print_text(f"skipped: {reason}", error=True)
        if count > _SHOWN:
            print(f"skipped: {count - _SHOWN} more", file=sys.stderr)
        if skipped:
            print_text(skipped)
    if strict and count:
        raise typer.Exit(1)


def _unwritable(out: Path, error: OSError) -> Exception:
    from lyrics.core.errors import LyricsError
    from lyrics.core.files import name_for_messages

    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    then = "; what is finished is kept: make room, and run the same command again." if full else "."
    return LyricsError(f"--out {name_for_messages(out)}: cannot be written: {error.strerror or error}{then}")


def _names(phrases: str) -> list[str]:
    """``"dog, red car"`` -> the names, each once. Raises ``SpecError`` where there is none."""
    from lyrics.core.errors import SpecError
    from lyrics.core.files import is_text

    names = [" ".join(name.split()) for name in phrases.split(",")]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise SpecError('--phrases: names nothing; write names parted by commas, such as --phrases "dog, red car".')
    if not all(map(is_text, names)):
        raise SpecError("--phrases: is not UTF-8 text.")
    return names


class _Bar:
    """A progress bar on standard error with images per second, of the last half minute, and the time left."""

    def __init__(self) -> None:
        from collections import deque

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("", total=None, rate=0.0)
        # What was done before passes by at once, and is soon forgotten.
        self.recent: deque[tuple[float, int]] = deque()

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, done: int, total: int) -> None:
        import time

        now = time.perf_counter()
        self.recent.append((now, done))
        while len(self.recent) > 2 and self.recent[0][0] < now - _RATE_OVER_S:
            self.recent.popleft()
        start, done_before = self.recent[0]
        rate = (done - done_before) / (now - start) if now > start else 0.0
        self.progress.update(self.task, completed=done, total=total, rate=rate)
