"""SAM 2's image encoder without what nobody reads, a few windows at a time: the embeddings of transformers' class, and
its gradients.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, Sam2MultiScaleBlock

from lyrics.core import onednn
from lyrics.plugins.hf import sam2, small
from lyrics.plugins.hf.sam2 import LeanAttention, LeanBlock, embed, is_lean, make_lean


def stock(**changes: Any) -> Sam2Model:
    torch.manual_seed(0)
    settings = copy.deepcopy({name: value for name, value in small.SAM2.items() if name != "model_type"})
    for name, value in changes.items():
        settings["vision_config"][name] = value
    return Sam2Model(Sam2Config(**settings)).eval()


def lean(network: Sam2Model) -> Sam2Model:
    other = copy.deepcopy(network)
    make_lean(other)
    return other


def side(network: Sam2Model) -> int:
    return int(network.config.vision_config.backbone_config.image_size[0])


@pytest.mark.parametrize("levels", [[2, 3], [1, 2, 3], [0, 1, 2, 3], []])
@pytest.mark.parametrize("batch", [1, 2])
def test_embeddings_are_those_of_transformers(levels: list[int], batch: int) -> None:
    network = stock(fpn_top_down_levels=levels)
    assert is_lean(network)
    pixels = torch.randn(batch, 3, side(network), side(network))
    with torch.no_grad():
        expected, found = network.get_image_embeddings(pixels), embed(lean(network), pixels)
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 16, 40, 10_000])
@pytest.mark.parametrize("windows", [[8, 4, 4, 2], [4, 5, 3, 7]])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_few_windows_at_a_time_are_all_of_them(
    at_once: int, windows: list[int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows that do not divide the image are among them; attention over all goes by oneDNN, too.
    monkeypatch.setattr(sam2, "_AT_ONCE", at_once)
    monkeypatch.setattr(sam2, "_QUERIES", 5)
    monkeypatch.setattr(sam2, "_MANY", 1)
    if onednn._LINEAR is not None:
        monkeypatch.setattr(onednn, "pays", lambda: True)
    settings = copy.deepcopy({name: value for name, value in small.SAM2.items() if name != "model_type"})
    settings["vision_config"]["backbone_config"]["window_size_per_stage"] = windows
    torch.manual_seed(0)
    network = Sam2Model(Sam2Config(**settings)).eval()
    pixels = torch.randn(batch, 3, side(network), side(network))
    other = lean(network)
    onednn.use_onednn(other)
    strips: list[int] = []
    monkeypatch.setattr(sam2, "_attended", _counted(sam2._attended, strips))
    with torch.no_grad():
        for one, expected in zip(embed(other, pixels), network.get_image_embeddings(pixels), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    blocks = len(network.vision_encoder.backbone.blocks)
    assert (len(strips) > blocks) == (at_once < 10_000)


def _counted(attended: Any, calls: list[int]) -> Any:
    def counted(query: torch.Tensor, *others: Any) -> torch.Tensor:
        calls.append(len(query))
        seen: torch.Tensor = attended(query, *others)
        return seen

    return counted


def test_gradients_are_those_of_transformers() -> None:
    network = stock()
    pixels = torch.randn(1, 3, side(network), side(network))
    gradients = []
    for model, run in ((network, _with_gradients), (lean(network), embed)):
        maps = run(model, pixels)
        sum(one.square().sum() for one in maps).backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one, rtol=1e-3, atol=1e-4 * float(one.abs().max() + 1), msg=name)


def _with_gradients(network: Sam2Model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """``get_image_embeddings``, which transformers runs without gradients, with them."""
    maps = network.get_image_features(pixels, return_dict=True).fpn_hidden_states
    maps[-1] = maps[-1] + network.no_memory_embedding
    return [one.permute(1, 2, 0) for one in maps]


def test_weights_keep_their_names_and_other_attention_is_transformers_own() -> None:
    network = stock()
    other = lean(network)
    assert network.state_dict().keys() == other.state_dict().keys()
    assert any(isinstance(module, LeanAttention) for module in other.modules())
    assert any(isinstance(module, LeanBlock) for module in other.modules())
    assert not any(type(module) in (Sam2MultiScaleAttention, Sam2MultiScaleBlock) for module in other.modules())
    other.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, side(network), side(network))
    with torch.no_grad():
        for one, expected in zip(embed(other, pixels), network.get_image_embeddings(pixels), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_another_neck_is_left_alone() -> None:
    assert not is_lean(stock(fpn_kernel_size=3, fpn_padding=1))
    assert not is_lean(torch.nn.Linear(2, 2))
