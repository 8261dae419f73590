"""The loader's benchmark: parts of a sample's work, samples a second, and cores for a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.runs.config import load_config
from lyrics.workflows.bench import loader as bench_loader
from tests.commands import Run


def test_photographs_are_photographs() -> None:
    first, second = bench_loader.photographs(2)
    assert first != second
    assert 30_000 < len(first) < 200_000
    assert bench_loader.photographs(1) == [first]


def test_parts_of_a_sample_are_timed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "loader.json"
    common = ("bench", "loader", "tiny-stage1", "--samples", 2, "--rounds", 1)
    done = run(*common, "--out", out, "--json")
    assert done.code == 0, done.err
    row = json.loads(done.out)
    assert {"decode", "prepare for image_encoder", "prepare for detector"} <= row["milliseconds"].keys()
    assert all(took >= 0 for took in row["milliseconds"].values())
    assert row["samples_per_second"] == pytest.approx(1e3 / row["milliseconds_a_sample"])
    (written,) = json.loads(out.read_text())["rows"]
    assert written == row
    done = run(*common, "--throughput", 1e6)
    assert "needs" in done.out
    assert "cores" in done.out


def test_cores_are_rounded_up() -> None:
    assert bench_loader.cores_for({"samples_per_second": 20.0}, 400) == 20
    assert bench_loader.cores_for({"samples_per_second": 20.0}, 401) == 21


def test_another_stage_is_refused() -> None:
    with pytest.raises(SpecError, match="stage=instruct"):
        bench_loader.measure(load_config("tiny-stage2"))
