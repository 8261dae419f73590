"""What a stage-1 step hands to an objective, and what the objective gives back. B samples of this rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import NegativePairs, Similarity
from lyrics.core.stage1.streams import StreamOutputs


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss summed over ``count`` terms of this rank.

    The mean over all ranks is the sum of sums over the sum of counts.
    """

    sum: torch.Tensor
    count: int


@dataclass(frozen=True, eq=False)
class StepState:
    """What an objective may read when it computes its losses.

    Args:
        batch: texts of this rank's B samples.
        outputs: of both passes.
        token_logits: the query transformer's; raises ``ContractError`` where that reads no text.
        similarity: of the objective that chooses hard negatives (``ChoosesNegatives``); None without one.
        pairs: the hard negatives; None without an objective that asks for them (``WithNegatives``).
    """

    batch: PretrainBatch
    outputs: StreamOutputs
    token_logits: Callable[[torch.Tensor], torch.Tensor]
    similarity: Similarity | None
    pairs: NegativePairs | None
