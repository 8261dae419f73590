"""Random numbers as functions of what they are for: no generator is kept between samples, so none can be lost or drift.

Every draw comes from numpy's Philox, a counter-based generator: its key is (seed, purpose), its counter begins at the
index.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

SEED_LIMIT = 2**64


def generator(seed: int, purpose: str, index: int = 0, part: int = 0) -> np.random.Generator:
    """Return a generator that depends on its arguments alone. Different arguments give independent streams.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        purpose: what the numbers are for ("augmentation").
        index: usually the sample's position in the data order; 0 to 2**64 - 1.
        part: tells several streams of one index apart.

    Raises ``ValueError`` for a number out of range.
    """
    for name, number in (("seed", seed), ("index", index), ("part", part)):
        if not 0 <= number < SEED_LIMIT:
            raise ValueError(f"{name} must be from 0 to 2**64 - 1, not {number}")
    # The low word of the counter counts the blocks drawn, so streams that differ in the two high words never meet.
    counter = np.array([0, 0, part, index], dtype=np.uint64)
    key = np.array([seed, _code(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


@functools.lru_cache(maxsize=1024)
def _code(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
