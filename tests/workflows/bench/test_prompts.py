"""Prompts packed and padded, at toy size: the same losses, and a ratio of times."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lyrics import build_model
from lyrics.workflows.bench import prompts as bench_prompts


def test_lengths_are_like_those_of_llava_instruct() -> None:
    draw = random.Random(1)
    lengths = [bench_prompts.prompt_length(draw, 16) for _ in range(2000)]
    assert min(lengths) > 16 + 12
    assert sum(lengths) / 2000 == pytest.approx(16 + 12 * 10.5 + 1.35 * 122, rel=0.05)


def test_all_ways_have_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_prompts, "prompt_length", lambda draw, soft: draw.randint(soft + 4, soft + 20))
    out = tmp_path / "prompts.json"
    rows = bench_prompts.run_bench_prompts("lyrics-tiny", (3, 5), 2, out=out)
    assert [row["batch"] for row in rows] == [3, 5]
    for row in rows:
        assert row["cpu_speedup_vs_padded"].keys() == {"padded", "groups of like length", "packed"}
        assert row["cpu_speedup_vs_padded"]["padded"] == 1
        assert all(len(found) == 2 and min(found) > 0 for found in row["cpu_seconds"].values())
    assert json.loads(out.read_text())["rows"] == rows


def test_other_losses_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_prompts, "prompt_length", lambda draw, soft: soft + 6)
    monkeypatch.setattr(
        bench_prompts, "answer_losses", lambda prompts, *rest: [bench_prompts.answer_loss(prompts[1:], *rest)]
    )
    with pytest.raises(AssertionError, match="packed"):
        bench_prompts.measure(build_model("lyrics-tiny", weights="random"), (3,), 1)
