"""On a GPU: the kernels' error is at most twice that of SDPA in the same type, repeats are bit-equal, and both attentions survive
torch.compile and CUDA graphs. ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from lyrics.kernels import available_implementations, segment_attention
from tests.kernels.triton_cases import caption_plan, cross_case, exact, random_inputs, run, stage_one_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
#: A rival that is off by nothing still leaves rounding of the last place.
FLOOR = {torch.float32: 2e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
RIVALS = ("triton", "flash", "flex")
MASK = torch.tensor([[True] * 7, [True, False, True, False, False, True, True], [False] * 7])


@pytest.fixture(params=RIVALS)
def impl(request: pytest.FixtureRequest) -> str:
    found = {entry.name: entry for entry in available_implementations()}[request.param]
    if not found.available:
        pytest.skip(f"{found.name}: {found.reason}")
    return found.name


def check_rule(plan, inputs: list[torch.Tensor], impl: str, **kwargs) -> None:
    """FlashAttention's rule, for the output and the three gradients.

    It needs rows that see several keys: a row with one has gradients of exactly 0 in SDPA, and of rounding here.
    """
    dtype = inputs[0].dtype
    want = exact(plan, inputs, **kwargs)
    ours, sdpa = (run(plan, inputs, name, **kwargs) for name in (impl, "sdpa"))
    for name, a, b, truth in zip(("out", "dq", "dk", "dv"), ours, sdpa, want, strict=True):
        error, allowed = ((x.double() - truth).abs().max() for x in (a, b))
        assert error <= 2 * allowed + FLOOR[dtype] * (1 + truth.abs().max()), name


def skip_what_it_refuses(impl: str, dtype: torch.dtype, dropout_p: float) -> None:
    if impl != "triton" and dropout_p:
        pytest.skip(f"{impl} has no keyed dropout")
    if impl == "flash" and dtype == torch.float32:
        pytest.skip("flash-attn has no fp32")


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_error_is_at_most_twice_that_of_sdpa(impl: str, width: int, dtype: torch.dtype, dropout_p: float) -> None:
    skip_what_it_refuses(impl, dtype, dropout_p)
    for plan in (
        stage_one_plan(32, 32, (128, 77, 0, 13), (32, 9, 20, 0)),
        *(caption_plan(tokens) for tokens in (29, 57, 144, 179, 500)),
    ):
        plan = plan.to("cuda")
        inputs = random_inputs(plan, 4, width, dtype, "cuda")
        check_rule(plan, inputs, impl, dropout_p=dropout_p, seed=2**40 + 7)


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("mask", [None, MASK], ids=["all-keys", "masked"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_cross_attention(impl: str, dtype: torch.dtype, mask: torch.Tensor | None, dropout_p: float) -> None:
    skip_what_it_refuses(impl, dtype, dropout_p)
    for index in ([2, 1, 0, 0, 1, 2], [0, 0, 2, 0], [1]):
        plan, inputs = cross_case(index, mask, 64, dtype, queries=32, device="cuda")
        check_rule(plan, inputs, impl, dropout_p=dropout_p, seed=4)


def test_a_hundred_repeats_are_equal_to_the_bit() -> None:
    plan = stage_one_plan(32, 32, (128, 77), (32, 9)).to("cuda")
    inputs = random_inputs(plan, 12, 64, torch.bfloat16, "cuda")
    first = run(plan, inputs, "triton", dropout_p=0.1, seed=1)
    for _ in range(100):
        again = run(plan, inputs, "triton", dropout_p=0.1, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_under_compile() -> None:
    plan = stage_one_plan(32, 32, (128, 77), (32, 9)).to("cuda")
    inputs = random_inputs(plan, 12, 64, torch.bfloat16, "cuda")
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    segment_attention(q, k, v, plan, impl="triton")  # the plan's tables are built before the graph

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return segment_attention(q * 2, k, v, plan, impl="triton")

    eager, compiled = function(q, k, v), torch.compile(function)(q, k, v)
    torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-2)
    (a,), (b,) = (torch.autograd.grad(out, q, inputs[3]) for out in (eager, compiled))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_in_a_cuda_graph() -> None:
    plan = stage_one_plan(32, 32, (128, 77), (32, 9)).to("cuda")
    q, k, v, _ = random_inputs(plan, 12, 64, torch.bfloat16, "cuda")
    want = segment_attention(q, k, v, plan, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = segment_attention(q, k, v, plan, impl="triton")
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)
