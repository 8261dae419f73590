"""One stage-1 step: objectives declare streams, two packed passes run them, and each loss comes out as a sum and a count.

Pass 1 runs the streams of all objectives, shared ones once. Its similarities choose the hard negatives, and pass 2 runs those. Keys and
values of the frozen features are projected once for both.

Letters: B samples of this rank, N samples of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lyrics.core.streams import Features, ProjectedFeatures, Stream, StreamOutputs, merge
from lyrics.core.training.batch import PretrainBatch
from lyrics.core.training.distributed import gather_padded, rank, summed, world_size
from lyrics.core.training.negatives import NegativePairs, Negatives, Similarity, draw_negatives, negative_pairs


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss summed over ``count`` terms of this rank; the mean over all ranks is the sum of sums over the sum of counts."""

    sum: torch.Tensor
    count: int


@dataclass(frozen=True, eq=False)
class StepState:
    """What an objective may read when it computes its losses."""

    batch: PretrainBatch
    outputs: StreamOutputs
    token_logits: Callable[[torch.Tensor], torch.Tensor]
    similarity: Similarity | None
    pairs: NegativePairs | None


class Objective(Protocol):
    """An ``objective`` component: a module that owns its heads.

    Three more methods are optional. ``similarity(outputs, batch) -> Similarity`` makes it the one that chooses hard negatives (and its
    result is passed on in ``StepState``); ``negative_streams(batch, pairs) -> streams`` gives it a place in the second pass;
    ``accuracy(state) -> {name: (how many are right, of how many)}`` is what a held-out evaluation reports of it.
    """

    def streams(self, batch: PretrainBatch) -> Sequence[Stream]:
        """What the first pass must run."""
        ...

    def loss(self, state: StepState) -> Loss:
        """Sum and count over this rank's batch."""
        ...


def pretrain_losses(
    query_transformer: Any,
    objectives: Mapping[str, Any],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives | None = None,
) -> dict[str, Loss]:
    """All losses of one step on this rank; arguments as ``pretrain_state``."""
    state = pretrain_state(query_transformer, objectives, features, batch, negatives)
    return {name: objective.loss(state) for name, objective in objectives.items()}


def pretrain_state(
    query_transformer: Any,
    objectives: Mapping[str, Any],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives | None = None,
) -> StepState:
    """Both passes of one step on this rank: what the objectives compute their losses from.

    Args:
        query_transformer: has ``project``, ``token_logits`` and the forward call of ``lyrics.core.streams``.
        objectives: by name, in order.
        features: frozen features of this rank's B images.
        batch: texts of the same samples.
        negatives: pairs to use instead of drawing them.
    """
    device = features.image_tokens_BND.device
    memory: ProjectedFeatures = query_transformer.project(features)
    streams = merge([stream for objective in objectives.values() for stream in objective.streams(batch)])
    outputs: StreamOutputs = query_transformer(streams, memory)
    chooser = next((objective for objective in objectives.values() if hasattr(objective, "similarity")), None)
    similarity = None if chooser is None else chooser.similarity(outputs, batch)
    pairs = None
    matching = [objective for objective in objectives.values() if hasattr(objective, "negative_streams")]
    if matching:
        negatives = negatives or draw_negatives(batch, similarity, device)
        memory, image_number_N = with_remote_images(query_transformer, features, memory, negatives.image_B)
        pairs = negative_pairs(batch, negatives, image_number_N, device)
        second = merge([stream for objective in matching for stream in objective.negative_streams(batch, pairs)])
        if any(stream.num_rows for stream in second):
            outputs = outputs.joined(query_transformer([stream for stream in second if stream.num_rows], memory))
    return StepState(batch, outputs, query_transformer.token_logits, similarity, pairs)


def with_remote_images(
    query_transformer: Any, features: Features, memory: ProjectedFeatures, chosen_B: torch.Tensor
) -> tuple[ProjectedFeatures, torch.Tensor]:
    """Keys and values of this rank's images and of those that its negatives need from other ranks.

    Returns:
        The projected features, and for each of the N global samples its image's number in them (-1 where it is not among them).
    """
    size = features.num_images
    number_N = torch.full((size * world_size(),), -1, dtype=torch.int64)
    number_N[rank() * size : (rank() + 1) * size] = torch.arange(size)
    if world_size() == 1:
        return memory, number_N
    everyone = Features(
        gather_padded(features.image_tokens_BND),
        {name: (gather_padded(tokens), gather_padded(mask)) for name, (tokens, mask) in features.local.items()},
        None if features.image_mask_BN is None else gather_padded(features.image_mask_BN),
    )
    wanted = torch.unique(chosen_B[chosen_B >= 0])
    remote = wanted[number_N[wanted] < 0]
    number_N[remote] = torch.arange(len(remote)) + size
    rows = remote.to(features.image_tokens_BND.device)
    fetched = Features(
        everyone.image_tokens_BND[rows],
        {name: (tokens[rows], mask[rows]) for name, (tokens, mask) in everyone.local.items()},
        None if everyone.image_mask_BN is None else everyone.image_mask_BN[rows],
    )
    return memory.followed_by(query_transformer.project(fetched)), number_N


def total_loss(
    losses: Mapping[str, Loss], weights: Mapping[str, float] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss to call backward on, and the mean of each loss over all ranks.

    Averaging the gradients of the first over ranks (what data parallelism does) gives the gradient of the weighted sum of the global
    means. A loss without a single term anywhere is 0.
    """
    names = list(losses)
    device = next(iter(losses.values())).sum.device
    counts = summed(torch.tensor([losses[name].count for name in names], dtype=torch.float64, device=device)).clamp(
        min=1
    )
    sums = summed(torch.stack([losses[name].sum.detach().double() for name in names]))
    total = torch.zeros((), device=device)
    for name, count in zip(names, counts, strict=True):
        weight = 1.0 if weights is None else weights[name]
        total = total + losses[name].sum * (weight * world_size() / count).to(losses[name].sum.dtype)
    return total, dict(zip(names, (sums / counts).unbind(), strict=True))
