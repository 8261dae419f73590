"""Yes and no in answers, as MME's and POPE's evaluations read them, and the scores of both.

MME (Fu et al., 2023): two questions about each image, one to be answered with yes and one with no. A subtask's score
is its accuracy plus its share of images with both right, each times 100; perception is the sum over ten subtasks
(2000 at most), cognition over four (800).

POPE (Li et al., 2023): is an object there? Accuracy, and precision, recall and F1 of "yes", with the share of answers
that are yes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lyrics.core.errors import LyricsError
from lyrics.core.renaming import renamed

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_SAID = re.compile(r"\W*(yes|no|y|n)\b", re.IGNORECASE)


def yes_or_no(answer: str) -> bool | None:
    """Return True for an answer that begins with yes, False for no, None for any other.

    A word that merely begins so (north) is neither.
    """
    found = _SAID.match(answer)
    return None if found is None else found[1].lower().startswith("y")


@renamed(pictures="images")
def mme_scores(
    said: Sequence[bool | None], right: Sequence[bool], categories: Sequence[str], images: Sequence[str]
) -> dict[str, float]:
    """Return ``MME perception``, ``MME cognition`` and each subtask's score, from 0 to 200.

    Only what there are questions of is scored.

    Args:
        said: answers in order; None, neither yes nor no, is wrong.
        right: the true answers.
        categories: subtask of each question, spelled as in ``PERCEPTION`` and ``COGNITION``.
        images: name of the image of each question, unique within its subtask.

    Raises ``LyricsError`` for an unknown subtask, and for an image that has not two questions.
    """
    known = (*PERCEPTION, *COGNITION)
    pairs: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for answer, truth, category, image in zip(said, right, categories, images, strict=True):
        if category not in known:
            raise LyricsError(f"MME has no subtask {category!r}; it has {', '.join(known)}.")
        pairs[category][image].append(answer == truth)
    scores: dict[str, float] = {}
    for category, by_image in pairs.items():
        for image, marks in by_image.items():
            if len(marks) != 2:
                raise LyricsError(f"MME asks two questions about an image; {category} {image!r} has {len(marks)}.")
        every = [mark for marks in by_image.values() for mark in marks]
        both = sum(all(marks) for marks in by_image.values())
        scores[category] = 100 * sum(every) / len(every) + 100 * both / len(by_image)
    sums = {
        f"MME {part}": sum(scores[name] for name in names if name in scores)
        for part, names in (("perception", PERCEPTION), ("cognition", COGNITION))
        if any(name in scores for name in names)
    }
    return {**sums, **{f"MME {name}": scores[name] for name in known if name in scores}}


def yes_no_scores(said: Sequence[bool | None], right: Sequence[bool]) -> Mapping[str, float]:
    """Return the scores as POPE reports them.

    ``accuracy``, ``precision``, ``recall``, ``F1`` and ``yes ratio`` are from 0 to 1, ``unparsed`` is a count.

    An answer that is neither is wrong, and is not a yes: where yes is true it is a miss. Where nothing was answered
    with yes precision is 0, and where yes is never true recall is. Raises ``ValueError`` without questions.
    """
    if not said:
        raise ValueError("yes-no scores need a question at least")
    pairs = list(zip(said, right, strict=True))
    both = sum(answer is True and truth for answer, truth in pairs)
    yes, true = sum(answer is True for answer in said), sum(right)
    precision, recall = both / yes if yes else 0.0, both / true if true else 0.0
    return {
        "accuracy": sum(answer == truth for answer, truth in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "yes ratio": yes / len(pairs),
        "unparsed": sum(answer is None for answer in said),
    }
