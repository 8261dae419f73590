"""Score captions against several references.

CIDEr, BLEU-1 to 4, ROUGE-L and METEOR are those of pycocoevalcap (extra ``eval``).

Captions are split into words by Stanford's PTB tokenizer, which needs Java; so does METEOR. Where there is no Java, a
simple tokenizer stands in: its scores differ a little, are not comparable with published ones, and say so in their name
(``CIDEr (simple tokens)``); METEOR is then left out.

CIDEr weighs words by how many images *of the evaluated set* have them: the score of a part of a set is not comparable
with that of the whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from lyrics.core.errors import LyricsError, MissingRequirementError

INSTALL = "pip install 'lyrics-vl[eval]'"
SIMPLE = " (simple tokens)"
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")


@dataclass(frozen=True)
class CaptionScores:
    """Scores by name, from 0 to 100 and beyond (CIDEr).

    CIDEr of each caption, in order; what could not be had, and why.
    """

    scores: dict[str, float]
    cider: tuple[float, ...]
    notes: tuple[str, ...]


def has_java() -> bool:
    return shutil.which("java") is not None


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]], *, java: bool) -> CaptionScores:
    """Return the scores of one caption per image; ``references[i]`` are those of image i.

    ``java``: whether it may be used (``has_java``).

    Raises ``MissingRequirementError`` without pycocoevalcap, ``LyricsError`` where the tokenizer fails, ``ValueError``
    for no captions and for one without references.
    """
    if not captions or not all(references):
        raise ValueError("caption scores need a caption at least, and references for each")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise MissingRequirementError(f"caption scores need pycocoevalcap (not installed). Run: {INSTALL}") from None
    tokens = _stanford if java else _simple
    said = tokens([[caption] for caption in captions])
    true = tokens(references)
    mark = "" if java else SIMPLE
    cider, cider_each = Cider().compute_score(true, said)
    bleu, _ = Bleu(4).compute_score(true, said, verbose=0)
    rouge, _ = Rouge().compute_score(true, said)
    scores = {f"CIDEr{mark}": 100 * float(cider)}
    scores |= {f"BLEU-{n}{mark}": 100 * float(value) for n, value in enumerate(bleu, 1)}
    scores[f"ROUGE-L{mark}"] = 100 * float(rouge)
    notes: tuple[str, ...] = ()
    if java:
        scores["METEOR"] = 100 * _meteor(true, said)
    else:
        notes = ("METEOR left out and words split by a simple tokenizer: both need Java (java is not on PATH).",)
    return CaptionScores(scores, tuple(100 * float(value) for value in cider_each), notes)


def simple_tokens(text: str) -> str:
    """Return lower-case words separated by blanks, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def _simple(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    return {number: [simple_tokens(text) for text in row] for number, row in enumerate(texts)}


def _stanford(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One text is one line to the tokenizer, and Java's idea of a line's end is wider than Python's "\n": every kind of
    # blank becomes one.
    lines = {number: [{"caption": " ".join(text.split())} for text in row] for number, row in enumerate(texts)}
    try:
        found: dict[int, list[str]] = PTBTokenizer().tokenize(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise LyricsError(f"the tokenizer of pycocoevalcap failed: {error}.") from error
    short = [number for number, row in lines.items() if len(found.get(number, ())) != len(row)]
    if short:
        raise LyricsError(
            f"the tokenizer of pycocoevalcap gave back too few lines (caption {short[0]} lacks some): Java failed; its "
            "message is above."
        )
    return found


def _meteor(true: dict[int, list[str]], said: dict[int, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        score, _ = Meteor().compute_score(true, said)
    except (OSError, ValueError) as error:
        raise LyricsError(f"METEOR failed: {error}. It needs 2 GiB of memory for Java.") from error
    return float(score)
