"""What is finished, in sixteen bytes a row: sets of names that need little memory, however many there are."""

from __future__ import annotations

import hashlib
import os

import numpy as np

_WIDTH = 16
#: Keys that are held as Python objects before they are sorted in.
_RECENT = 65_536


def key_of(name: str) -> bytes:
    """Return 120 bits of a name's digest. Two names of a billion share them with a probability of 4e-19."""
    # numpy takes zeros at the end of a string for padding, so none ends in one.
    return hashlib.blake2b(os.fsencode(name), digest_size=_WIDTH - 1).digest() + b"\x01"


class KeySet:
    """A set of keys of ``key_of`` in sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []
        self._recent: set[bytes] = set()

    def __contains__(self, key: bytes) -> bool:
        if key in self._recent:
            return True
        for keys in self._sorted:
            place = int(np.searchsorted(keys, key))
            if place < len(keys) and keys[place] == key:
                return True
        return False

    def __len__(self) -> int:
        return len(self._recent) + sum(map(len, self._sorted))

    def add(self, key: bytes) -> None:
        """Add a key that is not there yet."""
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            keys = np.sort(np.array(list(self._recent), dtype=f"S{_WIDTH}"))
            self._recent.clear()
            while self._sorted and len(self._sorted[-1]) < 2 * len(keys):
                keys = np.sort(np.concatenate([self._sorted.pop(), keys]), kind="stable")
            self._sorted.append(keys)
