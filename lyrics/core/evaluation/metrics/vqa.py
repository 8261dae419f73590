"""VQA accuracy in its three variants, which give different scores: a score carries its variant's name.

=============  =========================================================================================================
variant        what is normalized before answers are compared
=============  =========================================================================================================
``official``   prediction and answers, both wholly, but only where the annotators' answers are not all the same; where
               they are, the prediction must be that answer letter for letter (GT-Vision-Lab/VQA, ``vqaEval.py``)
``lavis``      the prediction always and wholly; of the answers only the punctuation, and only where they differ (LAVIS,
               ``vqa_eval.py``, which is an earlier release of the former; BLIP-2, InstructBLIP and Qwen-VL report it)
``evalai``     prediction and answers, always and wholly, and commas, question marks and possessives first (mmf's
               ``EvalAIAnswerProcessor``; TextVQA's server and lmms-eval)
=============  =========================================================================================================

In all of them a prediction's accuracy is min(1, n / 3), where n annotators of all but one gave it, averaged over the
one left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from lyrics.core.errors import UnknownNameError, did_you_mean

Variant = Literal["official", "lavis", "evalai"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern has a look-behind with its characters swapped, which never matches: only what follows the full
# stop counts. Its third argument is a count by accident (re.UNICODE is 32).
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# The official table maps each of these, with one of its apostrophes missing, to itself. Its capitalized entries
# (I'd've, I'm) can never match a lower-cased word and are left out, like its entries that change nothing (let's,
# she's).
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the other way round in the official table, too


def without_punctuation(text: str) -> str:
    """Punctuation beside a blank vanishes, any other becomes a blank.

    In a text with a number such as 1,000 all of it vanishes.

    Full stops vanish, but not those before a digit. Apostrophes and colons stay.
    """
    squeezed = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if squeezed or beside_blank else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)


def with_digits(text: str) -> str:
    """Lower case; number words to ten as digits (none is 0), without articles, with the apostrophes of contractions."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalized(text: str) -> str:
    """Return the whole normalization of the official script."""
    return with_digits(without_punctuation(_one_line(text)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
    return normalized(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: Variant = "official") -> float:
    """Return the accuracy of one prediction, from 0 to 1.

    ``answers`` are the annotators', ten in VQAv2, OK-VQA, TextVQA and VizWiz; the one left out is left out by its
    position, which is what the official script does where its records have an ``answer_id``. Raises
    ``UnknownNameError`` for a variant that does not exist, ``ValueError`` without answers.
    """
    if variant not in VARIANTS:
        raise UnknownNameError(
            f"there is no VQA accuracy {variant!r}; there are {', '.join(VARIANTS)}.{did_you_mean(variant, VARIANTS)}"
        )
    if not answers:
        raise ValueError("VQA accuracy needs an answer at least")
    said, given = _comparable(prediction, [_one_line(answer) for answer in answers], variant)
    same = sum(answer == said for answer in given)
    others = [same - (answer == said) for answer in given]
    return sum(min(1.0, count / 3) for count in others) / len(given)


def _comparable(prediction: str, answers: list[str], variant: Variant) -> tuple[str, list[str]]:
    differ = len(set(answers)) > 1
    if variant == "evalai":
        return _evalai(prediction), [_evalai(answer) for answer in answers]
    if variant == "lavis":
        return normalized(prediction), [without_punctuation(answer) if differ else answer for answer in answers]
    if differ:
        return normalized(prediction), [normalized(answer) for answer in answers]
    return _one_line(prediction), answers
