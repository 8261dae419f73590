"""The refiner's order of work and its checks, on experts that say exactly what they are told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lyrics.core.errors import ContractError, PromptError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.pictures.processor import ModelImages, Processor
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing, SegmenterOutput, Tag

PREPROCESSING = Preprocessing("squash", 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BOXES = (Box(0.1, 0.1, 0.4, 0.4), Box(0.5, 0.5, 0.9, 0.9), Box(0.0, 0.0, 1.0, 1.0))


class Expert(nn.Module):
    """Answers with ``answer(images, *rest)`` and remembers what it was asked."""

    preprocessing = PREPROCESSING

    def __init__(self, answer: Callable[..., Any], feature_dim: int = 0) -> None:
        super().__init__()
        self.answer = answer
        self.feature_dim = feature_dim
        self.asked: list[Any] = []
        self.layer = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: ImageBatch, *rest: Any) -> Any:
        assert not torch.is_grad_enabled()
        self.asked.append(rest)
        return self.answer(images, *rest)


def tagger(*names: str) -> Expert:
    """The first picture shows all the names, the second one fewer, and so on."""
    return Expert(lambda images: [[Tag(name, 0.9) for name in names[: len(names) - i]] for i in range(len(images))])


def detect(images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
    """For each phrase its box; one token per phrase, at most three."""
    found = tuple(
        tuple(Detection(phrase, BOXES[i], 0.9 - 0.1 * i) for i, phrase in enumerate(row[: len(BOXES)]))
        for row in phrases
    )
    mask = torch.tensor([[i < len(row) for i in range(3)] for row in found], dtype=torch.bool).reshape(len(found), 3)
    return DetectorOutput(found, torch.ones(len(found), 3, 5), mask)


def segment(images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
    most = max((len(row) for row in boxes), default=0)
    masks = []
    for row, frame in zip(boxes, images.frames, strict=True):
        width, height = frame.original_size
        drawn = []
        for box in row:
            array = np.zeros((height, width), dtype=bool)
            x1, y1, x2, y2 = (round(value) for value in box.to_px((width, height)))
            array[y1:y2, x1:x2] = True
            drawn.append(Mask.from_array(array))
        masks.append(tuple(drawn))
    mask = torch.tensor([[i < len(row) for i in range(most)] for row in boxes], dtype=torch.bool).reshape(
        len(boxes), most
    )
    return SegmenterOutput(tuple(masks), torch.ones(len(boxes), most, 7), mask)


def detector() -> Expert:
    return Expert(detect, 5)


def segmenter() -> Expert:
    return Expert(segment, 7)


def pictures(count: int = 2) -> ModelImages:
    processor = Processor(dict.fromkeys(("tagger", "detector", "segmenter"), PREPROCESSING))
    return processor.images([Image.new("RGB", (40 + 10 * i, 30)) for i in range(count)])


def test_tags_become_phrases_and_boxes_become_masks() -> None:
    refiner = VisualRefiner(tagger("cat", "dog"), detector(), segmenter())
    found = refiner.refine(pictures())
    assert refiner.detector.asked == [([["cat", "dog"], ["cat"]],)]  # type: ignore[union-attr]
    assert refiner.segmenter.asked == [([[BOXES[0], BOXES[1]], [BOXES[0]]],)]  # type: ignore[union-attr]
    first, second = found.refinements
    assert first.size_px == (40, 30)
    assert [tag.name for tag in first.tags] == ["cat", "dog"]
    assert [(o.tag, o.box_norm, o.score) for o in first.objects] == [("cat", BOXES[0], 0.9), ("dog", BOXES[1], 0.8)]
    assert [(o.mask.width, o.mask.height) for o in (*first.objects, *second.objects) if o.mask] == [(40, 30)] * 2 + [
        (50, 30)
    ]
    assert first.objects[0].mask is not None
    box = first.objects[0].mask.box_norm()
    assert box is not None
    assert box.iou(BOXES[0]) > 0.8
    assert {name: tuple(tokens.shape) for name, (tokens, _) in found.local.items()} == {
        "detector": (2, 3, 5),
        "segmenter": (2, 2, 7),
    }
    assert list(found.local) == ["detector", "segmenter"], "the order in which local tokens are concatenated"
    assert found.local["segmenter"][1].tolist() == [[True, True], [True, False]]


def test_callers_phrases_take_the_place_of_the_tags() -> None:
    refiner = VisualRefiner(tagger("cat"), detector())
    found = refiner.refine(pictures(), [["a  Man", "hat"], []])
    assert refiner.tagger.asked == []  # type: ignore[union-attr]
    assert refiner.detector.asked == [([["a  Man", "hat"], []],)]  # type: ignore[union-attr]
    assert [[o.tag for o in refinement.objects] for refinement in found.refinements] == [["a  Man", "hat"], []]
    assert all(refinement.tags == () for refinement in found.refinements)


def test_every_part_may_be_absent() -> None:
    assert VisualRefiner().refine(pictures()).local == {}
    only_tags = VisualRefiner(tagger("cat")).refine(pictures())
    assert [tag.name for tag in only_tags.refinements[0].tags] == ["cat"]
    assert only_tags.refinements[0].objects == ()
    only_boxes = VisualRefiner(None, detector()).refine(pictures())
    assert all(refinement.objects == () for refinement in only_boxes.refinements)
    assert only_boxes.local["detector"][1].any().item() is False
    no_tagger = VisualRefiner(None, detector(), segmenter()).refine(pictures(), [["cat"], ["dog"]])
    assert [len(refinement.objects) for refinement in no_tagger.refinements] == [1, 1]
    with pytest.raises(ValueError, match="a segmenter needs the boxes of a detector"):
        VisualRefiner(tagger("cat"), None, segmenter())


def test_no_pictures_and_no_objects_are_normal() -> None:
    refiner = VisualRefiner(tagger(), detector(), segmenter())
    assert refiner.refine(pictures(0)).refinements == ()
    nothing = refiner.refine(pictures(2))
    assert [refinement.objects for refinement in nothing.refinements] == [(), ()]
    assert nothing.local["segmenter"][0].shape == (2, 0, 7)


def test_best_objects_are_kept_and_only_those_are_segmented() -> None:
    refiner = VisualRefiner(tagger("a", "b", "c"), detector(), segmenter(), max_objects=2)
    found = refiner.refine(pictures(1))
    assert [obj.tag for obj in found.refinements[0].objects] == ["a", "b"]
    assert refiner.segmenter.asked == [([[BOXES[0], BOXES[1]]],)]  # type: ignore[union-attr]
    assert found.local["detector"][1].tolist() == [[True, True, True]], "the detector's tokens are not its objects"


def test_number_of_phrase_lists_must_be_that_of_the_pictures() -> None:
    with pytest.raises(ValueError, match="2 images need as many lists of phrases, not 1"):
        VisualRefiner(None, detector()).refine(pictures(), [["cat"]])


def test_it_is_frozen_whatever_is_done_to_it() -> None:
    refiner = VisualRefiner(tagger("cat"), detector(), segmenter())
    parent = nn.Sequential(refiner, nn.Linear(2, 2))
    parent.train()
    assert parent[1].training
    assert not any(module.training for module in refiner.modules())
    assert refiner.train(True) is refiner
    assert not any(parameter.requires_grad for parameter in refiner.parameters())
    assert len(list(refiner.parameters())) == 6


BROKEN: dict[str, tuple[dict[str, Expert], str]] = {}


def broken(name: str, complaint: str, **experts: Expert) -> None:
    BROKEN[name] = (experts, complaint)


def changed(output: Callable[..., Any], **fields: Callable[[Any], Any]) -> Callable[..., Any]:
    """The same answer with some fields changed."""

    def answer(images: ImageBatch, asked: Any) -> Any:
        found = output(images, asked)
        return replace(found, **{name: change(found) for name, change in fields.items()})

    return answer


def change_first(**fields: Any) -> Callable[[DetectorOutput], Any]:
    return lambda found: ((replace(found.detections[0][0], **fields), *found.detections[0][1:]), *found.detections[1:])


broken("too few tags", "the tagger gave tags for 1 of 2 images", tagger=Expert(lambda images: [[]]))
broken(
    "too few detections",
    "the detector answered 1 of 2 images",
    detector=Expert(changed(detect, detections=lambda found: found.detections[:1]), 5),
)
broken(
    "wrong width",
    "the detector returned tokens (2, 3, 5), not [2, M, 6]",
    detector=Expert(detect, 6),
)
broken(
    "tokens of one picture",
    "the detector returned tokens (1, 3, 5), not [2, M, 5]",
    detector=Expert(changed(detect, tokens_BMD=lambda found: found.tokens_BMD[:1]), 5),
)
broken(
    "tokens without a picture",
    "the detector returned tokens (2, 5)",
    detector=Expert(changed(detect, tokens_BMD=lambda found: found.tokens_BMD[:, 0]), 5),
)
broken(
    "float mask",
    "of torch.float32, not a bool mask",
    detector=Expert(changed(detect, mask_BM=lambda found: found.mask_BM.float()), 5),
)
broken(
    "short mask",
    "the detector returned a mask (2, 2)",
    detector=Expert(changed(detect, mask_BM=lambda found: found.mask_BM[:, :2]), 5),
)
broken(
    "invented phrase",
    "returned the phrase 'Cat', which it was not asked for",
    detector=Expert(changed(detect, detections=change_first(phrase="Cat")), 5),
)
broken(
    "unsorted scores",
    "returned detections that are not in descending score",
    detector=Expert(changed(detect, detections=change_first(score=0.1)), 5),
)
broken(
    "too few masks",
    "the segmenter returned [2, 0] masks for [2, 1] boxes",
    segmenter=Expert(changed(segment, masks=lambda found: (found.masks[0], ())), 7),
)
broken(
    "segment tokens of another width",
    "the segmenter returned tokens (2, 2, 7) and a mask (2, 2), not (2, 2, 8)",
    segmenter=Expert(segment, 8),
)
broken(
    "segment mask of another shape",
    "and a mask (2, 1)",
    segmenter=Expert(changed(segment, mask_BK=lambda found: found.mask_BK[:, :1]), 7),
)
broken(
    "segment mask of numbers",
    "returned a mask of torch.int64, not a bool mask",
    segmenter=Expert(changed(segment, mask_BK=lambda found: found.mask_BK.long()), 7),
)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_contract_is_said_where_it_is_broken(name: str) -> None:
    experts, complaint = BROKEN[name]
    good = {"tagger": tagger("cat", "dog"), "detector": detector(), "segmenter": segmenter()}
    with pytest.raises(ContractError) as caught:
        VisualRefiner(**{**good, **experts}).refine(pictures())  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    named = {expert: f"{expert} 'acme' of acme 1.0" for expert in good}
    with pytest.raises(ContractError, match=r"'acme' of acme 1\.0"):
        VisualRefiner(**{**good, **experts}, names=named).refine(pictures())  # type: ignore[arg-type]


def test_a_refiner_that_looks_for_nothing_says_so_once() -> None:
    refiner = VisualRefiner(None, detector(), segmenter())
    with pytest.warns(UserWarning, match="nothing is looked for: .*no tagger, no phrases.*--phrases"):
        refiner.refine(pictures())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refiner.refine(pictures())
        VisualRefiner(None, detector(), segmenter()).refine(pictures(), [["cat"], ["dog"]])
        VisualRefiner(tagger(), detector(), segmenter()).refine(pictures())
    with pytest.warns(UserWarning, match="no detector"):
        VisualRefiner().refine(pictures())


def test_a_detector_without_a_tagger_is_asked_for_its_own_vocabulary() -> None:
    expert = detector()
    expert.vocabulary = ("cat", "dog")
    found = VisualRefiner(None, expert).refine(pictures())
    assert [[obj.tag for obj in one.objects] for one in found.refinements] == [["cat", "dog"], ["cat", "dog"]]


def test_phrases_of_a_list_of_images_are_lists_of_their_own() -> None:
    """Else "person . dog ." in a list of one image's phrases is taken for the phrases of the first image."""
    refiner = VisualRefiner(None, detector())
    image = Image.new("RGB", (8, 8))
    with pytest.raises(PromptError, match="image 0: a list of texts for each image"):
        refiner([image], ["cat"])
    assert [obj.tag for obj in refiner(image, ["cat"]).objects] == ["cat"]
    assert [obj.tag for obj in refiner([image], [["cat"]])[0].objects] == ["cat"]


def with_masks(images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
    """As ``detect``, each with a mask of so many columns as its number says."""
    found = detect(images, phrases)
    masks = tuple(
        tuple(Mask.from_box(Box(0.0, 0.0, 0.1 * (i + 1), 1.0), frame.original_size) for i in range(len(row)))
        for row, frame in zip(found.detections, images.frames, strict=True)
    )
    return replace(found, masks=masks)


def test_a_detectors_masks_are_those_of_the_objects() -> None:
    refiner = VisualRefiner(detector=Expert(with_masks, 5), max_objects=2)
    (found,) = refiner([Image.new("RGB", (20, 10))], [["a", "b", "c"]])
    assert [obj.mask.area_px for obj in found.objects if obj.mask is not None] == [20, 40]


def test_too_few_masks_break_the_contract() -> None:
    def lacking(images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        return replace(with_masks(images, phrases), masks=((),))

    with pytest.raises(ContractError, match=r"returned \[0\] masks for \[1\] detections"):
        VisualRefiner(detector=Expert(lacking, 5))([Image.new("RGB", (20, 10))], [["a"]])
