"""The exchanged layers of the image encoder against transformers' own: outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import SamHQModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionLayer

from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.encoder import EncoderLayer, attention, exchange_layers
from lyrics.plugins.sam_hq.segmenter import network_config
from tests.plugins.sam_hq.conftest import TEST_OPTIONS


def stock_layer(window: int, side: int) -> SamHQVisionLayer:
    """A layer of width 32 with 4 heads for side x side tokens; every weight has a say, those of distances included."""
    config = network_config(
        SamHqOptions(**{**TEST_OPTIONS, "width": 32, "heads": 4, "image_size": 8 * side, "patch_size": 8}).numbers
    ).vision_config
    config._attn_implementation = "sdpa"  # what a whole model chooses
    torch.manual_seed(0)
    layer = SamHQVisionLayer(config, window).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


# 7 tokens: windows of 7 fit, of 3 leave two rows of padding, of 9 are larger than the picture; 0 attends everywhere.
@pytest.mark.parametrize("window", [0, 3, 7, 9])
@pytest.mark.parametrize("batch", [1, 2])
def test_layer_equals_transformers(window: int, batch: int) -> None:
    stock = stock_layer(window, 7)
    ours = EncoderLayer(copy.deepcopy(stock))
    assert list(ours.state_dict()) == list(stock.state_dict())
    first = torch.randn(batch, 7, 7, 32, dtype=torch.float64, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    weights = torch.randn(batch, 7, 7, 32, dtype=torch.float64)
    expected, found = stock(first), ours(second)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(second.grad, first.grad, atol=1e-9, rtol=0)
    grads = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad, atol=1e-8, rtol=1e-10, msg=name)


@pytest.mark.parametrize("rows", [1, 5, 34, 35])
def test_blocks_of_rows_do_not_change_attention(rows: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 7, 3 * 16, dtype=torch.float64)
    tables = torch.randn(9, 8, dtype=torch.float64), torch.randn(13, 8, dtype=torch.float64)
    whole = attention(qkv, *tables, heads=2, rows=10**6)
    torch.testing.assert_close(attention(qkv, *tables, heads=2, rows=rows), whole, atol=1e-12, rtol=0)


def test_attention_equals_a_loop_over_tokens() -> None:
    """From the definition: score(i, j) = q_i k_j / sqrt(d) + q_i r_h(i - j) + q_i r_w(i - j)."""
    torch.manual_seed(0)
    height, width, dim = 2, 3, 4
    qkv = torch.randn(1, height, width, 3 * dim, dtype=torch.float64)
    by_row, by_column = torch.randn(2 * height - 1, dim).double(), torch.randn(2 * width - 1, dim).double()
    query, key, value = qkv[0].flatten(0, 1).split(dim, dim=-1)
    places = [(y, x) for y in range(height) for x in range(width)]
    scores = torch.tensor(
        [
            [
                query[i] @ key[j] / dim**0.5
                + query[i] @ by_row[y - v + height - 1]
                + query[i] @ by_column[x - u + width - 1]
                for j, (v, u) in enumerate(places)
            ]
            for i, (y, x) in enumerate(places)
        ],
        dtype=torch.float64,
    )
    expected = (scores.softmax(-1) @ value).view(1, height, width, dim)
    torch.testing.assert_close(attention(qkv, by_row, by_column, heads=1), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_whole_network_keeps_its_names_and_results() -> None:
    torch.manual_seed(0)
    network = SamHQModel(network_config(SamHqOptions(**TEST_OPTIONS).numbers)).eval()
    names = list(network.state_dict())
    pixels = torch.randn(2, 3, TEST_OPTIONS["image_size"], TEST_OPTIONS["image_size"])
    expected, early = network.get_image_embeddings(pixels)
    exchange_layers(network)
    found, early_found = network.get_image_embeddings(pixels)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(early_found) == len(early) > 0
    for one, other in zip(early_found, early, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
