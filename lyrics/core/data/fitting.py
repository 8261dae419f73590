"""A data set as one stage uses it: a sample that the stage has no use for is a bad sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lyrics.core.contracts import Dataset
from lyrics.core.data.conversation import converse
from lyrics.core.data.known import Stage
from lyrics.core.errors import SampleError
from lyrics.core.types import Sample

if TYPE_CHECKING:
    from PIL import Image


def check_fits(sample: Sample, stage: Stage) -> None:
    """Raise ``SampleError`` of kind ``record`` for a sample that cannot be trained on.

    Stage 1 needs an image. Stage 2 needs a question, and an answer to each; the test splits of some sets keep theirs.
    """
    if stage == "pretrain":
        if sample.image is None:
            raise SampleError(
                f"{sample.source}: stage 1 aligns images with text, and this sample has no image.", "record"
            )
        return
    turns = converse(sample, seed=0, position=0)
    if not turns:
        raise SampleError(f"{sample.source}: stage 2 trains on answers, and this sample has nothing to ask.", "record")
    if not all(turn.answer for turn in turns):
        raise SampleError(
            f"{sample.source}: stage 2 trains on answers, and a question of this sample has none.", "record"
        )


class Fitting:
    """Another data set, whose samples are checked for a stage. Keeps the contract of the kind ``dataset``."""

    def __init__(self, data: Dataset, stage: Stage) -> None:
        self.data, self.stage = data, stage

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        return getattr(self.data, "shard_sizes", None)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        check_fits(sample, self.stage)
        return sample

    def picture(self, sample: Sample) -> Image.Image:
        return self.data.picture(sample)
