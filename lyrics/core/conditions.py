"""What an image is made of on its way to the language model, so that one can measure whether the answers depend on it.

Imports no torch.

A condition changes what a trained model gets to see and nothing else: ``blur_px`` what the image encoder and the
experts of the refiner look at, ``soft`` and ``drop_tokens`` the soft tokens that the language model reads.
``lyrics.core.evaluation.looking`` evaluates a model under several, and docs/evaluation.md says what the results mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lyrics.core.errors import SpecError, did_you_mean

Soft = Literal["own", "shuffled", "zero", "noise"]
BlurParts = Literal["both", "encoder", "experts"]
SOFT: tuple[Soft, ...] = get_args(Soft)
BLUR_PARTS: tuple[BlurParts, ...] = get_args(BlurParts)


@dataclass(frozen=True)
class Condition:
    """How an image reaches the language model.

    Args:
        soft: ``own`` soft tokens; ``shuffled``: those of another sample; ``zero``; ``noise``: Gaussian numbers of
            the same mean and standard deviation, both over all numbers of an image's soft tokens.
        blur_px: standard deviation of a Gaussian blur, in pixels of the original image.
        blur_parts: who sees the blurred image: the image ``encoder``, the ``experts`` of the refiner, or ``both``.
        drop_tokens: share of each image's soft tokens, rounded to whole ones, that the prompt goes without: the
            tokens behind them move up. Which ones is drawn for each image.
        seed: of what is drawn. Draws are functions of it and of the sample's row.

    Raises ``SpecError`` for a value out of range.
    """

    soft: Soft = "own"
    blur_px: float = 0.0
    blur_parts: BlurParts = "both"
    drop_tokens: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("soft", self.soft, SOFT), ("blur_parts", self.blur_parts, BLUR_PARTS)):
            if value not in known:
                raise SpecError(f"{name}={value}: is one of {', '.join(known)}.{did_you_mean(str(value), known)}")
        if not (math.isfinite(self.blur_px) and self.blur_px >= 0):
            raise SpecError(f"blur_px={self.blur_px}: is a number of pixels, 0 or more.")
        if not 0 <= self.drop_tokens <= 1:
            raise SpecError(f"drop_tokens={self.drop_tokens}: is a share from 0 to 1.")
        if not 0 <= self.seed < 2**64:
            raise SpecError(f"seed={self.seed}: is from 0 to 2^64 - 1.")

    @property
    def changes_nothing(self) -> bool:
        return self.soft == "own" and not self.blur_px and not self.drop_tokens

    @property
    def look(self) -> Condition:
        """The part of it that the image is looked at with; conditions that share it share one look."""
        return Condition(blur_px=self.blur_px, blur_parts=self.blur_parts if self.blur_px else "both")

    @property
    def draws(self) -> bool:
        return self.soft in ("shuffled", "noise") or 0 < self.drop_tokens < 1

    def blurs(self, expert: str) -> bool:
        """Return whether an expert (``image_encoder``, ``detector``, ...) sees a blurred image."""
        part = "encoder" if expert == "image_encoder" else "experts"
        return self.blur_px > 0 and self.blur_parts in ("both", part)

    @property
    def name(self) -> str:
        """A short name, which can be that of a folder.

        For example ``own``, ``soft-shuffled``, ``blur-4-encoder``, ``drop-0.5+seed-3``.
        """
        parts = []
        if self.soft != "own":
            parts.append(f"soft-{self.soft}")
        if self.blur_px:
            parts.append(f"blur-{self.blur_px:g}" + ("" if self.blur_parts == "both" else f"-{self.blur_parts}"))
        if self.drop_tokens:
            parts.append(f"drop-{self.drop_tokens:g}")
        if self.seed and self.draws:
            parts.append(f"seed-{self.seed}")
        return "+".join(parts) or "own"


#: Nothing is changed.
CLEAR = Condition()


def kept_tokens(condition: Condition, queries: int) -> int:
    """Return how many of an image's soft tokens reach the prompt."""
    return queries - round(condition.drop_tokens * queries)
