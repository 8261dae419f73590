"""Two views of one image on two grounds: objects stay, and an expert is drawn towards telling the same of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lyrics.core.pictures.processor import prepare
from lyrics.plugins.tiny import grounds, recipe
from lyrics.plugins.tiny.grounds import detector_views_loss, on_another_ground
from lyrics.plugins.tiny.training import detector_loss
from lyrics.plugins.tiny.vocabulary import NOUNS
from tests.plugins.tiny import builders

DATA = recipe.scenes("train", 64, fine=True)
PLAN = recipe.Plan("tiny-detector", steps=2, batch=8, learning_rate=1e-3, fine=True, views=2)


def test_the_ground_changes_and_nothing_else():
    images, objects = recipe.drawn(DATA, range(12))
    changed = 0
    for row, (image, seen) in enumerate(zip(images, objects, strict=True)):
        before = np.asarray(image).copy()
        other = np.asarray(on_another_ground(image, seen, row))
        assert np.array_equal(np.asarray(image), before)
        owned = np.any([one.mask.to_array() for one in seen], axis=0)
        assert np.array_equal(other[owned], before[owned])
        changed += np.abs(other[~owned].astype(float) - before[~owned]).mean() > 20
        assert np.array_equal(other, np.asarray(on_another_ground(image, seen, row)))
        assert not np.array_equal(other, np.asarray(on_another_ground(image, seen, row + 1)))
    assert changed >= 9


def test_batches_of_two_views_have_each_scene_twice():
    preprocessing = recipe.build_expert("tiny-detector", fine=True).preprocessing
    dataset = recipe.scenes_for(PLAN)
    assert len(dataset) == 8
    first, second = recipe.batches(dataset, PLAN, preprocessing)
    again = list(recipe.batches(dataset, PLAN, preprocessing, first=1))
    assert len(again) == 1
    assert torch.equal(again[0][0].pixels_BCHW, second[0].pixels_BCHW)
    pixels_BCHW, objects = first[0].pixels_BCHW, first[1]
    assert len(pixels_BCHW) == len(objects) == 8
    for view in range(0, 8, 2):
        assert objects[view] == objects[view + 1]
        assert not torch.equal(pixels_BCHW[view], pixels_BCHW[view + 1])
        assert torch.equal(first[0].pixel_mask_BHW[view], first[0].pixel_mask_BHW[view + 1])


def test_the_loss_is_the_detectors_and_what_views_differ_in():
    detector = builders.detector(**builders.SMALL, vocabulary=NOUNS, query_width=8)
    images, objects = recipe.drawn(DATA, range(3))
    twice = prepare([image for image in images for _ in range(2)], detector.preprocessing)
    seen = [found for found in objects for _ in range(2)]
    same = detector_views_loss(detector, twice, seen)
    torch.testing.assert_close(same, detector_loss(detector, twice, seen))
    others = [
        on_another_ground(image, found, row) for row, (image, found) in enumerate(zip(images, objects, strict=True))
    ]
    pairs = prepare([view for pair in zip(images, others, strict=True) for view in pair], detector.preprocessing)
    apart = detector_views_loss(detector, pairs, seen) - detector_loss(detector, pairs, seen)
    assert apart > 0.01
    apart.backward()
    assert detector.narrow.weight.grad.any()


def test_a_cell_or_none_at_all_differs_in_nothing():
    detector = builders.detector(**builders.SMALL, vocabulary=NOUNS, query_width=8)
    images, _ = recipe.drawn(DATA, range(2))
    loss = detector_views_loss(detector, prepare(images, detector.preprocessing), [[], []])
    assert torch.isfinite(loss)
    loss.backward()


def test_plans_with_views_use_them():
    assert recipe._loss_of(PLAN) is grounds.detector_views_loss
    assert recipe._loss_of(replace(PLAN, views=1)) is detector_loss
