"""One stage-1 step.

Objectives declare streams, two packed passes run them, and each loss comes out as a sum and a count.

Pass 1 runs the streams of all objectives, shared ones once. Its similarities choose the hard negatives, and pass 2 runs
those. Keys and values of the frozen features are projected once for both.

Letters: B samples of this rank, N samples of all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lyrics.core.contracts import (
    ChoosesNegatives,
    CountsCorrect,
    Objective,
    Planned,
    PlansAhead,
    Projected,
    QueryTransformer,
    WithNegatives,
    reader_of,
)
from lyrics.core.errors import ContractError
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.distributed import fetch_rows, rank, world_size
from lyrics.core.stage1.negatives import NegativePairs, Negatives, draw_negatives, negative_pairs
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Features, Stream, merge
from lyrics.core.stage1.texts import first_streams
from lyrics.kernels.host_work import host_work


def pretrain_losses(
    query_transformer: QueryTransformer,
    objectives: Mapping[str, Objective],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives | None = None,
    planned: Planned | None = None,
) -> dict[str, Loss]:
    """All losses of one step on this rank; arguments as ``pretrain_state``."""
    state = pretrain_state(query_transformer, objectives, features, batch, negatives, planned)
    return {name: objective.loss(state) for name, objective in objectives.items()}


def pretrain_state(
    query_transformer: QueryTransformer,
    objectives: Mapping[str, Objective],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives | None = None,
    planned: Planned | None = None,
) -> StepState:
    """Both passes of one step on this rank: what the objectives compute their losses from.

    Args:
        query_transformer: runs the streams.
        objectives: by name, in order.
        features: frozen features of this rank's B images.
        batch: texts of the same samples.
        negatives: pairs to use instead of drawing them.
        planned: the first pass as the query transformer's planner laid it out for these objectives and this batch
            (``lyrics.core.stage1.texts``); None: it is laid out now.
    """
    device = features.image_tokens_BND.device
    memory = query_transformer.project(features)
    outputs = None
    if planned is not None and isinstance(query_transformer, PlansAhead):
        outputs = query_transformer.run_planned(planned, memory)
    if outputs is None:
        outputs = query_transformer(first_streams(objectives, batch), memory)
    chooser = next((objective for objective in objectives.values() if isinstance(objective, ChoosesNegatives)), None)
    similarity = None if chooser is None else chooser.similarity(outputs, batch)
    pairs = None
    matching = [objective for objective in objectives.values() if isinstance(objective, WithNegatives)]
    if matching:
        negatives = negatives or draw_negatives(batch, similarity, device)
        memory, image_number_N = with_remote_images(query_transformer, features, memory, negatives.image_B)
        pairs = negative_pairs(batch, negatives, image_number_N, device)
        second = _negative_streams(matching, batch, pairs)
        if any(stream.num_rows for stream in second):
            outputs = outputs.joined(query_transformer([stream for stream in second if stream.num_rows], memory))
    reader = reader_of(query_transformer)
    return StepState(batch, outputs, _no_logits if reader is None else reader.token_logits, similarity, pairs)


@host_work("lay out")
def _negative_streams(objectives: Sequence[WithNegatives], batch: PretrainBatch, pairs: NegativePairs) -> list[Stream]:
    return merge([stream for objective in objectives for stream in objective.negative_streams(batch, pairs)])


def _no_logits(hidden_nD: torch.Tensor) -> torch.Tensor:
    raise ContractError(
        "an objective asks for logits over a vocabulary, and this query transformer reads no text; such an objective "
        "declares in its options which segments it needs (needs_segments)."
    )


@host_work("negatives")
def with_remote_images(
    query_transformer: QueryTransformer, features: Features, memory: Projected, chosen_B: torch.Tensor
) -> tuple[Projected, torch.Tensor]:
    """Keys and values of this rank's images and of those that its negatives need from other ranks.

    Returns:
        The projected features, and for each of the N global samples its image's number in them (-1 where it is not
        among them).
    """
    size = features.num_images
    number_N = torch.full((size * world_size(),), -1, dtype=torch.int64)
    number_N[rank() * size : (rank() + 1) * size] = torch.arange(size)
    if world_size() == 1:
        return memory, number_N
    wanted = torch.unique(chosen_B[chosen_B >= 0])
    remote = wanted[number_N[wanted] < 0]
    number_N[remote] = torch.arange(len(remote)) + size
    masks = [] if features.image_mask_BN is None else [features.image_mask_BN]
    tensors = [features.image_tokens_BND, *(one for pair in features.local.values() for one in pair), *masks]
    image_tokens, *rest = fetch_rows(tensors, remote)
    pairs = zip(rest[::2], rest[1::2], strict=False)  # a mask of the image tokens is left over
    fetched = Features(image_tokens, dict(zip(features.local, pairs, strict=False)), rest[-1] if masks else None)
    return memory.followed_by(query_transformer.project(fetched)), number_N


def pretrain_accuracy(
    query_transformer: QueryTransformer, objectives: Mapping[str, Objective], features: Features, batch: PretrainBatch
) -> dict[str, tuple[int, int]]:
    """Return what the objectives get right on a batch: name -> (how many, of how many).

    What is retrieved by the whole text, boxes included, is also retrieved by the caption alone.
    """
    state = pretrain_state(query_transformer, objectives, features, batch)
    found: dict[str, tuple[int, int]] = {}
    for name, objective in objectives.items():
        if not isinstance(objective, CountsCorrect):
            continue
        found |= objective.accuracy(state)
        if isinstance(objective, ChoosesNegatives):
            alone = replace(batch, spatial=Spatial.from_objects([[] for _ in range(len(batch))]))
            counted = objective.accuracy(pretrain_state(query_transformer, {name: objective}, features, alone))
            found |= {f"{what}, captions alone": both for what, both in counted.items()}
    return found
