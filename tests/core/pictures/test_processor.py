"""Pictures -> one tensor per expert, and the way back of every box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lyrics.core.conditions import Condition
from lyrics.core.errors import ImageError, PromptError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import Processor, prepare, prepare_one, resized
from lyrics.core.types import Preprocessing

GRAY = (0.5, 0.5, 0.5)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SQUASH = Preprocessing("squash", 112, *PLAIN)
DINO = Preprocessing("shortest", 80, *PLAIN, max_size=133)
SAM = Preprocessing("longest", 128, *PLAIN, pad_to=128)
CLIP = Preprocessing("shortest", 64, *PLAIN, crop=64)
CENTER = Preprocessing("longest", 96, *PLAIN, square="center")
CORNER = Preprocessing("longest", 96, *PLAIN, square="corner")
ALL = {"squash": SQUASH, "dino": DINO, "sam": SAM, "clip": CLIP, "center": CENTER, "corner": CORNER}


@pytest.mark.parametrize(
    ("preprocessing", "size_px", "expected"),
    [
        (SQUASH, (640, 480), (112, 112)),
        (SQUASH, (1, 5000), (112, 112)),
        (DINO, (640, 480), (107, 80)),  # the shortest side reaches 80
        (DINO, (480, 640), (80, 107)),
        (DINO, (1000, 400), (133, 53)),  # the longest side may not pass 133
        (DINO, (10, 10), (80, 80)),  # small pictures are enlarged
        (DINO, (4000, 1), (133, 1)),  # no side is rounded to zero
        (SAM, (640, 480), (128, 96)),
        (SAM, (480, 640), (96, 128)),
        (SAM, (3, 3000), (1, 128)),
        (CLIP, (128, 96), (85, 64)),
    ],
)
def test_size_after_the_resize(
    preprocessing: Preprocessing, size_px: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized(size_px, preprocessing) == expected


def with_rectangle(width: int, height: int, box: Box) -> Image.Image:
    """White where the box is, black elsewhere."""
    x1, y1, x2, y2 = (round(value) for value in box.to_px((width, height)))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size_px", [(320, 240), (200, 300), (64, 64)])
@pytest.mark.parametrize("name", ALL)
def test_frame_leads_back_from_what_is_seen(name: str, size_px: tuple[int, int]) -> None:
    """The pixels themselves say where the rectangle went; the frame must say the same, both ways."""
    box = Box(0.375, 0.375, 0.625, 0.75)
    pixels_CHW, frame = prepare_one(with_rectangle(*size_px, box), ALL[name])
    assert frame.size == (pixels_CHW.shape[2], pixels_CHW.shape[1])
    assert frame.original_size == size_px
    rows, columns = torch.nonzero(pixels_CHW[0] > 0.5, as_tuple=True)
    seen_px = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for found, expected in zip(frame.box_to_canvas(box), seen_px, strict=True):
        assert abs(found - float(expected)) <= 1
    back = frame.box_from_canvas(tuple(float(value) for value in seen_px))
    assert back is not None
    assert back.iou(box) > 0.85


def test_crop_is_central_and_loses_the_sides() -> None:
    pixels_CHW, frame = prepare_one(with_rectangle(256, 64, Box(0, 0, 0.25, 1)), CLIP)
    assert pixels_CHW.shape == (3, 64, 64)
    assert pixels_CHW.max() == 0, "the left quarter is outside of the central quarter"
    assert frame.box_from_canvas((0, 0, 64, 64)) == Box(0.375, 0, 0.625, 1)


def test_crop_of_a_picture_smaller_than_it_keeps_the_picture() -> None:
    pixels_CHW, frame = prepare_one(Image.new("RGB", (10, 40)), Preprocessing("longest", 20, *PLAIN, crop=16))
    assert pixels_CHW.shape == (3, 16, 5)
    assert frame.size == (5, 16)


def test_pixels_are_scaled_then_normalized_per_channel() -> None:
    preprocessing = Preprocessing("squash", 2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels_CHW, _ = prepare_one(Image.new("RGB", (2, 2), (255, 51, 0)), preprocessing)
    expected = torch.tensor([(1.0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0.0 - 0.3) / 2.0])
    assert pixels_CHW.dtype == torch.float32
    assert_close(pixels_CHW, expected[:, None, None].expand(3, 2, 2))


def test_channels_rows_and_columns_keep_their_places() -> None:
    values = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    pixels_CHW, frame = prepare_one(Image.fromarray(values), Preprocessing("longest", 3, *PLAIN))
    assert_close(pixels_CHW, torch.from_numpy(values).permute(2, 0, 1).float() / 255)
    assert frame.size == (3, 2)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resampling_is_pillows_of_that_name(resampling: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    preprocessing = Preprocessing("squash", 16, *PLAIN, resampling=resampling)  # type: ignore[arg-type]
    expected = np.asarray(noise.resize((16, 16), Image.Resampling[resampling.upper()]), dtype=np.float32) / 255
    assert_close(prepare_one(noise, preprocessing)[0].permute(1, 2, 0), torch.from_numpy(expected))


def test_batch_is_padded_on_the_right_and_below_with_zeros() -> None:
    """After normalization: black would be -1 here."""
    preprocessing = Preprocessing("longest", 8, GRAY, GRAY)
    batch = prepare([Image.new("RGB", (8, 4), "white"), Image.new("RGB", (2, 8), "white")], preprocessing)
    assert batch.pixels_BCHW.shape == (2, 3, 8, 8)
    assert [frame.size for frame in batch.frames] == [(8, 4), (2, 8)]
    expected_BHW = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected_BHW[0, :4] = True
    expected_BHW[1, :, :2] = True
    assert torch.equal(batch.pixel_mask_BHW, expected_BHW)
    assert torch.equal(batch.pixels_BCHW[:, 0], expected_BHW.float())


def test_canvas_is_padded_to_a_fixed_square_where_the_expert_asks_for_one() -> None:
    for pictures in ([], [Image.new("RGB", (64, 32))], [Image.new("RGB", (64, 32)), Image.new("RGB", (3, 9))]):
        assert prepare(pictures, SAM).pixels_BCHW.shape == (len(pictures), 3, 128, 128)


@pytest.mark.parametrize("name", ALL)
def test_no_pictures_are_an_empty_batch(name: str) -> None:
    batch = prepare([], ALL[name])
    assert (len(batch), batch.pixels_BCHW.shape[:2]) == (0, (0, 3))
    assert batch.pixel_mask_BHW.shape[0] == 0


@pytest.mark.parametrize("name", ["squash", "sam", "clip"])
def test_picture_is_prepared_the_same_in_any_company(name: str) -> None:
    pictures = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (30 + n, 50, 3), dtype=np.uint8)) for n in (0, 9)
    ]
    together = prepare(pictures, ALL[name])
    for index, picture in enumerate(pictures):
        alone = prepare([picture], ALL[name])
        width, height = alone.frames[0].size
        assert torch.equal(together.pixels_BCHW[index, :, :height, :width], alone.pixels_BCHW[0, :, :height, :width])
        assert together.frames[index] == alone.frames[0]


def test_every_expert_gets_its_own_view(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    processor = Processor({"image_encoder": SQUASH, "detector": DINO})
    images = processor.images([tmp_path / "a.png", Image.new("RGB", (20, 20))])
    assert len(images) == 2
    assert images.sizes_px == ((60, 40), (20, 20))
    assert images.by_expert["image_encoder"].pixels_BCHW.shape == (2, 3, 112, 112)
    assert [frame.size for frame in images.by_expert["detector"].frames] == [(120, 80), (80, 80)]
    assert all(
        frame.original_size == size
        for frame, size in zip(images.by_expert["detector"].frames, images.sizes_px, strict=True)
    )


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    assert Processor({"e": SQUASH}).images([tmp_path / "turned.jpg"]).sizes_px == ((40, 60),)


def test_tensors_go_to_the_device() -> None:
    images = Processor({"e": SQUASH}).images([Image.new("RGB", (9, 9))], device="meta")
    assert images.by_expert["e"].pixels_BCHW.is_meta


def test_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        Processor({"e": SQUASH}).images([Image.new("RGB", (9, 9)), tmp_path / "nowhere.png"])


def test_prepared_images_are_not_blurred_any_more() -> None:
    processor = Processor({"image_encoder": SQUASH})
    images = processor.images([Image.new("RGB", (9, 9))])
    assert processor.prepared(images) is images
    with pytest.raises(PromptError, match="images that are prepared cannot be blurred any more"):
        processor.prepared(images, Condition(blur_px=1))


def test_some_experts_see_a_blurred_picture() -> None:
    """The blur is in pixels of the original, before an expert's own resize, and moves no box."""
    edge = Image.new("RGB", (224, 224))
    edge.paste((255, 255, 255), (112, 0, 224, 224))
    processor = Processor({"image_encoder": SQUASH, "detector": SQUASH, "segmenter": SAM})
    clear = processor.images([edge])
    for part, unclear in (
        ("both", set(clear.by_expert)),
        ("encoder", {"image_encoder"}),
        ("experts", {"detector", "segmenter"}),
    ):
        seen = processor.images([edge], condition=Condition(blur_px=8, blur_parts=part))  # type: ignore[arg-type]
        for expert, batch in clear.by_expert.items():
            assert seen.by_expert[expert].frames == batch.frames
            assert seen.by_expert[expert].pixels_BCHW.equal(batch.pixels_BCHW) == (expert not in unclear)
    # The middle of an edge rises from 16 % to 84 % within two standard deviations.
    row = processor.images([edge], condition=Condition(blur_px=8)).by_expert["image_encoder"].pixels_BCHW[0, 0, 56]
    assert int(((row > 0.16) & (row < 0.84)).sum()) == pytest.approx(2 * 8 * 112 / 224, abs=1.5)
    assert (
        processor.images([edge], condition=Condition(soft="zero"))
        .by_expert["detector"]
        .pixels_BCHW.equal(clear.by_expert["detector"].pixels_BCHW)
    )


@pytest.mark.parametrize(("square", "left"), [("center", 16), ("corner", 0)])
def test_an_image_is_put_on_a_square_that_is_filled(square: str, left: int) -> None:
    preprocessing = Preprocessing("longest", 64, *PLAIN, square=square, square_fill=(0.2, 0.4, 0.6))  # type: ignore[arg-type]
    pixels, frame = prepare_one(Image.new("RGB", (50, 100), "white"), preprocessing)
    assert pixels.shape == (3, 64, 64)
    assert frame.size == (64, 64)
    assert (pixels[:, :, left : left + 32] == 1).all()
    fill = torch.tensor([51.0, 102.0, 153.0]) / 255
    assert_close(pixels[:, :, 63], fill[:, None].expand(3, 64))
    assert frame.box_to_canvas(Box(0.0, 0.0, 1.0, 1.0)) == (left, 0, left + 32, 64)
    seen = frame.box_from_canvas((0, 0, 64, 32))
    assert seen is not None
    assert seen.as_tuple() == pytest.approx((0.0, 0.0, 1.0, 0.5))


def test_a_square_needs_its_longest_side_resized() -> None:
    with pytest.raises(ValueError, match="square='center' needs resize='longest', not 'squash'"):
        Preprocessing("squash", 64, *PLAIN, square="center")


def test_no_image_of_extreme_shape_becomes_a_huge_square() -> None:
    pixels, frame = prepare_one(Image.new("RGB", (30_000, 2)), CENTER)
    assert pixels.shape == (3, 96, 96)
    assert frame.size == (96, 96)
