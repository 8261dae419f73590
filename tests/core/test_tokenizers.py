"""The byte tokenizer: any text comes back exactly, and no text becomes a special token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.tokenizers import byte_tokenizer

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]")
LLAMA = ("<pad>", "<s>", "</s>")
TOKENIZER = byte_tokenizer(BERT)


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def test_specials_come_first_and_then_every_byte() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in BERT] == list(range(len(BERT)))
    assert len(TOKENIZER) == len(BERT) + 256
    assert len(byte_tokenizer(())) == 256


@settings(max_examples=300)
@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    found = ids(text)
    assert len(found) == len(text.encode())
    assert all(token >= len(BERT) for token in found)
    assert TOKENIZER.decode(found, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text", ["", "a", "don't ,  stop .", "[MASK] <s>", " leading", "\u00e9\U0001f600\n\t\x00", "a" * 5000]
)
def test_awkward_texts_come_back_exactly(text: str) -> None:
    assert TOKENIZER.decode(ids(text)) == text


@pytest.mark.parametrize("token", BERT)
def test_what_a_user_types_is_never_a_special_token(token: str) -> None:
    assert min(ids(f"say {token}{token} now")) >= len(BERT)


def test_nothing_is_added_around_a_text() -> None:
    assert len(TOKENIZER("a").input_ids) == 1
    assert TOKENIZER("").input_ids == []


def test_well_known_names_take_their_roles() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id) == (
        0,
        2,
        3,
        4,
    )
    assert TOKENIZER.bos_token_id == 5
    llama: Any = byte_tokenizer(LLAMA)
    assert (llama.pad_token_id, llama.bos_token_id, llama.eos_token_id) == (0, 1, 2)


def test_every_special_token_is_skipped_in_decoding() -> None:
    text = TOKENIZER.decode([*range(len(BERT)), *ids("a"), *range(len(BERT))], skip_special_tokens=True)
    assert text == "a"


def test_batches_are_padded() -> None:
    batch = TOKENIZER(["a", "abc"], padding=True)
    assert [len(row) for row in batch.input_ids] == [3, 3]
    assert batch.input_ids[0][1:] == [0, 0]
    assert batch.attention_mask[0] == [1, 0, 0]


def test_it_saves_and_loads(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    TOKENIZER.save_pretrained(tmp_path)
    again: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "caf\u00e9 [MASK]"
    assert list(again(text, add_special_tokens=False, split_special_tokens=True).input_ids) == ids(text)
    assert again.mask_token_id == TOKENIZER.mask_token_id


def test_repeated_special_token_is_refused() -> None:
    with pytest.raises(ValueError, match="special tokens must differ"):
        byte_tokenizer(("<s>", "<s>"))
