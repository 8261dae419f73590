"""AdamW over what a stage trains: which parameters decay, and the optimizer's state as named tensors.

State is stored by the parameters' names, so that neither the order of parameters nor the number of ranks matters to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lyrics.core.training.config import OptimisationSection
from lyrics.core.training.errors import CheckpointError

_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices only, and not to query tokens, which are inputs and no weights.

    Biases, norms and the temperature have fewer than two dimensions.
    """
    return parameter.ndim >= 2 and "query_tokens" not in name.rpartition(".")[2]


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimisationSection) -> torch.optim.AdamW:
    """One group with weight decay and one without."""
    with_decay = [parameter for name, parameter in parameters.items() if decays(name, parameter)]
    without = [parameter for name, parameter in parameters.items() if not decays(name, parameter)]
    groups = [
        {"params": with_decay, "weight_decay": settings.weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The optimizer's state: ``parameter/slot`` -> tensor. A parameter that was never updated has none."""
    return {
        f"{name}/{slot}": optimizer.state[parameter][slot]
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter)
        for slot in _SLOTS
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    where: str,
) -> None:
    """The inverse of ``optimizer_tensors``. Raises ``CheckpointError`` beginning with ``where`` for state that does not fit."""
    slots = {f"{name}/{slot}" for name in parameters for slot in _SLOTS}
    if unexpected := sorted(set(tensors) - slots):
        raise CheckpointError(f"{where}: has state of parameters that are not trained here, such as {unexpected[0]}.")
    for name, parameter in parameters.items():
        state = {slot: tensors[f"{name}/{slot}"] for slot in _SLOTS if f"{name}/{slot}" in tensors}
        if not state:
            continue
        if len(state) < len(_SLOTS) or any(state[slot].shape != parameter.shape for slot in _SLOTS[1:]):
            raise CheckpointError(f"{where}: the state of {name} is not of shape {tuple(parameter.shape)}.")
        # AdamW keeps its step counts on the host.
        optimizer.state[parameter] = {
            "step": state["step"].clone(),
            **{slot: state[slot].to(parameter.device, copy=True) for slot in _SLOTS[1:]},
        }


@torch.no_grad()
def load_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Fill parameters by name. Raises ``CheckpointError`` beginning with ``where`` and naming what is missing, left over or misshapen."""
    missing, unexpected = sorted(set(parameters) - set(tensors)), sorted(set(tensors) - set(parameters))
    if missing or unexpected:
        complaints = [
            f"{len(names)} {what}, such as {names[0]}"
            for what, names in (("missing", missing), ("not of this model", unexpected))
            if names
        ]
        raise CheckpointError(f"{where}: its tensors are not those that this model trains: {'; '.join(complaints)}.")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, but {tuple(parameter.shape)} in this model."
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
