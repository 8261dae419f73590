"""The built-in tokenizer that stands in where one would come from a hub.

A model built with ``weights="random"`` or ``"meta"`` downloads nothing, so it cannot have BERT's or Vicuna's tokenizer. This one splits
text into bytes: any string is encoded and comes back exactly. It is a real ``PreTrainedTokenizerFast``: it saves, loads and pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def byte_tokenizer(special_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is ``special_tokens`` (ids 0, 1, ... in the order given) followed by the 256 bytes.

    Tokens with a well-known name ([PAD], [CLS], [SEP], [MASK], [BOS], <pad>, <s>, </s>) also take that role.

    Nothing is added around a text by itself: ``encode("a")`` is one id.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    if len(set(special_tokens)) != len(special_tokens):
        raise ValueError(f"special tokens must differ from each other, not {list(special_tokens)}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special_tokens, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = {_BERT_ROLES[token]: token for token in special_tokens if token in _BERT_ROLES}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in special_tokens if token not in _BERT_ROLES],
        clean_up_tokenization_spaces=False,
        **roles,
    )
