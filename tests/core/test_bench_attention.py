"""The attention benchmark at toy size on a CPU: it verifies before it times, and an implementation that is wrong is not timed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from lyrics.core import bench_attention as bench
from lyrics.kernels import segment_attention
from tests.commands import Run

CASE = bench.Case("segment", 2, "padded", "fp32", 0.0, bench.TOY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "bandwidth", lambda device, rounds: 1e9)


@pytest.mark.parametrize("name", bench.PASSES)
def test_the_dense_rival_is_the_same_attention(name: str) -> None:
    """Each padded pass gives the packed sequence's outputs, token by token, in float64."""
    sizes = bench.TOY
    layout, plan = bench.packed_streams(sizes, "padded", 3)
    q, k, v = torch.randn(3, plan.num_queries, 2, 8, dtype=torch.float64)
    want = segment_attention(q, k, v, plan, impl="reference")
    at = bench.pass_positions(layout, sizes, 3, name)
    assert at.shape == (3, 4 + 4 + 12 + 5)
    got = bench.dense_pass(*(x[at.clamp(min=0)] for x in (q, k, v)), bench.pass_masks(sizes)[name], 0.0)
    torch.testing.assert_close(got[at >= 0], want[at[at >= 0]], rtol=1e-12, atol=1e-12)


def test_the_passes_hold_every_stream() -> None:
    layout, plan = bench.packed_streams(bench.TOY, "padded", 2)
    seen = torch.cat([bench.pass_positions(layout, bench.TOY, 2, name).flatten() for name in bench.PASSES])
    assert set(seen.tolist()) - {-1} == set(range(plan.num_queries))


def test_an_implementation_is_verified_then_timed() -> None:
    row = bench.measure(CASE, "sdpa", 2, "cpu", 1e9)
    assert row["status"] == "ok"
    assert set(row["errors"]) == {"out", "dq", "dk", "dv"}
    assert all(0 < error <= allowed < 1e-4 for error, allowed in row["errors"].values())
    assert len(row["both_ms"]["all"]) == 2
    assert row["forward_ms"]["median"] > 0
    tokens = 2 * (4 + 4 + 12 + 5) * 3 + 2 * ((4 + 4) + (12 + 5) + 5 + (4 + 4 + 12))
    moved = 4 * tokens * 2 * 32 * 4
    assert row["forward_share_of_floor"] == pytest.approx(1e3 * moved / 1e9 / row["forward_ms"]["median"])


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
    assert "forward_ms" not in row


def test_a_wrong_dense_rival_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench, "pass_masks", lambda sizes: {n: torch.ones(25, 25, dtype=torch.bool) for n in bench.PASSES}
    )
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
    assert "segment, ms: batch 2, padded, fp32" in titles
    assert written["rows"] == json.loads(done.out)
    assert written["versions"]["torch"] == torch.__version__
    served = {
        (row["op"], row["lengths"], row["dropout"], row["impl"]) for row in written["rows"] if row["status"] == "ok"
    }
    for dropout_p in (0.0, 0.1):
        assert ("segment", "padded", dropout_p, "dense") in served
        assert ("cross", "padded", dropout_p, "dense") in served
        for impl in ("sdpa", "reference"):
            assert {("segment", "padded", dropout_p, impl), ("segment", "true", dropout_p, impl)} <= served
            assert ("cross", "padded", dropout_p, impl) in served
    ours = [row for row in written["rows"] if row["impl"] == "sdpa"]
    assert all(row["speedup_vs_dense"] > 0 for row in ours)
    assert "vs dense" in bench.table(written["rows"]).splitlines()[0]


def test_out_of_time_is_said(run: Run) -> None:
    done = run("bench", "attention", "--toy", "--rounds", "1", "--minutes", "0")
    assert done.code == 0
    assert "not run" in done.out
    assert " ms forward" not in done.err


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
