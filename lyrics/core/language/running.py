"""Answers that are written together, each from the token at which its question came to the token at which it ends.

Every answer is the one that its prompt would get alone: decoding is greedy, or samples are drawn with a generator of
the answer's own. Shapes: R rows, B rows that are new, L prompt tokens, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from lyrics.core.contracts import RunningPrompts
from lyrics.core.errors import LyricsError
from lyrics.core.finite import refuse
from lyrics.core.language.generation import Decoding
from lyrics.core.language.soft_prompts import SoftPrompts

if TYPE_CHECKING:
    from transformers import LogitsProcessor

#: What transformers' ``generate`` does where nothing is said.
_UNLESS_GIVEN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
#: Options of a ``GenerationConfig`` that are more than a choice from one distribution at a time.
_WHOLE = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "length_penalty", "early_stopping")


def can_run(how: Decoding) -> bool:
    """Whether answers can be decoded this way beside others: greedily, or sampled without beams and penalties."""
    config = how.config
    if config is None:
        return True
    given = [name for name in _WHOLE if getattr(config, name, None) not in (None, False)]
    return not given and (config.num_beams or 1) == 1 and config.eos_token_id is None


class Writing:
    """One answer as it is written.

    Args:
        how: how it is decoded; one for which ``can_run``.

    Attributes:
        ids: its tokens so far, with the one that ends it.
        log_probs: natural logarithms of their probabilities, before temperature and cuts.
        end: why it ended: ``stop`` (a token that ends answers), ``length`` (``max_new_tokens``); None while it is
            written. Whoever sets it ends the answer.
        error: what makes the rest of it impossible.
    """

    def __init__(self, how: Decoding) -> None:
        self.how = how
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.end: Literal["stop", "length"] | None = None
        self.error: LyricsError | None = None
        self._generator: torch.Generator | None = None
        self._warpers: list[LogitsProcessor] = []
        if how.config is not None and how.config.do_sample:
            self._warpers = _warpers(how)

    @property
    def over(self) -> bool:
        return self.end is not None or self.error is not None

    def choose(self, logits_V: torch.Tensor, best: int) -> int:
        """The next token's id: ``best``, the arg max, or a sample."""
        if self.how.config is None or not self.how.config.do_sample:
            return best
        if self._generator is None:
            assert self.how.seed is not None, "decoding() gives samples a seed"
            self._generator = torch.Generator(logits_V.device).manual_seed(self.how.seed)
        scores_1V, none_1L = logits_V[None].float(), torch.zeros(1, 0, dtype=torch.long, device=logits_V.device)
        for warper in self._warpers:
            scores_1V = warper(none_1L, scores_1V)  # type: ignore[arg-type, assignment]
        return int(torch.multinomial(scores_1V.softmax(dim=-1), 1, generator=self._generator))


class RunningAnswers:
    """A running batch of answers.

    Args:
        prompts: the language model's running batch, without rows.
        ends: ids of the tokens that end an answer.
    """

    def __init__(self, prompts: RunningPrompts, ends: Sequence[int]) -> None:
        self.prompts, self.ends = prompts, frozenset(ends)
        self.rows: list[Writing] = []
        self._logits_RV: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def join(self, soft: SoftPrompts, answers: Sequence[Writing]) -> None:
        """Begin these answers to left-padded prompts, beside those that are being written."""
        logits_BV = self.prompts.join(soft.embeddings_BLD, soft.mask_BL)
        self._logits_RV = logits_BV if self._logits_RV is None else torch.cat([self._logits_RV, logits_BV])
        self.rows += answers

    @torch.no_grad()
    def step(self) -> None:
        """Write one token of every answer. Those that are over have left before it returns.

        A row whose logits are not finite gets a ``NotFiniteError``, and the others go on. If anything is raised, all
        rows are lost, and the batch is empty.
        """
        if self._logits_RV is None:
            return
        rows, logits_RV = self.rows, self._logits_RV.float()
        self.rows, self._logits_RV = [], None
        try:
            log_probs_RV = logits_RV.log_softmax(dim=-1)
            best = logits_RV.argmax(dim=-1).tolist()
            bad = (logits_RV.isnan() | logits_RV.isposinf()).any(dim=-1).tolist()
            for row, writing in enumerate(rows):
                if writing.over:
                    continue
                if bad[row]:
                    writing.error = refuse("language_model (logits)")
                    continue
                chosen = writing.choose(logits_RV[row], best[row])
                writing.ids.append(chosen)
                writing.log_probs.append(float(log_probs_RV[row, chosen]))
                if chosen in self.ends:
                    writing.end = "stop"
                elif len(writing.ids) >= writing.how.max_new_tokens:
                    writing.end = "length"
            left = [row for row, writing in enumerate(rows) if not writing.over]
            if len(left) < len(rows):
                self.prompts.keep(left)
            if left:
                ids_R = torch.tensor([rows[row].ids[-1] for row in left], device=logits_RV.device)
                self._logits_RV = self.prompts.read(ids_R)
        except BaseException:
            self.prompts.keep(())
            raise
        self.rows = [rows[row] for row in left]


def _warpers(how: Decoding) -> list[LogitsProcessor]:
    """What ``generate`` of transformers does to a distribution before it draws, in its order and with its defaults."""
    from transformers import (
        LogitsProcessor,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    config, found = how.config, list[LogitsProcessor]()
    assert config is not None

    def of(name: str) -> float | None:
        value: float | None = getattr(config, name)
        return _UNLESS_GIVEN.get(name) if value is None else value

    if (temperature := of("temperature")) not in (None, 1.0):
        found.append(TemperatureLogitsWarper(float(temperature)))  # type: ignore[arg-type]
    if top_k := of("top_k"):
        found.append(TopKLogitsWarper(int(top_k)))
    if (top_p := of("top_p")) is not None and top_p < 1:
        found.append(TopPLogitsWarper(float(top_p)))
    if (min_p := of("min_p")) is not None:
        found.append(MinPLogitsWarper(float(min_p)))
    return found
