"""Whether a causal language model reads several prompts in one row as if each stood alone."""

from __future__ import annotations

from typing import Any

import torch

#: Of the largest logit; a prompt that sees its neighbor differs by far more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_OF_HALF = 5e-2


@torch.no_grad()
def packs(language_model: Any, embeddings: torch.Tensor) -> bool:
    """Return whether seven tokens as two prompts in a row have the logits that the two have alone.

    ``embeddings`` are the language model's, [vocabulary,D].
    Families differ: attention is masked by the positions, convolutions and recurrent states are not.
    """
    if embeddings.is_meta:
        return False
    training = language_model.training
    language_model.eval()
    try:
        ids_L = torch.arange(7, device=embeddings.device) * 13 % len(embeddings)
        row_1LD = language_model.embed(ids_L[None])
        alone = [
            language_model(part_1LD, torch.ones(part_1LD.shape[:2], dtype=torch.long, device=embeddings.device))
            for part_1LD in (row_1LD[:, :3], row_1LD[:, 3:])
        ]
        positions_1L = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=embeddings.device)
        wanted_1LV, found_1LV = torch.cat(alone, dim=1), language_model(row_1LD, None, positions_1L)
    finally:
        language_model.train(training)
    error, largest = (found_1LV - wanted_1LV).abs().max(), wanted_1LV.abs().max()
    return bool(error <= _TOLERANCE.get(embeddings.dtype, _OF_HALF) * largest)
