"""A keyed permutation of 0 .. size - 1 that is computed, not stored.

Ten rows and a billion take the same time and memory.

A generalized Feistel network on Z_a x Z_b (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, the
construction FE2) with a and b near the square root of the size; the few numbers of a * b beyond the size are walked
past. Its round function is a multiplicative hash: good shuffling, no cryptography.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lyrics.core.data.draws import generator

# Of MurmurHash3's 32-bit finalizer (public domain, Austin Appleby). Products of 32-bit words are what Python multiplies
# fastest.
_FACTOR_1, _FACTOR_2 = 0x85EBCA6B, 0xC2B2AE35
_LOW = 2**32 - 1
_ROUNDS = 6
#: 64-bit words that make a key: a half for each round.
KEY_WORDS = _ROUNDS // 2
# Keys are drawn for this many neighbors at once, which costs little more than one; permutations kept are 1 kB each.
_GROUP = 256
_KEPT, _KEPT_GROUPS = 4096, 256
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
        self._keys = [(word & _LOW, word >> 32) for word in key]

    def __call__(self, index: int) -> int:
        assert 0 <= index < self.size, index
        index = self._shuffled(index)
        while index >= self.size:
            index = self._shuffled(index)
        return index

    def many(self, indices_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the same for an integer array [N] -> int64 [N]."""
        indices: npt.NDArray[np.uint64] = np.asarray(indices_N).astype(np.uint64)
        assert indices.size == 0 or int(indices.max()) < self.size
        indices = self._shuffled(indices)
        while (beyond := indices >= self.size).any():
            indices[beyond] = self._shuffled(indices[beyond])
        return indices.astype(np.int64)

    def _shuffled(self, index: Number) -> Number:
        """Return a permutation of 0 .. rows * columns - 1. Python's integers and numpy's unsigned ones give the same.

        The hash is written out twice, not called: this is where the time of a draw goes.
        """
        rows, columns = self._rows, self._columns
        row, column = index // columns, index % columns
        for even, odd in self._keys:
            mixed = ((column ^ even) * _FACTOR_1) & _LOW
            mixed = ((mixed ^ (mixed >> 15)) * _FACTOR_2) & _LOW
            row = (row + (mixed ^ (mixed >> 16))) % rows
            mixed = ((row ^ odd) * _FACTOR_1) & _LOW
            mixed = ((mixed ^ (mixed >> 15)) * _FACTOR_2) & _LOW
            column = (column + (mixed ^ (mixed >> 16))) % columns
        return row * columns + column


class Permutations:
    """Numbered permutations for one purpose: number and part decide the key, made when asked for.

    Args:
        seed: of the run.
        purpose: what they shuffle; two purposes have unrelated permutations.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._purpose = seed, purpose
        self._kept: dict[tuple[int, int], Permutation] = {}
        self._groups: dict[tuple[int, int], list[int]] = {}

    def __call__(self, size: int, number: int, part: int = 0) -> Permutation:
        """Permutation ``number`` of 0 .. size - 1; one number and part always comes with one size."""
        place = (number, part)
        found = self._kept.get(place)
        if found is None:
            if len(self._kept) == _KEPT:
                self._kept.clear()
            found = self._kept[place] = Permutation(size, self._key(number, part))
        assert found.size == size, (found.size, size)
        return found

    def _key(self, number: int, part: int) -> list[int]:
        group, within = divmod(number, _GROUP)
        words = self._groups.get((group, part))
        if words is None:
            if len(self._groups) == _KEPT_GROUPS:
                self._groups.clear()
            random = generator(self._seed, self._purpose, group, part)
            words = random.integers(0, 2**64, _GROUP * KEY_WORDS, dtype=np.uint64).tolist()
            self._groups[group, part] = words
        return words[within * KEY_WORDS : (within + 1) * KEY_WORDS]
