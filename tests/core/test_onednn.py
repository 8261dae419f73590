"""Linear layers by oneDNN: torch's own results to rounding, and torch's own way wherever oneDNN has no say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core import onednn
from lyrics.core.onednn import OneDnnLinear, linear, use_onednn


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The products that oneDNN was given, on a machine on which it pays."""
    inner = onednn._LINEAR
    if inner is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    seen: list[Any] = []

    def counted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(tuple(x.shape))
        found: torch.Tensor = inner(x, *others)
        return found

    monkeypatch.setattr(onednn, "pays", lambda: True)
    monkeypatch.setattr(onednn, "_LINEAR", counted)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (2, 1, 4, 7)])
def test_results_are_torch_s_own(shape: tuple[int, ...], bias: bool, calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 11, bias=bias)
    for x in (torch.randn(shape), torch.randn((*shape, 2))[..., 0]):
        with torch.no_grad():
            torch.testing.assert_close(linear(x, layer.weight, layer.bias), layer(x), rtol=1e-5, atol=1e-6)
    assert calls == [shape, shape]


def test_weights_of_another_layout_are_read_as_they_are(calls: list[Any]) -> None:
    torch.manual_seed(0)
    x, weight_CD = torch.randn(5, 7), torch.randn(7, 11)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight_CD.T), x @ weight_CD, rtol=1e-5, atol=1e-6)
    assert len(calls) == 1


def test_what_onednn_has_no_say_in_is_torch_s_own(calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 11), torch.randn(5, 7)
    assert linear(x, layer.weight, layer.bias).equal(layer(x)), "with gradients"
    assert linear(x, layer.weight, layer.bias).requires_grad
    with torch.no_grad():
        assert linear(x[:0], layer.weight, layer.bias).shape == (0, 11)
        assert linear(x.to("meta"), layer.weight.to("meta")).shape == (5, 11)
        for dtype in (torch.bfloat16, torch.float64):
            weight = layer.weight.to(dtype)
            assert linear(x.to(dtype), weight).equal(F.linear(x.to(dtype), weight))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, layer.weight, layer.bias).dtype == torch.bfloat16
    assert calls == []


def test_a_machine_on_which_it_does_not_pay_keeps_torch_s_own(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "pays", lambda: False)
    layer, x = nn.Linear(7, 11), torch.randn(5, 7)
    with torch.no_grad():
        assert linear(x, layer.weight, layer.bias).equal(layer(x))
    assert calls == []


@pytest.mark.parametrize(
    ("capability", "processor", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_it_pays_on_amd_with_512_bits(
    capability: str, processor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn._LINEAR is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"vendor_id : {processor}")
    assert onednn.pays.__wrapped__() is expected


def test_layers_keep_their_weights_and_are_still_linear_layers(calls: list[Any]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 11), nn.GELU(), nn.Linear(11, 3, bias=False))
    own = copy.deepcopy(network)
    use_onednn(own)
    assert [type(module) for module in own] == [OneDnnLinear, nn.GELU, OneDnnLinear]
    assert all(isinstance(module, nn.Linear) for module in own[::2])
    assert own.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(5, 7)
    with torch.no_grad():
        torch.testing.assert_close(own(x), network(x), rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
    x.requires_grad_()
    own(x).sum().backward()
    network(x).sum().backward()
    for one, expected in zip(own.parameters(), network.parameters(), strict=True):
        assert one.grad is not None
        assert expected.grad is not None
        assert one.grad.equal(expected.grad)
