"""The rivals' plans, without their kernels: flash-attn's call, and torch's, are stood in for by their definition, and
flex runs
uncompiled, forward."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn

from lyrics.kernels import Plan, _flex, _reference
from lyrics.kernels.cross import CrossPlan
from tests.kernels.test_plan import full, group
from tests.kernels.triton_cases import build_plan, caption_plan, cross_case, random_inputs, stage_one_plan

MASK = torch.tensor([[True] * 7, [True, False, True, False, False, True, True], [False] * 7])
calls: list[tuple[int, bool]] = []


def varlen(q, k, v, cu_q, cu_k, max_q, max_k, causal=False):
    """flash_attn_varlen_func as its documentation defines it: causal is aligned with the last row and key."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == int(cu_q.diff().max())
    assert max_k == int(cu_k.diff().max())
    calls.append((len(cu_q) - 1, causal))
    pieces = []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * q.shape[-1] ** -0.5
        if causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(~seen, float("-inf"))
        pieces.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(pieces)


def varlen_of_torch(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
    """torch.nn.attention.varlen.varlen_attn: the same kernels; (-1, 0) is causal."""
    assert window_size in ((-1, -1), (-1, 0))
    return varlen(q, k, v, cu_q, cu_k, max_q, max_k, causal=window_size == (-1, 0))


@pytest.fixture(params=["flash-attn", "torch"])
def flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.delitem(sys.modules, "lyrics.kernels._flash", raising=False)
    if request.param == "flash-attn":
        package = ModuleType("flash_attn")
        package.__spec__ = ModuleSpec("flash_attn", None)
        monkeypatch.setattr(package, "flash_attn_varlen_func", varlen, raising=False)
        monkeypatch.setitem(sys.modules, "flash_attn", package)
    elif importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed, and is preferred")
    else:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_of_torch)
    calls.clear()
    from lyrics.kernels import _flash

    yield _flash
    sys.modules.pop("lyrics.kernels._flash", None)


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(_flex, "_function", lambda: flex_attention)
    return _flex


def attend(module: ModuleType, plan: Plan | CrossPlan, inputs: list[torch.Tensor]) -> torch.Tensor:
    name = "segment_attention" if isinstance(plan, Plan) else "cross_attention"
    return getattr(module, name)(*inputs, plan, dropout_p=0.0, seed=0)


def cases() -> Iterator[tuple[Plan | CrossPlan, list[torch.Tensor]]]:
    for plan in (stage_one_plan(), caption_plan(57), stage_one_plan().select(torch.arange(0, 60, 3))):
        yield plan, random_inputs(plan, 2, 16, torch.float64)[:3]
    for mask in (None, MASK):
        plan, inputs = cross_case([2, 1, 0, 0, 1, 2], mask, 16, torch.float64)
        yield plan, inputs[:3]


@pytest.mark.parametrize("case", range(5))
def test_flash_in_two_calls_is_the_definition(flash: ModuleType, case: int) -> None:
    plan, inputs = list(cases())[case]
    inputs = [x.requires_grad_() for x in inputs]
    out, want = attend(flash, plan, inputs), attend(_reference, plan, inputs)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-12)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    for got, expected in zip(
        torch.autograd.grad(out, inputs, weights), torch.autograd.grad(want, inputs, weights), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    kinds = [causal for _, causal in calls]
    assert kinds == sorted(set(kinds)), "one call for full blocks and one for causal ones"


def test_torchs_own_call_is_as_the_stand_in_takes_it() -> None:
    theirs = list(inspect.signature(varlen_attn).parameters)
    assert theirs[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert inspect.signature(varlen_attn).parameters["window_size"].default == (-1, -1)


def test_flash_gets_one_block_per_image(flash: ModuleType) -> None:
    plan, inputs = cross_case([1, 0, 1, 1], None, 16, torch.float64)
    attend(flash, plan, inputs[:3])
    assert calls == [(2, False)]


@pytest.mark.parametrize("case", range(5))
def test_flex_with_the_plans_block_mask_is_the_definition(flex: ModuleType, case: int) -> None:
    plan, inputs = list(cases())[case]
    with torch.no_grad():
        torch.testing.assert_close(attend(flex, plan, inputs), attend(_reference, plan, inputs), rtol=1e-11, atol=1e-12)


def test_flex_leaves_out_blocks_that_nobody_sees() -> None:
    """Three streams of 150 tokens; blocks have 128. The mask is asked only for the blocks named here."""
    plan = build_plan([group("x", {"V": [150, 150, 150]}, full("V"))])[1]
    mask = _flex.build_block_mask(plan, 450, 450, torch.device("cpu"))
    counts = mask.kv_num_blocks[0, 0].tolist()
    blocks = [mask.kv_indices[0, 0, i, :n].tolist() for i, n in enumerate(counts)]
    assert blocks == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
