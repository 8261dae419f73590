"""Prompts as the embeddings that a language model reads: words through its table, images as their soft tokens.

Shapes: B prompts, L tokens (padded), P images, Q soft tokens of an image, D width of the embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F

from lyrics.core.contracts import LanguageModel, PacksPrompts
from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.stage1.state import Loss

#: A pass of fewer prompts would cost more than their padding.
_SMALLEST = 4
_SHORTEST = 0.8
#: Of packed rows, how many go through the language model at once on a CPU, whose caches hold no more (measured).
_ROWS_ON_CPU = 2


@dataclass(frozen=True, eq=False)
class SoftPrompts:
    """A batch of prompts as a language model reads them.

    Embeddings [B,L,D], mask [B,L] (1 = read), ids and targets [B,L] for the loss, and each place's position in its
    prompt.
    """

    embeddings_BLD: torch.Tensor
    mask_BL: torch.Tensor
    ids_BL: torch.Tensor
    targets_BL: torch.Tensor
    positions_BL: torch.Tensor


def groups_by_length(prompts: Sequence[TokenPrompt]) -> list[list[TokenPrompt]]:
    """Return the prompts, those together that are padded at little cost. Shortest first.

    A prompt of less than ``_SHORTEST`` of the longest of a group begins another, once the group has ``_SMALLEST``.
    """
    groups: list[list[TokenPrompt]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if not groups or (len(groups[-1]) >= _SMALLEST and len(prompt) < _SHORTEST * len(groups[-1][0])):
            groups.append([])
        groups[-1].append(prompt)
    return groups[::-1]


def rows_of(prompts: Sequence[TokenPrompt]) -> list[list[TokenPrompt]]:
    """Return the prompts in as few rows as are needed, none longer than the longest prompt.

    The longest come first, each where it first fits.
    """
    rows: list[list[TokenPrompt]] = []
    room: list[int] = []
    ordered = sorted(prompts, key=len, reverse=True)
    for prompt in ordered:
        row = next((number for number, left in enumerate(room) if left >= len(prompt)), None)
        if row is None:
            rows.append([])
            room.append(len(ordered[0]))
            row = len(rows) - 1
        rows[row].append(prompt)
        room[row] -= len(prompt)
    return rows


def embed(
    prompts: Sequence[TokenPrompt],
    soft_tokens_PQD: torch.Tensor,
    language_model: LanguageModel,
    side: Literal["left", "right"],
) -> SoftPrompts:
    """Pad on ``side`` and put each image's soft tokens into its place.

    Every image that a prompt names must be a row of ``soft_tokens_PQD``.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    starts = [longest - len(prompt) if side == "left" else 0 for prompt in prompts]
    placed = [[(start, prompt)] for start, prompt in zip(starts, prompts, strict=True)]
    return _embedded(placed, longest, soft_tokens_PQD, language_model)


def embed_packed(
    rows: Sequence[Sequence[TokenPrompt]], soft_tokens_PQD: torch.Tensor, language_model: LanguageModel
) -> SoftPrompts:
    """As ``embed``, with several prompts in a row.

    ``positions_BL`` count each from 0, and the rest of a row as one more.
    """
    placed = []
    for row in rows:
        ends = list(itertools.accumulate(len(prompt) for prompt in row))
        placed.append([(end - len(prompt), prompt) for end, prompt in zip(ends, row, strict=True)])
    longest = max((sum(len(prompt) for prompt in row) for row in rows), default=0)
    soft = _embedded(placed, longest, soft_tokens_PQD, language_model)
    # Nothing in its prompt predicts the first token; in its row another prompt's last one would.
    return replace(soft, targets_BL=soft.targets_BL & (soft.positions_BL != 0).cpu())


def _embedded(
    placed: Sequence[Sequence[tuple[int, TokenPrompt]]],
    length: int,
    soft_tokens_PQD: torch.Tensor,
    language_model: LanguageModel,
) -> SoftPrompts:
    """Return rows of ``length`` places with prompts that begin where it is said."""
    device, queries = soft_tokens_PQD.device, soft_tokens_PQD.shape[1]
    ids_BL = torch.zeros(len(placed), length, dtype=torch.long)
    mask_BL = torch.zeros(len(placed), length, dtype=torch.long)
    targets_BL = torch.zeros(len(placed), length, dtype=torch.bool)
    positions_BL = torch.zeros(len(placed), length, dtype=torch.long)
    where: list[int] = []
    which: list[int] = []
    for row, prompts in enumerate(placed):
        end = 0
        for start, prompt in prompts:
            end = start + len(prompt)
            ids_BL[row, start:end] = torch.tensor(prompt.ids, dtype=torch.long)
            targets_BL[row, start:end] = torch.tensor(prompt.targets, dtype=torch.bool)
            mask_BL[row, start:end] = 1
            positions_BL[row, start:end] = torch.arange(len(prompt))
            for position, picture in prompt.slots:
                where.append(row * length + start + position)
                which.append(picture)
        positions_BL[row, end:] = torch.arange(length - end)
    embeddings_BLD = language_model.embed(ids_BL.to(device))
    if where:
        places = (torch.tensor(where)[:, None] + torch.arange(queries)).flatten().to(device)
        values = soft_tokens_PQD[torch.tensor(which, device=device)].flatten(0, 1).to(embeddings_BLD.dtype)
        flat = embeddings_BLD.flatten(0, 1).index_copy(0, places, values)
        embeddings_BLD = flat.view(embeddings_BLD.shape)
    return SoftPrompts(embeddings_BLD, mask_BL.to(device), ids_BL, targets_BL, positions_BL.to(device))


def answer_losses(
    prompts: Sequence[TokenPrompt],
    soft_tokens_PQD: torch.Tensor,
    language_model: LanguageModel,
    *,
    one_pass: bool = False,
) -> list[Loss]:
    """Return the cross-entropy of the prompts' answers and of what ends them (section 3.3).

    It may take one or several passes of the language model.

    A language model that ``packs`` reads them without padding; any other reads those of like length together, unless
    everything is to be ``one_pass``. The sum of the losses is the same.
    """
    if isinstance(language_model, PacksPrompts) and language_model.packs:
        rows = rows_of(prompts)
        few = _ROWS_ON_CPU if soft_tokens_PQD.device.type == "cpu" and not one_pass else max(1, len(rows))
        passes = [rows[start : start + few] for start in range(0, len(rows), few)] or [rows]
        return [_packed_loss(some, soft_tokens_PQD, language_model) for some in passes]
    groups = [list(prompts)] if one_pass or not prompts else groups_by_length(prompts)
    return [answer_loss(group, soft_tokens_PQD, language_model) for group in groups]


def answer_loss(prompts: Sequence[TokenPrompt], soft_tokens_PQD: torch.Tensor, language_model: LanguageModel) -> Loss:
    """Return the cross-entropy of the prompts' answers and of what ends them (section 3.3).

    It is a sum, and beside it the number of their tokens.
    """
    soft = embed(prompts, soft_tokens_PQD, language_model, "right")
    return _loss(soft, soft_tokens_PQD, lambda: language_model(soft.embeddings_BLD, soft.mask_BL))


def _packed_loss(
    rows: Sequence[Sequence[TokenPrompt]], soft_tokens_PQD: torch.Tensor, language_model: PacksPrompts
) -> Loss:
    soft = embed_packed(rows, soft_tokens_PQD, cast(LanguageModel, language_model))
    return _loss(soft, soft_tokens_PQD, lambda: language_model(soft.embeddings_BLD, None, soft.positions_BL))


def _loss(soft: SoftPrompts, soft_tokens_PQD: torch.Tensor, read: Callable[[], torch.Tensor]) -> Loss:
    targets_BL = soft.targets_BL[:, 1:]
    labels = soft.ids_BL[:, 1:][targets_BL].to(soft_tokens_PQD.device)
    if not len(labels):
        # Still connected to the weights, so that every rank has the same gradients to average.
        return Loss(soft.embeddings_BLD.sum() * 0 + soft_tokens_PQD.sum() * 0, 0)
    logits = read()[:, :-1][targets_BL.to(soft_tokens_PQD.device)].float()
    return Loss(F.cross_entropy(logits, labels, reduction="sum"), len(labels))
