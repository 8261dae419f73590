"""Muon beside AdamW: who updates what, each as torch's own would, and a state that goes by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lyrics.core.errors import CheckpointError
from lyrics.core.loading import build_model
from lyrics.core.runs.config import OptimizationSection
from lyrics.core.training.muon import MuonWithAdamW
from lyrics.core.training.optimizer import build_optimizer, load_optimizer, optimizer_tensors, orthogonalized
from tests.core.small import small

SETTINGS = OptimizationSection(steps=10, global_batch=4, learning_rate=1e-2, optimizer="muon")


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"layer.weight": (6, 4), "layer.bias": (6,), "embed_tokens.weight": (10, 4), "query_tokens_QD": (3, 4)}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def with_gradients(found: dict[str, nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in found.values():
        parameter.grad = torch.randn_like(parameter)


def step(found: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    with_gradients(found, seed)
    optimizer.step()


def muon(found: dict[str, nn.Parameter]) -> MuonWithAdamW:
    optimizer = build_optimizer(found, SETTINGS)
    assert isinstance(optimizer, MuonWithAdamW)
    return optimizer


def test_matrices_between_features_are_muons_and_nothing_else_is() -> None:
    found = parameters()
    assert muon(found).takes() == {id(found["layer.weight"])}
    model = build_model(small(objectives={"itc": "itc"}), weights="random")
    taken = {name for name, parameter in model.named_parameters() if orthogonalized(name, parameter)}
    assert any(name.startswith("query_transformer.") for name in taken)
    assert any("q_proj" in name for name in taken)
    assert not any("embed" in name or "lm_head" in name or "token_head" in name or "norm" in name for name in taken)


def test_each_part_moves_as_torch_alone_would_move_it() -> None:
    found, alone = parameters(), parameters()
    optimizer = muon(found)
    rest = {name: one for name, one in alone.items() if name != "layer.weight"}
    by_torch = [
        torch.optim.Muon([alone["layer.weight"]], lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        build_optimizer(rest, SETTINGS.model_copy(update={"optimizer": "adamw"})),
    ]
    assert isinstance(by_torch[1], torch.optim.AdamW)
    for seed in range(3):
        step(found, optimizer, seed)
        with_gradients(alone, seed)
        for one in by_torch:
            one.step()
    assert all(torch.equal(found[name], alone[name]) for name in found)


def test_the_rate_is_that_of_the_groups() -> None:
    found = parameters()
    before = {name: one.detach().clone() for name, one in found.items()}
    optimizer = muon(found)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(found, optimizer, 0)
    assert all(torch.equal(found[name], before[name]) for name in found)


def continued(load: Callable[[MuonWithAdamW, dict[str, nn.Parameter], MuonWithAdamW], None]) -> None:
    """One training in one go, and one whose state is handed on after two steps, end the same."""
    whole, halves = parameters(), parameters()
    optimizer = muon(whole)
    for seed in range(4):
        step(whole, optimizer, seed)
    first = muon(halves)
    for seed in range(2):
        step(halves, first, seed)
    second = muon(halves)
    load(second, halves, first)
    for seed in range(2, 4):
        step(halves, second, seed)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_state_goes_by_name() -> None:
    def load(fresh: MuonWithAdamW, found: dict[str, nn.Parameter], old: MuonWithAdamW) -> None:
        tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(old, found).items()}
        assert "layer.weight/momentum_buffer" in tensors
        assert "layer.bias/exp_avg_sq" in tensors
        assert "layer.weight/exp_avg" not in tensors
        load_optimizer(fresh, found, tensors, "here")

    continued(load)


def test_torchs_own_state_dict_goes_on_too() -> None:
    continued(lambda fresh, found, old: fresh.load_state_dict(old.state_dict()))


def test_the_state_of_the_other_optimizer_is_refused() -> None:
    found = parameters()
    adamw = build_optimizer(found, SETTINGS.model_copy(update={"optimizer": "adamw"}))
    step(found, adamw, 0)
    with pytest.raises(CheckpointError, match="here: has state of parameters that are not trained here, such as layer"):
        load_optimizer(muon(found), found, optimizer_tensors(adamw, found), "here")


def test_a_closure_is_evaluated() -> None:
    found = parameters()
    optimizer = muon(found)
    with_gradients(found, 0)
    assert optimizer.step(lambda: 3.0) == 3.0
