"""Tile sizes of the Triton kernels: what is shipped, for which case, and what tuning tries. Depends on torch alone.

A case is told by the GPU's generation, the type, the head dimension, whether there is dropout, and the length of what
sees each other, in buckets; never by the number of tokens, which changes with every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import blocks_of


@dataclass(frozen=True)
class Config:
    """Tile sizes (powers of two, at least 16) and how a program is run.

    The forward pass and dQ take ``row_block`` rows and walk over ``key_step`` keys at a time; dK and dV take
    ``key_block`` keys and walk over at most ``row_step`` rows at a time.
    """

    row_block: int
    key_step: int
    key_block: int
    row_step: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by.

    ``generation`` is the compute capability's first digit; later ones than Hopper's count as Hopper's. ``length`` is
    the bucket of ``length_of``.
    """

    generation: int
    dtype: torch.dtype
    head_dim: int
    dropout: bool
    length: int


GENERATIONS = (8, 9)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (32, 64, 128)
#: Buckets of the longest block of rows; the last one has no end.
LENGTHS = (32, 128, 256)

#: (generation, head dimension, bytes per number) -> configuration with dropout at the paper's lengths. Chosen for fit
#: to 64-256 tokens and by what ptxas says of registers, spills and shared memory (docs/kernels.md); nothing here was
#: timed.
_BASE: Mapping[tuple[int, int, int], Config] = {
    (8, 32, 2): Config(64, 32, 64, 32, 4, 2),
    (8, 64, 2): Config(64, 32, 32, 32, 4, 2),
    (8, 128, 2): Config(64, 32, 64, 32, 8, 2),
    (8, 32, 4): Config(32, 32, 32, 32, 4, 2),
    (8, 64, 4): Config(32, 32, 32, 32, 4, 2),
    (8, 128, 4): Config(32, 16, 32, 16, 8, 2),
    (9, 32, 2): Config(64, 32, 64, 32, 4, 2),
    (9, 64, 2): Config(64, 32, 64, 32, 4, 2),
    (9, 128, 2): Config(64, 32, 64, 32, 8, 2),
    (9, 32, 4): Config(32, 32, 32, 32, 4, 2),
    (9, 64, 4): Config(32, 32, 32, 32, 4, 2),
    (9, 128, 4): Config(32, 16, 32, 16, 8, 2),
}


def _chosen(key: Key) -> Config:
    config = _BASE[key.generation, key.head_dim, key.dtype.itemsize]
    if (key.generation, key.head_dim, key.dtype.itemsize) == (8, 64, 2) and not key.dropout:
        config = replace(
            config, key_block=64
        )  # dropout's hashes take the registers that this needs: 219 without, 255 with
    # More rows than any block has would be empty in every tile; but Hopper's instruction multiplies 64 rows in any
    # case.
    if key.length == LENGTHS[0] and key.generation == 8:
        config = replace(config, row_block=32, key_block=32)
    return config


#: What is used unless ``_triton.tune`` found something better in this process.
SHIPPED: Mapping[Key, Config] = {
    key: _chosen(key)
    for key in (
        Key(generation, dtype, head_dim, dropout, length)
        for generation in GENERATIONS
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for dropout in (False, True)
        for length in LENGTHS
    )
}

#: What tuning tries beside the shipped configuration.
CANDIDATES = (
    Config(32, 32, 32, 32, 4, 2),
    Config(64, 32, 32, 32, 4, 2),
    Config(64, 32, 64, 32, 4, 2),
    Config(64, 64, 64, 32, 4, 2),
    Config(64, 64, 32, 64, 8, 2),
    Config(64, 32, 64, 32, 8, 3),
)


def length_of(plan: Plan | CrossPlan) -> int:
    """Return the bucket of the longest block of rows that see the same keys; computed once per plan."""
    found = plan.derived.get("length")
    if found is None:
        longest = int(blocks_of(plan).table[:, 1].max(initial=0))
        found = plan.derived["length"] = next((end for end in LENGTHS if longest <= end), LENGTHS[-1])
    length: int = found
    return length


def generation_of(device: torch.device) -> int:
    """Return the device's generation. A CPU, where the interpreter runs, counts as the oldest one."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else GENERATIONS[0]
    return min(major, GENERATIONS[-1])


def key_of(plan: Plan | CrossPlan, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> Key:
    """Return the case that such queries and this plan are."""
    return Key(generation_of(device), dtype, head_dim, dropout, length_of(plan))
