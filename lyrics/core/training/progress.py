"""What a person sees while a run goes on: one bar on a terminal, or a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 30.0


class StepProgress:
    """Progress on standard error. ``console`` is for tests."""

    def __init__(self, steps: int, start: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.steps, self.first = steps, start
        self.began = time.monotonic()
        self.next_line = self.began
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=start, numbers="")

    def start(self) -> None:
        self.bar.start()

    def stop(self) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(f"lyrics: {text}", markup=False, soft_wrap=True)

    def update(
        self, step: int, losses: Mapping[str, float], rate: float, samples_per_s: float, skipped: int, bad_samples: int
    ) -> None:
        """``step`` finished steps; ``rate`` is the learning rate."""
        numbers = [f"{name} {value:.3f}" for name, value in losses.items()]
        numbers += [f"lr {rate:.2e}", f"{samples_per_s:.1f} samples/s"]
        numbers += [f"{skipped} steps skipped"] * (skipped > 0) + [f"{bad_samples} bad samples"] * (bad_samples > 0)
        self.bar.update(self.task, completed=step, numbers="  ".join(numbers))
        now = time.monotonic()
        if not self.console.is_terminal and (now >= self.next_line or step == self.steps):
            self.next_line = now + _LINE_EVERY_S
            left_s = (now - self.began) / max(1, step - self.first) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {'  '.join(numbers)}  {_clock(left_s)} left")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
