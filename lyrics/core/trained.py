"""The model that a run of training has made so far, read from its folder.

A run folder holds no model: it holds the configuration, by which the model is built as training built it, and
checkpoints of what is trained. ``lyrics export`` writes a model folder of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lyrics.core.build import attach_experts, build_changed, build_resolved
from lyrics.core.changes import Changes, overridden
from lyrics.core.composed import ComposedModel
from lyrics.core.contracts import Weights
from lyrics.core.dtypes import torch_dtype
from lyrics.core.errors import CheckpointError, WeightsError
from lyrics.core.public_models import find_public, start_from_public
from lyrics.core.resolve import resolve
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.runs.folder import CHECKPOINTS, CONFIG_FILE, Run, step_of
from lyrics.core.runs.tensor_file import read_tensors
from lyrics.core.weights.model_folder import SPEC_FILE, is_frozen

M = TypeVar("M", bound=ComposedModel)


def trained_model(
    model_class: type[M],
    run: Run,
    *,
    overrides: Mapping[str, Any] | None = None,
    downloads: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> M:
    """Build a run's model with what it has trained so far.

    The model is built as training built it, on the CPU in float32 and with the run's seed, so that parts without
    weights of their own are those that it was trained with; then it is converted and moved. Of several checkpoints the
    newest whole one is taken, with a warning for each newer one that is damaged.

    Args:
        model_class: what is made of the parts.
        run: see ``lyrics.core.runs.folder.find_run``.
        overrides: of the model's specification. Only the parts that they change are built anew
            (``lyrics.core.changes``).
        downloads: whether what its configuration names may be fetched from the hub; what was fetched before is
            found either way.
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
        # Random numbers are drawn in the order in which training drew them; experts that it did without come last.
        blind = config.data.features is not None and weights in ("pretrained", "random")
        trained = resolve(config.model.spec)
        model = build_resolved(model_class, trained, weights=weights, downloads=downloads, without_experts=blind)
        if blind:
            how: Weights = "random" if weights == "random" else "pretrained"
            attach_experts(model, trained, weights=how, downloads=downloads)
        _load(model, run, config, chosen, downloads)
        if overrides:
            model = build_changed(model, resolved, changes, run.folder)
    if config.stage == "pretrain" and config.model.weights in ("pretrained", "random"):
        warnings.warn(
            f"{run.folder} is a run of stage 1: its language model has not been tuned to its soft tokens yet, so "
            f"answers mean little. Stage 2 does that: lyrics finetune CONFIG --set model.start_from={run.folder}",
            stacklevel=2,
        )
    return _converted(model, resolved, device, None if dtype is None else torch_dtype(dtype)).eval()


def _load(model: ComposedModel, run: Run, config: TrainConfig, checkpoint: Path, downloads: bool) -> None:
    """Load what the run began with, then what it trained."""
    gone: CheckpointError | WeightsError | None = None
    if config.model.start_from is not None:
        before = _where_it_ran(run, config, config.model.start_from)
        try:
            start_from(model, before, say=lambda text: None, downloads=downloads)
        except (CheckpointError, WeightsError) as error:
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
        f"{run.folder} began with {config.model.start_from}, which cannot be read any more: the losses of stage 1 and "
        "their vocabulary head are random. Answers do not depend on them."
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
            f"{run.folder}: there is no model in this run: {reason}. Give the command that trains it again; it goes "
            "on, and saves."
        )
    return found


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _where_it_ran(run: Run, config: TrainConfig, path: str) -> str:
    """Return a path of the configuration as seen from here: a relative one starts where the run was started."""
    out = Path(config.out)
    if Path(path).exists() or Path(path).is_absolute() or out.is_absolute():
        return path
    started = run.folder.parents[len(out.parts) - 1] if run.folder.parts[-len(out.parts) :] == out.parts else None
    return str(started / path) if started is not None and (started / path).exists() else path


def _converted(model: M, resolved: Any, device: Any, dtype: torch.dtype | None) -> M:
    """The model on a device, each of its tensors in the type that building it in ``dtype`` would have given it."""
    if dtype is not None and dtype != torch.float32:
        plain = resolved.spec
        if plain.language_model.options.get("quantization", "none") != "none":
            plain = plain.with_overrides({"language_model.options.quantization": "none"})
        skeleton = build_resolved(type(model), resolve(plain), weights="meta", dtype=dtype)
        types = {name: tensor.dtype for name, tensor in [*skeleton.named_parameters(), *skeleton.named_buffers()]}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and name in types:
                tensor.data = tensor.data.to(types[name])
    return model if device is None else model.to(device)


def start_from(model: ComposedModel, path: str, say: Callable[[str], None], *, downloads: bool = True) -> None:
    """Load the trained tensors of a checkpoint, or of a run folder's newest one, over the model's.

    Of a public model, by its folder or its hub id, what fits is loaded (``lyrics.core.public_models``); ``downloads``
    says whether it may be fetched.

    Raises ``CheckpointError`` where there is none, or it is damaged or does not fit, and ``WeightsError`` for a public
    model that cannot be read.
    """
    try:
        public = find_public(path, downloads=downloads)
    except WeightsError as error:
        raise CheckpointError(f"model.start_from={path}: is no run folder, and no public model: {error}") from error
    if public is not None:
        start_from_public(model, public, say, downloads=downloads)
        return
    folder: Path | None = Path(path)
    assert folder is not None
    if step_of(folder) is None:
        folder = checkpoints.newest_valid(folder / "checkpoints", say)
    if folder is None:
        is_model = (Path(path) / SPEC_FILE).is_file()
        advice = " It is a model folder; set model.weights to it, and leave model.start_from out." if is_model else ""
        raise CheckpointError(
            f"model.start_from={path}: is neither a checkpoint nor a run folder that has one.{advice}"
        )
    checkpoints.verify(folder)
    names = load_trained(model, folder, f"model.start_from: {folder}")
    say(f"{len(names)} tensors from {folder}")


def load_trained(model: ComposedModel, checkpoint: Path, where: str) -> set[str]:
    """Load the trained tensors of a checkpoint that was verified, and return their names.

    Raises ``CheckpointError`` that begins with ``where`` for tensors that do not fit.
    """
    tensors = read_tensors(checkpoint / checkpoints.TRAINED_FILE)
    own = dict(model.named_parameters())
    wanted = {name: own[name] for name in tensors if name in own}
    load_parameters(wanted, tensors, f"{where}/{checkpoints.TRAINED_FILE}")
    return set(wanted)


@torch.no_grad()
def load_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Fill parameters by name.

    Raises ``CheckpointError`` beginning with ``where`` and naming what is missing, left over or misshapen.
    """
    missing, unexpected = sorted(set(parameters) - set(tensors)), sorted(set(tensors) - set(parameters))
    if missing or unexpected:
        complaints = [
            f"{len(names)} {what}, such as {names[0]}"
            for what, names in (("missing", missing), ("not of this model", unexpected))
            if names
        ]
        raise CheckpointError(f"{where}: its tensors are not those that this model trains: {'; '.join(complaints)}.")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, but {tuple(parameter.shape)} in this model."
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
