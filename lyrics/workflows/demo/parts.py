"""The detector and the segmenter of the running model, and their exchange for others while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from lyrics.core.model import LyricsModel
from lyrics.workflows.serve.worker import Worker

NONE = "none"
#: The parts that can be exchanged on the page.
KINDS = ("detector", "segmenter")


def parts_of(model: LyricsModel) -> dict[str, str | None]:
    """``tagger``, ``detector`` and ``segmenter`` -> the name of the part, None where there is none."""
    refiner = model.spec.refiner
    slots = {name: None if refiner is None else getattr(refiner, name) for name in ("tagger", *KINDS)}
    return {name: None if slot is None else slot.use for name, slot in slots.items()}


class Parts:
    """Exchanges parts of a worker's model; one exchange at a time.

    Args:
        worker: has the model.
        load: overrides of the specification -> the model with them.
        others: for each of ``KINDS``, names of parts that may take its place.
    """

    def __init__(
        self,
        worker: Worker,
        load: Callable[[Mapping[str, Any]], LyricsModel],
        others: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.worker, self._load = worker, load
        self._own = parts_of(worker.model)
        self.choices = {
            kind: tuple(dict.fromkeys((self._own[kind] or NONE, *(others or {}).get(kind, ()), NONE))) for kind in KINDS
        }
        self._lock = threading.Lock()
        self.overrides: dict[str, Any] = {}

    @property
    def now(self) -> dict[str, str | None]:
        """The parts of the model that answers now."""
        return parts_of(self.worker.model)

    def choose(self, detector: str, segmenter: str) -> None:
        """Let these see from now on; returns when they do. Without a detector there is nothing to segment.

        Raises what loading raises, and then nothing has changed.
        """
        wanted = {"detector": detector, "segmenter": NONE if detector == NONE else segmenter}
        overrides = {
            f"refiner.{kind}": None if name == NONE else name
            for kind, name in wanted.items()
            if name != (self._own[kind] or NONE)
        }
        with self._lock:
            if overrides == self.overrides:
                return
            model = self._load(overrides)
            taken = threading.Event()
            self.worker.exchange(model, taken.set)
            taken.wait()
            self.overrides = overrides
