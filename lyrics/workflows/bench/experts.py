"""``lyrics bench experts``: images a second of each frozen expert of a model or refiner, with random weights.

Weights do not change what is computed, but they would decide how much there is to do: each image is asked for the same
six names, and the segmenter is given six boxes. Pixels are prepared beforehand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.dtypes import torch_dtype
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import Processor
from lyrics.core.resolve import Part, read_any_spec, resolve, resolve_refiner
from lyrics.core.spec import ModelSpec
from lyrics.core.types import ImageBatch
from lyrics.workflows.bench.machine import environment, microseconds

PHRASES = ("person", "car", "dog", "chair", "tree", "building")
BOXES = tuple(Box(x, y, x + 0.4, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.3, 0.6))
#: Width and height in pixels of an image, as COCO's are.
SIZE = (640, 480)
_CALLS: Mapping[str, Callable[[Any, ImageBatch], object]] = {
    "image_encoder": lambda expert, images: expert(images.pixels_BCHW),
    "tagger": lambda expert, images: expert(images),
    "detector": lambda expert, images: expert(images, [PHRASES] * len(images)),
    "segmenter": lambda expert, images: expert(images, [BOXES] * len(images)),
}


def images_of(count: int) -> list[Image.Image]:
    """Noise, the same each time."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)) for _ in range(count)]


def run_bench_experts(
    spec: str,
    batch_sizes: Sequence[int] = (8,),
    dtypes: Sequence[str] = ("fp32",),
    rounds: int = 3,
    *,
    device: str = "cpu",
    minutes: float | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Time one pass of each expert alone.

    Args:
        spec: a preset or file of a model or of a refiner alone.
        batch_sizes: images of a pass.
        dtypes: ``fp32``, ``bf16``, ``fp16``: of weights and pixels.
        rounds: passes; their median counts.
        device: ``cpu`` or ``cuda``.
        minutes: no expert is begun after so long.
        out: where the JSON goes, after each expert; not written when None.
        say: called with a line of progress.

    Returns:
        One row per expert, type and batch size. One that fails is a row of status ``failed`` and why, one for which
        there was no time is a row of status ``not run``.
    """
    begun = time.monotonic()
    measured_on = environment()
    parts = _parts(spec)
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for name, part in parts.items():
            for size in batch_sizes:
                row: dict[str, Any] = {"expert": name, "dtype": dtype, "batch": size, "status": "not run"}
                if minutes is None or time.monotonic() - begun <= 60 * minutes:
                    try:
                        row |= _timed(name, part, device, dtype, size, rounds)
                    except Exception as error:  # one expert must not end an unattended run
                        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
                rows.append(row | measured_on)
                speed = f"{row['images_per_second']:.2f} images/s" if row["status"] == "ok" else row["status"]
                if out is not None:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps({"benchmark": "experts", "spec": spec, "rows": rows}, indent=2) + "\n")
                say(f"{name}, {dtype}, batch {size}: {speed}")
    return rows


def _parts(spec: str) -> dict[str, Part]:
    """The experts of a model, or of a refiner alone."""
    if isinstance(read_any_spec(spec), ModelSpec):
        parts = {"image_encoder": resolve(spec).parts["image_encoder"]}
    else:
        parts = {}
    found = resolve_refiner(spec).parts
    return parts | {path.removeprefix("refiner."): part for path, part in found.items()}


def _timed(expert: str, part: Part, device: str, dtype: str, size: int, rounds: int) -> dict[str, Any]:
    """One expert alone, built and let go again."""
    torch.manual_seed(0)
    with torch.device(device):
        built = build_part(part, BuildContext("random"))
    built = built.to(device=device, dtype=torch_dtype(dtype)).requires_grad_(False).eval()
    images = Processor({expert: built.preprocessing}).images(images_of(size)).to(device, torch_dtype(dtype))
    batch = images.by_expert[expert]
    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        took = microseconds(lambda: _CALLS[expert](built, batch), rounds, device)
    return {
        "status": "ok",
        "part": part.entry.component.name,
        "parameters": sum(one.numel() for one in built.parameters()),
        "pixels": list(batch.pixels_BCHW.shape[2:]),
        "microseconds": took,
        "images_per_second": 1e6 * size / took["median"],
        **({"peak_bytes": torch.cuda.max_memory_allocated()} if gpu else {}),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    lines: list[tuple[str, ...]] = [("expert", "part", "dtype", "batch", "pixels", "images/s", "peak GB")]
    for row in rows:
        own = (row["expert"], row.get("part", ""), row["dtype"], str(row["batch"]))
        if row["status"] != "ok":
            lines.append((*own, row["status"], "", ""))
            continue
        peak = f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else ""
        lines.append((*own, "x".join(map(str, row["pixels"])), f"{row['images_per_second']:.2f}", peak))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
