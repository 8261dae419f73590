"""Runs of the stand-in, and what they leave behind, for comparison bit by bit."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lyrics.core.runs.checkpoint import TRAINED_FILE, finished, step_of, verify
from lyrics.core.runs.config import TrainConfig
from lyrics.core.runs.disk import Disk
from lyrics.core.runs.tensor_file import read_tensors
from lyrics.core.training.loop import Outcome, train
from tests.core.training.standin import COLLATE, Numbers, StandIn, fingerprint


def run(config: TrainConfig, *, model: StandIn | None = None, rows: int = 97, **arguments: Any) -> Outcome:
    return train(config, model or StandIn(), {"numbers": Numbers(rows)}, COLLATE[config.stage], **arguments)


def losses(out: Path) -> list[tuple[int, dict[str, str]]]:
    """(step, losses to the bit) of a run's log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["exact"]) for line in lines if "exact" in line]


def trained(out: Path) -> tuple[int, str]:
    """The newest checkpoint's step and the bits of its tensors."""
    newest = max(finished(out / "checkpoints"), key=lambda folder: step_of(folder) or 0)
    verify(newest)
    return step_of(newest) or 0, fingerprint(read_tensors(newest / TRAINED_FILE))


class SlowDisk(Disk):
    """Saves that take long enough to be hit."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def write(self, file: BinaryIO, data: memoryview) -> int:
        time.sleep(self.delay_s)
        return super().write(file, data)

    def flush_folder(self, path: Path) -> None:
        time.sleep(self.delay_s)
        super().flush_folder(path)


class StoppedError(BaseException):
    """Stands for the end of the process."""


class FaultyDisk(Disk):
    """Counts calls, and fails at one of them.

    Args:
        at: number of the call, from 1 on.
        how: ``before`` (the process ends instead of the call), ``half`` (a write ends half-way), ``after`` (it ends
            after the call), or an errno's name: that call and, if ``lasting``, all that write after it raise an
            ``OSError``.
    """

    def __init__(self, at: int = 0, how: str = "before", lasting: bool = False) -> None:
        self.at, self.how, self.lasting = at, how, lasting
        self.calls = 0
        self.dead = False

    def _call(self, action: Any, *, takes_room: bool = True) -> Any:
        if self.dead:
            raise StoppedError
        self.calls += 1
        if self.calls == self.at or (self.lasting and takes_room and self.calls > self.at > 0):
            if self.how not in ("before", "half", "after"):
                raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)))
            self.dead = True
            if self.how == "after":
                action()
            raise StoppedError
        return action()

    def make_folder(self, path: Path) -> None:
        self._call(lambda: Disk.make_folder(self, path))

    def create(self, path: Path) -> BinaryIO:
        file: BinaryIO = self._call(lambda: Disk.create(self, path))
        return file

    def write(self, file: BinaryIO, data: memoryview) -> int:
        if self.calls + 1 == self.at and self.how == "half" and not self.dead:
            Disk.write(self, file, data[: len(data) // 2])
        written: int = self._call(lambda: Disk.write(self, file, data))
        return written

    def flush(self, file: BinaryIO) -> None:
        self._call(lambda: Disk.flush(self, file))

    def flush_folder(self, path: Path) -> None:
        self._call(lambda: Disk.flush_folder(self, path))

    def rename(self, source: Path, dest: Path) -> None:
        self._call(lambda: Disk.rename(self, source, dest))

    def remove(self, folder: Path) -> None:
        self._call(lambda: Disk.remove(self, folder), takes_room=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(7, 5, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 4),
    }
