"""The public operations: validate, choose an implementation, call it.

``impl`` names how: ``auto``, ``reference``, ``sdpa``; ``triton``, ``flash`` and ``flex`` are known names that this build does not have.
An explicit name never falls back to another; ``auto`` logs once what it chose and why.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan

logger = logging.getLogger(__name__)

#: Implementations in the order in which ``auto`` tries them -> the module that holds them.
_MODULES: Mapping[str, str] = {
    "triton": "lyrics.kernels._triton",
    "flash": "lyrics.kernels._flash",
    "flex": "lyrics.kernels._flex",
    "sdpa": "lyrics.kernels._sdpa",
    "reference": "lyrics.kernels._reference",
}
IMPLEMENTATIONS = tuple(_MODULES)


class ImplementationError(ValueError):
    """The implementation asked for does not exist or cannot run here; the message says why and what can."""


@dataclass(frozen=True)
class Availability:
    """Whether an implementation can run here, and the reason either way."""

    name: str
    available: bool
    reason: str


def available_implementations() -> list[Availability]:
    """Every implementation by name, in the order ``auto`` tries them, with the reason why it can or cannot run here."""
    found = []
    for name, module in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            found.append(Availability(name, False, "not built yet"))
        elif name == "sdpa":
            found.append(Availability(name, True, "torch's scaled_dot_product_attention over buckets of like streams"))
        else:
            found.append(Availability(name, True, "plain torch, dense: the definition"))
    return found


def explain(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """What ``impl="auto"`` takes for tensors of this device and dtype, and why, in one sentence."""
    passed = [entry for entry in available_implementations() if not entry.available]
    chosen = next(entry for entry in available_implementations() if entry.available)
    reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in passed)
    return f"{chosen.name} ({chosen.reason}) for {dtype} on {device}" + (f" [{reasons}]" if reasons else "")


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention over packed tokens: row t sees the keys that ``plan`` says, scaled by 1/sqrt(d).

    Args:
        q: [Tq, H, d]; k and v: [Tk, H, d], same dtype and device. Only the last dimension must be contiguous.
        plan: from ``build_plan`` (or ``Plan.select`` of it), with Tq query rows and Tk keys.
        dropout_p: probability that an attention weight is dropped. Which ones depends on ``seed`` and on logical positions alone, so
            that packing and implementation make no difference.
        seed: 64-bit; give every layer its own.
        impl: see the module's text.

    Returns:
        [Tq, H, d]. Rows that see no key are zero.

    Raises:
        ValueError: shapes that do not fit the plan or each other.
        ImplementationError: an unknown or unavailable ``impl``.
    """
    if q.dim() != 3 or k.shape != v.shape or k.dim() != 3 or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q, k, v must be [Tq,H,d], [Tk,H,d], [Tk,H,d]; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    if (q.shape[0], k.shape[0]) != (plan.num_queries, plan.num_keys):
        raise ValueError(
            f"the plan is for {plan.num_queries} query rows and {plan.num_keys} keys; got {q.shape[0]} and {k.shape[0]}."
        )
    _check_common(q, k, v, dropout_p)
    module = _implementation(impl, q.device.type, q.dtype)
    return module.segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed)


def cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: CrossPlan,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    impl: str = "auto",
) -> torch.Tensor:
    """Query sets read the keys and values of the image that ``plan`` gives each of them.

    Args:
        q: [S, Q, H, d] query sets; k and v: [I, M, H, d], projected once per image however many sets read them.
        plan: from ``build_cross_plan``.
        dropout_p, seed, impl: as in ``segment_attention``.

    Returns:
        [S, Q, H, d]; zero for sets whose image has no key (or when M is 0).
    """
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q, k, v must be [S,Q,H,d], [I,M,H,d], [I,M,H,d]; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    if (q.shape[0], k.shape[0], k.shape[1]) != (len(plan.image_index_S), plan.num_images, len(plan.col_id_M)):
        raise ValueError(
            f"the plan is for {len(plan.image_index_S)} query sets and {plan.num_images} images of {len(plan.col_id_M)} keys; "
            f"got {q.shape[0]}, {k.shape[0]} and {k.shape[1]}."
        )
    _check_common(q, k, v, dropout_p)
    if k.shape[1] == 0:
        return q * 0.0
    module = _implementation(impl, q.device.type, q.dtype)
    return module.cross_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed)


def _check_common(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> None:
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(f"q, k, v must share dtype and device; got {[(x.dtype, str(x.device)) for x in (q, k, v)]}.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), not {dropout_p}.")


@lru_cache(maxsize=64)
def _implementation(impl: str, device: str, dtype: torch.dtype) -> ModuleType:
    if impl == "auto":
        logger.info("attention: auto takes %s", explain(device, dtype))
        impl = next(entry.name for entry in available_implementations() if entry.available)
    if impl not in _MODULES:
        raise ImplementationError(
            f"there is no implementation {impl!r}; the names are auto, {', '.join(IMPLEMENTATIONS)}."
        )
    entry = next(entry for entry in available_implementations() if entry.name == impl)
    if not entry.available:
        usable = [other.name for other in available_implementations() if other.available]
        raise ImplementationError(
            f"implementation {impl!r} cannot run here: {entry.reason}. Available: {', '.join(usable)}."
        )
    return importlib.import_module(_MODULES[impl])
