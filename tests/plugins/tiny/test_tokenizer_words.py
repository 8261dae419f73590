"""The vocabulary ``words``: its order is part of every model that was trained with it."""

from __future__ import annotations

import hashlib

from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.plugins.tiny.tokenizer_words import lists
from lyrics.testing import VocabularyContract

#: How many lists there were when the digest was taken, how many tokens they make, and the digest of all of them in the
#: order of their ids. Another list brings other numbers; these stay.
LISTS, TOKENS = 2, 1849
DIGEST = "7ec9cf0ab862f27f0cb2b68f5d3e9a4c18fc339bbc20f8dc41786b895759bdc8"


def test_no_id_has_moved() -> None:
    ids = builtin_tokenizer("words", ["<s>"]).get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    assert len(lists()) >= LISTS
    assert hashlib.sha256("\n".join(tokens[:TOKENS]).encode()).hexdigest() == DIGEST, (
        "models that ship were trained with these ids: new words go into a list of their own, after the others"
    )


class TestWords(VocabularyContract):
    vocabulary = "lyrics-vl/words"
