"""Option letters of multiple-choice questions, written "(a) blue (b) yellow" (paper, appendix A); for ScienceQA.

What an answer chooses is read in this order, the first that applies:

1. a letter at the beginning, in brackets or followed by a bracket, full stop, colon or comma, or alone:
   ``(b) yellow``, ``B.``, ``b``;
2. a letter after "answer is" or "answer:", with or without brackets: ``The answer is (b).``;
3. the text of one option, as ``exact_match`` compares it: ``yellow``;
4. the one letter in brackets that stands in the answer, where there is only one: ``It must be (b), I think``.

A letter beyond the last option chooses nothing, and so does an answer that fits none of these: it is counted as
unparsed, and as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase

from lyrics.core.evaluation.metrics.exact import plain

_FIRST = re.compile(r"\(\s*([a-z])\s*\)|([a-z])(?=\s*[).:,]|$)", re.IGNORECASE)
_NAMED = re.compile(r"\banswer(?: is|:)\s*(?:\(\s*([a-z])\s*\)|([a-z])(?![\w']|\s+\w))", re.IGNORECASE)
_BRACKETED = re.compile(r"\(\s*([a-z])\s*\)", re.IGNORECASE)


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """Return the number of the option that an answer chooses, from 0; None where it cannot be told."""
    text = answer.strip()
    if found := _FIRST.match(text) or _NAMED.search(text):
        return _number(found[1] or found[2], options)
    said = plain(text)
    same = [number for number, option in enumerate(options) if plain(option) == said]
    if len(same) == 1:
        return same[0]
    letters = {letter.lower() for letter in _BRACKETED.findall(text)}
    return _number(letters.pop(), options) if len(letters) == 1 else None


def _number(letter: str, options: Sequence[str]) -> int | None:
    number = ascii_lowercase.index(letter.lower())
    return number if number < len(options) else None
