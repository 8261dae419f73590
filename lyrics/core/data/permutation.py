"""A keyed permutation of 0 .. size - 1 that is computed, not stored: the same time and memory for ten rows and for a billion.

A generalised Feistel network on Z_a x Z_b (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, the
construction FE2) with a and b near the square root of the size; the few numbers of a * b beyond the size are walked past. Its round
function is a multiplicative hash: good shuffling, no cryptography.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_WORD = 2**64 - 1
# Of SplitMix64 (public domain, Sebastiano Vigna).
_FACTOR_1, _FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 8
#: 64-bit words that make a key: one for each round.
KEY_WORDS = _ROUNDS
Number = TypeVar("Number", int, npt.NDArray[np.uint64])


class Permutation:
    """``permutation(i)`` for i in 0 .. size - 1; ``many`` for an array of them.

    Args:
        size: 1 to 2**62.
        key: ``KEY_WORDS`` words of 64 bits; the same ones give the same permutation.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        assert 1 <= size <= 2**62, size
        assert len(key) == KEY_WORDS, len(key)
        self.size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        self._keys = list(zip(key[::2], key[1::2], strict=True))

    def __call__(self, index: int) -> int:
        assert 0 <= index < self.size, index
        index = self._shuffled(index)
        while index >= self.size:
            index = self._shuffled(index)
        return index

    def many(self, indices_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The same for an integer array [N] -> int64 [N]."""
        indices: npt.NDArray[np.uint64] = np.asarray(indices_N).astype(np.uint64)
        assert indices.size == 0 or int(indices.max()) < self.size
        indices = self._shuffled(indices)
        while (beyond := indices >= self.size).any():
            indices[beyond] = self._shuffled(indices[beyond])
        return indices.astype(np.int64)

    def _shuffled(self, index: Number) -> Number:
        """A permutation of 0 .. rows * columns - 1. Python's integers and numpy's unsigned ones give the same.

        The hash is written out twice, not called: this is where the time of a draw goes.
        """
        rows, columns = self._rows, self._columns
        row, column = index // columns, index % columns
        for even, odd in self._keys:
            mixed = ((column ^ even) * _FACTOR_1) & _WORD
            mixed = ((mixed ^ (mixed >> 29)) * _FACTOR_2) & _WORD
            row = (row + ((mixed ^ (mixed >> 32)) >> 11)) % rows
            mixed = ((row ^ odd) * _FACTOR_1) & _WORD
            mixed = ((mixed ^ (mixed >> 29)) * _FACTOR_2) & _WORD
            column = (column + ((mixed ^ (mixed >> 32)) >> 11)) % columns
        return row * columns + column
