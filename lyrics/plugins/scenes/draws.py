"""Uniform random choices from one generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Draws:
    """Uniform random choices, cheap one by one."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._ready: list[float] = []

    def unit(self) -> float:
        if not self._ready:
            self._ready = self._random.random(64).tolist()
        return self._ready.pop()

    def below(self, count: int) -> int:
        return int(self.unit() * count)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]
