"""``lyrics quickstart``: the main job, end to end, on the embedded model. No download, no GPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lyrics.cli._output import JsonFlag, print_json, print_text


def quickstart(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images or folders of images; scenes are drawn if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the result, and the scenes that are drawn.")] = Path(
        "quickstart"
    ),
    json: JsonFlag = False,
) -> None:
    """Show lyrics-tiny some images: it finds, names, boxes and cuts out objects, and talks about them.

    The results are in report.html.
    """
    from lyrics.core.errors import LyricsError
    from lyrics.core.refining.refine_files import find_images
    from lyrics.workflows.quickstart import run

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    found = find_images(images) if images else []
    if images and not found:
        raise LyricsError(f"{', '.join(map(str, images))}: there is no image in it.")
    try:
        result = run(found, out, progress=progress)
    except OSError as error:
        raise LyricsError(f"--out {out}: cannot be written: {error.strerror}.") from error
    if json:
        print_json(result)
        return
    for one in result["pictures"]:
        print_text(f"{one['picture']} ({one['width']} x {one['height']})")
        for seen in one["objects"][:8]:
            corners = ", ".join(f"{value:.0f}" for value in seen["box_px"])
            print_text(f"  {seen['tag']}  ({corners})  score {seen['score']:.2f}  mask {seen['mask_area_px']} px")
        if not one["objects"]:
            print_text("  nothing found")
        for turn in one["conversation"]:
            truth = f"  (true: {turn['truth']})" if turn["truth"] else ""
            print_text(f"  - {turn['question']}\n    {turn['text'].strip()}{truth}")
    if found:
        print_text("\nlyrics-tiny knows drawn shapes and words only; what it says of a photograph means nothing.")
    if result["swap"] is not None:
        _print_swap(result["swap"]["pictures"])
    for stage, steps in result["training"].items():
        name = "icg" if "icg" in steps[0] else "answer"  # msp has nothing masked in some batches, and no loss then
        print_text(
            f"training, {stage}, from new weights: {len(steps)} steps, loss {name} {steps[0][name]:.2f} -> "
            f"{steps[-1][name]:.2f}"
        )
    print_text(
        "\nThe language model is mostly right about words, counts, places, relations and what is not there, and often "
        "wrong about what is in a box and about things that only their size tells apart; docs/tiny.md has the figures."
    )
    print_text(f"report: {result['report']}")
    first = result["pictures"][0]["picture"]
    print_text(
        "Three things to try next:\n"
        f"  lyrics chat {first} --model lyrics-tiny\n"
        "  lyrics evaluate --model lyrics-tiny --benchmark scenes --limit 20 --out scores\n"
        "  lyrics pretrain tiny-stage1 --out runs/stage1"
    )


def _print_swap(pictures: Sequence[Mapping[str, Any]]) -> None:
    print_text("\nwith the annotations in the detector's place (--set refiner.detector=cached):")
    for one in pictures:
        wrong, missed = ", ".join(one["trained detector alone"]), ", ".join(one["annotations alone"])
        rest = f"; trained detector alone: {wrong}" if wrong else ""
        rest += f"; annotations alone: {missed}" if missed else ""
        print_text(f"  {Path(one['picture']).name}: {one['both']} objects the same{rest}")
