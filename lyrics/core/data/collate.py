"""A loader worker's last step: examples -> one batch of host tensors and texts, augmented and prepared for every
expert.

Everything here is a function of (seed, position); nothing depends on the worker, the rank or the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from PIL import Image

from lyrics.core.data.augmentation import Augmentation, moved_objects
from lyrics.core.data.conversation import converse
from lyrics.core.data.draws import generator
from lyrics.core.data.known import Stage, known_objects
from lyrics.core.data.moved_features import moved_seen
from lyrics.core.data.pictures import same_shape
from lyrics.core.data.stream import Example
from lyrics.core.errors import DatasetError
from lyrics.core.geometry import Frame
from lyrics.core.language.mentions import CODEC
from lyrics.core.language.prompting import NOTHING_DROPPED, DroppedText
from lyrics.core.language.prompts import Exchange
from lyrics.core.pictures.model_inputs import SeenTogether
from lyrics.core.pictures.processor import ModelImages, Processor
from lyrics.core.refining.features import StoredFeatures
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.texts import StepTexts
from lyrics.core.types import DetectedObject, Sample, SeenBefore, Turn


@dataclass(frozen=True, eq=False)
class PretrainExamples:
    """A batch of stage 1: B images with a caption each.

    Args:
        images: the images as each expert reads them.
        captions: one description of each; may be empty.
        positions: where each stands in the data order; fixes every random draw about it.
        image_ids: identity of each image before augmentation: samples of one image are not each other's negatives.
        ahead: what the step reads of the texts, where what the refiner finds was known before it began.
    """

    images: ModelImages
    captions: tuple[str, ...]
    positions: tuple[int, ...]
    image_ids: tuple[int, ...]
    ahead: StepTexts | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def pin_memory(self) -> Self:
        """Called by a loader whose batches go to a GPU."""
        ahead = None if self.ahead is None else self.ahead.pin_memory()
        return replace(self, images=self.images.pin_memory(), ahead=ahead)


@dataclass(frozen=True, eq=False)
class InstructionExamples:
    """A batch of stage 2: conversations, and the images of all of them.

    ``dialogues[i]`` names its images by their number in ``images``; a conversation may have none. With ``snap_iou``,
    boxes in the answers are to be exchanged for those that the refiner finds, where they overlap by so much.
    ``dropped`` says whose spatial text is left out.
    """

    images: ModelImages
    dialogues: tuple[tuple[Exchange, ...], ...]
    positions: tuple[int, ...]
    snap_iou: float | None = None
    dropped: DroppedText = NOTHING_DROPPED

    def __len__(self) -> int:
        return len(self.positions)

    def pin_memory(self) -> Self:
        """Called by a loader whose batches go to a GPU."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, eq=False)
class _Varied:
    """An example after augmentation: ``known`` are the objects that go with its image, ``seen`` what was kept."""

    sample: Sample
    picture: Image.Image | None
    known: tuple[DetectedObject, ...] = ()
    seen: SeenBefore | None = None


class Collator:
    """The ``collate_fn`` of a loader over a ``SampleStream``.

    Args:
        stage: what is made of the examples.
        processor: prepares images for the experts of one model.
        seed: of the run.
        codec: how boxes are written in instructions and answers; the model's.
        augmentation: None leaves images as they are.
        refined: stored refinements by the image's name in its data set. Their objects travel with the image as
            ``known_objects``, moved by the augmentation; without any, those of the sample's own objects do that a
            question may know (``lyrics.core.data.known``). Experts that look answers up (``cached``) read them, others
            see for themselves.
        features: what the refiner saw, kept by ``lyrics refine --features``: it goes with the image in place of the
            experts, moved by the augmentation. Not with ``refined``.
        snap_iou: passed on with batches of stage 2.
        drop_text, drop_queries_text: shares of the images of stage 2 whose spatial text is left out of the prompt,
            and out of what the query transformer reads; the two are drawn apart.

    Raises ``DatasetError`` for an image that ``refined`` lacks, and for text alone in stage 1.
    """

    def __init__(
        self,
        stage: Stage,
        processor: Processor,
        *,
        seed: int,
        codec: str = CODEC,
        augmentation: Augmentation | None = None,
        refined: Mapping[str, Refinement] | None = None,
        features: StoredFeatures | None = None,
        snap_iou: float | None = None,
        drop_text: float = 0.0,
        drop_queries_text: float = 0.0,
    ) -> None:
        self.stage, self.processor, self.seed, self.codec = stage, processor, seed, codec
        self.drop_text, self.drop_queries_text = drop_text, drop_queries_text
        self.augmentation, self.refined, self.snap_iou = augmentation, refined, snap_iou
        self.features = features

    def __call__(self, examples: Sequence[Example]) -> PretrainExamples | InstructionExamples:
        return self._pretrain(examples) if self.stage == "pretrain" else self._instruct(examples)

    def _varied(self, example: Example) -> _Varied:
        sample, picture = example.sample, example.picture
        if picture is None:
            return _Varied(sample, None)
        frame, min_visible = Frame.of(*picture.size), 0.0
        if self.augmentation is not None:
            min_visible = self.augmentation.min_visible
            sample, picture, frame = self.augmentation(sample, picture, seed=self.seed, position=example.position)
        return self._with_objects(example, sample, picture, frame, min_visible)

    def _unvaried(self, example: Example) -> _Varied:
        if example.picture is None:
            return _Varied(example.sample, None)
        return self._with_objects(example, example.sample, example.picture, Frame.of(*example.picture.size), 0.0)

    def _with_objects(
        self, example: Example, sample: Sample, picture: Image.Image, frame: Frame, min_visible: float
    ) -> _Varied:
        if self.features is None:
            return _Varied(sample, picture, self._known(example, sample, frame, min_visible))
        seen = self.features.get(example.sample.image or "")
        if seen is None:
            raise DatasetError(
                f"{example.sample.image} (data set {example.data_set!r}, row {example.row}) is not among the stored "
                "features; refine the whole data set with --features first."
            )
        self._check_size(example, seen.size_px)
        return _Varied(sample, picture, seen=moved_seen(seen, frame, min_visible))

    def _known(self, example: Example, sample: Sample, frame: Frame, min_visible: float) -> tuple[DetectedObject, ...]:
        if self.refined is None:
            return known_objects(sample, self.stage)
        stored = self.refined.get(example.sample.image or "")
        if stored is None:
            raise DatasetError(
                f"{example.sample.image} (data set {example.data_set!r}, row {example.row}) is not among the stored "
                "refinements; refine the whole data set first, or leave them out."
            )
        self._check_size(example, stored.size_px)
        return moved_objects(stored.objects, frame, min_visible)

    @staticmethod
    def _check_size(example: Example, size_px: tuple[int, int]) -> None:
        if example.picture is not None and not same_shape(size_px, example.picture.size):
            raise DatasetError(
                f"{example.sample.image} (data set {example.data_set!r}, row {example.row}) has {example.picture.size} "
                f"pixels, but {size_px} in the stored refinements: they are of another image. "
                "Refine the data set again."
            )

    def _pretrain(self, examples: Sequence[Example]) -> PretrainExamples:
        pictures, captions, shown = [], [], []
        for example in examples:
            varied = self._varied(example)
            if varied.picture is None:
                raise DatasetError(
                    f"data set {example.data_set!r}, row {example.row}: stage 1 aligns images with text, and this "
                    "sample has no image."
                )
            pictures.append(varied.picture)
            choices = varied.sample.captions
            draw = generator(self.seed, "caption", example.position)
            captions.append(choices[int(draw.integers(len(choices)))] if choices else "")
            shown.append(varied)
        return PretrainExamples(
            self._images(pictures, examples, shown),
            tuple(captions),
            tuple(example.position for example in examples),
            tuple(_image_id(example) for example in examples),
        )

    def _instruct(self, examples: Sequence[Example]) -> InstructionExamples:
        pictures: list[Image.Image] = []
        varieties: list[_Varied] = []
        shown: list[Example] = []
        dialogues = []
        for example in examples:
            varied = self._varied(example)
            turns = self._turns(example, varied)
            if not turns:
                # Augmentation cut off what the sample was about; as it was, it still teaches.
                varied = self._unvaried(example)
                turns = self._turns(example, varied)
            indices: tuple[int, ...] = ()
            if varied.picture is not None:
                indices = (len(pictures),)
                pictures.append(varied.picture)
                varieties.append(varied)
                shown.append(example)
            dialogues.append(
                tuple(
                    Exchange(turn.instruction, turn.answer, () if number else indices)
                    for number, turn in enumerate(turns)
                )
            )
        positions = tuple(example.position for example in examples)
        dropped = DroppedText(
            self._drawn("text dropped", self.drop_text, shown),
            self._drawn("queries' text dropped", self.drop_queries_text, shown),
        )
        images = self._images(pictures, shown, varieties)
        return InstructionExamples(images, tuple(dialogues), positions, self.snap_iou, dropped)

    def _drawn(self, purpose: str, share: float, examples: Sequence[Example]) -> tuple[bool, ...]:
        """For each example whether it is of the share, as its position says; empty where there is no share."""
        if not share:
            return ()
        return tuple(bool(generator(self.seed, purpose, one.position).random() < share) for one in examples)

    def _turns(self, example: Example, varied: _Varied) -> tuple[Turn, ...]:
        size = None if varied.picture is None else varied.picture.size
        return converse(varied.sample, seed=self.seed, position=example.position, codec=self.codec, size=size)

    def _images(
        self,
        pictures: Sequence[Image.Image],
        examples: Sequence[Example],
        shown: Sequence[_Varied],
    ) -> ModelImages:
        names = [example.sample.image or "" for example in examples]
        known = [one.known for one in shown]
        images = self.processor.images(pictures, names=names, known_objects=known, as_bytes=True)
        seen = [one.seen for one in shown if one.seen is not None]
        return replace(images, seen=SeenTogether.of(seen)) if seen else images


def _image_id(example: Example) -> int:
    """63 bits that name the image: samples of one data set that share an image share it."""
    text = f"{example.data_set}\0{example.sample.image if example.sample.image is not None else example.row}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
