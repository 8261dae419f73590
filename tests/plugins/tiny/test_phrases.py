"""Names are made of words, and asked for in any case."""

from __future__ import annotations

import torch

from lyrics.plugins.tiny.phrases import PhraseHead, parts

VOCABULARY = ("red circle", "red square", "blue circle", "blue square")


def test_logits_of_names_add_up_from_their_words():
    torch.manual_seed(0)
    head = PhraseHead(8, VOCABULARY, prior_logit=-2.0)
    logits = head(torch.randn(5, 3, 8))
    assert logits.shape == (5, 3, 4)
    red_circle, red_square, blue_circle, blue_square = logits.unbind(-1)
    torch.testing.assert_close(red_circle + blue_square, red_square + blue_circle)
    assert (red_circle - blue_square).abs().max() > 0.1
    torch.testing.assert_close(head(torch.zeros(8)), torch.full((4,), -2.0))


def test_columns_and_targets():
    head = PhraseHead(8, VOCABULARY, prior_logit=0.0)
    assert [head.column(phrase) for phrase in (" BLUE  Circle", "blue", "blue circles")] == [2, None, None]
    assert head.targets(["Red Square", "cat"]).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert head.targets([]).shape == (0, 4)


def test_a_repeated_word_counts_each_time():
    head = PhraseHead(8, ("tut", "tut tut"), prior_logit=0.0)
    once, twice = head(torch.randn(8)).tolist()
    assert abs(twice - 2 * once) < 1e-5


def test_quoted_words_are_made_of_their_letters():
    assert parts('word "tea"') == ["word", '"t1', '"e2', '"a3', '"3']
    assert parts('blue "" "') == ["blue", '""', '"']
    head = PhraseHead(8, ('word "TEA"', 'word "ATE"', 'word "TEE"', "tea"), prior_logit=0.0)
    tea, ate, tee, plain = head.phrase_words_PU
    assert tea @ tee == 4
    assert tea @ ate == 2  # "word" and the number of letters: no letter stands in the same place
    assert tea @ plain == 0
