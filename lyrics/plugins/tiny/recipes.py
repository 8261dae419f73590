"""How ``lyrics-tiny`` is trained on drawn scenes. Imports no torch."""

from __future__ import annotations

from lyrics.core.runs.config import (
    CheckpointSection,
    DataSection,
    DataSlot,
    EvaluationSection,
    ModelSection,
    OptimizationSection,
    TrainConfig,
)
from lyrics.core.spec import Slot
from lyrics.plugins.tiny.presets import lyrics_tiny, lyrics_tiny_fine


def _on_scenes(task: str) -> EvaluationSection:
    return EvaluationSection(
        every_steps=500, sets={"scenes": Slot(use="scenes", options={"task": task, "split": "validation"})}
    )


def tiny_text() -> TrainConfig:
    """What ``lyrics-tiny``'s language model learns before it sees anything: to read scenes that are written down.

    Trains all of it.
    """
    alone = {
        "refiner": None,  # no part but the language model has anything to do
        "language_model.options.adaptation": "full",
        "language_model.options.checkpoint": None,
    }
    return TrainConfig(
        stage="instruct",
        out="runs/tiny-text",
        model=ModelSection(spec=lyrics_tiny().with_overrides(alone), weights="random"),
        data=DataSection(sets={"texts": DataSlot(use="scene-texts")}, augmentation=None),
        optimization=OptimizationSection(steps=1100, global_batch=8, learning_rate=6e-3, optimizer="muon"),
        checkpoint=CheckpointSection(every_steps=100),
    )


def tiny_stage1() -> TrainConfig:
    """Stage 1 of ``lyrics-tiny`` on the embedded scenes: runs on a laptop's CPU."""
    return TrainConfig(
        stage="pretrain",
        out="runs/tiny-stage1",
        model=ModelSection(spec=lyrics_tiny()),
        data=DataSection(
            sets={"scenes": DataSlot(use="scenes", options={"task": "caption"})},
            # A crop would make captions false that count things or say where they are.
            augmentation=None,
        ),
        optimization=OptimizationSection(steps=900, global_batch=32, learning_rate=2e-3, optimizer="muon"),
        checkpoint=CheckpointSection(every_steps=100),
        evaluation=_on_scenes("caption"),
    )


def tiny_fine_stage1() -> TrainConfig:
    """Stage 1 on fine scenes, both twins of a pair in every batch: what tells them apart is in their pixels and
    captions alone.
    """
    fine = {"task": "caption", "attributes": "fine"}
    return TrainConfig(
        stage="pretrain",
        out="runs/tiny-fine-stage1",
        model=ModelSection(spec=lyrics_tiny_fine()),
        data=DataSection(sets={"scenes": DataSlot(use="scenes", options=fine)}, augmentation=None, group=2),
        optimization=OptimizationSection(steps=2000, global_batch=32, learning_rate=2e-3, optimizer="muon"),
        checkpoint=CheckpointSection(every_steps=100),
        evaluation=EvaluationSection(
            every_steps=250, sets={"scenes": Slot(use="scenes", options={**fine, "split": "validation"})}
        ),
    )


def tiny_stage2() -> TrainConfig:
    """Stage 2 of ``lyrics-tiny`` on the embedded scenes. Give ``model.start_from`` the run folder of stage 1."""
    return TrainConfig(
        stage="instruct",
        out="runs/tiny-stage2",
        model=ModelSection(spec=lyrics_tiny()),
        data=DataSection(
            # Several turns about an image: looking at it costs as much as they do.
            sets={"scenes": DataSlot(use="scenes", options={"task": "conversation"})},
            augmentation=None,  # as in stage 1
            snap_iou=0.5,  # so few steps teach to copy a box, and not to mend it
        ),
        optimization=OptimizationSection(steps=1000, global_batch=16, learning_rate=1e-3),
        checkpoint=CheckpointSection(every_steps=200),
        evaluation=_on_scenes("mixed"),
    )


def tiny_fine_stage2() -> TrainConfig:
    """Stage 2 on fine scenes, without text for some images, so that soft tokens must answer.

    Give ``model.start_from``.
    """
    fine = {"task": "conversation", "attributes": "fine"}
    # Looks, which soft tokens alone tell, take the largest part.
    questions = (*("L",) * 12, *("G",) * 3, *("T",) * 3, *("LT",) * 2)
    return TrainConfig(
        stage="instruct",
        out="runs/tiny-fine-stage2",
        model=ModelSection(spec=lyrics_tiny_fine()),
        data=DataSection(
            sets={"scenes": DataSlot(use="scenes", options={**fine, "questions": questions})},
            augmentation=None,  # as in stage 1
            snap_iou=0.5,
            drop_text=0.3,
            drop_queries_text=0.5,
            group=2,
        ),
        optimization=OptimizationSection(steps=1200, global_batch=16, learning_rate=2e-3),
        checkpoint=CheckpointSection(every_steps=100),
        evaluation=EvaluationSection(
            every_steps=400, sets={"scenes": Slot(use="scenes", options={**fine, "task": "vqa", "split": "validation"})}
        ),
    )
