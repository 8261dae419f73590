"""Fixtures that every test may use."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, Run

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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("list", "--json")`` in this process, as the ``lyrics`` command does it."""
    from lyrics.cli import main

    def command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["lyrics", *arguments])
        capsys.readouterr()
        code: Any = 0
        with warnings.catch_warnings():  # main changes how warnings are shown
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return command


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than half a minute, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes more than half a minute; run with --slow"))
