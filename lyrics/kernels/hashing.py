"""A counter-based hash: the same keys give the same number on any device, in any order, however the work is cut up."""

from __future__ import annotations

import numpy as np
import torch

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _finalize(bits: torch.Tensor) -> torch.Tensor:
    """The 32-bit finalizer of MurmurHash3 (public domain, Austin Appleby) on numbers 0 .. 2**32 - 1 held in int64."""
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & _MASK
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & _MASK
    return bits ^ (bits >> 16)


def mix(*keys: torch.Tensor | int) -> torch.Tensor:
    """Hash integers (broadcast against each other, any sign, 64 bits each) to 0 .. 2**32 - 1, held in int64."""
    hashed = torch.zeros((), dtype=torch.int64)
    for key in keys:
        wide = torch.as_tensor(key, dtype=torch.int64)
        hashed = hashed.to(wide.device) if wide.dim() else hashed
        for half in (wide & _MASK, (wide >> 32) & _MASK):
            hashed = _finalize(((hashed ^ half.to(hashed.device)) + _GOLDEN) & _MASK)
    return hashed


def mix_arrays(*keys: np.ndarray | int, hashed: np.ndarray | int = 0) -> np.ndarray:
    """``mix`` of arrays on the host, several times as fast: uint32. ``hashed`` goes on from what earlier keys gave."""
    found = np.asarray(hashed, np.uint32)
    with np.errstate(over="ignore"):
        for key in keys:
            wide = np.asarray(key, np.int64).view(np.uint64)
            for half in (wide.astype(np.uint32), (wide >> np.uint64(32)).astype(np.uint32)):
                bits = (found ^ half) + np.uint32(_GOLDEN)
                bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
                bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
                found = bits ^ (bits >> np.uint32(16))
    return found


def keyed_uniform(*keys: torch.Tensor | int) -> torch.Tensor:
    """Return a number in [0, 1), float64 with 32 random bits, that depends on the keys alone."""
    return mix(*keys).to(torch.float64) / 2.0**32


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
    """``_finalize`` on int32: products wrap, and a right shift must not drag the sign along."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _signed(0x85EBCA6B)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _signed(0xC2B2AE35)
    return bits ^ ((bits >> 16) & 0xFFFF)


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
