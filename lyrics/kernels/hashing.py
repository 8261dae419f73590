"""A counter-based hash: the same keys give the same number on any device, in any order, however the work is cut up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
#: Numbers hashed at once: longer arrays would leave the cache, and the allocator would ask for their memory each time.
_AT_ONCE = 1 << 14


def mix_arrays(*keys: np.ndarray | int, hashed: np.ndarray | int = 0) -> np.ndarray:
    """Hash whole numbers (broadcast against each other, any sign, 64 bits each) to 0 .. 2**32 - 1: uint32.

    Each key, its lower half first, goes through the 32-bit finalizer of MurmurHash3 (public domain, Austin Appleby).
    ``hashed`` is what earlier keys gave, to go on from.
    """
    start = np.asarray(hashed, np.uint32)
    wide = [np.asarray(key, np.int64) for key in keys]
    given: list[np.ndarray] = [start, *wide]
    longest = max((len(one) for one in given if one.ndim == 1), default=0)
    if longest <= _AT_ONCE or any(one.ndim > 1 for one in given):
        return _mixed(start, wide)
    found = np.empty(longest, np.uint32)
    for first in range(0, longest, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        own = [one[part] if one.ndim and len(one) > 1 else one for one in given]
        found[part] = _mixed(own[0], own[1:])
    return found


def _mixed(found: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
    with np.errstate(over="ignore"):
        for key in keys:
            for half in (key.astype(np.uint32), (key >> 32).astype(np.uint32)):
                bits = (found ^ half) + np.uint32(_GOLDEN)
                bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
                bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
                found = bits ^ (bits >> np.uint32(16))
    return found


def mix(*keys: torch.Tensor | int) -> torch.Tensor:
    """``mix_arrays`` of tensors on the host, in int64."""
    return torch.from_numpy(mix_arrays(*_on_host(keys)).astype(np.int64))


def keyed_uniform(*keys: torch.Tensor | int) -> torch.Tensor:
    """Return a number in [0, 1), float64 with 32 random bits, that depends on the keys (tensors on the host) alone."""
    return torch.from_numpy(mix_arrays(*_on_host(keys)) / 2.0**32)


def _on_host(keys: Sequence[torch.Tensor | int]) -> list[np.ndarray | int]:
    return [key.numpy() if isinstance(key, torch.Tensor) else key for key in keys]


def dropout_keep(
    row_id: torch.Tensor, col_id: torch.Tensor, num_heads: int, seed: int, dropout_p: float
) -> torch.Tensor:
    """Return which attention probabilities survive: bool [..., num_heads, rows, columns].

    ``row_id`` int32 [..., rows] and ``col_id`` int32 [..., columns] name logical positions (``Plan.row_id_T``). The
    arithmetic is 32-bit and wraps, so that a GPU kernel computes the same.
    """
    row = _finalize_int32(row_id ^ _signed(seed & _MASK))
    pair = _finalize_int32(row[..., :, None] ^ col_id[..., None, :])
    heads = (torch.arange(num_heads, dtype=torch.int64, device=row_id.device) + (seed >> 32)) * _GOLDEN & _MASK
    salt = torch.where(heads >= 2**31, heads - 2**32, heads).to(torch.int32)
    bits = _finalize_int32(pair[..., None, :, :] ^ salt[:, None, None])
    # Signed comparison after flipping the top bit is unsigned comparison.
    threshold = _signed(min(round(dropout_p * 2**32), _MASK) ^ 0x80000000)
    return (bits ^ _signed(0x80000000)) >= threshold


def _finalize_int32(bits: torch.Tensor) -> torch.Tensor:
    """The finalizer of ``mix_arrays`` on int32: products wrap, and a right shift must not drag the sign along."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _signed(0x85EBCA6B)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _signed(0xC2B2AE35)
    return bits ^ ((bits >> 16) & 0xFFFF)


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
