"""What benchmarks share: the machine they ran on, the clock of its device, and how fast its memory is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

#: Emptied before each run on a GPU: more than the L2 cache of any of them holds.
_FLUSHED_BYTES = 256 * 2**20
_WARM_UP = 3
#: Packages whose versions decide what was measured.
_PACKAGES = ("triton", "flash-attn", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Return what every row was measured on: machine, versions, commit, time."""
    gpu = torch.cuda.is_available()
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": _driver() if gpu else None,
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    if gpu:
        versions |= {"cuda": torch.version.cuda or "", "cudnn": str(torch.backends.cudnn.version())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"machine": machine, "versions": versions, "commit": _commit(), "time": now}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of the GPU's driver, as its own tool says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the checkout this file lies in, with a mark if the tree has changes; None for an installed package.

    Where the files were copied without their history, ``LYRICS_COMMIT`` in the environment says it.
    """
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LYRICS_COMMIT") or None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


# --- time ------------------------------------------------------------------------------------------------------------


def device_clock(device: str) -> Callable[[], float]:
    """Return a clock in seconds that waits for the device, for whoever times with a clock: the processor's, or CUDA
    events on a GPU.

    The time between two readings is that between two events on the GPU's stream, summed so that long runs lose no
    precision.
    """
    if not device.startswith("cuda"):
        return time.perf_counter
    last = torch.cuda.Event(enable_timing=True)
    last.record()
    seconds = 0.0

    def read() -> float:
        nonlocal last, seconds
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        seconds += last.elapsed_time(now) / 1e3
        last = now
        return seconds

    return read


def microseconds(
    run: Callable[..., object], rounds: int, device: str, prepare: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Median and 20 and 80 % quantiles of ``rounds`` runs after warming up; on a GPU by events, with the L2 cache
    emptied before each.

    ``prepare`` goes before every run, untimed, and ``run`` is called with what it returns.
    """
    found = []
    if device.startswith("cuda"):
        flush = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
        for turn in range(rounds + _WARM_UP):
            arguments = () if prepare is None else (prepare(),)
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(*arguments)
            end.record()
            end.synchronize()
            if turn >= _WARM_UP:
                found.append(1e3 * start.elapsed_time(end))
    else:
        for turn in range(rounds + 1):
            arguments = () if prepare is None else (prepare(),)
            start_time = time.perf_counter()
            run(*arguments)
            if turn:
                found.append(1e6 * (time.perf_counter() - start_time))
    found.sort()
    low, high = (found[min(len(found) - 1, int(share * len(found)))] for share in (0.2, 0.8))
    return {"median": statistics.median(found), "low": low, "high": high, "all": found}


def bandwidth(device: str, rounds: int) -> float:
    """Bytes per second that a copy reads and writes here: what the floor of a case is computed with."""
    source = torch.zeros((256 if device.startswith("cuda") else 32) * 2**20, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    took = microseconds(lambda: target.copy_(source), rounds, device)["median"]
    return float(2e6 * source.nbytes / took)
