"""Boxes of local tokens as waves: what they are, that both forward passes read them, and what checkpoints without them
become.
"""

from __future__ import annotations

import math

import pytest
import torch

from lyrics.core.box_waves import BANDS, WIDTH, box_waves
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, WeightsError
from lyrics.core.stage1.streams import Features, Stream, Text, full
from lyrics.plugins.mqformer import MQFormerOptions
from lyrics.plugins.mqformer.boxes import with_box_waves
from lyrics.plugins.mqformer.build import build_mqformer
from lyrics.plugins.mqformer.convert import from_upstream, load_converted, to_upstream
from tests.plugins.objectives.cases import features, small_model

ROWS = torch.arange(3)
TEXT = {"S": Text.from_lists([[20, 21], [22], []])}
STREAM = Stream("x", full("VGS"), ROWS, ROWS, TEXT, wanted={"V": "all", "G": "all", "S": "all"})


def test_waves_are_of_the_sides_of_the_box() -> None:
    x1, y1, x2, y2 = 0.25, 0.5, 0.75, 1.0
    waves = box_waves(torch.tensor([[[0.5, 0.75, 0.5, 0.5]]], dtype=torch.float64))
    assert waves.shape == (1, 1, WIDTH)
    for place, side in enumerate((x1, y1, x2, y2)):
        for band in range(BANDS):
            phase = math.pi * 2**band * side
            index = place * BANDS + band
            assert float(waves[0, 0, index]) == pytest.approx(math.sin(phase), abs=1e-9)
            assert float(waves[0, 0, WIDTH // 2 + index]) == pytest.approx(math.cos(phase), abs=1e-9)


def test_a_linear_map_reads_a_coordinate_off_the_waves_to_a_thousandth() -> None:
    """Logits linear in the waves, one for each of the 1,000 numbers, are largest at the right one: no two are alike."""
    centers_N1 = (torch.arange(1000, dtype=torch.float64) + 0.5)[:, None] / 1000
    boxes = torch.cat([centers_N1 + 0.1, centers_N1, torch.full_like(centers_N1, 0.2), torch.zeros_like(centers_N1)], 1)
    waves_NW = box_waves(boxes[None])[0].unflatten(1, (2, 4, BANDS))[:, :, 0].flatten(1)
    assert torch.equal((waves_NW @ waves_NW.T).argmax(1), torch.arange(1000))


def test_half_precision_boxes_have_the_waves_of_what_they_say() -> None:
    boxes = torch.rand(2, 3, 4).bfloat16()
    tokens = torch.cat([torch.zeros(2, 3, 6, dtype=torch.bfloat16), boxes], dim=-1)
    found = with_box_waves(tokens, 10)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[..., :10], tokens)
    torch.testing.assert_close(found[..., 10:].float(), box_waves(boxes.float()), atol=4e-3, rtol=0)


def test_both_forward_passes_read_them_whatever_the_padding() -> None:
    model = small_model(box_features="fourier")
    layer = model.layers[0].local_attention
    assert {name: one.in_features for name, one in layer.key_value.items()} == {"detector": 88, "segmenter": 80}
    assert (layer.key_value["detector"].weight[:, 84:] == 0).all()
    feats = features(3, dtype=torch.float32)
    with torch.no_grad():
        packed, dense = model([STREAM], feats), model.forward_dense(STREAM, feats)
        wide = {name: (torch.nn.functional.pad(t, (0, -t.shape[-1] % 8)), m) for name, (t, m) in feats.local.items()}
        padded = model([STREAM], Features(feats.image_tokens_BND, wide))
        none = {name: (t[:, :0], m[:, :0]) for name, (t, m) in feats.local.items()}
        assert torch.isfinite(model([STREAM], Features(feats.image_tokens_BND, none))("x", "G")).all()
    torch.testing.assert_close(packed("x", "G"), dense.hidden_RLD[:, 4:7], rtol=1e-4, atol=1e-5)
    assert torch.equal(padded("x", "G"), packed("x", "G"))
    with pytest.raises(ContractError, match="detector tokens are 7 wide; this query transformer reads 20"):
        model.project(
            Features(feats.image_tokens_BND, feats.local | {"detector": (torch.zeros(3, 2, 7), ROWS[:, None] > 0)})
        )


def test_gradients_reach_their_weights() -> None:
    model = small_model(box_features="fourier")
    model([STREAM], features(3, dtype=torch.float32))("x", "G").sum().backward()
    grad = model.layers[0].local_attention.key_value["detector"].weight.grad
    assert (grad[:, 20:84].abs().sum(0) > 0).all()
    assert (grad[:, 84:] == 0).all()


def test_a_token_too_narrow_for_a_box_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"box_features: fourier reads the last four numbers .* segmenter tokens have 3"
    ):
        small_model(local_dims={"detector": 20, "segmenter": 3}, box_features="fourier")


def test_a_checkpoint_without_waves_gives_what_it_gave_and_grows_from_there() -> None:
    sizes = {"num_visual": 3, "num_grounding": 2, "hidden_size": 16, "num_layers": 3, "num_heads": 2}
    sizes |= {"intermediate_size": 24, "vocab_size": 70}
    context = BuildContext("random", 12, {"detector": 10})
    raw = build_mqformer(MQFormerOptions(**sizes), context).eval()
    waves = build_mqformer(MQFormerOptions(**sizes, box_features="fourier"), context).eval()
    load_converted(waves, from_upstream(to_upstream(raw), waves))
    feats = Features(torch.randn(3, 5, 12), {"detector": (torch.rand(3, 4, 10), torch.ones(3, 4).bool())})
    with torch.no_grad():
        got, want = waves([STREAM], feats), raw([STREAM], feats)
    torch.testing.assert_close(got("x", "G"), want("x", "G"))
    with pytest.raises(WeightsError, match="no place for box_features: fourier"):
        to_upstream(waves)
