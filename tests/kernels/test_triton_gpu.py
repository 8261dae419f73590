"""On a GPU: the kernels' error is at most twice that of SDPA in the same type, repeats are bit-equal, both attentions
survive
torch.compile and CUDA graphs, and MQ-Former's whole step is the reference's. ``pytest -m gpu tests/kernels``."""

from __future__ import annotations

import pytest
import torch

from lyrics.kernels import CrossPlan, Plan, available_implementations, cross_attention, segment_attention
from tests.kernels.step_cases import step_results, worst_difference
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


PLANS = ["segment", "cross"]


def paper_case(kind: str) -> tuple[Plan | CrossPlan, list[torch.Tensor]]:
    """bf16 tensors of both attentions at the paper's sizes."""
    if kind == "segment":
        plan = stage_one_plan(32, 32, (128, 77), (32, 9)).to("cuda")
        return plan, random_inputs(plan, 12, 64, torch.bfloat16, "cuda")
    index = [2, 1, 0, 0, 1, 2, 1]
    return cross_case(index, MASK, 64, torch.bfloat16, queries=32, heads=12, device="cuda")


@pytest.mark.parametrize("kind", PLANS)
def test_a_hundred_repeats_are_equal_to_the_bit(kind: str) -> None:
    plan, inputs = paper_case(kind)
    first = run(plan, inputs, "triton", dropout_p=0.1, seed=1)
    for _ in range(100):
        again = run(plan, inputs, "triton", dropout_p=0.1, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", PLANS)
def test_under_compile(kind: str) -> None:
    """In one graph, forward and backward; doubling is exact, so the compiled results are the eager ones."""
    plan, (*qkv, weights) = paper_case(kind)
    leaves = [x.requires_grad_() for x in qkv]
    attend = segment_attention if kind == "segment" else cross_attention

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q * 2, k, v, plan, dropout_p=0.1, seed=3, impl="triton")

    eager = function(*leaves)  # the plan's tables are built here, before the graph
    compiled = torch.compile(function, fullgraph=True)(*leaves)
    assert torch.equal(compiled, eager)
    grads = [torch.autograd.grad(out, leaves, weights) for out in (eager, compiled)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", PLANS)
def test_a_cuda_graph_replays_both_passes_on_new_inputs(kind: str) -> None:
    plan, (*qkv, weights) = paper_case(kind)
    static = [x.requires_grad_() for x in qkv]
    attend = segment_attention if kind == "segment" else cross_attention

    def both(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        out = attend(*leaves, plan, dropout_p=0.1, seed=3, impl="triton")
        return [out, *torch.autograd.grad(out, leaves, weights)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled and tables built before the capture
        both(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(static)
    fresh = [torch.randn_like(x).requires_grad_() for x in static]
    with torch.no_grad():
        for x, new in zip(static, fresh, strict=True):
            x.copy_(new)
    graph.replay()
    for got, want in zip(captured, both(fresh), strict=True):
        assert torch.equal(got, want)


# --- the whole step of MQ-Former -------------------------------------------------------------------------------------

STEP = {"sizes": {"num_layers": 4}}


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [(128, 32), (64, 16), (29, 5)])
def test_a_step_is_the_references(lengths: tuple[int, int], dropout_p: float) -> None:
    """The paper's widths, losses and every parameter's gradient, in fp32; four of the twelve layers, of which two have
    cross-attention.
    """
    got, want = (
        step_results(i, 4, lengths, device="cuda", dropout_p=dropout_p, **STEP) for i in ("triton", "reference")
    )
    differences = worst_difference(got, want)
    assert max(differences.values()) <= 1e-3, {name: d for name, d in differences.items() if d > 1e-3}


def test_a_step_in_bf16_is_as_close_as_with_sdpa() -> None:
    """To the reference in fp32; every loss and gradient, in the mean, since single numbers are noise."""
    want = step_results("reference", 4, (64, 16), device="cuda", **STEP)
    ours, sdpa = (
        worst_difference(step_results(impl, 4, (64, 16), device="cuda", bf16=True, **STEP), want)
        for impl in ("triton", "sdpa")
    )
    assert sum(ours.values()) <= 2 * sum(sdpa.values()) + 1e-3 * len(want)
    assert all(ours[name] <= 2 * sdpa[name] + 1e-2 for name in want if name.startswith("loss ")), (ours, sdpa)
