"""``lyrics bench loader``: samples a second of one loader process, and the cores that a device needs for its loader.

What a worker does for a stage-1 batch of a configuration: a photograph-sized JPEG is decoded, augmented, and prepared
once for each expert of the model (the paper's read four sizes); captions and objects go with it. Parts are timed one by
one, and the whole: a sample after the other in one process on one thread, in processor time.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lyrics.core.data.augmentation import Augmentation
from lyrics.core.data.collate import Collator
from lyrics.core.data.stream import Example
from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box
from lyrics.core.loading import build_model
from lyrics.core.pictures.images import decode_image
from lyrics.core.pictures.processor import prepare
from lyrics.core.runs.config import TrainConfig
from lyrics.core.types import DetectedObject, Sample
from lyrics.workflows.bench.machine import environment

#: Width and height in pixels of a photograph, about those of COCO and Conceptual Captions.
SIZE = (640, 480)
_OBJECTS = 10


def photographs(count: int, size: tuple[int, int] = SIZE) -> list[bytes]:
    """JPEG files of about as many bytes as photographs of that size have: smooth shapes with fine grain."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = draw.integers(-12, 13, (size[1], size[0], 1), dtype=np.int16)
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def measure(config: TrainConfig, samples: int = 16, rounds: int = 3) -> dict[str, Any]:
    """Processor seconds a sample by part, and samples a second of one core.

    Raises:
        SpecError: the configuration is not of stage 1.
    """
    if config.stage != "pretrain":
        raise SpecError(f"stage={config.stage}: the loader is measured for stage 1; name one such as paper-stage1.")
    torch.set_num_threads(1)
    model = build_model(config.model.spec, weights="meta")
    varied = config.data.augmentation
    augmentation = None if varied is None else Augmentation(**varied.model_dump())
    collate = Collator("pretrain", model.processor, seed=0, codec=model.spec.codec, augmentation=augmentation)
    files = photographs(samples)
    objects = tuple(DetectedObject(f"thing {i}", Box(0.05 * i, 0.1, 0.05 * i + 0.4, 0.6), 0.9) for i in range(_OBJECTS))
    sample = Sample("picture.jpg", captions=("a man rides a brown horse on the beach near the sea",), objects=objects)

    def decoded() -> list[Image.Image]:
        return [decode_image(file, "picture.jpg") for file in files]

    def whole() -> object:
        examples = [Example(row, "data", row, sample, image) for row, image in enumerate(decoded())]
        return collate(examples)

    images = decoded()
    parts: dict[str, Callable[[], object]] = {"decode": decoded}
    if augmentation is not None:
        parts["augment"] = lambda: [
            augmentation(sample, image, seed=0, position=row) for row, image in enumerate(images)
        ]
    for expert, how in model.processor.preprocessing.items():
        parts[f"prepare for {expert}"] = lambda how=how: prepare(images, how, as_bytes=True)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in (*parts, "all")}
    for _ in range(rounds):
        for name, run in (*parts.items(), ("all", whole)):
            started = time.process_time()
            run()
            seconds[name].append((time.process_time() - started) / samples)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "image": list(SIZE),
        "image_bytes": statistics.mean(map(len, files)),
        "sizes": {expert: how.pad_to or how.crop or how.size for expert, how in model.processor.preprocessing.items()},
        "milliseconds": {name: 1e3 * took for name, took in median.items() if name != "all"},
        "milliseconds_a_sample": 1e3 * median["all"],
        "samples_per_second": 1 / median["all"],
        "all_seconds": seconds,
    }


def cores_for(row: Mapping[str, Any], samples_per_second: float) -> int:
    """Loader processes, with a core each, that keep a device fed which trains so fast."""
    return math.ceil(samples_per_second / row["samples_per_second"])


def run_bench_loader(
    config: TrainConfig, samples: int = 16, rounds: int = 3, *, out: Path | None = None
) -> dict[str, Any]:
    """``measure``, and a JSON file at ``out``, where that is given."""
    row = environment() | measure(config, samples, rounds)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"benchmark": "loader core", "rows": [row]}, indent=2) + "\n")
    return row


def table(row: Mapping[str, Any], speeds: Sequence[float]) -> str:
    """The row as lines of text, with the cores for devices of the given samples a second."""
    lines = [f"{took:8.2f} ms  {name}" for name, took in row["milliseconds"].items()]
    lines.append(
        f"{row['milliseconds_a_sample']:8.2f} ms  a sample: {row['samples_per_second']:.1f} samples/s of one core"
    )
    lines += [f"a device that trains {speed:g} samples/s needs {cores_for(row, speed)} cores" for speed in speeds]
    return "\n".join(lines)
