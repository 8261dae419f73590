"""``lyrics bench memory``: what a training step takes on a device, beside what ``lyrics plan`` counts for it.

The step is the counted one: random weights, features of zeros, forward and backward, one update of AdamW. On a GPU the
allocator's peak is measured; on a CPU, which keeps no such record, the storages that really were made are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lyrics.core.inspection.memory import counting, step_loss, training_memory, weight_bytes
from lyrics.core.loading import build_model
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.frozen_precision import hold_frozen
from lyrics.workflows.bench.machine import environment


def measure(config: TrainConfig, batch_size: int, device: str) -> dict[str, Any]:
    """Bytes of one step in float32: counted beforehand, and taken."""
    spec, stage = config.model.spec, config.stage
    counted = training_memory(build_model(spec, weights="meta"), stage, batch_size)
    torch.manual_seed(0)
    model = build_model(spec, weights="random", device=device)
    hold_frozen(model, config)
    model.train()
    trained = list(model.trainable_parameters(stage).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    weights = weight_bytes(model)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step_loss(model, stage, batch_size).backward()
        optimizer.step()
        taken = weights + torch.cuda.max_memory_allocated() - before
    else:
        with counting(model) as counter:
            step_loss(model, stage, batch_size).backward()
            optimizer.step()
        taken = weights + counter.peak
    return {
        "stage": stage,
        "batch": batch_size,
        "counted": asdict(counted) | {"total": counted.total},
        "taken": taken,
        "taken_of_counted": taken / counted.total,
        "by": "allocator" if device.startswith("cuda") else "storages",
    }


def run_bench_memory(
    config: TrainConfig,
    batch_sizes: Sequence[int],
    *,
    device: str = "cpu",
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row per batch size, and a JSON file at ``out``, where that is given. A step that does not fit is a row that
    says so.
    """
    measured_on = environment()
    rows: list[dict[str, Any]] = []
    for size in batch_sizes:
        try:
            row = measure(config, size, device) | {"status": "ok"}
            say(f"batch {size}: {row['taken'] / 1e9:.2f} GB, {row['taken_of_counted']:.2f} of what is counted")
        except torch.OutOfMemoryError as error:
            row = {"stage": config.stage, "batch": size, "status": "failed", "reason": str(error)[:300]}
            say(f"batch {size}: does not fit")
        rows.append(row | measured_on)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"benchmark": "memory", "rows": rows}, indent=2) + "\n")
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"batch {row['batch']}: {row['status']}: {row['reason']}")
            continue
        counted = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in row["counted"].items())
        lines.append(f"batch {row['batch']}: taken {row['taken'] / 1e9:.2f} GB; counted, in GB: {counted}")
    return "\n".join(lines)
