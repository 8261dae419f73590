"""Fetch the next step's batches, and send their images, while the device computes this one's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """An iterator whose next item can be fetched before it is asked for. What goes wrong then is raised when it is."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._fetched: list[T] = []
        self._error: BaseException | None = None

    def fetch(self) -> None:
        """Get the next item now, unless it is here already."""
        if self._fetched or self._error is not None:
            return
        try:
            self._fetched.append(next(self._items))
        except Exception as error:  # the end of the items, too
            self._error = error

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        self.fetch()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._fetched.pop()


class ImagesToDevice:
    """Sends the images of each step's batches to a GPU on a stream of its own, beside what the GPU computes.

    Args:
        steps: what a ``StepLoader`` gives.
        device: a CUDA device.
    """

    def __init__(self, steps: Iterator[tuple[Sequence[Any], float]], device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.stream = torch.cuda.Stream(device)

    def __iter__(self) -> Iterator[tuple[list[Any], float]]:
        for batches, waited_s in self.steps:
            with torch.cuda.stream(self.stream):
                sent = [replace(batch, images=batch.images.to(self.device)) for batch in batches]
            yield sent, waited_s

    def arrived(self, batches: Sequence[Any]) -> None:
        """Call it before the step that reads them.

        The GPU's other work waits for the copies, the host does not.
        """
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for batch in batches:
            for one in batch.images.by_expert.values():
                one.pixels_BCHW.record_stream(current)
