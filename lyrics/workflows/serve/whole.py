"""Answers of a language model that cannot go on with prompts that came at different times: in whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from lyrics.core.contracts import LanguageModel
from lyrics.core.language.answering import answer_ids
from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.language.running import Writing
from lyrics.core.language.soft_prompts import SoftPrompts, embed


def embed_together(
    prompts: Sequence[TokenPrompt], soft_tokens: Sequence[torch.Tensor], language_model: LanguageModel
) -> tuple[list[TokenPrompt], SoftPrompts]:
    """Prompts with soft tokens [P,Q,D] of their own as one batch, padded on the left, in which images count from 0
    over all of them.
    """
    numbered, first = [], 0
    for prompt, own in zip(prompts, soft_tokens, strict=True):
        slots = tuple((place, picture + first) for place, picture in prompt.slots)
        numbered.append(replace(prompt, slots=slots))
        first += len(own)
    return numbered, embed(numbered, torch.cat(list(soft_tokens)), language_model, "left")


class _OverError(Exception):
    """Somebody has ended the only answer that is being written."""


class WholeAnswers:
    """As ``RunningAnswers``, but each step writes whole answers, and what comes meanwhile waits for its end.

    Args:
        language_model: keeps the contract of its kind.
        name: what the specification calls it, for messages.
        watch: called after each token of an answer that is written alone; may end it.
    """

    def __init__(self, language_model: LanguageModel, name: str, watch: Callable[[Writing], None]) -> None:
        self.language_model, self.name, self.watch = language_model, name, watch
        self.waiting: list[tuple[TokenPrompt, torch.Tensor, Writing, bool]] = []

    def __len__(self) -> int:
        return len(self.waiting)

    def join(self, prompt: TokenPrompt, soft_tokens_PQD: torch.Tensor, writing: Writing, *, alone: bool) -> None:
        """Have this written soon. ``alone``: by itself, so that it can be followed."""
        self.waiting.append((prompt, soft_tokens_PQD, writing, alone))

    @torch.no_grad()
    def step(self) -> None:
        """Write the answer that waits longest, with all that wait and can share its batch.

        If anything is raised, these are lost, and the others wait on.
        """
        _, _, first, alone = self.waiting[0]
        if first.over:
            del self.waiting[0]
            return
        if alone or first.how.config is not None:
            self._write_alone(*self.waiting.pop(0)[:3])
            return
        same = [one for one in self.waiting if one[2].how == first.how and not one[3] and not one[2].over]
        taken = {id(writing) for _, _, writing, _ in same}
        self.waiting = [one for one in self.waiting if id(one[2]) not in taken]
        prompts, soft = embed_together([one[0] for one in same], [one[1] for one in same], self.language_model)
        ids_BL, log_probs = answer_ids(prompts, soft, first.how, self.name, self.language_model)
        for (_, _, writing, _), ids, own in zip(same, ids_BL.tolist(), log_probs, strict=True):
            self._note(writing, ids, own)

    def _write_alone(self, prompt: TokenPrompt, soft_tokens_PQD: torch.Tensor, writing: Writing) -> None:
        def on_token(token: int) -> None:
            writing.ids.append(token)
            self.watch(writing)
            if writing.over:
                raise _OverError

        prompts, soft = embed_together([prompt], [soft_tokens_PQD], self.language_model)
        try:
            with writing.how.drawing(soft_tokens_PQD.device):
                ids_1L, log_probs = answer_ids(prompts, soft, writing.how, self.name, self.language_model, on_token)
        except _OverError:
            return
        self._note(writing, ids_1L[0].tolist(), log_probs[0])

    def _note(self, writing: Writing, ids: list[int], log_probs: list[float]) -> None:
        """Behind the end of an answer stands padding."""
        end = self.language_model.tokenizer.eos_token_id
        if log_probs:
            ids = ids[: len(log_probs)]
        elif end in ids:
            ids = ids[: ids.index(end) + 1]
        writing.ids, writing.log_probs = ids, log_probs
        cut = len(ids) >= writing.how.max_new_tokens and ids[-1] != end
        writing.end = "length" if cut else "stop"
