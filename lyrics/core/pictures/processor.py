"""Images in, one tensor per expert out. Every change of coordinates of an image happens here, and its frame records
it.

Shapes: B images, C color channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.errors import PromptError
from lyrics.core.geometry import Frame
from lyrics.core.pictures.images import ImageLike, open_image, picture_name
from lyrics.core.pictures.inputs import Pictures, instruction_list, picture_list
from lyrics.core.pictures.model_inputs import ModelImages, ModelInputs, asked
from lyrics.core.pictures.normalizing import normalized
from lyrics.core.renaming import renamed
from lyrics.core.types import DetectedObject, ImageBatch, Preprocessing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resized(size_px: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) in pixels after the resize step; no side is ever rounded to zero."""
    width, height = size_px
    target = preprocessing.size
    if preprocessing.resize == "squash":
        return target, target
    side = min(width, height) if preprocessing.resize == "shortest" else max(width, height)
    scale = target / side
    if preprocessing.max_size is not None:
        scale = min(scale, preprocessing.max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def bytes_of(picture: Image.Image, preprocessing: Preprocessing) -> tuple[np.ndarray, Frame]:
    """One RGB image -> uint8 pixels [H,W,3] (not padded), and the frame that leads back to the image."""
    frame = Frame.of(*picture.size)
    size_px = resized(picture.size, preprocessing)
    if size_px != picture.size:
        picture = picture.resize(size_px, _FILTERS[preprocessing.resampling])
    frame = frame.resize(*size_px)
    if preprocessing.square is not None:
        picture, frame = _on_square(picture, frame, preprocessing)
    if preprocessing.crop is not None:
        size_px = picture.size
        side_w, side_h = min(preprocessing.crop, size_px[0]), min(preprocessing.crop, size_px[1])
        left, top = (size_px[0] - side_w) // 2, (size_px[1] - side_h) // 2
        picture = picture.crop((left, top, left + side_w, top + side_h))
        frame = frame.crop(left, top, side_w, side_h)
    return np.asarray(picture), frame


def prepare_one(picture: Image.Image, preprocessing: Preprocessing) -> tuple[torch.Tensor, Frame]:
    """One RGB image -> normalized pixels [3,H,W] (not padded) and the frame that leads back to the image."""
    found = prepare([picture], replace(preprocessing, pad_to=None))
    return found.pixels_BCHW[0], found.frames[0]


def _on_square(picture: Image.Image, frame: Frame, preprocessing: Preprocessing) -> tuple[Image.Image, Frame]:
    """An image whose longest side is resized already, on a square of that side."""
    side = preprocessing.size
    right, bottom = side - picture.width, side - picture.height
    left, top = (right // 2, bottom // 2) if preprocessing.square == "center" else (0, 0)
    red, green, blue = (round(255 * value) for value in preprocessing.square_fill)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(picture, (left, top))
    return square, frame.pad(left, top, right - left, bottom - top)


@renamed(pictures="images")
def prepare(
    images: Sequence[Image.Image],
    preprocessing: Preprocessing,
    names: Sequence[str] = (),
    known_objects: Sequence[Sequence[DetectedObject] | None] = (),
    *,
    as_bytes: bool = False,
) -> ImageBatch:
    """RGB images -> one expert's batch. No images give an empty batch.

    ``as_bytes`` leaves pixels uint8 and, in memory, in the order of the image's own ([B,H,W,C]), to be normalized where
    they are read.
    """
    prepared = [bytes_of(image, preprocessing) for image in images]
    side = preprocessing.pad_to or 0
    height = max([side, *(pixels.shape[0] for pixels, _ in prepared)])
    width = max([side, *(pixels.shape[1] for pixels, _ in prepared)])
    if not prepared:
        height, width = side or preprocessing.size, side or preprocessing.size
    rows_BHWC = np.zeros((len(prepared), height, width, 3), np.uint8)
    for row, (pixels, _) in zip(rows_BHWC, prepared, strict=True):
        row[: pixels.shape[0], : pixels.shape[1]] = pixels
    known = tuple(None if objects is None else tuple(objects) for objects in known_objects)
    frames = tuple(frame for _, frame in prepared)
    batch = ImageBatch(torch.from_numpy(rows_BHWC).permute(0, 3, 1, 2), frames, tuple(names), known, preprocessing)
    return batch if as_bytes else normalized(batch)


class Processor:
    """Turns images into what the experts of one model read.

    Args:
        preprocessing: per expert, what it declared.
    """

    def __init__(self, preprocessing: Mapping[str, Preprocessing]) -> None:
        self.preprocessing = dict(preprocessing)

    def __call__(
        self,
        images: Pictures | Sequence[Pictures] = None,
        text: str | Sequence[str] | None = None,
        *,
        answers: str | Sequence[str] | None = None,
        captions: str | Sequence[str] | None = None,
        return_tensors: Literal["pt"] | None = "pt",
        padding: bool | Literal["longest"] = True,
    ) -> ModelInputs:
        """Prepare images and texts for ``model.generate(**inputs)`` and ``model(**inputs)``.

        Images become one tensor for each expert. Texts stay texts: a prompt holds what the refiner sees, so the model
        makes its tokens, and pads them, when it has looked.

        Args:
            images: of one text an image, a list of images, or None; of a list of texts one of these for each. With
                ``captions``, or without ``text``, an image or a list of images.
            text: one instruction, or a list of them.
            answers: for stage 2, the answer to each instruction, with boxes in the model's codec.
            captions: for stage 1, one for each image; not with ``text``.
            return_tensors: there are torch tensors only.
            padding: a batch is padded to its largest image, always.

        Returns:
            A mapping of lists: one answer comes back for each text, also where there is one.

        Raises:
            ImageError: an image cannot be used; the message names it.
            PromptError: texts, answers or captions are none, or there are more or fewer than needed.
            ValueError: ``return_tensors`` or ``padding`` ask for what there is not.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors={return_tensors!r}: there are torch tensors only; give 'pt'.")
        if padding not in (True, "longest"):
            raise ValueError(
                f"padding={padding!r}: a batch is padded to its largest image and its longest prompt; give True or "
                "leave it out."
            )
        if text is None:
            if answers is not None:
                raise PromptError("answers: belong to instructions; give these as text.")
            found = ModelInputs(images=self.images(_flat(images)))
            if captions is not None:
                found["captions"] = _as_many(captions, len(found["images"]), "captions", "images")
            return found
        if captions is not None:
            raise PromptError("captions: are for stage 1 and text is for stage 2; give one of the two.")
        question = asked(images, text)
        assert isinstance(question.images, list)
        found = ModelInputs(
            images=self.images(question.images), text=question.text, images_per_text=question.images_per_text
        )
        if answers is not None:
            found["answers"] = _as_many(answers, len(question.text), "answers", "instructions")
        return found

    def prepared(
        self, images: ImageLike | Sequence[ImageLike] | ModelImages, condition: Condition = CLEAR
    ) -> ModelImages:
        """Images as each expert reads them, whether or not that was done before.

        Raises ``ImageError`` as ``images``, and ``PromptError`` for prepared images that the condition would blur.
        """
        if not isinstance(images, ModelImages):
            return self.images(images, condition=condition)
        if condition.blur_px:
            raise PromptError(
                "condition: images that are prepared cannot be blurred any more; give the images themselves."
            )
        return images

    @renamed(pictures="images")
    def images(
        self,
        images: ImageLike | Sequence[ImageLike],
        device: torch.device | str | None = None,
        *,
        names: Sequence[str] | None = None,
        known_objects: Sequence[Sequence[DetectedObject] | None] = (),
        dtype: torch.dtype | None = None,
        condition: Condition = CLEAR,
        as_bytes: bool = False,
    ) -> ModelImages:
        """Open, check and prepare images (whatever ``open_image`` takes) for every expert, as tensors of ``dtype``
        (float32 unless given).

        ``names`` say which images they are; a path is its own name unless they are given. ``known_objects``: see
        ``ImageBatch``. ``condition`` says who sees them blurred. ``as_bytes`` leaves the pixels of images that are not
        sent to a ``device`` uint8, until ``ModelImages.to`` sends and normalizes them. Raises ``ImageError`` naming the
        file.
        """
        images = picture_list(images)
        opened = [open_image(image) for image in images]
        if names is None:
            names = [picture_name(image) for image in images]
        if len(names) != len(opened) or isinstance(names, str):
            raise ValueError(f"names: a list with one for each of {len(opened)} images, not {names!r}")
        unclear = opened
        if any(condition.blurs(expert) for expert in self.preprocessing):
            unclear = [image.filter(ImageFilter.GaussianBlur(condition.blur_px)) for image in opened]
        batches = {
            expert: prepare(
                unclear if condition.blurs(expert) else opened, preprocessing, names, known_objects, as_bytes=as_bytes
            )
            for expert, preprocessing in self.preprocessing.items()
        }
        prepared = ModelImages(tuple(names), tuple(image.size for image in opened), batches)
        return prepared.to(device, dtype) if device is not None or dtype is not None else prepared


def _flat(images: Pictures | Sequence[Pictures]) -> list[ImageLike]:
    if images is None:
        raise PromptError("images and text are both missing; give one of them.")
    return picture_list(images)  # type: ignore[arg-type]  # refuses what is not a flat list


def _as_many(texts: str | Sequence[str], count: int, name: str, of: str) -> list[str]:
    found = [texts] if isinstance(texts, str) else instruction_list(texts)
    if len(found) != count:
        raise PromptError(f"{name}: {count} {of} need as many, not {len(found)}.")
    return found
