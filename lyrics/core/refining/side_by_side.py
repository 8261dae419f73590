"""Run two images side by side on a CPU.

Half of the threads for each does more than all of them for one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Each needs memory of its own for what it computes.
_AT_ONCE = 2


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """Return ``[work(item) for item in items]``, two at a time where that helps.

    That is on a CPU that has threads for it, where no gradients are kept.

    ``work`` must not change what another call of it reads. Raises what ``work`` raises, for the first item that it
    fails for.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or torch.is_grad_enabled() or min(threads, len(items)) < _AT_ONCE:
        return [work(item) for item in items]
    inference = torch.is_inference_mode_enabled()
    halved, half = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def alone(item: Item) -> Result:
        # All of these hold for the thread that sets them.
        torch.set_num_threads(threads // _AT_ONCE)
        with (
            torch.inference_mode() if inference else torch.no_grad(),
            torch.autocast("cpu", dtype=half, enabled=halved),
        ):
            return work(item)

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)  # the matrix library keeps one number for all
