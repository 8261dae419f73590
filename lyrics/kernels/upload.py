"""Tables from the host to a device: many small arrays in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

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
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@host_work("transfer")
def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Whole numbers as int32 tensors of the same shapes on ``device``.

    A GPU gets all of them in one copy from pinned memory, which the host does not wait for. On a CPU they are the
    arrays themselves.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array, np.int32)) for array in arrays]
    starts, total = [], 0
    for array in arrays:
        starts.append(total)
        total += -(-array.size // _ALIGNED) * _ALIGNED
    buffer = torch.empty(total, dtype=torch.int32, pin_memory=device.type == "cuda")
    numbers = buffer.numpy()
    for start, array in zip(starts, arrays, strict=True):
        numbers[start : start + array.size] = array.reshape(-1)
    sent = buffer.to(device, non_blocking=True)
    return [sent[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays, strict=True)]
