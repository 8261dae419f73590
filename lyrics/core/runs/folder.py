"""Which run a path names: by its folder, or by one of its checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lyrics.core.runs.checkpoint import step_of

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """The folder of a run; ``checkpoint`` where one of them was named, in place of the newest."""

    folder: Path
    checkpoint: Path | None = None


def find_run(path: str | os.PathLike[str]) -> Run | None:
    """The run that a path names, by its folder or by one of its checkpoints; None for any other path."""
    found = Path(path).resolve()
    if step_of(found) is not None and _is_run(found.parent.parent):
        return Run(found.parent.parent, found)
    return Run(found) if _is_run(found) else None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / CHECKPOINTS).is_dir()
