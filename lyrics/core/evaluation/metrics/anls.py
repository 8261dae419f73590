"""ANLS, average normalized Levenshtein similarity, for DocVQA.

Biten et al., "Scene Text Visual Question Answering", 2019, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Answers that are less alike than this are wrong altogether.
THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the likeness to the answer that is most like the prediction, from 0.5 to 1, or 0.

    Case and runs of blanks do not count.

    Raises ``ValueError`` without answers.
    """
    if not answers:
        raise ValueError("ANLS needs an answer at least")
    return max(_likeness(_folded(prediction), _folded(answer)) for answer in answers)


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _likeness(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    if longest == 0:
        return 1.0
    distance = edit_distance(one, other) / longest
    return 1 - distance if distance < THRESHOLD else 0.0


def edit_distance(one: str, other: str) -> int:
    """Return the Levenshtein distance: fewest insertions, deletions and replacements of letters."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, counterpart in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != counterpart))
    return row[-1]
