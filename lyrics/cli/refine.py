"""``lyrics refine IMAGE_OR_FOLDER... --out DIR``: tags, boxes and masks of pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def refine(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures (searched at any depth).")],
    out: Annotated[Path, typer.Option(help="Folder for objects.jsonl, annotations.coco.json and drawn/.")],
    spec: Annotated[str, typer.Option(help="A preset or spec file whose refiner is used.")] = "lyrics-tiny",
    settings: SetOption = None,
    weights: Annotated[
        str, typer.Option(help="pretrained, or random to try a spec out without weights.")
    ] = "pretrained",
    refined: Annotated[
        Path | None, typer.Option(help="Read tags, boxes and masks back from this objects.jsonl instead.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the experts run, such as cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the experts: fp32, bf16 or fp16.")] = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Pictures that go through the experts together.")] = 8,
    draw: Annotated[bool, typer.Option(help="Draw boxes, masks and labels.")] = True,
    json: JsonFlag = False,
) -> None:
    """Tag, detect and segment. A second run does only what is missing; bad files are reported and skipped."""
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import ImageError, LyricsError, UnknownNameError
    from lyrics.core.refine_files import COCO_FILE, OBJECTS_FILE, SKIPPED_FILE, find_pictures, refine_files

    if weights not in ("pretrained", "random"):
        raise UnknownNameError(f"--weights {weights}: is pretrained or random.")
    if dtype not in _DTYPES:
        raise UnknownNameError(f"--dtype {dtype}: is fp32, bf16 or fp16.")
    found = find_pictures(pictures)
    if not found:
        raise ImageError(f"no pictures in {', '.join(map(str, pictures))}.", "empty")
    overrides = parse_overrides(settings)
    if refined is not None:
        for part in ("tagger", "detector", "segmenter"):
            overrides.setdefault(f"refiner.{part}", {"use": "cached", "options": {"file": str(refined)}})

    import torch

    from lyrics.core.build import build_refiner

    precision: torch.dtype = getattr(torch, _DTYPES[dtype])
    refiner = build_refiner(spec, overrides=overrides, weights=weights, device=device, dtype=precision)  # type: ignore[arg-type]
    from lyrics.core.known import warn_of_unknown

    warn_of_unknown(refiner.experts.values(), found)
    try:
        with _Bar(len(found)) as bar:
            summary = refine_files(refiner, found, out, batch_size=batch, draw=draw, progress=bar.update)
    except OSError as error:
        raise LyricsError(f"--out {out}: cannot be written: {error.strerror}.") from error
    if json:
        print_json(
            {
                "refined": summary.refined,
                "done_before": summary.done_before,
                "objects": summary.objects,
                "seconds": round(summary.seconds, 3),
                "skipped": {
                    name: {"kind": error.kind, "reason": str(error)} for name, error in summary.skipped.items()
                },
                "objects_file": str(out / OBJECTS_FILE),
                "coco_file": str(out / COCO_FILE),
            }
        )
    else:
        rate = summary.refined / summary.seconds if summary.seconds else 0.0
        print_text(f"refined {summary.refined} pictures ({rate:.1f} images/s); {summary.done_before} were done before")
        print_text(f"{summary.objects} objects in {out / OBJECTS_FILE} and {out / COCO_FILE}")
        for reason in summary.skipped.values():
            print(f"skipped: {reason}", file=sys.stderr)
        if summary.skipped:
            print_text(f"{len(summary.skipped)} skipped, see {out / SKIPPED_FILE}")
    if summary.skipped and len(summary.skipped) == len(found):
        raise typer.Exit(1)


class _Bar:
    """A progress bar on standard error with pictures per second and the time left."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("", total=total, rate=0.0)
        self.first: tuple[float, int] | None = None

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, done: int, total: int) -> None:
        import time

        now = time.perf_counter()
        start, done_before = self.first = self.first or (now, done)
        rate = (done - done_before) / (now - start) if now > start else 0.0
        self.progress.update(self.task, completed=done, total=total, rate=rate)
