"""The records that cross a component boundary.

Shapes: B images, C color channels, H and W pixels, M local tokens of the detector, K objects of the segmenter, D
feature width. Importing this file imports no torch; tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lyrics.core.geometry import Box, Frame
from lyrics.core.masks import Mask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the canvas that an expert reads. Declared by the expert, applied by the processor.

    Args:
        resize: ``squash`` to ``size`` x ``size`` whatever the shape; ``shortest`` side to ``size``, the longest at
            most ``max_size``; ``longest`` side to ``size``. The last two keep the aspect ratio.
        size: pixels.
        max_size: pixels; only with ``shortest``.
        crop: side in pixels of a central square crop after the resize, or None.
        pad_to: side in pixels of the square that the canvas is padded to on the right and at the bottom (with
            zeros, after normalization); None pads to the largest canvas of the batch.
        square: with ``longest`` only: the image is put on a square of side ``size``, at its ``center`` or in its upper
            left ``corner``. The square is the canvas, and the frame records where the image is on it.
        square_fill: what the rest of that square holds, per channel, in [0, 1] before normalization.
        mean, std: per channel (RGB), of pixels scaled to [0, 1].
        resampling: Pillow's filter of that name.
    """

    resize: Literal["squash", "shortest", "longest"]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    max_size: int | None = None
    crop: int | None = None
    pad_to: int | None = None
    square: Literal["center", "corner"] | None = None
    square_fill: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.square is not None and self.resize != "longest":
            raise ValueError(f"square={self.square!r} needs resize='longest', not {self.resize!r}")


@dataclass(frozen=True)
class ImageBatch:
    """Images as one expert reads them.

    ``pixels_BCHW`` is float, normalized, zero-padded on the right and at the bottom. ``frames[i].size`` is the (width,
    height) in pixels of image i's canvas before that padding, and the frame maps boxes between the canvas and the
    original image. ``names`` say which images they are (the path as the caller wrote it, or an empty string), for
    experts that look results up; ``known_objects[i]`` are objects that the caller already has of image i
    (annotations, or a stored refinement, moved with the image by augmentation), for the same experts; None where
    there are none to be had.

    On the way from a loader to a device, pixels are the image's own uint8, and ``to_normalize`` says how they become
    floats there (``lyrics.core.pictures.normalizing``). Experts are given none of these.
    """

    pixels_BCHW: torch.Tensor
    frames: tuple[Frame, ...]
    names: tuple[str, ...] = ()
    known_objects: tuple[tuple[DetectedObject, ...] | None, ...] = ()
    to_normalize: Preprocessing | None = None

    def __post_init__(self) -> None:
        assert len(self.frames) == self.pixels_BCHW.shape[0], "one frame per image"

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def pixel_mask_BHW(self) -> torch.Tensor:
        """True where there is image, False where there is padding."""
        import torch

        _, _, height, width = self.pixels_BCHW.shape
        mask = torch.zeros(len(self), height, width, dtype=torch.bool, device=self.pixels_BCHW.device)
        for row, frame in zip(mask, self.frames, strict=True):
            row[: frame.size[1], : frame.size[0]] = True
        return mask


@dataclass(frozen=True, slots=True)
class Tag:
    """A name for something in the image, with its probability in [0, 1]."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One box for one of the caller's phrases (spelled as the caller spelled it), with its score in [0, 1]."""

    phrase: str
    box_norm: Box
    score: float


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector returns for a batch.

    ``detections[i]`` are image i's, in descending score. ``tokens_BMD`` are its local tokens and ``mask_BM`` (bool)
    says which exist; an image without detections may have tokens all the same (Grounding DINO always gives its 900
    query states). ``masks[i][k]`` is the mask of ``detections[i][k]`` in the original image; None from a detector
    that makes none. Where the refiner has a segmenter, its masks take their place.
    """

    detections: tuple[tuple[Detection, ...], ...]
    tokens_BMD: torch.Tensor
    mask_BM: torch.Tensor
    masks: tuple[tuple[Mask, ...], ...] | None = None


@dataclass(frozen=True)
class SegmenterOutput:
    """What a segmenter returns for a batch: a mask and a token for every box that was asked for, in the order asked.

    ``masks[i][k]`` is in the original image. ``tokens_BKD`` has one row per box, ``mask_BK`` (bool) says which rows
    exist; K is the largest number of boxes in the batch and may be 0.
    """

    masks: tuple[tuple[Mask, ...], ...]
    tokens_BKD: torch.Tensor
    mask_BK: torch.Tensor


@dataclass(frozen=True)
class DetectedObject:
    """An object of an image as the refiner reports it: tag, box in the original image, score, and its mask where one
    was made.
    """

    tag: str
    box_norm: Box
    score: float
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class SeenBefore:
    """What a refiner saw in an image of ``size_px`` (width, height), kept for training.

    ``tokens`` are the local tokens [M,D] of each source (``detector``, ``segmenter``) in half precision, those of the
    segmenter one for each object, in order.
    """

    size_px: tuple[int, int]
    tags: tuple[Tag, ...]
    objects: tuple[DetectedObject, ...]
    tokens: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Turn:
    """One exchange of a conversation about an image.

    Boxes in either text are in the codec ``lyrics`` (``lyrics.core.language.codecs``), whatever the data set's own
    notation and whatever codec the model writes, and are shares of the sample's image; augmentation moves them, and a
    template may rewrite them in another codec.
    """

    instruction: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example, whatever its source.

    Args:
        image: path or key that the data set's reader understands; None for text alone. captions: alternative
        descriptions of the image. objects: tags and boxes in the original image; ``score`` is 1.0 for annotated
        ones. turns: instructions with their answers, in order. source: name of the data set and the key in it, for
        ledgers and error messages. extra: plain data that a benchmark needs (reference answers, question id).
        annotated_size: (width, height) in pixels that the annotations state for the image, None where they state
        none.
            The boxes are shares of an image of that size. ``lyrics.core.data.pictures.check_frame`` compares it with
            the image that is read.
    """

    image: str | None
    captions: tuple[str, ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    turns: tuple[Turn, ...] = ()
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    annotated_size: tuple[int, int] | None = None
