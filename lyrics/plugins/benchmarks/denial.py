"""Answers that say that something is not there."""

from __future__ import annotations

import re

_DENIAL = re.compile(r"\b(no|not|none|nothing|cannot|absent)\b|n't\b", re.IGNORECASE)


def denies(answer: str) -> bool:
    """Does an answer say that something is not there?"""
    return _DENIAL.search(answer) is not None
