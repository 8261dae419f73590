"""Nothing that a downloaded folder holds is run, asked for or fetched, and what is damaged does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.core.weights.hostile_folders import TRAINED, WHOLE
from tests.fresh import ROOT

#: Resident memory that loading a refused folder may add to the process, in MB.
MOST_MB = 300


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    place = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.core.weights.hostile_folders", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


def test_there_are_enough() -> None:
    assert len(WHOLE) + len(TRAINED) >= 60


@pytest.mark.parametrize("name", ["sound: whole", "sound: trained parts"])
def test_sound_folders_load_and_run_nothing(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    found = outcomes[name]
    assert not found["error"]
    assert not found["ran"]
    assert found["imports"] == found["sockets"] == found["prompts"] == []


@pytest.mark.parametrize("name", [*WHOLE, *TRAINED])
def test_hostile_folders_are_refused(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    found = outcomes[name]
    assert found["kind"] == "refused", found["error"] or "it was loaded"
    assert len(found["error"]) < 1500
    assert not found["ran"]
    assert not found["imports"], f"imported {found['imports']}"
    assert not found["sockets"], f"used the network: {found['sockets']}"
    assert not found["prompts"], f"asked: {found['prompts']}"
    assert found["grown_mb"] < MOST_MB, f"took {found['grown_mb']:.0f} MB"
