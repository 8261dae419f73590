"""The built-in tokenizers that stand in where one would come from a hub.

A model built with ``weights="random"`` or ``"meta"`` downloads nothing, so it cannot have BERT's or Vicuna's tokenizer.
These split text into bytes, or into the words of a vocabulary, which some plugin provides, and bytes: any string is
encoded and comes back exactly. They are real ``PreTrainedTokenizerFast``: they save, load and pad.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lyrics.core.registry.component import BYTES
from lyrics.core.registry.registry import Registry, default_registry

if TYPE_CHECKING:
    import torch
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

#: Numbers up to 999 are one token each beside the words: coordinates (``lyrics.core.language.codecs``), and counts.
NUMBERS = tuple(str(number) for number in range(1000))
#: What stands around a tag and its coordinates in the codec ``lyrics``, whole and where a query transformer's units cut
#: it (``lyrics.core.language.spatial_tokens``).
MARKUP = ("<br><T>", "</T><Bbox>(", "),(", ")</Bbox></br>", "</T>", "<Bbox>(", ")</Bbox>", "</br>")

_BERT_ROLES = {
    "[PAD]": "pad_token",
    "[CLS]": "cls_token",
    "[SEP]": "sep_token",
    "[MASK]": "mask_token",
    "[BOS]": "bos_token",
    "<pad>": "pad_token",
    "<s>": "bos_token",
    "</s>": "eos_token",
}


#: A piece of markup (the longest that fits), a word with the space before it, a number of up to three digits, or any
#: one character.
_PIECE = "|".join([*(re.escape(mark) for mark in sorted(MARKUP, key=len, reverse=True)), " ?[A-Za-z]+|[0-9]{1,3}|."])


#: How a wave's strength falls with its frequency.
_SLOPE = -0.5


def builtin_tokenizer(
    name: str, special_tokens: Sequence[str], registry: Registry | None = None
) -> PreTrainedTokenizerFast:
    """Return the built-in tokenizer of that name: ``byte_tokenizer`` for ``bytes``, else ``word_tokenizer``.

    Args:
        name: ``bytes``, or a vocabulary that a plugin provides (``lyrics.Vocabulary``).
        special_tokens: their ids are 0, 1, ... in the order given.
        registry: where the vocabulary is looked up; everything installed unless given.

    Raises:
        UnknownNameError: there is no such vocabulary.
        PluginError: its words are not valid.
    """
    if name == BYTES:
        return byte_tokenizer(special_tokens)
    return word_tokenizer(special_tokens, (registry or default_registry()).vocabulary(name))


def byte_tokenizer(special_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of special tokens and the 256 bytes.

    ``special_tokens`` have the ids 0, 1, ... in the order given.

    Tokens with a well-known name ([PAD], [CLS], [SEP], [MASK], [BOS], <pad>, <s>, </s>) also take that role.

    Nothing is added around a text by itself: ``encode("a")`` is one id.
    """
    from tokenizers import pre_tokenizers

    return _tokenizer(special_tokens, (), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


def word_tokenizer(special_tokens: Sequence[str], lists: Sequence[Sequence[str]]) -> PreTrainedTokenizerFast:
    """Return a byte tokenizer that knows words, numbers and markup as one token each.

    After the special tokens and the bytes come the words of the first list, without and with a space before them, the
    numbers, the markup, and the words of the later lists: a list that is appended moves no id.

    A word that is not among them is spelled in bytes. With the words "red" and "star",
    ``<br><T>red star</T><Bbox>(5,20),(310,999)</Bbox></br>`` has 12 tokens.
    """
    from tokenizers import Regex, pre_tokenizers

    pieces = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Single letters are among the bytes. U+0120 is a space, as ByteLevel writes it.
    first, *later = (
        [*(word for word in words if len(word) > 1), *(f"\u0120{word}" for word in words)] for words in lists
    )
    numbers = [number for number in NUMBERS if len(number) > 1]
    whole = [*first, *numbers, *MARKUP, *(token for tokens in later for token in tokens)]
    return _tokenizer(special_tokens, whole, pre_tokenizers.Sequence([pieces, to_bytes]))


def numbers_in_order(rows: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Make the rows [V, D] of numbers that are one token each smooth functions of their value.

    Rows of near numbers are near each other, the more so as slow waves are the strongest: what is learned of one
    coordinate holds for its neighbors, and differences and thresholds are found soonest. The spread of the values
    stays. Nothing happens, and False is returned, with a tokenizer that lacks such a token. Uses torch's global
    generator.
    """
    import torch

    vocabulary = tokenizer.get_vocab()
    if not all(number in vocabulary for number in NUMBERS):
        return False
    values = torch.arange(len(NUMBERS)) / len(NUMBERS)
    waves = 0.5 * 1.3 ** torch.arange(23)  # of half the range, to five numbers long; no two numbers meet in all of them
    angles = 2 * torch.pi * values[:, None] * waves
    found = torch.cat([angles.cos() * waves**_SLOPE, angles.sin() * waves**_SLOPE], dim=1)
    mixed = (found - found.mean(dim=0)) @ torch.randn(2 * len(waves), rows.shape[1])
    with torch.no_grad():
        ids = torch.tensor([vocabulary[number] for number in NUMBERS])
        rows[ids] = (mixed * (rows.std() / mixed.std())).to(rows)
    return True


def _tokenizer(
    special_tokens: Sequence[str], whole: Sequence[str], pre_tokenizer: PreTokenizer
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    if len(set(special_tokens)) != len(special_tokens):
        raise ValueError(f"special tokens must differ from each other, not {list(special_tokens)}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special_tokens, *alphabet, *whole])}
    # A piece that is in the vocabulary is one token; with no merges, any other is its bytes.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=bool(whole)))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    roles = {_BERT_ROLES[token]: token for token in special_tokens if token in _BERT_ROLES}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in special_tokens if token not in _BERT_ROLES],
        clean_up_tokenization_spaces=False,
        **roles,
    )
