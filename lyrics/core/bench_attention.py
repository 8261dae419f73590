"""``lyrics bench attention``: both attentions of a packed stage-1 layer, every implementation, correctness first, then time.

What is timed is one layer: *segment*, the self-attention of all four objectives' streams packed into one sequence, and *cross*, their
visual query sets reading the image tokens. The rival that comes for free is called ``dense``: torch's scaled_dot_product_attention, one
padded and masked pass per objective (segment) or per query set (cross); on a GPU once per back-end of torch's.

Before an implementation is timed it is compared with the definition in float64 on two samples, output and three gradients: its error may
be at most twice that of ``sdpa`` in the same type. One that fails is not timed, and the command fails at the end.

Letters: B samples, H heads, d width of a head, Q queries in a set, L padded length.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lyrics.core.bench_charts import attention_chart
from lyrics.core.bench_step import environment
from lyrics.kernels import (
    IMPLEMENTATIONS,
    CrossPlan,
    ImplementationError,
    Layout,
    Plan,
    Segment,
    StreamGroup,
    available_implementations,
    build_cross_plan,
    build_plan,
    cross_attention,
    segment_attention,
)
from lyrics.kernels.plan import Visibility

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Allowed beside twice sdpa's error, per 1 + the greatest value: rounding of the last place.
FLOOR: Mapping[str, float] = {"fp32": 2e-6, "bf16": 1e-3, "fp16": 1e-4}
SEED = 2**40 + 7
#: The reference holds a dense matrix of all packed tokens: it is timed up to this many.
REFERENCE_TOKENS = 1500
_BACKENDS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Sizes:
    """Tokens of one sample and the shape of one layer. ``true`` are (spatial, caption) lengths without padding."""

    visual: int = 32
    grounding: int = 32
    padded: tuple[int, int] = (128, 32)
    true: tuple[int, int] = (64, 16)
    heads: int = 12
    width: int = 64
    image_tokens: int = 257


PAPER = Sizes()
TOY = Sizes(visual=4, grounding=4, padded=(12, 5), true=(7, 3), heads=2, width=32, image_tokens=9)

_QUERIES: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "VG" for b in "VG"}
_TEXT: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "SC" for b in "SC"}
_ITM: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for pair in ("VC", "GS") for a in pair for b in pair}
_MSP: Mapping[tuple[str, str], Visibility] = {(a, b): "full" for a in "VGS" for b in "VGS"}
#: Stream group -> its segments, visibility and prefix: the streams of both packed passes of the step.
STREAMS: Mapping[str, tuple[str, Mapping[tuple[str, str], Visibility], str | None]] = {
    "queries": ("VG", _QUERIES, None),
    "text": ("SC", _TEXT, None),
    "icg": ("C", {("C", "C"): "causal"}, "queries"),
    "msp": ("VGS", _MSP, None),
    "itm": ("VGSC", _ITM, None),
    "itm-image": ("VGSC", _ITM, None),
    "itm-text": ("VGSC", _ITM, None),
}
#: The same as masked passes over V, G, S, C, one per objective: pass -> stream groups whose tokens it holds.
PASSES: Mapping[str, tuple[str, ...]] = {
    "itc": ("queries", "text"),
    "icg": ("queries", "icg"),
    "msp": ("msp",),
    "itm": ("itm",),
    "itm-image": ("itm-image",),
    "itm-text": ("itm-text",),
}
_CROSS_SETS = 5  # the visual queries of ITC, MSP and three times ITM


@dataclass(frozen=True)
class Case:
    """One thing to time: ``op`` is ``segment`` or ``cross``, ``lengths`` is ``padded`` or ``true``."""

    op: str
    batch: int
    lengths: str
    dtype: str
    dropout_p: float
    sizes: Sizes


# --- the work --------------------------------------------------------------------------------------------------------


def packed_streams(sizes: Sizes, lengths: str, batch: int) -> tuple[Layout, Plan]:
    """The stage-1 step's streams of ``batch`` samples in one sequence."""
    spatial, caption = sizes.padded if lengths == "padded" else sizes.true
    count = {"V": sizes.visual, "G": sizes.grounding, "S": spatial, "C": caption}
    groups = [
        StreamGroup(
            name,
            tuple(Segment(s, torch.full((batch,), count[s]), 0 if s in "VG" else 1) for s in segments),
            visibility,
            torch.arange(batch),
            prefix,
        )
        for name, (segments, visibility, prefix) in STREAMS.items()
    ]
    return build_plan(groups)


def cross_sets(sizes: Sizes, batch: int, device: str) -> CrossPlan:
    """The visual query sets of all streams; those of one ITM stream read the next sample's image."""
    own = torch.arange(batch)
    index = torch.cat([own] * (_CROSS_SETS - 1) + [(own + 1) % batch])
    ids = torch.arange(len(index) * sizes.visual, dtype=torch.int32, device=device).view(len(index), -1)
    return build_cross_plan(index, None, batch, ids, sizes.image_tokens)


def _plan(case: Case, device: str) -> Plan | CrossPlan:
    if case.op == "segment":
        return packed_streams(case.sizes, case.lengths, case.batch)[1].to(device)
    return cross_sets(case.sizes, case.batch, device)


def _inputs(case: Case, plan: Plan | CrossPlan, heads: int, device: str) -> list[torch.Tensor]:
    """q, k, v that want gradients, and a gradient of the output."""
    width = case.sizes.width
    if isinstance(plan, Plan):
        q_shape: tuple[int, ...] = (plan.num_queries, heads, width)
        k_shape: tuple[int, ...] = (plan.num_keys, heads, width)
    else:
        q_shape = (*plan.row_id_SQ.shape, heads, width)
        k_shape = (plan.num_images, len(plan.col_id_M), heads, width)
    return _random((q_shape, k_shape, k_shape, q_shape), case.dtype, device)


def _random(shapes: Sequence[tuple[int, ...]], dtype: str, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator).to(device, DTYPES[dtype]) for shape in shapes]
    return [*(x.requires_grad_() for x in found[:3]), found[3]]


def _attend(plan: Plan | CrossPlan, qkv: Sequence[torch.Tensor], impl: str, dropout_p: float) -> torch.Tensor:
    """``impl`` is one of ``IMPLEMENTATIONS``, or ``triton`` with a configuration, as ``candidates`` names them."""
    q, k, v = qkv
    name, _, numbers = impl.partition(" ")
    if numbers:
        from lyrics.kernels import _triton

        config = _triton.Config(*(int(number) for number in numbers.split("-")))
        if isinstance(plan, Plan):
            return _triton.segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=SEED, config=config)
        return _triton.cross_attention(q, k, v, plan, dropout_p=dropout_p, seed=SEED, config=config)
    if isinstance(plan, Plan):
        return segment_attention(q, k, v, plan, impl=name, dropout_p=dropout_p, seed=SEED)
    return cross_attention(q, k, v, plan, impl=name, dropout_p=dropout_p, seed=SEED)


def candidates() -> list[str]:
    """The configurations that Triton's kernels are tried with: ``triton row_block-key_step-key_block-row_step-warps-stages``."""
    from lyrics.kernels import _triton

    return ["triton " + "-".join(str(number) for number in astuple(config)) for config in _triton.CANDIDATES]


# --- the rival that comes for free -----------------------------------------------------------------------------------


def pass_positions(layout: Layout, sizes: Sizes, batch: int, name: str) -> torch.Tensor:
    """Where the tokens of a padded pass (V, G, S, C) lie in the packed sequence: [B, L], -1 for padding. Lengths must be padded ones."""
    groups = PASSES[name]
    columns = []
    lengths = (sizes.visual, sizes.grounding, *sizes.padded)
    for segment, length in zip("VGSC", lengths, strict=True):
        group = next((g for g in groups if segment in STREAMS[g][0]), None)
        found = torch.full((batch, length), -1) if group is None else layout.positions(group, segment).view(batch, -1)
        columns.append(found)
    return torch.cat(columns, dim=1)


def dense_pass(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, dropout_p: float) -> torch.Tensor:
    """One padded pass: q, k, v [B, L, H, d], mask bool [L, L] (padding sees token 0, lest a softmax be over nothing)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p).transpose(1, 2)


def pass_masks(sizes: Sizes) -> dict[str, torch.Tensor]:
    """The mask of each padded pass, bool [L, L], the same for every sample."""
    layout, plan = packed_streams(sizes, "padded", 1)
    dense = plan.dense_mask()
    masks = {}
    for name in PASSES:
        at = pass_positions(layout, sizes, 1, name)[0]
        mask = dense[at[:, None], at[None, :]] & (at >= 0)[:, None] & (at >= 0)[None, :]
        mask[at < 0, 0] = True
        masks[name] = mask
    return masks


def _dense_run(
    case: Case, device: str
) -> tuple[Callable[[], list[torch.Tensor]], list[torch.Tensor], list[torch.Tensor]]:
    """All passes of the dense rival: how to run them, their leaves, and the gradients of their outputs."""
    sizes = case.sizes
    if case.op == "cross":
        q_shape = (case.batch, sizes.visual, sizes.heads, sizes.width)
        k_shape = (case.batch, sizes.image_tokens, sizes.heads, sizes.width)
        sets = [_random((q_shape, k_shape, k_shape, q_shape), case.dtype, device) for _ in range(_CROSS_SETS)]
        k, v = sets[0][1:3]
        queries = [q for q, *_ in sets]
        other = ((torch.arange(case.batch) + 1) % case.batch).to(device)

        def run_cross() -> list[torch.Tensor]:
            own = [_sdpa(q, k, v, case.dropout_p) for q in queries[:-1]]
            return [*own, _sdpa(queries[-1], k[other], v[other], case.dropout_p)]

        return run_cross, [*queries, k, v], [grad for *_, grad in sets]
    length = sizes.visual + sizes.grounding + sum(sizes.padded)
    shape = (case.batch, length, sizes.heads, sizes.width)
    passes = [_random([shape] * 4, case.dtype, device) for _ in PASSES]
    masks = [mask.to(device) for mask in pass_masks(sizes).values()]

    def run() -> list[torch.Tensor]:
        return [dense_pass(q, k, v, mask, case.dropout_p) for (q, k, v, _), mask in zip(passes, masks, strict=True)]

    return run, [leaf for *qkv, _ in passes for leaf in qkv], [grad for *_, grad in passes]


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2)


# --- correctness -----------------------------------------------------------------------------------------------------


def errors(case: Case, impl: str, device: str) -> dict[str, tuple[float, float]]:
    """(error, allowed error) of the output and each gradient, on two samples and at most two heads."""
    small = Case(case.op, 2, case.lengths, case.dtype, case.dropout_p, case.sizes)
    plan = _plan(small, device)
    *qkv, grad = _inputs(small, plan, min(2, case.sizes.heads), device)

    def results(name: str, tensors: Sequence[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
        out = _attend(plan, tensors, name, case.dropout_p)
        return [out.detach(), *torch.autograd.grad(out, tensors, weights)]

    want = results("reference", [x.detach().double().requires_grad_() for x in qkv], grad.double())
    found = {}
    ours, sdpa = results(impl, qkv, grad), results("sdpa", qkv, grad)
    for name, a, b, truth in zip(("out", "dq", "dk", "dv"), ours, sdpa, want, strict=True):
        error, rival = (float((x.double() - truth).abs().max()) for x in (a, b))
        found[name] = (error, 2 * rival + FLOOR[case.dtype] * (1 + float(truth.abs().max())))
    return found


def dense_error(case: Case, device: str) -> float:
    """The dense segment rival against the definition in float64 on two samples: greatest error of the outputs, without dropout."""
    sizes = case.sizes
    layout, plan = packed_streams(sizes, "padded", 2)
    q, k, v = (x.detach() for x in _random([(plan.num_queries, 2, sizes.width)] * 4, case.dtype, device)[:3])
    want = segment_attention(q.double(), k.double(), v.double(), plan.to(device), impl="reference")
    worst = 0.0
    for name, mask in pass_masks(sizes).items():
        at = pass_positions(layout, sizes, 2, name).to(device)
        index = at.clamp(min=0)
        got = dense_pass(q[index], k[index], v[index], mask.to(device), 0.0)
        worst = max(worst, float((got.double() - want[index])[at >= 0].abs().max()))
    return worst


# --- time ------------------------------------------------------------------------------------------------------------


def milliseconds(run: Callable[[], object], rounds: int, device: str) -> dict[str, Any]:
    """Median and 20 and 80 % quantiles of ``rounds`` runs after warming up; on a GPU by events, with the L2 cache emptied before each."""
    found = []
    if device.startswith("cuda"):
        flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
        for turn in range(rounds + 3):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= 3:
                found.append(start.elapsed_time(end))
    else:
        for turn in range(rounds + 1):
            start_time = time.perf_counter()
            run()
            if turn:
                found.append(1e3 * (time.perf_counter() - start_time))
    found.sort()
    low, high = (found[min(len(found) - 1, int(share * len(found)))] for share in (0.2, 0.8))
    return {"median": statistics.median(found), "low": low, "high": high, "all": found}


def bandwidth(device: str, rounds: int) -> float:
    """Bytes per second that a copy reads and writes here: what the floor of a case is computed with."""
    source = torch.zeros((256 if device.startswith("cuda") else 32) * 2**20, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    took = milliseconds(lambda: target.copy_(source), rounds, device)["median"]
    return float(2e3 * source.nbytes / took)


def floor_bytes(inputs: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Bytes that forward, and forward and backward, must move if every tensor is read or written once: q, k, v, out; then q, k, v, out and
    its gradient again, and three gradients."""
    q, k, v = (x.nbytes for x in inputs[:3])
    forward = 2 * q + k + v
    return forward, forward + 2 * (q + k + v) + 2 * q


def _timed(
    run: Callable[[], list[torch.Tensor]],
    leaves: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    rounds: int,
    device: str,
) -> dict[str, Any]:
    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        torch.autograd.grad(run(), leaves, grads)

    return {"forward_ms": milliseconds(forward, rounds, device), "both_ms": milliseconds(both, rounds, device)}


def measure(case: Case, impl: str, rounds: int, device: str, bytes_per_second: float) -> dict[str, Any]:
    """One row: verify, then time. ``status`` is ``ok``, ``refused`` (cannot serve this case), ``wrong`` or ``failed``."""
    row: dict[str, Any] = {
        "op": case.op,
        "batch": case.batch,
        "lengths": case.lengths,
        "dtype": case.dtype,
        "dropout": case.dropout_p,
        "impl": impl,
    }
    try:
        if impl.startswith("dense"):
            return row | _measure_dense(case, impl, rounds, device)
        found = errors(case, impl, device)
        row["errors"] = found
        if any(not error <= allowed for error, allowed in found.values()):  # a NaN is wrong, too
            return row | {"status": "wrong", "reason": f"errors (found, allowed): {found}"}
        plan = _plan(case, device)
        *qkv, grad = _inputs(case, plan, case.sizes.heads, device)
        if impl == "reference" and len(qkv[0].flatten(0, -3)) > REFERENCE_TOKENS:
            return row | {"status": "refused", "reason": f"dense; timed up to {REFERENCE_TOKENS} query rows"}
        row |= _timed(lambda: [_attend(plan, qkv, impl, case.dropout_p)], qkv, [grad], rounds, device)
        for name, moved in zip(("forward", "both"), floor_bytes(qkv), strict=True):
            row[f"{name}_share_of_floor"] = 1e3 * moved / bytes_per_second / row[f"{name}_ms"]["median"]
    except ImplementationError as error:
        return row | {"status": "refused", "reason": str(error)}
    except Exception as error:  # a rival that breaks must not end an unattended run
        return row | {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return row | {"status": "ok"}


def _measure_dense(case: Case, impl: str, rounds: int, device: str) -> dict[str, Any]:
    backend = _BACKENDS.get(impl.partition("-")[2])
    with nullcontext() if backend is None else sdpa_kernel(backend):
        if case.op == "segment":
            error = dense_error(case, device)
            if not error <= (limit := {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}[case.dtype]):
                return {"status": "wrong", "reason": f"error {error}, allowed {limit}"}
        run, leaves, grads = _dense_run(case, device)
        return {"status": "ok", **_timed(run, leaves, grads, rounds, device)}


def cases(batches: Sequence[int], dtypes: Sequence[str], sizes: Sizes) -> Iterator[Case]:
    """The paper's main case first, lest time run out."""
    for dropout_p in (0.0, 0.1):
        for dtype in dtypes:
            for batch in sorted(batches, reverse=True):
                for lengths in ("padded", "true"):
                    yield Case("segment", batch, lengths, dtype, dropout_p, sizes)
                yield Case("cross", batch, "padded", dtype, dropout_p, sizes)


def run_bench_attention(
    batches: Sequence[int],
    dtypes: Sequence[str],
    rounds: int,
    *,
    sizes: Sizes = PAPER,
    device: str = "cpu",
    minutes: float = 8.0,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure every case with every implementation that serves it, and write one JSON file after each case.

    Args:
        batches: samples; dtypes: names of ``DTYPES``; rounds: runs that each time is the median of.
        sizes: ``PAPER`` or ``TOY``.
        minutes: nothing is begun after so long; what is left are rows of status ``not run``.
        out: where the JSON goes; not written when None.
        say: called with a line of progress.

    Returns:
        One row per case and implementation; ``table`` prints them. ``speedup_vs_dense`` is against the fastest dense back-end of the same
        case at padded lengths, forward and backward.
    """
    begun = time.monotonic()
    where = environment()
    copied = bandwidth(device, rounds)
    present = [entry.name for entry in available_implementations() if entry.available]
    gpu = device.startswith("cuda")
    rivals = [f"dense-{name}" for name in _BACKENDS] if gpu else ["dense"]
    rows: list[dict[str, Any]] = []
    base: dict[tuple[Any, ...], float] = {}
    for case in cases(batches, dtypes, sizes):
        # Padding is all that distinguishes the lengths, and the rival pads in any case.
        names = [*(rivals if case.lengths == "padded" else ()), *(n for n in IMPLEMENTATIONS if n in present)]
        first = (case.batch, case.dtype, case.dropout_p) == (max(batches), dtypes[0], 0.0)
        if gpu and "triton" in present and first:
            names += candidates()
        for impl in names:
            if time.monotonic() - begun > 60 * minutes:
                rows.append({"op": case.op, "batch": case.batch, "lengths": case.lengths, "dtype": case.dtype})
                rows[-1] |= {"dropout": case.dropout_p, "impl": impl, "status": "not run", "reason": "out of time"}
                continue
            row = measure(case, impl, rounds, device, copied)
            key = (case.op, case.batch, case.dtype, case.dropout_p)
            if row["status"] == "ok":
                took = row["both_ms"]["median"]
                if impl.startswith("dense"):
                    base[key] = min(took, base.get(key, took))
                elif key in base:
                    row["speedup_vs_dense"] = base[key] / took
            rows.append(row)
            say(
                f"{case.op} batch {case.batch} {case.lengths} {case.dtype} dropout {case.dropout_p} {impl}: {_told(row)}"
            )
        if out is not None:
            written = {"benchmark": "attention", **where, "bytes_per_second": copied, "rows": rows}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(written, indent=2) + "\n")
            out.with_suffix(".svg").write_text(attention_chart(rows), encoding="utf-8")
    return rows


def _told(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return f"{row['forward_ms']['median']:.3f} ms forward, {row['both_ms']['median']:.3f} ms forward + backward"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [("op", "batch", "lengths", "dtype", "dropout", "impl", "fwd ms", "fwd+bwd ms", "vs dense", "of floor")]
    for row in rows:
        cells = [row["status"], "", "", ""]
        if row["status"] == "ok":
            times = [f"{row[name]['median']:.3f}" for name in ("forward_ms", "both_ms")]
            ratio = f"{row['speedup_vs_dense']:.2f}x" if "speedup_vs_dense" in row else ""
            cells = [*times, ratio, f"{row['both_share_of_floor']:.0%}" if "both_share_of_floor" in row else ""]
        lines.append(
            (row["op"], str(row["batch"]), row["lengths"], row["dtype"], f"{row['dropout']}", row["impl"], *cells)
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
