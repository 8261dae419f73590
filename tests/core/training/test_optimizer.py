"""The rate, the groups, and the optimizer's state under names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lyrics.core.errors import CheckpointError
from lyrics.core.loading import build_model
from lyrics.core.runs.config import OptimizationSection
from lyrics.core.trained import load_parameters
from lyrics.core.training.optimizer import (
    build_optimizer,
    decays,
    load_optimizer,
    optimizer_tensors,
    set_rate,
)
from lyrics.core.training.schedule import learning_rate
from tests.core.small import small
from tests.core.training.standin import StandIn

SETTINGS = OptimizationSection(steps=10, global_batch=4)


def rates(steps: int, share: float = 0.15) -> list[float]:
    return [learning_rate(step, steps=steps, peak=1e-4, warmup_share=share) for step in range(steps)]


def test_the_rate_rises_over_15_percent_and_falls_as_half_a_cosine() -> None:
    found = rates(1000)
    assert found[0] == pytest.approx(1e-4 / 150)
    assert found[74] == pytest.approx(0.5e-4)
    assert found[149] == found[150] == 1e-4
    assert found[150 + 425] == pytest.approx(0.5e-4)
    assert 0 < found[-1] < 1e-9
    assert max(found) == 1e-4
    peak = found.index(1e-4)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[300] == pytest.approx(0.5e-4 * (1 + math.cos(math.pi * 150 / 850)))


@pytest.mark.parametrize(("steps", "share"), [(1, 0.15), (1, 1.0), (3, 0.0), (3, 1.0), (2, 0.5)])
def test_short_runs_have_a_rate(steps: int, share: float) -> None:
    assert all(0 < rate <= 1e-4 for rate in rates(steps, share))


def test_biases_norms_temperature_and_query_tokens_do_not_decay() -> None:
    model = build_model(small(objectives={"itc": "itc", "itm": "itm"}), weights="random")
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("query_transformer.", "objectives.", "projection."))
    }
    optimizer = build_optimizer(parameters, SETTINGS)
    names = {id(parameter): name for name, parameter in parameters.items()}
    decaying, still = ({names[id(one)] for one in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert decaying | still == set(parameters)
    assert {"query_transformer.query_tokens_QD", "objectives.itc.temperature", "projection.bias"} <= still
    assert all("norm" in name or name.endswith(("bias", "temperature", "query_tokens_QD")) for name in still)
    assert not any("norm" in name or name.endswith("bias") for name in decaying)
    assert "projection.weight" in decaying
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_a_module_that_is_named_after_query_tokens_decays() -> None:
    assert decays("query_tokens_head.weight", torch.zeros(2, 2))
    assert not decays("a.query_tokens_QD", torch.zeros(2, 2))


def stepped(model: StandIn) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    parameters = model.trainable_parameters("pretrain")
    optimizer = build_optimizer(parameters, SETTINGS)
    for name, parameter in parameters.items():
        if name != "extra":
            parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    return parameters, optimizer


def test_state_goes_by_name() -> None:
    parameters, optimizer = stepped(StandIn())
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, parameters).items()}
    assert "head.weight/exp_avg" in tensors
    assert not any(name.startswith("extra/") for name in tensors), "it was never updated"
    again = StandIn()
    others = dict(reversed(again.trainable_parameters("pretrain").items()))
    fresh = build_optimizer(others, SETTINGS)
    load_optimizer(fresh, others, tensors, "here")
    load_parameters(others, {name: parameter.detach().clone() for name, parameter in parameters.items()}, "here")
    for one, chosen in ((optimizer, parameters), (fresh, others)):
        for parameter in chosen.values():
            parameter.grad = torch.full_like(parameter, -0.3)
        one.step()
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def test_state_that_does_not_fit_is_named() -> None:
    parameters, optimizer = stepped(StandIn())
    tensors = optimizer_tensors(optimizer, parameters)
    with pytest.raises(
        CheckpointError, match=r"here: has state of parameters that are not trained here, such as b/step"
    ):
        load_optimizer(optimizer, parameters, tensors | {"b/step": torch.zeros(())}, "here")
    with pytest.raises(CheckpointError, match=r"here: the state of head.weight is not of shape \(11, 16\)"):
        load_optimizer(optimizer, parameters, tensors | {"head.weight/exp_avg": torch.zeros(2)}, "here")
    missing = {name: tensor for name, tensor in tensors.items() if name != "head.weight/exp_avg"}
    with pytest.raises(CheckpointError, match=r"here: the state of head.weight"):
        load_optimizer(optimizer, parameters, missing, "here")


def test_parameters_that_do_not_fit_are_named_and_nothing_is_loaded() -> None:
    parameters = StandIn().trainable_parameters("pretrain")
    good = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for bad, message in (
        ({**good, "b": torch.zeros(1)}, "1 not of this model, such as b"),
        ({name: tensor for name, tensor in good.items() if name != "extra"}, "1 missing, such as extra"),
        ({**good, "extra": torch.zeros(3)}, r"extra is \(3,\), but \(16,\) in this model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_parameters(parameters, bad, "here")
    assert all(torch.equal(parameters[name], before[name]) for name in before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_part_may_have_a_rate_and_a_decay_of_its_own(optimizer: str) -> None:
    named = {
        "encoder.layer.weight": nn.Parameter(torch.ones(3, 3)),
        "encoder.layer.bias": nn.Parameter(torch.ones(3)),
        "query_transformer.layer.weight": nn.Parameter(torch.ones(3, 3)),
        "projection.bias": nn.Parameter(torch.ones(3)),
    }
    groups = {"image_encoder": {"learning_rate": 1e-5, "weight_decay": 0.3}, "projection": {"learning_rate": 2e-4}}
    settings = OptimizationSection(steps=10, global_batch=4, optimizer=optimizer, groups=groups)
    made = build_optimizer(named, settings)
    names = {id(parameter): name for name, parameter in named.items()}

    def by_name(entry: str) -> dict[str, float]:
        return {names[id(one)]: group[entry] for group in made.param_groups for one in group["params"]}

    first = {
        "encoder.layer.weight": 1e-5,
        "encoder.layer.bias": 1e-5,
        "query_transformer.layer.weight": 1e-4,
        "projection.bias": 2e-4,
    }
    assert by_name("lr") == pytest.approx(first)
    assert by_name("weight_decay") == {
        "encoder.layer.weight": 0.3,
        "encoder.layer.bias": 0.0,
        "query_transformer.layer.weight": 0.05,
        "projection.bias": 0.0,
    }
    set_rate(made, 5e-5)
    assert by_name("lr") == pytest.approx({name: rate / 2 for name, rate in first.items()})
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    moved = {name: float((parameter - 1).abs().max()) for name, parameter in named.items()}
    assert moved["encoder.layer.bias"] == pytest.approx(5e-6, rel=0.01)
    assert moved["projection.bias"] == pytest.approx(1e-4, rel=0.01)
