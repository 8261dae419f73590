"""What the first rank writes about every step: the log, the trackers, the progress bar.

Every rank writes about skipped steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL.Image import Image

from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.engine import StepResult
from lyrics.core.training.held_out import Evaluation
from lyrics.core.training.progress import StepProgress
from lyrics.core.training.runfolder import RunFolder
from lyrics.kernels.host_work import host_work

#: The ledger is counted anew so often.
_LEDGER_EVERY_S = 5.0


class Recorder:
    """Record the steps of one process. ``start`` steps were finished before."""

    def __init__(self, folder: RunFolder, accelerator: Accelerator, config: TrainConfig, start: int) -> None:
        self.folder, self.accelerator, self.config = folder, accelerator, config
        self.progress = StepProgress(config.optimization.steps, start) if accelerator.is_main_process else None
        self.skipped = 0
        self._bad_samples, self._counted = 0, -_LEDGER_EVERY_S

    def __enter__(self) -> Recorder:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    @host_work("recorder")
    def step(self, step: int, result: StepResult, batches: Sequence[Any], seconds: float, waited_s: float) -> None:
        """``step`` steps are finished; the last took ``seconds``, of which ``waited_s`` went into waiting for data."""
        if result.skipped is not None:
            self._skipped(step, result, batches)
        if self.progress is None:
            return
        samples_per_s = self.config.optimization.global_batch / seconds
        if step % self.config.logging.every_steps == 0 or result.skipped:
            losses = {"total": result.total, **result.means}
            numbers = {
                "lr": result.learning_rate,
                "gradient_norm": result.gradient_norm,
                "samples_per_s": round(samples_per_s, 3),
                "step_s": round(seconds, 6),
                "wait_s": round(waited_s, 6),
            }
            exact = {name: value.hex() for name, value in losses.items()}
            self.folder.log({"step": step, "losses": losses, "exact": exact, "skipped": result.skipped, **numbers})
            self._track(step, "loss", losses)
            self._track(step, "run", numbers)
        self.progress.update(
            step, result.means, result.learning_rate, samples_per_s, self.skipped, self._count_bad_samples()
        )

    def evaluation(self, step: int, found: Evaluation) -> None:
        if self.progress is None:
            return
        self.folder.log({"step": step, "evaluation": dict(found.numbers)})
        self._track(step, "evaluation", found.numbers)
        self.folder.write_examples(step, found.shown)
        for number, one in enumerate(found.shown):
            if one.picture is not None:
                self._track_picture(step, f"examples/{number}", one.picture, f"{one.question} -> {one.found}")

    def _track_picture(self, step: int, name: str, picture: Image, caption: str) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")  # type: ignore[attr-defined]
                tracker.writer.add_text(name, caption, step)  # type: ignore[attr-defined]

    def _track(self, step: int, group: str, numbers: Mapping[str, float]) -> None:
        self.accelerator.log({f"{group}/{name}": value for name, value in numbers.items()}, step=step)

    def _skipped(self, step: int, result: StepResult, batches: Sequence[Any]) -> None:
        """Whose loss it was; where only the gradient is at fault, it may be anybody's."""
        self.skipped += 1
        found = result.bad
        if result.skipped == "gradient":
            found = tuple((tuple(batch.positions), ()) for batch in batches)
        for positions, losses in found:
            line = {"step": step, "rank": self.accelerator.process_index, "not_finite": result.skipped}
            self.folder.anomaly({**line, "losses": losses, "positions": positions})

    def _count_bad_samples(self) -> int:
        now = time.monotonic()
        if now - self._counted >= _LEDGER_EVERY_S:
            self._bad_samples, self._counted = self.folder.bad_samples(), now
        return self._bad_samples
