"""Phrases to prompts: spans are exact, nothing a caller types can move them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.language.phrase_prompts import BERT_DELIMITERS, PromptWriter, same_phrases, stand_in_tokenizer

START, END, STOP, QUESTION = BERT_DELIMITERS
BYTES = stand_in_tokenizer()


def text_of(writer, ids):
    return writer.tokenizer.decode(ids)


@pytest.fixture
def writer():
    return PromptWriter(BYTES, BERT_DELIMITERS, 64)


@pytest.fixture
def bert(word_pieces):
    pieces = ["car", "taxi", "tooth", "##brush", "red", "u", "s", "flag", "!", "unused", "[", "]"]
    return PromptWriter(word_pieces(pieces), BERT_DELIMITERS, 64)


def test_each_span_decodes_to_its_phrase(writer):
    phrases = ["car", "car taxi", "tooth", "toothbrush", "a, b", "\u00e9toile \U0001f600"]
    (prompt,) = writer.prompts(writer.tokens(phrases))
    assert prompt.phrases == (0, 1, 2, 3, 4, 5)
    assert [text_of(writer, prompt.input_ids[first:end]) for first, end in prompt.spans] == phrases
    assert prompt.input_ids[0] == START
    assert prompt.input_ids[-2:] == (STOP, END)
    assert [prompt.input_ids[end] for _, end in prompt.spans] == [STOP] * 6


def test_ids_are_those_of_the_joined_text(bert):
    (prompt,) = bert.prompts(bert.tokens(["Car", "red car taxi", "toothbrush", "tooth"]))
    joined = "car . red car taxi . toothbrush . tooth ."
    assert list(prompt.input_ids) == bert.tokenizer(joined)["input_ids"]
    pieces = bert.tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert [pieces[first:end] for first, end in prompt.spans] == [
        ["car"],
        ["red", "car", "taxi"],
        ["tooth", "##brush"],
        ["tooth"],
    ]


@pytest.mark.parametrize("phrase", ["U.S. flag", "u?s flag", "u s flag...", ". u . s ? flag"])
def test_delimiters_in_a_phrase_do_not_cut_it(bert, phrase):
    (prompt,) = bert.prompts(bert.tokens([phrase, "car"]))
    pieces = bert.tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert [pieces[first:end] for first, end in prompt.spans] == [["u", "s", "flag"], ["car"]]
    assert pieces.count(".") == 2
    assert pieces.count("[SEP]") == 1


def test_names_of_special_tokens_in_a_phrase_are_ordinary_text(bert, writer):
    for typed in ("[SEP] car", "[CLS] car", "[PAD][MASK] car", "[.] car", "[?] car"):
        for one in (bert, writer):
            (prompt,) = one.prompts(one.tokens([typed, "taxi"]))
            special = [
                token for token in prompt.input_ids if (token <= 103 and token != 100) or token in BERT_DELIMITERS
            ]
            assert special == [START, STOP, STOP, END]
            assert len(prompt.spans) == 2


@pytest.mark.parametrize("phrase", ["", "   ", ".", "?..", "\u2603", "\u4e2d", "\n\t"])
def test_phrases_without_a_known_word_are_left_out(bert, phrase):
    tokens = bert.tokens(["car", phrase, "taxi"])
    (prompt,) = bert.prompts(tokens)
    assert prompt.phrases == (0, 2)
    assert tokens[1] == []


def test_a_word_that_is_partly_unknown_stays(bert):
    (prompt,) = bert.prompts(bert.tokens(["\u2603 car"]))
    assert bert.tokenizer.convert_ids_to_tokens(prompt.input_ids) == ["[CLS]", "[UNK]", "car", ".", "[SEP]"]


def test_no_phrases_give_the_empty_prompt(writer):
    for phrases in ([], ["", "  "]):
        (prompt,) = writer.prompts(writer.tokens(phrases))
        assert (prompt.input_ids, prompt.phrases, prompt.spans) == ((START, STOP, END), (), ())


def test_a_long_phrase_is_cut_to_one_prompt(writer):
    prompts = writer.prompts(writer.tokens(["x" * 1000, "y"]))
    assert [prompt.phrases for prompt in prompts] == [(0,), (1,)]
    assert len(prompts[0].input_ids) == 64
    assert prompts[0].spans == ((1, 62),)
    assert writer.longest_phrase == 61


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=40), st.integers(4, 70))
def test_every_phrase_is_in_exactly_one_prompt_in_order(phrases, limit):
    writer = PromptWriter(BYTES, BERT_DELIMITERS, limit)
    tokens = writer.tokens(phrases)
    prompts = writer.prompts(tokens)
    assert [phrase for prompt in prompts for phrase in prompt.phrases] == [i for i, ids in enumerate(tokens) if ids]
    for prompt in prompts:
        assert len(prompt.input_ids) <= limit
        for phrase, (first, end) in zip(prompt.phrases, prompt.spans, strict=True):
            assert list(prompt.input_ids[first:end]) == tokens[phrase][: limit - 3]
        inside = {position for first, end in prompt.spans for position in range(first, end)}
        delimiters = {position for position, token in enumerate(prompt.input_ids) if token in BERT_DELIMITERS}
        assert inside | delimiters == set(range(len(prompt.input_ids)))
        assert not inside & delimiters


def test_a_phrase_that_just_fits_does_not_open_a_prompt():
    writer = PromptWriter(BYTES, BERT_DELIMITERS, 10)
    assert len(writer.prompts(writer.tokens(["abc", "def"]))) == 1  # [CLS] abc . def . [SEP] is ten
    assert len(writer.prompts(writer.tokens(["abc", "defg"]))) == 2


def test_spellings_of_one_phrase_are_one():
    assert list(same_phrases(["Dog", "cat", "dog", " DOG. ", "hot  dog", "hot dog", "hotdog"]).values()) == [0, 1, 4, 6]


def test_stand_in_has_berts_delimiter_ids():
    assert BYTES.convert_tokens_to_ids(["[CLS]", "[SEP]", "[.]", "[?]", "[PAD]"]) == [101, 102, 1012, 1029, 0]
    assert len(BYTES) == 1286
    assert BYTES.convert_tokens_to_ids(".") not in BERT_DELIMITERS
