"""Memory does not grow with the number of pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh import ROOT

ROWS = 6_000


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_six_thousand_rows_take_as_much_memory_as_eight(tmp_path: Path) -> None:
    """Held at once, they would take some 25 MB: 4 KB of Python objects each for rows, annotations and names."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.refining.scale", str(ROWS), str(tmp_path), "--again"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    first, again = map(json.loads, done.stdout.splitlines())
    assert (first["refined"], again["refined"]) == (ROWS, 0)
    for figures in (first, again):
        assert figures["peak_mb"] - figures["before_mb"] < 8, figures
