"""Everything that wants a GPU, in one call and under twelve minutes: ``python scripts/evaluate_gpu.py run OUT``.

On a machine with a network and without a GPU, ``python scripts/evaluate_gpu.py pack WHEELS`` makes a wheel of this
checkout and fetches those of what is installed here beside it, PyTorch's and CUDA's left out. On the GPU machine, whose
Python has CUDA's torch and need have nothing else and no network, ``run OUT --wheels WHEELS`` installs them into an
environment of their own in OUT and then, one after the other, each in a process with a time limit:

- ``tests``: ``pytest -m gpu``: kernels, the step, torch.compile, CUDA graphs;
- ``attention``, ``step``: ``lyrics bench``; the step of the paper's query transformer at batch 32, 64 and 128;
- ``training``: the recipe tiny-stage1; the same again from its middle, which must end in the same bits; and under
  fsdp2;
- ``experts``: one pass of the paper's experts at real size with random weights, in fp32 and bf16;
- ``memory``: a step's bytes beside those that ``lyrics plan`` counts;
- ``host``: ``lyrics bench host``, which says what the processor beside the GPU costs.

OUT gets a log of each part, the JSON and charts that it wrote, and ``summary.json``, which is written anew after each:
whatever fails, hangs or is killed, the rest is there. Exit code 1 where a part failed.

``--rehearse`` runs all of it on a CPU at tiny sizes. This file needs Python's standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Distributions that the GPU machine brings itself.
_THERE = ("torch", "triton", "nvidia-", "cuda-", "pip", "setuptools", "wheel")
_TAIL_LINES = 15
#: A rehearsal may run on a processor that others use, too.
_REHEARSAL = 10
#: Seconds between asking a part to end and ending it.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where and how the parts run."""

    out: Path
    python: str
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def lyrics(self, *words: object) -> list[str]:
        return [self.python, "-c", "from lyrics.cli import main; main()", *map(str, words)]


@dataclass(frozen=True)
class Part:
    """A name, commands that run one after the other, their limit in seconds altogether, and what is read off after."""

    name: str
    limit_s: float
    commands: Callable[[Place], Sequence[Sequence[str] | Callable[[], None]]]
    facts: Callable[[Place], Mapping[str, Any]] = field(default=lambda place: {})


# --- the parts -------------------------------------------------------------------------------------------------------


def tests(place: Place) -> list[list[str]]:
    where = ["tests/kernels/test_triton_gpu.py"] if place.rehearse else ["tests"]
    junit = f"--junitxml={place.out / 'tests.xml'}"
    return [[place.python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", junit, *where]]


def counted_tests(place: Place) -> dict[str, Any]:
    suite = next(ElementTree.parse(place.out / "tests.xml").getroot().iter("testsuite"))
    counted = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return counted | {"passed": counted["tests"] - sum(counted[n] for n in ("failures", "errors", "skipped"))}


def attention(place: Place) -> list[list[str]]:
    sizes = ("--toy", "--minutes", 0.2) if place.rehearse else ("--minutes", 2)
    out = place.out / "attention.json"
    return [place.lyrics("bench", "attention", "--device", place.device, *sizes, "--out", out)]


def step(place: Place) -> list[list[str]]:
    sizes: tuple[object, ...] = ("--minutes", 1.7, "--profile", "--rounds", 5)
    for batch in (128, 64, 32):
        sizes += ("--batch", batch)
    if place.rehearse:
        sizes = ("--toy", "--batch", 2, "--rounds", 1, "--dtype", "float32", "--profile")
    out = place.out / "step.json"
    return [place.lyrics("bench", "step", "--device", place.device, *sizes, "--out", out)]


def host(place: Place) -> list[list[str]]:
    config, batches = ("tiny-stage1", (2,)) if place.rehearse else ("paper-stage1", (32, 64, 128))
    sizes = [word for batch in batches for word in ("--batch", batch)]
    return [place.lyrics("bench", "host", config, *sizes, "--out", place.out / "host.json")]


def memory(place: Place) -> list[list[str]]:
    batch = 2 if place.rehearse else 32
    config = "tiny-stage1" if place.rehearse else "paper-stage1"
    # The language model is no part of the step of stage 1; the paper's would take minutes to fill with random numbers.
    small = ("--set", "model.spec.language_model={use: causal-lm, options: {hidden_size: 512, num_layers: 2}}")
    words = ("--device", place.device, "--batch", batch, *(() if place.rehearse else small))
    return [place.lyrics("bench", "memory", config, *words, "--out", place.out / "memory.json")]


def experts(place: Place) -> list[list[str]]:
    words: tuple[object, ...] = ("lyrics-13b", "--batch", 8, "--dtype", "float32", "--dtype", "bfloat16")
    words += ("--minutes", 1.2, "--rounds", 3)
    if place.rehearse:
        words = ("lyrics-tiny", "--batch", 2, "--rounds", 1)
    return [place.lyrics("bench", "experts", *words, "--device", place.device, "--out", place.out / "experts.json")]


def training(place: Place) -> list[Sequence[str] | Callable[[], None]]:
    """Half-way saves; the copy of the run loses what came after, and goes on."""
    folder, again, sharded = (place.out / "training" / name for name in ("run", "resumed", "fsdp2"))

    def lose_the_end() -> None:
        shutil.copytree(folder, again)
        shutil.rmtree(_checkpoints(again)[-1])

    def run(out: Path, *more: str) -> list[str]:
        settings = {"out": str(out), "optimization.steps": "6", "checkpoint.every_steps": "3", "checkpoint.keep": "9"}
        settings |= {"optimization.global_batch": "8", "evaluation.every_steps": "null", "data.workers": "0"}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return place.lyrics("pretrain", "tiny-stage1", *words, *more)

    return [run(folder), lose_the_end, run(again), run(sharded, "--set", "strategy=fsdp2")]


def trained_alike(place: Place) -> dict[str, Any]:
    digests = {}
    for name in ("run", "resumed", "fsdp2"):
        with contextlib.suppress(IndexError, OSError):
            last = _checkpoints(place.out / "training" / name)[-1]
            digests[name] = hashlib.sha256((last / "trainable.safetensors").read_bytes()).hexdigest()
    alike = {name: "run" in digests and digests.get(name) == digests["run"] for name in ("resumed", "fsdp2")}
    return {"sha256": digests, "resumed_to_the_bit": alike["resumed"], "fsdp2_to_the_bit": alike["fsdp2"]}


def _checkpoints(run: Path) -> list[Path]:
    """By step, the last one last; a name says its step in digits of equal number."""
    return sorted(path for path in (run / "checkpoints").iterdir() if (path / "trainable.safetensors").is_file())


#: In the order of what one would miss most.
PARTS = (
    Part("tests", 130, tests, counted_tests),
    Part("attention", 140, attention),
    Part("step", 140, step),
    Part("training", 100, training, trained_alike),
    Part("experts", 90, experts),
    Part("memory", 45, memory),
    Part("host", 45, host),
)


# --- running them ----------------------------------------------------------------------------------------------------


def run_part(part: Part, place: Place, limit_s: float) -> dict[str, Any]:
    """Run a part's commands until one fails or time is up; everything that they print goes into its log."""
    log = place.out / f"{part.name}.log"
    started = time.monotonic()
    found: dict[str, Any] = {"status": "ok", "log": log.name}
    with log.open("w", encoding="utf-8") as file:
        try:
            for command in part.commands(place):
                left = limit_s - (time.monotonic() - started)
                if callable(command):
                    command()
                    continue
                file.write(f"$ {' '.join(command)}\n")
                file.flush()
                status = _run(command, file, left)
                if status != "ok":
                    found["status"] = status
                    break
        except Exception as error:
            found |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    found["seconds"] = round(time.monotonic() - started, 1)
    try:
        found["facts"] = dict(part.facts(place))
    except Exception as error:  # a part that was ended early may have left nothing to read
        found["facts"] = {"unreadable": f"{type(error).__name__}: {error}"}
    found["files"] = sorted(path.name for path in place.out.glob(f"{part.name}.*"))
    found["last_lines"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return found


def _run(command: Sequence[str], file: Any, limit_s: float) -> str:
    """``ok``, ``failed`` or ``out of time``; what the command has started ends with it."""
    environment = os.environ | {"LYRICS_COMMIT": os.environ.get("LYRICS_COMMIT", "")}
    process = subprocess.Popen(
        command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        return "ok" if process.wait(max(0.1, limit_s)) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_S)


def about(python: str) -> dict[str, Any]:
    """The machine and the versions, as far as they can be asked."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    asked = {
        "gpu": ["nvidia-smi", "-L"],
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
    }
    asked |= {"torch": [python, "-c", code], "commit": ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]}
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name, command in asked.items():
        try:
            found[name] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            found[name] = None
    found["commit"] = found["commit"] or os.environ.get("LYRICS_COMMIT")
    return found | {"time": datetime.now(UTC).isoformat(timespec="seconds")}


def install(wheels: Path, out: Path) -> list[list[str]]:
    """An environment in OUT on top of this Python's packages, and the carried wheels in it; asks no index."""
    python = str(out / "venv" / "bin" / "python")
    carried = sorted(map(str, wheels.glob("*.whl")))
    return [
        [sys.executable, "-m", "venv", "--system-site-packages", str(out / "venv")],
        [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *carried],
    ]


def run(out: Path, *, wheels: Path | None, rehearse: bool, minutes: float, only: Sequence[str] = ()) -> int:
    """Run the parts; returns the exit code."""
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    place = Place(out, sys.executable, rehearse)
    summary: dict[str, Any] = {"rehearsal": rehearse, "minutes": minutes, "about": {}, "parts": {}}

    def write() -> None:
        summary["seconds"] = round(time.monotonic() - begun, 1)
        aside = out / "summary.json.new"
        aside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        aside.replace(out / "summary.json")

    def do(part: Part) -> None:
        left = 60 * minutes - (time.monotonic() - begun)
        found: dict[str, Any] = {"status": "not run", "reason": "no time is left"}
        if left > 1:
            found = run_part(part, place, min(part.limit_s * (_REHEARSAL if rehearse else 1), left))
        summary["parts"][part.name] = found
        write()
        print(
            f"{part.name}: {found['status']} ({found.get('seconds', 0)} s)",
            json.dumps(found.get("facts", {})),
            found.get("reason", ""),
        )

    if wheels is not None:
        do(Part("install", 120, lambda place: install(wheels, out)))
        if summary["parts"]["install"]["status"] == "ok":
            place = Place(out, str(out / "venv" / "bin" / "python"), rehearse)
    summary["about"] = about(place.python)
    write()
    for part in PARTS:
        if not only or part.name in only:
            do(part)
    return 0 if all(found["status"] == "ok" for found in summary["parts"].values()) else 1


def pack(wheels: Path) -> int:
    """A wheel of this checkout, and wheels of what is installed in this Python."""
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    own = {"lyrics-vl", "lyrics_vl"}
    wanted = sorted(
        f"{one.name}=={one.version}"
        for one in importlib.metadata.distributions()
        if one.name.lower() not in own and not one.name.lower().startswith(_THERE)
    )
    fetch = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    missing = []
    for one in wanted:
        if subprocess.run([*fetch, one], check=False).returncode:
            missing.append(one)
    print(
        f"{len(list(wheels.glob('*.whl')))} wheels in {wheels}"
        + (f"; not to be had: {', '.join(missing)}" if missing else "")
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make the folder of wheels that is carried to the GPU machine")
    packing.add_argument("wheels", type=Path)
    running = commands.add_parser("run", help="run everything")
    running.add_argument("out", type=Path, help="folder for JSON, charts and logs")
    running.add_argument("--wheels", type=Path, help="install these first; without it this Python has the package")
    running.add_argument("--minutes", type=float, default=11.5, help="no part goes on after so long [11.5]")
    running.add_argument("--only", nargs="+", default=(), choices=[part.name for part in PARTS], help="these parts")
    running.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny sizes")
    given = parser.parse_args()
    if given.command == "pack":
        return pack(given.wheels)
    out = given.out.resolve()
    return run(out, wheels=given.wheels, rehearse=given.rehearse, minutes=given.minutes, only=given.only)


if __name__ == "__main__":
    sys.exit(main())
