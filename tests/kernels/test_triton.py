"""The Triton kernels under Triton's interpreter, against the definition in float64. ``test_triton_child.py`` runs this
file in a process of its own, because the interpreter is chosen before triton is imported and would be chosen for
every other test.
"""

from __future__ import annotations

import os
from dataclasses import astuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_child.py runs this file, with TRITON_INTERPRET=1", allow_module_level=True)

from triton.runtime.errors import OutOfResources

from lyrics.kernels import ImplementationError, Plan, _triton, build_plan, cross_attention, explain, segment_attention
from lyrics.kernels._triton_configs import CANDIDATES, LENGTHS, SHIPPED, Config, key_of, length_of
from lyrics.kernels.tiles import tiles_of
from tests.kernels.step_cases import TOY, step_results, worst_difference
from tests.kernels.test_plan import TABLES, full, group
from tests.kernels.triton_cases import caption_plan, cross_case, exact, random_inputs, run, stage_one_plan, worst

SEED = 2**40 + 7
#: Of the error over 1 + the greatest value. The interpreter truncates to bfloat16 instead of rounding.
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
MASK = torch.tensor([[True] * 7, [True, False, True, False, False, True, True], [False] * 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "dropout_p"), [(1, 0.0), (29, 0.3), (57, 0.0), (144, 0.1), (179, 0.0)])
def test_odd_lengths(tokens: int, dropout_p: float, dtype: torch.dtype) -> None:
    plan = caption_plan(tokens)
    inputs = random_inputs(plan, 1, 32, dtype)
    kwargs = {"dropout_p": dropout_p, "seed": SEED}
    errors = worst(run(plan, inputs, "triton", **kwargs), exact(plan, inputs, **kwargs))
    assert max(errors) <= LIMITS[dtype], errors


@pytest.mark.parametrize(
    ("heads", "width", "dtype", "dropout_p"),
    [
        (2, 32, torch.float32, 0.3),
        (1, 64, torch.float16, 0.0),
        (1, 64, torch.bfloat16, 0.3),
        (1, 128, torch.float16, 0.1),
    ],
)
def test_all_objectives_in_one_launch(heads: int, width: int, dtype: torch.dtype, dropout_p: float) -> None:
    plan = stage_one_plan()
    inputs = random_inputs(plan, heads, width, dtype)
    kwargs = {"dropout_p": dropout_p, "seed": -5}
    got = run(plan, inputs, "triton", **kwargs)
    assert [x.dtype for x in got] == [dtype] * 4
    errors = worst(got, exact(plan, inputs, **kwargs))
    assert max(errors) <= LIMITS[dtype], errors
    blind = ~plan.dense_mask().any(1)
    assert blind.any()
    for tensor in got[:2]:
        assert (tensor[blind] == 0).all(), "rows without keys are zero, and so is the gradient of their queries"


def test_tile_sizes_make_no_difference() -> None:
    """Streams longer than a tile, cut in several ways; the causal ones too."""
    plan = stage_one_plan(7, 6, (5,), (17,))
    *qkv, weights = random_inputs(plan, 1, 32, torch.float32)
    want = exact(plan, [*qkv, weights], dropout_p=0.2, seed=1)
    for config in (Config(16, 16, 16, 16, 4, 1), Config(64, 32, 16, 32, 4, 1)):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = _triton.segment_attention(*leaves, plan, dropout_p=0.2, seed=1, config=config)
        got = [out.detach(), *torch.autograd.grad(out, leaves, weights)]
        assert max(worst(got, want)) <= 1e-5, config


def test_selected_rows() -> None:
    plan = stage_one_plan(s=(5,), c=(4,))
    rows = torch.arange(0, plan.num_queries, 3)
    inputs = random_inputs(plan, 1, 32, torch.float32)
    whole = exact(plan, inputs, dropout_p=0.2, seed=1)[0]
    q, k, v, _ = inputs
    got = segment_attention(q[rows], k, v, plan.select(rows), impl="triton", dropout_p=0.2, seed=1)
    torch.testing.assert_close(got.double(), whole[rows], rtol=1e-5, atol=1e-5)


def test_inputs_may_be_slices() -> None:
    """q, k and v as slices of one projection, and a gradient that is not contiguous."""
    plan = stage_one_plan(s=(5,), c=(4,))
    q, k, v, weights = random_inputs(plan, 2, 32, torch.float32)
    want = exact(plan, [q, k, v, weights])
    joint = torch.cat([q, k, v], dim=1).requires_grad_()
    out = segment_attention(*joint.split(2, dim=1), plan, impl="triton")
    (got,) = torch.autograd.grad(out.transpose(0, 1), joint, weights.transpose(0, 1).contiguous())
    torch.testing.assert_close(got.double(), torch.cat(want[1:], dim=1), rtol=1e-5, atol=1e-5)
    strided = torch.stack([q, q], dim=-1)[..., 0]
    assert strided.stride(-1) == 2
    again = segment_attention(strided, k, v, plan, impl="triton")
    assert torch.equal(again, out.detach())


def test_repeats_are_equal_to_the_bit() -> None:
    plan = stage_one_plan(s=(5,), c=(4,))
    inputs = random_inputs(plan, 1, 32, torch.float16)
    first, second = (run(plan, inputs, "triton", dropout_p=0.3, seed=SEED) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = run(plan, inputs, "triton", dropout_p=0.3, seed=SEED + 2**33)
    assert not torch.equal(first[0], other[0]), "the seed's upper half counts too"


def test_a_sample_alone_and_beside_others_is_equal_to_the_bit() -> None:
    """Output, gradients and what is dropped."""
    one = group("itm", {"V": [4], "G": [3], "S": [5], "C": [6]}, TABLES["itm"])
    two = group("itm", {"V": [4, 4], "G": [3, 3], "S": [5, 40], "C": [6, 1]}, TABLES["itm"])
    layout_a, plan_a = build_plan([one])
    layout_b, plan_b = build_plan([group("other", {"V": [2], "G": [3]}, full("VG")), two])
    small = torch.cat([layout_a.positions("itm", s) for s in "VGSC"])
    big = torch.cat([layout_b.positions("itm", s)[: int(layout_a.lengths["itm", s].sum())] for s in "VGSC"])
    inputs = random_inputs(plan_b, 1, 32, torch.float32)
    alone = [torch.zeros(len(small), 1, 32).index_copy(0, small, x[big]) for x in inputs]
    together = run(plan_b, inputs, "triton", dropout_p=0.4, seed=9)
    for a, b in zip(run(plan_a, alone, "triton", dropout_p=0.4, seed=9), together, strict=True):
        assert torch.equal(a[small], b[big])


@pytest.mark.parametrize("mask", [None, MASK], ids=["all-keys", "masked"])
@pytest.mark.parametrize(
    ("index", "dtype", "dropout_p"),
    [([2, 1, 0, 0, 1, 2], torch.float32, 0.3), ([0, 0, 2, 0], torch.float16, 0.0), ([1], torch.bfloat16, 0.0)],
)
def test_cross_attention(index: list[int], dtype: torch.dtype, dropout_p: float, mask: torch.Tensor | None) -> None:
    plan, inputs = cross_case(index, mask, 32, dtype)
    kwargs = {"dropout_p": dropout_p, "seed": 4}
    got, want = run(plan, inputs, "triton", **kwargs), exact(plan, inputs, **kwargs)
    assert [x.shape for x in got] == [x.shape for x in want]
    errors = worst(got, want)
    assert max(errors) <= LIMITS[dtype], errors
    unread = [image for image in range(3) if image not in index]
    assert all((grad[unread] == 0).all() for grad in got[2:])
    if mask is not None:
        assert all((grad[1, [1, 3, 4]] == 0).all() for grad in got[2:]), "masked keys get no gradient"
        assert all((got[0][s] == 0).all() for s, image in enumerate(index) if image == 2), "an image without keys"


def test_many_sets_of_one_image_share_tiles() -> None:
    """Sets and keys that fill more than one tile, in an order that is not the images'."""
    plan, inputs = cross_case([1, 0, 1, 1, 0, 1, 1], None, 32, torch.float32, images=2, queries=13, keys=70, heads=1)
    assert len(tiles_of(plan, 32, 32, 32, torch.device("cpu")).row_tiles) == 3 + 1, "65 rows of image 1, 26 of image 0"
    errors = worst(run(plan, inputs, "triton"), exact(plan, inputs))
    assert max(errors) <= 1e-5, errors


def test_a_plan_in_which_nothing_sees_anything() -> None:
    plan = build_plan([group("x", {"C": [3]}, {})])[1]
    got = run(plan, random_inputs(plan, 1, 32, torch.float32), "triton")
    assert all((tensor == 0).all() for tensor in got)


@pytest.mark.parametrize("key_exists", [None, torch.tensor([1, 0, 1, 1, 1, 1, 1], dtype=torch.uint8)])
def test_the_custom_operations_pass_opcheck(key_exists: torch.Tensor | None) -> None:
    plan = caption_plan(7)
    q, k, v, grad = random_inputs(plan, 1, 32, torch.float32)
    tables = list(_triton._tables(tiles_of(plan, 16, 16, 16, q.device)))
    tables[-1] = key_exists
    rest = (0.1, SEED, [16, 16, 16, 16, 4, 1])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(_triton.attention_op, (*leaves, *tables, *rest))
    with torch.no_grad():
        out, lse = _triton.attention_op(q, k, v, *tables, *rest)
        arguments = (grad, q.detach(), k.detach(), v.detach(), out, lse, *tables, *rest)
        torch.library.opcheck(_triton.attention_backward_op, arguments)


def test_what_triton_does_not_take_is_refused_not_replaced() -> None:
    plan = caption_plan(4)
    for width, dtype, message in (
        (32, torch.float64, "takes torch.float16, torch.bfloat16, torch.float32, not torch.float64"),
        (16, torch.float32, "takes head dimensions 32, 64 and 128, not 16"),
    ):
        q, k, v, _ = random_inputs(plan, 1, width, dtype)
        with pytest.raises(ImplementationError, match=rf"'triton' cannot run here: {message}. Available: sdpa, ref"):
            segment_attention(q, k, v, plan, impl="triton")


def test_auto_does_not_take_the_interpreter() -> None:
    assert explain("cpu", torch.float32).startswith("sdpa (")
    assert "triton: runs in Triton's interpreter here, for tests" in explain("cpu", torch.float32)


def test_under_compile() -> None:
    """In one graph once the plan has its tables; forward and backward are bit-equal to eager, and new seeds and plans
    reuse the graph.
    """
    counter = CompileCounterWithBackend("aot_eager")

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, seed: int) -> torch.Tensor:
        return segment_attention(q * 2, k, v, plan, dropout_p=0.2, seed=seed, impl="triton")

    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for turn, tokens in enumerate((8, 9, 11, 13)):
        plan = caption_plan(tokens)
        *qkv, weights = random_inputs(plan, 1, 32, torch.float32)
        leaves = [x.requires_grad_() for x in qkv]
        outs = [call(*leaves, plan, SEED + turn) for call in (function, compiled)]
        assert torch.equal(*outs)
        grads = [torch.autograd.grad(out, leaves, weights) for out in outs]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert counter.frame_count == 2, "one for the first lengths, one for all others"


def test_cross_attention_under_compile() -> None:
    plan, (q, k, v, _) = cross_case([2, 1, 0, 0], None, 32, torch.float32)

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return cross_attention(q * 2, k, v, plan, impl="triton")

    want = function(q, k, v)
    assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(q, k, v), want)


def test_a_step_of_mqformer_is_the_references() -> None:
    """Losses and every parameter's gradient."""
    got, want = (step_results(impl, 2, (9, 6), dropout_p=0.2, **TOY) for impl in ("triton", "reference"))
    differences = worst_difference(got, want)
    assert len(differences) > 40
    assert max(differences.values()) <= 1e-4, differences


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 32), (32, 32), (33, 128), (129, 256), (500, 256)])
def test_a_case_is_keyed_on_the_longest_block_not_on_the_number_of_tokens(tokens: int, bucket: int) -> None:
    for samples in (1, 50):
        plan = build_plan([group("x", {"V": [tokens] * samples}, full("V"))])[1]
        assert length_of(plan) == bucket
    q = torch.zeros(tokens * 50, 2, 64, dtype=torch.float16)
    key = key_of(plan, q.device, q.dtype, q.shape[-1], dropout=True)
    assert (key.dtype, key.head_dim, key.dropout, key.length) == (torch.float16, 64, True, bucket)
    assert key in SHIPPED


def test_short_blocks_get_short_tiles_on_ampere() -> None:
    short = {config.row_block for key, config in SHIPPED.items() if (key.length, key.generation) == (LENGTHS[0], 8)}
    assert short == {32}


def test_tuning_takes_the_fastest_that_fits_once_per_case(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = caption_plan(8)
    q, k, v, _ = random_inputs(plan, 1, 32, torch.float32)
    tried: list[Config] = []
    attend = _triton.attention_op

    def launch(*arguments):
        tried.append(Config(*arguments[-1]))
        if tried[-1].num_stages == 3:
            raise OutOfResources(2, 1, "shared memory")
        return attend(*arguments)

    def milliseconds(run, rounds: int) -> float:
        run()
        return float(tried[-1] != CANDIDATES[1])

    monkeypatch.setattr(_triton, "attention_op", launch)
    monkeypatch.setattr(_triton, "_milliseconds", milliseconds)
    monkeypatch.setattr(_triton, "AUTOTUNE", True)
    monkeypatch.setattr(_triton, "_tuned", {})
    for _ in range(2):
        segment_attention(q, k, v, plan, impl="triton")
    assert set(CANDIDATES) <= set(tried)
    assert len(tried) == len(set(tried)) + 2, "every configuration once; then both calls with the fastest"
    assert tried[-2:] == [CANDIDATES[1]] * 2


def test_the_benchmark_runs_the_tuned_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.workflows.bench import attention as bench
    from lyrics.workflows.bench.work import Case, WorkSizes, inputs_of, plan_of

    monkeypatch.setattr(_triton, "_milliseconds", lambda run, rounds: next(times))
    for op in ("segment", "cross"):
        case = Case(op, 2, "padded", "fp32", 0.1, WorkSizes(2, 2, (3, 2), (2, 1), 1, 32, 3))
        plan = plan_of(case, "cpu")
        times = iter(range(9, 0, -1))
        name = bench._tuned(plan, inputs_of(case, plan, 1, "cpu")[:3], 0.1)
        assert name == "triton " + "-".join(str(number) for number in astuple(CANDIDATES[-1]))
        found = bench.errors(case, "triton 16-16-16-16-4-1", "cpu")
        assert all(error <= allowed for error, allowed in found.values()), found


def test_operations_are_counted_from_the_tiles() -> None:
    from lyrics.core.stage1.state import Loss
    from lyrics.workflows.bench.measuring import counted_flops

    plan = build_plan([group("x", {"V": [5, 3], "C": [2, 0]}, full("V"))])[1]
    q, k, v, _ = random_inputs(plan, 2, 32, torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    counted = counted_flops(lambda: {"loss": Loss(segment_attention(*leaves, plan, impl="triton").sum(), 1)})
    assert counted == 2 * (2 + 5) * (5 * 5 + 3 * 3) * 2 * 32
