"""A small SAM-HQ with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from lyrics.core.contracts import BuildContext
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.sam_hq import SamHqOptions, lyrics_components
from lyrics.plugins.sam_hq.segmenter import SamHq, build

TEST_OPTIONS = dict(next(iter(lyrics_components())).test_options)


@pytest.fixture
def small() -> Callable[..., SamHq]:
    """``small(option=value, ...)``: the component at test size, the same random weights every time."""

    def make(**options: object) -> SamHq:
        torch.manual_seed(0)
        component = build(SamHqOptions(**{**TEST_OPTIONS, **options}), BuildContext("random"))
        for name, parameter in component.network.named_parameters():
            if (
                name.startswith("mask_decoder") and parameter.ndim > 1
            ):  # fresh weights of 0.02 give masks without a shape
                torch.nn.init.normal_(parameter, std=0.3)
        return component

    return make


@pytest.fixture
def pictures() -> Callable[..., ImageBatch]:
    """``pictures(component, (width, height), ...)``: noise of these sizes, prepared; the same noise for
    the same size.
    """

    def make(component: SamHq, *sizes: tuple[int, int]) -> ImageBatch:
        noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
        return prepare([Image.fromarray(array) for array in noise], component.preprocessing)

    return make
