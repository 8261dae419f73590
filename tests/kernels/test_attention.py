"""Both operations: every implementation against the definition, outputs and gradients, and the promises of the public
functions.
"""

from __future__ import annotations

import logging
import math
import re

import pytest
import torch

from lyrics.kernels import (
    ImplementationError,
    Plan,
    PlanError,
    available_implementations,
    build_cross_plan,
    build_plan,
    cross_attention,
    explain,
    segment_attention,
)
from lyrics.kernels import attention as attention_module
from tests.kernels.test_plan import TABLES, full, group, lengths

HEADS, WIDTH = 3, 8
OTHERS = ["sdpa"]  # the kernels for GPUs have tests of their own


def stage_one_plan() -> Plan:
    """The paper's objectives for three samples of odd lengths, one of them without objects, one without a caption."""
    s, c = [5, 1, 0], [4, 0, 3]
    queries = {"V": [2, 2, 2], "G": [3, 3, 3]}
    groups = [
        group("queries", queries, full("VG")),
        group("text", {"S": s, "C": c}, full("SC")),
        group("icg", {"C": c}, {("C", "C"): "causal"}, prefix="queries"),
        group("msp", {**queries, "S": s}, full("VGS")),
        group("itm", {**queries, "S": s, "C": c}, full("VC", "GS")),
        group("nothing", {"C": [2, 1, 0]}, {}),
        group("lm", {**queries, "S": s, "C": c}, TABLES["lm"]),
    ]
    return build_plan(groups)[1]


def random_qkv(num_q: int, num_k: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(num_q, HEADS, WIDTH), (num_k, HEADS, WIDTH), (num_k, HEADS, WIDTH)]
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def run(plan: Plan, inputs: list[torch.Tensor], **kwargs) -> list[torch.Tensor]:
    out = segment_attention(*inputs, plan, **kwargs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, inputs, weights.to(out.dtype))]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Token by token, head by head, from the formula."""
    out = torch.zeros_like(q)
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            seen = mask[t].nonzero()[:, 0].tolist()
            if not seen:
                continue
            scores = [math.exp(float(q[t, h] @ k[j, h]) / math.sqrt(q.shape[2])) for j in seen]
            out[t, h] = sum(s / sum(scores) * v[j, h] for s, j in zip(scores, seen, strict=True))
    return out


def test_the_reference_is_the_formula() -> None:
    plan = stage_one_plan()
    q, k, v = (x.detach() for x in random_qkv(plan.num_queries, plan.num_keys))
    expected = by_hand(q, k, v, plan.dense_mask())
    torch.testing.assert_close(segment_attention(q, k, v, plan, impl="reference"), expected, rtol=1e-12, atol=1e-12)


def test_the_reference_gradients_pass_gradcheck() -> None:
    _, plan = build_plan([group("lm", {"V": [1], "G": [1], "S": [2], "C": [2]}, TABLES["lm"])])
    inputs = random_qkv(plan.num_queries, plan.num_keys)
    assert torch.autograd.gradcheck(lambda *x: segment_attention(*x, plan, impl="reference"), inputs)


@pytest.mark.parametrize("impl", OTHERS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_implementations_agree_with_the_reference(impl: str, dropout_p: float) -> None:
    plan = stage_one_plan()
    inputs = random_qkv(plan.num_queries, plan.num_keys)
    expected = run(plan, inputs, impl="reference", dropout_p=dropout_p, seed=2**40 + 7)
    for got, want in zip(run(plan, inputs, impl=impl, dropout_p=dropout_p, seed=2**40 + 7), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", OTHERS)
def test_implementations_agree_on_selected_rows(impl: str) -> None:
    plan = stage_one_plan()
    rows = torch.arange(0, plan.num_queries, 3)
    selected = plan.select(rows)
    q, k, v = random_qkv(plan.num_queries, plan.num_keys)
    everything = segment_attention(q, k, v, plan, impl="reference", dropout_p=0.2, seed=1)
    got = segment_attention(q[rows], k, v, selected, impl=impl, dropout_p=0.2, seed=1)
    torch.testing.assert_close(got, everything[rows], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", *OTHERS])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_rows_without_keys_are_zero_and_so_is_their_gradient(impl: str, dropout_p: float) -> None:
    sizes = {"V": [2, 2], "C": [3, 2]}
    layout, plan = build_plan([group("x", sizes, full("V"))])
    out, dq, dk, dv = run(plan, random_qkv(plan.num_queries, plan.num_keys), impl=impl, dropout_p=dropout_p)
    blind = layout.positions("x", "C")
    for tensor in (out, dq, dk, dv):
        assert torch.isfinite(tensor).all()
        assert (tensor[blind] == 0).all()
    assert (out[layout.positions("x", "V")] != 0).any()


@pytest.mark.parametrize("impl", ["reference", *OTHERS])
def test_packing_does_not_change_what_is_dropped(impl: str) -> None:
    """A stream gives the same bits' worth of dropout alone, beside others, and when padded rows of other samples
    differ.
    """
    alone = group("itm", {"V": [2], "G": [3], "S": [4], "C": [2]}, TABLES["itm"])
    layout_a, plan_a = build_plan([alone])
    together = group("itm", {"V": [2, 2], "G": [3, 3], "S": [4, 9], "C": [2, 1]}, TABLES["itm"])
    layout_b, plan_b = build_plan([group("other", {"V": [2], "G": [3]}, full("VG")), together])
    inputs = random_qkv(plan_b.num_queries, plan_b.num_keys)
    rows = torch.cat([layout_b.positions("itm", s)[: int(layout_a.lengths["itm", s].sum())] for s in "VGSC"])
    small = torch.cat([layout_a.positions("itm", s) for s in "VGSC"])
    big = segment_attention(*inputs, plan_b, dropout_p=0.4, seed=9, impl=impl)
    subset = [torch.zeros(len(small), HEADS, WIDTH, dtype=torch.float64).index_copy(0, small, x[rows]) for x in inputs]
    got = segment_attention(*subset, plan_a, dropout_p=0.4, seed=9, impl=impl)
    torch.testing.assert_close(got[small], big[rows], rtol=1e-11, atol=1e-12)
    other_seed = segment_attention(*subset, plan_a, dropout_p=0.4, seed=10, impl=impl)
    assert not torch.allclose(other_seed, got)


def test_dropout_drops_the_asked_fraction_independently_of_head_and_row() -> None:
    from lyrics.kernels.hashing import dropout_keep

    ids = torch.arange(300, dtype=torch.int32)
    keep = dropout_keep(ids, ids + 1000, 4, seed=123456789012, dropout_p=0.1).double()
    for axis in (0, 1, 2):
        others = tuple(i for i in range(3) if i != axis)
        assert ((keep.mean(others) - 0.9).abs() < 0.05).all()
    assert abs(float(keep.mean()) - 0.9) < 0.002
    between_heads = torch.corrcoef(keep.reshape(4, -1))
    assert (between_heads - torch.eye(4)).abs().max() < 0.02


@pytest.mark.parametrize("impl", OTHERS)
def test_half_precision_is_as_close_as_sdpa(impl: str) -> None:
    plan = stage_one_plan()
    exact = random_qkv(plan.num_queries, plan.num_keys)
    want = run(plan, exact, impl="reference")
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    for got, expected in zip(run(plan, rounded, impl=impl), want, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - expected).abs().max() < 0.06


# --- cross-attention -------------------------------------------------------------------------------------------------


def cross_case(index: list[int], mask: torch.Tensor | None, images: int = 3, keys: int = 5):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(index), 2, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (
        torch.randn(images, keys, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_() for _ in "kv"
    )
    ids = torch.arange(2 * len(index), dtype=torch.int32).view(-1, 2)
    return build_cross_plan(lengths(*index), mask, images, ids, keys), [q, k, v]


MASK = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])


@pytest.mark.parametrize("impl", OTHERS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 1, 0, 0, 1, 2], [0, 0, 2, 0], [1], [1, 1, 1]])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all-keys", "masked"])
def test_cross_attention_agrees_with_the_reference(impl: str, dropout_p: float, index: list[int], mask) -> None:
    plan, inputs = cross_case(index, mask)
    results = []
    for name in ("reference", impl):
        out = cross_attention(*inputs, plan, dropout_p=dropout_p, seed=4, impl=name)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        results.append([out, *torch.autograd.grad(out, inputs, weights)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_cross_attention_reads_the_image_that_the_index_names() -> None:
    plan, (q, k, v) = cross_case([2, 0, 2], None)
    out = cross_attention(q, k, v, plan, impl="reference")
    for s, image in enumerate([2, 0, 2]):
        for h in range(HEADS):
            weights = torch.softmax(q[s, :, h] @ k[image, :, h].T / math.sqrt(WIDTH), dim=-1)
            torch.testing.assert_close(out[s, :, h], weights @ v[image, :, h])


@pytest.mark.parametrize("impl", ["reference", *OTHERS])
def test_sets_of_an_image_without_keys_are_zero(impl: str) -> None:
    plan, inputs = cross_case([0, 2, 1], MASK)
    out = cross_attention(*inputs, plan, impl=impl)
    assert (out[1] == 0).all()
    assert (out[0] != 0).any()
    assert (out[2] != 0).any()
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.isfinite(g).all() for g in grads)
    assert (grads[2][1, [1, 3, 4]] == 0).all(), "masked keys get no gradient"


@pytest.mark.parametrize("impl", ["reference", *OTHERS])
def test_no_keys_at_all(impl: str) -> None:
    plan, (q, k, v) = cross_case([0, 1, 2], torch.zeros(3, 0, dtype=torch.bool), keys=0)
    assert (cross_attention(q, k, v, plan, impl=impl) == 0).all()


# --- the public functions' promises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["triton", "flash", "flex"])
def test_an_explicit_implementation_never_falls_back(impl: str) -> None:
    """Float64 on a CPU is for sdpa and the reference alone, whatever is installed."""
    plan = stage_one_plan()
    inputs = random_qkv(plan.num_queries, plan.num_keys)
    with pytest.raises(ImplementationError, match=rf"'{impl}' cannot run here: .+\. Available: sdpa, reference\."):
        segment_attention(*inputs, plan, impl=impl)
    cross_plan, cross_inputs = cross_case([0, 1], None)
    with pytest.raises(ImplementationError, match=rf"'{impl}' cannot run here: .+\. Available: sdpa, reference\."):
        cross_attention(*cross_inputs, cross_plan, impl=impl)


def test_an_unknown_implementation_is_told_the_names() -> None:
    plan = stage_one_plan()
    with pytest.raises(
        ImplementationError, match="no implementation 'fast'; the names are auto, triton, flash, flex, sdpa, reference"
    ):
        segment_attention(*random_qkv(plan.num_queries, plan.num_keys), plan, impl="fast")


@pytest.mark.parametrize(
    ("missing", "dtype", "head_dim", "dropout_p", "chosen"),
    [
        ("", torch.bfloat16, 64, 0.0, "triton"),
        ("", torch.float32, 128, 0.1, "triton"),
        ("triton", torch.float16, 64, 0.0, "flash"),
        ("triton", torch.float16, 64, 0.1, "sdpa"),
        ("triton", torch.float32, 64, 0.0, "flex"),
        ("triton flash", torch.bfloat16, 32, 0.0, "flex"),
        ("triton flash flex", torch.bfloat16, 64, 0.0, "sdpa"),
        ("", torch.float64, 64, 0.0, "sdpa"),
        ("", torch.bfloat16, 80, 0.0, "flash"),
        ("", torch.float32, 80, 0.0, "sdpa"),
        ("", torch.bfloat16, 12, 0.0, "sdpa"),
    ],
)
def test_auto_on_a_gpu_takes_the_first_that_serves(
    monkeypatch: pytest.MonkeyPatch, missing: str, dtype: torch.dtype, head_dim: int, dropout_p: float, chosen: str
) -> None:
    monkeypatch.setattr(attention_module, "_missing", lambda name: "is away" if name in missing.split() else None)
    assert explain("cuda", dtype, head_dim, dropout_p).startswith("sdpa (")
    monkeypatch.setattr(attention_module, "UNPROVEN", ())
    told = explain("cuda", dtype, head_dim, dropout_p)
    assert told.startswith(f"{chosen} (")
    assert all(f"{name}: is away" in told for name in missing.split())


def test_auto_on_a_cpu_takes_sdpa_with_a_gpu_in_the_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_missing", lambda name: None)
    told = explain("cpu", torch.float32)
    assert told.startswith("sdpa (")
    assert "flash: needs tensors on a CUDA device, not on cpu" in told


@pytest.mark.parametrize(
    ("capability", "reason"), [((7, 5), "compute capability 8.0 or more; this one has 7.5"), ((8, 0), None)]
)
def test_old_gpus_are_told_so(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = {entry.name: entry for entry in available_implementations()}["flex"]
    assert found.available is (reason is None)
    if reason:
        assert reason in found.reason


@pytest.mark.parametrize(
    ("package", "torchs", "reason"),
    [
        (True, False, "one call for full and one for causal blocks"),
        (False, True, "by torch's own varlen_attn, since flash-attn is not installed"),
        (False, False, "flash-attn is not installed .* and this build of torch has no flash kernels of its own"),
    ],
)
def test_flash_is_torchs_own_where_flash_attn_is_absent(
    monkeypatch: pytest.MonkeyPatch, package: bool, torchs: bool, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: torchs)
    monkeypatch.setattr(attention_module, "_has_flash_attn", lambda: package)
    found = {entry.name: entry for entry in available_implementations()}["flash"]
    assert found.available is (package or torchs)
    assert re.search(reason, found.reason)


def test_auto_says_once_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    attention_module._implementation.cache_clear()
    attention_module._say_once.cache_clear()
    plan = stage_one_plan()
    inputs = random_qkv(plan.num_queries, plan.num_keys)
    with caplog.at_level(logging.INFO, logger="lyrics.kernels.attention"):
        for dropout_p in (0.0, 0.1, 0.0):
            segment_attention(*inputs, plan, dropout_p=dropout_p)
    assert [record.getMessage() for record in caplog.records] == [
        f"attention: auto takes {explain('cpu', torch.float64)}"
    ]


def test_every_name_has_a_reason() -> None:
    entries = {entry.name: entry for entry in available_implementations()}
    assert list(entries) == ["triton", "flash", "flex", "sdpa", "reference"]
    assert entries["reference"].available
    assert entries["sdpa"].available
    assert all(entry.reason for entry in entries.values())
    if not torch.cuda.is_available():
        assert "needs a CUDA device, and torch sees none" in entries["flex"].reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:-1], k, v), "the plan is for .* query rows"),
        (lambda q, k, v: (q, k, v[:, :1]), r"must be \[Tq,H,d\]"),
        (lambda q, k, v: (q.float(), k, v), "share dtype and device"),
    ],
)
def test_shapes_are_checked(change, message: str) -> None:
    plan = stage_one_plan()
    with pytest.raises(ValueError, match=message):
        segment_attention(*change(*random_qkv(plan.num_queries, plan.num_keys)), plan)


def test_cross_plan_checks_its_index_and_mask() -> None:
    with pytest.raises(PlanError, match=r"read images 0 .. 3, and there are 3"):
        cross_case([0, 3], None)
    with pytest.raises(PlanError, match="key mask is"):
        cross_case([0], torch.ones(2, 5, dtype=torch.bool))
