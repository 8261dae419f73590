"""A small Grounding DINO with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from lyrics.core.contracts import BuildContext
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.grounding_dino import GroundingDinoOptions, lyrics_components
from lyrics.plugins.grounding_dino.detector import GroundingDino, build

#: At test size, but with the thresholds of a real one: the conformance suite's let everything through.
TEST_OPTIONS = dict(next(iter(lyrics_components())).test_options)
del TEST_OPTIONS["box_threshold"], TEST_OPTIONS["text_threshold"]


@pytest.fixture
def small() -> Callable[..., GroundingDino]:
    """``small(option=value, ...)``: the component at test size, the same random weights every time."""

    def make(**options: object) -> GroundingDino:
        torch.manual_seed(0)
        component = build(GroundingDinoOptions(**{**TEST_OPTIONS, **options}), BuildContext("random"))
        for name, parameter in component.network.named_parameters():
            # Fresh box heads and fusion scales are 0 or nearly so, and the decoder's last norm does nothing; not so
            # after training.
            if "bbox_embed" in name or name.endswith(("vision_param", "text_param", "decoder.layer_norm.bias")):
                torch.nn.init.normal_(parameter, std=0.1)
        return component

    return make


@pytest.fixture
def pictures() -> Callable[..., ImageBatch]:
    """``pictures(component, (width, height), ...)``: noise of these sizes, prepared; the same noise for
    the same size.
    """

    def make(component: GroundingDino, *sizes: tuple[int, int]) -> ImageBatch:
        noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
        return prepare([Image.fromarray(array) for array in noise], component.preprocessing)

    return make
