"""The visual refiner: tagger -> detector (its phrases are the tags) -> segmenter (its boxes are the detections).

Any part may be absent. All of it is frozen. Shapes: B images, M detector tokens, K objects, D feature width.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from lyrics.core.contracts import Detector, Expert, Segmenter, Tagger, WithVocabulary
from lyrics.core.errors import ContractError
from lyrics.core.masks import Mask
from lyrics.core.pictures.images import ImageLike
from lyrics.core.pictures.inputs import Phrases, is_image, phrase_lists
from lyrics.core.pictures.processor import ModelImages, Processor
from lyrics.core.refining.refinement import Refinement
from lyrics.core.renaming import renamed
from lyrics.core.types import DetectedObject, DetectorOutput, SegmenterOutput, Tag

LocalTokens = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class RefinerOutput:
    """One ``Refinement`` per image, and the batch's local tokens per source: tokens [B,M,D] with their mask [B,M]."""

    refinements: tuple[Refinement, ...]
    local: LocalTokens


class VisualRefiner(nn.Module):
    """Tags, boxes, masks and local tokens of images.

    Args:
        tagger, detector, segmenter: modules that keep the contract of their kind, or None. A segmenter needs a
            detector.
        max_objects: objects kept per image, best first.
        names: per expert, what to call it when it breaks its contract; ``the detector`` and so on unless given.
        made_of: the resolved specification and the versions behind it, as plain data, for ``digest``.
    """

    def __init__(
        self,
        tagger: Tagger | None = None,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
        *,
        max_objects: int = 100,
        names: Mapping[str, str] | None = None,
        made_of: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if segmenter is not None and detector is None:
            raise ValueError("a segmenter needs the boxes of a detector")
        self.tagger = tagger
        self.detector = detector
        self.segmenter = segmenter
        self.max_objects = max_objects
        self.names = {expert: f"the {expert}" for expert in ("tagger", "detector", "segmenter")} | dict(names or {})
        self.made_of = dict(made_of or {})
        self._said_nothing_is_asked = False
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Does nothing: the refiner is frozen and stays in evaluation mode (no dropout, no drop path)."""
        return super().train(False)

    @property
    def experts(self) -> dict[str, Expert]:
        """The parts that are present, by name."""
        named: dict[str, Expert | None] = {
            "tagger": self.tagger,
            "detector": self.detector,
            "segmenter": self.segmenter,
        }
        return {name: expert for name, expert in named.items() if expert is not None}

    @property
    def local_sources(self) -> dict[str, Detector | Segmenter]:
        """The experts that are present and give local tokens, in the order in which these are concatenated."""
        named = {"detector": self.detector, "segmenter": self.segmenter}
        return {name: expert for name, expert in named.items() if expert is not None}

    def without_experts(self) -> VisualRefiner:
        """Return a refiner that sees nothing itself, for images of which is known what was seen."""
        return VisualRefiner(max_objects=self.max_objects, names=self.names, made_of=self.made_of)

    def digest(self, phrases: Sequence[str] | None = None) -> str:
        """Return 16 hex digits that tell refiners apart.

        They depend on the specification, versions, files that the options name, weights and ``phrases``. Reads every
        weight once.
        """
        made_of = dict(self.made_of) or {name: type(expert).__qualname__ for name, expert in self.experts.items()}
        asked = None if phrases is None else list(phrases)
        head = json.dumps([made_of, self.max_objects, asked], sort_keys=True)
        seen = hashlib.sha256(head.encode("utf-8"))
        for path in _local_files(made_of):
            seen.update(os.fsencode(path.name))
            with path.open("rb") as file:
                seen.update(hashlib.file_digest(file, "sha256").digest())
        for name, tensor in sorted(self.state_dict().items()):
            seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if not tensor.is_meta:
                seen.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return seen.hexdigest()[:16]

    @renamed(pictures="images")
    def forward(
        self,
        images: ImageLike | Sequence[ImageLike],
        phrases: Phrases = None,
        *,
        names: Sequence[str] | None = None,
    ) -> list[Refinement] | Refinement:
        """Refine an image, or any number of them in one batch.

        Args:
            images: an image or a list of images of any sizes, whatever ``lyrics.core.pictures.images.open_image``
                opens.
            phrases: what to look for in each image, in place of the tagger's tags; for one image a list of phrases will
                do.
            names: which images they are; a path is its own name.

        Returns:
            The refinement of one image, or a list of refinements of a list.

        Raises:
            ImageError: an image cannot be used; the message names it.
            PromptError: ``phrases`` are not a list of phrases for each image.
        """
        prepared = self.placed(self.prepare(images, names))
        found = self.refine(prepared, phrase_lists(phrases, len(prepared), flat=is_image(images))).refinements
        return found[0] if is_image(images) else list(found)

    def prepare(self, images: ImageLike | Sequence[ImageLike], names: Sequence[str] | None = None) -> ModelImages:
        """Return images as the experts read them, on the CPU; may run beside what the experts do.

        Arguments and errors as for a call.
        """
        return Processor({name: expert.preprocessing for name, expert in self.experts.items()}).images(
            images, names=names
        )

    def placed(self, images: ModelImages) -> ModelImages:
        """Return prepared images on the experts' device and of their type."""
        weight = next(self.parameters(), None)
        return images if weight is None else images.to(weight.device, weight.dtype)

    @torch.no_grad()
    def refine(self, images: ModelImages, phrases: Phrases = None) -> RefinerOutput:
        """Refine images that a processor has prepared, and keep the local tokens; ``phrases`` as above."""
        if images.seen is not None:
            kept = zip(images.sizes_px, images.seen.tags, images.seen.objects, images.names, strict=True)
            return RefinerOutput(tuple(Refinement(*one) for one in kept), images.seen.local)
        images = images.normalized()
        phrases = phrase_lists(phrases, len(images))
        tags: list[list[Tag]] = [[] for _ in range(len(images))]
        if self.tagger is not None and phrases is None:
            tags = self.tagger(images.by_expert["tagger"])
            _expect(
                self.names["tagger"], len(tags) == len(images), f"gave tags for {len(tags)} of {len(images)} images"
            )
        if phrases is None:
            phrases = [[tag.name for tag in found] for found in tags]
            if self.tagger is None:
                phrases = [self._what_the_detector_knows()] * len(images)
        local: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        objects: list[list[DetectedObject]] = [[] for _ in range(len(images))]
        if self.detector is not None:
            found = self.detector(images.by_expert["detector"], phrases)
            check_detector(found, phrases, self.detector.feature_dim, self.names["detector"])
            local["detector"] = (found.tokens_BMD, found.mask_BM)
            objects = [
                [
                    DetectedObject(d.phrase, d.box_norm, d.score, mask)
                    for d, mask in list(zip(detections, masks, strict=True))[: self.max_objects]
                ]
                for detections, masks in zip(found.detections, _masks_of(found), strict=True)
            ]
        if self.segmenter is not None:
            boxes = [[obj.box_norm for obj in found] for found in objects]
            segments = self.segmenter(images.by_expert["segmenter"], boxes)
            check_segmenter(segments, boxes, self.segmenter.feature_dim, self.names["segmenter"])
            local["segmenter"] = (segments.tokens_BKD, segments.mask_BK)
            objects = [
                [DetectedObject(obj.tag, obj.box_norm, obj.score, mask) for obj, mask in zip(found, masks, strict=True)]
                for found, masks in zip(objects, segments.masks, strict=True)
            ]
        refinements = tuple(
            Refinement(size_px, tuple(picture_tags), tuple(found), name)
            for size_px, picture_tags, found, name in zip(images.sizes_px, tags, objects, images.names, strict=True)
        )
        return RefinerOutput(refinements, local)

    def _what_the_detector_knows(self) -> list[str]:
        """The detector's own vocabulary, for want of a tagger. Warns once where there is none."""
        vocabulary: list[str] = list(self.detector.vocabulary) if isinstance(self.detector, WithVocabulary) else []
        if not vocabulary and not self._said_nothing_is_asked:
            self._said_nothing_is_asked = True
            warnings.warn(
                "nothing is looked for: the refiner has no tagger, no phrases were given"
                + (
                    ", and its detector has no vocabulary. Give phrases (--phrases 'dog, red car'), or a tagger."
                    if self.detector is not None
                    else ", and it has no detector. Set refiner.tagger or refiner.detector."
                ),
                stacklevel=3,
            )
        return vocabulary


def _local_files(made_of: Any) -> list[Path]:
    """The files that a specification's values name, themselves or by their folder; tensors are looked at
    in the model.
    """
    if isinstance(made_of, Mapping):
        return [path for _, value in sorted(made_of.items()) for path in _local_files(value)]
    if isinstance(made_of, list | tuple):
        return [path for value in made_of for path in _local_files(value)]
    if not isinstance(made_of, str) or not os.path.exists(made_of):
        return []
    named = Path(made_of)
    inside = sorted(named.iterdir()) if named.is_dir() else [named]
    return [path for path in inside if path.is_file() and path.suffix != ".safetensors"]


def _masks_of(found: DetectorOutput) -> Sequence[Sequence[Mask | None]]:
    return [[None] * len(detections) for detections in found.detections] if found.masks is None else found.masks


def _expect(who: str, kept: bool, complaint: str) -> None:
    if not kept:
        raise ContractError(f"{who} {complaint}; see lyrics.core.contracts.")


def check_detector(
    found: DetectorOutput, phrases: Sequence[Sequence[str]], feature_dim: int, who: str = "the detector"
) -> None:
    """What would otherwise surface far away: counts, widths, invented phrases, order."""
    shape = tuple(found.tokens_BMD.shape)
    _expect(
        who,
        len(found.detections) == len(phrases),
        f"answered {len(found.detections)} of {len(phrases)} images",
    )
    _expect(
        who,
        len(shape) == 3 and shape[0] == len(phrases) and shape[2] == feature_dim,
        f"returned tokens {shape}, not [{len(phrases)}, M, {feature_dim}]",
    )
    _expect(
        who,
        tuple(found.mask_BM.shape) == shape[:2] and found.mask_BM.dtype == torch.bool,
        f"returned a mask {tuple(found.mask_BM.shape)} of {found.mask_BM.dtype}, not a bool mask {shape[:2]}",
    )
    for detections, asked in zip(found.detections, phrases, strict=True):
        invented = next((d.phrase for d in detections if d.phrase not in asked), None)
        _expect(who, invented is None, f"returned the phrase {invented!r}, which it was not asked for")
        scores = [d.score for d in detections]
        _expect(who, scores == sorted(scores, reverse=True), "returned detections that are not in descending score")
    if found.masks is not None:
        given, expected = [len(row) for row in found.masks], [len(row) for row in found.detections]
        _expect(who, given == expected, f"returned {given} masks for {expected} detections")


def check_segmenter(
    found: SegmenterOutput, boxes: Sequence[Sequence[object]], feature_dim: int, who: str = "the segmenter"
) -> None:
    asked = [len(row) for row in boxes]
    given = [len(row) for row in found.masks]
    _expect(who, given == asked, f"returned {given} masks for {asked} boxes")
    expected = (len(boxes), max(asked, default=0), feature_dim)
    _expect(
        who,
        tuple(found.tokens_BKD.shape) == expected and tuple(found.mask_BK.shape) == expected[:2],
        f"returned tokens {tuple(found.tokens_BKD.shape)} and a mask {tuple(found.mask_BK.shape)}, not {expected} and "
        f"{expected[:2]}",
    )
    _expect(who, found.mask_BK.dtype == torch.bool, f"returned a mask of {found.mask_BK.dtype}, not a bool mask")
