"""From a configuration alone to a run: data sets, model and collation are built, then trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lyrics.core.data.augmentation import Augmentation
from lyrics.core.data.build import build_dataset
from lyrics.core.data.collate import Collator
from lyrics.core.data.fitting import Fitting
from lyrics.core.data.relevance import relevant
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.loading import build_model
from lyrics.core.refining.features import StoredFeatures
from lyrics.core.refining.refine_files import read_refinements
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.stored import StoredRefinements
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import declared_segments, declaring, resolve
from lyrics.core.runs.config import TrainConfig
from lyrics.core.spec import Slot
from lyrics.core.trained import start_from
from lyrics.core.training.begin import check_start
from lyrics.core.training.frozen_precision import hold_frozen
from lyrics.core.training.held_out import HeldOut
from lyrics.core.training.loop import Evaluate, Outcome, say, train

if TYPE_CHECKING:
    from lyrics.core.contracts import Dataset
    from lyrics.core.model import LyricsModel


def run(
    config: TrainConfig,
    *,
    resume_from: str = "auto",
    evaluate: Evaluate | None = None,
    adapt: Callable[[LyricsModel], object] | None = None,
) -> Outcome:
    """Build everything that ``config`` names, and train it.

    ``adapt`` may change the model that was built, before its weights are loaded. Other arguments and errors are those
    of ``lyrics.core.training.loop.train``.
    """
    if config.stage == "pretrain" and not config.model.spec.objectives:
        reader = resolve(config.model.spec).parts["query_transformer"]
        segments = declared_segments(reader, "segments")
        if segments is not None and not set(segments) & {"S", "C"}:
            raise SpecError(
                f"model.spec.query_transformer: {reader.entry.component.name!r} reads no text, so it has no stage 1; "
                "begin with stage 2 (lyrics finetune)."
            )
        raise SpecError(
            "model.spec.objectives: is empty, so stage 1 has nothing to train; give it one at least: --set "
            "model.spec.objectives.NAME=NAME, with a NAME that 'lyrics list objective' shows."
        )
    check_start(config)
    datasets = _fitting(relevant(build_datasets(config.data.sets, "data.sets"), config.data.sets), config)
    refined, features = read_refined(config), read_features(config)
    torch.manual_seed(config.seed)  # random weights are a function of the seed, and alike on all ranks
    model = build_model(config.model.spec, weights=config.model.weights, without_experts=features is not None)
    if adapt is not None:
        adapt(model)
    hold_frozen(model, config)
    if config.model.start_from is not None:
        start_from(model, config.model.start_from, say)
    section = config.data.augmentation
    augmentation = None if section is None else Augmentation(**section.model_dump())
    collator = Collator(
        config.stage,
        model.processor,
        seed=config.seed,
        codec=model.spec.codec,
        augmentation=augmentation,
        refined=refined,
        features=features,
        snap_iou=config.data.snap_iou,
        drop_text=config.data.drop_text,
        drop_queries_text=config.data.drop_queries_text,
    )
    if evaluate is None and config.evaluation.every_steps is not None:
        if not config.evaluation.sets:
            raise SpecError("evaluation.every_steps: is set, but evaluation.sets names no data set to measure on.")
        held_out = _fitting(build_datasets(config.evaluation.sets, "evaluation.sets"), config)
        # Held-out samples are not varied.
        plain = Collator(
            config.stage,
            model.processor,
            seed=config.seed,
            codec=model.spec.codec,
            refined=refined,
            features=features,
        )
        evaluate = HeldOut(config, held_out, plain)
    return train(config, model, datasets, collator, resume_from=resume_from, evaluate=evaluate)


def _fitting(datasets: Mapping[str, Dataset], config: TrainConfig) -> dict[str, Dataset]:
    return {name: Fitting(data, config.stage) for name, data in datasets.items()}


def build_datasets(slots: Mapping[str, Slot], where: str) -> dict[str, Dataset]:
    """Every data set that is named. Raises what ``build_dataset`` raises, with the place in the configuration."""
    datasets = {}
    for name, slot in slots.items():
        try:
            datasets[name] = build_dataset(slot.use, slot.options)
        except LyricsError as error:
            raise type(error)(f"{where}.{name}: {error}") from error
    return datasets


def read_refined(config: TrainConfig) -> Mapping[str, Refinement] | None:
    """Return the stored refinements that the configuration names, by image.

    Raises ``SpecError`` where no expert would look at them.
    """
    if config.data.refined is None:
        return None
    if not declaring(config.model.spec, "reads_known_objects"):
        entries = default_registry().entries
        readers = [e.component.name for e in entries if "reads_known_objects" in e.component.capabilities]
        raise SpecError(
            f"data.refined={config.data.refined}: no part of the refiner reads stored objects. Give it some: "
            "--set model.spec.refiner.detector=NAME, and likewise for tagger and segmenter, where NAME is one of "
            f"{', '.join(dict.fromkeys(readers)) or 'no installed component'}."
        )
    return StoredRefinements(read_refinements(config.data.refined), config.data.refined)


def read_features(config: TrainConfig) -> StoredFeatures | None:
    """The stored features that the configuration names.

    Raises ``SpecError`` for those of another refiner, or that cannot follow crops.
    """
    if config.data.features is None:
        return None
    where = f"data.features={config.data.features}"
    found = StoredFeatures(config.data.features)
    resolved = resolve(config.model.spec)
    assert resolved.spec.refiner is not None
    found.check_made_by(resolved.spec.refiner.model_dump(mode="json"), where)
    fixed = [source for source, has_boxes in found.about["boxes"].items() if not has_boxes]
    if fixed and config.data.augmentation is not None:
        raise SpecError(
            f"{where}: the tokens of the {' and of the '.join(fixed)} do not say where they are, so that they cannot "
            "follow a crop: set data.augmentation=null."
        )
    return found
