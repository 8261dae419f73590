"""Where a run goes on: which checkpoint, and whether it is of this run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lyrics.core.errors import CheckpointError, SpecError
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.checkpoint import Checkpoint
from lyrics.core.runs.config import TrainConfig
from lyrics.core.stage1.distributed import rank, world_size
from lyrics.core.stage1.reduction import together

_NONE = -1


def choose(folder: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    """Return the checkpoint to go on from; None for a fresh start.

    Args:
        folder: the run's checkpoints.
        resume: ``auto`` (the newest that is whole), ``never``, or the path of a checkpoint or of a run folder.
        say: told of checkpoints that are passed over.

    Raises ``SpecError`` where going on would overwrite checkpoints, ``CheckpointError`` where none of those that there
    are is whole.
    """
    there = checkpoints.finished(folder)
    if resume == "never":
        if there:
            raise SpecError(f"--resume never: {folder} has checkpoints; give another --out, or --resume auto.")
        return None
    if resume == "auto":
        found = checkpoints.newest_valid(folder, say)
        if found is None and there:
            raise CheckpointError(
                f"{folder}: none of its {len(there)} checkpoints is whole; give another --out to start afresh."
            )
        return found
    path = Path(resume)
    found = path if checkpoints.step_of(path) is not None else checkpoints.newest_valid(path / "checkpoints", say)
    if found is None:
        raise CheckpointError(
            f"--resume {resume}: is neither a checkpoint (step-00000100) nor a run folder that has one."
        )
    checkpoints.verify(found)
    step = checkpoints.step_of(found)
    assert step is not None
    if newer := [old.name for old in there if (checkpoints.step_of(old) or 0) > step]:
        raise SpecError(f"--resume {resume}: {folder} has a newer one ({max(newer)}); give another --out.")
    return found


def choose_together(folder: Path, resume: str, say: Callable[[str], None], device: torch.device) -> Path | None:
    """Return ``choose`` by the first rank, for all of them."""
    found: Path | None = None
    with together(device):
        if rank() == 0:
            found = choose(folder, resume, say)
    if world_size() == 1:
        return found
    step = checkpoints.step_of(found) if found is not None else None
    said = torch.tensor([_NONE if step is None else step], device=device)
    dist.broadcast(said, 0)
    return None if int(said) == _NONE else _same(folder, resume, int(said))


def _same(folder: Path, resume: str, step: int) -> Path:
    if resume == "auto":
        return folder / checkpoints.folder_name(step)
    path = Path(resume)
    return path if checkpoints.step_of(path) is not None else path / "checkpoints" / checkpoints.folder_name(step)


def set_aside_unusable(folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Rename checkpoints newer than the one that is resumed, which were found unusable: their names will be needed."""
    for found in checkpoints.finished(folder):
        if (checkpoints.step_of(found) or 0) > step:
            aside, number = found.with_name(f"{found.name}.unusable"), 1
            while aside.exists():
                number += 1
                aside = found.with_name(f"{found.name}.unusable-{number}")
            found.rename(aside)
            say(f"{found.name} is now called {aside.name}")


def state_of(config: TrainConfig, step: int, data_digest: str, in_a_row: int) -> dict[str, Any]:
    """Return what a checkpoint says about its run.

    ``step`` is all that training needs; the rest is compared when it is resumed.
    """
    return {
        "step": step,
        "stage": config.stage,
        "seed": config.seed,
        "global_batch": config.optimization.global_batch,
        "data": data_digest,
        "skipped_in_a_row": in_a_row,
    }


def check_same_run(found: Checkpoint, config: TrainConfig, data_digest: str, where: str) -> None:
    """Raise ``CheckpointError`` for a checkpoint that this run cannot go on from.

    That is one of another stage, or a change that would repeat or miss samples unannounced.
    """
    now = state_of(config, 0, data_digest, 0)
    if found.state["stage"] != config.stage:
        raise CheckpointError(
            f"{where}: is of stage {found.state['stage']!r}, this run is of {config.stage!r}. To begin a stage with "
            "the tensors of another, give another --out, and this folder as model.start_from."
        )
    what: Mapping[str, str] = {"seed": "seed", "global_batch": "optimization.global_batch", "data": "data"}
    for key, path in what.items():
        if found.state[key] != now[key] and key not in config.allow_changed:
            raise CheckpointError(
                f"{where}: {path} was {found.state[key]}, and is {now[key]} now: samples would be repeated or missed. "
                f"Put it back, or allow it with --set allow_changed=[{key}] (data.json of the run says what the data "
                "were)."
            )
    if found.step > config.optimization.steps:
        raise CheckpointError(
            f"{where}: has {found.step} finished steps, more than optimization.steps={config.optimization.steps}."
        )
