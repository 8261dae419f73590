"""The whole stage-1 step of MQ-Former with one implementation of attention: what Triton's must equal the reference's
in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features
from lyrics.workflows.bench.step_cases import build_case

#: Head dimension 32, the least that the kernels take; odd lengths.
TOY: Mapping[str, Any] = {
    "sizes": {
        "num_visual": 3,
        "num_grounding": 2,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
        "max_positions": 64,
    },
    "image": (5, 16),
    "local": (7, 12),
    "padded": (16, 8),
}


def step_results(
    impl: str,
    batch_size: int,
    lengths: tuple[int, int],
    *,
    device: str = "cpu",
    bf16: bool = False,
    dropout_p: float = 0.0,
    **case: Any,
) -> dict[str, torch.Tensor]:
    """Every loss, and every parameter's gradient of their sum."""
    sizes = {**case.pop("sizes", {}), "attention": impl, "attention_dropout": dropout_p}
    network, objectives, features, batch, negatives = build_case(batch_size, lengths, sizes=sizes, **case)
    network.train(dropout_p > 0).to(device)
    objectives.to(device)
    local = {name: (tokens.to(device), mask.to(device)) for name, (tokens, mask) in features.local.items()}
    features = Features(features.image_tokens_BND.to(device), local)
    torch.manual_seed(7)  # the layers draw their seeds
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        losses = pretrain_losses(network, objectives, features, batch, negatives)
    total_loss(losses)[0].backward()
    named = [*network.named_parameters(), *objectives.named_parameters()]
    found = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return found | {f"loss {name}": loss.sum.detach() for name, loss in losses.items()}


def worst_difference(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Greatest difference of each, over the greatest value there is."""
    assert set(got) == set(want)
    return {
        name: float((got[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-3))
        for name, value in want.items()
    }
