"""pytest-benchmark over both attentions: ``pytest benchmarks/test_attention.py --benchmark-only``.

``lyrics bench attention`` prints the whole comparison in one table; this file gives pytest-benchmark's statistics for
the implementations that run here, at the paper's sizes, forward and backward. On a GPU its timer reads CUDA events.
Environment: LYRICS_BENCH_BATCH (default 2), LYRICS_BENCH_DEVICE (default cpu), LYRICS_BENCH_DTYPE (default fp32).
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from lyrics.kernels import ImplementationError, available_implementations, cross_attention, segment_attention
from lyrics.workflows.bench.attention import SEED, errors
from lyrics.workflows.bench.machine import device_clock, environment
from lyrics.workflows.bench.work import PAPER, Case, inputs_of, plan_of

BATCH = int(os.environ.get("LYRICS_BENCH_BATCH", "2"))
DEVICE = os.environ.get("LYRICS_BENCH_DEVICE", "cpu")
DTYPE = os.environ.get("LYRICS_BENCH_DTYPE", "fp32")
HERE = [entry.name for entry in available_implementations() if entry.available and entry.name != "reference"]


@pytest.mark.benchmark(timer=device_clock(DEVICE))
@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("operation", ["segment-padded", "segment-true", "cross"])
def test_attention(benchmark, operation: str, dropout_p: float, impl: str) -> None:
    op, _, lengths = operation.partition("-")
    case = Case(op, BATCH, lengths or "padded", DTYPE, dropout_p, PAPER)
    function = segment_attention if op == "segment" else cross_attention
    try:
        found = errors(case, impl, DEVICE)
    except ImplementationError as error:
        pytest.skip(str(error))
    assert all(error <= allowed for error, allowed in found.values()), found
    plan = plan_of(case, DEVICE)
    *qkv, grad = inputs_of(case, plan, PAPER.heads, DEVICE)

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(*qkv, plan, impl=impl, dropout_p=dropout_p, seed=SEED), qkv, grad)

    benchmark.extra_info |= environment() | {"batch": BATCH, "dtype": DTYPE, "device": DEVICE}
    grads = benchmark.pedantic(step, rounds=3, iterations=1, warmup_rounds=1)
    assert all(torch.isfinite(x).all() for x in grads)
