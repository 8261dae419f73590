"""A step's memory as it is, beside what is counted for it: on a CPU the same storages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lyrics.core.runs.config import load_config
from lyrics.workflows.bench import memory as bench_memory
from tests.commands import Run


@pytest.mark.parametrize("recipe", ["tiny-stage1", "tiny-stage2"])
def test_what_is_taken_is_what_was_counted(recipe: str) -> None:
    row = bench_memory.measure(load_config(recipe), 4, "cpu")
    assert row["counted"]["total"] == sum(size for name, size in row["counted"].items() if name != "total")
    # The experts run before the step and are counted too; of a small step they may be the most.
    assert 0.2 < row["taken_of_counted"] < 1.2


def test_the_command_writes_rows(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    done = run("bench", "memory", "tiny-stage1", "--batch", 2, "--out", out, "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["batch"], row["status"], row["by"]) == (2, "ok", "storages")
    assert json.loads(done.out) == [row]


def test_a_step_that_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(config, size, device):
        raise torch.OutOfMemoryError("tried to allocate 90 GiB")

    monkeypatch.setattr(bench_memory, "measure", measure)
    rows = bench_memory.run_bench_memory(load_config("tiny-stage1"), (2,))
    assert rows[0]["status"] == "failed"
    assert "90 GiB" in bench_memory.table(rows)
