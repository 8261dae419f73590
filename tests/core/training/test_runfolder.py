"""One run in a folder, on every system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lyrics.core.errors import TrainingError
from lyrics.core.training.runfolder import RunFolder

HOLD = (
    "import sys\nfrom lyrics.core.training.runfolder import RunFolder\nfrom lyrics.core.errors import TrainingError\n"
    "try:\n    RunFolder(sys.argv[1]).open()\nexcept TrainingError as error:\n    sys.exit(f'refused: {error}')\n"
)


def other_process(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stderr


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open()
    assert "refused: " in other_process(folder.path)
    folder.close()
    RunFolder(folder.path).open()


def test_windows_locks_by_its_own_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    windows: Any = ModuleType("msvcrt")
    windows.LK_NBLCK = 2

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        if held:
            raise OSError(13, "Permission denied")
        held.append(handle)

    windows.locking = locking
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr("lyrics.core.lease.sys.platform", "win32")
    RunFolder(tmp_path).open()
    with pytest.raises(TrainingError, match="another process is training in this folder"):
        RunFolder(tmp_path).open()
