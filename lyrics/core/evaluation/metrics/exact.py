"""Exact match, for GQA and OCR-VQA.

It is top-1 accuracy "by matching the model's response to the ground truth" (paper, section 5.1).

GQA's own script (``eval.py``) compares letter for letter, and its answers are lower case without a full stop. A model
that writes sentences would fail for its spelling, so that case, blanks and one final full stop do not count here, on
either side.
"""

from __future__ import annotations

from collections.abc import Iterable


def plain(text: str) -> str:
    """Lower case, single blanks, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Is the prediction one of the answers? An empty one never is."""
    said = plain(prediction)
    return bool(said) and said in {plain(answer) for answer in answers}
