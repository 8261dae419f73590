"""pytest-benchmark over both attentions: ``pytest benchmarks/test_attention.py --benchmark-only``.

``lyrics bench attention`` prints the whole comparison in one table; this file gives pytest-benchmark's statistics for the implementations
that run here, at the paper's sizes. Environment: LYRICS_BENCH_BATCH (default 2), LYRICS_BENCH_DEVICE (default cpu),
LYRICS_BENCH_DTYPE (default fp32).
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from lyrics.core.bench_attention import DTYPES, PAPER, cross_sets, packed_streams
from lyrics.core.bench_step import environment
from lyrics.kernels import available_implementations, cross_attention, segment_attention

BATCH = int(os.environ.get("LYRICS_BENCH_BATCH", "2"))
DEVICE = os.environ.get("LYRICS_BENCH_DEVICE", "cpu")
DTYPE = os.environ.get("LYRICS_BENCH_DTYPE", "fp32")
HERE = [entry.name for entry in available_implementations() if entry.available and entry.name != "reference"]


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("operation", ["segment-padded", "segment-true", "cross"])
def test_attention(benchmark, operation: str, impl: str) -> None:
    op, _, lengths = operation.partition("-")
    if op == "segment":
        function, plan = segment_attention, packed_streams(PAPER, lengths, BATCH)[1].to(DEVICE)
        q_shape, k_shape = ((n, PAPER.heads, PAPER.width) for n in (plan.num_queries, plan.num_keys))
    else:
        function, plan = cross_attention, cross_sets(PAPER, BATCH, DEVICE)
        q_shape = (*plan.row_id_SQ.shape, PAPER.heads, PAPER.width)
        k_shape = (BATCH, PAPER.image_tokens, PAPER.heads, PAPER.width)
    made = {"device": DEVICE, "dtype": DTYPES[DTYPE]}
    q, k, v = (torch.randn(shape, **made).requires_grad_() for shape in (q_shape, k_shape, k_shape))
    grad = torch.randn(q_shape, **made)

    def step() -> list[torch.Tensor]:
        grads = torch.autograd.grad(function(q, k, v, plan, impl=impl), (q, k, v), grad)
        if DEVICE.startswith("cuda"):
            torch.cuda.synchronize()
        return list(grads)

    benchmark.extra_info |= environment() | {"batch": BATCH, "dtype": DTYPE, "device": DEVICE}
    grads = benchmark.pedantic(step, rounds=3, iterations=1, warmup_rounds=1)
    assert all(torch.isfinite(x).all() for x in grads)
