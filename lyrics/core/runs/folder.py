"""Which run a path names: by its folder, or by one of its checkpoints. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"step-(\d{8,})")
CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """The folder of a run; ``checkpoint`` where one of them was named, in place of the newest."""

    folder: Path
    checkpoint: Path | None = None


def find_run(path: str | os.PathLike[str]) -> Run | None:
    """Return the run that a path names, by its folder or by one of its checkpoints; None for any other path."""
    found = Path(path).resolve()
    if step_of(found) is not None and _is_run(found.parent.parent):
        return Run(found.parent.parent, found)
    return Run(found) if _is_run(found) else None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / CHECKPOINTS).is_dir()


def step_of(folder: Path) -> int | None:
    """Return the step that a folder's name stands for; None for a name that no finished checkpoint has."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None
