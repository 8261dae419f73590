"""An answer is not made of NaN: the first part that gave one is named."""

from __future__ import annotations

import copy

import pytest
import torch

from lyrics.core.errors import NotFiniteError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from tests.core.small import drawn, small


@pytest.fixture(scope="module")
def sound() -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(), weights="random").eval()


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("encoder.", "image_encoder"),
        ("refiner.detector.", "refiner.detector"),
        ("refiner.segmenter.", "refiner.segmenter"),
        ("query_transformer.", "query_transformer"),
        ("projection.", "projection"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_part_that_is_not_finite_is_named(
    sound: LyricsModel, parameter: str, part: str, value: float
) -> None:
    model = copy.deepcopy(sound)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.startswith(parameter) and name.endswith("bias"):
                tensor.fill_(value)
    with pytest.raises(NotFiniteError, match=rf"^{part}: gave values that are not finite.*--dtype float32"):
        model.generate(drawn(), "What is it?", phrases=["red circle"])


@pytest.mark.parametrize(("layer", "part"), [("embed_tokens", "word embeddings"), ("lm_head", "logits")])
def test_so_is_the_language_model(sound: LyricsModel, layer: str, part: str) -> None:
    model = copy.deepcopy(sound)
    with torch.no_grad():
        next(one for name, one in model.language_model.named_parameters() if layer in name).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=rf"^language_model \({part}\)"):
        model.generate(None, "What is it?")


def test_what_is_forbidden_is_not_an_error(sound: LyricsModel) -> None:
    """Minus infinity is how transformers forbids a token."""
    assert sound.generate(None, "What is it?", max_new_tokens=3, min_new_tokens=2, num_beams=2)


def test_hooks_are_gone_afterwards(sound: LyricsModel) -> None:
    model = copy.deepcopy(sound)
    with torch.no_grad():
        model.projection.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        model.generate(drawn(), "What is it?")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
