"""The data pipeline's speed: ``python benchmarks/loader.py --help``. No network, no model; everything is made on the
fly.

- *throughput*: samples per second of ``SampleStream`` through a ``DataLoader``, on ``scenes`` and on tar shards of
  JPEG pictures, with 0, 1 and 2 workers;
- *bad samples*: the same with 5 % of the pictures damaged, against the same rows listed as bad beforehand, in turns;
- *restart*: seconds to the first batch at step 700,000, against step 0, in turns;
- *order*: a mixture of two data sets of a billion rows in a process of its own: seconds to open, resident memory, and
  microseconds of ``sample_at`` in order and at random.

Writes ``benchmarks/results/loader.json``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lyrics import build_dataset
from lyrics.data import (
    Dataset,
    Mixture,
    RecordDataset,
    SampleStream,
    Source,
    StepSampler,
    TarRecords,
    tar_sample,
    write_index,
)
from lyrics.workflows.bench.machine import environment

RESULTS = Path(__file__).parent / "results"
FAR_STEP = 700_000
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help=f"batches of {BATCH} per measurement [20]")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each way gets; medians count [5]")
    parser.add_argument("--out", type=Path, default=RESULTS / "loader.json")
    parser.add_argument("--order-only", action="store_true", help=argparse.SUPPRESS)  # for the process of its own
    given = parser.parse_args()
    if given.order_only:
        print(json.dumps(_order()))
        return
    results: dict[str, Any] = {"benchmark": "loader", "load_at_start": os.getloadavg(), **environment()}
    with tempfile.TemporaryDirectory() as folder:
        tars = shards(Path(folder) / "good", damaged_every=0)
        damaged = shards(Path(folder) / "damaged", damaged_every=20)
        sets = {"scenes": build_dataset("scenes", {"scenes": 1_000_000}), "tar": tars}
        results["throughput"] = [
            _throughput(name, data, workers, given) for name, data in sets.items() for workers in (0, 1, 2)
        ]
        results["bad samples"] = _bad_samples(damaged, given)
        results["restart"] = [_restart(name, data, given) for name, data in sets.items()]
    done = subprocess.run([sys.executable, __file__, "--order-only"], capture_output=True, text=True, check=True)
    results["order"] = json.loads(done.stdout)
    for part in ("throughput", "bad samples", "restart", "order"):
        print(part, json.dumps(results[part]))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=2) + "\n")


def shards(folder: Path, damaged_every: int, count: int = 4, samples: int = 500) -> Dataset:
    """Tar shards of photograph-sized JPEG pictures with captions, as img2dataset writes them; some pictures damaged."""
    folder.mkdir(parents=True)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12, 24, 3), dtype=np.uint8)
    encoded = []
    for pixels in coarse:
        file = io.BytesIO()
        Image.fromarray(pixels).resize((384, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    paths = []
    for shard in range(count):
        paths.append(folder / f"{shard:05}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(samples):
                row = shard * samples + number
                data = encoded[row % len(encoded)]
                if damaged_every and row % damaged_every == 0:
                    # As downloads go wrong: cut off in the data or in the header, a page instead of a picture, nothing.
                    kinds = (data[: len(data) // 2], data[:100], b"<!DOCTYPE html><title>404</title>", b"")
                    data = kinds[row // damaged_every % len(kinds)]
                about = json.dumps({"caption": f"picture {row}", "url": f"http://example.org/{row}.jpg"}).encode()
                for suffix, content in (("jpg", data), ("txt", f"picture {row}".encode()), ("json", about)):
                    info = tarfile.TarInfo(f"{row:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        write_index(paths[-1])
    records = TarRecords(paths)
    return RecordDataset("tar", records, tar_sample, records)


def stream_of(data: Dataset, **options: Any) -> SampleStream:
    sizes = getattr(data, "shard_sizes", None)
    return SampleStream(Mixture([Source("data", len(data), shard_sizes=sizes)], 0), {"data": data}, **options)


def loader_of(stream: SampleStream, workers: int, start: int, steps: int) -> torch.utils.data.DataLoader[Any]:
    sampler = StepSampler(BATCH, start=start, stop=start + steps)
    return torch.utils.data.DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=list)


def _throughput(name: str, data: Dataset, workers: int, given: argparse.Namespace) -> dict[str, Any]:
    """Without the start of the workers: the clock starts when the first batch is there."""
    batches = iter(loader_of(stream_of(data), workers, 0, given.steps * given.rounds + 1))
    next(batches)
    rates = []
    for _ in range(given.rounds):
        start = time.perf_counter()
        count = sum(len(batch) for batch in itertools.islice(batches, given.steps))
        assert count == given.steps * BATCH
        rates.append(count / (time.perf_counter() - start))
    return {"data": name, "workers": workers, "samples_per_second": statistics.median(rates), "all": rates}


def _bad_samples(damaged: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    """The same positions with bad rows met and with bad rows known; both give the same samples, which is asserted."""
    known = {"data": frozenset(range(0, len(damaged), 20))}

    def found() -> list[int]:
        stream = stream_of(damaged, max_bad_share=1.0)
        return [one.row for batch in loader_of(stream, 0, 0, given.steps) for one in batch]

    def beforehand() -> list[int]:
        return [one.row for batch in loader_of(stream_of(damaged, known_bad=known), 0, 0, given.steps) for one in batch]

    assert found() == beforehand()
    # Of this process alone, so that others on the machine count for less: without workers all the work is done here.
    seconds = in_turns({"found": found, "known beforehand": beforehand}, given.rounds, time.process_time)
    return {"share": 0.05, "cpu_seconds": seconds, "cost": seconds["found"] / seconds["known beforehand"] - 1}


def _restart(name: str, data: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    """Everything from the mixture on is made anew, the first batch read."""

    def first_batch(step: int) -> None:
        next(iter(loader_of(stream_of(data), 0, step, 1)))

    seconds = in_turns(
        {"step 0": lambda: first_batch(0), f"step {FAR_STEP}": lambda: first_batch(FAR_STEP)}, given.rounds
    )
    return {"data": name, "seconds": seconds, "more": seconds[f"step {FAR_STEP}"] - seconds["step 0"]}


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each way; who begins changes from turn to turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            start = clock()
            ways[way]()
            seconds[way].append(clock() - start)
    return {way: statistics.median(found) for way, found in seconds.items()}


def _order() -> dict[str, Any]:
    rows = 10**9
    before_mb = _resident_mb()
    start = time.perf_counter()
    sources = [Source("shards", rows, 1.0, np.full(100_000, rows // 100_000)), Source("plain", rows, 1.0)]
    mixture = Mixture(sources, 0)
    mixture.sample_at(FAR_STEP * BATCH)
    open_s = time.perf_counter() - start
    first = FAR_STEP * BATCH
    jumps = random.Random(0).sample(range(rows), 20_000)
    return {
        "rows": 2 * rows,
        "open_seconds": open_s,
        "resident_mb": _resident_mb() - before_mb,
        "in_order_us": _microseconds(mixture, range(first, first + 20_000)),
        "at_random_us": _microseconds(mixture, jumps),
    }


def _microseconds(mixture: Mixture, positions: Any) -> dict[str, float]:
    calls = []
    worked = time.process_time()
    for position in positions:
        start = time.perf_counter_ns()
        mixture.sample_at(position)
        calls.append((time.perf_counter_ns() - start) / 1000)
    worked = time.process_time() - worked
    ordered = sorted(calls)
    return {
        "mean": statistics.fmean(calls),
        # Of this process alone: what else runs on the machine is in the others.
        "mean processor time": 1e6 * worked / len(calls),
        "median": ordered[len(calls) // 2],
        "99 %": ordered[len(calls) * 99 // 100],
        "largest": ordered[-1],
    }


def _resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
