"""Prompts as the embeddings that a language model reads: words through its table, pictures as their soft tokens.

Shapes: B prompts, L tokens (padded), P pictures, Q soft tokens of a picture, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from lyrics.core.contracts import LanguageModel
from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.stage1.state import Loss

#: A pass of fewer prompts would cost more than their padding.
_SMALLEST = 4
_SHORTEST = 0.8


@dataclass(frozen=True, eq=False)
class SoftPrompts:
    """A padded batch: embeddings [B,L,D], mask [B,L] (1 = read), and ids and targets [B,L] for the loss."""

    embeddings_BLD: torch.Tensor
    mask_BL: torch.Tensor
    ids_BL: torch.Tensor
    targets_BL: torch.Tensor


def groups_by_length(prompts: Sequence[TokenPrompt]) -> list[list[TokenPrompt]]:
    """The prompts, those together that are padded at little cost. Shortest first.

    A prompt of less than ``_SHORTEST`` of the longest of a group begins another, once the group has ``_SMALLEST``.
    """
    groups: list[list[TokenPrompt]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if not groups or (len(groups[-1]) >= _SMALLEST and len(prompt) < _SHORTEST * len(groups[-1][0])):
            groups.append([])
        groups[-1].append(prompt)
    return groups[::-1]


def embed(
    prompts: Sequence[TokenPrompt],
    soft_tokens_PQD: torch.Tensor,
    language_model: LanguageModel,
    side: Literal["left", "right"],
) -> SoftPrompts:
    """Pad on ``side`` and put each picture's soft tokens into its place.

    Every picture that a prompt names must be a row of ``soft_tokens_PQD``.
    """
    device, queries = soft_tokens_PQD.device, soft_tokens_PQD.shape[1]
    longest = max((len(prompt) for prompt in prompts), default=0)
    ids_BL = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BL = torch.zeros(len(prompts), longest, dtype=torch.long)
    targets_BL = torch.zeros(len(prompts), longest, dtype=torch.bool)
    where: list[int] = []
    which: list[int] = []
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt) if side == "left" else 0
        span = slice(start, start + len(prompt))
        ids_BL[row, span] = torch.tensor(prompt.ids, dtype=torch.long)
        targets_BL[row, span] = torch.tensor(prompt.targets, dtype=torch.bool)
        mask_BL[row, span] = 1
        for position, picture in prompt.slots:
            where.append(row * longest + start + position)
            which.append(picture)
    embeddings_BLD = language_model.embed(ids_BL.to(device))
    if where:
        places = (torch.tensor(where)[:, None] + torch.arange(queries)).flatten().to(device)
        values = soft_tokens_PQD[torch.tensor(which, device=device)].flatten(0, 1).to(embeddings_BLD.dtype)
        flat = embeddings_BLD.flatten(0, 1).index_copy(0, places, values)
        embeddings_BLD = flat.view(embeddings_BLD.shape)
    return SoftPrompts(embeddings_BLD, mask_BL.to(device), ids_BL, targets_BL)


def answer_loss(prompts: Sequence[TokenPrompt], soft_tokens_PQD: torch.Tensor, language_model: LanguageModel) -> Loss:
    """Cross-entropy of the prompts' answers and of what ends them, summed, with the number of their tokens (section 3.3)."""
    soft = embed(prompts, soft_tokens_PQD, language_model, "right")
    targets_BL = soft.targets_BL[:, 1:]
    labels = soft.ids_BL[:, 1:][targets_BL].to(soft_tokens_PQD.device)
    if not len(labels):
        # Still connected to the weights, so that every rank has the same gradients to average.
        return Loss(soft.embeddings_BLD.sum() * 0 + soft_tokens_PQD.sum() * 0, 0)
    logits_BLV = language_model(soft.embeddings_BLD, soft.mask_BL)
    logits = logits_BLV[:, :-1][targets_BL.to(soft_tokens_PQD.device)].float()
    return Loss(F.cross_entropy(logits, labels, reduction="sum"), len(labels))
