"""pytest-benchmark over the stage-1 step: ``pytest benchmarks/test_step.py --benchmark-only``.

``lyrics bench step`` prints the whole comparison in one table; this file gives pytest-benchmark's statistics for the
same variants, at the paper's size. Environment: LYRICS_BENCH_BATCH (default 4).
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pytest_benchmark")

from lyrics.training import pretrain_losses, total_loss
from lyrics.workflows.bench.baselines import cached_losses, dense_losses
from lyrics.workflows.bench.machine import environment
from lyrics.workflows.bench.step_cases import PADDED, TRUE, build_case

BATCH = int(os.environ.get("LYRICS_BENCH_BATCH", "4"))
VARIANTS = {
    "N1-padded": (dense_losses, PADDED),
    "N3-padded": (cached_losses, PADDED),
    "packed-padded": (pretrain_losses, PADDED),
    "packed-true": (pretrain_losses, TRUE),
}


@pytest.fixture(scope="module")
def model():
    query_transformer, objectives, *_ = build_case(1, TRUE)
    return query_transformer, objectives


@pytest.mark.parametrize("variant", VARIANTS)
def test_step(benchmark, model, variant: str) -> None:
    function, lengths = VARIANTS[variant]
    query_transformer, objectives, features, batch, negatives = build_case(BATCH, lengths, model=model)
    expected = total_loss(dense_losses(query_transformer, objectives, features, batch, negatives))[1]

    def step() -> dict[str, float]:
        query_transformer.zero_grad(set_to_none=True)
        total, means = total_loss(function(query_transformer, objectives, features, batch, negatives))
        total.backward()
        return {name: float(mean) for name, mean in means.items()}

    benchmark.extra_info |= environment() | {"batch": BATCH, "lengths": lengths, "dtype": "fp32"}
    found = benchmark.pedantic(step, rounds=3, iterations=1, warmup_rounds=1)
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)
