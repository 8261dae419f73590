"""When not to answer: where nobody saw what an answer points at, or the language model was not sure enough.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lyrics.core.answers import Answer, Confidence
from lyrics.core.errors import SpecError

#: What is said in place of an answer.
ABSTENTION = "I cannot see that."


@dataclass(frozen=True)
class Abstaining:
    """Which answers are withheld.

    Args:
        threshold: withhold answers whose mean log-probability (``Confidence.mean_log_prob``) is below this number,
            0 at most; None withholds only those that point at things of which the refiner saw none.

    Raises ``SpecError`` for a threshold above 0 or one that is no number.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold <= 0):
            raise SpecError(
                f"threshold={self.threshold}: is the logarithm of a probability, 0 at most; -0.1 asks for tokens of 90 "
                "% in the mean."
            )

    def withholds(self, seen: bool | None, confidence: Confidence | None) -> bool:
        """Return whether an answer with these is withheld.

        Raises ``SpecError`` where a threshold meets an answer without a confidence.
        """
        if self.threshold is None:
            return seen is False
        if confidence is None:
            raise SpecError(
                "a threshold for abstaining needs a language model that says how probable its tokens were "
                "(generate_scored, see lyrics.core.contracts); abstain without one."
            )
        return seen is False or confidence.mean_log_prob < self.threshold

    def __call__(self, answer: Answer) -> Answer:
        """The answer, or an abstention that keeps what it withholds."""
        if not self.withholds(answer.seen, answer.confidence):
            return answer
        return Answer(ABSTENTION, plain_text=ABSTENTION, confidence=answer.confidence, withheld=answer.text)
