"""Experts that look their answers up. Shapes: B images, M objects of the image that has most, K boxes asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import LyricsError, SpecError, did_you_mean
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refining.refine_files import read_refinements
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing, SegmenterOutput, Tag
from lyrics.plugins.cached import CachedOptions

# Pixels are not looked at, so an image is made as small as it gets.
UNSEEN = Preprocessing(resize="squash", size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resampling="nearest")


class Table:
    """Images by path and by file name.

    Raises ``SpecError`` when no file is given but images must be in it, ``LyricsError`` when the file cannot be read.
    """

    def __init__(self, options: CachedOptions) -> None:
        if options.file is None and options.missing == "error":
            raise SpecError(
                "cached experts need a file: set refiner.detector.options.file (likewise tagger and segmenter) to an "
                "objects.jsonl, which --refined does for all three, or set options.missing=empty."
            )
        self.file, self.missing = options.file, options.missing
        self.by_path: dict[str, Refinement] = {}
        self.by_name: dict[str, list[Refinement]] = {}
        for refinement in read_refinements(options.file) if options.file is not None else ():
            self.by_path[refinement.name] = refinement
            self.by_name.setdefault(PurePath(refinement.name).name, []).append(refinement)

    def find(self, batch: ImageBatch, index: int) -> Refinement:
        """Image ``index`` of a batch; objects that came with it stand above the file.

        Raises ``LyricsError`` when it is unknown, ambiguous, or of another size.
        """
        frame = batch.frames[index]
        size_px = frame.original_size
        name = batch.names[index] if batch.names else ""
        known = batch.known_objects[index] if batch.known_objects else None
        if known is not None:
            return Refinement(size_px, objects=known, name=name)
        found = [self.by_path[name]] if name in self.by_path else self.by_name.get(PurePath(name).name, [])
        if not found and self.missing == "empty":
            return Refinement(size_px, name=name)
        if not found:
            raise LyricsError(
                f"{name or 'an image without a name'} is not in {self.file}.{did_you_mean(name, self.by_path)}"
            )
        if len(found) > 1:
            raise LyricsError(
                f"{name} may be any of {', '.join(r.name for r in found[:3])} in {self.file}; give its path as there."
            )
        if found[0].size_px != size_px:
            raise LyricsError(
                f"{name} has {size_px} pixels, but {found[0].size_px} in {self.file}: it is another image."
            )
        return found[0]


class _Cached(nn.Module):
    """A module without parameters; a buffer says which device and type its tokens have."""

    preprocessing = UNSEEN

    def __init__(self, options: CachedOptions) -> None:
        super().__init__()
        self.stands_in = getattr(options, "stand_in_dim", None) is not None
        self.feature_dim = int(getattr(options, "feature_dim", 4))
        self.table = Table(options)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def tokens(self, boxes: Sequence[Sequence[Box]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes as tokens [B, most boxes, feature_dim] and their mask, which leaves all of them out for a stand-in."""
        like = self.get_buffer("like")
        most = max((len(row) for row in boxes), default=0)
        tokens, mask = (
            like.new_zeros(len(boxes), most, self.feature_dim),
            torch.zeros(len(boxes), most, dtype=torch.bool, device=like.device),
        )
        for index, row in enumerate(() if self.stands_in else boxes):
            for slot, box in enumerate(row):
                center = ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, box.x2 - box.x1, box.y2 - box.y1)
                tokens[index, slot] = torch.tensor(center)
                mask[index, slot] = True
        return tokens, mask


class CachedTagger(_Cached):
    def forward(self, images: ImageBatch) -> list[list[Tag]]:
        """Return the tags in the file, or where it has none, those of the objects."""
        found = []
        for index in range(len(images)):
            refinement = self.table.find(images, index)
            best: dict[str, float] = {}
            for name, score in [(t.name, t.score) for t in refinement.tags] or [
                (o.tag, o.score) for o in refinement.objects
            ]:
                best[name] = max(score, best.get(name, 0.0))
            found.append([Tag(name, score) for name, score in sorted(best.items(), key=lambda item: -item[1])])
        return found


class CachedDetector(_Cached):
    def __init__(self, options: CachedOptions) -> None:
        super().__init__(options)
        found = {obj.tag for refinement in self.table.by_path.values() for obj in refinement.objects}
        #: What it can be asked for, without a tagger.
        self.vocabulary = tuple(sorted(found))

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """Return the objects in the file whose tag is among the phrases."""
        detections = []
        for index, asked in enumerate(phrases):
            wanted = set(asked)
            objects = [found for found in self.table.find(images, index).objects if found.tag in wanted]
            objects.sort(key=lambda found: -found.score)
            detections.append(tuple(Detection(found.tag, found.box_norm, found.score) for found in objects))
        tokens_BMD, mask_BM = self.tokens([[found.box_norm for found in row] for row in detections])
        return DetectorOutput(tuple(detections), tokens_BMD, mask_BM)


class CachedSegmenter(_Cached):
    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        """Return the mask of the object whose box overlaps most (IoU of at least 0.5), or else the box itself."""
        masks = []
        for index, row in enumerate(boxes):
            refinement = self.table.find(images, index)
            masks.append(tuple(_mask(refinement, box) for box in row))
        tokens_BKD, mask_BK = self.tokens(boxes)
        return SegmenterOutput(tuple(masks), tokens_BKD, mask_BK)


def _mask(refinement: Refinement, box: Box) -> Mask:
    stored = [(found.box_norm.iou(box), found.mask) for found in refinement.objects if found.mask is not None]
    overlap, mask = max(stored, key=lambda pair: pair[0], default=(0.0, None))
    if mask is not None and overlap >= 0.5:
        return mask
    return Mask.from_box(box, refinement.size_px)


def build_tagger(options: CachedOptions, context: BuildContext) -> CachedTagger:
    return CachedTagger(options)


def build_detector(options: CachedOptions, context: BuildContext) -> CachedDetector:
    return CachedDetector(options)


def build_segmenter(options: CachedOptions, context: BuildContext) -> CachedSegmenter:
    return CachedSegmenter(options)
