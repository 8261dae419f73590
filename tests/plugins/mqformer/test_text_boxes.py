"""Boxes in texts: where they are found, and that both forward passes read them."""

from __future__ import annotations

import random
import re

import pytest
import torch

from lyrics.core.errors import SpecError
from lyrics.core.language.tokenizers import byte_tokenizer, word_tokenizer
from lyrics.core.stage1.streams import Stream, Text, full
from lyrics.plugins.mqformer.model import SPECIAL_TOKENS
from lyrics.plugins.mqformer.text_boxes import box_marks, boxes_in_text
from tests.plugins.objectives.cases import features, small_model

TOKENIZER = word_tokenizer(SPECIAL_TOKENS, [["star", "red"]])
SIZE = len(TOKENIZER)
PIECES = [
    "a star",
    " at ",
    "<Bbox>(5,20),(310,999)</Bbox>",
    ": (0,0),(7,7)",
    "12",
    ",",
    "),(",
    "(3,4)",
    " red",
    "(1,2,3,4)",
]


def found(texts: list[str]) -> list[list[float]]:
    """The boxes of packed texts."""
    rows = [TOKENIZER(text)["input_ids"] for text in texts]
    ids = torch.tensor([id for row in rows for id in row], dtype=torch.int64)
    positions = torch.tensor([place for row in rows for place in range(len(row))], dtype=torch.int64)
    marks = box_marks(TOKENIZER, SIZE)
    assert marks is not None
    ends, sides = boxes_in_text(ids, positions, marks)
    assert not sides[~ends].any()
    return sides[ends].tolist()


def test_boxes_are_those_that_a_reader_of_the_text_finds() -> None:
    draws = random.Random(0)
    some = 0
    for _ in range(200):
        texts = ["".join(draws.choices(PIECES, k=draws.randint(0, 5))) for _ in range(3)]
        # Of "1,2),(3,4),(5,6)" both pairs of corners are boxes: a lookahead finds those that overlap.
        wanted = [
            [int(number) / 999 for number in match]
            for text in texts
            for match in re.findall(r"(?<!\d)(?=(\d+),(\d+)\),\((\d+),(\d+)(?!\d))", text)
        ]
        got = found(texts)
        assert len(got) == len(wanted), texts
        for one, other in zip(got, wanted, strict=True):
            assert one == pytest.approx(other)
        some += len(got)
    assert some > 100


def test_a_box_with_a_masked_token_or_over_the_end_of_a_text_is_none() -> None:
    assert len(found(["(1,2),(3,4)"])) == 1
    assert found(["(1,2),(3,", "4)"]) == []
    assert found(["", "4"]) == []
    row = TOKENIZER("(1,2),(3,4)")["input_ids"]
    marks = box_marks(TOKENIZER, SIZE)
    assert marks is not None
    for place in range(1, 8):
        ids = torch.tensor(row)
        ids[place] = TOKENIZER.mask_token_id
        assert not boxes_in_text(ids, torch.arange(len(ids)), marks)[0].any(), place


def model_of_boxes() -> torch.nn.Module:
    torch.manual_seed(0)
    model = small_model(text_boxes="fourier", vocab_size=SIZE)
    model.tokenizer = TOKENIZER
    return model


def test_both_forward_passes_read_them_and_begin_without() -> None:
    rows = torch.arange(3)
    texts = [TOKENIZER(text)["input_ids"] for text in ("a star (5,20),(310,999)", "red", "(1,2),(3,4) (5,6),(7,8)")]
    stream = Stream("x", full("VGS"), rows, rows, {"S": Text.from_lists(texts)}, wanted={"G": "all", "S": "all"})
    model, feats = model_of_boxes(), features(3, dtype=torch.float32)
    without = model([stream], feats)("x", "G")
    assert not model.text_box_waves.weight.any()
    model([stream], feats)("x", "S").sum().backward()
    assert model.text_box_waves.weight.grad.abs().sum() > 0, "a box reaches the weights that read it"
    with torch.no_grad():
        model.text_box_waves.weight.normal_()
        packed, dense = model([stream], feats)("x", "G"), model.forward_dense(stream, feats)
    torch.testing.assert_close(packed, dense.hidden_RLD[:, 4:7], rtol=1e-4, atol=1e-5)
    changed = (packed - without.detach()).abs().amax(dim=(1, 2))
    assert changed[0] > 1e-3
    assert changed[2] > 1e-3
    assert changed[1] < 1e-6, "a text without a box is read as before"


def test_a_tokenizer_of_bytes_writes_no_number_as_one_token() -> None:
    assert box_marks(byte_tokenizer(SPECIAL_TOKENS), 300) is None
    model = model_of_boxes()
    model.tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    rows = torch.arange(1)
    stream = Stream("x", full("VGS"), rows, rows, {"S": Text.from_lists([[9]])}, wanted={"G": "all"})
    with pytest.raises(SpecError, match="text_boxes: fourier needs a tokenizer that writes every number"):
        model([stream], features(1, dtype=torch.float32))
