"""Saves beside training: tensors are copied at the call, and a thread brings the copy to disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.checkpoint import Checkpoint
from lyrics.core.runs.disk import Disk

#: Failed saves in a row after which training stops.
MAX_FAILURES = 2


class CheckpointWriter:
    """Writes checkpoints of one run, one at a time.

    Args:
        folder: where they go; exists.
        keep: newest ones that are kept.
        facts: plain data for every manifest.
        say: told about each failure.
        disk: how files are written.

    ``failures`` counts failed saves in a row, and ``last_error`` is the last one's; ``saved_step`` and ``saved_when``
    are those of the last attempt.
    """

    def __init__(
        self, folder: Path, keep: int, facts: Mapping[str, Any], say: Callable[[str], None], disk: Disk | None = None
    ) -> None:
        self.folder, self.keep, self.facts, self.say = folder, keep, facts, say
        self.disk = disk or Disk()
        self.failures = 0
        self.last_error: OSError | None = None
        self.saved_step, self.saved_when = 0, time.monotonic()
        self._thread: threading.Thread | None = None
        self._outcome: BaseException | None = None
        self._buffers: dict[str, torch.Tensor] = {}

    def save(
        self, trained: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor], state: Mapping[str, Any]
    ) -> None:
        """Copy everything, then write it in a thread. Waits for the save before, if that still runs."""
        self.wait()
        copy = Checkpoint(self._copied("trained", trained), self._copied("optimizer", optimizer), dict(state))
        self._thread = threading.Thread(target=self._write, args=(copy,), name=f"save step {copy.step}")
        self._thread.start()
        self.saved_step, self.saved_when = copy.step, time.monotonic()

    def poll(self) -> None:
        """Take note of a save that has ended: count its failure, or forget earlier ones."""
        if self._thread is None or self._thread.is_alive():
            return
        step = self._thread.name
        self._thread = None
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            self.failures, self.last_error = 0, None
        elif isinstance(outcome, OSError):
            self.failures, self.last_error = self.failures + 1, outcome
            self.say(f"{step}: failed, and training goes on from memory: {outcome}")
        else:
            raise outcome  # no fault of the disk, but of the code

    def wait(self) -> None:
        """Until the last save has ended."""
        if self._thread is not None:
            self._thread.join()
            self.poll()

    def _write(self, copy: Checkpoint) -> None:
        try:
            checkpoints.save(self.disk, self.folder, copy, self.facts)
        except BaseException as error:
            self._outcome = error
            return
        try:
            checkpoints.prune(self.disk, self.folder, self.keep)
        except OSError as error:
            self.say(f"an old checkpoint could not be deleted: {error}")

    def _copied(self, group: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies on the host, in memory that is used again for every save (and pinned, where a GPU is copied from)."""
        copies = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(f"{group}/{name}")
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._buffers[f"{group}/{name}"] = buffer
            buffer.copy_(tensor.detach(), non_blocking=True)
            copies[name] = buffer
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copies
