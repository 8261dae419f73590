"""Models with one part that sees a blank image, or whose tokens are those of one.

The paper removes a module by giving it "blank images to replace the original images as input" (section 5.4) and does
not say which color is blank. Here it is white: an image of the same size that goes through the part's own
preprocessing. All other parts see the original; what follows from the blank image (the boxes of a detector, and so
the segmenter's tokens and the spatial text) follows from it.

With ``blank_tokens`` nothing follows: an expert of the refiner finds what it finds in the image, and only its local
tokens are those of a blank one, for the same phrases and the same boxes. So the spatial text, the boxes and all other
tokens stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import nn

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.contracts import Detector, Segmenter
from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box
from lyrics.core.pictures.images import ImageLike, open_image, picture_name
from lyrics.core.pictures.inputs import picture_list
from lyrics.core.pictures.processor import ModelImages, Processor, prepare
from lyrics.core.resolve import declaring
from lyrics.core.types import DetectedObject, DetectorOutput, ImageBatch, Preprocessing, SegmenterOutput

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.core.spec import ModelSpec, Slot

BLANK = (255, 255, 255)


class BlankingProcessor(Processor):
    """A processor that prepares a blank image for some experts.

    Args:
        preprocessing: per expert, what it declared.
        blank: the experts that do not see the image, of those in ``preprocessing``.
    """

    def __init__(self, preprocessing: Mapping[str, Preprocessing], blank: Collection[str]) -> None:
        super().__init__(preprocessing)
        assert set(blank) <= set(preprocessing), "only experts that are there can be shown something else"
        self._seeing = Processor({name: one for name, one in preprocessing.items() if name not in blank})
        self._blank = Processor({name: one for name, one in preprocessing.items() if name in blank})

    def images(
        self,
        pictures: ImageLike | Sequence[ImageLike],
        device: torch.device | str | None = None,
        *,
        names: Sequence[str] | None = None,
        known_objects: Sequence[Sequence[DetectedObject] | None] = (),
        dtype: torch.dtype | None = None,
        condition: Condition = CLEAR,
        as_bytes: bool = False,
    ) -> ModelImages:
        """As ``Processor.images``.

        Names, sizes and frames are those of the images, also for the experts that do not see them.
        """
        pictures = picture_list(pictures)
        opened = [open_image(picture) for picture in pictures]
        if names is None:
            names = [picture_name(picture) for picture in pictures]
        white = [Image.new("RGB", picture.size, BLANK) for picture in opened]
        seen = self._seeing.images(
            opened,
            device,
            names=names,
            known_objects=known_objects,
            dtype=dtype,
            condition=condition,
            as_bytes=as_bytes,
        )
        unseen = self._blank.images(
            white, device, names=names, known_objects=known_objects, dtype=dtype, as_bytes=as_bytes
        )
        merged = {**seen.by_expert, **unseen.by_expert}
        return replace(seen, by_expert={name: merged[name] for name in self.preprocessing})


def show_blank(model: LyricsModel, experts: Collection[str]) -> LyricsModel:
    """Return the same model, which from now on shows these experts a blank image, and no others.

    Experts are ``image_encoder``, ``tagger``, ...
    """
    model.processor = BlankingProcessor(model.processor.preprocessing, experts)
    return model


class BlankTokens(nn.Module):
    """An expert that finds what it finds, with the local tokens of a blank image; all else is the expert's own."""

    def __init__(self, expert: Detector | Segmenter) -> None:
        super().__init__()
        self.expert = cast(nn.Module, expert)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.expert, name)

    def _blank(self, images: ImageBatch) -> ImageBatch:
        white = [Image.new("RGB", frame.original_size, BLANK) for frame in images.frames]
        blank = prepare(white, self.expert.preprocessing, images.names, images.known_objects)  # type: ignore[arg-type]
        like = images.pixels_BCHW
        return replace(blank, pixels_BCHW=blank.pixels_BCHW.to(like.device, like.dtype))


class BlankDetector(BlankTokens):
    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        found: DetectorOutput = self.expert(images, phrases)
        blank: DetectorOutput = self.expert(self._blank(images), phrases)
        return replace(found, tokens_BMD=blank.tokens_BMD, mask_BM=blank.mask_BM)


class BlankSegmenter(BlankTokens):
    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        found: SegmenterOutput = self.expert(images, boxes)
        blank: SegmenterOutput = self.expert(self._blank(images), boxes)
        return replace(found, tokens_BKD=blank.tokens_BKD, mask_BK=blank.mask_BK)


def blank_tokens(model: LyricsModel, experts: Collection[str]) -> LyricsModel:
    """Return the same model, in which from now on these experts' tokens are those of a blank image, and no others'.

    ``image_encoder`` gives tokens alone and sees the blank image itself; ``detector`` and ``segmenter`` keep what
    they find.
    """
    show_blank(model, [name for name in experts if name == "image_encoder"])
    if model.refiner is None:
        return model
    for name, kind in (("detector", BlankDetector), ("segmenter", BlankSegmenter)):
        there = getattr(model.refiner, name)
        whole = there.expert if isinstance(there, BlankTokens) else there
        blank = kind(cast(Any, whole)).eval() if whole is not None and name in experts else whole
        setattr(model.refiner, name, blank)
    return model


def part(spec: ModelSpec, path: str) -> Slot | None:
    """Return the slot at a path such as ``refiner.detector``; None where there is none."""
    return {where: slot for where, _, slot in spec.slots()}.get(path)


def check_part(spec: ModelSpec, variant: str, path: str) -> None:
    """Raises ``SpecError`` for a model without the part (or the refiner) that a variant is about."""
    if path == "refiner":
        missing = spec.refiner is None or not any((spec.refiner.tagger, spec.refiner.detector, spec.refiner.segmenter))
    else:
        missing = part(spec, path) is None
    if missing:
        raise SpecError(
            f"{variant}: this model has no {path}, so there is nothing to take away; leave the variant out with --only."
        )


def check_looks(spec: ModelSpec, variant: str, experts: Collection[str]) -> None:
    """Raises ``SpecError`` for an expert that reads stored objects: a blank image changes nothing for it."""
    reading = declaring(spec, "reads_known_objects")
    for name in experts:
        path = name if name == "image_encoder" else f"refiner.{name}"
        slot = part(spec, path)
        if slot is not None and path in reading:
            raise SpecError(
                f"{variant}: {path} is {slot.use!r}, which reads stored objects and does not look at the image, so a "
                "blank one changes nothing; take the reading 'removed'."
            )


def check_text(spec: ModelSpec, variant: str) -> None:
    """Raises ``SpecError`` for a model whose language model reads no spatial text, so that none can be left out."""
    if not spec.spatial_in_prompt:
        raise SpecError(
            f"{variant}: this model's prompts have no spatial text (spatial_in_prompt is false), so there is nothing "
            "to leave out; leave the variant out with --only."
        )


def show_text(model: LyricsModel, shown: bool) -> LyricsModel:
    """Return the same model, whose language model from now on reads what the refiner saw, or does not."""
    model.spec = model.spec.model_copy(update={"spatial_in_prompt": shown})
    return model
