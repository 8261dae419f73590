"""The component: contract, frames, chunks, tokens, independence of the batch, true size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box, Frame
from lyrics.core.types import ImageBatch
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq import segmenter as module
from lyrics.plugins.sam_hq.segmenter import build

BOXES = [Box(0.1, 0.2, 0.6, 0.9), Box(0.0, 0.0, 1.0, 1.0), Box(0.5, 0.5, 0.52, 0.52)]
SIZES = [(80, 60), (50, 100), (64, 64), (200, 7)]
ASKED = [BOXES, [], BOXES[:1], BOXES[1:]]


@pytest.fixture
def answering(small, monkeypatch):
    """``answering(logits)``: a component whose every box has these mask logits [64, 64], and an embedding of ones and
    cell numbers.
    """

    def make(logits_HW):
        component = small()
        monkeypatch.setattr(
            module,
            "decode",
            lambda network, embedding, prompts: (logits_HW.expand(len(prompts), -1, -1), 0 * logits_HW),
        )
        cells = torch.arange(64.0).reshape(1, 8, 8).expand(32, 8, 8).clone()
        cells[0] = 1.0
        monkeypatch.setattr(module, "embed", lambda network, pixels: module.Embedding(cells, torch.zeros(4, 32, 32)))
        return component

    return make


def on(frame):
    return ImageBatch(torch.zeros(1, 3, 64, 64), (frame,))


@torch.no_grad()
def test_contract(small, pictures):
    component = small()
    found = component(pictures(component, *SIZES), ASKED)
    assert component.feature_dim == SamHqOptions(prompt_width=32, decoder_heads=2).feature_dim == 36
    assert found.tokens_BKD.shape == (4, 3, 36)
    assert found.tokens_BKD.dtype == torch.float32
    assert found.mask_BK.dtype == torch.bool
    assert found.mask_BK.tolist() == [[True] * 3, [False] * 3, [True, False, False], [True, True, False]]
    assert not found.tokens_BKD[~found.mask_BK].any()
    assert found.tokens_BKD.isfinite().all()
    for masks, asked, (width, height) in zip(found.masks, ASKED, SIZES, strict=True):
        assert [(mask.width, mask.height) for mask in masks] == [(width, height)] * len(asked)
    areas = [mask.area_px / (mask.width * mask.height) for masks in found.masks for mask in masks]
    assert any(0.05 < area < 0.95 for area in areas)


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(small, pictures):
    component = small()
    together = component(pictures(component, *SIZES), ASKED)
    for row, (size, boxes) in enumerate(zip(SIZES, ASKED, strict=True)):
        alone = component(pictures(component, size), [boxes])
        torch.testing.assert_close(together.tokens_BKD[row, : len(boxes)], alone.tokens_BKD[0], atol=1e-4, rtol=0)
        assert together.masks[row] == alone.masks[0]


@torch.no_grad()
def test_chunks_do_not_change_the_result(small, pictures):
    rng = np.random.default_rng(0)
    boxes = [Box(*corners) for corners in np.sort(rng.random((7, 2, 2)), axis=1).reshape(7, 4).tolist()]
    one_by_one, three, all_at_once = (
        component(pictures(component, (80, 60)), [boxes]) for component in (small(boxes_per_pass=n) for n in (1, 3, 64))
    )
    for other in (three, all_at_once):
        torch.testing.assert_close(one_by_one.tokens_BKD, other.tokens_BKD, atol=1e-4, rtol=0)
        differing = [a.to_array() != b.to_array() for a, b in zip(one_by_one.masks[0], other.masks[0], strict=True)]
        assert np.mean(differing) <= 1e-3
    assert len({tuple(token) for token in one_by_one.tokens_BKD[0].tolist()}) == 7


@torch.no_grad()
def test_boxes_are_decoded_a_few_at_a_time_and_pictures_encoded_once(small, pictures, monkeypatch):
    component = small(boxes_per_pass=64)
    sizes, encoded = [], []
    decode, embed = module.decode, module.embed
    monkeypatch.setattr(module, "decode", lambda n, e, prompts: (sizes.append(len(prompts)), decode(n, e, prompts))[1])
    monkeypatch.setattr(module, "embed", lambda n, pixels: (encoded.append(pixels.shape), embed(n, pixels))[1])
    found = component(pictures(component, (80, 60), (60, 80)), [[BOXES[0]] * 150, []])
    assert sizes == [64, 64, 22]
    assert len(encoded) == 1
    assert found.mask_BK.sum() == 150


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[], [(80, 60)], [(80, 60), (60, 80)]])
def test_no_boxes(small, pictures, sizes):
    component = small()
    found = component(pictures(component, *sizes), [[] for _ in sizes])
    assert found.masks == ((),) * len(sizes)
    assert found.tokens_BKD.shape == (len(sizes), 0, 36)
    assert found.mask_BK.shape == (len(sizes), 0)
    assert found.mask_BK.dtype == torch.bool


@pytest.mark.parametrize("boxes", [[], [[], []], [BOXES[0]]])
def test_one_list_of_boxes_per_picture(small, pictures, boxes):
    component = small()
    with pytest.raises(ValueError, match="one list of boxes for each of the 1 images"):
        component(pictures(component, (80, 60)), boxes)


@torch.no_grad()
def test_token_is_the_embedding_over_the_mask_and_the_box(answering):
    logits = torch.full((64, 64), -5.0)
    logits[8:16, 24:36] = 5.0  # cells (1, 3) and half of (1, 4): numbers 11 and 12
    found = answering(logits)(on(Frame.of(64, 64)), [[Box(0.1, 0.2, 0.4, 0.8)]])
    token = found.tokens_BKD[0, 0]
    torch.testing.assert_close(token[0], torch.tensor(1.0))
    torch.testing.assert_close(token[1:32], torch.full((31,), (11 + 12 / 2) / 1.5))
    torch.testing.assert_close(token[32:], torch.tensor([0.25, 0.5, 0.3, 0.6]))
    assert found.masks[0][0].box_norm() == Box(24 / 64, 8 / 64, 36 / 64, 16 / 64)


@torch.no_grad()
def test_an_empty_mask_is_pooled_over_its_box(answering):
    component = answering(torch.full((64, 64), -5.0))
    boxes = [
        Box(0.25, 0.125, 0.5, 0.25),
        Box(0.25, 0.125, 0.4375, 0.25),
        Box(0.3, 0.13, 0.3001, 0.1301),
        Box(0, 0, 1e-7, 1e-7),
    ]
    found = component(on(Frame.of(64, 64)), [boxes])
    expected = [
        (10 + 11) / 2,
        (10 + 11 / 2) / 1.5,
        10,
        0,
    ]  # cells (1, 2) and (1, 3); the same, the latter half; (1, 2); (0, 0)
    torch.testing.assert_close(found.tokens_BKD[0, :, 1], torch.tensor(expected), atol=1e-3, rtol=0)
    assert [mask.area_px for mask in found.masks[0]] == [0] * 4


@torch.no_grad()
def test_padding_belongs_to_no_mask_and_no_token(answering):
    component = answering(torch.full((64, 64), 5.0))
    found = component(on(Frame.of(64, 32)), [[Box(0.0, 0.0, 1.0, 1.0)]])
    assert found.masks[0][0].area_px == 64 * 32
    torch.testing.assert_close(found.tokens_BKD[0, 0, 1], torch.tensor(31 / 2))  # the four upper rows of cells


@torch.no_grad()
def test_masks_come_back_through_any_frame(answering):
    logits = torch.full((64, 64), -5.0)
    logits[:, :16] = 5.0
    frame = Frame.of(256, 128).crop(128, 0, 128, 128).resize(64, 64).flip()
    component = answering(logits)
    (mask,) = component(on(frame), [[Box(0.9, 0.0, 1.0, 1.0)]]).masks[0]
    rows, columns = np.nonzero(mask.to_array())
    assert (mask.width, mask.height) == (256, 128)
    assert (columns.min(), columns.max()) == (224, 255)  # the canvas's left quarter is the crop's right one
    assert (rows.min(), rows.max()) == (0, 127)


@torch.no_grad()
def test_a_box_that_was_cropped_away_has_an_empty_mask(answering):
    component = answering(torch.full((64, 64), 5.0))
    frame = Frame.of(128, 64).crop(64, 0, 64, 64)
    gone, half = component(on(frame), [[Box(0.1, 0.1, 0.3, 0.9), Box(0.4, 0.1, 0.6, 0.9)]]).masks[0]
    assert gone.area_px == 0
    assert half.area_px == 64 * 64
    assert not half.to_array()[:, :64].any()


@torch.no_grad()
def test_prompts_are_in_canvas_pixels_and_clipped_to_it(small, pictures, monkeypatch):
    component = small()
    seen = []
    original = module.box_prompts
    monkeypatch.setattr(module, "box_prompts", lambda network, boxes: (seen.append(boxes), original(network, boxes))[1])
    frame = Frame.of(128, 32).crop(64, 0, 64, 32)
    component(on(frame), [[Box(0.75, 0.25, 1.0, 0.5), Box(0.25, 0.0, 0.75, 1.0)]])
    assert seen[0].tolist() == [[32.0, 8.0, 64.0, 16.0], [0.0, 0.0, 32.0, 32.0]]


@torch.no_grad()
def test_eval_is_deterministic_and_bfloat16_runs(small, pictures):
    component = small()
    images = pictures(component, (80, 60))
    first, again = (component(images, [BOXES]) for _ in range(2))
    assert torch.equal(first.tokens_BKD, again.tokens_BKD)
    assert first.masks == again.masks
    low = component.to(torch.bfloat16)(images, [BOXES])
    assert low.tokens_BKD.dtype == torch.bfloat16
    assert low.tokens_BKD.isfinite().all()


def test_true_size_on_the_meta_device():
    with torch.device("meta"):
        component = build(SamHqOptions(), BuildContext("meta"))
    count = sum(parameter.numel() for parameter in component.parameters())
    assert 642e6 < count < 643e6  # SAM ViT-H's 641 M and the high-quality parts
    assert {tensor.device.type for tensor in (*component.parameters(), *component.buffers())} == {"meta"}
    assert component.feature_dim == SamHqOptions().feature_dim == 260
    assert (component.preprocessing.size, component.preprocessing.pad_to) == (1024, 1024)
    attends_everywhere = [
        i for i, layer in enumerate(component.network.vision_encoder.layers) if layer.window_size == 0
    ]
    assert attends_everywhere == [7, 15, 23, 31]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 15}, "image_size 1024 is not a multiple of patch_size 15"),
        ({"heads": 7}, "width 1280 is not a multiple of heads 7"),
        ({"decoder_heads": 3}, "half of prompt_width 256 is not a multiple of decoder_heads 3"),
        ({"global_layers": (7, 32)}, "must lie in 0 to 31"),
        ({"global_layers": ()}, "global_layers"),
        ({"boxes_per_pass": 0}, "boxes_per_pass"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SamHqOptions(**options)


@torch.no_grad()
def test_pictures_side_by_side_are_segmented_as_one_after_the_other(small, pictures):
    component = small()
    images = pictures(component, *SIZES)
    expected = component(images, ASKED)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = component(images, ASKED)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.tokens_BKD, expected.tokens_BKD, atol=1e-4, rtol=0)
    assert found.masks == expected.masks
    assert torch.equal(found.mask_BK, expected.mask_BK)
