"""Our sampling of image features against transformers', which is the definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from lyrics.plugins.grounding_dino.detector import GroundingDino
from lyrics.plugins.grounding_dino.sampling import Sampling


def arguments(
    levels: list[tuple[int, int]], images: int, queries: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[object, ...]:
    """Features, places (inside, at the border, outside) and weights, as the attention layers pass them on."""
    random = torch.Generator().manual_seed(seed)
    cells = sum(rows * columns for rows, columns in levels)
    features = torch.randn(images, cells, 2, 8, generator=random)
    places = torch.rand(images, queries, 2, len(levels), 3, 2, generator=random) * 1.6 - 0.3
    places[:, ::5] = places[:, ::5].round()  # on corners of the picture
    places[:, 1::7] *= 50  # far away
    weights = torch.rand(images, queries, 2, len(levels), 3, generator=random)
    return features.to(dtype), torch.tensor(levels), levels, None, places.to(dtype), weights.to(dtype), 64


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    images=st.integers(1, 3),
    queries=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_it_is_transformers_sampling(levels: list[tuple[int, int]], images: int, queries: int, seed: int) -> None:
    given_ = arguments(levels, images, queries, seed)
    torch.testing.assert_close(Sampling()(*given_), MultiScaleDeformableAttention()(*given_), atol=1e-5, rtol=1e-5)


def test_gradients_are_the_same() -> None:
    found = []
    for module in (Sampling(), MultiScaleDeformableAttention()):
        features, *between, places, weights, step = arguments([(7, 5), (3, 4)], 2, 12, 0)
        leaves = [tensor.requires_grad_() for tensor in (features, places, weights)]  # type: ignore[union-attr]
        module(features, *between, places, weights, step).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(dtype: torch.dtype) -> None:
    """torch's own sampling of bfloat16 features at bfloat16 places is off by 0.1 and more, and sometimes NaN."""
    given_ = arguments([(20, 32), (3, 4)], 1, 200, 0, dtype)
    exact = [
        tensor.float() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else tensor
        for tensor in given_
    ]
    found = Sampling()(*given_)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), MultiScaleDeformableAttention()(*exact), rtol=2**-8, atol=1e-5)


def test_every_layer_samples_so(small: Callable[..., GroundingDino]) -> None:
    component = small(encoder_layers=2, decoder_layers=3)
    layers = [m for m in component.network.modules() if isinstance(m, MultiScaleDeformableAttention)]
    assert [type(layer) for layer in layers] == [Sampling] * (2 + 3)
