"""Boxes in captions and what is said of each, against a reader of the text."""

from __future__ import annotations

import random
import re

import torch

from lyrics.core.language.text_boxes import BoxMarks, box_marks, find_regions
from lyrics.core.language.tokenizers import byte_tokenizer, word_tokenizer
from lyrics.core.stage1.streams import Text

TOKENIZER = word_tokenizer(("[PAD]", "[MASK]"), [["star", "red", "dotted", "a", "at"]])
#: A lookahead, as what is said of one box may begin another.
PATTERN = r"(?=<Bbox>\((\d+),(\d+)\),\((\d+),(\d+)\)</Bbox>,([^,]+))"
PIECES = [
    "a star at <Bbox>(5,20),(310,999)</Bbox>, red dotted, ",
    "a star at <Bbox>(0,0),(7,7)</Bbox>, ",
    "a star, red, ",
    " at <Bbox>(9,20),(3,999)</Bbox>, red",
    "<Bbox>(1,2),(3,4)</Bbox> red, ",
    ")</Bbox>, ",
    "(1,2),(3,4)",
    "dotted",
]


def marks() -> BoxMarks:
    found = box_marks(TOKENIZER)
    assert found is not None
    return found


def found(texts: list[str]) -> list[tuple[int, list[float], str]]:
    regions = find_regions(Text.from_lists([TOKENIZER(text)["input_ids"] for text in texts]), marks())
    assert regions.sides_norm_R4.shape == (len(regions.sample_R), 4)
    words = zip(regions.words.ids_RL.tolist(), regions.words.lengths_R.tolist(), strict=True)
    said = [TOKENIZER.decode(ids[:size]) for ids, size in words]
    return list(zip(regions.sample_R.tolist(), regions.sides_norm_R4.tolist(), said, strict=True))


def test_regions_are_those_that_a_reader_of_the_text_finds() -> None:
    draws = random.Random(0)
    some = 0
    for _ in range(200):
        texts = ["".join(draws.choices(PIECES, k=draws.randint(0, 5))) for _ in range(3)]
        wanted = []
        for row, text in enumerate(texts):
            for x1, y1, x2, y2, said in re.findall(PATTERN, text):
                if int(x1) <= int(x2) and int(y1) <= int(y2):
                    wanted.append((row, [int(side) / 999 for side in (x1, y1, x2, y2)], said))
        got = found(texts)
        assert [(row, said) for row, _, said in got] == [(row, said) for row, _, said in wanted], texts
        torch.testing.assert_close([sides for _, sides, _ in got], [sides for _, sides, _ in wanted])
        some += len(got)
    assert some > 100


def test_a_box_with_a_masked_token_is_none() -> None:
    row = TOKENIZER("<Bbox>(1,2),(3,4)</Bbox>, red")["input_ids"]
    assert len(find_regions(Text.from_lists([row]), marks()).sample_R) == 1
    for place in range(1, 9):
        ids = list(row)
        ids[place] = TOKENIZER.mask_token_id
        assert not len(find_regions(Text.from_lists([ids]), marks()).sample_R), place
    assert found([]) == found(["", "red"]) == found(["<Bbox>(1,2),(3,4)</Bbox>,"]) == []


def test_a_tokenizer_of_bytes_writes_no_number_as_one_token() -> None:
    assert box_marks(byte_tokenizer(("[PAD]",))) is None
