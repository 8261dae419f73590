"""A prompt is encoded once a call, and the results are those of encoding it for every picture."""

from __future__ import annotations

import copy

import pytest
import torch

SIZES = [(80, 60), (60, 80), (80, 60), (64, 64)]
ASKED = [["dog", "cat"], ["dog", "cat"], ["tree"], ["dog", "cat"]]


@torch.no_grad()
def test_each_prompt_is_encoded_once(small, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    component = small()
    images = pictures(component, *SIZES)
    encoded: list[int] = []
    encode = component._texts._encode
    monkeypatch.setattr(
        component._texts, "_encode", lambda ids, *a, **k: (encoded.append(len(ids)), encode(ids, *a, **k))[1]
    )
    found = component(images, ASKED)
    assert encoded == [2]  # four pictures in three groups of one size, two different prompts, both in the first group
    stock = copy.deepcopy(component)
    stock._texts = None
    del stock.network.model.text_backbone.forward
    expected = stock(images, ASKED)
    torch.testing.assert_close(found.tokens_BMD, expected.tokens_BMD, atol=1e-5, rtol=0)
    assert [[(one.phrase, pytest.approx(one.score, abs=1e-5)) for one in own] for own in found.detections] == [
        [(one.phrase, one.score) for one in own] for own in expected.detections
    ]
    encoded.clear()
    component(images, ASKED)
    assert encoded == [2]  # nothing is kept from call to call: the weights may have changed


def test_gradients_are_those_of_every_picture(small, pictures) -> None:
    component = small()
    encoder = component.network.model.text_backbone
    images = pictures(component, (64, 64), (64, 64))
    component(images, [["dog"], ["dog"]]).tokens_BMD.sum().backward()
    first = encoder.embeddings.word_embeddings.weight.grad.clone()
    encoder.zero_grad()
    component._texts = None
    component(images, [["dog"], ["dog"]]).tokens_BMD.sum().backward()
    torch.testing.assert_close(first, encoder.embeddings.word_embeddings.weight.grad)
    assert first.any()


@torch.no_grad()
def test_pictures_side_by_side_are_detected_as_one_after_the_other(small, pictures) -> None:
    component = small()
    images = pictures(component, *SIZES)
    expected = component(images, ASKED)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = component(images, ASKED)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.tokens_BMD, expected.tokens_BMD, atol=1e-4, rtol=0)
    assert [[one.phrase for one in own] for own in found.detections] == [
        [one.phrase for one in own] for own in expected.detections
    ]
