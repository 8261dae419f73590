"""Draw contact sheets of ``scenes``: plain ones with their boxes and what is said of them, fine ones as twins with
their looks.

python scripts/draw_scenes.py [docs/pictures]
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from PIL import Image, ImageDraw, ImageFont

from lyrics import build_dataset, default_registry
from lyrics.data import converse

COLUMNS, CELL, TEXT_HEIGHT, GAP = 4, 256, 150, 12
#: Pairs of twins that are drawn, by number.
TWINS = (3, 40, 12, 59)
LOOKS_HEIGHT = 108
INK, QUIET = (20, 20, 20), (120, 120, 120)
#: Tasks that ask several of the others.
SEVERAL = ("mixed", "conversation")


def cell(task: str, index: int) -> Image.Image:
    """One scene twice as large, its boxes in thin black and white lines, and a sample of it underneath."""
    data = build_dataset("scenes", {"attributes": "plain", "task": task, "split": "test"})
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


def twin(row: int) -> Image.Image:
    """One fine scene twice as large, and what it looks like underneath: a thing a line, in the order of the list of
    objects.
    """
    data = build_dataset("scenes", {"attributes": "fine", "split": "test"})
    sample = data[row]
    image = data.picture(sample)
    image = image.resize((image.width * CELL // 128, image.height * CELL // 128), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (CELL, CELL + LOOKS_HEIGHT), "white")
    sheet.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    truth = {one["box_norm"]: one for one in sample.extra["things"]}
    lines = [f"{sample.extra['ground']} ground, {sample.extra['texture']}"]
    for found in sample.objects:
        one = truth[found.box_norm.as_tuple()]
        looks = [one["fill"], one["lean"], *(["outlined"] if one["outline"] == "dark" else [])]
        lines.append(f"{one['colour']} {found.tag}: {', '.join(looks)}")
    lines += [f"word {word['text']}" for word in sample.extra["words"]]
    pen.multiline_text((0, CELL + 4), "\n".join(lines), fill=INK, font=font, spacing=1)
    return sheet


def save(cells: Sequence[Image.Image], path: Path, colors: int) -> None:
    """The cells as one image, row by row."""
    rows = -(-len(cells) // COLUMNS)
    step_x, step_y = CELL + GAP, cells[0].height + GAP
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, rows * step_y + GAP), "white")
    for number, one in enumerate(cells):
        sheet.paste(one, (GAP + number % COLUMNS * step_x, GAP + number // COLUMNS * step_y))
    sheet.quantize(colors).save(path, optimize=True)
    print(path)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = default_registry().component("dataset", "scenes").component.options
    tasks = [task for task in get_args(options.model_fields["task"].annotation) if task not in SEVERAL]
    save(
        [cell(task, 4 * row + column) for row, task in enumerate(tasks) for column in range(2)],
        folder / "scenes.png",
        192,
    )
    save([twin(2 * pair + which) for pair in TWINS for which in (0, 1)], folder / "scenes-fine.png", 255)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
