"""Random resized crop and horizontal flip that take boxes, masks and boxes named in texts along (paper, section 4).

What comes out is an image like any other: its boxes are shares of the new image, and each expert prepares it in its
own way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lyrics.core.data.draws import generator
from lyrics.core.data.templates import ABOUT_FIRST_OBJECT
from lyrics.core.geometry import Box, Crop, FlipHorizontal, Frame, Resize
from lyrics.core.language.codecs import SpatialObject
from lyrics.core.language.mentions import mention, rewritten
from lyrics.core.masks import Mask
from lyrics.core.renaming import renamed
from lyrics.core.types import DetectedObject, Sample, Turn

# "leftmost", "left-hand", "lefthand", "lefts"; and the two characters in Chinese.
_SIDES = re.compile(r"\b(?:left|right)(?:s|most|wards?|hand(?:ed)?)?\b|[左右]", re.IGNORECASE)
_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """How an image is varied.

    Args:
        size: side in pixels of the square that the crop is stretched to; None leaves the crop's own pixels, so that
            experts with different input sizes lose none.
        scale: smallest and largest share of the image's area that is kept.
        ratio: smallest and largest width / height of the crop, in pixels.
        flip: probability of mirroring, where the texts allow it.
        min_visible: objects of which a smaller share of the box is left are dropped, with the turns that name them.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    min_visible: float = 0.2

    @renamed(picture_size="image_size")
    def frame(self, sample: Sample, image_size: tuple[int, int], *, seed: int, position: int) -> Frame:
        """Return what is done to an image of ``image_size`` (width, height).

        Depends on (seed, position), and on whether the texts allow a flip; a flip that they forbid does not change the
        crop.
        """
        random = generator(seed, "augmentation", position)
        mirrored = random.random() < self.flip
        frame = Frame.of(*image_size).crop(*self._crop(image_size, random))
        if self.size is not None:
            frame = frame.resize(self.size, self.size)
        return frame.flip() if mirrored and may_flip(sample) else frame

    def _crop(self, image_size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """(x, y, width, height) in pixels. As in Inception's training: area and shape are drawn until the crop fits."""
        width, height = image_size
        for _ in range(_TRIES):
            area = width * height * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                x, y = random.integers(width - crop_width + 1), random.integers(height - crop_height + 1)
                return int(x), int(y), crop_width, crop_height
        # An image too wide or too high for any: the largest crop in the middle whose shape is allowed.
        crop_width = max(1, min(width, round(height * self.ratio[1])))
        crop_height = max(1, min(height, round(width / self.ratio[0])))
        return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height

    def __call__(
        self, sample: Sample, picture: Image.Image, *, seed: int, position: int
    ) -> tuple[Sample, Image.Image, Frame]:
        """Return the sample and its image after a random crop and flip, and what was done.

        All of it is a function of (seed, position).
        """
        frame = self.frame(sample, picture.size, seed=seed, position=position)
        return moved_sample(sample, frame, self.min_visible), moved_picture(picture, frame), frame


def may_flip(sample: Sample) -> bool:
    """Return whether mirroring keeps the sample true.

    It does not where a text (caption, turn, tag or option) names left or right, or where the image has something to
    read.

    That is so for the task ``text-vqa``, and where ``sample.extra["words"]`` lists what is written.
    """
    if sample.extra.get("task") == "text-vqa" or sample.extra.get("words"):
        return False
    texts = [*sample.captions, *(found.tag for found in sample.objects), *sample.extra.get("options", ())]
    texts += [text for turn in sample.turns for text in (turn.instruction, turn.answer)]
    return not any(_SIDES.search(text) for text in texts)


def moved_picture(picture: Image.Image, frame: Frame) -> Image.Image:
    """Return the image after a frame's steps. Stretching is bicubic."""
    for step in frame.steps:
        match step:
            case Crop():
                picture = picture.crop((step.x, step.y, step.x + step.width, step.y + step.height))
            case Resize():
                picture = picture.resize((step.width, step.height), Image.Resampling.BICUBIC)
            case FlipHorizontal():
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            case _:
                raise AssertionError(f"an augmentation does not pad: {step}")
    return picture


def moved_box(box: Box, frame: Frame, min_visible: float) -> Box | None:
    """Return a box of the original image as a share of the canvas, cut at its border.

    None where less than ``min_visible`` of it is left.
    """
    if frame.visible_fraction(box) < min_visible:
        return None
    return Box.from_px(frame.box_to_canvas(box), frame.size)


def moved_objects(objects: tuple[DetectedObject, ...], frame: Frame, min_visible: float) -> tuple[DetectedObject, ...]:
    """Return objects of the original image on the canvas, annotated or found by a refiner.

    One whose mask is cut off entirely is dropped too.
    """
    moved = []
    for found in objects:
        box = moved_box(found.box_norm, frame, min_visible)
        mask = None
        if box is not None and found.mask is not None:
            mask = Mask.from_array(frame.mask_to_canvas(found.mask.to_array()))
        if box is not None and (mask is None or mask.area_px):
            moved.append(replace(found, box_norm=box, mask=mask))
    return tuple(moved)


def moved_sample(sample: Sample, frame: Frame, min_visible: float) -> Sample:
    """Return a sample about the canvas: its objects, and the boxes in its texts.

    A turn or a caption that names a dropped box is left out.

    A sample that is about its first object (a referring expression, a caption of a region) keeps no object when that
    one is dropped.
    """
    captions = [moved_text(text, frame, min_visible) for text in sample.captions]
    turns = []
    for turn in sample.turns:
        instruction = moved_text(turn.instruction, frame, min_visible)
        answer = moved_text(turn.answer, frame, min_visible)
        if instruction is not None and answer is not None:
            turns.append(Turn(instruction, answer))
    objects = moved_objects(sample.objects, frame, min_visible)
    if sample.extra.get("task") in ABOUT_FIRST_OBJECT and not moved_objects(sample.objects[:1], frame, min_visible):
        objects = ()
    return replace(
        sample,
        captions=tuple(text for text in captions if text is not None),
        objects=objects,
        turns=tuple(turns),
    )


def moved_text(text: str, frame: Frame, min_visible: float) -> str | None:
    """Return a text with each box in it moved to the canvas; None where one of them is dropped."""

    def moved(one: SpatialObject) -> str | None:
        box = moved_box(one.box, frame, min_visible)
        return None if box is None else mention(SpatialObject(one.tag, box))

    return rewritten(text, moved)
