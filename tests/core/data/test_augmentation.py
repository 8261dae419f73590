"""Crops and flips: boxes, masks and texts go where the pixels go."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lyrics.core.data.augmentation import Augmentation, may_flip, moved_box, moved_objects, moved_sample, moved_text
from lyrics.core.geometry import Box, Crop, FlipHorizontal, Frame, Resize
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects, parse
from lyrics.core.masks import Mask
from lyrics.core.types import DetectedObject, Sample, Turn


def painted(size: tuple[int, int], corners_px: tuple[int, int, int, int]) -> tuple[Sample, Image.Image]:
    """A white picture with a black rectangle, annotated."""
    x1, y1, x2, y2 = corners_px
    pixels = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 0
    mask = Mask.from_array(pixels[..., 0] == 0)
    thing = DetectedObject("black box", Box.from_px(corners_px, size), 1.0, mask)
    return Sample(image="x", captions=("a box",), objects=(thing,)), Image.fromarray(pixels)


def test_boxes_and_masks_go_where_the_pixels_go() -> None:
    """Whatever is drawn: the moved mask is the black of the moved picture, and the moved box is around it."""
    random = np.random.default_rng(0)
    kept = 0
    for position in range(300):
        size = (int(random.integers(30, 90)), int(random.integers(30, 90)))
        x1, y1 = (int(random.integers(0, side - 8)) for side in size)
        x2, y2 = int(random.integers(x1 + 4, size[0])), int(random.integers(y1 + 4, size[1]))
        sample, picture = painted(size, (x1, y1, x2, y2))
        moved, after, frame = Augmentation(min_visible=0.0)(sample, picture, seed=1, position=position)
        black_HW = np.asarray(after)[..., 0] == 0
        assert after.size == frame.size
        if not black_HW.any():
            assert moved.objects == ()
            continue
        kept += 1
        assert moved.objects[0].mask == Mask.from_array(black_HW)
        oracle = Mask.from_array(black_HW).box_norm()
        assert moved.objects[0].box_norm.as_tuple() == pytest.approx(oracle.as_tuple(), abs=1e-9)
        assert moved.objects[0].tag == "black box"
    assert kept > 250


def test_masks_of_any_shape_are_cut_and_mirrored_with_the_pixels() -> None:
    """Speckles that have no symmetry: the mask moved with the frame is the mask of the moved picture,
    pixel for pixel.
    """
    random = np.random.default_rng(2)
    flipped = 0
    for position in range(60):
        size = (int(random.integers(20, 60)), int(random.integers(20, 60)))
        marked_HW = random.random(size[::-1]) < 0.3
        picture = Image.fromarray(np.where(marked_HW, 0, 255).astype(np.uint8)).convert("RGB")
        thing = DetectedObject("speckles", Box(0, 0, 1, 1), 1.0, Mask.from_array(marked_HW))
        sample = Sample(image="x", objects=(thing,))
        moved, after, frame = Augmentation(min_visible=0.0)(sample, picture, seed=3, position=position)
        flipped += FlipHorizontal() in frame.steps
        (found,) = moved.objects
        assert found.mask is not None
        assert np.array_equal(found.mask.to_array(), np.asarray(after)[..., 0] == 0)
    assert 15 < flipped < 45


def test_a_hundred_thousand_boxes_agree_with_pixel_arithmetic() -> None:
    """Crop and flip of boxes on the pixel grid, done by hand in integers."""
    random = np.random.default_rng(1)
    width, height = 400, 300
    for frame_number in range(20):
        x, y = (int(random.integers(0, 150)) for _ in range(2))
        crop_width, crop_height = int(random.integers(80, width - x)), int(random.integers(80, height - y))
        flip = bool(frame_number % 2)
        frame = Frame.of(width, height).crop(x, y, crop_width, crop_height)
        frame = frame.flip() if flip else frame
        corners_N4 = np.stack(
            [
                low := random.integers(0, width - 1, 5_000),
                top := random.integers(0, height - 1, 5_000),
                random.integers(low + 1, width + 1),
                random.integers(top + 1, height + 1),
            ],
            axis=1,
        )
        for x1, y1, x2, y2 in corners_N4.tolist():
            moved = moved_box(Box(x1 / width, y1 / height, x2 / width, y2 / height), frame, 0.2)
            left, right = max(x1 - x, 0), min(x2 - x, crop_width)
            upper, lower = max(y1 - y, 0), min(y2 - y, crop_height)
            share = max(right - left, 0) * max(lower - upper, 0) / ((x2 - x1) * (y2 - y1))
            if abs(share - 0.2) < 1e-9:
                continue
            assert (moved is not None) == (share > 0.2)
            if moved:
                if flip:
                    left, right = crop_width - right, crop_width - left
                expected = (left / crop_width, upper / crop_height, right / crop_width, lower / crop_height)
                assert max(abs(a - b) for a, b in zip(moved.as_tuple(), expected, strict=True)) <= 1e-6


def test_augmentation_is_a_function_of_seed_and_position() -> None:
    sample, picture = painted((80, 60), (10, 10, 40, 40))
    augment = Augmentation()
    frames = {
        (seed, position): augment(sample, picture, seed=seed, position=position)[2]
        for seed in (0, 1)
        for position in range(40)
    }
    assert len(set(map(repr, frames.values()))) > 75
    again = {key: augment(sample, picture, seed=key[0], position=key[1])[2] for key in reversed(frames)}
    assert again == frames


def test_crops_keep_to_the_area_and_shape_asked_for() -> None:
    sample, _ = painted((200, 150), (10, 10, 40, 40))
    augment = Augmentation(scale=(0.3, 0.6), ratio=(0.5, 2.0))
    areas, ratios, flips = [], [], Counter()
    for position in range(500):
        frame = augment.frame(sample, (200, 150), seed=0, position=position)
        crop = frame.steps[0]
        areas.append(crop.width * crop.height / (200 * 150))
        ratios.append(crop.width / crop.height)
        flips[FlipHorizontal() in frame.steps] += 1
    assert 0.29 < min(areas) < 0.33
    assert 0.57 < max(areas) < 0.61
    assert min(ratios) < 0.6
    assert max(ratios) > 1.7
    assert min(ratios) > 0.48
    assert max(ratios) < 2.05
    assert 200 < flips[True] < 300


def test_size_stretches_the_crop_and_leaves_shares_alone() -> None:
    sample, picture = painted((90, 60), (10, 10, 60, 40))
    plain, _, _ = Augmentation()(sample, picture, seed=3, position=4)
    sized, after, frame = Augmentation(size=32)(sample, picture, seed=3, position=4)
    assert after.size == (32, 32) == frame.size
    assert Resize(32, 32) in frame.steps
    assert sized.objects[0].box_norm.as_tuple() == pytest.approx(plain.objects[0].box_norm.as_tuple())
    assert (sized.objects[0].mask.width, sized.objects[0].mask.height) == (32, 32)


def test_a_picture_of_extreme_shape_is_cropped_in_the_middle() -> None:
    sample, _ = painted((1000, 10), (10, 1, 40, 9))
    frame = Augmentation(flip=0).frame(sample, (1000, 10), seed=0, position=0)
    assert frame.steps == (Crop(493, 0, 13, 10),)


@pytest.mark.parametrize(
    "text",
    [
        "a dog on the left",
        "RIGHT of the tree",
        "the leftmost cup",
        "a right-hand glove",
        "his lefthand side",
        "狗在左边",
    ],
)
@pytest.mark.parametrize("where", ["caption", "instruction", "answer", "tag", "option"])
def test_no_flip_where_a_text_names_a_side(text: str, where: str) -> None:
    box = Box(0, 0, 1, 1)
    sample = {
        "caption": Sample("x", captions=("fine", text)),
        "instruction": Sample("x", turns=(Turn("a", "b"), Turn(text, "yes"))),
        "answer": Sample("x", turns=(Turn("where?", text),)),
        "tag": Sample("x", objects=(DetectedObject("dog", box, 1.0), DetectedObject(text, box, 1.0))),
        "option": Sample("x", turns=(Turn("where?", "b"),), extra={"options": ("b", text)}),
    }[where]
    assert not may_flip(sample)
    frames = [Augmentation(flip=1.0).frame(sample, (60, 40), seed=0, position=position) for position in range(5)]
    assert all(FlipHorizontal() not in frame.steps for frame in frames)


@pytest.mark.parametrize("text", ["a bright cleft", "copyright", "a leftover meal", "upright piano", "alright"])
def test_words_that_only_contain_a_side_do_not_forbid_it(text: str) -> None:
    sample = Sample("x", captions=(text,))
    assert may_flip(sample)
    frame = Augmentation(flip=1.0).frame(sample, (60, 40), seed=0, position=0)
    assert FlipHorizontal() in frame.steps


def test_what_is_to_be_read_is_not_mirrored() -> None:
    assert not may_flip(Sample("x", turns=(Turn("What does it say?", "OPEN"),), extra={"task": "text-vqa"}))
    assert not may_flip(Sample("x", extra={"words": ({"text": "OPEN"},)}))
    assert may_flip(Sample("x", extra={"task": "vqa", "words": ()}))


def test_a_forbidden_flip_does_not_change_the_crop() -> None:
    free, bound = Sample("x", captions=("a dog",)), Sample("x", captions=("a dog on the left",))
    for position in range(20):
        ours, theirs = (Augmentation().frame(one, (60, 40), seed=0, position=position) for one in (free, bound))
        assert ours.steps[0] == theirs.steps[0]


def test_objects_hardly_visible_are_dropped() -> None:
    frame = Frame.of(100, 100).crop(0, 0, 50, 100)
    boxes = {share: Box((50 - 20 * share) / 100, 0.1, (70 - 20 * share) / 100, 0.3) for share in (0.15, 0.25, 1.0)}
    kept = moved_objects(tuple(DetectedObject(str(k), box, 1.0) for k, box in boxes.items()), frame, 0.2)
    assert [found.tag for found in kept] == ["0.25", "1.0"]
    assert kept[0].box_norm.x2 == 1.0


def test_an_object_whose_pixels_are_all_cut_off_is_dropped() -> None:
    """A thin L: half of its box is left, but none of its pixels."""
    mask_HW = np.zeros((40, 40), dtype=bool)
    mask_HW[:, 35:] = True
    mask_HW[35:, :] = True
    thing = DetectedObject("l", Box(0, 0, 1, 1), 1.0, Mask.from_array(mask_HW))
    assert moved_objects((thing,), Frame.of(40, 40).crop(0, 0, 30, 30), 0.2) == ()


def test_boxes_in_texts_move_and_turns_about_dropped_ones_go() -> None:
    frame = Frame.of(100, 100).crop(0, 0, 50, 100).flip()
    near, far = Box(0.1, 0.2, 0.3, 0.4), Box(0.8, 0.2, 0.9, 0.4)
    text = f"Is {format_objects([SpatialObject('a dog', near)])} larger than {format_box(near)}?"
    moved = moved_text(text, frame, 0.2)
    assert moved.startswith("Is <br><T>a dog</T><Bbox>")
    assert moved.endswith("</Bbox>?")
    for one in parse(moved).objects:
        assert one.box.as_tuple() == pytest.approx((0.4, 0.2, 0.8, 0.4), abs=0.003)
    sample = Sample(
        "x",
        captions=("plain", f"at {format_box(far)}"),
        turns=(Turn(text, "yes"), Turn("Where is it?", format_box(far)), Turn(f"And {format_box(far)}?", "no")),
    )
    after, _, _ = Augmentation(flip=0, scale=(1, 1), ratio=(1, 1))(sample, Image.new("RGB", (9, 9)), seed=0, position=0)
    assert after.turns == sample.turns
    cut = moved_sample(sample, frame, 0.2)
    assert [turn.answer for turn in cut.turns] == ["yes"]
    assert cut.captions == ("plain",)


@pytest.mark.parametrize(("task", "left"), [("rec", 0), ("referential", 0), ("grounded-caption", 0), ("vqa", 1)])
def test_a_sample_about_its_first_object_loses_all_with_it(task: str, left: int) -> None:
    objects = (DetectedObject("far", Box(0.8, 0, 1, 1), 1.0), DetectedObject("near", Box(0, 0, 0.2, 1), 1.0))
    moved = moved_sample(Sample("x", objects=objects, extra={"task": task}), Frame.of(10, 10).crop(0, 0, 5, 10), 0.2)
    assert len(moved.objects) == left
