"""Pixels that travel as bytes are, where they arrive, what the processor makes of them on the host."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lyrics.core.pictures.normalizing import normalized
from lyrics.core.pictures.processor import Processor, bytes_of, prepare
from lyrics.core.types import Preprocessing
from lyrics.workflows.bench.fake_device import fake_device

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = Preprocessing("shortest", 24, MEAN, STD, crop=24)
DINO = Preprocessing("shortest", 20, MEAN, STD, max_size=33)
SAM = Preprocessing("longest", 32, MEAN, STD, pad_to=32)


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_definition(pictures: list[Image.Image], how: Preprocessing) -> torch.Tensor:
    """Scaled, normalized, then padded with zeros; float64."""
    parts = [np.array(bytes_of(one, how)[0], np.float64).transpose(2, 0, 1) for one in pictures]
    height = max([how.pad_to or 0, *(part.shape[1] for part in parts)])
    width = max([how.pad_to or 0, *(part.shape[2] for part in parts)])
    found = np.zeros((len(parts), 3, height, width))
    for row, part in zip(found, parts, strict=True):
        scaled = (part / 255 - np.array(how.mean)[:, None, None]) / np.array(how.std)[:, None, None]
        row[:, : part.shape[1], : part.shape[2]] = scaled
    return torch.from_numpy(found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4),
    st.sampled_from((CLIP, DINO, SAM)),
    st.integers(0, 99),
)
def test_bytes_become_what_the_definition_says(sizes: list[tuple[int, int]], how: Preprocessing, seed: int) -> None:
    pictures = [picture(*size, seed + number) for number, size in enumerate(sizes)]
    sent = prepare(pictures, how, as_bytes=True)
    assert sent.pixels_BCHW.dtype == torch.uint8
    arrived = normalized(sent)
    assert arrived.to_normalize is None
    assert arrived.frames == sent.frames
    torch.testing.assert_close(arrived.pixels_BCHW.double(), by_definition(pictures, how), atol=2e-6, rtol=0)
    on_the_host = prepare(pictures, how)
    assert on_the_host.pixels_BCHW.equal(arrived.pixels_BCHW)
    assert on_the_host.pixels_BCHW.is_contiguous()
    padding_BHW = ~arrived.pixel_mask_BHW
    assert not arrived.pixels_BCHW[padding_BHW[:, None].expand_as(arrived.pixels_BCHW)].any()
    assert normalized(on_the_host) is on_the_host


def test_no_pictures_are_no_pixels() -> None:
    assert normalized(prepare([], SAM, as_bytes=True)).pixels_BCHW.shape == (0, 3, 32, 32)


def test_a_batch_is_normalized_where_it_is_sent() -> None:
    processor = Processor({"image_encoder": CLIP, "segmenter": SAM})
    pictures = [picture(40, 30, 1), picture(9, 50, 2)]
    images = processor.images(pictures, as_bytes=True)
    plain = processor.images(pictures)
    here = images.to("cpu", torch.bfloat16)
    for expert, batch in here.by_expert.items():
        assert batch.pixels_BCHW.equal(plain.by_expert[expert].pixels_BCHW.to(torch.bfloat16))
    assert images.by_expert["segmenter"].pixels_BCHW.dtype == torch.uint8


def test_a_quarter_of_the_bytes_travels_and_nobody_waits() -> None:
    processor = Processor({"detector": DINO})
    pictures = [picture(40, 30, 1), picture(9, 50, 2)]
    counted = []
    with fake_device() as device:
        for as_bytes in (False, True):
            device.clear()
            images = processor.images(pictures, as_bytes=as_bytes).to("meta")
            assert images.by_expert["detector"].pixels_BCHW.dtype == torch.float32
            assert device.waits == device.waiting_copies == []
            counted.append(device.copied_bytes)
    assert counted[1] < counted[0] / 3.5
