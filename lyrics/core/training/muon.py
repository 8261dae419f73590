"""Muon for matrices and AdamW for all else, as one optimizer: one rate, one list of groups, one state.

torch has both, but its Muon takes matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

#: What Muon keeps of a matrix.
SLOTS = ("momentum_buffer",)
_MATRICES = "matrices"


class MuonWithAdamW(torch.optim.Optimizer):
    """``matrices`` are updated by ``torch.optim.Muon`` (Jordan 2024), ``groups`` by ``torch.optim.AdamW``.

    One learning rate serves both: Muon's updates are scaled to the size that AdamW's have (Liu et al. 2025, arXiv
    2502.16982, section 2.2).

    Raises ``ValueError`` for matrices that have not two dimensions.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        groups: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW([dict(group) for group in groups], lr=lr, betas=betas)
        named = [(group, name) for name, one in self._inner().items() for group in one.param_groups]
        super().__init__([{**group, _MATRICES: name == "muon"} for group, name in named], {"lr": lr, "betas": betas})

    def _inner(self) -> dict[str, torch.optim.Optimizer]:
        return {"muon": self._muon, "adamw": self._adamw}

    def takes(self) -> set[int]:
        """Identities of the parameters that Muon updates."""
        return {id(one) for group in self.param_groups if group[_MATRICES] for one in group["params"]}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Return one update of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, one in self._inner().items():
            # Loading a state, or a wrapper, may have put other groups and another state in place.
            one.param_groups = [group for group in self.param_groups if group[_MATRICES] == (name == "muon")]
            one.state = self.state
            one.step()
        return loss
