"""The paper's training. Its numbers carry their place in it ("Lyrics", arXiv 2312.05278).

What the paper does not give (clipping, how often to save, the shares of the data sets) are this library's defaults.
Imports no torch.
"""

from __future__ import annotations

from lyrics.core.runs.config import (
    AugmentationSection,
    CheckpointSection,
    DataSection,
    DataSlot,
    LoggingSection,
    ModelSection,
    OptimizationSection,
    TrainConfig,
)
from lyrics.plugins.paper.presets import lyrics_13b


def _paper_optimization(steps: int, global_batch: int) -> OptimizationSection:
    """Section 4, "Implementation Detail"; both stages have one text for all but steps and batch."""
    return OptimizationSection(
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
    # Table 1, "Pre-training"; each needs its folder: data.sets.laion.options.root=FOLDER. "Filter out lowrelevant
    # samples" (section 4), by a measure that is not in the paper: LAION's own column, with the threshold of LAION-400M
    # (arXiv 2111.02114), and elsewhere what a matching head says of the pair.
    relevance = {"laion": {"similarity": 0.3}, "cc12m": {"itm": 0.5}, "cc3m": {"itm": 0.5}, "sbu": {"itm": 0.5}}
    return TrainConfig(
        stage="pretrain",
        out="runs/paper-stage1",
        # "MQ-Former continues training on the BLIP-2 first-stage pre-training breakpoints" (section 3.1)
        model=ModelSection(spec=lyrics_13b(), allow_random_start=False),
        data=DataSection(
            sets={name: DataSlot(use=name, at_least=kept) for name, kept in relevance.items()},
            # "augmented with random resized cropping and horizontal flipping" (section 4)
            augmentation=AugmentationSection(),
            workers=8,
        ),
        optimization=_paper_optimization(800_000, 512),  # "800k steps ... with a global batch size of 512" (section 4)
        checkpoint=CheckpointSection(every_steps=5000),
        logging=LoggingSection(every_steps=10),
    )


def paper_stage2() -> TrainConfig:
    """Vision-to-language generative learning as in the paper. Give ``model.start_from`` the run folder of stage 1."""
    # Table 1, "Instruction Tuning", in its order: "We first use a wide range of publicly available vision-language
    # datasets ... for multi-task learning" (section 4).
    tasks = [
        *("coco", "cc3m", "mmc4", "ai-challenger"),
        *("refcoco", "refcoco-plus", "refcocog", "grit", "vg"),
        *("vqav2", "gqa", "ok-vqa", "docvqa"),
        *("ai2d", "scienceqa", "textvqa"),
        *("chartqa", "dvqa"),
    ]
    # "Then, we introduce highquality vision-language annotation and instruction-response data to enhance the
    # instruction following and dialogue capabilities": Table 1's "Conv.". When is not in the paper; the last quarter
    # is taken here.
    dialogue = ["llava", "svit", "m3it", "llavar", "multiinstruct", "orca", "alpaca"]
    sets = {name: DataSlot(use=name) for name in tasks}
    sets |= {name: DataSlot(use=name, during=(0.75, 1.0)) for name in dialogue}
    return TrainConfig(
        stage="instruct",
        out="runs/paper-stage2",
        model=ModelSection(spec=lyrics_13b()),
        data=DataSection(
            sets=sets,
            augmentation=AugmentationSection(),  # as in stage 1 (section 4)
            workers=8,
        ),
        optimization=_paper_optimization(300_000, 64),  # "300k steps ... with a global batch size of 64" (section 4)
        checkpoint=CheckpointSection(every_steps=5000),
        logging=LoggingSection(every_steps=10),
    )
