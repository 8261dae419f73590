"""Streams: what they refuse, how they merge, and what comes back."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.errors import ContractError
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.stage1.streams import SpecialTokens, Stream, StreamOutputs, Text, full, merge

ROWS = torch.arange(2)


def text(*rows: list[int]) -> Text:
    return Text.from_lists(rows)


def test_text_pads_and_knows_its_mask() -> None:
    found = text([5, 6, 7], [])
    assert found.ids_RL.tolist() == [[5, 6, 7], [0, 0, 0]]
    assert found.mask_RL.tolist() == [[True] * 3, [False] * 3]
    assert found.rows(torch.tensor([1, 0, 0])).lengths_R.tolist() == [0, 3, 3]
    assert text().ids_RL.shape == (0, 0)


def test_full_is_within_groups_only() -> None:
    table = full("VC", "GS")
    assert table["V", "C"] == table["C", "V"] == table["S", "S"] == "full"
    assert ("V", "G") not in table
    assert len(table) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": {"X": text([1], [2])}}, r"segment 'X' is not one of"),
        ({"text": {"S": text([1])}}, r"segment 'S' has 1 rows, the stream 2"),
        ({"wanted": {"V": "all"}}, r"outputs of segment 'V' are wanted"),
    ],
)
def test_mistakes_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Stream("x", {}, ROWS, **fields)


def test_equal_streams_merge_and_their_outputs_unite() -> None:
    first = Stream("queries", full("VG"), ROWS, ROWS, wanted={"V": "all"})
    second = Stream("queries", full("VG"), ROWS.clone(), ROWS.clone(), wanted={"G": "all"})
    merged = merge([first, Stream("other", {}, ROWS), second])
    assert [stream.name for stream in merged] == ["queries", "other"]
    assert dict(merged[0].wanted) == {"V": "all", "G": "all"}


@pytest.mark.parametrize(
    "other",
    [
        Stream("x", full("V"), ROWS, ROWS, {"S": text([1], [2])}),
        Stream("x", full("VG"), ROWS, ROWS.flip(0), {"S": text([1], [2])}),
        Stream("x", full("VG"), ROWS, None, {"S": text([1], [2])}),
        Stream("x", full("VG"), ROWS, ROWS, {"S": text([1], [3])}),
        Stream("x", full("VG"), ROWS + 1, ROWS, {"S": text([1], [2])}),
        Stream("x", full("VG"), ROWS, ROWS, {"S": Text(torch.tensor([[1], [2]]), torch.tensor([1, 1]), 1)}),
        Stream("x", full("VG"), ROWS, ROWS, {"S": text([1], [2])}, prefix="y"),
    ],
    ids=["table", "images", "queries", "ids", "samples", "positions", "prefix"],
)
def test_different_streams_of_one_name_are_refused(other: Stream) -> None:
    with pytest.raises(ContractError, match=r"two different streams are called 'x'"):
        merge([Stream("x", full("VG"), ROWS, ROWS, {"S": text([1], [2])}), other])


def test_different_wishes_for_one_segment_are_refused() -> None:
    streams = [Stream("x", full("C"), ROWS, None, {"C": text([1], [2])}, wanted={"C": how}) for how in ("first", "all")]
    with pytest.raises(ContractError, match=r"want different outputs of segment 'C'"):
        merge(streams)


def test_outputs_that_nobody_wanted_are_named() -> None:
    outputs = StreamOutputs(torch.arange(8.0).view(4, 2), {("itc.text", "S"): (torch.tensor([3, 0]), (2,))})
    assert outputs("itc.text", "S").tolist() == [[6.0, 7.0], [0.0, 1.0]]
    with pytest.raises(ContractError, match=r"'C' of stream 'itc.text' were wanted; there are itc.text/S"):
        outputs("itc.text", "C")


def test_special_tokens_of_the_built_in_tokenizer() -> None:
    tokenizer = byte_tokenizer(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"])
    found = SpecialTokens.from_tokenizer(tokenizer)
    assert (found.pad, found.cls, found.sep, found.mask, found.dec) == (0, 1, 2, 3, 4)
    assert found.bos == found.mlm == -1, "a token that the vocabulary lacks"
