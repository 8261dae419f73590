"""``lyrics quickstart``: the main job, end to end, on the embedded model. No download, no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._output import JsonFlag, print_json, print_text


def quickstart(
    image: Annotated[Path | None, typer.Argument(help="A picture; one is drawn if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the result.")] = Path("quickstart"),
    json: JsonFlag = False,
) -> None:
    """Compose lyrics-tiny with random weights and run a picture through every part of it."""
    from lyrics.core.errors import LyricsError
    from lyrics.core.quickstart import run

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    try:
        result = run(image, out, progress=progress)
    except OSError as error:
        raise LyricsError(f"--out {out}: cannot be written: {error.strerror}.") from error
    if json:
        print_json(result)
        return
    print_text(f"picture: {result['picture']} ({result['width']} x {result['height']})")
    names = [tag["name"] for tag in result["tags"]]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    print_text(f"tags: {', '.join(names[:8]) or 'none'}{more}")
    print_text(f"objects: {len(result['objects'])}")
    for found in result["objects"][:5]:
        corners = ", ".join(f"{value:.0f}" for value in found["box_px"])
        print_text(f"  {found['tag']}  ({corners})  score {found['score']:.2f}  mask {found['mask_area_px']} px")
    print_text(f"soft tokens: {result['soft_tokens'][0]} x {result['soft_tokens'][1]}")
    print_text(f"question: {result['question']}")
    print_text(f"answer: {result['answer']!r}")
    print_text(f"written: {result['written']}")
    print_text("\nThe weights are random, so tags, boxes and answer mean nothing yet: this shows that every part runs.")
