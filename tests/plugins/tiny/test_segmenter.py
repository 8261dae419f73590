"""Masks in the original picture, through every kind of frame; samples beyond the canvas; many boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lyrics.core.geometry import Box, Frame
from lyrics.core.masks import Mask
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import DetectedObject
from lyrics.plugins.tiny.expert_losses import _mask_samples
from lyrics.plugins.tiny.segmenter import CHUNK, MARGIN, pasted, regions, sample, sample_points
from tests.plugins.tiny import builders
from tests.plugins.tiny.drawing import drawn_mask, picture

FRAMES = {
    "resize": Frame.of(120, 80).resize(64, 43),
    "squash": Frame.of(120, 80).resize(64, 64),
    "flip": Frame.of(120, 80).resize(64, 43).flip(),
    "crop": Frame.of(120, 80).resize(96, 64).crop(10, 0, 64, 64),
    "pad": Frame.of(120, 80).resize(48, 32).pad(7, 9, 9, 23),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_mask_sampled_over_its_box_and_pasted_comes_back(frame):
    mask = Mask.from_array(drawn_mask("triangle", 30, 20, 48, (120, 80)))
    box = mask.box_norm()
    samples_RR = _mask_samples(frame, DetectedObject("triangle", box, 1.0, mask), 56)[0]
    again = pasted(samples_RR - 0.5, regions(frame, [box])[0], frame).to_array()
    wanted = mask.to_array()
    assert (again & wanted).sum() / (again | wanted).sum() > 0.95


def test_pasting_is_exact_to_the_pixel_and_follows_a_flip():
    """The left half of the samples is inside: the left half of the region, which a flip makes the right half of the
    original.
    """
    logits_RR = torch.ones(20, 20)
    logits_RR[:, 10:] = -1
    box = Box(0.25, 0.25, 0.75, 0.75)
    margin = round(80 * 0.5 * MARGIN)
    for frame, columns in (
        (Frame.of(80, 80), slice(20 - margin, 40)),
        (Frame.of(80, 80).flip(), slice(40, 60 + margin)),
    ):
        wanted = np.zeros((80, 80), dtype=bool)
        wanted[20 - margin : 60 + margin, columns] = True
        found = pasted(logits_RR, regions(frame, [box])[0], frame)
        assert np.array_equal(found.to_array(), wanted)


def test_samples_are_bilinear_at_pixel_centres_and_zero_outside():
    ramp_1HW = torch.arange(8.0).expand(1, 4, 8) + 0.5  # the value is x
    points = sample_points(np.array([[2.0, 0.0, 6.0, 4.0], [6.0, 0.0, 14.0, 4.0]]), 4)
    assert points[0, 1, 0].tolist() == [2.5, 1.5]
    samples = sample(ramp_1HW, points, (8.0, 4.0))
    assert samples.shape == (2, 1, 4, 4)
    torch.testing.assert_close(samples[0, 0, 1], torch.tensor([2.5, 3.5, 4.5, 5.5]))
    torch.testing.assert_close(samples[1, 0, 1], torch.tensor([7.0, 0.0, 0.0, 0.0]))


@torch.no_grad()
def test_tokens_hold_the_boxes_and_masks_stay_near_them():
    segmenter = builders.segmenter(**builders.SMALL, roi_size=12)
    image, _ = picture(0, (90, 70))
    box = Box(0.2, 0.3, 0.6, 0.5)
    out = segmenter(prepare([image], segmenter.preprocessing), [[box]])
    assert out.tokens_BKD.shape == (1, 1, 28)
    assert out.tokens_BKD[0, 0, -4:].tolist() == pytest.approx([0.4, 0.4, 0.4, 0.2])
    torch.nn.init.constant_(segmenter.exit.bias, 50.0)
    full = segmenter(prepare([image], segmenter.preprocessing), [[box]]).masks[0][0].box_norm()
    assert full.as_tuple() == pytest.approx((0.2 - 0.05, 0.3 - 0.025, 0.6 + 0.05, 0.5 + 0.025), abs=1 / 70)


@torch.no_grad()
def test_boxes_beyond_one_chunk_are_answered_in_order():
    segmenter = builders.segmenter(**builders.SMALL, roi_size=4)
    image, _ = picture(0, (64, 64))
    random = np.random.default_rng(0)
    corners = random.uniform(0, 0.6, (CHUNK + 5, 2))
    boxes = [Box(x, y, x + 0.3, y + 0.3) for x, y in corners]
    images = prepare([image], segmenter.preprocessing)
    out = segmenter(images, [boxes])
    alone = segmenter(images, [boxes[-1:]])
    torch.testing.assert_close(out.tokens_BKD[0, -1], alone.tokens_BKD[0, 0], atol=1e-5, rtol=0)
    assert len(out.masks[0]) == CHUNK + 5


@torch.no_grad()
def test_a_box_without_a_pixel_has_an_empty_mask():
    segmenter = builders.segmenter(**builders.SMALL, roi_size=4)
    image, _ = picture(0, (64, 64))
    out = segmenter(prepare([image], segmenter.preprocessing), [[Box(0.5, 0.5, 0.5 + 2e-7, 0.5 + 2e-7)]])
    assert out.masks[0][0].area_px == 0
    assert out.tokens_BKD.isfinite().all()


@torch.no_grad()
def test_boxes_cropped_away_give_finite_tokens_and_no_mask_on_hidden_ground():
    segmenter = builders.segmenter(**builders.SMALL, roi_size=4)
    frame = Frame.of(128, 64).crop(0, 0, 64, 64)
    image, _ = picture(0, (64, 64))
    images = prepare([image], segmenter.preprocessing)
    images = type(images)(images.pixels_BCHW, (frame,))
    out = segmenter(images, [[Box(0.8, 0.2, 0.9, 0.8)]])
    assert out.tokens_BKD.isfinite().all()


LOOKING = {**builders.SMALL, "roi_size": 8, "look_width": 12}


def test_a_look_is_of_what_is_inside_of_the_mask():
    """Whatever the pixels outside are, it stays; those inside change it."""
    look = builders.segmenter(**LOOKING).look
    logits_Krr = torch.full((2, 8, 8), -40.0)
    logits_Krr[0, 2:6, 2:6] = 40.0
    logits_Krr[1, :, :3] = 40.0
    inside_K1RR = (
        torch.nn.functional.interpolate((logits_Krr > 0).float()[:, None], scale_factor=2, mode="bilinear") > 0
    )
    pixels_K3RR = torch.rand(2, 3, 16, 16)
    others_K3RR = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        here = look(pixels_K3RR, logits_Krr)
        assert here.shape == (2, 12)
        torch.testing.assert_close(look(torch.where(inside_K1RR, pixels_K3RR, others_K3RR), logits_Krr), here)
        assert (
            (look(torch.where(inside_K1RR, others_K3RR, pixels_K3RR), logits_Krr) - here).abs().amax(1) > 1e-4
        ).all()


def test_tokens_are_looks_with_their_boxes_and_masks_learn_nothing_from_them():
    segmenter = builders.segmenter(**LOOKING)
    batch = prepare([picture(1, (64, 64))[0], picture(2, (40, 64))[0]], segmenter.preprocessing)
    boxes = [[Box(0.1, 0.1, 0.5, 0.6), Box(0.2, 0.2, 0.9, 0.9)], []]
    output = segmenter(batch, boxes)
    assert output.tokens_BKD.shape == (2, 2, 16)
    assert output.mask_BK.tolist() == [[True, True], [False, False]]
    _, looks_KD = segmenter.predict(batch, boxes)
    torch.testing.assert_close(output.tokens_BKD[0, :, :12], looks_KD)
    looks_KD.sum().backward()
    assert segmenter.look.out[-1].weight.grad.any()
    assert segmenter.exit.weight.grad is None


def test_a_batch_without_boxes_has_no_looks():
    segmenter = builders.segmenter(**LOOKING)
    logits, looks = segmenter.predict(prepare([picture(1, (64, 64))[0]], segmenter.preprocessing), [[]])
    assert (logits.shape, looks.shape) == ((0, 8, 8), (0, 12))
