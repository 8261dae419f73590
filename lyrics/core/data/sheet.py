"""A sheet of small images, each with its boxes and a line of text, to check annotations at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lyrics.core.pictures.drawing import draw_objects
from lyrics.core.types import Sample

TILE_PX = 320
_TEXT_PX = 14
_LINES = 3
_COLUMNS = 4
_BACKGROUND, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(pictures: Sequence[tuple[str, Sample, Image.Image]]) -> Image.Image:
    """Return a sheet of (label, sample, image), four in a row, each with its objects drawn and its first words below.

    Boxes are drawn on the image before it is made smaller, so that they are where they are.
    """
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    height = TILE_PX + _LINES * (_TEXT_PX + 4)
    sheet = Image.new("RGB", (columns * TILE_PX, rows * height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_TEXT_PX)
    for number, (label, sample, picture) in enumerate(pictures):
        left, top = number % columns * TILE_PX, number // columns * height
        drawn = draw_objects(picture, sample.objects)
        drawn.thumbnail((TILE_PX - 4, TILE_PX - 4))
        sheet.paste(drawn, (left + 2, top + 2))
        for line, text in enumerate(_wrapped(f"{label}: {_words(sample)}", font)):
            pen.text((left + 4, top + TILE_PX + line * (_TEXT_PX + 4)), text, fill=_INK, font=font)
    return sheet


def _words(sample: Sample) -> str:
    if sample.captions:
        return sample.captions[0]
    if sample.turns:
        return f"{sample.turns[0].instruction} - {sample.turns[0].answer}"
    return ", ".join(found.tag for found in sample.objects)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """As many words as fit on the lines of a tile; letters that the built-in font lacks become question marks."""
    lines = [""]
    for word in text.encode("latin-1", "replace").decode("latin-1").split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE_PX - 8:
            lines[-1] = longer
        elif len(lines) == _LINES:
            lines[-1] += " ..."
            break
        else:
            lines.append(word)
    return lines
