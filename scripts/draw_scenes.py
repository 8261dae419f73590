"""Draw a contact sheet of ``scenes``: pictures, the boxes of their objects, and what is said of them.

python scripts/draw_scenes.py [docs/pictures/scenes.png]
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import get_args

from PIL import Image, ImageDraw, ImageFont

from lyrics import build_dataset, default_registry
from lyrics.data import converse

COLUMNS, CELL, TEXT_HEIGHT, GAP = 4, 256, 150, 12
INK, QUIET = (20, 20, 20), (120, 120, 120)
#: Tasks that ask several of the others.
SEVERAL = ("mixed", "conversation")


def cell(task: str, index: int) -> Image.Image:
    """One scene twice as large, its boxes in thin black and white lines, and a sample of it underneath."""
    data = build_dataset("scenes", {"task": task, "split": "test"})
    sample = data[index]
    picture = data.picture(sample)
    picture = picture.resize((picture.width * CELL // 128, picture.height * CELL // 128), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for found in sample.objects:
        x1, y1, x2, y2 = found.box_norm.to_px(picture.size)
        pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(255, 255, 255))
        pen.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=(0, 0, 0))
    sheet = Image.new("RGB", (CELL, CELL + TEXT_HEIGHT), "white")
    sheet.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    pen.text((0, CELL + 2), task, fill=QUIET, font=font)
    if task == "caption":
        lines = [f"- {caption}" for caption in sample.captions]
    else:
        turns = converse(sample, seed=0, position=index)
        lines = [line for turn in turns for line in (f"Q: {turn.instruction}", f"A: {turn.answer}")]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 38)]
    pen.multiline_text((0, CELL + 18), "\n".join(wrapped[:8]), fill=INK, font=font, spacing=2)
    return sheet


def main(path: Path) -> None:
    options = default_registry().component("dataset", "scenes").component.options
    tasks = [task for task in get_args(options.model_fields["task"].annotation) if task not in SEVERAL]
    cells = [cell(task, 4 * row + column) for row, task in enumerate(tasks) for column in range(2)]
    rows = -(-len(cells) // COLUMNS)
    step_x, step_y = CELL + GAP, CELL + TEXT_HEIGHT + GAP
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, rows * step_y + GAP), "white")
    for number, one in enumerate(cells):
        sheet.paste(one, (GAP + number % COLUMNS * step_x, GAP + number // COLUMNS * step_y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(192).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/scenes.png"))
