"""Processes and devices, through accelerate: as many ranks as were asked for, or an error that says why not."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import platform
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from lyrics import __version__
from lyrics.core.errors import MissingRequirementError, SpecError
from lyrics.core.runs.config import TrainConfig


def start(config: TrainConfig, say: Callable[[str], None]) -> Accelerator:
    """Return the accelerator of this process. Under torchrun it joins the others, within the configured timeout.

    Raises ``SpecError`` when there are not as many ranks as were asked for, ``MissingRequirementError`` for a tracker
    that is not installed.
    """
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        cpu=config.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="bf16" if config.optimization.precision == "bf16" else "no",
        log_with=_trackers(config, say) or None,
        project_dir=config.out,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout_minutes)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    check_ranks(accelerator.num_processes, config.ranks)
    check_kind(accelerator.distributed_type)
    if config.strategy == "fsdp2" and accelerator.num_processes == 1:
        say("strategy=fsdp2: with one process nothing is shared out; start more with torchrun --nproc-per-node N")
    return accelerator


def several_processes() -> bool:
    """Return whether torchrun started this process among others.

    They train together, and what comes after is left to a call without it.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_kind(kind: DistributedType) -> None:
    """Raise ``SpecError`` where accelerate would not keep parameters whole on every rank."""
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise SpecError(
            f"accelerate is configured for {kind.value}. What is trained here is small, so every rank keeps all of it: "
            "use torchrun without an accelerate configuration. To share out the frozen language model over the ranks, "
            "set strategy=fsdp2."
        )


def check_ranks(found: int, wanted: int | None) -> None:
    """Raise ``SpecError`` unless this run has the processes that it was launched for.

    Without this a launcher that starts one process instead of two (``accelerate launch --cpu --num_processes 2``) would
    train nevertheless, more slowly and without a message.
    """
    advice = "Start them with: torchrun --nproc-per-node N --no-python lyrics ... (and --nnodes for several machines)."
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted is not None and found != wanted:
        raise SpecError(f"ranks: {wanted} processes were asked for, and {found} are running. {advice}")
    if found != launched:
        raise SpecError(f"{launched} processes were launched (WORLD_SIZE), but they do not find each other. {advice}")
    alone_by_mistake = "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if wanted is None and found == 1 and alone_by_mistake and "RANK" not in os.environ:
        raise SpecError(
            "'accelerate launch --cpu' was asked for several processes and has started one, which is all it does "
            f"without MPI. {advice} To train with one process, set ranks=1."
        )


def release(accelerator: Accelerator) -> None:
    """Free what ``prepare`` wrapped, while the process group is still there.

    torch's reducer, if it goes last, ends gloo's threads while it holds Python's lock, and a thread that is just
    dropping a tensor waits for that lock: the process would never end (torch 2.13).
    """
    accelerator.free_memory()
    gc.collect()


def let_go(error: BaseException) -> None:
    """Empty the frames of an error on its way up, which would keep the wrapped model alive."""
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__


def leave() -> None:
    """Leave the other ranks, at the end of a program that has trained."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _trackers(config: TrainConfig, say: Callable[[str], None]) -> list[Any]:
    found: list[Any] = []
    for name in config.logging.trackers:
        if importlib.util.find_spec(name) is not None:
            found.append(name)
        elif name == "tensorboard":
            say(
                "tensorboard is not installed, so curves are in log.jsonl and report.html only. pip install tensorboard"
            )
        else:
            raise MissingRequirementError(f"logging.trackers: {name} is not installed. Run: pip install {name}")
    return found


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return what a run depends on besides its configuration, as plain data."""
    packages = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")
    cuda = accelerator.device.type == "cuda"
    return {
        "lyrics": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "ranks": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }
