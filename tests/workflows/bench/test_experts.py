"""The experts' benchmark at toy size: each alone, with what it is asked for, and without ending when one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lyrics.workflows.bench import experts as bench_experts
from tests.commands import Run


def test_each_expert_is_timed_alone(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "experts.json"
    done = run("bench", "experts", "lyrics-tiny", "--batch", 2, "--rounds", 1, "--out", out)
    assert done.code == 0, done.err
    rows = json.loads(out.read_text())["rows"]
    assert [row["expert"] for row in rows] == ["image_encoder", "tagger", "detector", "segmenter"]
    for row in rows:
        assert row["status"] == "ok"
        assert row["parameters"] > 0
        assert row["images_per_second"] == pytest.approx(2e6 / row["microseconds"]["median"])
    assert len(done.out.splitlines()) == 6
    assert [row["expert"] for row in bench_experts.run_bench_experts("tiny-refiner", (1,), rounds=1)] == [
        "tagger",
        "detector",
        "segmenter",
    ]


def test_one_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(expert, images):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(bench_experts, "_CALLS", {**bench_experts._CALLS, "detector": broken})
    rows = bench_experts.run_bench_experts("tiny-refiner", (1,), rounds=1)
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert "no kernel image" in rows[1]["reason"]
    assert "failed" in bench_experts.table(rows)


def test_no_time_is_a_row() -> None:
    rows = bench_experts.run_bench_experts("tiny-refiner", (1,), minutes=-1.0)
    assert {row["status"] for row in rows} == {"not run"}


def test_what_is_not_here_is_said(run: Run) -> None:
    done = run("bench", "experts", "lyrics-tiny", "--device", "tpu")
    assert done.code == 2
    assert "tpu" in done.err
