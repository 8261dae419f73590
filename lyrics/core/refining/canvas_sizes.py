"""How small a canvas may be for a detector that chooses its queries among image tokens."""

from __future__ import annotations


def missing_pixels(width: int, height: int, queries: int) -> int:
    """Return the pixels to add to a canvas's shorter side so that there are as many image tokens as queries that are
    chosen from them; mostly 0.

    Four levels of 1/8 to 1/64 of the side: a canvas of 1333 x 27 pixels has fewer than 900 tokens.
    """
    longer, shorter = max(width, height), min(width, height)
    missing = 0
    while _image_tokens(longer, shorter + missing) < queries:
        missing += 64 - (shorter + missing) % 64
    return missing


def _image_tokens(width: int, height: int) -> int:
    tokens, columns, rows = 0, -(-width // 4), -(-height // 4)
    for _ in range(4):
        columns, rows = -(-columns // 2), -(-rows // 2)
        tokens += columns * rows
    return tokens
