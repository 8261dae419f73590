"""Whole tasks from Python in one call: what is installed, training a stage, evaluating a model.

Imports no torch by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import UnknownNameError, did_you_mean
from lyrics.core.registry.component import KINDS
from lyrics.core.registry.registry import default_registry

if TYPE_CHECKING:
    from lyrics.core.abstaining import Abstaining
    from lyrics.core.conditions import Condition
    from lyrics.core.contracts import Dataset
    from lyrics.core.data.augmentation import Augmentation
    from lyrics.core.data.known import Stage
    from lyrics.core.data.stream import SampleStream
    from lyrics.core.data.training_data import BatchCollator
    from lyrics.core.evaluation.runner import Result
    from lyrics.core.model import LyricsModel
    from lyrics.core.runs.config import TrainConfig


def list_components(kind: str | None = None) -> list[str]:
    """Return the names of installed components, of one kind (such as ``"detector"``) or of all.

    They are sorted by kind and name.

    Raises ``UnknownNameError`` for a kind that does not exist.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError(f"there is no kind {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    found = [entry.component for entry in default_registry().entries]
    return list(dict.fromkeys(one.name for one in found if kind in (None, one.kind)))


def list_presets() -> list[str]:
    """Return the names of installed models and refiners, for ``build_model``, ``load_model`` and ``build_refiner``."""
    return list(dict.fromkeys(preset.name for preset, _ in default_registry().presets))


def list_recipes() -> list[str]:
    """Return the names of installed training configurations, for ``train``."""
    return list(dict.fromkeys(recipe.name for recipe, _ in default_registry().recipes))


@dataclass(frozen=True)
class TrainResult:
    """What a call of ``train`` did.

    ``folder`` is the run's, which ``load_model`` reads; ``step`` steps are finished; ``stopped`` says that a signal
    ended the run before its last one.
    """

    folder: Path
    step: int
    stopped: bool


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | TrainConfig,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: str = "auto",
) -> TrainResult:
    """Train one stage, as ``lyrics pretrain`` and ``lyrics finetune`` do.

    Args:
        config: the name of a recipe, the path of a YAML or JSON file, or a configuration.
        overrides: dotted paths, e.g. ``{"optimization.steps": 100, "out": "runs/one"}``.
        resume: ``"auto"`` goes on from the newest whole checkpoint of the run's folder; ``"never"`` refuses a
            folder that has one; anything else is the path of a checkpoint.

    Raises:
        SpecError: the configuration or an override is not valid.
        TrainingError: training cannot go on; the message says how to resume.
    """
    from lyrics.core.runs.config import TrainConfig, load_config
    from lyrics.core.training.assemble import run

    given = config.model_dump(mode="json") if isinstance(config, TrainConfig) else config
    loaded = load_config(Path(given) if isinstance(given, os.PathLike) else given, overrides)
    outcome = run(loaded, resume_from=resume)
    return TrainResult(Path(loaded.out), outcome.step, outcome.stopped)


def training_data(
    sets: str | Dataset | Mapping[str, Dataset | Mapping[str, Any]], stage: Stage, *, seed: int = 0
) -> SampleStream:
    """Return samples for a training loop of your own.

    They are a map-style data set for ``torch.utils.data.DataLoader`` or ``Trainer``.

    Its length is one epoch, in an order that the seed fixes; positions go on after it, in another order. A sample that
    cannot be read, or that the stage has no use for, is replaced by another one of its data set.

    Args:
        sets: the name of a data set, a data set, or several by name: each a data set, or the options of the one of that
            name, e.g. ``{"scenes": {"split": "train", "scenes": 1000}}``.
        stage: ``"pretrain"`` (images with captions) or ``"instruct"`` (instructions with answers).
        seed: of the order.

    Raises:
        SpecError: a name or an option is wrong.
        DatasetError: files are not there, or are not what they should be.
    """
    from lyrics.core.data.training_data import sample_stream

    return sample_stream(sets, stage, seed)


def data_collator(
    model: LyricsModel, stage: Stage, *, seed: int = 0, augmentation: Augmentation | None = None
) -> BatchCollator:
    """Return what makes a batch of samples of ``training_data``.

    It is the ``collate_fn`` of a loader, and the ``data_collator`` of ``Trainer``.

    It gives keyword arguments of the forward pass: ``model(**collator(samples)).loss``.

    Args:
        model: prepares the images for its experts, and says how boxes are written.
        stage: as for ``training_data``.
        seed: of captions, templates and augmentation; draws are functions of it and of the sample's position.
        augmentation: ``lyrics.data.Augmentation``; None leaves images as they are.

    Raises:
        SpecError: the stage does not exist.
    """
    from lyrics.core.data.collate import Collator
    from lyrics.core.data.training_data import BatchCollator, check_stage

    check_stage(stage)
    return BatchCollator(Collator(stage, model.processor, seed=seed, codec=model.spec.codec, augmentation=augmentation))


def evaluate(
    model: str | LyricsModel,
    benchmarks: str | Mapping[str, Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    limit: int | None = None,
    batch: int = 8,
    conditions: Sequence[Condition] = (),
    abstaining: Abstaining | None = None,
) -> list[Result]:
    """Evaluate a model, as ``lyrics evaluate`` does.

    Predictions, scores and a page of the worst cases are in the folder ``out``.

    Args:
        model: a model, or a name as for ``load_model``, which is loaded only if answers are missing.
        benchmarks: the name of one, or names with their options, e.g. ``{"scenes": {"split": "test"}}``.
        out: a folder; a second call goes on where the first one stopped.
        limit: only so many samples of each benchmark, the first.
        batch: samples that are answered together.
        conditions: under which the samples are answered as well, such as ``[lyrics.Condition(soft="shuffled")]``;
            what each of them costs is in ``details["conditions"]`` of a result and in ``conditions.html`` of its
            folder.
        abstaining: which answers are scored as "I cannot see that.", such as ``lyrics.Abstaining(-0.1)``.

    Raises ``LyricsError`` and its kinds: unknown names, options that are not valid, answers of another model in
    ``out``.
    """
    from lyrics.core.evaluation.build import build_benchmark, split_of
    from lyrics.core.evaluation.runner import evaluate as answer_and_score
    from lyrics.core.loading import load_model

    asked = {benchmarks: {}} if isinstance(benchmarks, str) else dict(benchmarks)
    built = {name: build_benchmark(name, options) for name, options in asked.items()}
    named = model if isinstance(model, str) else "a model in memory"
    about = {
        name: {"benchmark": name, "split": split_of(name, dict(options)), "model": named}
        for name, options in asked.items()
    }
    answerer = model if not isinstance(model, str) else lambda: load_model(model)
    return answer_and_score(
        answerer, built, Path(out), batch=batch, limit=limit, about=about, conditions=conditions, abstaining=abstaining
    )
