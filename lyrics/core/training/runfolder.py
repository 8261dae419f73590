"""The folder of a run: what it is made of, and what it records.

====================  ====================================================================================
``config.yaml``       the configuration, every default written out
``spec.json``         the model's resolved specification
``data.json``         what decides which samples are seen, with a digest
``environment.json``  versions, devices, ranks
``log.jsonl``         a line per step; losses also as ``float.hex()``, to compare runs bit by bit
``anomalies.jsonl``   steps that were skipped, with the positions of their samples
``bad_samples.jsonl`` the ledger of samples that could not be read
``checkpoints/``      see ``lyrics.core.runs.checkpoint``
``examples/``         held-out samples of the last evaluation with what the model made of them
``report.html``       curves, the last evaluation, examples
====================  ====================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lyrics.core.errors import SpecError, TrainingError
from lyrics.core.json_reading import parse_json
from lyrics.core.lease import lock
from lyrics.core.runs.config import TrainConfig, dump_config
from lyrics.core.spec import dump
from lyrics.core.training.held_out import Shown


class RunFolder:
    """Paths of a run folder, and the first rank's writing in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log_file = self.path / "log.jsonl"
        self.anomalies_file = self.path / "anomalies.jsonl"
        self.ledger_file = self.path / "bad_samples.jsonl"
        self.report_file = self.path / "report.html"
        self.examples = self.path / "examples"
        self._lock: IO[bytes] | None = None

    def open(self) -> None:
        """Make the folder if need be, and keep every other run out of it until this process ends.

        Raises ``SpecError`` when it cannot be written, ``TrainingError`` when another run is in it.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("wb")
        except OSError as error:
            raise SpecError(f"out: {self.path} cannot be written: {error.strerror}.") from error
        try:
            # The system drops the lock when the process dies, and workers do not inherit it.
            lock(self._lock)
        except OSError as error:
            raise TrainingError(
                f"{self.path}: another process is training in this folder; give another --out."
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def describe(self, config: TrainConfig, data: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what the run is made of."""
        (self.path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        dump(config.model.spec, self.path / "spec.json")
        for name, facts in (("data.json", data), ("environment.json", environment)):
            (self.path / name).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def forget_after(self, step: int) -> None:
        """Drop what was recorded after ``step`` finished steps: the run goes on from there, and does it again."""
        for path in (self.log_file, self.anomalies_file):
            if path.exists():
                kept = [line for line in _lines(path) if line["step"] <= step]
                aside = path.with_suffix(".tmp")
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
                aside.replace(path)

    def log(self, line: Mapping[str, Any]) -> None:
        _append(self.log_file, line)

    def anomaly(self, line: Mapping[str, Any]) -> None:
        """Every rank may write: lines do not mix."""
        _append(self.anomalies_file, line)

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """Return what was logged, in order."""
        return _lines(self.log_file) if self.log_file.exists() else iter(())

    def write_examples(self, step: int, shown: Sequence[Shown]) -> None:
        """What the model made of a few held-out samples, over those of the evaluation before."""
        folder = self.examples
        folder.mkdir(exist_ok=True)
        lines = []
        for number, one in enumerate(shown):
            name = f"{number}.jpg" if one.picture is not None else None
            if one.picture is not None:
                small = one.picture.convert("RGB")
                small.thumbnail((512, 512))
                small.save(folder / f"{number}.jpg", quality=85)
            line = {
                "step": step,
                "picture": name,
                "question": one.question,
                "expected": one.expected,
                "found": one.found,
            }
            lines.append(json.dumps(line, ensure_ascii=False))
        (folder / "examples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def bad_samples(self) -> int:
        """Entries in the ledger so far."""
        if not self.ledger_file.exists():
            return 0
        with self.ledger_file.open("rb") as file:
            return sum(1 for _ in file)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file; a line that a stopped process left unfinished is passed over."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = parse_json(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line
