"""The conformance suite is not passed by seeing nothing: under their test options, experts find something in its
pictures.
"""

from __future__ import annotations

import pytest
import torch

from lyrics.core.build import check_requirements
from lyrics.core.errors import MissingRequirementError
from lyrics.core.registry.registry import default_registry
from lyrics.testing import ComponentContract, DetectorContract, SegmenterContract, TaggerContract
from lyrics.testing.tools import batch


def built_in(kind: str) -> list[str]:
    """Names of our own experts that look at pixels; ``cached`` knows no picture of the suite's, and finds nothing by
    design.
    """
    ours = (e.component for e in default_registry().entries if e.source.distribution == "lyrics-vl")
    return [component.name for component in ours if component.kind == kind and component.name != "cached"]


def case(contract: type[ComponentContract], name: str) -> ComponentContract:
    made = type("Case", (contract,), {"component": f"lyrics-vl/{name}"})()
    try:
        check_requirements(made.part)
    except MissingRequirementError as error:
        pytest.skip(str(error))
    return made


def test_there_are_some() -> None:
    assert set(built_in("tagger")) >= {"ram-plus", "tiny-tagger"}
    assert set(built_in("detector")) >= {"grounding-dino", "tiny-detector"}
    assert set(built_in("segmenter")) >= {"sam-hq", "tiny-segmenter"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", built_in("tagger"))
@torch.no_grad()
def test_taggers_give_every_picture_tags_of_its_own(name: str, seed: int) -> None:
    tagger = case(TaggerContract, name).build(seed=seed)
    first, second = tagger(batch(tagger.preprocessing, 2))
    assert len(first) >= 2
    assert len(second) >= 2, "the order of tags is checked on two or more"
    assert {tag.name: tag.score for tag in first} != {tag.name: tag.score for tag in second}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", built_in("detector"))
@torch.no_grad()
def test_detectors_find_objects_for_the_phrases_of_every_picture(name: str, seed: int) -> None:
    """For both lists of phrases that the check of the batch's composition asks for."""
    contract = case(DetectorContract, name)
    detector = contract.build(seed=seed)
    phrases = [list(contract.phrases), list(contract.phrases[1:])]  # type: ignore[attr-defined]
    found = detector(batch(detector.preprocessing, 2), phrases).detections
    for detections in found:
        assert len(detections) >= 2, "the order of detections is checked on two or more"
        assert len({d.box_norm for d in detections}) >= 2
    assert {d.box_norm for d in found[0]} != {d.box_norm for d in found[1]}


@pytest.mark.parametrize("name", built_in("segmenter"))
@torch.no_grad()
def test_segmenters_draw_something(name: str) -> None:
    contract = case(SegmenterContract, name)
    segmenter = contract.build()
    found = segmenter(batch(segmenter.preprocessing, 2), contract._boxes())  # type: ignore[attr-defined]
    areas_px = [mask.area_px for masks in found.masks for mask in masks]
    assert min(areas_px) > 0
    assert len(set(areas_px)) == len(areas_px)
