"""Linear layers by oneDNN, on processors that torch's own choice of library does not use well.

torch gives matrix products of fp32 on a CPU to MKL, which leaves AMD's 512-bit units alone: on an EPYC of 2025 it did
104 billion operations a second on one core, where oneDNN, which is in torch, too, did 225. Results differ by rounding.

Shapes: C channels that come in, D that go out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@functools.cache
def pays() -> bool:
    """Return whether this machine's processor is one of those; the same in every run, so that rows stay the same."""
    if _LINEAR is None or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def linear(x: torch.Tensor, weight_DC: torch.Tensor, bias_D: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``F.linear(x, weight_DC, bias_D)`` for x [..., C], by oneDNN where that pays.

    That is for fp32 on the CPU, without gradients.
    """
    if not pays() or not _fits(x, weight_DC):
        return F.linear(x, weight_DC, bias_D)
    found: torch.Tensor = _LINEAR(x, weight_DC, bias_D, "none", [], "")
    return found


def _fits(x: torch.Tensor, weight_DC: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight_DC.dtype == torch.float32
        and x.numel() > 0
        and type(weight_DC) in (torch.Tensor, nn.Parameter)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class OneDnnLinear(nn.Linear):
    """A linear layer that calls ``linear``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Project [..., C] to [..., D]."""
        return linear(input, self.weight, self.bias)


def use_onednn(network: nn.Module) -> None:
    """Let the linear layers of a network call ``linear``; weights and their names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
