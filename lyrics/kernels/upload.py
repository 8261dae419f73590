"""Tables from the host to a device: many small arrays in one copy that nobody waits for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lyrics.kernels.host_work import host_work

#: Numbers of 4 bytes: each array begins on a multiple, so that kernels may read several numbers at once wherever it
#: lies.
_ALIGNED = 64


def to_device_soon(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on ``device``; the host does not wait for the copy, which a GPU makes from pinned
    memory.
    """
    if device.type == "cpu":
        return tensor
    pins = device.type == "cuda" and not tensor.is_pinned()
    return (tensor.pin_memory() if pins else tensor).to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Parcel:
    """Arrays of whole numbers in one int32 tensor on the host, for one copy. It may be packed in another process."""

    numbers: torch.Tensor
    places: tuple[tuple[int, tuple[int, ...]], ...]
    """Where each array starts, and its shape."""

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], *, pinned: bool = False) -> Parcel:
        places, total = [], 0
        for array in arrays:
            places.append((total, array.shape))
            total += -(-array.size // _ALIGNED) * _ALIGNED
        numbers = torch.empty(total, dtype=torch.int32, pin_memory=pinned)
        view = numbers.numpy()
        for (start, _), array in zip(places, arrays, strict=True):
            view[start : start + array.size] = array.reshape(-1)
        return cls(numbers, tuple(places))

    def pin_memory(self) -> Parcel:
        """The same in memory that a GPU reads by itself."""
        return replace(self, numbers=self.numbers.pin_memory())

    @host_work("transfer")
    def sent(self, device: torch.device) -> list[torch.Tensor]:
        """Return the arrays as tensors on ``device``. The host does not wait for the copy."""
        numbers = to_device_soon(self.numbers, device)
        return [numbers[start : start + math.prod(shape)].view(shape) for start, shape in self.places]


@host_work("transfer")
def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Whole numbers as int32 tensors of the same shapes on ``device``.

    A GPU gets all of them in one copy from pinned memory, which the host does not wait for. On a CPU they are the
    arrays themselves.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array, np.int32)) for array in arrays]
    return Parcel.of(arrays, pinned=device.type == "cuda").sent(device)
