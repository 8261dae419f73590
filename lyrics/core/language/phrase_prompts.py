"""Phrases to prompts and back: which tokens of which prompt are which phrase.

A prompt is ``[CLS] a . b c . d . [SEP]``. Grounding DINO lets the tokens between two delimiters see each other and
nothing else, so a phrase is what stands between two full stops. Prompts are put together from token ids, phrase by
phrase: BERT's pieces never cross a full stop, hence the ids are those of the joined text, and every phrase's place is
known without searching for it.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lyrics.core.errors import WeightsError
from lyrics.core.language.prompts import encode_texts
from lyrics.core.language.tokenizers import byte_tokenizer

#: Ids of [CLS], [SEP], "." and "?" in the vocabulary of bert-base-uncased, which transformers takes for granted.
BERT_DELIMITERS = (101, 102, 1012, 1029)


@dataclass(frozen=True)
class Prompt:
    """One prompt, and where its phrases are.

    Args:
        input_ids: from [CLS] to [SEP].
        phrases: indices into the caller's phrases.
        spans: per phrase, its first token and the one after its last.
    """

    input_ids: tuple[int, ...]
    phrases: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class PromptWriter:
    """Phrases -> prompts of at most ``max_tokens`` tokens.

    Args:
        tokenizer: a BERT tokenizer, or the built-in stand-in.
        delimiters: its ids of [CLS], [SEP], "." and "?".
        max_tokens: tokens of a prompt, [CLS] and [SEP] included; at least 4.
    """

    def __init__(self, tokenizer: Any, delimiters: tuple[int, int, int, int], max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.delimiters = delimiters
        self.max_tokens = max_tokens
        self.pad_id: int = tokenizer.pad_token_id
        self._unknown = tokenizer.unk_token_id

    def tokens(self, phrases: Sequence[str]) -> list[list[int]]:
        """Token ids of each phrase. Empty where there is no word that the vocabulary knows."""
        # A tag that is spelled like a special token stays text.
        encoded = encode_texts(self.tokenizer, [spelling(phrase) for phrase in phrases])
        return [ids if any(token != self._unknown for token in ids) else [] for ids in encoded]

    def prompts(self, tokens: Sequence[Sequence[int]]) -> list[Prompt]:
        """Prompts that hold every phrase with tokens, in order; a new one begins when the next phrase does not fit.

        Phrases longer than a whole prompt are cut to its length. Without any phrase there is one prompt,
        ``[CLS] . [SEP]``, as in the original code.

        Args:
            tokens: of each phrase, as ``tokens`` gives them; phrases without any are left out.
        """
        start, end, stop, _ = self.delimiters
        prompts: list[Prompt] = []
        ids = [start]
        phrases: list[int] = []
        spans: list[tuple[int, int]] = []
        for phrase, all_tokens in enumerate(tokens):
            if not all_tokens:
                continue
            phrase_tokens = list(all_tokens[: self.longest_phrase])
            if phrases and len(ids) + len(phrase_tokens) + 2 > self.max_tokens:
                prompts.append(Prompt((*ids, end), tuple(phrases), tuple(spans)))
                ids, phrases, spans = [start], [], []
            phrases.append(phrase)
            spans.append((len(ids), len(ids) + len(phrase_tokens)))
            ids += [*phrase_tokens, stop]
        if phrases:
            prompts.append(Prompt((*ids, end), tuple(phrases), tuple(spans)))
        return prompts or [Prompt((start, stop, end), (), ())]

    @property
    def longest_phrase(self) -> int:
        """Most tokens of a phrase: what a prompt leaves beside [CLS], a full stop and [SEP]."""
        return self.max_tokens - 3


def spelling(phrase: str) -> str:
    """Return the phrase as the detector reads it: lower case, single spaces, without "." and "?".

    These would cut it in two ("U.S. flag").
    """
    return " ".join(phrase.lower().replace(".", " ").replace("?", " ").split())


def is_a_list(phrase: str) -> bool:
    """Return whether it lists phrases as upstream's prompts do.

    ``person . dog .`` and ``person. dog.`` do, ``U.S. flag`` does not.
    """
    text = phrase.strip()
    return " . " in text or (text.endswith(".") and ". " in text)


def same_phrases(phrases: Sequence[str]) -> dict[str, int]:
    """Return the first phrase of each spelling: the detector cannot tell the others from it."""
    first: dict[str, int] = {}
    for index, phrase in enumerate(phrases):
        first.setdefault(spelling(phrase), index)
    return first


def stand_in_tokenizer() -> Any:
    """Return the built-in byte tokenizer with the delimiters at BERT's ids: 1,030 special tokens and 256 bytes.

    Its delimiters are "[.]" and "[?]"; the bytes "." and "?" are ordinary tokens.
    """
    names = [f"[unused{index}]" for index in range(BERT_DELIMITERS[-1] + 1)]
    names[0] = "[PAD]"
    for index, name in zip((*BERT_DELIMITERS, 103), ("[CLS]", "[SEP]", "[.]", "[?]", "[MASK]"), strict=True):
        names[index] = name
    return byte_tokenizer(names)


def tokenizer_delimiters(tokenizer: Any, source: object) -> tuple[int, int, int, int]:
    """Return a BERT tokenizer's ids of [CLS], [SEP], "." and "?". Raises ``WeightsError`` when it lacks one."""
    ids = [tokenizer.get_vocab().get(token) for token in ("[CLS]", "[SEP]", ".", "?")]
    if None in ids or tokenizer.pad_token_id is None:
        raise WeightsError(
            f"the tokenizer of {source} is no BERT tokenizer: it needs the tokens [CLS], [SEP], [PAD], '.' and '?'."
        )
    start, end, stop, question = ids
    return start, end, stop, question
