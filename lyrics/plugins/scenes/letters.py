"""Capital letters of 5 x 7 pixels, so that a rendered word looks the same wherever it is drawn."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

LETTER_WIDTH, LETTER_HEIGHT = 5, 7
# Seven rows from the top, each five bits with the left pixel highest.
_ROWS = {
    "A": "0E 11 11 1F 11 11 11",
    "B": "1E 11 11 1E 11 11 1E",
    "C": "0E 11 10 10 10 11 0E",
    "D": "1E 11 11 11 11 11 1E",
    "E": "1F 10 10 1E 10 10 1F",
    "F": "1F 10 10 1E 10 10 10",
    "G": "0E 11 10 17 11 11 0F",
    "H": "11 11 11 1F 11 11 11",
    "I": "0E 04 04 04 04 04 0E",
    "J": "07 02 02 02 02 12 0C",
    "K": "11 12 14 18 14 12 11",
    "L": "10 10 10 10 10 10 1F",
    "M": "11 1B 15 15 11 11 11",
    "N": "11 11 19 15 13 11 11",
    "O": "0E 11 11 11 11 11 0E",
    "P": "1E 11 11 1E 10 10 10",
    "Q": "0E 11 11 11 15 12 0D",
    "R": "1E 11 11 1E 14 12 11",
    "S": "0F 10 10 0E 01 01 1E",
    "T": "1F 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0E",
    "V": "11 11 11 11 11 0A 04",
    "W": "11 11 11 15 15 1B 11",
    "X": "11 11 0A 04 0A 11 11",
    "Y": "11 11 0A 04 04 04 04",
    "Z": "1F 01 02 04 08 10 1F",
}


@functools.lru_cache(maxsize=1024)
def word_mask(word: str, scale: int) -> npt.NDArray[np.bool_]:
    """A word's ink, bool [7 * scale, (6 * letters - 1) * scale]: one column between letters."""
    columns = np.zeros((LETTER_HEIGHT, len(word) * (LETTER_WIDTH + 1) - 1), dtype=np.bool_)
    for place, letter in enumerate(word):
        rows = [int(row, 16) for row in _ROWS[letter].split()]
        bits = [[row >> (LETTER_WIDTH - 1 - x) & 1 for x in range(LETTER_WIDTH)] for row in rows]
        start = place * (LETTER_WIDTH + 1)
        columns[:, start : start + LETTER_WIDTH] = bits
    return columns.repeat(scale, axis=0).repeat(scale, axis=1)
