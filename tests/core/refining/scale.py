"""Rows by the million: ``python -m tests.core.refining.scale 1000000 OUT`` says how long a pass took and its memory.

Experts that see at once, and images that are not decoded, leave what the pass itself costs. ``--again`` then starts a
second run, which finds everything done.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.geometry import Box
from lyrics.core.pictures.model_inputs import ModelImages
from lyrics.core.refining.refine_files import refine_files
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.refiner import RefinerOutput, VisualRefiner
from lyrics.core.types import DetectedObject, Tag

IMAGE = Image.new("RGB", (64, 48))


@dataclass(frozen=True, slots=True)
class Numbered:
    """A picture that is only a number."""

    number: int

    @property
    def name(self) -> str:
        return f"images/{self.number // 1000:06}/{self.number:09}.jpg"

    @property
    def key(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        return IMAGE


@dataclass(frozen=True)
class Numbers:
    """So many pictures, made when they are asked for."""

    count: int

    def __iter__(self) -> Iterator[Numbered]:
        return map(Numbered, range(self.count))


class AtOnce(VisualRefiner):
    """Three objects in every picture, which depend on its name alone."""

    def refine(self, images: ModelImages, phrases: Any = None) -> RefinerOutput:
        return RefinerOutput(tuple(map(self.seen, images.sizes_px, images.names)), {})

    def seen(self, size: tuple[int, int], name: str) -> Refinement:
        place = sum(name.encode()) % 50 / 100
        found = tuple(
            DetectedObject(f"thing {number}", Box(place, 0.1, place + 0.3, 0.2 + 0.2 * number), 0.9 - number / 10)
            for number in range(3)
        )
        return Refinement(size, (Tag("thing 1", 0.75),), found, name)


def memory(field: str) -> int:
    """``VmHWM`` (peak) or ``VmRSS`` of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", default="jsonl,coco")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args(arguments)
    refine_files(AtOnce(), Numbers(8), asked.out / "warm", draw=False)  # what is imported at first use
    gc.collect()
    before = memory("VmRSS")
    for _ in range(2 if asked.again else 1):
        start, used = time.perf_counter(), time.process_time()
        done = refine_files(
            AtOnce(),
            Numbers(asked.count),
            asked.out / "all",
            batch_size=asked.batch,
            draw=False,
            formats=asked.format.split(","),
        )
        figures = {
            "rows": asked.count,
            "refined": done.refined,
            "seconds": round(time.perf_counter() - start, 2),
            "processor_seconds": round(time.process_time() - used, 2),
            "peak_mb": round(memory("VmHWM") / 1e6, 1),
            "before_mb": round(before / 1e6, 1),
        }
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
