"""``lyrics bench step``: the packed stage-1 step against the same step without packing, correctness first, then time.

Ways to compute it, all with the same weights and in one process, alternating. Of the paper's four objectives:

- ``N1``: one dense-masked pass per objective (``lyrics.workflows.bench.baselines.dense_losses``);
- ``N3``: BLIP-2's way, query keys and values cached, everything else separate (``cached_losses``);
- ``packed``: ours;
- ``compiled``, where asked for: ours with its dense blocks through torch.compile (``optimization.compile`` of a
  training run).

Of BLIP-2's three objectives: ``transformers``, its Q-Former run as LAVIS does (``lyrics.workflows.bench.blip2``), and
``packed``. At which lengths of the texts, and what the rivals are padded to: ``step_compare.LENGTHS``.
"""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lyrics.kernels import IMPLEMENTATIONS
from lyrics.workflows.bench.charts import step_chart
from lyrics.workflows.bench.machine import environment
from lyrics.workflows.bench.step_cases import TOY
from lyrics.workflows.bench.step_compare import LENGTHS, RECIPES, compare

#: What the packed step's attention may be.
ATTENTIONS = ("auto", *IMPLEMENTATIONS)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text; times and ratios are of the processor on a CPU, of the clock on a GPU."""
    head: tuple[str, ...] = (
        "recipe",
        "batch",
        "dtype",
        "variant",
        "lengths",
        "fwd s",
        "fwd+bwd s",
        "processor s",
        "samples/s",
    )
    head += ("saved MB", "peak GB", "GFLOP", "against", "times", "GFLOPs", "saved")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        if "status" in row:
            named = (row["recipe"], str(row["batch"]), row["dtype"], row["attention"], row["status"])
            lines.append((*named, *[""] * (len(head) - len(named))))
            continue
        own = (
            row["recipe"],
            str(row["batch"]),
            row["dtype"],
            row["variant"],
            row["lengths"],
            f"{row['seconds_forward']:.3f}",
            f"{row['seconds_forward_backward']:.3f}",
            f"{row['cpu_seconds_forward_backward']:.3f}",
            f"{row['samples_per_second']:.2f}",
            f"{row['saved_bytes'] / 1e6:.0f}",
            f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else "",
            f"{row['flops'] / 1e9:.0f}",
        )
        clock = "speedup" if "peak_bytes" in row else "cpu_speedup"
        rivals = [key.removeprefix("flops_ratio_vs_") for key in row if key.startswith("flops_ratio_vs_")]
        for number, rival in enumerate(rivals):
            ratios = (row[f"{name}_vs_{rival}"] for name in (clock, "flops_ratio", "saved"))
            lines.append((*(own if not number else [""] * len(own)), rival, *(f"{ratio:.2f}x" for ratio in ratios)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def run_bench_step(
    batch_sizes: Sequence[int] = (4, 8, 16),
    dtypes: Sequence[str] = ("fp32", "bf16"),
    rounds: int = 3,
    *,
    device: str = "cpu",
    recipes: Sequence[str] = RECIPES,
    lengths: Sequence[str] = tuple(LENGTHS),
    attentions: Sequence[str] = ("auto",),
    profile: bool = False,
    compiled: bool = False,
    minutes: float | None = None,
    toy: bool = False,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure everything, and write one JSON file and a chart beside it after each case.

    Args:
        batch_sizes: samples per step.
        dtypes: ``fp32``, ``bf16`` (autocast).
        rounds: turns; the median of each variant counts.
        device: ``cpu`` or ``cuda``.
        recipes: which stage 1 (``RECIPES``).
        lengths: of the texts (``LENGTHS``).
        attentions: implementations of attention that the packed step is measured with, one after another.
        profile: add seconds by kind of kernel or operator to every row.
        compiled: also the packed step with its dense blocks compiled.
        minutes: no case is begun after so long; None: all are.
        toy: tiny sizes, to see that it runs.
        out: where the JSON goes; not written when None.
        say: called with a line of progress.

    Returns:
        One row per batch size, dtype, recipe, variant and lengths; ``table`` prints them. A case for which no time was
        left is one row of status ``not run``, and on a GPU one that fails (for want of memory, say) is one of status
        ``failed``; on a CPU it raises.
    """
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    measured_on = environment()  # before, since the checkout may change while this runs
    cases = itertools.product(dtypes, batch_sizes, recipes, attentions)
    for dtype, batch_size, recipe, attention in cases:
        status, reason = "not run", "out of time"
        try:
            if minutes is None or time.monotonic() - begun <= 60 * minutes:
                found = compare(
                    *(batch_size, dtype, rounds),
                    device=device,
                    recipe=recipe,
                    labels=lengths,
                    say=say,
                    attention=attention,
                    profile=profile,
                    compiled=compiled,
                    **(TOY if toy else {}),
                )
                rows += [row | measured_on for row in found]
                status = "ok"
        except Exception as error:  # one case must not end an unattended run
            if not device.startswith("cuda"):
                raise
            status, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if status != "ok":
            say(f"{recipe}, batch {batch_size}, {dtype}, {attention}: {status}: {reason}")
            absent = {"recipe": recipe, "batch": batch_size, "dtype": dtype, "attention": attention}
            rows.append(absent | {"status": status, "reason": reason} | measured_on)
        if device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"benchmark": "step", "rows": rows}, indent=2) + "\n")
            out.with_suffix(".svg").write_text(step_chart(rows), encoding="utf-8")
    return rows
