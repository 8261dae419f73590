"""The trunk against the authors' code: their passes under their masks, and the paper's masks through their layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.streams import Features, Stream, Text, full
from lyrics.plugins.mqformer import MQFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer
from lyrics.plugins.mqformer.convert import RELEASED_STAGE1, RELEASED_STAGE2, from_upstream, to_upstream
from lyrics.plugins.mqformer.model import MQFormer
from tests.plugins.mqformer.helpers import fixture_state, load, metadata, read, released_model

Fixture = tuple[MQFormer, dict[str, torch.Tensor], Features, dict[str, Text]]
ROWS = torch.arange(3)
QUERIES = {"V": "all", "G": "all"}
TEXT = {"S": "all", "C": "all"}


@pytest.fixture(scope="module", params=["sdpa", "reference"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    from tests.conftest import PARITY

    path = PARITY / "released_mqformer.safetensors"
    if not path.is_file():
        pytest.skip(f"parity fixture {path} is not there")
    tensors = read(path)
    model = released_model(metadata(path)["config"], attention=request.param).eval()
    state = {f"qformer.{key}": value for key, value in fixture_state(tensors).items()}
    state["query_tokens"] = tensors["in.query_embeds"][:1]
    converted = load(model, state, RELEASED_STAGE2)
    assert not converted.rest, "every key of the trunk is accounted for"
    features = Features(
        tensors["in.image_embeds"],
        {"detector": (tensors["in.detection_embeds"], torch.ones(3, 9, dtype=torch.bool))},
    )
    exists = tensors["in.text_pad_mask"].bool()
    ids = tensors["in.input_ids"]
    text = {"S": Text(ids[:, :7], exists[:, :7].sum(1)), "C": Text(ids[:, 7:], exists[:, 7:].sum(1))}
    return model, tensors, features, text


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def check_rows(outputs, stream: Stream, want_RLD: torch.Tensor, queries: bool = True) -> None:
    """Compare all wanted segments with a joint output in the order V, G, S, C."""
    first = 0
    if queries:
        check(outputs(stream.name, "V"), want_RLD[:, :8])
        check(outputs(stream.name, "G"), want_RLD[:, 8:16])
        first = 16
    for name, size in (("S", 7), ("C", 6)):
        if name in stream.wanted:
            check(outputs(stream.name, name), want_RLD[:, first : first + size][stream.text[name].mask_RL])
        first += size


QUERY_STREAM = Stream("queries", full("VG"), ROWS, ROWS, wanted=QUERIES)
LEFT_TO_RIGHT = {("S", "S"): "causal", ("C", "S"): "full", ("C", "C"): "causal"}


def test_all_released_passes_in_one_packed_call(fixture: Fixture) -> None:
    model, tensors, features, text = fixture
    streams = {
        "query_only": QUERY_STREAM,
        "text_only": Stream("text", full("SC"), ROWS, None, text, wanted=TEXT),
        "itm_full": Stream("itm", full("VGSC"), ROWS, ROWS, text, wanted=QUERIES | TEXT),
        "lm_causal_past": Stream("lm", LEFT_TO_RIGHT, ROWS, None, text, prefix="queries", wanted=TEXT),
        "mlm_bidir_past": Stream("mlm", full("SC"), ROWS, None, text, prefix="queries", wanted=TEXT),
        "lm_causal_joint": Stream(
            "joint",
            {**full("VG"), **LEFT_TO_RIGHT, **{(t, q): "full" for t in "SC" for q in "VG"}},
            ROWS,
            ROWS,
            text,
            wanted=QUERIES | TEXT,
        ),
    }
    outputs = model(list(streams.values()), features)
    for name, stream in streams.items():
        want = tensors[f"released.{name}.last_hidden_state"]
        if name == "query_only":
            check(torch.cat([outputs("queries", "V"), outputs("queries", "G")], 1), want)
        else:
            check_rows(outputs, stream, want, queries=stream.image_index_R is not None)


def test_masked_memories(fixture: Fixture) -> None:
    model, tensors, features, _ = fixture
    masked = Features(
        features.image_tokens_BND,
        {"detector": (features.local["detector"][0], tensors["in.detection_mask"].bool())},
        tensors["in.image_mask"].bool(),
    )
    outputs = model([QUERY_STREAM], masked)
    want = tensors["released.query_only_masked_memory.last_hidden_state"]
    check(torch.cat([outputs("queries", "V"), outputs("queries", "G")], 1), want)


def test_keys_and_values_of_every_layer(fixture: Fixture) -> None:
    """The dense definition's cache is the authors' cache (the packed pass has no such intermediate to show)."""
    model, tensors, features, _ = fixture
    dense = model.forward_dense(QUERY_STREAM, features)
    for layer, (keys, values) in enumerate(dense.cache):
        check(keys.transpose(1, 2), tensors[f"released.query_only.past.{layer}.key"])
        check(values.transpose(1, 2), tensors[f"released.query_only.past.{layer}.value"])


@pytest.mark.parametrize(
    ("name", "table", "segments"),
    [
        ("itc", full("VG", "SC"), "VGSC"),
        ("itc_split", full("VG", "S", "C"), "VGSC"),
        ("itm", full("VC", "GS"), "VGSC"),
        ("msp_bidir", full("VGS"), "VGS"),
        ("msp_oneway", {**full("VG", "S"), ("S", "V"): "full", ("S", "G"): "full"}, "VGS"),
        ("icg", {**full("VG"), ("C", "C"): "causal", ("C", "V"): "full", ("C", "G"): "full"}, "VGC"),
    ],
)
def test_the_papers_masks(fixture: Fixture, name: str, table: dict, segments: str) -> None:
    model, tensors, features, text = fixture
    present = {segment: text[segment] for segment in "SC" if segment in segments}
    stream = Stream(name, table, ROWS, ROWS, present, wanted=QUERIES | dict.fromkeys(present, "all"))
    assert torch.equal(_mask_of(model, stream, features, segments), tensors[f"paper.{name}.mask"].bool()), (
        "our table is the mask that the fixture was made with"
    )
    check_rows(model([stream], features), stream, tensors[f"paper.{name}.last_hidden_state"])


def test_icg_and_oneway_msp_with_the_query_stream_as_prefix(fixture: Fixture) -> None:
    """The prefix stream gives what one joint masked pass gives."""
    model, tensors, features, text = fixture
    streams = [
        QUERY_STREAM,
        Stream("icg", {("C", "C"): "causal"}, ROWS, None, {"C": text["C"]}, prefix="queries", wanted={"C": "all"}),
        Stream("msp", full("S"), ROWS, None, {"S": text["S"]}, prefix="queries", wanted={"S": "all"}),
    ]
    outputs = model(streams, features)
    check(outputs("icg", "C"), tensors["paper.icg.last_hidden_state"][:, 23:][text["C"].mask_RL])
    check(outputs("msp", "S"), tensors["paper.msp_oneway.last_hidden_state"][:, 16:23][text["S"].mask_RL])


def _mask_of(model: MQFormer, stream: Stream, features: Features, segments: str) -> torch.Tensor:
    """The stream's mask [3,29,29] in the fixture's order; absent segments and padded rows as the fixture has them."""
    dense = model.forward_dense(stream, features)
    places = {"V": slice(0, 8), "G": slice(8, 16), "S": slice(16, 23), "C": slice(23, 29)}
    mask = torch.zeros(3, 29, 29, dtype=torch.bool)
    for row in segments:
        for column in segments:
            mask[:, places[row], places[column]] = dense.mask_RLL[:, dense.segments[row], dense.segments[column]]
    return mask


def test_released_keys_are_matched_completely_on_the_meta_device(parity: Callable[[str], Path]) -> None:
    expected = json.loads(parity("released_keys.json").read_text())
    options = MQFormerOptions(num_grounding=64, vocab_size=30523)
    with torch.device("meta"):
        model = build_mqformer(options, BuildContext("meta", 1408, {"detector": 260}))
    found = to_upstream(model, RELEASED_STAGE1)
    shapes = {key: list(value.shape) for key, value in found.items() if key != "query_tokens"}
    assert shapes == expected
    assert list(found["query_tokens"].shape) == [1, 96, 768]
    converted = from_upstream(found, model)
    assert converted.naming == "released-stage1"
    assert not converted.rest
    assert set(converted.trunk) == set(dict(model.named_parameters()))


def test_there_and_back_again() -> None:
    options = MQFormerOptions(
        num_visual=3, num_grounding=2, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24, vocab_size=70
    )
    model = build_mqformer(options, BuildContext("random", 12, {"detector": 10}))
    other = build_mqformer(options, BuildContext("random", 12, {"detector": 10}))
    load(other, to_upstream(model))
    rows = torch.arange(2)
    text = {"S": Text.from_lists([[1, 2], [3]]), "C": Text.from_lists([[4], [5, 6]])}
    stream = Stream("x", full("VGSC"), rows, rows, text, wanted={"V": "all", "G": "all", "C": "all"})
    features = Features(torch.randn(2, 5, 12), {"detector": (torch.randn(2, 4, 10), torch.ones(2, 4).bool())})
    got, want = other.eval()([stream], features), model.eval()([stream], features)
    for segment in "VGC":
        assert torch.equal(got("x", segment), want("x", segment))
    assert torch.equal(other.token_logits(got("x", "C")), model.token_logits(want("x", "C")))
