"""The conformance suite over the components of the extra ``experts``."""

from __future__ import annotations

from lyrics.core.registry.registry import Registry
from lyrics.plugins import grounding_dino, sam_hq, timm_vit
from lyrics.testing import DetectorContract, ImageEncoderContract, SegmenterContract
from tests.experts.conftest import needs

needs("timm")
needs("groundingdino")
needs("segment_anything_hq")

REGISTRY = Registry.discover(grounding_dino, sam_hq, timm_vit)


class TestTimmVit(ImageEncoderContract):
    component = "lyrics.plugins.timm_vit/timm-vit"
    registry = REGISTRY


class TestGroundingDinoUpstream(DetectorContract):
    component = "lyrics.plugins.grounding_dino/grounding-dino-upstream"
    registry = REGISTRY


class TestSamHqUpstream(SegmenterContract):
    component = "lyrics.plugins.sam_hq/sam-hq-upstream"
    registry = REGISTRY
