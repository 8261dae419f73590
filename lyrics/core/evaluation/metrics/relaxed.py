"""Relaxed accuracy, for ChartQA (Masry et al., 2022, section 5.1): numbers may be off by 5 per cent, words must match.

As Pix2Struct and Qwen-VL compute it: a percentage is a hundredth of its number, and next to a true value of 0 nothing
is relaxed.
"""

from __future__ import annotations

import math

TOLERANCE = 0.05


def relaxed_match(prediction: str, answer: str) -> bool:
    """Is the prediction the answer, or a number within 5 per cent of it?"""
    said, true = _number(prediction), _number(answer)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return prediction.strip().lower() == answer.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
