"""The attention benchmark at toy size on a CPU: it verifies before it times, and an implementation that is wrong is not
timed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from lyrics.kernels import IMPLEMENTATIONS, Availability, segment_attention
from lyrics.workflows.bench import attention as bench
from lyrics.workflows.bench import machine as bench_machine
from lyrics.workflows.bench import rivals as bench_rivals
from lyrics.workflows.bench.work import PAPER, PASSES, TOY, Case, packed_streams
from tests.commands import Run

CASE = Case("segment", 2, "padded", "fp32", 0.0, TOY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "bandwidth", lambda device, rounds: 1e9)


@pytest.mark.parametrize("rival", ["dense", "dense-math", "eager"])
@pytest.mark.parametrize("name", PASSES)
def test_the_free_rivals_are_the_same_attention(name: str, rival: str) -> None:
    """Each padded pass gives the packed sequence's outputs, token by token, in float64."""
    layout, plan = packed_streams(TOY, "padded", 3)
    q, k, v = torch.randn(3, plan.num_queries, 2, 8, dtype=torch.float64)
    want = segment_attention(q, k, v, plan, impl="reference")
    at = bench_rivals.pass_positions(layout, TOY, 3, name)
    assert at.shape == (3, 4 + 4 + 12 + 5)
    mask = bench_rivals.pass_masks(TOY)[name]
    with bench_rivals.pinned(rival):
        got = bench_rivals.attend(rival, *(x[at.clamp(min=0)] for x in (q, k, v)), mask, 0.0)
    torch.testing.assert_close(got[at >= 0], want[at[at >= 0]], rtol=1e-12, atol=1e-12)


def test_the_passes_hold_every_stream() -> None:
    layout, plan = packed_streams(TOY, "padded", 2)
    seen = torch.cat([bench_rivals.pass_positions(layout, TOY, 2, name).flatten() for name in PASSES])
    assert set(seen.tolist()) - {-1} == set(range(plan.num_queries))


@pytest.mark.parametrize("rival", ["dense", "eager"])
@pytest.mark.parametrize("op", ["segment", "cross"])
def test_a_free_rival_is_verified_then_timed(op: str, rival: str) -> None:
    row = bench.measure(dataclasses.replace(CASE, op=op), rival, 1, "cpu", 1e9)
    assert row["status"] == "ok"
    assert 0 < row["error"] < 1e-5


def test_eager_drops_what_it_says() -> None:
    q = torch.zeros(1, 200, 2, 8)
    v = torch.ones(1, 200, 2, 8)
    dropped = bench_rivals.attend("eager", q, q, v, None, 0.25)
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)
    assert dropped.std() > 0.01


def test_an_implementation_is_verified_then_timed() -> None:
    row = bench.measure(CASE, "sdpa", 2, "cpu", 1e9)
    assert row["status"] == "ok"
    assert set(row["errors"]) == {"out", "dq", "dk", "dv"}
    assert all(0 < error <= allowed < 1e-4 for error, allowed in row["errors"].values())
    assert len(row["both_us"]["all"]) == 2
    for mode in bench.MODES:
        took = row[f"{mode}_us"]
        assert 0 < took["low"] <= took["median"] <= took["high"]
    tokens = 2 * (4 + 4 + 12 + 5) * 3 + 2 * ((4 + 4) + (12 + 5) + 5 + (4 + 4 + 12))
    vector = tokens * 2 * 32 * 4
    for mode, vectors in (("forward", 4), ("backward", 8), ("both", 12)):
        took = row[f"{mode}_us"]["median"]
        assert row[f"{mode}_share_of_floor"] == pytest.approx(1e6 * vectors * vector / 1e9 / took)


@pytest.mark.parametrize("wrong", [lambda out: out * 1.001, lambda out: out * float("nan")])
def test_a_wrong_implementation_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong) -> None:
    right = bench._attend
    monkeypatch.setattr(
        bench,
        "_attend",
        lambda plan, qkv, impl, p: (wrong if impl == "auto" else lambda x: x)(right(plan, qkv, impl, p)),
    )
    row = bench.measure(CASE, "auto", 1, "cpu", 1e9)
    assert row["status"] == "wrong"
    assert "forward_us" not in row


def test_a_wrong_dense_rival_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones(25, 25, dtype=torch.bool)
    monkeypatch.setattr(bench_rivals, "pass_masks", lambda sizes: dict.fromkeys(PASSES, ones))
    assert bench.measure(CASE, "dense", 1, "cpu", 1e9)["status"] == "wrong"


def test_what_cannot_serve_is_a_row_with_the_reason() -> None:
    row = bench.measure(CASE, "flash", 1, "cpu", 1e9)
    assert row["status"] == "refused"
    assert "'flash' cannot run here" in row["reason"]


def test_a_rival_that_breaks_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(bench, "errors", broken)
    row = bench.measure(CASE, "sdpa", 1, "cpu", 1e9)
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: no kernel for this")


def test_the_command_writes_one_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "results" / "attention.json"
    done = run("bench", "attention", "--toy", "--rounds", "1", "--json", "--out", str(out))
    assert done.code == 0, done.err
    written = json.loads(out.read_text())
    chart = ElementTree.fromstring(out.with_suffix(".svg").read_text())
    titles = [one.text or "" for one in chart.iter() if one.get("font-weight") == "bold"]
    assert "segment, us: batch 2, padded, fp32" in titles
    assert written["rows"] == json.loads(done.out)
    assert written["versions"]["torch"] == torch.__version__
    served = {
        (row["op"], row["lengths"], row["dropout"], row["impl"]) for row in written["rows"] if row["status"] == "ok"
    }
    for dropout_p in (0.0, 0.1):
        for rival in ("dense", "eager"):
            assert ("segment", "padded", dropout_p, rival) in served
            assert ("cross", "padded", dropout_p, rival) in served
        for impl in ("sdpa", "reference"):
            assert {("segment", "padded", dropout_p, impl), ("segment", "true", dropout_p, impl)} <= served
            assert ("cross", "padded", dropout_p, impl) in served
    assert written["ratios"] == bench.ratios(written["rows"])
    assert {ratio["ours"] for ratio in written["ratios"]} == {"sdpa"}
    compared = {(ratio["op"], ratio["lengths"], ratio["dropout"], ratio["rival"]) for ratio in written["ratios"]}
    assert {("segment", at, p, "dense") for at in ("padded", "true") for p in (0.0, 0.1)} <= compared


def timed(impl: str, lengths: str, us: float) -> dict:
    row = {
        "op": "segment",
        "batch": 2,
        "lengths": lengths,
        "dtype": "bf16",
        "dropout": 0.0,
        "impl": impl,
        "status": "ok",
    }
    times = {f"{mode}_us": {"median": us * n, "low": us, "high": us} for n, mode in enumerate(bench.MODES, 1)}
    return row | times | {"both_share_of_floor": 0.5}


def test_ratios_are_against_every_rival_and_the_fastest_back_end() -> None:
    rows = [
        timed("dense-cudnn", "padded", 30),
        timed("dense-math", "padded", 90),
        timed("eager", "padded", 120),
        timed("triton", "padded", 15),
        timed("flash", "padded", 18),
        timed("triton", "true", 10),
        timed("sdpa", "true", 20),
        timed("flex", "true", 40) | {"status": "wrong"},
    ]
    found = {
        (ratio["lengths"], ratio["rival"]): (ratio["ours"], ratio["forward"], ratio["both"])
        for ratio in bench.ratios(rows)
    }
    assert found == {
        ("padded", "dense"): ("triton", 2.0, 2.0),
        ("padded", "dense-cudnn"): ("triton", 2.0, 2.0),
        ("padded", "dense-math"): ("triton", 6.0, 6.0),
        ("padded", "eager"): ("triton", 8.0, 8.0),
        ("padded", "flash"): ("triton", 1.2, 1.2),
        ("true", "dense"): ("triton", 3.0, 3.0),
        ("true", "dense-cudnn"): ("triton", 3.0, 3.0),
        ("true", "dense-math"): ("triton", 9.0, 9.0),
        ("true", "eager"): ("triton", 12.0, 12.0),
        ("true", "sdpa"): ("triton", 2.0, 2.0),
    }
    shown = bench.table(rows)
    assert "3.00x" in shown
    assert "15 (15-15)" in shown


def test_on_a_gpu_everybody_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [Availability(name, True, "") for name in IMPLEMENTATIONS]
    monkeypatch.setattr(bench, "available_implementations", lambda: here)
    packed = ["triton", "flash", "flex", "sdpa", "triton-tuned", "flex-rebuilt"]
    free = ["dense-efficient", "dense-cudnn", "dense-flash", "dense-math", "eager"]
    assert bench.contestants(CASE, "cuda") == [*free, *packed]
    assert bench.contestants(dataclasses.replace(CASE, lengths="true"), "cuda") == packed


def test_the_papers_cases_are_all_there_and_the_first_batch_comes_first() -> None:
    found = list(bench.cases((128, 256, 64, 16), ("bf16",), PAPER))
    assert [case.batch for case in found[:6]] == [128] * 6
    assert {(case.op, case.lengths, case.dropout_p) for case in found[:6]} == {
        (*kind, p) for kind in (("segment", "padded"), ("segment", "true"), ("cross", "padded")) for p in (0.0, 0.1)
    }
    assert len(found) == 4 * 6


def test_a_rebuilt_mask_is_built_for_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.kernels import _flex
    from lyrics.kernels import attention as dispatcher

    built = []
    original = _flex.build_block_mask
    monkeypatch.setattr(dispatcher, "_refusal", lambda *arguments: None)
    monkeypatch.setattr(_flex, "build_block_mask", lambda *arguments: built.append(1) or original(*arguments))
    monkeypatch.setattr(_flex, "_function", lambda: flex_attention)
    dispatcher._implementation.cache_clear()
    plan = packed_streams(TOY, "padded", 2)[1]
    qkv = torch.randn(3, plan.num_queries, 2, 32)
    for impl, masks in (("flex", 1), ("flex", 1), ("flex-rebuilt", 2), ("flex-rebuilt", 3)):
        bench._attend(plan, qkv, impl, 0.0)
        assert len(built) == masks
    dispatcher._implementation.cache_clear()


def test_a_tuned_row_says_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = bench._attend
    monkeypatch.setattr(bench, "_tuned", lambda plan, qkv, dropout_p: "triton 64-32-64-32-4-2")
    monkeypatch.setattr(
        bench,
        "_attend",
        lambda plan, qkv, impl, p: attend(plan, qkv, impl.replace("triton 64-32-64-32-4-2", "sdpa"), p),
    )
    row = bench.measure(CASE, "triton-tuned", 1, "cpu", 1e9)
    assert (row["status"], row["impl"], row["config"]) == ("ok", "triton-tuned", "64-32-64-32-4-2")


class Event:
    """A CUDA event on a clock of its own, which ticks once per record."""

    ticks = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.ticks += 1
        self.at = Event.ticks

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 5.0 * (end.at - self.at)


def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = bench_machine.device_clock("cuda")
    first, second = clock(), clock()
    assert second - first == pytest.approx(5e-3)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(1, dtype=dtype))
    prepared = []
    took = bench_machine.microseconds(lambda n: n, 4, "cuda", prepare=lambda: prepared.append(1))
    assert took["all"] == [5e3] * 4
    assert len(prepared) == 4 + 3
    assert bench_machine.device_clock("cpu") is time.perf_counter


def test_a_copy_without_history_says_its_commit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(bench_machine.subprocess, "run", absent)
    monkeypatch.delenv("LYRICS_COMMIT", raising=False)
    assert bench_machine.environment()["commit"] is None
    monkeypatch.setenv("LYRICS_COMMIT", "abc1234")
    assert bench_machine.environment()["commit"] == "abc1234"


def test_a_gpu_is_named_with_its_driver_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench_machine.subprocess.run

    def answer(command, **kwargs):
        return SimpleNamespace(stdout="580.12\n580.12\n") if command[0] == "nvidia-smi" else run(command, **kwargs)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(bench_machine.subprocess, "run", answer)
    found = bench_machine.environment()
    assert (found["machine"]["gpu"], found["machine"]["driver"]) == ("NVIDIA H200", "580.12")
    assert {"python", "torch", "numpy", "cuda", "cudnn"} <= set(found["versions"])


def test_out_of_time_is_said(run: Run) -> None:
    done = run("bench", "attention", "--toy", "--rounds", "1", "--minutes", "0")
    assert done.code == 0
    assert "not run" in done.out
    assert " us forward" not in done.err


def test_a_wrong_implementation_fails_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "errors", lambda case, impl, device: {"out": (1.0, 0.1)})
    done = run("bench", "attention", "--toy", "--rounds", "1")
    assert done.code == 1
    assert "wrong" in done.out


@pytest.mark.parametrize("arguments", [("--dtype", "fp8"), ("--device", "cuda:99x"), ("--device", "tpu")])
def test_what_is_not_here_is_said(run: Run, arguments: tuple[str, str]) -> None:
    done = run("bench", "attention", "--toy", *arguments)
    assert done.code == 2
    assert arguments[1] in done.err
