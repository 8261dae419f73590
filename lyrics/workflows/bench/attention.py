"""``lyrics bench attention``: both attentions of a packed stage-1 layer, every implementation, correctness first, then
time.

What is timed is one layer: *segment*, the self-attention of all four objectives' streams packed into one sequence, and
*cross*, their visual query sets reading the image tokens. Beside the implementations of ``lyrics.kernels`` stand

- the rivals that come for free (``bench_rivals``): torch's attention and plain operations, one padded and masked pass
  per objective;
- ``flex-rebuilt``: ``flex`` with its block mask built anew for every run, as for a batch of new lengths; ``flex`` has
  it prebuilt;
- ``triton-tuned``: ``triton`` with the fastest of its few configurations here, where ``triton`` has the shipped one.

Before an implementation is timed it is compared with the definition in float64 on two samples, output and three
gradients: its error may be at most twice that of ``sdpa`` in the same type. One that fails is not timed, and the
command fails at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from lyrics.kernels import (
    IMPLEMENTATIONS,
    CrossPlan,
    ImplementationError,
    Plan,
    available_implementations,
    cross_attention,
    segment_attention,
)
from lyrics.workflows.bench import rivals as bench_rivals
from lyrics.workflows.bench.charts import attention_chart
from lyrics.workflows.bench.machine import bandwidth, environment, microseconds
from lyrics.workflows.bench.work import PAPER, Case, WorkSizes, inputs_of, plan_of

#: Allowed beside twice sdpa's error, per 1 + the greatest value: rounding of the last place.
FLOOR: Mapping[str, float] = {"fp32": 2e-6, "bf16": 1e-3, "fp16": 1e-4}
SEED = 2**40 + 7
#: The reference holds a dense matrix of all packed tokens: it is timed up to this many.
REFERENCE_TOKENS = 1500
#: Building flex's mask takes the processor some ten milliseconds: it gets this share of the rounds.
REBUILT_ROUNDS = 0.1
MODES = ("forward", "backward", "both")
#: What a case is, in a row.
CASE = ("op", "batch", "lengths", "dtype", "dropout")


def _attend(plan: Plan | CrossPlan, qkv: Sequence[torch.Tensor], impl: str, dropout_p: float) -> torch.Tensor:
    """``impl`` is one of ``IMPLEMENTATIONS``, ``flex-rebuilt``, or ``triton`` with the numbers of a configuration:
    ``triton 64-32-...``.
    """
    q, k, v = qkv
    name, _, numbers = impl.partition(" ")
    if numbers:
        from lyrics.kernels import _triton

        config = _triton.Config(*(int(number) for number in numbers.split("-")))
        if isinstance(plan, Plan):
            return _triton.segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=SEED, config=config)
        return _triton.cross_attention(q, k, v, plan, dropout_p=dropout_p, seed=SEED, config=config)
    if name == "flex-rebuilt":
        name = "flex"
        plan.derived.pop(("flex.mask", str(q.device)), None)
    if isinstance(plan, Plan):
        return segment_attention(q, k, v, plan, impl=name, dropout_p=dropout_p, seed=SEED)
    return cross_attention(q, k, v, plan, impl=name, dropout_p=dropout_p, seed=SEED)


def _tuned(plan: Plan | CrossPlan, qkv: Sequence[torch.Tensor], dropout_p: float) -> str:
    """``triton`` with the fastest configuration for these tensors, as ``_attend`` takes it."""
    from lyrics.kernels import _triton

    q, k, v = qkv
    config = _triton.tune(q, k, v, plan, dropout_p=dropout_p)
    return "triton " + "-".join(str(number) for number in astuple(config))


# --- correctness -----------------------------------------------------------------------------------------------------


def errors(case: Case, impl: str, device: str) -> dict[str, tuple[float, float]]:
    """Return (error, allowed error) of the output and each gradient, on two samples and at most two heads."""
    small = replace(case, batch=2)
    plan = plan_of(small, device)
    *qkv, grad = inputs_of(small, plan, min(2, case.sizes.heads), device)

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


# --- time ------------------------------------------------------------------------------------------------------------


def floor_bytes(inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """Bytes that must move if every tensor is read or written once: forward q, k, v, out; backward these, the output's
    gradient and three gradients.
    """
    q, k, v = (x.nbytes for x in inputs[:3])
    forward = 2 * q + k + v
    backward = forward + q + (q + k + v)
    return {"forward": forward, "backward": backward, "both": forward + backward}


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

    def backward(outs: list[torch.Tensor]) -> None:
        torch.autograd.grad(outs, leaves, grads)

    return {
        "forward_us": microseconds(forward, rounds, device),
        # A graph of its own for every run: compiled ones cannot be walked twice.
        "backward_us": microseconds(backward, rounds, device, prepare=run),
        "both_us": microseconds(lambda: backward(run()), rounds, device),
    }


def measure(case: Case, impl: str, rounds: int, device: str, bytes_per_second: float) -> dict[str, Any]:
    """Return one row: verify, then time.

    ``status`` is ``ok``, ``refused`` (cannot serve this case), ``wrong`` or ``failed``.
    """
    row: dict[str, Any] = {
        "op": case.op,
        "batch": case.batch,
        "lengths": case.lengths,
        "dtype": case.dtype,
        "dropout": case.dropout_p,
        "impl": impl,
    }
    try:
        plan = plan_of(case, device)
        *qkv, grad = inputs_of(case, plan, case.sizes.heads, device)
        if impl in bench_rivals.RIVALS:
            row |= _measure_rival(case, impl, rounds, device)
        else:
            if impl == "reference" and len(qkv[0].flatten(0, -3)) > REFERENCE_TOKENS:
                return row | {"status": "refused", "reason": f"dense; timed up to {REFERENCE_TOKENS} query rows"}
            served = _tuned(plan, qkv, case.dropout_p) if impl == "triton-tuned" else impl
            if served != impl:
                row["config"] = served.partition(" ")[2]
            found = row["errors"] = errors(case, served, device)
            if any(not error <= allowed for error, allowed in found.values()):  # a NaN is wrong, too
                return row | {"status": "wrong", "reason": f"errors (found, allowed): {found}"}
            turns = max(1, int(rounds * REBUILT_ROUNDS)) if impl == "flex-rebuilt" else rounds
            row |= _timed(lambda: [_attend(plan, qkv, served, case.dropout_p)], qkv, [grad], turns, device)
            row["status"] = "ok"
        if row["status"] == "ok":
            for mode, moved in floor_bytes(qkv).items():
                row[f"{mode}_share_of_floor"] = 1e6 * moved / bytes_per_second / row[f"{mode}_us"]["median"]
    except ImplementationError as error:
        return row | {"status": "refused", "reason": str(error)}
    except Exception as error:  # a rival that breaks must not end an unattended run
        return row | {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return row


def _measure_rival(case: Case, rival: str, rounds: int, device: str) -> dict[str, Any]:
    with bench_rivals.pinned(rival):
        work = bench_rivals.work_of(rival, case, device)
        error, limit = bench_rivals.error_of(rival, case, device), bench_rivals.LIMITS[case.dtype]
        if not error <= limit:
            return {"status": "wrong", "reason": f"error {error}, allowed {limit}"}
        return {"status": "ok", "error": error, **_timed(work.run, work.leaves, work.grads, rounds, device)}


def cases(batches: Sequence[int], dtypes: Sequence[str], sizes: WorkSizes) -> Iterator[Case]:
    """Batches in the order given: the one that matters most comes first, lest time run out."""
    for dtype in dtypes:
        for batch in batches:
            for dropout_p in (0.0, 0.1):
                for lengths in ("padded", "true"):
                    yield Case("segment", batch, lengths, dtype, dropout_p, sizes)
                yield Case("cross", batch, "padded", dtype, dropout_p, sizes)


def contestants(case: Case, device: str) -> list[str]:
    """Return who takes part in a case.

    Padding is all that distinguishes the lengths, and the free rivals pad in any case.
    """
    gpu = device.startswith("cuda")
    present = [entry.name for entry in available_implementations() if entry.available]
    names = [name for name in IMPLEMENTATIONS if name in present and not (gpu and name == "reference")]
    if gpu and "triton" in names:
        names.append("triton-tuned")
    if "flex" in names:
        names.append("flex-rebuilt")
    free = (*bench_rivals.BACKENDS, "eager") if gpu else ("dense", "eager")
    return [*(free if case.lengths == "padded" else ()), *names]


def run_bench_attention(
    batches: Sequence[int],
    dtypes: Sequence[str],
    rounds: int,
    *,
    sizes: WorkSizes = PAPER,
    device: str = "cpu",
    minutes: float = 8.0,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure every case with every implementation that serves it, and write one JSON file after each case, and a chart
    beside it.

    Args:
        batches: samples; dtypes: ``fp32``, ``bf16``, ``fp16``; rounds: runs that each time is the median of.
        sizes: ``PAPER`` or ``TOY``.
        minutes: nothing is begun after so long; what is left are rows of status ``not run``.
        out: where the JSON goes; not written when None.
        say: called with a line of progress.

    Returns:
        One row per case and implementation; ``table`` prints them, and ``ratios`` compares them.
    """
    begun = time.monotonic()
    where = environment()
    copied = bandwidth(device, rounds)
    rows: list[dict[str, Any]] = []
    for case in cases(batches, dtypes, sizes):
        for impl in contestants(case, device):
            if time.monotonic() - begun > 60 * minutes:
                rows.append({"op": case.op, "batch": case.batch, "lengths": case.lengths, "dtype": case.dtype})
                rows[-1] |= {"dropout": case.dropout_p, "impl": impl, "status": "not run", "reason": "out of time"}
                continue
            row = measure(case, impl, rounds, device, copied)
            rows.append(row)
            say(
                f"{case.op} batch {case.batch} {case.lengths} {case.dtype} dropout {case.dropout_p} {impl}: "
                f"{_told(row)}"
            )
            if device.startswith("cuda"):
                torch.cuda.empty_cache()  # what a rival held is not there for the next to trip over
        if out is not None:
            written = {"benchmark": "attention", **where, "bytes_per_second": copied}
            written |= {"rows": rows, "ratios": ratios(rows)}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(written, indent=2) + "\n")
            out.with_suffix(".svg").write_text(attention_chart(rows), encoding="utf-8")
    return rows


# --- reporting -------------------------------------------------------------------------------------------------------


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how many times faster ours is than each rival of its case: medians, forward, backward and both.

    Ours is ``triton`` where it was timed, else ``sdpa``. The free rivals are those of the padded case, whatever the
    lengths; the fastest back-end of torch's attention is there once more as ``dense``.
    """
    timed: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            timed.setdefault(tuple(row[name] for name in CASE), {})[row["impl"]] = row
    found = []
    for case, own in timed.items():
        ours = next((name for name in ("triton", "sdpa") if name in own), None)
        if ours is None:
            continue
        padded = timed.get(
            tuple("padded" if name == "lengths" else at for name, at in zip(CASE, case, strict=True)), {}
        )
        free = {name: row for name, row in padded.items() if name in bench_rivals.RIVALS}
        pinned = [row for name, row in free.items() if name in bench_rivals.BACKENDS]
        if pinned:
            free["dense"] = min(pinned, key=lambda row: float(row["both_us"]["median"]))
        for rival, row in {**free, **own}.items():
            if rival != ours:
                times = {mode: row[f"{mode}_us"]["median"] / own[ours][f"{mode}_us"]["median"] for mode in MODES}
                found.append({**dict(zip(CASE, case, strict=True)), "ours": ours, "rival": rival, **times})
    return found


def _told(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return ", ".join(f"{row[f'{mode}_us']['median']:.0f} us {mode}" for mode in MODES)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text, medians with 20 and 80 % quantiles, and below them how many times faster ours is
    than each rival.
    """
    lines = [(*CASE, "impl", *(f"{mode} us (20-80 %)" for mode in MODES), "of floor")]
    for row in rows:
        cells = [row["status"], "", "", ""]
        if row["status"] == "ok":
            times = [row[f"{mode}_us"] for mode in MODES]
            cells = [f"{took['median']:.0f} ({took['low']:.0f}-{took['high']:.0f})" for took in times]
            cells.append(f"{row['both_share_of_floor']:.0%}")
        lines.append((*(str(row[name]) for name in CASE), row["impl"], *cells))
    compared = [(*CASE, "ours", "against", *MODES)]
    for ratio in ratios(rows):
        cells = [f"{ratio[mode]:.2f}x" for mode in MODES]
        compared.append((*(str(ratio[name]) for name in CASE), ratio["ours"], ratio["rival"], *cells))
    return f"{_aligned(lines)}\n\n{_aligned(compared)}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
