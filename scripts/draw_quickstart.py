"""Draw the picture at the top of the README: scenes as ``lyrics-tiny`` sees them, and what it answers.

lyrics quickstart --out quickstart
python scripts/draw_quickstart.py quickstart [docs/pictures/quickstart.png]
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lyrics import Box
from lyrics.data import draw_objects
from lyrics.types import DetectedObject
from lyrics.workflows.quickstart import RESULT

SHOWN, CELL, TEXT_HEIGHT, GAP = 3, 384, 150, 12
INK, QUIET = (20, 20, 20), (110, 110, 110)
BOX = re.compile(r"<box ([0-9 ]+)>")


def cell(entry: dict[str, Any], folder: Path) -> Image.Image:
    """One picture with the refiner's boxes, three times as large, and the conversation underneath."""
    picture = Image.open(folder / Path(entry["picture"]).name).convert("RGB")
    size = picture.size
    objects = [
        DetectedObject(found["tag"], box, found["score"])
        for found in entry["objects"]
        if (box := Box.from_px(found["box_px"], size))
    ]
    scale = CELL // max(size)
    drawn = draw_objects(picture.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST), objects)
    for turn in entry["conversation"]:  # a box that is asked about
        for corners in BOX.findall(turn["question"]):
            box = [scale * int(edge) for edge in corners.split()]
            ImageDraw.Draw(drawn).rectangle(box, outline="white", width=3)
    sheet = Image.new("RGB", (CELL, CELL + TEXT_HEIGHT), "white")
    sheet.paste(drawn, ((CELL - drawn.width) // 2, (CELL - drawn.height) // 2))
    pen, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(size=14), CELL + 8
    for turn in entry["conversation"]:
        boxes = "".join(" [{}]".format(" ".join(f"{edge:.0f}" for edge in one["box_px"])) for one in turn["objects"])
        answer = f"{turn['plain_text'] or turn['text']}{boxes}"
        named = turn["text"].removeprefix("a ").removeprefix("an ")
        if turn["truth"] not in ("", turn["text"], named):
            answer += f"   (true: {turn['truth']})"
        for text, ink in ((BOX.sub("the white box", turn["question"]), QUIET), (answer, INK)):
            for line in textwrap.wrap(text, 52):
                pen.text((4 if ink == QUIET else 20, y), line, fill=ink, font=font)
                y += 18
    return sheet


def main(folder: Path, path: Path) -> None:
    entries = json.loads((folder / RESULT).read_text(encoding="utf-8"))["pictures"][:SHOWN]
    sheet = Image.new("RGB", (SHOWN * (CELL + GAP) - GAP, CELL + TEXT_HEIGHT), "white")
    for number, entry in enumerate(entries):
        sheet.paste(cell(entry, folder), (number * (CELL + GAP), 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/pictures/quickstart.png"))
