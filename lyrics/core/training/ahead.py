"""Fetch the next step's batches, send their images, and have them looked at, while the device computes this one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        early: what else is made of a batch on that stream, once its images are there
            (``lyrics.core.training.early``).
    """

    def __init__(
        self,
        steps: Iterator[tuple[Sequence[Any], float]],
        device: torch.device,
        early: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        self.steps, self.device, self.early = steps, device, early
        self.stream = torch.cuda.Stream(device)
        # The model was brought there on the other stream; from now on nothing that is read here changes.
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def __iter__(self) -> Iterator[tuple[list[Any], float]]:
        for batches, waited_s in self.steps:
            with torch.cuda.stream(self.stream):
                sent = [self.early(replace(batch, images=batch.images.to(self.device))) for batch in batches]
            yield sent, waited_s

    def arrived(self, batches: Sequence[Any]) -> None:
        """Call it before the step that reads them.

        The GPU's other work waits for the copies, the host does not.
        """
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for batch in batches:
            for tensor in batch.images.tensors():
                tensor.record_stream(current)
