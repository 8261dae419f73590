"""How well the experts do on scenes: tags, boxes and masks, each also with what the expert before it got wrong.

Shapes: B images, P names of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from lyrics.core.contracts import Dataset
from lyrics.core.evaluation.metrics.detection import (
    FoundBox,
    TrueBox,
    box_average_precisions,
    mask_iou,
    matched,
    mean,
    tag_average_precisions,
)
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import DetectedObject, ImageBatch, Preprocessing
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.expert_losses import EncoderWithNames, token_targets
from lyrics.plugins.tiny.expert_vocabulary import WORDS
from lyrics.plugins.tiny.looks import OF_SCENES, TOLD_BY_SEGMENTER, EncoderWithLooks, SegmenterWithLooks
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.tagger import TinyTagger
from lyrics.plugins.tiny.train_experts import drawn

Objects = Sequence[Sequence[DetectedObject]]
_BATCH = 32


@dataclass(frozen=True)
class _Scenes:
    pictures: Sequence[Image]
    objects: Objects

    def batches(self, preprocessing: Preprocessing) -> Iterator[tuple[ImageBatch, int]]:
        """Prepared images, and the place of the first."""
        for start in range(0, len(self.pictures), _BATCH):
            yield prepare(self.pictures[start : start + _BATCH], preprocessing), start


@torch.no_grad()
def measure(tagger: TinyTagger, detector: TinyDetector, segmenter: TinySegmenter, dataset: Dataset) -> dict[str, float]:
    """All rows of a data set of scenes, with the experts' own thresholds.

    Returns by name:

    - ``scenes``, ``things`` (shapes) and ``words``: how many.
    - ``tags mAP``: mean over names; ``tags precision`` and ``tags recall``: of the tags that are reported.
    - ``AP50, ...``: mean over names of the average precision of boxes at IoU 0.5, asked for all names, for the
      tagger's tags, and for the true tags; the last also for things and for words alone.
    - ``boxes precision``, ``boxes recall``: of what is detected for the tagger's tags.
    - ``mIoU, ...``: mean over things of the overlap of masks, in the original image: asked for by true boxes; by
      detected boxes (for the tagger's tags) over the things that were detected, and over all things, one that was not
      counting 0.
    """
    seen = _Scenes(*drawn(dataset, range(len(dataset))))
    things = [[obj for obj in found if not _is_word(obj.tag)] for found in seen.objects]
    count = sum(map(len, things))
    figures: dict[str, float] = {
        "scenes": len(seen.pictures),
        "things": count,
        "words": sum(map(len, seen.objects)) - count,
    }
    truth = [frozenset(obj.tag for obj in found) for found in seen.objects]
    scores_BP = torch.cat([tagger.logits(images).sigmoid() for images, _ in seen.batches(tagger.preprocessing)])
    rows = {name: scores_BP[:, column].tolist() for column, name in enumerate(tagger.vocabulary)}
    tagged = [
        [name for name in tagger.vocabulary if rows[name][place] >= tagger.threshold] for place in range(len(truth))
    ]
    figures |= _split("tags mAP", tag_average_precisions(rows, truth))
    hits = sum(len(names.intersection(said)) for names, said in zip(truth, tagged, strict=True))
    figures["tags precision"] = hits / max(1, sum(map(len, tagged)))
    figures["tags recall"] = hits / max(1, sum(map(len, truth)))

    boxes = [[TrueBox(obj.tag, obj.box_norm) for obj in found] for found in seen.objects]
    everything = [tagger.vocabulary] * len(truth)
    figures["AP50, all names"] = mean(box_average_precisions(_detected(detector, seen, everything), boxes))
    figures |= _split(
        "AP50, true tags", box_average_precisions(_detected(detector, seen, list(map(sorted, truth))), boxes)
    )
    detections = _detected(detector, seen, tagged)
    figures["AP50, tagger's tags"] = mean(box_average_precisions(detections, boxes))
    pairs = [matched(found, there) for found, there in zip(detections, boxes, strict=True)]
    hits = sum(row is not None for rows_of_picture in pairs for row in rows_of_picture)
    figures["boxes precision"] = hits / max(1, sum(map(len, detections)))
    figures["boxes recall"] = hits / max(1, sum(map(len, boxes)))

    figures["mIoU, true boxes"] = _mean_iou(segmenter, seen, things, things)
    asked, wanted = [], []
    for found, objects, rows_of_picture in zip(detections, seen.objects, pairs, strict=True):
        kept = [
            (detection.box, objects[row])
            for detection, row in zip(found, rows_of_picture, strict=True)
            if row is not None and not _is_word(objects[row].tag)
        ]
        asked.append([DetectedObject(obj.tag, box, 1.0) for box, obj in kept])
        wanted.append([obj for _, obj in kept])
    figures["mIoU, detected boxes"] = _mean_iou(segmenter, seen, asked, wanted)
    figures["mIoU, detected boxes, missed count 0"] = figures["mIoU, detected boxes"] * sum(map(len, asked)) / count
    return figures


@torch.no_grad()
def measure_encoder(module: EncoderWithNames, dataset: Dataset) -> dict[str, float]:
    """What linear heads read off the tokens that lie on something: the share whose best name is right, and the mean IoU
    of their boxes.
    """
    seen = _Scenes(*drawn(dataset, range(len(dataset))))
    right = lying = overlap = 0.0
    for images, start in seen.batches(module.encoder.preprocessing):
        logits_BMP, boxes_BM4 = module.predict(images)
        names_BMP, wanted_BM4, lying_BM = token_targets(module, images, seen.objects[start : start + len(images)])
        best_BM1 = logits_BMP.argmax(-1, keepdim=True)
        right += names_BMP.gather(-1, best_BM1)[lying_BM].sum().item()
        lying += lying_BM.sum().item()
        overlap += _centre_size_iou(boxes_BM4[lying_BM], wanted_BM4[lying_BM]).sum().item()
    return {"scenes": len(seen.pictures), "tokens": lying, "name right": right / lying, "box IoU": overlap / lying}


@torch.no_grad()
def measure_looks(encoder: EncoderWithLooks, segmenter: SegmenterWithLooks, dataset: Dataset) -> dict[str, float]:
    """What the heads that experts for fine scenes are trained with tell: shares right of scenes, of things, and of
    words.

    The encoder's ``ground`` and ``texture``; the segmenter's ``shape`` and attributes of things and ``word``, asked for
    by true boxes.
    """
    seen = _Scenes(*drawn(dataset, range(len(dataset))))
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for images, start in seen.batches(encoder.encoder.preprocessing):
        means_BD = encoder.encoder(images.pixels_BCHW).mean(1)
        scenes = [found[0] for found in seen.objects[start : start + len(images)]]
        for name, values in OF_SCENES.items():
            _count(right, asked, name, encoder.whole[name](means_BD), values, [getattr(one, name) for one in scenes])
    for images, start in seen.batches(segmenter.segmenter.preprocessing):
        objects = seen.objects[start : start + len(images)]
        _, looks_KD = segmenter.segmenter.predict(images, [[one.box_norm for one in found] for found in objects])
        shown: list[Any] = [one for found in objects for one in found]
        for name, values in TOLD_BY_SEGMENTER.items():
            _count(right, asked, name, segmenter.things[name](looks_KD), values, [getattr(one, name) for one in shown])
        _count(right, asked, "word", segmenter.words(looks_KD), WORDS, [one.text for one in shown])
    return {"scenes": len(seen.pictures), **{name: right[name] / max(1, count) for name, count in asked.items()}}


def _count(
    right: Counter[str],
    asked: Counter[str],
    name: str,
    logits_KP: torch.Tensor,
    values: Sequence[str],
    true: Sequence[str],
) -> None:
    """Counts the rows whose best value is the true one, of those that have one at all."""
    said = [values[best] for best in logits_KP.argmax(-1).tolist()]
    asked[name] += sum(bool(value) for value in true)
    right[name] += sum(value == best for value, best in zip(true, said, strict=True))


def _centre_size_iou(first_N4: torch.Tensor, second_N4: torch.Tensor) -> torch.Tensor:
    half_first_N2, half_second_N2 = first_N4[:, 2:].clamp(min=0) / 2, second_N4[:, 2:] / 2
    low_N2 = torch.maximum(first_N4[:, :2] - half_first_N2, second_N4[:, :2] - half_second_N2)
    high_N2 = torch.minimum(first_N4[:, :2] + half_first_N2, second_N4[:, :2] + half_second_N2)
    shared_N = (high_N2 - low_N2).clamp(min=0).prod(1)
    return shared_N / (4 * (half_first_N2.prod(1) + half_second_N2.prod(1)) - shared_N).clamp(min=1e-9)


def _is_word(name: str) -> bool:
    """Whether a name is that of something written; in fine scenes all words have one name."""
    return name.partition(" ")[0] == "word"


def _split(figure: str, found: Mapping[str, float]) -> dict[str, float]:
    """The mean over all names, over things and over words; each where there are any."""
    things = {name: value for name, value in found.items() if not _is_word(name)}
    words = {name: value for name, value in found.items() if _is_word(name)}
    parts = {figure: found, f"{figure}, things": things, f"{figure}, words": words}
    return {name: mean(values) for name, values in parts.items() if values}


def _detected(detector: TinyDetector, seen: _Scenes, phrases: Sequence[Sequence[str]]) -> list[list[FoundBox]]:
    found: list[list[FoundBox]] = []
    for images, start in seen.batches(detector.preprocessing):
        output = detector(images, phrases[start : start + len(images)])
        found += [[FoundBox(d.phrase, d.box_norm, d.score) for d in detections] for detections in output.detections]
    return found


def _mean_iou(segmenter: TinySegmenter, seen: _Scenes, asked: Objects, wanted: Objects) -> float:
    """Over all that is asked for; ``wanted`` has the true masks, in the same order."""
    overlaps: list[float] = []
    for images, start in seen.batches(segmenter.preprocessing):
        place = slice(start, start + len(images))
        masks: Any = segmenter(images, [[obj.box_norm for obj in found] for found in asked[place]]).masks
        for found, objects in zip(masks, wanted[place], strict=True):
            for mask, obj in zip(found, objects, strict=True):
                assert obj.mask is not None
                overlaps.append(mask_iou(mask.to_array(), obj.mask.to_array()))
    return sum(overlaps) / len(overlaps) if overlaps else 0.0
