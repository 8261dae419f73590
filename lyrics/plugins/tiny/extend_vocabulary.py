"""A trained language model with the words that the built-in tokenizer has learned since: rows of known tokens are
carried over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lyrics.core.errors import WeightsError
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.core.loading import build_model
from lyrics.plugins.tiny.presets import lyrics_tiny


def carry_over(checkpoint: str, folder: Path) -> list[str]:
    """Write a language model with today's built-in word tokenizer to ``folder``, in single precision.

    Its tensors are those of ``checkpoint``, but for the word embeddings: each known token keeps its row, wherever that
    is now, and a new one begins with random numbers of the mean and spread of the known ones, the same every time.
    Tokens that the tokenizer has no more are dropped.

    Args:
        checkpoint: a folder, or ``package:NAME/PATH``, of a language model of ``lyrics-tiny``, of whatever tokenizer.

    Returns:
        The new tokens.

    Raises:
        WeightsError: it is not there, does not fit ``lyrics-tiny``, or has fewer rows than there are tokens now.
    """
    alone = {
        "refiner": None,
        "language_model.options.adaptation": "full",
        "language_model.options.checkpoint": checkpoint,
    }
    language_model: Any = build_model(lyrics_tiny().with_overrides(alone)).language_model
    old = language_model.tokenizer
    known: dict[str, int] = old.get_vocab()
    special = [token for token in (old.pad_token, old.bos_token, old.eos_token) if token is not None]
    tokenizer = builtin_tokenizer("words", special)
    tokens: dict[str, int] = tokenizer.get_vocab()
    rows_VD = language_model.model.get_input_embeddings().weight
    if len(tokens) > len(rows_VD):
        raise WeightsError(
            f"{checkpoint}: its embeddings have {len(rows_VD)} rows, but there are {len(tokens)} tokens now."
        )
    old_VD = rows_VD.detach().clone()
    of_known_VD = old_VD[sorted(known.values())]
    noise_VD = torch.randn(old_VD.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows_VD.copy_(of_known_VD.mean(0) + of_known_VD.std(0) * noise_VD)
        for token, index in tokens.items():
            if token in known:
                rows_VD[index] = old_VD[known[token]]
    language_model.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sorted(tokens.keys() - known.keys())
