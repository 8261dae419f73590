"""What a forward pass of training returns: a loss for ``backward``, and the losses that it consists of, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.state import Loss


@dataclass
class TrainingOutput(ModelOutput):
    """The losses of a batch.

    A transformers ``ModelOutput``, so that ``output.loss`` and ``output["loss"]`` are the same.

    Args:
        loss: scalar for ``backward``: the weighted sum of ``losses``. Over several ranks it is this rank's share,
            scaled so that averaging gradients, as data parallelism does, gives the gradient of the global mean.
        losses: scalars without gradient by name: in stage 1 each objective's (``itc``, ``itm``, ``icg``, ``msp``), in
            stage 2 ``answer``. Each is a mean over the batches of all ranks, and 0 where it has no term.
        counts: int64 scalars by the same names: terms in this rank's batch (samples, pairs or tokens).
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    counts: dict[str, torch.Tensor] | None = None


def training_output(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> TrainingOutput:
    """Make the output of a forward pass from sums and counts; a loss counts once where ``weights`` name none."""
    loss, means = total_loss(losses, weights)
    return TrainingOutput(
        loss=loss,
        losses={name: mean.detach().to(loss.dtype) for name, mean in means.items()},
        counts={name: torch.tensor(one.count, device=loss.device) for name, one in losses.items()},
    )


def step_number(step: int | None, *, training: bool) -> int:
    """Return the number that fixes a stage-1 step's random draws (masks, negatives).

    ``None`` draws one from torch's generator in training, as dropout does, and is 0 in evaluation.
    """
    if step is not None:
        return step
    return int(torch.randint(2**31, ())) if training else 0
