"""Configurations that ship with the library. The paper's numbers carry their place in it ("Lyrics", arXiv 2312.05278).

What the paper does not give (clipping, how often to save, the shares of the data sets) are this library's defaults. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lyrics.core.presets import lyrics_13b, lyrics_tiny
from lyrics.core.spec import Slot
from lyrics.core.training.config import (
    AugmentationSection,
    CheckpointSection,
    DataSection,
    DataSlot,
    EvaluationSection,
    LoggingSection,
    ModelSection,
    OptimisationSection,
    TrainConfig,
)


def _paper_optimisation(steps: int, global_batch: int) -> OptimisationSection:
    """Section 4, "Implementation Detail"; both stages have one text for all but steps and batch."""
    return OptimisationSection(
        steps=steps,
        global_batch=global_batch,
        learning_rate=1e-4,  # "a peak learning rate of 1e-4"
        betas=(0.9, 0.98),  # "AdamW optimizer with beta_1 = 0.9, beta_1 = 0.98", the second a misprint for beta_2
        weight_decay=0.05,  # "a weight decay of 0.05"
        warmup_share=0.15,  # "a linear warmup ratio of 15%"
        precision="bf16",  # not in the paper
        frozen_precision="bf16",  # likewise
    )


def paper_stage1() -> TrainConfig:
    """Vision-language representation alignment as in the paper, on 16 A100."""
    return TrainConfig(
        stage="pretrain",
        out="runs/paper-stage1",
        model=ModelSection(spec=lyrics_13b()),
        data=DataSection(
            # Table 1, "Pre-training"; each needs its folder: data.sets.laion.options.root=FOLDER.
            sets={name: DataSlot(use=name) for name in ("laion", "cc12m", "cc3m", "sbu")},
            # "augmented with random resized cropping and horizontal flipping" (section 4)
            augmentation=AugmentationSection(),
            workers=8,
        ),
        optimisation=_paper_optimisation(800_000, 512),  # "800k steps ... with a global batch size of 512" (section 4)
        checkpoint=CheckpointSection(every_steps=5000),
        logging=LoggingSection(every_steps=10),
    )


def paper_stage2() -> TrainConfig:
    """Vision-to-language generative learning as in the paper. Give ``model.start_from`` the run folder of stage 1."""
    # Table 1, "Instruction Tuning", in its order.
    sets = [
        *("coco", "cc3m", "mmc4", "ai-challenger"),
        *("refcoco", "refcoco-plus", "refcocog", "grit", "vg"),
        *("vqav2", "gqa", "ok-vqa", "docvqa"),
        *("ai2d", "scienceqa", "textvqa"),
        *("chartqa", "dvqa"),
        *("llava", "svit", "m3it", "llavar", "multiinstruct", "orca", "alpaca"),
    ]
    return TrainConfig(
        stage="instruct",
        out="runs/paper-stage2",
        model=ModelSection(spec=lyrics_13b()),
        data=DataSection(
            sets={name: DataSlot(use=name) for name in sets},
            augmentation=AugmentationSection(),  # as in stage 1 (section 4)
            workers=8,
        ),
        optimisation=_paper_optimisation(300_000, 64),  # "300k steps ... with a global batch size of 64" (section 4)
        checkpoint=CheckpointSection(every_steps=5000),
        logging=LoggingSection(every_steps=10),
    )


def _on_scenes(task: str) -> EvaluationSection:
    return EvaluationSection(
        every_steps=500, sets={"scenes": Slot(use="scenes", options={"task": task, "split": "validation"})}
    )


def tiny_text() -> TrainConfig:
    """What ``lyrics-tiny``'s language model learns before it sees anything: to read scenes that are written down. Trains all of it."""
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
        optimisation=OptimisationSection(steps=1100, global_batch=8, learning_rate=6e-3, optimizer="muon"),
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
        optimisation=OptimisationSection(steps=900, global_batch=32, learning_rate=2e-3, optimizer="muon"),
        checkpoint=CheckpointSection(every_steps=100),
        evaluation=_on_scenes("caption"),
    )


def tiny_stage2() -> TrainConfig:
    """Stage 2 of ``lyrics-tiny`` on the embedded scenes. Give ``model.start_from`` the run folder of stage 1."""
    return TrainConfig(
        stage="instruct",
        out="runs/tiny-stage2",
        model=ModelSection(spec=lyrics_tiny()),
        data=DataSection(
            # Several turns about a picture: looking at it costs as much as they do.
            sets={"scenes": DataSlot(use="scenes", options={"task": "conversation"})},
            augmentation=None,  # as in stage 1
            snap_iou=0.5,  # so few steps teach to copy a box, and not to mend it
        ),
        optimisation=OptimisationSection(steps=1000, global_batch=16, learning_rate=1e-3),
        checkpoint=CheckpointSection(every_steps=200),
        evaluation=_on_scenes("mixed"),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    "paper-stage1": paper_stage1,
    "paper-stage2": paper_stage2,
    "tiny-text": tiny_text,
    "tiny-stage1": tiny_stage1,
    "tiny-stage2": tiny_stage2,
}
