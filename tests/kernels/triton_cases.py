"""Plans and comparisons that the Triton tests share, under the interpreter and on a GPU."""

from __future__ import annotations

import torch

from lyrics.kernels import Plan, build_cross_plan, build_plan, cross_attention, segment_attention
from lyrics.kernels.cross import CrossPlan
from tests.kernels.test_plan import TABLES, full, group, lengths

CAPTION = {("V", "V"): "full", ("C", "V"): "full", ("C", "C"): "causal"}


def caption_plan(tokens: int) -> Plan:
    """One stream of that many tokens, a quarter of them causal, which see the others too."""
    causal = tokens // 4
    return build_plan([group("x", {"V": [tokens - causal], "C": [causal]}, CAPTION)])[1]


def stage_one_plan(v: int = 2, g: int = 3, s: tuple[int, ...] = (5, 0), c: tuple[int, ...] = (4, 3)) -> Plan:
    """The paper's objectives and two tables with several causal segments, for samples of odd and empty texts; some rows
    see nothing.
    """
    queries = {"V": [v] * len(s), "G": [g] * len(s)}
    texts = {"S": list(s), "C": list(c)}
    groups = [
        group("queries", queries, full("VG")),
        group("text", texts, full("SC")),
        group("icg", {"C": list(c)}, {("C", "C"): "causal"}, prefix="queries"),
        group("msp", {**queries, "S": list(s)}, full("VGS")),
        group("itm", {**queries, **texts}, full("VC", "GS")),
        group("nothing", {"C": list(c)}, {}),
        group("lm", {**queries, **texts}, TABLES["lm"]),
    ]
    return build_plan(groups)[1]


def random_inputs(plan: Plan, heads: int, width: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """q, k, v, and a gradient of the output."""
    generator = torch.Generator().manual_seed(3)
    sizes = (plan.num_queries, plan.num_keys, plan.num_keys, plan.num_queries)
    return [torch.randn(n, heads, width, generator=generator).to(device, dtype) for n in sizes]


def cross_case(
    index: list[int],
    mask: torch.Tensor | None,
    width: int,
    dtype: torch.dtype,
    *,
    images: int = 3,
    queries: int = 5,
    keys: int = 7,
    heads: int = 2,
    device: str = "cpu",
) -> tuple[CrossPlan, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(index), queries, heads, width), *[(images, keys, heads, width)] * 2]
    shapes.append(shapes[0])
    inputs = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    ids = torch.arange(queries * len(index), dtype=torch.int32, device=device).view(-1, queries) * 7919
    mask = None if mask is None else mask.to(device)
    return build_cross_plan(lengths(*index), mask, images, ids, keys), inputs


def run(plan: Plan | CrossPlan, inputs: list[torch.Tensor], impl: str, **kwargs) -> list[torch.Tensor]:
    """The output and three gradients."""
    *qkv, weights = inputs
    qkv = [x.detach().requires_grad_() for x in qkv]
    function = segment_attention if isinstance(plan, Plan) else cross_attention
    out = function(*qkv, plan, impl=impl, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, qkv, weights)]


def exact(plan: Plan | CrossPlan, inputs: list[torch.Tensor], **kwargs) -> list[torch.Tensor]:
    """The definition in float64 on the same (already rounded) inputs."""
    return run(plan, [x.double() for x in inputs], "reference", **kwargs)


def worst(got: list[torch.Tensor], want: list[torch.Tensor]) -> list[float]:
    """Greatest error of the output and each gradient, over 1 + the greatest value."""
    return [float((a.double() - b).abs().max() / (1 + b.abs().max())) for a, b in zip(got, want, strict=True)]
