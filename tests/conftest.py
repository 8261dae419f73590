"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Small tensors on several threads spend their time waiting for each other, the more so beside another test process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PARITY = Path(__file__).parents[1].parent / "shared" / "parity"


@pytest.fixture
def parity() -> Callable[[str], Path]:
    """``parity(name)`` is the file of that name among the parity fixtures; the test is skipped where they are absent."""

    def find(name: str) -> Path:
        path = PARITY / name
        if not path.is_file():
            pytest.skip(f"parity fixture {path} is not there")
        return path

    return find
