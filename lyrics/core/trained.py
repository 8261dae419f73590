"""The model that a run of training has made so far, read from its folder.

A run folder holds no model: it holds the configuration, by which the model is built as training built it, and checkpoints of what is
trained. ``lyrics export`` writes a model folder of it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lyrics.core.build import build_changed, build_model, build_resolved
from lyrics.core.changes import Changes, overridden
from lyrics.core.dtypes import torch_dtype
from lyrics.core.errors import CheckpointError
from lyrics.core.resolve import resolve
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.training.assemble import load_trained, start_from
from lyrics.core.weights.model_folder import is_frozen

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """The folder of a run; ``checkpoint`` where one of them was named, in place of the newest."""

    folder: Path
    checkpoint: Path | None = None


def find_run(path: str | os.PathLike[str]) -> Run | None:
    """The run that a path names, by its folder or by one of its checkpoints; None for any other path."""
    found = Path(path).resolve()
    if checkpoints.step_of(found) is not None and _is_run(found.parent.parent):
        return Run(found.parent.parent, found)
    return Run(found) if _is_run(found) else None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / CHECKPOINTS).is_dir()


def trained_model(
    run: Run,
    *,
    overrides: Mapping[str, Any] | None = None,
    downloads: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> LyricsModel:
    """Build a run's model with what it has trained so far.

    The model is built as training built it, on the CPU in float32 and with the run's seed, so that parts without weights of their own are
    those that it was trained with; then it is converted and moved. Of several checkpoints the newest whole one is taken, with a warning
    for each newer one that is damaged.

    Args:
        run: see ``find_run``.
        overrides: of the model's specification. Only the parts that they change are built anew (``lyrics.core.changes``).
        downloads: whether what its configuration names may be fetched from the hub; what was fetched before is found either way.
        device, dtype: as for ``lyrics.build_model``.

    Raises:
        CheckpointError: the run has no whole checkpoint, or the one that was named is damaged.
        SpecError: its configuration or an override is not valid.
        WeightsError: weights that it was trained with are not there any more.
    """
    config = load_config(run.folder / CONFIG_FILE)
    chosen = _checkpoint(run)
    spec, changes = overridden(config.model.spec, overrides) if overrides else (config.model.spec, Changes())
    resolved = resolve(spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        weights = _where_it_ran(run, config, config.model.weights)
        model = build_model(config.model.spec, weights=weights, downloads=downloads)
        _load(model, run, config, chosen)
        if overrides:
            model = build_changed(model, resolved, changes, run.folder)
    if config.stage == "pretrain" and config.model.weights in ("pretrained", "random"):
        warnings.warn(
            f"{run.folder} is a run of stage 1: its language model has not been tuned to its soft tokens yet, so answers mean little. "
            f"Stage 2 does that: lyrics finetune CONFIG --set model.start_from={run.folder}",
            stacklevel=2,
        )
    return _converted(model, resolved, device, None if dtype is None else torch_dtype(dtype)).eval()


def _load(model: LyricsModel, run: Run, config: TrainConfig, checkpoint: Path) -> None:
    """Load what the run began with, then what it trained."""
    gone: CheckpointError | None = None
    if config.model.start_from is not None:
        before = _where_it_ran(run, config, config.model.start_from)
        try:
            start_from(model, before, say=lambda text: None)
        except CheckpointError as error:
            gone = error
    names = load_trained(model, checkpoint, str(checkpoint))
    if gone is None:
        return
    left = {name for name, _ in model.named_parameters() if name not in names and not is_frozen(model, name)}
    if any(not name.startswith("objectives.") and ".token_head." not in name for name in left):
        raise CheckpointError(
            f"{run.folder / CONFIG_FILE}: {gone} This run leaves some of its tensors as they were; put it back."
        )
    _say(
        f"{run.folder} began with {config.model.start_from}, which cannot be read any more: the losses of stage 1 and their vocabulary "
        "head are random. Answers do not depend on them."
    )


def _checkpoint(run: Run) -> Path:
    if run.checkpoint is not None:
        checkpoints.verify(run.checkpoint)
        return run.checkpoint
    folder = run.folder / CHECKPOINTS
    found = checkpoints.newest_valid(folder, _say)
    if found is None:
        count = len(checkpoints.finished(folder))
        reason = f"none of its {count} checkpoints is whole" if count else "it has saved no checkpoint yet"
        raise CheckpointError(
            f"{run.folder}: there is no model in this run: {reason}. Give the command that trains it again; it goes on, and saves."
        )
    return found


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _where_it_ran(run: Run, config: TrainConfig, path: str) -> str:
    """A path of the configuration as it is from here: a relative one starts in the folder that the run was started in."""
    out = Path(config.out)
    if Path(path).exists() or Path(path).is_absolute() or out.is_absolute():
        return path
    started = run.folder.parents[len(out.parts) - 1] if run.folder.parts[-len(out.parts) :] == out.parts else None
    return str(started / path) if started is not None and (started / path).exists() else path


def _converted(model: LyricsModel, resolved: Any, device: Any, dtype: torch.dtype | None) -> LyricsModel:
    """The model on a device, each of its tensors in the type that building it in ``dtype`` would have given it."""
    if dtype is not None and dtype != torch.float32:
        plain = resolved.spec
        if plain.language_model.options.get("quantization", "none") != "none":
            plain = plain.with_overrides({"language_model.options.quantization": "none"})
        skeleton = build_resolved(resolve(plain), weights="meta", dtype=dtype)
        types = {name: tensor.dtype for name, tensor in [*skeleton.named_parameters(), *skeleton.named_buffers()]}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and name in types:
                tensor.data = tensor.data.to(types[name])
    return model if device is None else model.to(device)
