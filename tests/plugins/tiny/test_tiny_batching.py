"""What an expert says of a picture does not depend on the pictures beside it, nor on what padding holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyrics.core.errors import ContractError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from tests.plugins.tiny import builders
from tests.plugins.tiny.drawing import picture

# Sides that halve to odd numbers: 64 x 37 and 45 x 64 on the canvas.
PICTURES = [picture(seed, size)[0] for seed, size in ((0, (128, 74)), (1, (90, 128)))]
# The second box ends at the picture's border, so that samples of its margin fall on padding.
BOXES = [[Box(0.1, 0.2, 0.5, 0.7), Box(0.6, 0.5, 1.0, 1.0)], [Box(0.0, 0.0, 0.4, 0.3)]]
NAMES = [["red circle", "blue square"], ["blue square"]]
TOLERANCE = 1e-4


def batch_and_singles(preprocessing):
    """Both pictures in one batch whose padding is no zeros but noise, and each by itself without any padding."""
    preprocessing = replace(preprocessing, pad_to=None)
    both = prepare(PICTURES, preprocessing)
    noise = torch.randn(both.pixels_BCHW.shape, generator=torch.Generator().manual_seed(0)) * 10
    pixels_BCHW = torch.where(both.pixel_mask_BHW[:, None], both.pixels_BCHW, noise)
    singles = [prepare([single], preprocessing) for single in PICTURES]
    assert singles[0].pixels_BCHW.shape != singles[1].pixels_BCHW.shape
    return ImageBatch(pixels_BCHW, both.frames), singles


def with_biases(expert):
    """Biases are 0 to begin with, and would write nothing on padding."""
    for parameter in expert.trunk.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return expert


@torch.no_grad()
def test_tagger_batch_equals_single_pictures():
    tagger = with_biases(builders.tagger(**builders.SMALL, vocabulary=builders.NAMES))
    both, singles = batch_and_singles(tagger.preprocessing)
    alone = torch.cat([tagger.logits(single) for single in singles])
    torch.testing.assert_close(tagger.logits(both), alone, atol=TOLERANCE, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > TOLERANCE


@torch.no_grad()
def test_detector_batch_equals_single_pictures():
    detector = with_biases(builders.detector(**builders.SMALL, vocabulary=builders.NAMES, score_threshold=0.0))
    both, singles = batch_and_singles(detector.preprocessing)
    together = detector(both, NAMES)
    for index, single in enumerate(singles):
        alone = detector(single, NAMES[index : index + 1])
        tokens_MD = together.tokens_BMD[index][together.mask_BM[index]]
        assert alone.mask_BM.all()
        torch.testing.assert_close(tokens_MD, alone.tokens_BMD[0], atol=TOLERANCE, rtol=0)
        assert [d.phrase for d in together.detections[index]] == [d.phrase for d in alone.detections[0]]
        assert alone.detections[0]
        for found, expected in zip(together.detections[index], alone.detections[0], strict=True):
            assert found.score == pytest.approx(expected.score, abs=TOLERANCE)
            assert found.box_norm.as_tuple() == pytest.approx(expected.box_norm.as_tuple(), abs=TOLERANCE)
    assert together.tokens_BMD[~together.mask_BM].eq(0).all()
    assert not together.mask_BM.all()


@torch.no_grad()
def test_queries_of_a_batch_equal_those_of_single_images():
    detector = builders.detector(
        **builders.SMALL, vocabulary=builders.NAMES, queries=6, query_width=8, query_threshold=0
    )
    both, singles = batch_and_singles(with_biases(detector).preprocessing)
    together = detector(both, NAMES)
    for index, single in enumerate(singles):
        alone = detector(single, NAMES[index : index + 1])
        assert torch.equal(together.mask_BM[index], alone.mask_BM[0])
        torch.testing.assert_close(together.tokens_BMD[index], alone.tokens_BMD[0], atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("look_width", [None, 12])
def test_segmenter_batch_equals_single_pictures(look_width):
    segmenter = with_biases(builders.segmenter(**builders.SMALL, roi_size=12, look_width=look_width))
    both, singles = batch_and_singles(segmenter.preprocessing)
    together = segmenter(both, BOXES)
    for index, single in enumerate(singles):
        alone = segmenter(single, BOXES[index : index + 1])
        assert together.mask_BK[index].tolist() == [k < len(BOXES[index]) for k in range(2)]
        tokens_KD = together.tokens_BKD[index][together.mask_BK[index]]
        torch.testing.assert_close(tokens_KD, alone.tokens_BKD[0], atol=TOLERANCE, rtol=0)
        for found, expected in zip(together.masks[index], alone.masks[0], strict=True):
            # A pixel whose logit is rounding noise may fall on either side.
            assert (found.to_array() != expected.to_array()).mean() < 1e-3
    assert together.tokens_BKD[~together.mask_BK].eq(0).all()


@torch.no_grad()
def test_vit_batch_equals_single_pictures_and_repeats_exactly():
    vit = builders.vit(image_size=32, width=16, layers=1, heads=2)
    both = prepare(PICTURES, vit.preprocessing).pixels_BCHW
    tokens_BND = vit(both)
    assert tokens_BND.shape == (2, 16, vit.feature_dim)
    assert torch.equal(tokens_BND, vit(both))
    alone = torch.cat([vit(both[:1]), vit(both[1:])])
    torch.testing.assert_close(tokens_BND, alone, atol=TOLERANCE, rtol=0)


def test_vit_refuses_pictures_of_another_size():
    vit = builders.vit(image_size=32, width=16, layers=1, heads=2)
    with pytest.raises(ContractError, match=r"\(batch, 3, 32, 32\), not \(1, 3, 64, 32\)"):
        vit(torch.zeros(1, 3, 64, 32))


@torch.no_grad()
def test_experts_repeat_exactly():
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, score_threshold=0.0)
    segmenter = builders.segmenter(**builders.SMALL, roi_size=12)
    images = prepare(PICTURES, detector.preprocessing)
    first, second = detector(images, NAMES), detector(images, NAMES)
    assert torch.equal(first.tokens_BMD, second.tokens_BMD)
    assert first.detections == second.detections
    assert segmenter(images, BOXES).masks == segmenter(images, BOXES).masks
