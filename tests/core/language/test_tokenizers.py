"""The built-in tokenizers: any text comes back exactly, and no text becomes a special token."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.data.build import build_dataset
from lyrics.core.data.conversation import converse
from lyrics.core.data.templates import TEMPLATES
from lyrics.core.errors import UnknownNameError
from lyrics.core.language.tokenizers import MARKUP, builtin_tokenizer, byte_tokenizer, numbers_in_order, word_tokenizer
from lyrics.plugins.scenes.names import SceneTask

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]")
LLAMA = ("<pad>", "<s>", "</s>")
TOKENIZER = byte_tokenizer(BERT)
WORDS = builtin_tokenizer("words", BERT)
BOTH = pytest.mark.parametrize("tokenizer", [TOKENIZER, WORDS], ids=["bytes", "words"])


def ids(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def test_specials_come_first_and_then_every_byte() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in BERT] == list(range(len(BERT)))
    assert len(TOKENIZER) == len(BERT) + 256
    assert len(byte_tokenizer(())) == 256


@settings(max_examples=300)
@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    found = ids(text)
    assert len(found) == len(text.encode())
    for tokenizer in (TOKENIZER, WORDS):
        found = ids(text, tokenizer)
        assert all(token >= len(BERT) for token in found)
        assert tokenizer.decode(found, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text", ["", "a", "don't ,  stop .", "[MASK] <s>", " leading", "\u00e9\U0001f600\n\t\x00", "a" * 5000]
)
@BOTH
def test_awkward_texts_come_back_exactly(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(ids(text, tokenizer)) == text


@pytest.mark.parametrize("token", BERT)
@BOTH
def test_what_a_user_types_is_never_a_special_token(token: str, tokenizer: Any) -> None:
    assert min(ids(f"say {token}{token} now", tokenizer)) >= len(BERT)


def test_a_known_word_with_its_space_a_number_and_markup_are_one_token_each() -> None:
    text = "<br><T>red star</T><Bbox>(5,20),(310,999)</Bbox></br>"
    pieces = ["<br><T>", "red", " star", "</T><Bbox>(", "5", ",", "20", "),(", "310", ",", "999", ")</Bbox></br>"]
    assert [WORDS.decode([token]) for token in ids(text, WORDS)] == pieces
    assert [WORDS.decode([token]) for token in ids("redstar 1000", WORDS)] == [*"redstar", " ", "100", "0"]


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_vocabulary_holds_what_scenes_and_templates_say(split: str) -> None:
    """Letters by themselves appear only as options and first letters."""
    texts = [re.sub(r"\{[^}]*\}", "", one) for templates in TEMPLATES.values() for one in templates]
    worlds = [
        *itertools.product(get_args(SceneTask), ["plain"]),
        ("caption", "fine"),
    ]  # the rest of it in test_fine_texts
    for task, attributes in worlds:
        data = build_dataset("scenes", {"scenes": 40, "split": split, "task": task, "attributes": attributes})
        for row in range(len(data)):
            sample = data[row]
            texts += [*sample.captions, *(found.tag for found in sample.objects)]
            for turn in converse(sample, seed=0, position=row):
                texts += [turn.instruction, turn.answer]
    spelled = {
        word
        for text in texts
        for word in re.findall("[A-Za-z]{2,}", text)
        if len(ids(word, WORDS)) > 1 or len(ids(f" {word}", WORDS)) > 1
    }
    assert spelled <= {"br", "Bbox"}, "append a list of them to lyrics/plugins/tiny/tokenizer_words.py"


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


@BOTH
def test_it_saves_and_loads(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer.save_pretrained(tmp_path)
    again: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "caf\u00e9 red star 250 [MASK]"
    assert ids(text, again) == ids(text, tokenizer)
    assert again.mask_token_id == TOKENIZER.mask_token_id


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_repeated_special_token_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="special tokens must differ"):
        builtin_tokenizer(kind, ("<s>", "<s>"))


def test_numbers_begin_near_their_neighbors() -> None:
    words: Any = builtin_tokenizer("words", LLAMA)
    torch.manual_seed(0)
    rows = torch.randn(len(words), 64) * 0.02
    before = rows.clone()
    numbers_in_order(rows, words)
    ids = [words.convert_tokens_to_ids(str(number)) for number in range(1000)]
    others = torch.ones(len(words), dtype=torch.bool)
    others[ids] = False
    assert torch.equal(rows[others], before[others])
    unit = torch.nn.functional.normalize(rows[ids], dim=1)
    alike = unit @ unit.T
    apart = (torch.arange(1000)[:, None] - torch.arange(1000)).abs()
    assert alike[apart == 1].min() > 0.75
    assert alike[apart > 100].max() < 0.75
    assert alike[apart > 100].mean().abs() < 0.2
    assert rows[ids].std() == pytest.approx(0.02, rel=0.1)
    assert len(unit.unique(dim=0)) == 1000

    letters = byte_tokenizer(LLAMA)
    plain = torch.randn(len(letters), 8)
    unchanged = plain.clone()
    numbers_in_order(plain, letters)
    assert torch.equal(plain, unchanged)


def test_words_that_came_later_move_no_token() -> None:
    first, more, numbers = ["a", "red"], ["star", "I"], len(range(10, 1000))
    before = word_tokenizer(LLAMA, [first]).get_vocab()
    after = word_tokenizer(LLAMA, [first, more]).get_vocab()
    assert before.items() <= after.items()
    assert len(before) == len(LLAMA) + 256 + len(["red", " a", " red"]) + numbers + len(MARKUP)
    new = sorted(after.keys() - before.keys(), key=after.__getitem__)
    assert new == ["star", "\u0120star", "\u0120I"]
    assert [after[token] for token in new] == list(range(len(before), len(after)))


def test_unknown_vocabulary_gets_the_nearest_and_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"no vocabulary named 'wrods'\. Did you mean 'words'\? Installed: "):
        builtin_tokenizer("wrods", LLAMA)
