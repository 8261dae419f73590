"""The records of the family: the contracts of their kinds, sizes and options."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError

from lyrics.core.contracts import BuildContext
from lyrics.plugins import tiny
from lyrics.plugins.tiny.expert_vocabulary import COLOURS, NOUNS, SHAPES, VOCABULARY, WORDS, word_tag
from lyrics.plugins.tiny.phrases import PhraseHead
from lyrics.testing import DetectorContract, ImageEncoderContract, SegmenterContract, TaggerContract

COMPONENTS = tuple(tiny.lyrics_components())
OPTIONS = {component.name: component.test_options or {} for component in COMPONENTS}


class TestTinyVit(ImageEncoderContract):
    component = "tiny-vit"


class TestTinyTagger(TaggerContract):
    component = "tiny-tagger"


class TestTinyDetector(DetectorContract):
    component = "tiny-detector"


class TestTinySegmenter(SegmenterContract):
    component = "tiny-segmenter"


class TestTinyDetectorOfAllCells(DetectorContract):
    component = "tiny-detector"
    options: ClassVar[Any] = {**OPTIONS["tiny-detector"], "queries": None, "query_width": None}


class TestTinyDetectorWithQueries(DetectorContract):
    component = "tiny-detector"
    options: ClassVar[Any] = {**OPTIONS["tiny-detector"], "queries": 5, "query_width": 8, "query_threshold": 0.0}


class TestTinySegmenterWithoutLooks(SegmenterContract):
    component = "tiny-segmenter"
    options: ClassVar[Any] = {**OPTIONS["tiny-segmenter"], "look_width": None}


def test_together_they_have_at_most_two_million_parameters():
    with torch.device("meta"):
        built = [resolve_name(component.build)(component.options(), BuildContext("meta")) for component in COMPONENTS]
    assert sorted(component.kind for component in COMPONENTS) == ["detector", "image-encoder", "segmenter", "tagger"]
    assert 1_000_000 < sum(p.numel() for module in built for p in module.parameters()) <= 2_000_000


def test_default_vocabulary_is_the_nouns_and_that_of_plain_scenes_every_colour_with_every_shape_and_the_words():
    things = [name for name in VOCABULARY if not name.startswith("word ")]
    assert len(things) == len(set(things)) == len(COLOURS) * len(SHAPES) == 64
    assert "red circle" in things
    assert [name for name in VOCABULARY if name not in things] == [word_tag(text) for text in WORDS]
    assert word_tag("STOP") == 'word "STOP"'
    assert len(WORDS) == len(set(WORDS)) == 64
    assert tiny.TinyTaggerOptions().vocabulary == tiny.TinyDetectorOptions().vocabulary == NOUNS == (*SHAPES, "word")


def test_the_written_word_blue_shares_nothing_with_the_colour():
    head = PhraseHead(4, VOCABULARY, prior_logit=0.0)
    rows = head.phrase_words_PU
    assert rows[head.column('word "BLUE"')] @ rows[head.column("blue star")] == 0


@pytest.mark.parametrize(
    ("options", "values", "complaint"),
    [
        (tiny.TinyVitOptions, {"patch_size": 12}, "power of two"),
        (tiny.TinyVitOptions, {"image_size": 100}, "image_size 100 is not a multiple of patch_size 8"),
        (tiny.TinyVitOptions, {"heads": 3}, "width 128 is not a multiple of heads 3"),
        (tiny.TinyTaggerOptions, {"vocabulary": ("cat", " CAT ")}, "names 'cat' and ' CAT '"),
        (tiny.TinyDetectorOptions, {"vocabulary": ("cat", " ")}, "is empty"),
        (tiny.TinyDetectorOptions, {"vocabulary": ()}, "at least 1 item"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, values, complaint):
    with pytest.raises(ValidationError, match=complaint):
        options(**values)
