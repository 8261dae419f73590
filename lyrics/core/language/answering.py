"""From the prompts of a batch to the ids of their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lyrics.core.contracts import LanguageModel, ResumesPrompts, ScoresItsTokens
from lyrics.core.language.generation import Decoding, check_takes_options
from lyrics.core.language.past import Past
from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.language.soft_prompts import SoftPrompts


def answer_ids(
    prompts: Sequence[TokenPrompt],
    soft: SoftPrompts,
    how: Decoding,
    name: str,
    language_model: LanguageModel,
    on_token: Callable[[int], None] | None = None,
    past: Past | None = None,
) -> tuple[torch.Tensor, list[list[float]]]:
    """Return the ids that the language model answers with, and how probable they were.

    [B, at most ``how.max_new_tokens``].

    The latter are the log-probabilities of each answer's tokens; the lists are empty where the language model does not
    say them.

    Args:
        prompts: as many as ``soft`` has rows, which are padded on the left.
        soft: the prompts as embeddings.
        how: how answers are written.
        name: what the specification calls the language model, for messages.
        language_model: what answers.
        on_token: called with each id as it is chosen; of one prompt.
        past: of one conversation; a language model that can reads only what is new in it.

    Raises:
        ContractError: the language model takes no generation options, and ``how`` has some.
    """
    more: dict[str, Any] = {} if on_token is None else {"on_token": on_token}
    if how.config is not None:
        check_takes_options(language_model.generate, name)
        more["generation_config"] = how.config
    more["max_new_tokens"] = how.max_new_tokens
    resumes = past is not None and len(prompts) == 1 and isinstance(language_model, ResumesPrompts)
    if isinstance(language_model, ScoresItsTokens):
        if resumes:
            more |= {"keys": prompts[0].keys, "past": past}
        ids_BL, log_probs_BL = language_model.generate_scored(soft.embeddings_BLD, soft.mask_BL, **more)
        return ids_BL, [[value for value in row if not math.isnan(value)] for row in log_probs_BL.tolist()]
    unsaid: list[list[float]] = [[] for _ in prompts]
    if resumes and past is not None and isinstance(language_model, ResumesPrompts):
        return language_model.resume(soft.embeddings_BLD, prompts[0].keys, past, **more), unsaid
    return language_model.generate(soft.embeddings_BLD, soft.mask_BL, **more), unsaid
