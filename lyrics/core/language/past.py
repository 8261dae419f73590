"""What a language model keeps of a conversation that it has read, so that it reads only what is new.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any


class Past:
    """The prompt that a language model has read so far, place by place, and what it keeps of it.

    Made and dropped by whoever holds the conversation; ``state`` belongs to the language model alone.

    Attributes:
        keys: what stands at each place that was read; equal keys mean equal embeddings.
        state: what the language model keeps of these places (keys and values of its layers); None: nothing.
        weights: what the language model was when it read them; another value makes the state worthless.
    """

    def __init__(self) -> None:
        self.keys: tuple[Hashable, ...] = ()
        self.state: Any = None
        self.weights: Hashable = None

    def shared(self, keys: Sequence[Hashable]) -> int:
        """Return how many places at the beginning of a prompt are as those that were read."""
        count = 0
        for old, new in zip(self.keys, keys, strict=False):
            if old != new:
                break
            count += 1
        return count

    def forget(self) -> None:
        """Keep nothing."""
        self.keys, self.state, self.weights = (), None, None
