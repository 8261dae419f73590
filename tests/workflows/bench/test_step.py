"""The step benchmark's command, file and chart."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from lyrics.workflows.bench import step as bench_step
from tests.commands import Run


def test_the_file_carries_machine_versions_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "recipe": "paper",
        "variant": "N1",
        "lengths": "padded",
        "batch": 2,
        "dtype": "fp32",
        "saved_bytes": 5e9,
    }
    measured |= {"attention": "auto", "seconds_forward_backward": 1.5, "all_seconds": {"both": [1.0, 1.5, 3.0]}}
    monkeypatch.setattr(bench_step, "compare", lambda *args, **kwargs: [measured])
    out = tmp_path / "results" / "step.json"
    bench_step.run_bench_step((2,), ("fp32",), 1, recipes=("paper",), out=out)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["variant"] == "N1"
    assert row["machine"]["cpu"]
    assert row["versions"]["torch"] == torch.__version__
    assert {"commit", "time"} <= set(row)
    chart = ElementTree.fromstring(out.with_suffix(".svg").read_text())
    texts = [one.text for one in chart.iter() if one.text]
    assert {
        "step, s: paper, batch 2, fp32",
        "kept for backward, GB: paper, batch 2, fp32",
        "N1 padded: 1.5",
        "N1 padded: 5",
    } <= set(texts)


def test_a_case_that_fails_on_a_gpu_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a GPU: what is measured is stood in for."""
    measured = {
        "recipe": "paper",
        "variant": "N1",
        "lengths": "padded",
        "batch": 64,
        "dtype": "bf16",
        "saved_bytes": 5e9,
    }
    measured |= {"seconds_forward": 0.5, "seconds_forward_backward": 1.5, "all_seconds": {"both": [1.0, 1.5, 3.0]}}
    measured |= {"samples_per_second": 42.0, "flops": 1e12, "peak_bytes": 73e9}
    measured |= {"cpu_seconds_forward_backward": 1.5}
    measured |= {f"{name}_vs_N1": 1.0 for name in ("speedup", "flops_ratio", "saved")}

    def compare(batch_size, *rest, attention, **kwargs):
        if batch_size == 128:
            raise torch.OutOfMemoryError("tried to allocate\n9 GiB")
        return [measured | {"attention": attention}]

    monkeypatch.setattr(bench_step, "compare", compare)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    out = tmp_path / "step.json"
    rows = bench_step.run_bench_step(
        (128, 64), ("bf16",), 1, device="cuda", recipes=("paper",), attentions=("triton", "sdpa"), out=out
    )
    assert [(row["batch"], row["attention"], row.get("status")) for row in rows] == [
        (128, "triton", "failed"),
        (128, "sdpa", "failed"),
        (64, "triton", None),
        (64, "sdpa", None),
    ]
    assert rows[0]["reason"] == "OutOfMemoryError: tried to allocate 9 GiB"
    assert json.loads(out.read_text())["rows"] == rows
    shown = bench_step.table(rows).splitlines()
    assert "failed" in shown[1]
    assert "73.0" in shown[3]
    with pytest.raises(torch.OutOfMemoryError):
        bench_step.run_bench_step((128,), ("bf16",), 1)


def test_out_of_time_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = bench_step.run_bench_step((2,), ("fp32",), 1, recipes=("paper",), minutes=-1.0)
    assert (row["status"], row["reason"]) == ("not run", "out of time")
    assert "not run" in bench_step.table([row])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--attention", "fast"),
        ("--recipe", "released"),
        ("--lengths", "odd"),
        ("--dtype", "fp8"),
        ("--device", "tpu"),
        ("--device", "cuda:99x"),
    ],
)
def test_what_is_not_here_is_said(run: Run, arguments: tuple[str, str]) -> None:
    done = run("bench", "step", *arguments)
    assert done.code == 2
    assert arguments[1] in done.err


def test_the_command_fails_where_a_case_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {
        "recipe": "paper",
        "batch": 128,
        "dtype": "bf16",
        "attention": "triton",
        "status": "failed",
        "reason": "out of memory",
    }
    monkeypatch.setattr(bench_step, "run_bench_step", lambda *arguments, **kwargs: [absent])
    done = run("bench", "step")
    assert done.code == 1
    assert "failed" in done.out
