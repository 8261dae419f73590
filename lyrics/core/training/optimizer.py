"""AdamW or Muon over what a stage trains: which parameters decay, and the optimizer's state as named tensors.

State is stored by the parameters' names, so that neither the order of parameters nor the number of ranks matters to a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lyrics.core.errors import CheckpointError
from lyrics.core.runs.config import OptimizationSection
from lyrics.core.training import muon
from lyrics.core.training.muon import MuonWithAdamW

#: Entry of a group: its learning rate as a share of the rate of all.
RATE_SHARE = "rate_share"
_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies: to matrices only, and not to query tokens, which are inputs and no weights.

    Biases, norms and the temperature have fewer than two dimensions.
    """
    return parameter.ndim >= 2 and "query_tokens" not in name.rpartition(".")[2]


def orthogonalized(name: str, parameter: torch.Tensor) -> bool:
    """Return whether Muon updates it.

    It does where it is a matrix from features to features: neither an embedding, nor a head, nor query tokens.
    """
    return parameter.ndim == 2 and decays(name, parameter) and not any(part in name for part in ("embed", "head."))


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizationSection) -> torch.optim.Optimizer:
    """Return one group with weight decay and one without.

    With ``optimizer: muon`` the matrices that it takes before them. A part with a group of its own in the settings has
    two of its own, which AdamW updates.
    """
    own = {name for name in parameters if _part_of(name) in settings.groups}
    matrices = [
        parameter
        for name, parameter in parameters.items()
        if settings.optimizer == "muon" and orthogonalized(name, parameter) and name not in own
    ]
    left_out = {id(parameter) for parameter in matrices} | {id(parameters[name]) for name in own}
    others = {name: parameter for name, parameter in parameters.items() if id(parameter) not in left_out}
    groups = _decaying_and_not(others, settings.weight_decay)
    for part, group in settings.groups.items():
        members = {name: parameters[name] for name in own if _part_of(name) == part}
        rate = settings.learning_rate if group.learning_rate is None else group.learning_rate
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        share = {"lr": rate, RATE_SHARE: rate / settings.learning_rate}
        groups += [made | share for made in _decaying_and_not(members, decay)]
    if not matrices:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    return MuonWithAdamW(
        matrices,
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate, where ``rate`` is that of all."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_SHARE, 1.0)


def _part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, as the settings name it."""
    first = name.partition(".")[0]
    return "image_encoder" if first == "encoder" else first


def _decaying_and_not(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"params": [one for name, one in parameters.items() if decays(name, one) is decaying], "weight_decay": decay}
        for decaying, decay in ((True, weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _slots(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[str, ...]]:
    """Return what the optimizer keeps of each parameter."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
    by_muon = optimizer.takes() if isinstance(optimizer, MuonWithAdamW) else set()
    return {name: muon.SLOTS if id(one) in by_muon else _SLOTS for name, one in parameters.items()}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the optimizer's state: ``parameter/slot`` -> tensor. A parameter that was never updated has none."""
    return {
        f"{name}/{slot}": optimizer.state[parameters[name]][slot]
        for name, slots in _slots(optimizer, parameters).items()
        if optimizer.state.get(parameters[name])
        for slot in slots
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    where: str,
) -> None:
    """The inverse of ``optimizer_tensors``.

    Raises ``CheckpointError`` beginning with ``where`` for state that does not fit.
    """
    slots = _slots(optimizer, parameters)
    known = {f"{name}/{slot}" for name in parameters for slot in slots[name]}
    if unexpected := sorted(set(tensors) - known):
        raise CheckpointError(f"{where}: has state of parameters that are not trained here, such as {unexpected[0]}.")
    for name, parameter in parameters.items():
        state = {slot: tensors[f"{name}/{slot}"] for slot in slots[name] if f"{name}/{slot}" in tensors}
        if not state:
            continue
        if len(state) < len(slots[name]) or any(
            tensor.shape != parameter.shape for slot, tensor in state.items() if slot != "step"
        ):
            raise CheckpointError(f"{where}: the state of {name} is not of shape {tuple(parameter.shape)}.")
        # AdamW keeps its step counts on the host.
        optimizer.state[parameter] = {
            slot: tensor.clone() if slot == "step" else tensor.to(parameter.device, copy=True)
            for slot, tensor in state.items()
        }
