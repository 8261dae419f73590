"""The experts learn: each one fits a handful of drawn pictures until it says exactly what is in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import DetectedObject
from lyrics.plugins.tiny.expert_losses import (
    EncoderWithNames,
    adamw,
    detector_loss,
    encoder_loss,
    fit,
    segmenter_loss,
    tagger_loss,
    token_targets,
)
from tests.plugins.tiny import builders
from tests.plugins.tiny.drawing import VOCABULARY, picture

PICTURES, OBJECTS = zip(
    *(picture(seed, size) for seed, size in enumerate([(96, 72), (80, 96), (96, 96), (72, 72)])), strict=True
)


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are too small to share: on a busy machine threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(expert, loss, steps, module=None):
    images = prepare(PICTURES, expert.preprocessing)
    history = fit(module or expert, itertools.repeat((images, OBJECTS)), loss, steps=steps)
    assert len(history) == steps
    assert history[-1] < history[0] / 4
    assert not expert.training
    return images


@torch.no_grad()
def names_of(tagger, images):
    return [{tag.name for tag in tags} for tags in tagger(images)]


def test_tagger_learns_every_tag():
    tagger = builders.tagger(image_size=96, vocabulary=VOCABULARY)
    wanted = [{obj.tag for obj in objects} for objects in OBJECTS]
    images = prepare(PICTURES, tagger.preprocessing)
    assert names_of(tagger, images) != wanted
    fitted(tagger, tagger_loss, steps=50)
    assert names_of(tagger, images) == wanted
    with torch.no_grad():
        for tags in tagger(images):
            assert all(tag.score >= 0.5 for tag in tags)
            assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)


def test_detector_finds_every_object_in_the_original_picture():
    detector = builders.detector(image_size=96, vocabulary=VOCABULARY)
    images = fitted(detector, detector_loss, steps=50)
    with torch.no_grad():
        found = detector(images, [VOCABULARY] * len(PICTURES)).detections
    for detections, objects in zip(found, OBJECTS, strict=True):
        assert len(detections) < 2 * len(objects)
        for obj in objects:
            assert max(d.box_norm.iou(obj.box_norm) for d in detections if d.phrase == obj.tag) >= 0.5


def test_segmenter_draws_every_mask_in_the_original_picture():
    segmenter = builders.segmenter(image_size=96)
    images = fitted(segmenter, segmenter_loss, steps=50)
    with torch.no_grad():
        masks = segmenter(images, [[obj.box_norm for obj in objects] for objects in OBJECTS]).masks
    ious = []
    for found, objects in zip(masks, OBJECTS, strict=True):
        for mask, obj in zip(found, objects, strict=True):
            ours, wanted = mask.to_array(), obj.mask.to_array()
            ious.append((ours & wanted).sum() / (ours | wanted).sum())
    assert np.mean(ious) >= 0.85


def test_encoder_learns_what_lies_under_its_tokens():
    encoder = builders.vit(image_size=48, blocks=1, layers=1)
    module = EncoderWithNames(encoder, VOCABULARY)
    images = fitted(encoder, encoder_loss, steps=200, module=module)
    with torch.no_grad():
        logits = module.phrases(encoder(images.pixels_BCHW)).unflatten(1, (6, 6))
    for logits_hwP, objects in zip(logits, OBJECTS, strict=True):
        for obj in objects:
            box = obj.box_norm
            row, column = int((box.y1 + box.y2) / 2 * 6), int((box.x1 + box.x2) / 2 * 6)
            assert logits_hwP[row, column].argmax() == VOCABULARY.index(obj.tag)
    _, boxes_BM4 = module.predict(images)
    _, wanted_BM4, lying_BM = token_targets(module, images, OBJECTS)
    assert (boxes_BM4 - wanted_BM4)[lying_BM].abs().mean() < 0.05


def test_targets_of_tokens():
    """A canvas of 16 x 16 pixels with four tokens: the left ones lie on a large box, the lower left one on a small one,
    too.
    """
    module = EncoderWithNames(builders.vit(image_size=16, width=16, layers=1, heads=2), builders.NAMES)
    large, small = Box(0, 0, 0.5, 1), Box(0.125, 0.625, 0.5, 1)
    objects = [[DetectedObject("red circle", large, 1.0), DetectedObject("blue square", small, 1.0)], []]
    images = prepare([Image.new("RGB", (16, 16))] * 2, module.encoder.preprocessing)
    names_BMP, boxes_BM4, lying_BM = token_targets(module, images, objects)
    assert names_BMP[0].tolist() == [[1, 0], [0, 0], [1, 1], [0, 0]]
    assert lying_BM.tolist() == [[True, False, True, False], [False] * 4]
    assert boxes_BM4[0, 0].tolist() == [0.25, 0.5, 0.5, 1]
    assert boxes_BM4[0, 2].tolist() == [0.3125, 0.8125, 0.375, 0.375]
    assert not names_BMP[1].any()
    assert encoder_loss(module, images, [[], []]).isfinite()


def test_unknown_tags_and_missing_masks_and_pictures_without_objects_can_be_trained_on():
    tagger = builders.tagger(**builders.SMALL, vocabulary=builders.NAMES)
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES)
    segmenter = builders.segmenter(**builders.SMALL, roi_size=8)
    objects = [type(obj)("purple cow", obj.box_norm, 1.0) for obj in OBJECTS[0]]
    for expert, loss in ((tagger, tagger_loss), (detector, detector_loss), (segmenter, segmenter_loss)):
        images = prepare(PICTURES[:2], expert.preprocessing)
        value = loss(expert, images, [objects, []])
        value.backward()
        assert value.isfinite()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in expert.parameters())


def test_fit_goes_on_where_it_stopped():
    def begun():
        tagger = builders.tagger(**builders.SMALL, vocabulary=builders.NAMES)
        return tagger, adamw(tagger)

    whole, optimizer = begun()
    batches = [
        (prepare([picture], whole.preprocessing), [objects]) for picture, objects in zip(PICTURES, OBJECTS, strict=True)
    ]
    expected = fit(whole, batches, tagger_loss, steps=4, optimizer=optimizer)
    halves, optimizer = begun()
    seen = []
    with pytest.raises(ValueError, match="ended after 2"):
        fit(halves, batches[:2], tagger_loss, steps=4, optimizer=optimizer, after_step=lambda *step: seen.append(step))
    rest = fit(halves, batches[2:], tagger_loss, steps=4, optimizer=optimizer, done=2)
    assert seen == [(1, expected[0]), (2, expected[1])]
    assert rest == expected[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_fit_says_when_the_batches_end_early():
    tagger = builders.tagger(**builders.SMALL, vocabulary=builders.NAMES)
    images = prepare(PICTURES[:1], tagger.preprocessing)
    with pytest.raises(ValueError, match="3 steps, but the batches ended after 2"):
        fit(tagger, [(images, OBJECTS[:1])] * 2, tagger_loss, steps=3)
    assert not tagger.training
